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

__all__ = ["Pairs", "Workers", "read_rows"]


class Pairs(NamedTuple):
    """Inputs and targets of some rows, stacked."""

    x: Tensor
    y: Tensor


def read_rows(dataset: Any, name: str, rows: list[int], shape: tuple[int, ...] | None, seed: int | None = None) -> Pairs:
    """Rows of ``dataset``, in order; with ``seed``, each row's random draws depend on the seed and the row alone."""
    xs, ys = [], []
    for row in rows:
        if seed is not None:
            torch.manual_seed((seed + row) % 2**63)
        try:
            pair = dataset[row]
        except Exception as error:
            raise DataError(f"row {row} of source {name!r} cannot be read: {type(error).__name__}: {error}") from error
        x, y = _checked_pair(pair, row, name)
        shape = shape if shape is not None else tuple(x.shape)
        if tuple(x.shape) != shape:
            raise DataError(f"row {row} of source {name!r} has shape {tuple(x.shape)} but others have {shape}: bring all to one shape")
        xs.append(x)
        ys.append(y)
    return Pairs(torch.stack(xs), torch.stack(ys))


def _checked_pair(pair: Any, row: int, name: str) -> tuple[Tensor, Tensor]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        given = f"{len(pair)} values" if isinstance(pair, (tuple, list)) else f"a {type(pair).__name__}"
        raise DataError(f"row {row} of source {name!r} is {given}: the data set must give pairs (x, y)")
    x, y = pair
    if not isinstance(x, (Tensor, np.ndarray)):
        raise DataError(f"x in row {row} of source {name!r} is a {type(x).__name__}: give a tensor (for images, transform=ToTensor())")
    try:
        return torch.as_tensor(x), torch.as_tensor(operator.index(y) if isinstance(y, np.integer) else y)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"row {row} of source {name!r} holds values that are not numbers ({error}): give tensors and class numbers"
        ) from error


class _Failure(NamedTuple):
    """What a worker sends instead of rows; raising there would lose the cause on the way."""

    message: str
    cause: BaseException | None


class _Rows(Dataset[Any]):
    """The data set as workers see it: asked for ``(rows, seed)``, answers with all these rows."""

    def __init__(self, dataset: Any, name: str, shape: tuple[int, ...]) -> None:
        self._dataset, self._name, self._shape = dataset, name, shape

    def __getitems__(self, request: tuple[list[int], int]) -> Pairs | _Failure:  # the fetcher's hook for a whole batch
        rows, seed = request
        try:
            return read_rows(self._dataset, self._name, rows, self._shape, seed)
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

    def __init__(self, dataset: Any, name: str, shape: tuple[int, ...], workers: int) -> None:
        rows = _Rows(dataset, name, shape)
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
