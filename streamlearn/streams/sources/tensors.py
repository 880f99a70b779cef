"""A source in memory."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from streamlearn.errors import DataError
from streamlearn.streams.data import Columns

__all__ = ["TensorSource", "as_tensor", "native"]

_CHUNK = 4096
_INDEX_TYPES = (torch.int32, torch.int64)
"""Integers that a model reads as they are: numbers of tokens. Smaller ones are measurements (pixels) and become floats."""
_TABLE = "streamlearn.streams.table_source(frame, target), or the source 'csv:path=...,target=...'"


class TensorSource:
    """Rows in memory; a batch is one vectorised gather.

    Integer inputs stay integers in memory and become ``float32(x) / divide_by`` in the batch, which with 255 equals
    torchvision's ``ToTensor`` bit for bit at a quarter of the memory. The tensors given are used as they are, and
    copied only where they are a part of a larger one.

    Args:
        x: inputs on the CPU, ``(rows, ...)``: finite floats, or integers.
        targets: columns by name, ``(rows, ...)``; integers are kept as int64 and may not be negative.
        name: what messages and the record call it; part of the identity of each row.
        divide_by: above 0; for integer ``x`` only. ``None`` leaves int32 and int64 (numbers of tokens) as they are.
        class_names: what people call the classes; empty when they have no names.

    Attributes:
        row_bytes: bytes of one input in a batch. Telling it allows that rows of several small batches are taken at once.

    Raises:
        DataError: there are no rows or no targets, lengths differ, a float is not finite, a label is negative, an input has no
            features, or ``x`` has a type that no model can read.

    Example:
        >>> pixels = torch.tensor([[0, 51], [102, 255]], dtype=torch.uint8)
        >>> source = TensorSource(pixels, {"y": torch.tensor([3, 7])}, "tiny", divide_by=255)
        >>> source.take(torch.tensor([1, 0])).x
        tensor([[0.4000, 1.0000],
                [0.0000, 0.2000]])
    """

    def __init__(
        self, x: Tensor, targets: Mapping[str, Tensor], name: str, *, divide_by: float | None = None, class_names: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.class_names = tuple(class_names)
        self._x = _alone(_checked_inputs(_dense(x, f"x of source {name!r}").detach(), name, divide_by))
        self.targets: Mapping[str, Tensor] = {
            key: _checked_target(_dense(column, f"target {key!r} of source {name!r}").detach(), key, x, name)
            for key, column in targets.items()
        }
        if not self.targets:
            raise DataError(f"source {name!r} has no targets: give at least one column")
        self._divide_by = divide_by
        self.row_bytes = self._x[0].numel() * (self._x.element_size() if divide_by is None else torch.float32.itemsize)
        self._fingerprint: str | None = None
        self._bare: TensorSource | None = None

    @classmethod
    def from_arrays(
        cls, x: ArrayLike | Tensor, y: ArrayLike | Tensor, name: str, *, divide_by: float | None = None, class_names: Sequence[str] = ()
    ) -> TensorSource:
        """A source of ``x`` and of one column ``"y"``, from numpy arrays, nested lists or tensors.

        A numpy array of doubles becomes float32 (nobody chose its precision); a tensor of doubles stays one.

        Raises:
            DataError: as the class does, and when an array holds objects, text, masked values or long doubles.

        Example:
            >>> TensorSource.from_arrays(np.zeros((3, 2)), [0, 1, 0], "arrays").take(torch.tensor([1])).x.dtype
            torch.float32
        """
        columns = {"y": as_tensor(y, f"the labels of source {name!r}")}
        return cls(as_tensor(x, f"x of source {name!r}"), columns, name, divide_by=divide_by, class_names=class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self._x.shape[1:])

    def __len__(self) -> int:
        return len(self._x)

    def __repr__(self) -> str:
        return f"TensorSource({self.name!r}, {len(self)} rows of {self.input_shape}, targets {', '.join(self.targets)})"

    def take(self, index: Tensor) -> Columns:
        """The rows at ``index`` (int64, ``(rows,)``), in that order."""
        x = self._x.index_select(0, index)
        if self._divide_by is not None:
            x = x.to(torch.float32).div_(self._divide_by)
        return Columns(x, {name: column.index_select(0, index) for name, column in self.targets.items()})

    def without_targets(self) -> TensorSource:
        """The same rows under the same name, without targets; always the same object, and the inputs are shared."""
        if self._bare is None:
            self._bare = self.with_targets({})
        return self._bare

    def with_targets(self, targets: Mapping[str, Tensor]) -> TensorSource:
        """The same rows under the same name with other target columns; the inputs are shared."""
        other = copy.copy(self)
        other.targets, other._fingerprint, other._bare = dict(targets), None, None
        return other

    def fingerprint(self) -> str:
        """SHA-256 of everything a batch can depend on; computed when first asked for."""
        if self._fingerprint is None:
            digest = hashlib.sha256(f"divide_by={self._divide_by}".encode())
            for name, column in [("x", self._x), *sorted(self.targets.items())]:
                digest.update(f"{name} {column.dtype} {tuple(column.shape)}".encode())
                digest.update(column.contiguous().flatten().view(torch.uint8).numpy().data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def as_tensor(values: ArrayLike | Tensor, what: str) -> Tensor:
    """``values`` as a tensor; numpy's doubles become float32.

    Raises:
        DataError: they are no numbers, of no one shape, or some are masked; ``what`` says which they are.
    """
    if isinstance(values, Tensor):
        return values
    if callable(getattr(values, "toarray", None)):
        raise DataError(f"{what} are a sparse {type(values).__name__}: give its .toarray()")
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):  # asarray would take what lies under the mask
        row = int(np.argwhere(values.mask)[0, 0]) if values.ndim else 0
        raise DataError(f"row {row} of {what} holds a masked value: remove or repair such rows")
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataError(f"{what} do not form an array ({error}): give rows of one shape") from error
    if array.dtype.kind in "OSU":
        raise DataError(f"{what} hold {array.dtype} values: give numbers, or a table, whose texts are numbered, to {_TABLE}")
    if array.dtype.kind not in "biuf":
        raise DataError(f"{what} hold {array.dtype} values: give numbers")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        raise DataError(f"{what} hold {array.dtype} values, which torch does not know: convert them with .astype('float32')")
    return torch.from_numpy(native(array))


def native(array: NDArray[Any]) -> NDArray[Any]:
    """``array`` as torch can take it, and as float32 if it holds doubles, which numpy chose rather than anybody."""
    doubles = array.dtype.kind == "f" and array.dtype.itemsize == 8
    with np.errstate(over="ignore"):  # an overflow becomes infinity, which is refused with its row
        return np.require(array, np.dtype(np.float32) if doubles else array.dtype.newbyteorder("="), requirements=["C", "W"])


def _alone(x: Tensor) -> Tensor:
    """``x``, copied if it is a part of a larger tensor, which may hold the targets beside it."""
    return x.clone() if x.untyped_storage().nbytes() > x.nbytes else x


def _dense(values: Tensor, what: str) -> Tensor:
    if values.layout is not torch.strided:
        raise DataError(f"{what} is a sparse tensor: give its .to_dense()")
    return values


def _checked_inputs(x: Tensor, name: str, divide_by: float | None) -> Tensor:
    if x.dim() == 0 or len(x) == 0:
        raise DataError(f"source {name!r} has no rows (x has shape {tuple(x.shape)}): give at least one")
    if x[0].numel() == 0:
        raise DataError(f"an input of source {name!r} has no features (x has shape {tuple(x.shape)}): give at least one")
    if x.device.type != "cpu":
        raise DataError(f"x of source {name!r} lies on {x.device}: keep sources on the CPU, batches are moved to the device")
    if x.is_complex():
        raise DataError(f"x of source {name!r} holds {_dtype(x)} values: give real numbers, for example torch.view_as_real(x)")
    if divide_by is None and not x.is_floating_point() and x.dtype not in _INDEX_TYPES:
        cure = "convert it with x.float(), or x.astype('float32') if it is an array"
        if x.dtype is torch.uint8:
            cure = (
                "for images, give streamlearn.streams.TensorSource.from_arrays(x, y, name, divide_by=255) in place of (x, y); for other "
                f"numbers, {cure}"
            )
        raise DataError(f"x of source {name!r} holds {_dtype(x)} values: {cure}")
    if divide_by is not None and (x.is_floating_point() or not 0 < divide_by < float("inf")):
        raise DataError(f"source {name!r} has divide_by={divide_by} and {_dtype(x)} x: it is a positive number, for integer x only")
    if x.is_floating_point():
        _refuse_not_finite(x, f"x of source {name!r}")
    return x


def _checked_target(column: Tensor, key: str, x: Tensor, name: str) -> Tensor:
    rows = len(column) if column.dim() else 0
    if rows != len(x):
        raise DataError(f"source {name!r} has {len(x)} rows of x but {rows} of {key!r}: give one target for each row")
    if column.is_floating_point():
        _refuse_not_finite(column, f"target {key!r} of source {name!r}")
        return column.cpu()
    column = column.to("cpu", torch.int64)
    if bool((column < 0).any()):
        row = int((column < 0).flatten(1 if column.dim() > 1 else 0).nonzero()[0, 0])
        raise DataError(f"row {row} of source {name!r} has the negative label {int(column[row].min())} in {key!r}: number classes from 0")
    return column


def _refuse_not_finite(values: Tensor, what: str) -> None:
    for start in range(0, len(values), _CHUNK):  # in pieces: a mask as large as x would be wasteful
        finite = values[start : start + _CHUNK].isfinite()
        if not bool(finite.all()):
            row = start + int((~finite).reshape(len(finite), -1).any(1).nonzero()[0, 0])
            kind = "NaN" if bool(values[row].isnan().any()) else "infinity"
            raise DataError(f"row {row} of {what} holds {kind}: remove or repair such rows")


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
