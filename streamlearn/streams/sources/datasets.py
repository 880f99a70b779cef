"""Any map-style ``torch.utils.data.Dataset`` as a source."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from streamlearn.errors import DataError
from streamlearn.streams.data import Columns, Source
from streamlearn.streams.sources.files import at_least
from streamlearn.streams.sources.reading import Kind, Pairs, Workers, read_rows
from streamlearn.streams.sources.subsets import check_indices, inputs_in_memory, is_map_style, is_plain, row_numbers
from streamlearn.streams.sources.tensors import TensorSource

__all__ = ["DatasetSource", "dataset_source", "known_targets"]

_CHUNK = 1024
_PROBED = 32
"""Rows whose labels are compared with those kept beside the rows before these are believed; all others are compared when taken."""


def dataset_source(dataset: Dataset[Any], name: str, *, workers: int = 0) -> Source:
    """``dataset`` as a source: a `TensorSource` when it is a `TensorDataset` of x and y, else a `DatasetSource`.

    A class derived from `TensorDataset` that gives rows in its own way is read row by row.

    Raises:
        DataError: as these classes do, and when a `TensorDataset` does not hold exactly x and y.
    """
    if not isinstance(dataset, TensorDataset) or not is_plain(dataset, TensorDataset):
        return DatasetSource(dataset, name, workers=workers)
    if len(dataset.tensors) != 2:
        raise DataError(f"the TensorDataset of source {name!r} holds {len(dataset.tensors)} tensors: give two, x and y")
    return TensorSource(dataset.tensors[0], {"y": dataset.tensors[1]}, name)


class DatasetSource:
    """A map-style data set that gives pairs ``(x, y)``, with one target column ``"y"``.

    Targets are found without decoding all inputs where the data set keeps them (``targets``, ``labels``, a `TensorDataset`, a
    `Subset` or `ConcatDataset` of those) and the rows that are probed, up to 35, agree; otherwise every row is read once. Whenever
    a row is taken, its target is compared with the one that was found. Random augmentation of inputs is welcome: it draws from
    torch's global generator, directly or, with workers, through one draw for each batch that seeds the rows.

    Args:
        dataset: has ``__len__`` and ``__getitem__``; ``x`` is a tensor or array of one shape, ``y`` a number, tensor or array.
        name: what messages and the record call it; part of the identity of each row.
        workers: processes that read rows, at least 0; 0 reads in this process.

    Raises:
        DataError: the data set is empty or not map-style, its ``len()`` fails or is less than its ``targets`` are, ``workers`` is out
            of its range, a `Subset` names rows that do not exist, or a row cannot be read, is no such pair, differs from the first in
            shape or type, or holds values that are not finite.

    Example:
        >>> pairs = [(torch.full((2,), float(i)), i % 3) for i in range(6)]
        >>> source = DatasetSource(pairs, "pairs")
        >>> source.take(torch.tensor([4, 0])).targets["y"]
        tensor([1, 0])
    """

    def __init__(self, dataset: Dataset[Any], name: str, *, workers: int = 0) -> None:
        if not is_map_style(dataset):
            raise DataError(f"the {type(dataset).__name__} of source {name!r} is not map-style: give one with __len__ and __getitem__")
        at_least(workers, 0, f"source {name!r} has workers")
        self.name = name
        self.class_names = _class_names(dataset)
        self._dataset = dataset
        self._length = _length(dataset, name)
        if self._length == 0:
            raise DataError(f"source {name!r} has no rows: give at least one")
        check_indices(dataset, name)
        first = read_rows(dataset, name, [0], None)
        self._kind = Kind.of(first.x[0], first.y[0])
        self._reader = Workers(dataset, name, self._kind, workers) if workers else None
        self._fingerprint: str | None = None
        found = known_targets(dataset)
        self._beside = found is not None and self._agrees(found)
        self.targets: Mapping[str, Tensor] = {"y": found if self._beside and found is not None else self._read_targets()}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self._kind.x_shape

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"DatasetSource({self.name!r}, {len(self)} rows of {self.input_shape} from {type(self._dataset).__name__})"

    def take(self, index: Tensor) -> Columns:
        """The rows at ``index`` (int64, ``(rows,)``), in that order.

        Raises:
            DataError: a row cannot be read, which is chained to the data set's own error, or its target is not the one that was found.
        """
        pairs, column = self._fetch(index), self.targets["y"].index_select(0, index)
        if len(index) and not _same(pairs.y, column):
            place = int((_comparable(pairs.y) != column).reshape(len(index), -1).any(1).nonzero()[0, 0])
            raise DataError(self._why_other(int(index[place]), pairs.y[place].tolist(), column[place].tolist()))
        return Columns(pairs.x, {"y": column})

    def fingerprint(self) -> str:
        """SHA-256 of the targets, the number of rows, and the shape and type of the inputs; of the inputs themselves where they are
        tensors in memory, of a `TensorDataset` or a `Subset` or `ConcatDataset` of those.

        Not of other inputs: a data set that augments at random never gives the same ones twice, and reading all of them only
        to name them would cost an epoch. A data set that can tell its content otherwise does so in a method ``fingerprint()``.
        """
        if self._fingerprint is None:
            column = self.targets["y"]
            told = f"{len(self)} {self.input_shape} {self._kind.x_type} {column.dtype} {tuple(column.shape)}"
            digest = hashlib.sha256(told.encode())
            if callable(own := getattr(self._dataset, "fingerprint", None)):
                digest.update(str(own()).encode())
            digest.update(_bytes(column))
            if (inputs := inputs_in_memory(self._dataset)) is not None:
                for rows in torch.split(torch.arange(len(self)), _CHUNK):
                    digest.update(_bytes(inputs(rows).detach()))
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _fetch(self, index: Tensor) -> Pairs:
        rows = index.tolist()
        if not rows:
            return Pairs(torch.empty(0, *self._kind.x_shape, dtype=self._kind.x_type), torch.empty(0))
        return self._reader.read(rows) if self._reader else read_rows(self._dataset, self.name, rows, self._kind)

    def _agrees(self, found: Tensor) -> bool:
        """Whether targets found beside the rows are those *in* the rows; a transform of targets may sit between them."""
        if len(found) > len(self):
            raise DataError(
                f"source {self.name!r} has {len(self)} rows, says its len(), but its {type(self._dataset).__name__} keeps {len(found)} "
                "targets: correct its __len__, or keep only the targets of its rows"
            )
        if len(found) < len(self):
            return False
        probe = torch.tensor([0, len(self) // 2, len(self) - 1])
        return _same(self._fetch(probe).y, found[probe]) and self._agrees_widely(found)

    def _agrees_widely(self, found: Tensor) -> bool:
        """The same for more rows; one that cannot be read contradicts nothing here, and is named when it is taken."""
        count = min(_PROBED, len(self))
        with torch.random.fork_rng(devices=[]):
            for row in (torch.arange(count) * (len(self) - 1) // max(count - 1, 1)).tolist():
                try:
                    met = read_rows(self._dataset, self.name, [row], self._kind).y
                except DataError:
                    continue
                if not _same(met, found[row : row + 1]):
                    return False
        return True

    def _why_other(self, row: int, met: object, found: object) -> str:
        where = f"row {row} of source {self.name!r} has the target {met}"
        if self._beside:
            return (
                f"{where}, but the targets that the {type(self._dataset).__name__} keeps beside its rows say {found}: bring its attribute "
                "targets (or labels) up to date, or remove it, and targets are read from the rows"
            )
        return f"{where}, but had {found} when it was first read: let the data set give the same target whenever it is asked for a row"

    def _read_targets(self) -> Tensor:
        column = torch.cat([self._fetch(rows).y for rows in torch.split(torch.arange(len(self)), _CHUNK)])
        return column if column.is_floating_point() else column.long()


def _length(dataset: Any, name: str) -> int:
    try:
        return len(dataset)
    except Exception as error:  # whatever a foreign __len__ may raise
        raise DataError(
            f"len() of the {type(dataset).__name__} of source {name!r} fails ({type(error).__name__}: {error}): it must give a whole "
            "number of at least 1"
        ) from error


def known_targets(dataset: Any) -> Tensor | None:
    """The targets that ``dataset`` keeps beside its rows, or ``None`` when they can only be read from the rows.

    Example:
        >>> inner = TensorDataset(torch.zeros(4, 2), torch.tensor([5, 6, 7, 8]))
        >>> known_targets(Subset(inner, [3, 0]))
        tensor([8, 5])
    """
    if isinstance(dataset, Subset):
        inner = known_targets(dataset.dataset)
        rows = None if inner is None else row_numbers(dataset.indices, len(inner))
        return None if inner is None or rows is None else inner[rows]
    if isinstance(dataset, ConcatDataset):
        parts = [known_targets(part) for part in dataset.datasets]
        return torch.cat([part for part in parts if part is not None]) if all(part is not None for part in parts) else None
    if isinstance(dataset, TensorDataset):
        return _integers(dataset.tensors[-1])
    if getattr(dataset, "target_transform", None) is not None:
        return None
    return next((found for key in ("targets", "labels") if (found := _integers(getattr(dataset, key, None))) is not None), None)


def _same(met: Tensor, found: Tensor) -> bool:
    return met.shape == found.shape and bool((_comparable(met) == found).all())


def _comparable(met: Tensor) -> Tensor:
    """Targets of rows in a type that compares with that of a column; small integers would overflow, and 1.5 is not the class 1."""
    return met if met.is_floating_point() else met.long()


def _bytes(column: Tensor) -> Any:
    return column.contiguous().flatten().view(torch.uint8).numpy().data


def _integers(values: Any) -> Tensor | None:
    try:
        column = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        return None
    return column.long() if column.dim() == 1 and not column.is_floating_point() else None


def _class_names(dataset: Any) -> tuple[str, ...]:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", ())
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) else ()
