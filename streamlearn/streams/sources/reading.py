"""Reading rows of a map-style data set one by one, in this process or in several."""

from __future__ import annotations

import operator
import pickle
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from streamlearn.errors import DataError
from streamlearn.streams.sources.tensors import native

__all__ = ["Kind", "Pairs", "Workers", "read_rows"]


class Pairs(NamedTuple):
    """Inputs and targets of some rows, stacked."""

    x: Tensor
    y: Tensor


class Kind(NamedTuple):
    """What all rows of a data set have in common."""

    x_shape: tuple[int, ...]
    x_type: torch.dtype
    y_shape: tuple[int, ...]
    y_floats: bool

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Kind:
        """That of one row."""
        return cls(tuple(x.shape), x.dtype, tuple(y.shape), y.is_floating_point())

    def fits(self, x: Tensor, y: Tensor) -> bool:
        """Whether a row is of this kind."""
        alike = x.shape == self.x_shape and x.dtype is self.x_type
        return alike and y.shape == self.y_shape and y.is_floating_point() is self.y_floats


def read_rows(dataset: Any, name: str, rows: list[int], kind: Kind | None, seed: int | None = None) -> Pairs:
    """Rows of ``dataset``, in order, all of one ``kind``, by default that of the first of them; with ``seed``, each row's random draws
    depend on the seed and the row alone.

    Raises:
        DataError: a row does not exist, cannot be read, is no pair ``(x, y)``, is of another kind, or holds values that are not finite.
    """
    xs, ys = [], []
    for row in rows:
        if seed is not None:
            torch.manual_seed((seed + row) % 2**63)
        try:
            pair = dataset[row]
        except Exception as error:
            raise DataError(_why_unread(error, dataset, row, name)) from error
        x, y = _checked_pair(pair, row, name)
        if kind is None:
            _refuse_unreadable(x, row, name)
            kind = Kind.of(x, y)
        elif not kind.fits(x, y):
            raise DataError(_how_other(Kind.of(x, y), kind, row, name))
        xs.append(x)
        ys.append(y)
    pairs = Pairs(torch.stack(xs), torch.stack(ys))
    for values, what in zip(pairs, ("x", "y"), strict=True):
        _refuse_not_finite(values, what, rows, name)
    return pairs


def _why_unread(error: Exception, dataset: Any, row: int, name: str) -> str:
    cause = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
    if isinstance(error, IndexError):
        return f"source {name!r} has {len(dataset)} rows, says its len(), but row {row} does not exist ({cause}): correct its __len__"
    return f"row {row} of source {name!r} cannot be read: {cause}"


def _checked_pair(pair: Any, row: int, name: str) -> tuple[Tensor, Tensor]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        given = f"{len(pair)} values" if isinstance(pair, (tuple, list)) else f"a {type(pair).__name__}"
        raise DataError(f"row {row} of source {name!r} is {given}: the data set must give pairs (x, y)")
    x, y = pair
    if not isinstance(x, (Tensor, np.ndarray)):
        raise DataError(f"x in row {row} of source {name!r} is a {type(x).__name__}: give a tensor (for images, transform=ToTensor())")
    for value, what in ((x, "x"), (y, "y")):
        if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
            raise DataError(f"{what} in row {row} of source {name!r} holds a masked value: remove or repair such rows")
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind == "f" and value.dtype.itemsize > 8:
            raise DataError(f"{what} in row {row} of source {name!r} holds {value.dtype} values: convert them with .astype('float32')")
    if isinstance(y, (str, bytes)):
        raise DataError(f"y in row {row} of source {name!r} is the text {y!r}: give the number of its class, from 0")
    try:
        x, y = (
            torch.as_tensor(native(x) if isinstance(x, np.ndarray) else x),
            torch.as_tensor(operator.index(y) if isinstance(y, np.integer) else y),
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"row {row} of source {name!r} holds values that are not numbers ({error}): give tensors and class numbers"
        ) from error
    _refuse_foreign(x, "x", row, name)
    _refuse_foreign(y, "y", row, name)
    return (x.detach(), y.detach()) if x.requires_grad or y.requires_grad else (x, y)


def _refuse_foreign(value: Tensor, what: str, row: int, name: str) -> None:
    """What cannot be stacked with others: tensors that are sparse, or lie elsewhere."""
    if value.device.type != "cpu" or value.layout is not torch.strided:
        where = f"lies on {value.device}" if value.device.type != "cpu" else "is sparse"
        raise DataError(f"{what} in row {row} of source {name!r} {where}: give dense tensors on the CPU, batches are moved to the device")


def _refuse_unreadable(x: Tensor, row: int, name: str) -> None:
    """What no model reads: small integers, complex numbers, nothing at all."""
    if x.numel() == 0:
        raise DataError(f"x in row {row} of source {name!r} has no features (its shape is {tuple(x.shape)}): give at least one")
    if not x.is_floating_point() and x.dtype not in (torch.int32, torch.int64):
        cure = "x.float()" if x.dtype is not torch.uint8 else "x.float() / 255, or transform=ToTensor(), for images"
        cure = "torch.view_as_real(x)" if x.is_complex() else cure
        raise DataError(f"x in row {row} of source {name!r} holds {_called(x.dtype)} values: give floats, for example {cure}")


def _how_other(own: Kind, kind: Kind, row: int, name: str) -> str:
    where = f"row {row} of source {name!r}"
    if own.x_shape != kind.x_shape:
        return f"{where} has shape {own.x_shape} but others have {kind.x_shape}: bring all to one shape"
    if own.x_type != kind.x_type:
        return f"{where} holds {_called(own.x_type)} values but others hold {_called(kind.x_type)}: bring all to one type"
    if own.y_shape != kind.y_shape:
        return f"y in {where} has shape {own.y_shape} but others have {kind.y_shape}: bring all to one shape"
    mine, others = ("a float", "whole numbers") if own.y_floats else ("a whole number", "floats")
    return f"y in {where} is {mine} but others are {others}: bring all to one type"


def _refuse_not_finite(values: Tensor, what: str, rows: list[int], name: str) -> None:
    if not values.is_floating_point() or bool(values.sum().isfinite()):
        return  # a sum costs a twentieth of looking at every value, and is finite only if all of them are
    if bool(values.isfinite().all()):
        return  # the sum overflowed
    place = int((~values.isfinite()).reshape(len(rows), -1).any(1).nonzero()[0, 0])
    kind = "NaN" if bool(values[place].isnan().any()) else "infinity"
    raise DataError(f"{what} in row {rows[place]} of source {name!r} holds {kind}: remove or repair such rows")


def _called(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


class _Failure(NamedTuple):
    """What a worker sends instead of rows; raising there would lose the cause on the way."""

    message: str
    cause: BaseException | None


class _Rows(Dataset[Any]):
    """The data set as workers see it: asked for ``(rows, seed)``, answers with all these rows."""

    def __init__(self, dataset: Any, name: str, kind: Kind) -> None:
        self._dataset, self._name, self._kind = dataset, name, kind

    def __getitems__(self, request: tuple[list[int], int]) -> Pairs | _Failure:  # the fetcher's hook for a whole batch
        rows, seed = request
        try:
            return read_rows(self._dataset, self._name, rows, self._kind, seed)
        except DataError as error:
            return _Failure(str(error), _sendable(error.__cause__))


def _sendable(cause: BaseException | None) -> BaseException | None:
    try:
        pickle.loads(pickle.dumps(cause))
    except Exception:  # noqa: BLE001  (whatever pickling a foreign exception may raise)
        return None
    return cause


class Workers:
    """Processes that stay alive between batches; one batch is cut into as many requests as there are processes."""

    def __init__(self, dataset: Any, name: str, kind: Kind, workers: int) -> None:
        rows = _Rows(dataset, name, kind)
        self._requests: list[tuple[list[int], int]] = []
        self._workers = workers
        self._lock = threading.Lock()
        self._loader = DataLoader(
            rows, batch_sampler=_Sampler(self._requests), num_workers=workers, persistent_workers=True, collate_fn=_same
        )

    def read(self, rows: list[int]) -> Pairs:
        """The rows, in order.

        Raises:
            DataError: a row cannot be read, or a process died.
        """
        seed = int(torch.randint(2**62, ()))
        size = -(-len(rows) // self._workers)
        with self._lock:
            self._requests[:] = [(rows[start : start + size], seed) for start in range(0, len(rows), size)]
            try:
                answers = list(self._loader)
            except RuntimeError as error:
                raise DataError(f"a process that reads rows died ({error}): use fewer workers, or workers=0") from error
        for answer in answers:
            if isinstance(answer, _Failure):
                raise DataError(answer.message) from answer.cause
        return Pairs(torch.cat([answer.x for answer in answers]), torch.cat([answer.y for answer in answers]))


class _Sampler:
    """Gives the loader the requests of the moment, whatever they are when it asks."""

    def __init__(self, requests: list[tuple[list[int], int]]) -> None:
        self._requests = requests

    def __iter__(self) -> Iterator[Any]:
        return iter(self._requests)

    def __len__(self) -> int:
        return len(self._requests)


def _same(answer: Any) -> Any:
    return answer
