"""A source in memory whose rows are mostly zeros."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamlearn.errors import DataError
from streamlearn.streams.data import Columns

__all__ = ["SparseSource"]


class SparseSource:
    """Rows in memory that are mostly zeros: they are kept sparse and made dense for each batch.

    Args:
        rows: a scipy sparse matrix ``(rows, features)`` of finite floats; float32 is kept as it is.
        targets: columns by name, each of shape ``(rows, ...)``.
        name: what messages and the record call it.
        class_names: what people call the classes.

    Attributes:
        row_bytes: bytes of one input in a batch.

    Raises:
        DataError: there are no rows or no features, or a column has another length.

    Example:
        >>> from scipy.sparse import csr_array
        >>> source = SparseSource(csr_array([[0.0, 2.0], [0.0, 0.0]]), {"y": torch.tensor([1, 0])}, "toy")
        >>> source.take(torch.tensor([1, 0])).x
        tensor([[0., 0.],
                [0., 2.]])
    """

    def __init__(self, rows: Any, targets: Mapping[str, Tensor], name: str, *, class_names: Sequence[str] = ()) -> None:
        self.name, self.class_names = name, tuple(class_names)
        self._rows = rows.tocsr().astype(np.float32, copy=False)
        if self._rows.shape[0] == 0:
            raise DataError(f"source {name!r} has no rows: give at least one")
        if self._rows.shape[1] == 0:
            raise DataError(f"an input of source {name!r} has no features: give at least one")
        strange = next((key for key, column in targets.items() if len(column) != len(self)), None)
        if strange is not None:
            raise DataError(f"source {name!r} has {len(self)} rows of x but {len(targets[strange])} of {strange!r}: give one for each row")
        self.targets: Mapping[str, Tensor] = dict(targets)
        self.row_bytes = self._rows.shape[1] * torch.float32.itemsize
        self._bare: SparseSource | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return (int(self._rows.shape[1]),)

    def __len__(self) -> int:
        return int(self._rows.shape[0])

    def __repr__(self) -> str:
        return f"SparseSource({self.name!r}, {len(self)} rows of {self.input_shape}, targets {', '.join(self.targets)})"

    def take(self, index: Tensor) -> Columns:
        """The rows at ``index`` (int64, ``(rows,)``), in that order, dense."""
        x = torch.from_numpy(self._rows[index.numpy()].toarray())
        return Columns(x, {name: column.index_select(0, index) for name, column in self.targets.items()})

    def with_targets(self, targets: Mapping[str, Tensor]) -> SparseSource:
        """The same rows under the same name with other target columns; the inputs are shared."""
        other = copy.copy(self)
        other.targets, other._bare = dict(targets), None
        return other

    def without_targets(self) -> SparseSource:
        """The same rows without targets; always the same object."""
        if self._bare is None:
            self._bare = self.with_targets({})
        return self._bare

    def fingerprint(self) -> str:
        """SHA-256 of everything a batch can depend on."""
        digest = hashlib.sha256(str(self._rows.shape).encode())
        for part in (self._rows.indptr.astype(np.int64), self._rows.indices.astype(np.int64), self._rows.data):
            digest.update(np.ascontiguousarray(part).data)
        for name, column in sorted(self.targets.items()):
            digest.update(f"{name} {column.dtype} {tuple(column.shape)}".encode())
            digest.update(column.contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()
