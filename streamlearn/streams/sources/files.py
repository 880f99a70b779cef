"""Data sets read from files that the user has, in the layout that torchvision uses, below ``$STREAMLEARN_DATA``."""

from __future__ import annotations

import functools
import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from streamlearn.errors import DataError
from streamlearn.streams.sources.tensors import TensorSource

__all__ = ["fashion_mnist", "mnist", "read_idx", "usps"]

_GARMENTS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def mnist() -> tuple[TensorSource, TensorSource]:
    """``"mnist"``: 60,000 training and 10,000 test images of handwritten digits, x ``(rows, 1, 28, 28)`` in [0, 1].

    Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998.

    Raises:
        DataError: a file is missing or damaged.
    """
    return _load("mnist", "MNIST", (), _root("mnist", "MNIST"))


def fashion_mnist() -> tuple[TensorSource, TensorSource]:
    """``"fashion-mnist"``: 60,000 training and 10,000 test images of garments, x ``(rows, 1, 28, 28)`` in [0, 1].

    Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST", 2017, arXiv:1708.07747.

    Raises:
        DataError: a file is missing or damaged.
    """
    return _load("fashion-mnist", "FashionMNIST", _GARMENTS, _root("fashion-mnist", "FashionMNIST"))


@functools.cache
def usps() -> tuple[TensorSource, TensorSource]:
    """``"usps"``: 7,291 training and 2,007 test images of handwritten digits, x ``(rows, 1, 16, 16)`` in [0, 1].

    Source: Hull, "A database for handwritten text recognition research", 1994; the files of the LIBSVM collection.

    Raises:
        DataError: a file is missing or damaged.
    """
    from sklearn.datasets import load_svmlight_file

    root, sources = _root("usps", "USPS", "usps.bz2"), []
    for file, name in (("usps.bz2", "usps"), ("usps.t.bz2", "usps/test")):
        found = next((path for path in (root / "USPS" / file, root / file) if path.is_file()), None)
        if found is None:
            raise DataError(f"source 'usps' needs the file {file}, which is neither in {root / 'USPS'} nor in {root}: {_cure('USPS')}")
        try:
            rows, labels = load_svmlight_file(str(found), n_features=256)
        except (OSError, EOFError, ValueError) as error:
            raise DataError(f"{found} is damaged ({error}): fetch it again") from error
        # levels from -1 to 1, as bytes, as torchvision keeps them; labels from 1
        x = torch.from_numpy(((rows.toarray() + 1) / 2 * 255).astype(np.uint8)).view(-1, 1, 16, 16)
        sources.append(TensorSource(x, {"y": torch.from_numpy(labels.astype(np.int64) - 1)}, name, divide_by=255))
    return sources[0], sources[1]


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The array of unsigned bytes in an IDX file, gzipped if its name ends in ``.gz``.

    Layout: two zero bytes, the type (8 for unsigned bytes), the number of dimensions, each size as a big-endian 32-bit
    number, then the values.

    Args:
        path: the file.
        dimensions: how many the array must have: 3 for images, 1 for labels.

    Raises:
        DataError: the file is not such a file, or its size is not the one that its header announces.
    """
    content = _content(path)
    header = 4 + 4 * dimensions
    expected_magic = bytes([0, 0, 8, dimensions])
    if content[:4] != expected_magic:
        raise DataError(
            f"{path} is not an IDX file of {dimensions}-dimensional bytes: it begins with {content[:4].hex() or 'nothing'} "
            f"instead of {expected_magic.hex()}; fetch it again"
        )
    sizes = np.frombuffer(content[4:header].ljust(4 * dimensions, b"\0"), dtype=">u4").tolist()
    expected = header + math.prod(sizes)
    if len(content) != expected:
        raise DataError(f"{path} is damaged: its header announces {expected} bytes and it has {len(content)}; fetch it again")
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=header)).reshape(sizes)


def _content(path: Path) -> bytearray:
    """All bytes, writable, because torch wants no read-only memory."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                return bytearray(file.read())
        content = bytearray(path.stat().st_size)
        with path.open("rb") as file:
            file.readinto(content)
        return content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}): fetch it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


@functools.cache
def _load(name: str, folder: str, class_names: tuple[str, ...], root: Path) -> tuple[TensorSource, TensorSource]:
    sources = []
    for part, source_name in (("train", name), ("t10k", f"{name}/test")):
        images, labels = (
            _find(root / folder / "raw", f"{part}-{kind}", name, folder) for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
        x = read_idx(images, 3).unsqueeze(1)
        y = read_idx(labels, 1).long()
        sources.append(TensorSource(x, {"y": y}, source_name, divide_by=255, class_names=class_names))
    return sources[0], sources[1]


def _root(name: str, folder: str, file: str = "raw/train-images-idx3-ubyte") -> Path:
    root = os.environ.get("STREAMLEARN_DATA", "")
    if not root:
        missing = f"{folder}/{file}"
        raise DataError(f"source {name!r} needs the file {missing} below the folder STREAMLEARN_DATA, which is not set: {_cure(folder)}")
    return Path(root).expanduser().resolve()


def _find(raw: Path, file: str, name: str, folder: str) -> Path:
    for path in (raw / file, raw / f"{file}.gz"):
        if path.is_file():
            return path
    raise DataError(f"source {name!r} needs the file {file}, which is not in {raw} (nor is {file}.gz): {_cure(folder)}")


def _cure(folder: str) -> str:
    return f"set STREAMLEARN_DATA to a folder laid out as torchvision does, e.g. by torchvision.datasets.{folder}(root, download=True)"
