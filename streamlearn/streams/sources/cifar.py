"""CIFAR-10 and CIFAR-100 from their pickles, of which nothing but plain data is believed."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamlearn.errors import ConfigurationError, DataError
from streamlearn.streams.sources.files import DataFolder, checked_labels
from streamlearn.streams.sources.tensors import TensorSource

__all__ = ["cifar_10", "cifar_100", "read_pickle"]


def cifar_10(root: str | None = None) -> tuple[TensorSource, TensorSource]:
    """``"cifar-10"``: 50,000 training and 10,000 test photographs of 10 classes, x ``(rows, 3, 32, 32)`` in [0, 1].

    Args:
        root: the folder that holds ``cifar-10-batches-py``; by default the one that ``STREAMLEARN_DATA`` names.

    Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.

    Raises:
        DataError: a file is missing or damaged, or holds anything but plain data.
    """
    folder = "cifar-10-batches-py"
    place = DataFolder.of("cifar-10", root, f"{folder}/data_batch_1", "CIFAR10({root}, download=True)")
    names = _class_names(place.find(f"{folder}/batches.meta"), "label_names", 10)
    train = [place.find(f"{folder}/data_batch_{number}") for number in range(1, 6)]
    test = place.find(f"{folder}/test_batch")
    return _source("cifar-10", train, "labels", names), _source("cifar-10/test", [test], "labels", names)


def cifar_100(labels: str = "fine", root: str | None = None) -> tuple[TensorSource, TensorSource]:
    """``"cifar-100"``: 50,000 training and 10,000 test photographs of 100 classes, x ``(rows, 3, 32, 32)`` in [0, 1].

    Args:
        labels: ``"fine"`` (100 classes) or ``"coarse"`` (20 superclasses of five classes each; the sources are then called
            ``cifar-100/coarse`` and ``cifar-100/coarse/test``).
        root: the folder that holds ``cifar-100-python``; by default the one that ``STREAMLEARN_DATA`` names.

    Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.

    Raises:
        ConfigurationError: ``labels`` is another word.
        DataError: a file is missing or damaged, or holds anything but plain data.
    """
    if labels not in ("fine", "coarse"):
        raise ConfigurationError(f"source 'cifar-100' has labels={labels!r}: give fine (100 classes) or coarse (20 superclasses)")
    folder, name = "cifar-100-python", "cifar-100" if labels == "fine" else "cifar-100/coarse"
    place = DataFolder.of("cifar-100", root, f"{folder}/train", "CIFAR100({root}, download=True)")
    meta, train, test = (place.find(f"{folder}/{file}") for file in ("meta", "train", "test"))
    names = _class_names(meta, f"{labels}_label_names", 100 if labels == "fine" else 20)
    return _source(name, [train], f"{labels}_labels", names), _source(f"{name}/test", [test], f"{labels}_labels", names)


def _source(name: str, paths: Sequence[Path], key: str, class_names: tuple[str, ...]) -> TensorSource:
    rows = [_rows(path, key, len(class_names)) for path in paths]
    pixels = torch.from_numpy(np.concatenate([pixels for pixels, _ in rows])).view(-1, 3, 32, 32)
    return TensorSource(pixels, {"y": torch.cat([labels for _, labels in rows])}, name, divide_by=255, class_names=class_names)


def _rows(path: Path, key: str, classes: int) -> tuple[NDArray[np.uint8], Tensor]:
    content = read_pickle(path)
    pixels, labels = _entry(content, "data", path), _entry(content, key, path)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072 or not len(pixels):
        found = f"{pixels.dtype} of shape {pixels.shape}" if isinstance(pixels, np.ndarray) else f"a {type(pixels).__name__}"
        raise DataError(f"{path} is damaged: 'data' is {found}, where uint8 of shape (rows, 3072) belongs; fetch it again")
    numbers = labels.tolist() if isinstance(labels, np.ndarray) else labels
    whole = isinstance(numbers, list) and all(type(number) is int and abs(number) < 2**31 for number in numbers)
    if not whole or len(numbers) != len(pixels):
        found = f"{len(labels)} values" if isinstance(labels, (list, np.ndarray)) else f"a {type(labels).__name__}"
        raise DataError(
            f"{path} is damaged: {key!r} is {found}, where a whole number for each of {len(pixels)} rows belongs; fetch it again"
        )
    return pixels, checked_labels(torch.tensor(numbers), classes, path)


def _class_names(path: Path, key: str, count: int) -> tuple[str, ...]:
    names = _entry(read_pickle(path), key, path)
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        found = f"{len(names)} entries" if isinstance(names, list) else f"a {type(names).__name__}"
        raise DataError(f"{path} is damaged: {key!r} is {found}, where the names of {count} classes belong; fetch it again")
    return tuple(names)


def _entry(content: Any, key: str, path: Path) -> Any:
    if not isinstance(content, dict) or key not in content:
        found = f"has {', '.join(map(str, content)) or 'nothing'}" if isinstance(content, dict) else f"is a {type(content).__name__}"
        raise DataError(f"{path} is damaged: it holds no {key!r} (it {found}); fetch it again")
    return content[key]


def read_pickle(path: Path) -> Any:
    """What a pickle holds that is a dictionary of text, numbers, arrays of whole numbers, and lists of those; text becomes `str`.

    No function that the file names is ever called: what numpy would have been asked to rebuild is written down by the stand-ins
    below, and read from there. (One is: `str.encode`, which does no harm.)

    Args:
        path: the file, of any protocol, written by Python 2 or 3.

    Raises:
        DataError: the file cannot be read, is damaged, or asks for anything else.
    """
    try:
        with path.open("rb") as file:
            content = _Plain(file, encoding="bytes").load()
        return {_text(key): _read(value) for key, value in content.items()} if isinstance(content, dict) else content
    except _RefusedError as error:
        raise DataError(
            f"{path} is refused: it asks to run {error}, which plain data never does; do not trust it, fetch it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # what unpickling raises on rubbish is of many kinds
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}): fetch it again") from error


class _RefusedError(Exception):
    """The pickle names a function or class that is none of the stand-ins."""


class _Type:
    """Stands in for ``numpy.dtype``: keeps what it is told."""

    def __init__(self, code: Any = b"", *_: Any) -> None:
        self.code, self.order = code, b"|"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def read(self) -> np.dtype[Any]:
        code, order = _text(self.code).lstrip("|<>="), _text(self.order)
        if code not in ("u1", "i1", "i2", "i4", "i8") or order not in ("<", ">", "|"):
            raise ValueError(f"an array of type {order}{code}, which holds no whole numbers")
        return np.dtype(order + code)


class _Array:
    """Stands in for ``numpy.ndarray`` and what makes one."""

    def __init__(self, *_: Any) -> None:
        self.shape, self.type, self.values = (0,), _Type(b"u1"), b""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.type, in_columns, self.values = state
        if in_columns:
            raise ValueError("an array stored column by column")

    @classmethod
    def of_buffer(cls, values: Any, kind: Any, shape: Any, order: Any) -> _Array:
        """As protocol 5 stores them."""
        array = cls()
        array.__setstate__((1, shape, kind, _text(order) != "C", values))
        return array

    def read(self) -> NDArray[Any]:
        if not isinstance(self.type, _Type) or not isinstance(self.values, (bytes, bytearray)):
            raise TypeError("an array without a type or without values")
        found = np.frombuffer(self.values, self.type.read())
        if math.prod(self.shape) != len(found) or any(size < 0 for size in self.shape):
            raise ValueError(f"an array of shape {self.shape} with {len(found)} values")
        return found.reshape(self.shape)


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _Array.of_buffer,
    ("_codecs", "encode"): str.encode,  # how Python 3 writes bytes in protocol 2; text to bytes is all that this one does
}


class _Plain(pickle.Unpickler):
    """Knows no function but the stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        found = _STAND_INS.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            raise _RefusedError(f"{module}.{name}")
        return found


def _read(value: Any) -> Any:
    """A value of the dictionary, with text as `str` and an array in place of what stands in for it."""
    if isinstance(value, _Array):
        return value.read()
    if isinstance(value, list):
        return [_text(item) if isinstance(item, bytes) else item for item in value]
    return _text(value) if isinstance(value, bytes) else value


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
