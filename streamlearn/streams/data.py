"""Data of an experience: (source, indices, transform), never a copy.

A *source* holds the rows; `Data` says which of them, what their columns mean as tasks, and what is done to ``x`` on the
way into a batch. A thousand experiences over one source therefore cost the memory of one source and of their indices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from streamlearn.errors import DataError
from streamlearn.streams.batch import EVERY_ROW, Batch, Labelled, Segment, concatenate
from streamlearn.streams.changing import changing
from streamlearn.streams.hiding import raw_targets, without_targets
from streamlearn.streams.task import Task

__all__ = ["Columns", "Data", "JoinedData", "Source", "Target", "Transform", "classes_in", "join", "same_kind"]

_ALL = slice(None)
_GATHER_BYTES = 2**18  # stays in a core's cache until the last of its batches is read
_ALIGNMENT = 64  # of an allocation of torch's, in bytes

Transform = Callable[..., Tensor]
"""A change of inputs that looks at a whole batch ``(rows, ...)`` and draws nothing: ``transform(x)``.

One with a true attribute ``needs_index`` is called ``transform(x, index)``, where ``index`` ``(rows,)`` are the rows' stable identities
within their source: what looks random in a row, such as noise, is then a function of the row. What comes back is checked (rows, type,
finite values) unless a true attribute ``trusted`` says that there is no need.
"""


class Columns(NamedTuple):
    """The answer of a source to a vector of indices."""

    x: Tensor
    targets: Mapping[str, Tensor]


@runtime_checkable
class Source(Protocol):
    """Anything that answers a vector of indices with rows."""

    @property
    def name(self) -> str:
        """What messages and the record call it."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> Columns:
        """The rows at ``index`` (int64, ``(rows,)``), in that order."""

    def fingerprint(self) -> str:
        """A hash of the content, for the record."""


@dataclass(frozen=True, slots=True)
class Target:
    """How a task reads a column of the source.

    ``column`` is its name in the source; ``relabel`` (int64, ``(largest class + 1,)``), if given, maps the source's class
    numbers to the task's.
    """

    column: str
    relabel: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """Rows ``indices`` of ``source``, asked on ``tasks``.

    Args:
        source: where the rows lie.
        indices: which rows, int64, ``(rows,)``.
        tasks: on which tasks each row is asked.
        targets: for each labelled task its `Target`. A task of ``tasks`` without one is unlabelled here.
        transform: applied to ``x`` of every batch.
        domain: name of the distribution the rows come from; empty when there is but one.
        labelled: for each task with *some* labels a bool column ``(rows,)``; tasks without an entry are fully labelled.
        augment: applied before ``transform`` to ``x`` of every batch; may draw from torch's global generator, which the engine seeds for
            each update. For training rows only.

    Example:
        >>> from streamlearn.streams.sources import TensorSource
        >>> source = TensorSource(torch.rand(6, 4), {"y": torch.tensor([0, 1, 2, 0, 1, 2])}, name="toy")
        >>> data = Data(source, torch.arange(4), (Task("y", size=3),), {"y": Target("y")})
        >>> data.batch(torch.tensor([3, 0])).targets["y"].tolist()
        [0, 0]
    """

    source: Source
    indices: Tensor
    tasks: tuple[Task, ...]
    targets: Mapping[str, Target] = field(default_factory=dict)
    transform: Transform | None = None
    domain: str = ""
    labelled: Mapping[str, Tensor] = field(default_factory=dict)
    augment: Transform | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def draws(self) -> bool:
        """Whether the same rows may come out differently: they are augmented, here or in their data set."""
        return self.augment is not None or not in_memory(self.source)

    def column(self, task: str) -> Tensor | None:
        """The targets of ``task``, one for each row, read without inputs where the source allows; ``None`` when it is unlabelled here.

        Rows without a label hold a value that means nothing.
        """
        target = self.targets.get(task)
        if target is None:
            return None
        column = raw_targets(self.source, target.column, self.indices)
        return column if target.relabel is None else target.relabel[column]

    def batch(self, positions: Tensor, role: str = "train") -> Batch:
        """The rows at ``positions`` (int64, relative to this data) as a batch of one role."""
        index = self.indices[positions]
        return self._maker(positions, len(index), role)(0, index, *self.source.take(index))

    def fetch(self, index: Tensor, role: str = "train") -> Batch:
        """The rows ``index`` *of the source* (not positions within this data), all labelled, as a batch of one role."""
        rows = Data(self.source, index, self.tasks, self.targets, self.transform, self.domain, augment=self.augment)
        return rows._maker(_ALL, len(index), role)(0, index, *self.source.take(index))

    def in_order(self, positions: Tensor | slice, batch_size: int, role: str = "train") -> Iterator[Batch]:
        """The rows at ``positions`` in batches of ``batch_size``; what does not change from batch to batch is looked up once.

        Small batches are cut out of one gather for several of them. A large one is not held on to while the next is made, which
        then takes its place in memory, and in the processor's cache, once the caller has let go of it.
        """
        made, take = self._maker(positions, batch_size, role), self.source.take
        together = _batches_at_once(self.source, batch_size)
        for first, several in enumerate(self.indices[positions].split(batch_size * together)):  # type: ignore[no-untyped-call]
            if together == 1:
                yield made(first, several, *take(several))
            else:
                x, columns = take(several)
                cut = {name: torch.split(column, batch_size) for name, column in columns.items()}
                pairs = zip(torch.split(several, batch_size), torch.split(x, batch_size), strict=True)
                for number, (index, part) in enumerate(pairs):
                    yield made(first * together + number, index, part, {name: parts[number] for name, parts in cut.items()})

    def _maker(self, positions: Tensor | slice, batch_size: int, role: str) -> Callable[[int, Tensor, Tensor, Mapping[str, Tensor]], Batch]:
        """From a batch's number, index, inputs and columns to the batch."""
        change, partly = self._change(), self.labelled
        wanted = [(task, target.column, target.relabel) for task, target in self.targets.items()]
        everywhere: dict[str, Labelled] = dict.fromkeys(self.targets, EVERY_ROW)
        names = tuple(task.name for task in self.tasks)
        full = Segment(role, 0, batch_size, names, self.domain, self.source.name)
        pieces = torch.arange(len(self))[positions].split(max(batch_size, 1)) if partly else ()  # type: ignore[no-untyped-call]

        def made(number: int, index: Tensor, x: Tensor, columns: Mapping[str, Tensor]) -> Batch:
            labelled = everywhere
            targets = {task: columns[column] if relabel is None else relabel[columns[column]] for task, column, relabel in wanted}
            if partly:
                labelled = {task: partly[task][pieces[number]] if task in partly else EVERY_ROW for task in self.targets}
                targets = {task: _hidden(column, labelled[task]) for task, column in targets.items()}
            rows = index.shape[0]
            segment = full if rows == batch_size else full._replace(stop=rows)
            return Batch(x if change is None else change(x, index), targets, labelled, (segment,), index)

        return made

    def _change(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """What is done to the inputs of a batch, from inputs and index."""
        return changing(self.augment, self.transform, self.source.name, self.domain)

    def subset(self, positions: Tensor) -> Data:
        """The rows at ``positions`` of this data; nothing is copied but indices."""
        labelled = {task: rows[positions] for task, rows in self.labelled.items()}
        return replace(self, indices=self.indices[positions], labelled=labelled)

    def without_labels(self) -> Data:
        """The same rows with no target left in reach: neither here nor in the source."""
        return replace(self, source=without_targets(self.source), targets={}, labelled={})

    def parts(self) -> tuple[Data, ...]:
        """The homogeneous pieces: itself."""
        return (self,)

    def is_like(self, other: Data) -> bool:
        """Whether ``other``, which is of the same class, differs in nothing but its rows."""
        if self.source is not other.source or self.transform != other.transform or self.augment != other.augment:
            return False
        return self.domain == other.domain and self.tasks == other.tasks and _same_targets(self, other)

    def melted(self, others: Sequence[Data]) -> Data:
        """The rows of this and of ``others``, which differ from it in nothing but their rows (`same_kind`)."""
        group = [self, *others]
        tasks = {task for part in group for task in part.labelled}
        every = [torch.ones(len(part), dtype=torch.bool) for part in group]
        labelled = {t: torch.cat([p.labelled.get(t, ones) for p, ones in zip(group, every, strict=True)]) for t in tasks}
        indices = torch.cat([part.indices for part in group])
        return replace(self, indices=indices, labelled=labelled)


def in_memory(source: Source) -> bool:
    """Whether a source only gathers: the same index gives the same row, and nothing is drawn."""
    return hasattr(source, "row_bytes")


def _batches_at_once(source: Source, batch_size: int) -> int:
    """How many batches are cut out of one gather.

    Each must start where an allocation of its own would start: what a matrix product gives depends on the alignment of its
    operands, and a run that is resumed begins its gathers at another row.
    """
    size = getattr(source, "row_bytes", 0) * batch_size
    return max(1, _GATHER_BYTES // size) if size and size % _ALIGNMENT == 0 else 1


class JoinedData:
    """Several `Data` seen as one; a batch holds one segment for each piece that it touches."""

    __slots__ = ("_offsets", "_parts", "tasks")

    def __init__(self, parts: Sequence[Data]) -> None:
        self._parts = tuple(parts)
        lengths = torch.tensor([len(part) for part in self._parts])
        self._offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        self.tasks = tuple({task.name: task for part in self._parts for task in part.tasks}.values())

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def batch(self, positions: Tensor, role: str = "train") -> Batch:
        """The rows at ``positions``, grouped by piece (stable within a piece)."""
        batch = concatenate([part.batch(local, role) for part, local in self._touched(positions)])
        if len(batch.roles) == 1:
            return batch
        return batch.take([(s, s.rows) for name in batch.roles for s in batch.segments if s.role == name])  # episodes: support rows first

    def in_order(self, positions: Tensor, batch_size: int, role: str = "train") -> Iterator[Batch]:
        """The rows at ``positions`` in batches of ``batch_size``."""
        for piece in positions.split(batch_size):  # type: ignore[no-untyped-call]
            yield self.batch(piece, role)

    def subset(self, positions: Tensor) -> JoinedData:
        """The rows at ``positions``."""
        return JoinedData([part.subset(local) for part, local in self._touched(positions)])

    def _touched(self, positions: Tensor) -> list[tuple[Data, Tensor]]:
        """The pieces in which ``positions`` lie (the first if there are none), each with its own positions."""
        which = torch.searchsorted(self._offsets, positions, right=True) - 1
        numbers = torch.unique(which).tolist() or [0]
        return [(self._parts[number], positions[which == number] - self._offsets[number]) for number in numbers]

    def parts(self) -> tuple[Data, ...]:
        """The homogeneous pieces."""
        return self._parts


def join(pieces: Sequence[Data | JoinedData]) -> Data | JoinedData:
    """All rows of ``pieces``. Pieces that differ in nothing but their rows melt into one, which keeps batches uniform.

    Raises:
        DataError: there is nothing to join.
    """
    parts = [part for piece in pieces for part in piece.parts()]
    if not parts:
        raise DataError("there is no data to join: give at least one piece")
    groups: list[list[Data]] = []
    alike: dict[object, list[list[Data]]] = {}  # what is cheap to compare first: a stream may have thousands of domains
    for part in parts:
        candidates = alike.setdefault((type(part), id(part.source), id(part.transform), part.domain, part.tasks), [])
        home = next((group for group in candidates if group[0].is_like(part)), None)
        if home is None:
            groups.append([part])
            candidates.append(groups[-1])
        else:
            home.append(part)
    melted = [group[0] if len(group) == 1 else group[0].melted(group[1:]) for group in groups]
    return melted[0] if len(melted) == 1 else JoinedData(melted)


def classes_in(data: Data | JoinedData, *more: Data | JoinedData) -> dict[str, tuple[int, ...]]:
    """For each classification task the classes that labelled rows of ``data`` (and ``more``) have, ascending."""
    found: dict[str, set[int]] = {}
    for part in (part for piece in (data, *more) for part in piece.parts()):
        for task in part.tasks:
            column = part.column(task.name) if task.kind == "classification" else None
            if column is None:
                continue
            if task.name in part.labelled:
                column = column[part.labelled[task.name]]
            found.setdefault(task.name, set()).update(torch.unique(column).tolist())
    return {task: tuple(sorted(classes)) for task, classes in found.items()}


def _hidden(column: Tensor, labelled: Labelled) -> Tensor:
    """``column`` with zeros where there is no label: what is hidden must not be found in a batch."""
    if not isinstance(labelled, Tensor):
        return column
    return column.masked_fill(~labelled.view(-1, *[1] * (column.ndim - 1)), 0)


def same_kind(a: Data, b: Data) -> bool:
    """Whether ``a`` and ``b`` differ in nothing but their rows."""
    return type(a) is type(b) and a.is_like(b)


def _same_targets(a: Data, b: Data) -> bool:
    return a.targets.keys() == b.targets.keys() and all(
        a.targets[t].column == b.targets[t].column and _same_relabelling(a.targets[t].relabel, b.targets[t].relabel) for t in a.targets
    )


def _same_relabelling(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))
