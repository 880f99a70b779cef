"""What training must not see, it must not be able to reach: hiding the labels and the rows of a source.

Hidden labels, and the sources that hold them, are sealed (see :mod:`streamlearn.streams.sealing`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streamlearn.errors import DataError
from streamlearn.streams.sealing import Sealed

if TYPE_CHECKING:
    from streamlearn.streams.data import Columns, Data, Source

__all__ = ["hide_labels", "hide_rows", "raw_targets", "show_rows", "with_targets", "without_targets"]


def with_targets(source: Source, targets: Mapping[str, Tensor]) -> Source:
    """The rows of ``source`` under the same name with other target columns; its own are out of reach.

    Args:
        source: where the rows lie.
        targets: columns by name, each as long as the source.

    Raises:
        DataError: a column has another length.
    """
    strange = next((name for name, column in targets.items() if len(column) != len(source)), None)
    if strange is not None:
        raise DataError(f"target {strange!r} has {len(targets[strange])} rows, source {source.name!r} has {len(source)}: make them equal")
    own = getattr(source, "with_targets", None)
    return own(targets) if own is not None else _Veiled(source, targets)


def without_targets(source: Source) -> Source:
    """The rows of ``source`` under the same name with no target in reach."""
    own = getattr(source, "without_targets", None)
    return own() if own is not None else _Veiled(source, {})


def hide_rows(source: Source, columns: Mapping[str, Tensor], shown: Tensor) -> Source:
    """The rows of ``source`` with zeros for the targets of all rows but ``shown``; the true ones are out of reach.

    Args:
        source: where the rows lie.
        columns: its target columns.
        shown: indices of the rows that keep their targets.

    Example:
        >>> from streamlearn.streams.sources import TensorSource
        >>> source = TensorSource(torch.zeros(4, 1), {"y": torch.tensor([1, 2, 3, 4])}, "toy")
        >>> hide_rows(source, source.targets, torch.tensor([2])).take(torch.arange(4)).targets["y"].tolist()
        [0, 0, 3, 0]
    """
    masked = {}
    for name, column in columns.items():
        masked[name] = torch.zeros_like(column)
        masked[name][shown] = column[shown]
    return with_targets(source, masked)


def show_rows(source: Source, shown: Mapping[str, tuple[Tensor, Tensor]]) -> Source:
    """The rows of ``source`` with the targets of some of them, and zeros for all others, which are out of reach.

    As `hide_rows`, but kept are only the targets that are shown: a thousand of these weigh no more than what they show.

    Args:
        source: where the rows lie.
        shown: for each column the indices of the rows that are shown, each once, and their targets.

    Example:
        >>> from streamlearn.streams.sources import TensorSource
        >>> source = TensorSource(torch.zeros(4, 1), {"y": torch.tensor([1, 2, 3, 4])}, "toy")
        >>> show_rows(source, {"y": (torch.tensor([2, 0]), torch.tensor([3, 1]))}).take(torch.arange(4)).targets["y"].tolist()
        [1, 0, 3, 0]
    """
    return _Shown(source, shown)


def hide_labels(parts: Sequence[Data], kept: Sequence[Mapping[str, Tensor]]) -> list[Data]:
    """The rows of ``parts`` over sources that know no label but those that are kept.

    A value of a source that any of the parts keeps is a label wherever the row comes up in them.

    Args:
        parts: rows, not episodes.
        kept: for each part, by column of its source, which of its rows keep their labels, bool, ``(rows,)``.
    """
    shown: dict[int, dict[str, list[tuple[Tensor, Tensor]]]] = {}
    for part, masks in zip(parts, kept, strict=True):
        columns = shown.setdefault(id(part.source), {})
        for column, mask in masks.items():
            rows = part.indices[mask]
            columns.setdefault(column, []).append((rows, raw_targets(part.source, column, rows)))
    known = {source: {column: _once(pairs) for column, pairs in columns.items()} for source, columns in shown.items()}
    sources: dict[int, Source] = {}
    return [_labelled_as(part, known[id(part.source)], sources) for part in parts]


def raw_targets(source: Source, column: str, index: Tensor) -> Tensor:
    """The targets of the rows ``index`` as the source has them, read without inputs where it allows."""
    targets = getattr(source, "targets", None)
    return source.take(index).targets[column] if targets is None else targets[column][index]


def _once(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Each row once, with its value; rows ascend."""
    rows, values = torch.cat([rows for rows, _ in pairs]), torch.cat([values for _, values in pairs])
    rows, order = rows.sort(stable=True)
    first = torch.ones(len(rows), dtype=torch.bool)
    first[1:] = rows[1:] != rows[:-1]
    return rows[first], values[order[first]]


def _labelled_as(part: Data, known: Mapping[str, tuple[Tensor, Tensor]], sources: dict[int, Source]) -> Data:
    """``part`` with the labels that are ``known`` of its source; parts that shared a source share one again."""
    if not part.targets:
        return part.without_labels()
    if id(part.source) not in sources:
        sources[id(part.source)] = show_rows(part.source, known)
    labelled = {}
    for task, target in part.targets.items():
        mask = torch.isin(part.indices, known[target.column][0])
        mask = mask & part.labelled[task] if task in part.labelled else mask
        if not bool(mask.all()):
            labelled[task] = mask
    return replace(part, source=sources[id(part.source)], labelled=labelled)


class _Veiled:
    """Rows of a source that keeps its targets to itself."""

    def __init__(self, source: Source, targets: Mapping[str, Tensor]) -> None:
        self.name, self.input_shape, self.targets = source.name, source.input_shape, dict(targets)
        self.class_names = tuple(getattr(source, "class_names", ()))
        self._length = len(source)
        self._rows: Sealed[Source] = Sealed(source)
        if hasattr(source, "row_bytes"):
            self.row_bytes = source.row_bytes

    def __len__(self) -> int:
        return self._length

    def take(self, index: Tensor) -> Columns:
        """The rows at ``index``, with the targets that may be seen."""
        taken = self._rows.open().take(index)
        return taken._replace(targets={name: column.index_select(0, index) for name, column in self.targets.items()})

    def with_targets(self, targets: Mapping[str, Tensor]) -> _Veiled:
        """The same rows with other targets."""
        return _Veiled(self._rows.open(), targets)

    def without_targets(self) -> _Veiled:
        """The same rows without targets; always the same object."""
        if not self.targets:
            return self
        return _Veiled(self._rows.open(), {})

    def fingerprint(self) -> str:
        """That of the source."""
        return self._rows.open().fingerprint()


class _Shown:
    """Rows of a source with the targets of some of them."""

    def __init__(self, source: Source, shown: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        self._rows = without_targets(source)
        self.name, self.input_shape = source.name, source.input_shape
        self.class_names = tuple(getattr(source, "class_names", ()))
        self._shown: dict[str, tuple[Tensor, Tensor]] = {}
        for column, (rows, values) in shown.items():
            order = rows.argsort()
            self._shown[column] = rows[order], values[order]
        if hasattr(source, "row_bytes"):
            self.row_bytes = source.row_bytes

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def targets(self) -> dict[str, Tensor]:
        """Whole columns, made when they are asked for."""
        found = {}
        for column, (rows, values) in self._shown.items():
            found[column] = values.new_zeros((len(self), *values.shape[1:]))
            found[column][rows] = values
        return found

    def take(self, index: Tensor) -> Columns:
        """The rows at ``index``, with the targets that are shown."""
        targets = {column: _looked_up(index, *shown) for column, shown in self._shown.items()}
        return self._rows.take(index)._replace(targets=targets)

    def with_targets(self, targets: Mapping[str, Tensor]) -> Source:
        """The same rows with other targets."""
        return with_targets(self._rows, targets)

    def without_targets(self) -> Source:
        """The same rows without targets; always the same object."""
        return self._rows

    def fingerprint(self) -> str:
        """A hash of the rows and of what is shown of their targets."""
        digest = hashlib.sha256(self._rows.fingerprint().encode())
        for column, (rows, values) in sorted(self._shown.items()):
            digest.update(f"{column} {rows.tolist()} {values.dtype} {values.tolist()}".encode())
        return digest.hexdigest()


def _looked_up(index: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """The values at ``index``; zero for what is not among ``rows``, which ascend."""
    if not len(rows):
        return values.new_zeros((len(index), *values.shape[1:]))
    places = torch.searchsorted(rows, index).clamp_(max=len(rows) - 1)
    found = values[places]
    found[rows[places] != index] = 0
    return found
