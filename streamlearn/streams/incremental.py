"""Streams made from one data set: new classes, new tasks, new domains, or more rows of the same, experience by experience.

The first three are the scenarios of van de Ven and Tolias, "Three scenarios for continual learning", 2019, arXiv:1904.07734.
Everything is a pure function of the arguments; experiences are built when asked for and hold indices, never rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from streamlearn.errors import DataError
from streamlearn.streams.data import Transform
from streamlearn.streams.experience import EvaluationSet, Experience
from streamlearn.streams.inputs import Inputs, count_experiences, resolve
from streamlearn.streams.partition import chunk_edges, permutation
from streamlearn.streams.splits import ClassSplit
from streamlearn.streams.stream import Stream
from streamlearn.streams.task import Task
from streamlearn.streams.transforms import domain_transforms, transformed_shape

if TYPE_CHECKING:
    from streamlearn.streams.inputs import SourceLike

__all__ = ["class_incremental", "data_incremental", "domain_incremental", "task_incremental"]


def class_incremental(
    source: SourceLike,
    experiences: int | None = None,
    *,
    seed: int = 0,
    classes: Sequence[Sequence[int]] | None = None,
    shuffle: bool = True,
    test: SourceLike | None = None,
    test_fraction: float = 0.2,
) -> Stream:
    """New classes of one task in every experience; the model is not told which experience a test row is from.

    Protocol: the class numbers, shuffled by ``seed``, are cut into ``experiences`` groups ``C_i`` as even as possible.
    Experience ``i`` trains on every row with ``y`` in ``C_i``, and evaluation set ``i`` holds the test rows with ``y`` in ``C_i``.
    Labels keep their numbers and the task has all classes from the start.

    Args:
        source: a name ("digits", "mnist", "fashion-mnist"), ``(x, y)`` arrays, a map-style torch data set, or a `Source`.
        experiences: from 1 to the number of classes; by default 5, or as many as ``classes`` has groups.
        seed: at least 0; of the shuffle and of the test split.
        classes: the groups themselves; each class at most once, and the rows of classes left out are not used.
        shuffle: whether classes are shuffled before they are cut into groups; unused when ``classes`` is given.
        test: test rows, given like ``source``; a named source has its own.
        test_fraction: in (0, 1): how much of every class is held out when there are no test rows.

    Raises:
        DataError: an argument is out of its range, or the labels are not class numbers 0 to n-1 without gaps.
        UnknownNameError: no source has this name.

    Source: Rebuffi et al., "iCaRL", CVPR 2017; with MNIST and five experiences it is Split MNIST (Zenke et al., ICML 2017).

    Example:
        >>> stream = class_incremental("digits", 5, shuffle=False)
        >>> [experience.classes["digits"] for experience in stream]
        [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    """
    inputs = resolve(source, test, test_fraction, seed)
    split = ClassSplit(inputs, experiences, classes, shuffle)
    task = inputs.task

    def experience(i: int) -> Experience:
        present = split.groups[i]
        return Experience(i, (task,), {"train": inputs.train.data(split.train(i), task)}, split.names[i], {task.name: present})

    def evaluation(i: int) -> EvaluationSet:
        return EvaluationSet(i, inputs.test.data(split.test(i), task), split.names[i])

    return _stream("class_incremental", inputs, (task,), experience=experience, evaluation=evaluation, options=split.options)


def task_incremental(
    source: SourceLike,
    experiences: int | None = None,
    *,
    seed: int = 0,
    classes: Sequence[Sequence[int]] | None = None,
    shuffle: bool = True,
    test: SourceLike | None = None,
    test_fraction: float = 0.2,
) -> Stream:
    """A task of its own for every experience; training and evaluation both say which task a row is asked on.

    Protocol: the classes are grouped as by `class_incremental`. Experience ``i`` has the task ``"<source>/i"``, whose class
    ``k`` is the ``k``-th class of the group in ascending order; `Task.classes` keeps what the source calls it.

    Args:
        source: a name ("digits", "mnist", "fashion-mnist"), ``(x, y)`` arrays, a map-style torch data set, or a `Source`.
        experiences: from 1 to the number of classes; by default 5, or as many as ``classes`` has groups.
        seed, classes, shuffle: which classes come together, as in `class_incremental`.
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
    split = ClassSplit(inputs, experiences, classes, shuffle)
    names = inputs.class_names or tuple(map(str, range(inputs.classes)))
    tasks = tuple(Task(f"{inputs.name}/{i}", "classification", len(g), tuple(names[c] for c in g)) for i, g in enumerate(split.groups))

    def experience(i: int) -> Experience:
        task = tasks[i]
        data = inputs.train.data(split.train(i), task, split.relabelling(i))
        return Experience(i, (task,), {"train": data}, split.names[i], {task.name: tuple(range(task.size))})

    def evaluation(i: int) -> EvaluationSet:
        return EvaluationSet(i, inputs.test.data(split.test(i), tasks[i], split.relabelling(i)), split.names[i])

    return _stream("task_incremental", inputs, tasks, experience=experience, evaluation=evaluation, options=split.options)


def domain_incremental(
    source: SourceLike,
    experiences: int | None = None,
    *,
    transform: str | Sequence[Transform] = "permutation",
    seed: int = 0,
    degrees: float = 180.0,
    first_identity: bool = True,
    test: SourceLike | None = None,
    test_fraction: float = 0.2,
) -> Stream:
    """The same task on the same rows in every experience, seen differently each time.

    Protocol: experience ``i`` trains on ``(t_i(x), y)`` for all training rows, and evaluation set ``i`` holds ``(t_i(x), y)``
    for all test rows. "permutation": ``t_i(x) = x[π_i]`` with random ``π_i``; "rotation": ``t_i`` turns images by
    ``i * degrees / experiences`` degrees.

    Args:
        source: a name ("digits", "mnist", "fashion-mnist"), ``(x, y)`` arrays, a map-style torch data set, or a `Source`.
        experiences: at least 1; by default 5, or as many as ``transform`` lists.
        transform: "permutation", "rotation", or one callable per experience that maps ``(rows, ...)`` to ``(rows, ...)``.
        seed: at least 0; of the permutations and of the test split.
        degrees: in (0, 360]; of "rotation" only.
        first_identity: whether the first experience sees ``x`` as it is; of "permutation" only (the first angle is 0 anyway).
        test, test_fraction: what to evaluate on, as in `class_incremental`.

    Raises:
        DataError: an argument is out of its range, inputs are no images where they must be, or the labels are not class
            numbers 0 to n-1 without gaps.
        UnknownNameError: no source, or no transform, has this name.

    Source: permuted MNIST: Goodfellow et al., 2013, arXiv:1312.6211, and Kirkpatrick et al., "EWC", PNAS 2017; rotated MNIST:
        Lopez-Paz and Ranzato, "GEM", NeurIPS 2017.

    Example:
        >>> stream = domain_incremental("digits", 3, transform="rotation", degrees=90)
        >>> [experience.data["train"].domain for experience in stream]
        ['rotation/0', 'rotation/30', 'rotation/60']
    """
    inputs = resolve(source, test, test_fraction, seed)
    domains = domain_transforms(transform, experiences, inputs, degrees=degrees, first_identity=first_identity)
    task, everything = inputs.task, slice(None)

    def experience(i: int) -> Experience:
        domain, change = domains[i]
        data = inputs.train.data(everything, task, None, change, domain)
        return Experience(i, (task,), {"train": data}, domain, {task.name: tuple(range(task.size))})

    def evaluation(i: int) -> EvaluationSet:
        domain, change = domains[i]
        return EvaluationSet(i, inputs.test.data(everything, task, None, change, domain), domain)

    told = transform if isinstance(transform, str) else {"given by the user": True, "transforms": len(transform)}
    options = {"experiences": len(domains), "transform": told, "degrees": float(degrees), "first_identity": bool(first_identity)}
    shape = transformed_shape(domains, inputs.train.source)
    return _stream("domain_incremental", inputs, (task,), experience=experience, evaluation=evaluation, options=options, input_shape=shape)


def data_incremental(
    source: SourceLike, experiences: int | None = None, *, seed: int = 0, test: SourceLike | None = None, test_fraction: float = 0.2
) -> Stream:
    """More rows of the same task in every experience, drawn at random: what is left of the problem without any shift.

    Protocol: the training rows, in a random order, are cut into ``experiences`` chunks whose sizes differ by at most one;
    every evaluation set holds all test rows.

    Args:
        source: a name ("digits", "mnist", "fashion-mnist"), ``(x, y)`` arrays, a map-style torch data set, or a `Source`.
        experiences: from 1 to the number of training rows; by default 5.
        seed: at least 0; of the order and of the test split.
        test, test_fraction: what to evaluate on, as in `class_incremental`.

    Raises:
        DataError: an argument is out of its range, or the labels are not class numbers 0 to n-1 without gaps.
        UnknownNameError: no source has this name.

    Source: De Lange and Tuytelaars, "Continual prototype evolution", ICCV 2021 (the data-incremental setting); Lomonaco and
        Maltoni, "CORe50", CoRL 2017 (new instances).

    Example:
        >>> [len(experience.data["train"]) for experience in data_incremental("digits", 4)]
        [360, 360, 359, 359]
    """
    inputs = resolve(source, test, test_fraction, seed)
    count, rows = count_experiences(experiences, 5), len(inputs.train.indices)
    if rows < count:
        raise DataError(f"source {inputs.name!r} has {rows} training rows, fewer than {count} experiences: ask for at most {rows}")
    order, edges, task = permutation(rows, seed=inputs.seed, purpose="rows"), chunk_edges(rows, count), inputs.task

    def experience(i: int) -> Experience:
        positions = order[slice(*edges[i])].sort().values
        present = tuple(torch.unique(inputs.train.labels[positions]).tolist())
        return Experience(i, (task,), {"train": inputs.train.data(positions, task)}, f"chunk {i}", {task.name: present})

    def evaluation(i: int) -> EvaluationSet:
        return EvaluationSet(i, inputs.test.data(slice(None), task), "all test rows")

    return _stream("data_incremental", inputs, (task,), experience=experience, evaluation=evaluation, options={"experiences": count})


def _stream(
    builder: str,
    inputs: Inputs,
    tasks: tuple[Task, ...],
    *,
    experience: Callable[[int], Experience],
    evaluation: Callable[[int], EvaluationSet],
    options: dict[str, Any],
    input_shape: tuple[int, ...] | None = None,
) -> Stream:
    return Stream(
        f"{inputs.name}/{builder}",
        options["experiences"],
        experience,
        evaluation,
        tasks=tasks,
        input_shape=inputs.train.source.input_shape if input_shape is None else input_shape,
        description={"builder": builder, **inputs.described, **options},
        fingerprints=inputs.fingerprints,
    )
