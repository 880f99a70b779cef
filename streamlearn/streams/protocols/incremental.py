"""New classes, or new tasks, experience by experience, made of one data set.

With `streamlearn.streams.domain_incremental` these are the scenarios of van de Ven and Tolias, "Three scenarios for continual learning",
2019, arXiv:1904.07734. Everything is a pure function of the arguments; experiences are built when asked for and hold indices, not rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from streamlearn.streams.experience import EvaluationSet, Experience
from streamlearn.streams.inputs import resolve
from streamlearn.streams.protocols.building import stream_over
from streamlearn.streams.protocols.splits import ClassSplit
from streamlearn.streams.stream import Stream
from streamlearn.streams.task import Task

if TYPE_CHECKING:
    from streamlearn.streams.inputs import Inputs, SourceLike

__all__ = ["class_incremental", "same_outputs", "task_incremental"]


def class_incremental(
    source: SourceLike,
    experiences: int | None = None,
    *,
    seed: int = 0,
    classes: Sequence[Sequence[int]] | None = None,
    shuffle: bool = True,
    first: int | None = None,
    grow: bool = False,
    test: SourceLike | None = None,
    test_fraction: float = 0.2,
) -> Stream:
    """New classes of one task in every experience; the model is not told which experience a test row is from.

    Protocol: the class numbers, shuffled by ``seed``, are cut into ``experiences`` groups ``C_i`` as even as possible.
    Experience ``i`` trains on every row with ``y`` in ``C_i``, and evaluation set ``i`` holds the test rows with ``y`` in ``C_i``.
    Labels keep their numbers and the task has all classes from the start. With ``grow`` classes are numbered in the order in which they
    arrive and the task has those met so far: the head grows, losses and importances run over the classes seen, and nothing is said
    beforehand of what is to come.

    Args:
        source: a name (as listed in docs/streams.md), ``(x, y)`` arrays, a map-style torch data set, or a `Source`.
        experiences: from 1 to the number of classes; by default 5, or as many as ``classes`` has groups.
        seed: at least 0; of the shuffle and of the test split.
        classes: the groups themselves; each class at most once, and the rows of classes left out are not used.
        shuffle: whether classes are shuffled before they are cut into groups; unused when ``classes`` is given.
        first: how many classes the first experience has, at least 1; the others share the rest evenly (50 of 100 classes and then ten
            experiences of 5: ``experiences=11, first=50``). ``None``: all alike.
        grow: whether the task, and with it the head, has only the classes met so far.
        test: test rows, given like ``source``; a named source has its own.
        test_fraction: in (0, 1): how much of every class is held out when there are no test rows.

    Raises:
        DataError: an argument is out of its range, or the labels are not class numbers 0 to n-1 without gaps.
        UnknownNameError: no source has this name.

    Source: Rebuffi et al., "iCaRL", CVPR 2017; with ``first``: Hou et al., "Learning a unified classifier incrementally via rebalancing",
        CVPR 2019, and PyCIL; with MNIST and five experiences it is Split MNIST (Zenke et al., ICML 2017).

    Example:
        >>> stream = class_incremental("digits", 5, shuffle=False)
        >>> [experience.classes["digits"] for experience in stream]
        [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
        >>> [experience.tasks[0].size for experience in class_incremental("digits", 5, grow=True)]
        [2, 4, 6, 8, 10]
    """
    inputs = resolve(source, test, test_fraction, seed)
    split = ClassSplit(inputs, experiences, classes, shuffle, first)
    if grow:
        return _growing(inputs, split)
    task = inputs.task

    def experience(i: int) -> Experience:
        present = split.groups[i]
        return Experience(i, (task,), {"train": inputs.train.data(split.train(i), task)}, split.names[i], {task.name: present})

    def evaluation(i: int) -> EvaluationSet:
        return EvaluationSet(i, inputs.test.data(split.test(i), task), split.names[i])

    return stream_over(inputs, "class_incremental", (task,), experience=experience, evaluation=evaluation, options=split.options)


def _growing(inputs: Inputs, split: ClassSplit) -> Stream:
    """The same experiences, whose task has the classes met so far, numbered in the order in which they arrive."""
    names = inputs.class_names or tuple(map(str, range(inputs.classes)))
    order = [number for group in split.groups for number in group]
    sizes = list(accumulate(len(group) for group in split.groups))
    tasks = tuple(Task(inputs.task.name, "classification", size, tuple(names[c] for c in order[:size])) for size in sizes)
    numbers = torch.full((inputs.classes,), -1)
    numbers[order] = torch.arange(len(order))

    def experience(i: int) -> Experience:
        present = tuple(range(sizes[i] - len(split.groups[i]), sizes[i]))
        data = inputs.train.data(split.train(i), tasks[i], numbers)
        return Experience(i, (tasks[i],), {"train": data}, split.names[i], {tasks[i].name: present})

    def evaluation(i: int) -> EvaluationSet:
        return EvaluationSet(i, inputs.test.data(split.test(i), tasks[i], numbers), split.names[i])

    options = {**split.options, "grow": True}
    return stream_over(inputs, "class_incremental", tasks[:1], experience=experience, evaluation=evaluation, options=options)


def task_incremental(
    source: SourceLike,
    experiences: int | None = None,
    *,
    seed: int = 0,
    classes: Sequence[Sequence[int]] | None = None,
    shuffle: bool = True,
    first: int | None = None,
    test: SourceLike | None = None,
    test_fraction: float = 0.2,
) -> Stream:
    """A task of its own for every experience; training and evaluation both say which task a row is asked on.

    Protocol: the classes are grouped as by `class_incremental`. Experience ``i`` has the task ``"<source>/i"``, whose class
    ``k`` is the ``k``-th class of the group in ascending order; `Task.classes` keeps what the source calls it.

    Args:
        source: a name (as listed in docs/streams.md), ``(x, y)`` arrays, a map-style torch data set, or a `Source`.
        experiences: from 1 to the number of classes; by default 5, or as many as ``classes`` has groups.
        seed, classes, shuffle, first: which classes come together, as in `class_incremental`.
        test, test_fraction: what to evaluate on, as in `class_incremental`.

    Raises:
        DataError: an argument is out of its range, or the labels are not class numbers 0 to n-1 without gaps.
        UnknownNameError: no source has this name.

    Source: Li and Hoiem, "Learning without Forgetting", ECCV 2016; Lopez-Paz and Ranzato, "GEM", NeurIPS 2017.

    Example:
        >>> stream = task_incremental("digits", classes=[[0, 1], [8, 2]])
        >>> [(task.name, task.classes) for task in stream.tasks]
        [('digits/0', ('0', '1')), ('digits/1', ('2', '8'))]
    """
    inputs = resolve(source, test, test_fraction, seed)
    split = ClassSplit(inputs, experiences, classes, shuffle, first)
    names = inputs.class_names or tuple(map(str, range(inputs.classes)))
    tasks = tuple(Task(f"{inputs.name}/{i}", "classification", len(g), tuple(names[c] for c in g)) for i, g in enumerate(split.groups))

    def experience(i: int) -> Experience:
        task = tasks[i]
        data = inputs.train.data(split.train(i), task, split.relabelling(i))
        return Experience(i, (task,), {"train": data}, split.names[i], {task.name: tuple(range(task.size))})

    def evaluation(i: int) -> EvaluationSet:
        return EvaluationSet(i, inputs.test.data(split.test(i), tasks[i], split.relabelling(i)), split.names[i])

    return stream_over(inputs, "task_incremental", tasks, experience=experience, evaluation=evaluation, options=split.options)


def same_outputs(inputs: Inputs, experiences: int | None) -> Stream:
    """`streamlearn.streams.domain_incremental` with ``transform="classes"``: other classes in every experience, for the same outputs."""
    split = ClassSplit(inputs, experiences, None, True)
    task = Task(inputs.task.name, "classification", max(map(len, split.groups)))

    def experience(i: int) -> Experience:
        data = inputs.train.data(split.train(i), task, split.relabelling(i), None, split.names[i])
        return Experience(i, (task,), {"train": data}, split.names[i], {task.name: tuple(range(len(split.groups[i])))})

    def evaluation(i: int) -> EvaluationSet:
        return EvaluationSet(i, inputs.test.data(split.test(i), task, split.relabelling(i), None, split.names[i]), split.names[i])

    options = {"experiences": len(split.groups), "transform": "classes"}
    return stream_over(inputs, "domain_incremental", (task,), experience=experience, evaluation=evaluation, options=options)
