"""What a batch is made of: segments of rows that share everything but their values, columns kept beside some rows, labels on some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from streamlearn.streams.batch import Batch

__all__ = ["EVERY_ROW", "Labelled", "Segment", "StoredColumn", "StoredPieces", "join_labelled", "narrow"]

EVERY_ROW = slice(None)
"""The value of ``batch.labelled[task]`` when every row carries a label of the task."""

Labelled = slice | Tensor
"""Which rows carry a label: a slice where they are contiguous (free), else a bool column of shape ``(rows,)``."""


class Segment(NamedTuple):
    """Rows ``start`` to ``stop`` of a batch, which share everything named here."""

    role: str
    start: int
    stop: int
    tasks: tuple[str, ...]
    domain: str = ""
    source: str = ""

    @property
    def rows(self) -> slice:
        """The rows as a slice."""
        return slice(self.start, self.stop)

    @property
    def is_memory(self) -> bool:
        """Whether the rows come from a memory: their role is ``"memory"`` or ``"memory/..."``."""
        return self.role.partition("/")[0] == "memory"

    @property
    def kind(self) -> tuple[str, tuple[str, ...], str, str]:
        """What the rows share."""
        return self.role, self.tasks, self.domain, self.source


class StoredColumn(NamedTuple):
    """A column kept beside some rows, such as the logits that DER stores: ``values[i]`` belongs to row ``rows.start + i``."""

    rows: slice
    values: Tensor


class StoredPieces:
    """The stored columns of pieces of a batch, which are given in order; a column may reach over several of them."""

    def __init__(self, columns: Mapping[str, StoredColumn]) -> None:
        self._columns = columns
        self._found: dict[str, list[tuple[int, Tensor]]] = {}
        self._rows = 0

    def add(self, first: int, stop: int) -> None:
        """The piece from ``first`` to ``stop`` comes next."""
        for name, column in self._columns.items():
            start, end = max(column.rows.start, first), min(column.rows.stop, stop)
            if start < end:
                values = column.values[start - column.rows.start : end - column.rows.start]
                self._found.setdefault(name, []).append((self._rows + start - first, values))
        self._rows += stop - first

    def columns(self) -> dict[str, StoredColumn]:
        """What belongs to all pieces together: without gaps, because the pieces keep their order."""
        joined = {}
        for name, found in self._found.items():
            values = found[0][1] if len(found) == 1 else torch.cat([part for _, part in found])
            joined[name] = StoredColumn(slice(found[0][0], found[0][0] + len(values)), values)
        return joined


def join_labelled(task: str, batches: list[Batch], starts: list[int], total: int) -> Labelled:
    """Which rows of the concatenation carry a label of ``task``: a slice if that is what they are, else a column."""
    spans: list[tuple[int, int]] = []
    for batch, start in zip(batches, starts, strict=False):
        rows = batch.labelled.get(task, slice(0, 0))
        if isinstance(rows, Tensor):
            return torch.cat([b.labelled_rows(task) for b in batches])
        first, last, _ = rows.indices(len(batch))
        if first == last:
            continue
        if spans and spans[-1][1] == first + start:
            spans[-1] = (spans[-1][0], last + start)
        else:
            spans.append((first + start, last + start))
    if spans == [(0, total)]:
        return EVERY_ROW
    if len(spans) > 1:
        return torch.cat([b.labelled_rows(task) for b in batches])
    return slice(*spans[0]) if spans else slice(0, 0)


def narrow(rows: Labelled, start: int, stop: int) -> Labelled:
    """``rows`` seen from the window ``start`` to ``stop``."""
    if isinstance(rows, Tensor):
        return rows[start:stop]
    if rows == EVERY_ROW:
        return EVERY_ROW
    first, last = max(rows.start or 0, start), stop if rows.stop is None else min(rows.stop, stop)
    if (first, last) == (start, stop):
        return EVERY_ROW
    return slice(first - start, last - start) if first < last else slice(0, 0)
