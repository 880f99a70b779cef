"""Named sets of small images, read from files that the user has in torchvision's layout, below ``$STREAMLEARN_DATA``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamlearn.errors import DataError
from streamlearn.streams.sources.files import DataFolder, checked_labels, read_idx
from streamlearn.streams.sources.tensors import TensorSource

__all__ = ["fashion_mnist", "kmnist", "mnist", "svhn", "usps"]

_GARMENTS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_SYLLABLES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


def mnist(root: str | None = None) -> tuple[TensorSource, TensorSource]:
    """``"mnist"``: 60,000 training and 10,000 test images of handwritten digits, x ``(rows, 1, 28, 28)`` in [0, 1].

    Args:
        root: the folder that holds ``MNIST/raw``; by default the one that ``STREAMLEARN_DATA`` names.

    Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998.

    Raises:
        DataError: a file is missing or damaged.
    """
    return _idx_pair("mnist", "MNIST", (), root)


def fashion_mnist(root: str | None = None) -> tuple[TensorSource, TensorSource]:
    """``"fashion-mnist"``: 60,000 training and 10,000 test images of garments, x ``(rows, 1, 28, 28)`` in [0, 1].

    Args:
        root: the folder that holds ``FashionMNIST/raw``; by default the one that ``STREAMLEARN_DATA`` names.

    Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST", 2017, arXiv:1708.07747.

    Raises:
        DataError: a file is missing or damaged.
    """
    return _idx_pair("fashion-mnist", "FashionMNIST", _GARMENTS, root)


def kmnist(root: str | None = None) -> tuple[TensorSource, TensorSource]:
    """``"kmnist"``: 60,000 training and 10,000 test images of cursive hiragana, x ``(rows, 1, 28, 28)`` in [0, 1].

    Args:
        root: the folder that holds ``KMNIST/raw``; by default the one that ``STREAMLEARN_DATA`` names.

    Source: Clanuwat et al., "Deep learning for classical Japanese literature", 2018, arXiv:1812.01718.

    Raises:
        DataError: a file is missing or damaged.
    """
    return _idx_pair("kmnist", "KMNIST", _SYLLABLES, root)


def _idx_pair(name: str, folder: str, class_names: tuple[str, ...], root: str | None) -> tuple[TensorSource, TensorSource]:
    place = DataFolder.of(name, root, f"{folder}/raw/train-images-idx3-ubyte", f"{folder}({{root}}, download=True)")
    sources = []
    for part, source_name in (("train", name), ("t10k", f"{name}/test")):
        images, labels = (
            place.find(f"{folder}/raw/{part}-{kind}-ubyte", f"{folder}/raw/{part}-{kind}-ubyte.gz")
            for kind in ("images-idx3", "labels-idx1")
        )
        x, y = read_idx(images, 3).unsqueeze(1), checked_labels(read_idx(labels, 1), 10, labels)
        if len(x) != len(y):
            raise DataError(f"{images} has {len(x)} images and {labels} has {len(y)} labels: fetch both again")
        sources.append(TensorSource(x, {"y": y}, source_name, divide_by=255, class_names=class_names))
    return sources[0], sources[1]


def usps(root: str | None = None) -> tuple[TensorSource, TensorSource]:
    """``"usps"``: 7,291 training and 2,007 test images of handwritten digits, x ``(rows, 1, 16, 16)`` in [0, 1].

    Args:
        root: the folder that holds ``usps.bz2`` and ``usps.t.bz2``, itself or in ``USPS``; by default the one that
            ``STREAMLEARN_DATA`` names.

    Source: Hull, "A database for handwritten text recognition research", 1994; the files of the LIBSVM collection.

    Raises:
        DataError: a file is missing or damaged.
    """
    place = DataFolder.of("usps", root, "USPS/usps.bz2", "USPS({root}, train=True, download=True), and again with train=False")
    sources = []
    for file, name in (("usps.bz2", "usps"), ("usps.t.bz2", "usps/test")):
        path = place.find(f"USPS/{file}", file)
        levels, labels = _svmlight(path)
        # as bytes, as torchvision keeps them
        x = torch.from_numpy(((levels + 1) / 2 * 255).astype(np.uint8)).view(-1, 1, 16, 16)
        y = checked_labels(torch.from_numpy(labels), 11, path, least=1) - 1
        sources.append(TensorSource(x, {"y": y}, name, divide_by=255))
    return sources[0], sources[1]


def _svmlight(path: Path) -> tuple[Any, Any]:
    """Levels from -1 to 1, ``(rows, 256)``, and labels."""
    from sklearn.datasets import load_svmlight_file

    try:
        rows, labels = load_svmlight_file(str(path), n_features=256)
    except (OSError, EOFError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is damaged ({error}): fetch it again") from error
    levels = rows.toarray()
    strange = ~((levels >= -1) & (levels <= 1)).all(1)
    if not len(levels) or strange.any():
        what = f"row {int(strange.argmax())} has a level outside of [-1, 1]" if len(levels) else "it has no rows"
        raise DataError(f"{path} is damaged ({what}): fetch it again")
    return levels, labels


def svhn(root: str | None = None) -> tuple[TensorSource, TensorSource]:
    """``"svhn"``: 73,257 training and 26,032 test images of house-number digits, x ``(rows, 3, 32, 32)`` in [0, 1].

    The files call the digit 0 "10"; here it is class 0.

    Args:
        root: the folder that holds ``train_32x32.mat`` and ``test_32x32.mat``, itself or in ``SVHN``; by default the one that
            ``STREAMLEARN_DATA`` names.

    Source: Netzer et al., "Reading digits in natural images with unsupervised feature learning", NIPS workshop, 2011.

    Raises:
        DataError: a file is missing or damaged.
    """
    place = DataFolder.of("svhn", root, "train_32x32.mat", "SVHN({root}, 'train', download=True), and again with 'test'")
    sources = []
    for part, name in (("train", "svhn"), ("test", "svhn/test")):
        path = place.find(f"{part}_32x32.mat", f"SVHN/{part}_32x32.mat")
        x, labels = _matlab(path)
        y = checked_labels(labels, 11, path) % 10
        sources.append(TensorSource(x, {"y": y}, name, divide_by=255))
    return sources[0], sources[1]


def _matlab(path: Path) -> tuple[Tensor, Tensor]:
    """Images ``(rows, 3, 32, 32)`` and labels as the file has them."""
    from scipy.io import loadmat

    try:
        found = loadmat(str(path), variable_names=("X", "y"))
    except Exception as error:  # what scipy raises on rubbish is of many kinds
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}): fetch it again") from error
    missing = [key for key in ("X", "y") if not isinstance(found.get(key), np.ndarray)]
    if missing:
        raise DataError(f"{path} holds no array {missing[0]!r}: fetch it again")
    x, y = found["X"], found["y"].reshape(-1)
    if x.dtype != np.uint8 or x.shape != (32, 32, 3, len(y)) or not len(y) or y.dtype.kind not in "ui":
        raise DataError(
            f"{path} is damaged: X holds {x.dtype} of shape {x.shape} and y {y.dtype} of shape {found['y'].shape}, where uint8 of shape "
            "(32, 32, 3, rows) and one whole number for each row belong; fetch it again"
        )
    return torch.from_numpy(np.ascontiguousarray(x.transpose(3, 2, 0, 1))), torch.from_numpy(y.astype(np.int64))
