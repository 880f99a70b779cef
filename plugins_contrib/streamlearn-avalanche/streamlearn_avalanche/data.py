"""Rows between the two libraries: a streamlearn experience as Avalanche's, and Avalanche's loader as a streamlearn phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import torch
from avalanche.benchmarks import DatasetExperience
from avalanche.benchmarks.utils import _make_taskaware_classification_dataset
from torch import Tensor

from streamlearn.errors import ConfigurationError, DataError
from streamlearn.streams import Batch, Data, Experience
from streamlearn.streams.batch import EVERY_ROW, Segment
from streamlearn.streams.data import JoinedData

__all__ = ["LoaderData", "Log", "Rows", "avalanche_experience", "batch_of", "only_task"]

_ROLES = {"train", "validation"}
_SCHEDULED = "Avalanche's loader chooses the rows of each batch: leave out plugins that choose them by task, or that train on other rows"

Log = list[tuple["Rows", int]]
"""Which rows Avalanche's loader has fetched for a batch, in order: its batches do not say where their rows come from."""


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The labelled rows of an experience one by one, as Avalanche wants them; nothing is copied beforehand."""

    def __init__(self, data: Data | JoinedData, task: str, log: Log) -> None:
        self.data, self.task, self.log = data, task, log
        columns = [part.column(task) for part in data.parts()]
        self.targets: list[int] = torch.cat([column for column in columns if column is not None]).tolist()
        self._pieces = [(part, part.indices) for part in data.parts()]
        self._starts = torch.tensor([0, *(len(part) for part, _ in self._pieces)]).cumsum(0)[:-1]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        self.log.append((self, int(position)))
        return self.data.batch(torch.tensor([int(position)])).x[0], self.targets[position]

    def __deepcopy__(self, memo: dict[int, Any]) -> Rows:
        return self  # rows do not change, and may be large

    def origin(self, position: int) -> tuple[Data, int]:
        """The piece in which a row lies, and its index within its source."""
        number = int(torch.searchsorted(self._starts, position, right=True)) - 1
        part, indices = self._pieces[number]
        return part, int(indices[position - int(self._starts[number])])


def only_task(experience: Experience, known: str | None) -> str:
    """The one task of ``experience``, on which every row must carry a label.

    Raises:
        ConfigurationError: there are several tasks, another than ``known``, or other roles.
        DataError: a row has no label.
    """
    others = sorted(set(experience.data) - _ROLES)
    tasks = [task.name for task in experience.tasks]
    where = f"experience {experience.index}"
    if others:
        raise ConfigurationError(f"{where} has rows of role {', '.join(others)}, of which Avalanche's plugins know nothing: leave them out")
    if len(tasks) != 1 or known not in (None, tasks[0]):
        asked = ", ".join(tasks) if known is None else f"{', '.join(tasks)} after {known}"
        raise ConfigurationError(f"{where} asks on the tasks {asked}, but Avalanche's plugins are run on one task alone: join them to one")
    if experience.tasks[0].kind != "classification":
        raise ConfigurationError(f"{where} asks on a {experience.tasks[0].kind}, but Avalanche's plugins want classes: leave avalanche out")
    if any(tasks[0] not in part.targets or tasks[0] in part.labelled for part in experience.data["train"].parts()):
        raise DataError(
            f"{where} has rows without a label of task {tasks[0]!r}, but Avalanche's plugins want all labelled: drop those rows"
        )
    return tasks[0]


def avalanche_experience(rows: Rows, number: int, seen: set[int], size: int, task_labels: bool) -> Any:
    """An experience of Avalanche's over ``rows``, with the attributes that its plugins read.

    Args:
        rows: one task, all labelled; see `only_task`.
        number: of the experience.
        seen: classes of all former experiences.
        size: number of classes of the task; those not seen yet count as future ones, whether or not the stream brings them.
        task_labels: whether it is task-aware; Avalanche then draws its batches with another loader, and its label is 0.
    """
    dataset = _make_taskaware_classification_dataset(rows, targets=rows.targets, task_labels=0)
    made: Any = DatasetExperience(dataset=dataset, current_experience=number)
    present = set(rows.targets)
    made.classes_in_this_experience = present
    made.previous_classes = set(seen)
    made.classes_seen_so_far = present | seen
    made.future_classes = set(range(size)) - present - seen
    if task_labels:
        made.task_label, made.task_labels = 0, [0]
    return made


class LoaderData(JoinedData):
    """Rows whose batches Avalanche's loader draws: the positions that the engine asks for count for nothing.

    Args:
        data: the rows of the experience.
        batches: makes the batches of the epoch.
        length: so many rows that the engine counts as many batches as the loader has.
    """

    __slots__ = ("_batches", "_length")

    def __init__(self, data: Data | JoinedData, batches: Callable[[str], Iterator[Batch]], length: int) -> None:
        super().__init__(data.parts())
        self._batches, self._length = batches, length

    def __len__(self) -> int:
        return self._length

    def in_order(self, positions: Tensor, batch_size: int, role: str = "train") -> Iterator[Batch]:
        """The batches of one epoch."""
        return self._batches(role)

    def batch(self, positions: Tensor, role: str = "train") -> Batch:
        """Refused: there are no positions."""
        raise ConfigurationError(_SCHEDULED)

    def subset(self, positions: Tensor) -> JoinedData:
        """Refused, likewise."""
        raise ConfigurationError(_SCHEDULED)


def batch_of(x: Tensor, y: Tensor, task: str, rows: Rows | None, log: Log, role: str) -> Batch:
    """A batch of Avalanche's as one of streamlearn's, its rows in the same order.

    Rows of the experience (``rows``) get ``role``, those of former ones ``"memory"`` if they lie side by side. Where the log does not
    account for every row (GSS keeps copies of its own), all are of ``role`` and no identity is known: their index is -1.
    """
    if len(log) != len(x):
        return Batch.uniform(x, task, y, torch.full((len(x),), -1), role)
    origins = [(owner.origin(position), owner is rows) for owner, position in log]
    runs = [own for own, _ in groupby(own for _, own in origins)]
    roles = {True: role, False: "memory" if len(runs) == len(set(runs)) else role}
    kinds = [(roles[own], part.domain, part.source.name) for (part, _), own in origins]
    segments, start = [], 0
    for (name, domain, source), run in groupby(kinds):
        stop = start + len(list(run))
        segments.append(Segment(name, start, stop, (task,), domain, source))
        start = stop
    return Batch(x, {task: y}, {task: EVERY_ROW}, tuple(segments), torch.tensor([index for (_, index), _ in origins]))
