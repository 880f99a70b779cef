"""The user's own experiences: one for each data set that is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams.data import Data, Source, Target, classes_in
from streamlearn.streams.experience import EvaluationSet, Experience
from streamlearn.streams.hiding import hide_rows, with_targets
from streamlearn.streams.inputs import real_number, whole_number
from streamlearn.streams.partition import split_rows
from streamlearn.streams.protocols.several import GivenSet, checked_names, listed, naming, read_sets, refuse_trained, told_together
from streamlearn.streams.sources.labels import class_labels, class_names, target_columns
from streamlearn.streams.stream import Stream
from streamlearn.streams.task import Task

if TYPE_CHECKING:
    from streamlearn.streams.inputs import SourceLike

__all__ = ["from_datasets"]

_LARGEST_LABEL = 10**6
"""Beyond it labels are some other number, such as an identity, and no columns of that length are made for them."""


def from_datasets(
    train: Sequence[SourceLike],
    test: SourceLike | Sequence[SourceLike | None] | None = None,
    *,
    tasks: str = "shared",
    names: Sequence[str] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Stream:
    """The user's own experiences: one for each data set in a list, in its order.

    Protocol: experience ``i`` trains on all rows of ``train[i]`` that are not held out, in domain ``names[i]``. With ``tasks="shared"``
    all are asked on one task, ``"class"``, whose classes are those met in any experience, 0 to the largest without gaps. With
    ``tasks="own"`` experience ``i`` has the task ``names[i]``, whose class ``k`` is the ``k``-th class among its labels in ascending order;
    `Task.classes` keeps what the source calls it. Float targets, ``(rows,)`` or ``(rows, values)``, make a regression, which as a shared
    task is called ``"value"``.

    Args:
        train: a list of pairs ``(x, y)`` (arrays, tensors, or a DataFrame of numbers with its targets or the name of their column),
            map-style torch data sets, `Source`, or names of sources; with inputs of one shape and type.
        test: a list as long as ``train`` (evaluation set ``i``; ``None`` in it is as without ``test``), a single source that all
            experiences share, or ``None``: the test rows that a named source has, else a part of each experience.
        tasks: ``"shared"`` or ``"own"``.
        names: of the experiences, each once; ``None``: what their sources are called, ``"data/i"`` where they have no name.
        test_fraction: in (0, 1): how much of every class (of all rows, for a regression) is held out where there are no test rows.
        seed: at least 0; of that split.

    Raises:
        DataError: an argument is out of its range; or, naming the experience: it is no data set, is empty, has inputs of another shape or
            type than the first, a value that is not finite, or targets that are neither class numbers nor values; the classes have a gap,
            two experiences have one name, or test rows are also trained on.
        UnknownNameError: ``tasks`` is neither, or no source has this name.

    Source: the counterpart of ``benchmark_from_datasets`` of Avalanche (Carta et al., "Avalanche: a PyTorch library for deep continual
        learning", JMLR 2023).

    Example:
        >>> first, second = (torch.rand(10, 4), [0, 1] * 5), (torch.rand(20, 4), [2, 1] * 10)
        >>> [(e.name, e.classes, len(e.data["train"])) for e in from_datasets([first, second])]
        [('data/0', {'class': (0, 1)}, 8), ('data/1', {'class': (1, 2)}, 16)]
        >>> from_datasets([first, second], tasks="own", names=["a", "b"]).tasks[1]
        Task(name='b', kind='classification', size=2, classes=('1', '2'))
    """
    seed = whole_number(seed, "seed", 0)
    if not 0 < real_number(test_fraction) < 1:
        raise DataError(f"test_fraction is {test_fraction!r}: give a number between 0 and 1, or the test rows themselves as test=")
    if tasks not in ("shared", "own"):
        raise UnknownNameError("kind of tasks", str(tasks), ["own", "shared"])
    every, tests, shared = read_sets(train, test)
    if shared is not None and tasks == "own":
        raise DataError("test is one source and tasks is 'own': give a list of test rows, one for each experience")
    given_names = [one.source.name for one in every] if names is None else names
    called = checked_names(given_names, len(every), "names", "experience")
    asked = _own(every, called) if tasks == "own" else [_shared(every)] * len(every)
    trained, tested = [], list[Data]()
    for i, (one, own_test, question, name) in enumerate(zip(every, tests, asked, called, strict=True)):
        with naming(f"experience {i}"):
            rows = question.on(one, name)
            if own_test is None and shared is None:
                rows, held_out = _split(rows, one, test_fraction, seed)
                tested.append(held_out)
        trained.append(rows)
        if own_test is not None:
            with naming(f"test rows of experience {i}"):
                tested.append(question.on(own_test, name))
    if shared is not None:
        with naming("test rows"):
            tested = [asked[0].on(shared, "")]
    refuse_trained(every, tests, shared)
    sources = {id(part.source): part.source for part in (*every, *(one for one in tests if one), *([shared] if shared else []))}

    def experience(i: int) -> Experience:
        return Experience(i, (asked[i].task,), {"train": trained[i]}, called[i], classes_in(trained[i]))

    return Stream(
        "from_datasets",
        len(every),
        experience,
        lambda j: EvaluationSet(j, tested[j], "all test rows" if shared else called[j]),
        tasks=tuple({question.task.name: question.task for question in asked}.values()),
        input_shape=every[0].source.input_shape,
        description={
            "builder": "from_datasets", "train": told_together([one.told for one in every]), "test": _told(test, tests, shared),
            "tasks": tasks, "names": None if names is None else list(called), "test_fraction": float(test_fraction), "seed": seed,
        },
        fingerprints=lambda: [source.fingerprint() for source in sources.values()],
        sets=(lambda i: (0,)) if shared else None,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    """A task, and how it reads labels: ``relabel`` maps those of the source to classes, ``classes`` are those that it knows."""

    task: Task
    classes: tuple[int, ...] = ()
    relabel: Tensor | None = None

    def on(self, found: GivenSet, domain: str) -> Data:
        """Every row of ``found``, asked on the task.

        Raises:
            DataError: its targets are no answers to this task.
        """
        source = self._values(found) if self.task.kind == "regression" else self._labels(found)
        return Data(source, torch.arange(len(source)), (self.task,), {self.task.name: Target(found.column, self.relabel)}, domain=domain)

    def _labels(self, found: GivenSet) -> Source:
        _, labels = class_labels(found.source)
        strange = ~torch.isin(labels, torch.tensor(self.classes))
        if bool(strange.any()):
            row = int(strange.nonzero()[0, 0])
            known = f"{self.classes[0]} to {self.classes[-1]}" if self.relabel is None else ", ".join(map(str, self.classes))
            raise DataError(
                f"label {int(labels[row])} in row {row} of {found.source.name!r} is none of the classes {known} of the training rows"
            )
        return found.source

    def _values(self, found: GivenSet) -> Source:
        values, what = found.targets, f"the targets of source {found.source.name!r}"
        if not values.is_floating_point():
            raise DataError(f"{what} are class numbers, and the task has values to regress: give all of one kind")
        if values.dim() == 1:
            values = values.unsqueeze(1)
        if tuple(values.shape[1:]) != (self.task.size,):
            raise DataError(
                f"{what} have shape {tuple(values.shape)}, and the task {self.task.size} values: give shape (rows, {self.task.size})"
            )
        return found.source if values is found.targets else with_targets(found.source, {found.column: values})


def _shared(every: Sequence[GivenSet]) -> _Question:
    """The one task on which all are asked."""
    if any(map(_has_values, every)):
        kinds = ["values to regress" if one.targets.is_floating_point() else "class numbers" for one in every]
        other = next((i for i, kind in enumerate(kinds) if kind != kinds[0]), None)
        if other is not None:
            raise DataError(
                f"experience {other} has {kinds[other]} and experience 0 has {kinds[0]}: give all of one kind, or each a task of its own "
                "with tasks='own'"
            )
        return _Question(Task("value", "regression", _width(every[0])))
    met: set[int] = set()
    for i, one in enumerate(every):
        with naming(f"experience {i}"):
            met.update(torch.unique(class_labels(one.source)[1]).tolist())
    missing = next((number for number in range(len(met)) if number not in met), None)
    if missing is not None:
        raise DataError(
            f"no experience has a row of class {missing}, though labels run to {max(met)}: number the classes of all experiences together "
            "from 0 without gaps, or give each a task of its own with tasks='own'"
        )
    names = {found for one in every if (found := class_names(one.source, len(met)))}
    return _Question(Task("class", "classification", len(met), names.pop() if len(names) == 1 else ()), tuple(range(len(met))))


def _own(every: Sequence[GivenSet], called: Sequence[str]) -> list[_Question]:
    """A task for each."""
    made = []
    for i, (one, name) in enumerate(zip(every, called, strict=True)):
        if _has_values(one):
            made.append(_Question(Task(name, "regression", _width(one))))
            continue
        with naming(f"experience {i}"):
            present = torch.unique(class_labels(one.source)[1])
        count, largest = len(present), int(present[-1])
        names = tuple(map(str, getattr(one.source, "class_names", ())))
        known = tuple(names[c] if c < len(names) else str(c) for c in present.tolist())
        if largest > _LARGEST_LABEL:
            raise DataError(f"experience {i}: labels run to {largest}: number classes from 0")
        if largest == count - 1:
            made.append(_Question(Task(name, "classification", count, known if names else ()), tuple(range(count))))
            continue
        relabel = torch.zeros(largest + 1, dtype=torch.int64)
        relabel[present] = torch.arange(count)
        made.append(_Question(Task(name, "classification", count, known), tuple(present.tolist()), relabel))
    return made


def _has_values(one: GivenSet) -> bool:
    """Whether the targets are values; floats that all are whole are classes that were given in the wrong type."""
    return one.targets.is_floating_point() and not bool((one.targets == one.targets.round()).all())


def _width(one: GivenSet) -> int:
    return 1 if one.targets.dim() == 1 else int(one.targets.shape[1])


def _split(rows: Data, one: GivenSet, fraction: float, seed: int) -> tuple[Data, Data]:
    """Rows for training, in whose source the targets of all others are hidden, and rows for testing."""
    train, held_out = split_rows(one.targets, fraction, seed=seed, name=one.source.name)
    shown = hide_rows(rows.source, target_columns(rows.source), train)
    return replace(rows, source=shown, indices=train), rows.subset(held_out)


def _told(test: object, tests: Sequence[GivenSet | None], shared: GivenSet | None) -> Any:
    if test is None:
        return None
    given = listed(test)
    if given is None:
        return None if shared is None else shared.told
    return told_together([None if one is None or found is None else found.told for one, found in zip(given, tests, strict=True)])
