"""Avalanche's data sets are trees: nodes that choose, join and transform, over leaves that hold rows. Here they are read as tensors.

No row is read. A tree is known by the attributes of its nodes, so that Avalanche itself need not be imported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from streamlearn.errors import DataError

__all__ = ["Items", "Piece", "Step", "Trees", "chosen_pieces", "read_together"]


class Step(NamedTuple):
    """A transform of rows on the way from a leaf: called with ``(x, y, ...)``, gives as many values."""

    call: Any
    frozen: bool

    def of_inputs(self) -> list[Any]:
        """The functions of x alone of which it consists."""
        return [function for function in self.call.flat_transforms(0) if function is not None]


class Piece(NamedTuple):
    """Rows of one leaf that go through the same steps, innermost first; ``positions`` say where in the data set they stand, ascending."""

    positions: Tensor
    leaf: Any
    rows: Tensor
    steps: tuple[Step, ...]

    @property
    def functions(self) -> list[Any]:
        """All functions of x alone among the steps."""
        return [function for step in self.steps for function in step.of_inputs()]

    @property
    def key(self) -> tuple[int, ...]:
        """What is alike for pieces that are read alike, as long as they live."""
        return (id(self.leaf), *(id(step.call) for step in self.steps))


class Items:
    """The rows of a leaf as Avalanche gives them, one by one: ``(x, y)``."""

    def __init__(self, leaf: Any, steps: tuple[Step, ...]) -> None:
        self._leaf, self._steps = leaf, steps

    def __len__(self) -> int:
        return len(self._leaf)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        element = self._leaf[row]
        for step in self._steps:
            element = step.call(*element)
        if not isinstance(element, (tuple, list)) or len(element) < 2:
            raise TypeError(f"it is a {type(element).__name__}, where a tuple (x, y) belongs")
        return element[0], element[1]


class Trees:
    """Reads trees, and keeps one copy of what many of them share.

    Index vectors that are equal become one tensor: a thousand experiences that permute the same rows keep one of them.
    """

    def __init__(self) -> None:
        self._columns: dict[int, tuple[Any, Tensor]] = {}
        self._vectors: dict[bytes, Tensor] = {}

    def pieces(self, dataset: Any, group: str) -> list[Piece]:
        """The rows of ``dataset`` as its transforms of ``group`` ("train", "eval") make them."""
        root = getattr(dataset, "_flat_data", dataset)
        every = torch.arange(len(dataset))
        alike: dict[tuple[int, ...], list[Piece]] = {}
        for piece in _walk(root, every, every, (), group):
            alike.setdefault(piece.key, []).append(piece)
        return [self._merged(group_of) for group_of in alike.values()]

    def _merged(self, pieces: Sequence[Piece]) -> Piece:
        positions, rows = (torch.cat([getattr(piece, what) for piece in pieces]) for what in ("positions", "rows"))
        positions, order = positions.sort()
        return pieces[0]._replace(positions=self._shared(positions), rows=self._shared(rows[order]))

    def _shared(self, vector: Tensor) -> Tensor:
        return self._vectors.setdefault(hashlib.sha256(vector.numpy().data).digest(), vector)

    def column(self, attribute: Any, what: str) -> Tensor:
        """The values of a data attribute, one for each row, int64.

        Raises:
            DataError: they are not whole numbers; ``what`` says what they are.
        """
        data = getattr(attribute, "data", attribute)
        column = torch.empty(len(attribute), dtype=torch.int64)
        every = torch.arange(len(column))
        for piece in _walk(data, every, every, (), ""):
            if hasattr(piece.leaf, "_constant_value"):
                column[piece.positions] = int(piece.leaf._constant_value)
                continue
            held, values = self._columns.get(id(piece.leaf), (None, None))
            if held is not piece.leaf or values is None:
                values = self._values(piece.leaf, what)
                self._columns[id(piece.leaf)] = piece.leaf, values
            column[piece.positions] = values[piece.rows]
        return column

    def _values(self, leaf: Any, what: str) -> Tensor:
        if hasattr(leaf, "use_in_getitem"):  # an attribute of attributes
            return self.column(leaf, what)
        try:
            values = np.asarray(leaf)
        except (TypeError, ValueError):
            values = np.empty(0, dtype=object)
        if values.ndim != 1 or values.dtype.kind not in "iub":
            kind = type(leaf[0]).__name__ if len(leaf) else "nothing"
            raise DataError(f"{what} are not class numbers but {kind}: only classification benchmarks become streams")
        return torch.from_numpy(values.astype(np.int64))


def chosen_pieces(dataset: Any, rows: Tensor) -> Iterator[Piece]:
    """The ``rows`` of an Avalanche data set with its current transforms; positions are those within ``rows``."""
    flat = dataset._flat_data
    return _walk(flat, rows, torch.arange(len(rows)), (), flat._transform_groups.current_group)


def read_together(piece: Piece) -> list[Sequence[Any]]:
    """The rows of ``piece``, read by its leaf as a batch if it can."""
    rows, read = piece.rows.tolist(), getattr(piece.leaf, "__getitems__", None)
    found: list[Sequence[Any]] = [piece.leaf[row] for row in rows] if read is None else read(rows)
    for step in piece.steps:
        found = [step.call(*element) for element in found]
    return found


def _walk(node: Any, rows: Tensor, positions: Tensor, steps: tuple[Step, ...], group: str) -> Iterator[Piece]:
    """The leaves below ``node`` that hold its ``rows``, which stand at ``positions`` of the root."""
    steps = (*_steps_of(node, group), *steps)
    children, indices = _children(node)
    if children is None:
        yield Piece(positions, node, rows, steps)
        return
    if indices is not None:
        rows = torch.from_numpy(np.fromiter((int(i) for i in indices), np.int64, len(indices)))[rows]
    if len(children) == 1:
        yield from _walk(children[0], rows, positions, steps, group)
        return
    stops = torch.tensor([len(child) for child in children]).cumsum(0)
    homes = torch.searchsorted(stops, rows, right=True)
    for number in torch.unique(homes).tolist():
        mine = homes == number
        start = int(stops[number - 1]) if number else 0
        yield from _walk(children[number], rows[mine] - start, positions[mine], steps, group)


def _children(node: Any) -> tuple[Sequence[Any] | None, Any]:
    """What ``node`` joins, and which rows of the joined it chooses; ``None``: it is a leaf, or chooses all."""
    if hasattr(node, "_cumulative_sizes") and hasattr(node, "_datasets"):
        return node._datasets, node._indices
    if type(node) is Subset and not hasattr(node.dataset, "_flat_data"):  # its rows would get task labels appended
        return [node.dataset], node.indices
    if type(node) is ConcatDataset and not any(hasattr(child, "_flat_data") for child in node.datasets):
        return node.datasets, None
    return None, None


def _steps_of(node: Any, group: str) -> tuple[Step, ...]:
    found = []
    for name in ("_frozen_transform_groups", "_transform_groups"):
        groups = getattr(node, name, None)
        call = None if groups is None else groups.transform_groups[group]
        if call is not None:
            found.append(Step(call, name.startswith("_frozen")))
    return tuple(found)
