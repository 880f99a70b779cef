"""A batch: columnar rows in contiguous segments.

A batch is built once a step and read by everyone, so it is made of a few tensors and a tuple of `Segment`, never of
per-row objects. Rows of one segment share their role, the tasks on which they are asked, their domain and their source;
anything that a plugin wants to know about "the memory rows" or "the rows of task b" is therefore a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from streamlearn.errors import DataError
from streamlearn.streams.partition import chunk_edges
from streamlearn.streams.segments import EVERY_ROW, Labelled, Segment, StoredColumn, StoredPieces, join_labelled, narrow

__all__ = ["EVERY_ROW", "Batch", "Labelled", "Segment", "StoredColumn"]


class Batch:
    """Rows of one training step.

    Args:
        x: inputs, ``(rows, ...)``.
        targets: for each task a column ``(rows, ...)``; the value on rows without a label is unspecified but finite.
        labelled: for each task which rows carry a label, `EVERY_ROW`, a slice or a bool column.
        segments: contiguous, in order, together covering all rows.
        index: stable identity of each row within its segment's source, ``(rows,)``, on the CPU.
        stored: named columns kept beside some of the rows.

    Example:
        >>> batch = Batch.uniform(torch.zeros(3, 2), "digit", torch.tensor([0, 1, 2]), torch.arange(3))
        >>> batch.roles, len(batch), batch.is_uniform
        (('train',), 3, True)
    """

    __slots__ = ("index", "labelled", "segments", "stored", "targets", "x")

    def __init__(
        self,
        x: Tensor,
        targets: Mapping[str, Tensor],
        labelled: Mapping[str, Labelled],
        segments: tuple[Segment, ...],
        index: Tensor,
        stored: Mapping[str, StoredColumn] | None = None,
    ) -> None:
        self.x = x
        self.targets = targets
        self.labelled = labelled
        self.segments = segments
        self.index = index
        self.stored: Mapping[str, StoredColumn] = stored if stored is not None else {}

    @classmethod
    def uniform(cls, x: Tensor, task: str, target: Tensor, index: Tensor, role: str = "train", source: str = "") -> Batch:
        """A batch of one role and one task in which every row is labelled."""
        return cls(x, {task: target}, {task: EVERY_ROW}, (Segment(role, 0, len(x), (task,), "", source),), index)

    def __len__(self) -> int:
        return int(self.x.shape[0])

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{s.role}[{s.stop - s.start}] of {'+'.join(s.tasks)}{f' in {s.domain}' if s.domain else ''}" for s in self.segments
        )
        return f"Batch({parts}; x {tuple(self.x.shape)})"

    # ------------------------------------------------------------------ asking about rows

    @property
    def is_uniform(self) -> bool:
        """One role, one task, all rows labelled: nothing has to be masked."""
        return len(self.segments) == 1 and self.is_one_task

    @property
    def is_one_task(self) -> bool:
        """One task, all rows labelled, whatever their roles: its loss is the mean over all rows."""
        return len(self.targets) == 1 and next(iter(self.labelled.values())) is EVERY_ROW

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles present, in order of their first row."""
        return tuple(dict.fromkeys(segment.role for segment in self.segments))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks on which rows are asked, in order of their first row."""
        return tuple(dict.fromkeys(task for segment in self.segments for task in segment.tasks))

    @property
    def task(self) -> Tensor:
        """Per row the position in `tasks` of the (first) task on which the row is asked, ``(rows,)``."""
        names = self.tasks
        return self._column(lambda segment: names.index(segment.tasks[0]))

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains present, in order of their first row."""
        return tuple(dict.fromkeys(segment.domain for segment in self.segments))

    @property
    def domain(self) -> Tensor:
        """Per row the position of its domain in `domains`, ``(rows,)``."""
        names = self.domains
        return self._column(lambda segment: names.index(segment.domain))

    def _column(self, value: Callable[[Segment], int]) -> Tensor:
        column = torch.empty(len(self), dtype=torch.int64, device=self.x.device)
        for segment in self.segments:
            column[segment.start : segment.stop] = value(segment)
        return column

    def rows(self, role: str) -> slice:
        """The rows of ``role`` as one slice, empty when the role is absent.

        Raises:
            DataError: the rows of ``role`` do not lie side by side.
        """
        found = [segment for segment in self.segments if segment.role == role]
        if not found:
            return slice(0, 0)
        if any(a.stop != b.start for a, b in pairwise(found)):
            raise DataError(f"the rows of role {role!r} do not lie side by side in {self!r}: read batch.segments instead")
        return slice(found[0].start, found[-1].stop)

    def labelled_rows(self, task: str) -> Tensor:
        """Which rows carry a label of ``task``, as a bool column ``(rows,)``."""
        rows = self.labelled.get(task, slice(0, 0))
        if isinstance(rows, Tensor):
            return rows
        column = torch.zeros(len(self), dtype=torch.bool, device=self.x.device)
        column[rows] = True
        return column

    # ------------------------------------------------------------------ making other batches

    def replace(self, **changes: object) -> Batch:
        """A copy with some fields exchanged; the tensors are shared, not copied."""
        fields: dict[str, object] = {name: getattr(self, name) for name in self.__slots__}
        return Batch(**(fields | changes))  # type: ignore[arg-type]

    def with_rows(self, role: str, rows: Batch) -> Batch:
        """The rows of the batch followed by ``rows``, which take the role ``role``."""
        return concatenate([self, rows.in_role(role)])

    def in_role(self, role: str) -> Batch:
        """The same rows, all of them in ``role``."""
        if all(segment.role == role for segment in self.segments):
            return self
        return self.replace(segments=tuple(segment._replace(role=role) for segment in self.segments))

    def select(self, role: str) -> Batch:
        """Only the rows of ``role`` (which must lie side by side), as views on this batch's tensors."""
        rows = self.rows(role)
        start, stop = rows.start, rows.stop
        inside = [s._replace(start=s.start - start, stop=s.stop - start) for s in self.segments if s.role == role]
        return Batch(
            self.x[rows],
            {task: column[rows] for task, column in self.targets.items()},
            {task: narrow(labelled, start, stop) for task, labelled in self.labelled.items()},
            tuple(inside),
            self.index[rows],
            {
                name: StoredColumn(slice(c.rows.start - start, c.rows.stop - start), c.values)
                for name, c in self.stored.items()
                if c.rows.start >= start and c.rows.stop <= stop
            },
        )

    def take(self, pieces: Sequence[tuple[Segment, slice]]) -> Batch:
        """The rows of some pieces of segments (slices within the batch), one after another; stored columns need the batch's own order."""
        parts, stored = [], StoredPieces(self.stored)
        for segment, rows in pieces:
            first, stop, _ = rows.indices(len(self))
            stored.add(first, stop)
            targets = {task: column[rows] for task, column in self.targets.items()}
            labelled = {task: narrow(known, first, stop) for task, known in self.labelled.items()}
            moved = segment._replace(start=0, stop=stop - first)
            parts.append(Batch(self.x[rows], targets, labelled, (moved,), self.index[rows]))
        return concatenate(parts).replace(stored=stored.columns())

    def spread(self, count: int) -> list[list[tuple[Segment, slice]]]:
        """The pieces of `count` batches of nearly equal size, see `split`."""
        if "support" in self.roles:
            return [self._pieces_of(self.domains[first:stop]) for first, stop in chunk_edges(len(self.domains), count) if first < stop]
        found: list[list[tuple[Segment, slice]]] = [[] for _ in range(count)]
        sizes = [0] * count
        for segment in self.segments:
            each, more = divmod(segment.stop - segment.start, count)
            longer = set(sorted(range(count), key=lambda number: (sizes[number], number))[:more])  # the smallest so far
            first = segment.start
            for number in range(count):
                size = each + (number in longer)
                if size:
                    found[number].append((segment, slice(first, first + size)))
                first, sizes[number] = first + size, sizes[number] + size
        return [pieces for pieces in found if pieces]

    def split(self, count: int) -> list[Batch]:
        """At most ``count`` batches whose sizes differ by at most one row: the rows of each segment are spread over them in their order.

        Episodes stay whole: they are spread over the batches one by one.
        """
        return [self.take(pieces) for pieces in self.spread(count)]

    def by_domain(self) -> dict[str, Batch]:
        """The rows of each domain as a batch of their own, in order of their first row: the episodes of a meta-batch."""
        return {domain: self.of_domain(domain) for domain in self.domains}

    def of_domain(self, domain: str) -> Batch:
        """The rows of ``domain``."""
        return self.take(self._pieces_of((domain,)))

    def _pieces_of(self, domains: Sequence[str]) -> list[tuple[Segment, slice]]:
        return [(segment, segment.rows) for segment in self.segments if segment.domain in domains]

    def count_labelled(self) -> int:
        """How many rows carry a label of any task."""
        if any(isinstance(rows, slice) and rows == EVERY_ROW for rows in self.labelled.values()):
            return len(self)
        seen = torch.zeros(len(self), dtype=torch.bool, device=self.x.device)
        for task in self.labelled:
            seen |= self.labelled_rows(task)
        return int(seen.sum())

    def to(self, device: torch.device) -> Batch:
        """The batch on ``device``; ``index`` stays on the CPU, where identities are compared."""
        if self.x.device == device:
            return self
        return Batch(
            self.x.to(device, non_blocking=True),
            {task: column.to(device, non_blocking=True) for task, column in self.targets.items()},
            {task: rows.to(device) if isinstance(rows, Tensor) else rows for task, rows in self.labelled.items()},
            self.segments,
            self.index,
            {name: StoredColumn(c.rows, c.values.to(device)) for name, c in self.stored.items()},
        )

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor of the batch (for purity checks)."""
        yield self.x
        yield self.index
        yield from self.targets.values()
        yield from (rows for rows in self.labelled.values() if isinstance(rows, Tensor))
        yield from (column.values for column in self.stored.values())


def concatenate(batches: list[Batch]) -> Batch:
    """The rows of several batches, one after another; neighbouring segments of the same kind are joined."""
    if len(batches) == 1:
        return batches[0]
    starts = [0]
    for batch in batches:
        starts.append(starts[-1] + len(batch))
    total = starts[-1]
    tasks = dict.fromkeys(task for batch in batches for task in batch.targets)
    targets, labelled = {}, {}
    for task in tasks:
        columns = [b.targets.get(task) for b in batches]
        like = next(column for column in columns if column is not None)
        strange = next((b for b, c in zip(batches, columns, strict=True) if c is not None and c.shape[1:] != like.shape[1:]), None)
        if strange is not None:
            raise DataError(
                f"rows of role {', '.join(strange.roles)} have targets of task {task!r} of another kind than the rows they join, such as "
                "class numbers beside probabilities: let what adds rows come before what changes targets"
            )
        targets[task] = torch.cat(
            [like.new_zeros((len(b), *like.shape[1:])) if c is None else c for b, c in zip(batches, columns, strict=True)]
        )
        labelled[task] = join_labelled(task, batches, starts, total)
    segments: list[Segment] = []
    for batch, start in zip(batches, starts, strict=False):
        for segment in batch.segments:
            first, stop = segment.start + start, segment.stop + start
            if segments and segments[-1].kind == segment.kind:
                first = segments.pop().start
            segments.append(Segment(segment.role, first, stop, segment.tasks, segment.domain, segment.source))
    stored: dict[str, StoredColumn] = {}
    for batch, start in zip(batches, starts, strict=False):
        for name, column in batch.stored.items():
            if name in stored:
                raise DataError(f"two groups of rows both store a column {name!r}: draw them under different names")
            stored[name] = StoredColumn(slice(column.rows.start + start, column.rows.stop + start), column.values)
    return Batch(torch.cat([b.x for b in batches]), targets, labelled, tuple(segments), torch.cat([b.index for b in batches]), stored)
