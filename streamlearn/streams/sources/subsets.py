"""Data sets made of other data sets: whether the rows that they name exist, and their inputs where those lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from streamlearn.errors import DataError

__all__ = ["check_indices", "inputs_in_memory", "is_map_style", "is_plain", "row_numbers"]


def is_map_style(dataset: Any) -> bool:
    """Whether ``dataset`` has a length and gives rows by number; torch's own base classes have a ``__getitem__`` that only fails."""
    if isinstance(dataset, IterableDataset) or getattr(type(dataset), "__getitem__", None) is Dataset.__getitem__:
        return False
    return hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")


def is_plain(dataset: Any, kind: type[Dataset[Any]]) -> bool:
    """Whether ``dataset`` is of this kind and gives its rows as the kind does: a class derived from it may change them on the way."""
    return isinstance(dataset, kind) and type(dataset).__getitem__ is kind.__getitem__


def row_numbers(indices: Any, rows: int) -> Tensor | None:
    """The ``indices`` of a `Subset` of ``rows`` rows as int64, or ``None`` when they are no such numbers."""
    try:
        numbers = torch.as_tensor(indices)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    if numbers.dim() != 1 or numbers.is_floating_point() or numbers.is_complex() or numbers.dtype is torch.bool:
        return None
    numbers = numbers.long()
    return numbers if bool(((numbers >= -rows) & (numbers < rows)).all()) else None


def check_indices(dataset: Any, name: str) -> None:
    """Whether every `Subset` in ``dataset`` names rows that exist.

    Raises:
        DataError: its indices are a mask, or one is out of range.
    """
    for part in dataset.datasets if isinstance(dataset, ConcatDataset) else ():
        check_indices(part, name)
    if not isinstance(dataset, Subset):
        return
    check_indices(dataset.dataset, name)
    try:
        numbers = torch.as_tensor(dataset.indices)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return  # keys of another kind, which only the data set itself understands
    if numbers.dtype is torch.bool:
        cure = "[row for row, kept in enumerate(mask) if kept]"
        raise DataError(f"the indices of the Subset of source {name!r} are a mask: give the numbers of the rows, {cure}")
    if numbers.dim() != 1 or numbers.is_floating_point():
        kind = str(numbers.dtype).removeprefix("torch.")
        raise DataError(
            f"the indices of the Subset of source {name!r} are {kind} of shape {tuple(numbers.shape)}: give a list of row numbers"
        )
    if isinstance(dataset.dataset, Mapping) or not hasattr(dataset.dataset, "__len__"):
        return
    rows = len(dataset.dataset)
    strange = (numbers < -rows) | (numbers >= rows)
    if bool(strange.any()):
        place = int(strange.nonzero()[0, 0])
        raise DataError(
            f"index {int(numbers[place])} in place {place} of the Subset of source {name!r} does not exist: its data set has {rows} rows, "
            f"give numbers from 0 to {rows - 1}"
        )


def inputs_in_memory(dataset: Any) -> Callable[[Tensor], Tensor] | None:
    """What gives the inputs at a vector of rows, if they are parts of tensors in memory: of a `TensorDataset`, or a `Subset` or
    `ConcatDataset` of those.

    Example:
        >>> inner = TensorDataset(torch.tensor([[5], [6], [7]]), torch.zeros(3))
        >>> inputs = inputs_in_memory(ConcatDataset([Subset(inner, [2, 0]), inner]))
        >>> inputs(torch.tensor([4, 0])).tolist()
        [[7], [7]]
    """
    if is_plain(dataset, TensorDataset):
        x: Tensor = dataset.tensors[0]
        return lambda index: x[index]
    if is_plain(dataset, Subset):
        inner, rows = inputs_in_memory(dataset.dataset), row_numbers(dataset.indices, len(dataset.dataset))
        return None if inner is None or rows is None else lambda index: inner(rows[index])
    if is_plain(dataset, ConcatDataset):
        parts = [part for part in map(inputs_in_memory, dataset.datasets) if part is not None]
        return _concatenated(parts, torch.tensor(dataset.cumulative_sizes)) if len(parts) == len(dataset.datasets) else None
    return None


def _concatenated(parts: list[Callable[[Tensor], Tensor]], ends: Tensor) -> Callable[[Tensor], Tensor]:
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])

    def inputs(index: Tensor) -> Tensor:
        which = torch.searchsorted(ends, index, right=True)
        numbers = torch.unique(which).tolist()
        order = torch.cat([(which == number).nonzero()[:, 0] for number in numbers])
        found = torch.cat([parts[number](index[which == number] - starts[number]) for number in numbers])
        return found[order.argsort()]

    return inputs
