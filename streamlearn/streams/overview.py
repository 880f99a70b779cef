"""What a stream holds, counted before anything is trained on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from streamlearn.streams.data import Data, JoinedData
from streamlearn.streams.inputs import whole_number
from streamlearn.streams.protocols.episodes import Episodes
from streamlearn.streams.stream import ENDLESS, Stream
from streamlearn.streams.task import Task

__all__ = ["Amount", "ExperienceOverview", "Overview", "RoleOverview", "SetOverview", "TaskOverview", "Values", "overview"]

Rows = Data | JoinedData


@dataclass(frozen=True, slots=True)
class Amount:
    """How many rows there are, and how many of them carry a label that training may see."""

    rows: int = 0
    labelled: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.rows + other.rows, self.labelled + other.labelled)


@dataclass(frozen=True, slots=True)
class Values:
    """The labels of a regression task, output by output: their mean, the smallest and the largest."""

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TaskOverview:
    """The rows that are asked on a task.

    Args:
        amount: of these rows.
        classes: how many labelled rows each class has, by class number, ascending; only visible labels count.
        values: of a regression task's visible labels; ``None`` when there are none.
    """

    amount: Amount = Amount()
    classes: Mapping[int, int] = field(default_factory=dict)
    values: Values | None = None


@dataclass(frozen=True, slots=True)
class RoleOverview:
    """The rows of a role.

    Args:
        amount: of all rows; labelled is a row with a label of any task.
        episodes: into how many episodes the rows are grouped; 0 when they are not.
        domains: amounts by domain; the name is empty where there is but one distribution.
        tasks: by task.
    """

    amount: Amount = Amount()
    episodes: int = 0
    domains: Mapping[str, Amount] = field(default_factory=dict)
    tasks: Mapping[str, TaskOverview] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SetOverview:
    """Evaluation set ``index`` of the stream."""

    index: int
    name: str
    rows: RoleOverview


@dataclass(frozen=True, slots=True)
class ExperienceOverview:
    """Experience ``index`` of the stream.

    Args:
        index: its place in the stream, from 0.
        name: for people.
        tasks: names of the tasks present.
        roles: its rows by role.
        sets: the evaluation sets that belong to it.
        scored: on how many rows predictions are scored before the model learns from the experience; 0: they are not.
    """

    index: int
    name: str
    tasks: tuple[str, ...]
    roles: Mapping[str, RoleOverview]
    sets: tuple[int, ...]
    scored: int

    @property
    def whole(self) -> RoleOverview:
        """All roles taken together."""
        return _sum(self.roles.values())


@dataclass(frozen=True, slots=True)
class Overview:
    """What `overview` found.

    Args:
        name: of the stream.
        length: its number of experiences; ``None`` when it is endless.
        tasks: of the whole stream.
        input_shape: of one input as the model receives it.
        experiences: those that were looked at, in order.
        sets: the evaluation sets that belong to them, by number.
        totals: by role, over the experiences that were looked at; a row that comes twice counts twice.
    """

    name: str
    length: int | None
    tasks: tuple[Task, ...]
    input_shape: tuple[int, ...]
    experiences: tuple[ExperienceOverview, ...]
    sets: tuple[SetOverview, ...]
    totals: Mapping[str, RoleOverview]

    @property
    def complete(self) -> bool:
        """Whether every experience of the stream was looked at."""
        return self.length == len(self.experiences)

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values; ``length`` of an endless stream is ``"endless"``."""
        told: dict[str, Any] = _plain(self)
        return {**told, "length": ENDLESS if self.length is None else self.length, "complete": self.complete}


def overview(stream: Stream, *, most: int = 200) -> Overview:
    """Count what the experiences of ``stream`` hold: rows by role, task, class and domain, and the evaluation sets that belong to them.

    Protocol: all experiences are looked at if there are at most ``most``; of more, ``most`` at even steps from the first to the last, of an
    endless stream the first ``most``. Inputs are not read, unless a source keeps its targets nowhere else. Only labels that training may
    see are counted.

    Args:
        stream: any stream.
        most: how many experiences to look at, at least 1.

    Raises:
        DataError: ``most`` is no whole number of at least 1, or an experience cannot be built.

    Example:
        >>> from streamlearn.streams import class_incremental
        >>> found = overview(class_incremental("digits", 5, shuffle=False))
        >>> found.experiences[0].roles["train"].tasks["digits"].classes
        {0: 142, 1: 146}
        >>> found.totals["train"].amount
        Amount(rows=1438, labelled=1438)
    """
    most = whole_number(most, "most", 1)
    seen = stream[:most] if stream.endless else stream
    numbers = _at_even_steps(len(seen), most)
    experiences = tuple(_experience(seen, i) for i in numbers)
    sets = tuple(_set(seen, k) for k in sorted({k for experience in experiences for k in experience.sets}))
    roles = dict.fromkeys(role for experience in experiences for role in experience.roles)
    totals = {role: _sum(found.roles[role] for found in experiences if role in found.roles) for role in roles}
    return Overview(stream.name, None if stream.endless else len(stream), stream.tasks, stream.input_shape, experiences, sets, totals)


def _at_even_steps(count: int, most: int) -> Sequence[int]:
    """All numbers below ``count``, or ``most`` of them with the first and the last."""
    if count <= most:
        return range(count)
    return [0] if most == 1 else [k * (count - 1) // (most - 1) for k in range(most)]


def _experience(stream: Stream, i: int) -> ExperienceOverview:
    built, truth = stream[i], stream.truth(i)
    roles = {role: _rows(data) for role, data in built.data.items()}
    scored = 0 if truth is None else sum(len(part.indices) for part in truth.parts())
    return ExperienceOverview(i, built.name, tuple(task.name for task in built.tasks), roles, stream.sets_of(i), scored)


def _set(stream: Stream, k: int) -> SetOverview:
    built = stream.evaluation_set(k)
    return SetOverview(k, built.name, _rows(built.data))


def _rows(data: Rows) -> RoleOverview:
    return _sum(_part(part) for part in data.parts())


def _part(part: Data) -> RoleOverview:
    """A piece of rows that have their domain and their tasks in common."""
    labelled, tasks = torch.zeros(len(part.indices), dtype=torch.bool), {}
    for task in part.tasks:
        column = part.column(task.name)
        if column is None:
            tasks[task.name] = TaskOverview(Amount(len(part.indices), 0))
            continue
        visible = part.labelled.get(task.name)
        labelled |= torch.ones_like(labelled) if visible is None else visible
        tasks[task.name] = _labels(task, column if visible is None else column[visible], len(part.indices))
    amount = Amount(len(part.indices), int(labelled.sum()))
    return RoleOverview(amount, len(part) if isinstance(part, Episodes) else 0, {part.domain: amount}, tasks)


def _labels(task: Task, visible: Tensor, rows: int) -> TaskOverview:
    amount = Amount(rows, len(visible))
    if task.kind == "classification":
        classes, counts = torch.unique(visible, return_counts=True)
        return TaskOverview(amount, dict(zip(classes.tolist(), counts.tolist(), strict=True)))
    if not len(visible):
        return TaskOverview(amount)
    values = visible.double().reshape(len(visible), -1)
    mean, low, high = values.mean(0), values.amin(0), values.amax(0)
    return TaskOverview(amount, values=Values(tuple(mean.tolist()), tuple(low.tolist()), tuple(high.tolist())))


def _sum(parts: Iterable[RoleOverview]) -> RoleOverview:
    """Several rows of a role as one."""
    several = list(parts)
    if len(several) == 1:
        return several[0]
    domains: dict[str, Amount] = {}
    tasks: dict[str, list[TaskOverview]] = {}
    for one in several:
        for domain, amount in one.domains.items():
            domains[domain] = domains.get(domain, Amount()) + amount
        for task, found in one.tasks.items():
            tasks.setdefault(task, []).append(found)
    amount = sum((one.amount for one in several), Amount())
    return RoleOverview(amount, sum(one.episodes for one in several), domains, {task: _sum_of_task(found) for task, found in tasks.items()})


def _sum_of_task(several: Sequence[TaskOverview]) -> TaskOverview:
    classes: dict[int, int] = {}
    for one in several:
        for number, count in one.classes.items():
            classes[number] = classes.get(number, 0) + count
    amount = sum((one.amount for one in several), Amount())
    return TaskOverview(amount, dict(sorted(classes.items())), _sum_of_values(several))


def _sum_of_values(several: Sequence[TaskOverview]) -> Values | None:
    known = [(one.amount.labelled, one.values) for one in several if one.values is not None]
    if not known:
        return None
    weights = torch.tensor([count for count, _ in known], dtype=torch.float64)
    mean = (weights / weights.sum()) @ torch.tensor([values.mean for _, values in known], dtype=torch.float64)
    low = tuple(min(found) for found in zip(*(values.low for _, values in known), strict=True))
    return Values(tuple(mean.tolist()), low, tuple(max(found) for found in zip(*(values.high for _, values in known), strict=True)))


def _plain(value: Any) -> Any:
    """``value`` as JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
