"""CamVid: semantic segmentation of street scenes beside a second dense task, pixel by pixel."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from streamlearn.errors import DataError, MissingExtraError
from streamlearn.streams.data import Columns
from streamlearn.streams.inputs import real_number, whole_number
from streamlearn.streams.sources.tables import find_path

__all__ = ["CLASSES", "PatchSource", "border_distance", "camvid"]

CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
"""By number; 11 is void: not labelled."""

_FOLDERS = ("CamVid", "camvid120")


class PatchSource:
    """The surroundings of pixels on a grid over images: each row is a square cut out around one pixel, when it is asked for.

    Pixels outside an image are those of its nearest edge.

    Args:
        images: levels 0 to 255, uint8, ``(images, channels, height, width)``.
        targets: columns by name, ``(images, height, width)``; the rows take what they have at their pixel. A class number -1, or NaN among
            values, stands for a label that is missing.
        name: what messages and the record call it.
        size: height and width of a row's square, odd.
        stride: rows and columns from one pixel of the grid to the next, at least 1; the first is ``stride // 2``.
        class_names: what people call the classes.

    Attributes:
        row_bytes: bytes of one input in a batch.

    Example:
        >>> images = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
        >>> source = PatchSource(images, {"class": images[:, 0].long() % 2}, "toy", size=3, stride=2)
        >>> len(source), source.take(torch.tensor([3])).x.mul(255).round().int().tolist()
        (4, [[[[10, 11, 11], [14, 15, 15], [14, 15, 15]]]])
    """

    def __init__(
        self, images: Tensor, targets: dict[str, Tensor], name: str, *, size: int, stride: int, class_names: tuple[str, ...] = ()
    ) -> None:
        count, channels, height, width = images.shape
        self.name, self.class_names, self._size = name, class_names, size
        edge = size // 2
        self._images = pad(images.float(), (edge,) * 4, mode="replicate").to(torch.uint8)
        if stride // 2 >= min(height, width):
            raise DataError(f"stride is {stride}, and images of {name!r} have {height} by {width} pixels: give a smaller one")
        down, across = (torch.arange(stride // 2, length, stride) for length in (height, width))
        self._number, self._down, self._across = (
            grid.flatten() for grid in torch.meshgrid(torch.arange(count), down, across, indexing="ij")
        )
        self.targets = {key: column[self._number, self._down, self._across] for key, column in targets.items()}
        self.input_shape = (channels, size, size)
        self.row_bytes = channels * size * size * torch.float32.itemsize

    def __len__(self) -> int:
        return len(self._number)

    def __repr__(self) -> str:
        return f"PatchSource({self.name!r}, {len(self)} rows of {self.input_shape}, targets {', '.join(self.targets)})"

    def take(self, index: Tensor) -> Columns:
        """The rows at ``index`` (int64, ``(rows,)``), in that order; levels are divided by 255."""
        step = torch.arange(self._size)
        down, across = (place[index].view(-1, 1) + step for place in (self._down, self._across))
        channel = torch.arange(self.input_shape[0]).view(1, -1, 1, 1)
        x = self._images[self._number[index].view(-1, 1, 1, 1), channel, down[:, None, :, None], across[:, None, None, :]]
        return Columns(x.to(torch.float32).div_(255), {key: column[index] for key, column in self.targets.items()})

    def fingerprint(self) -> str:
        """SHA-256 of everything a batch can depend on."""
        digest = hashlib.sha256(f"{self.input_shape} {len(self)}".encode())
        for values in (self._images, self._down, self._across, *(self.targets[key] for key in sorted(self.targets))):
            digest.update(
                f"{values.dtype} {tuple(values.shape)}".encode() + values.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
        return digest.hexdigest()


def camvid(size: int = 21, stride: int = 10, reach: float = 10.0, path: str | None = None) -> tuple[PatchSource, PatchSource]:
    """``"camvid"``: street scenes; the target ``class`` is the class of a pixel (semantic segmentation), ``border`` how far the nearest
    border of classes is.

    Protocol: each row is one pixel of a grid over the images, and its input the square around it, x ``(rows, 3, size, size)`` in [0, 1].
    ``class`` has 11 classes. ``border`` is computed from the labels: the distance in pixels to the nearest pixel of another class,
    Euclidean, at most ``reach``, divided by ``reach``. Where a pixel is void both labels are missing, and void pixels make no border.
    Training rows are of the 367 images of ``train``, test rows of the 233 of ``test``; the 101 of ``val`` are left out. At 120 by 90
    pixels the grid has 108 pixels an image.

    A task of the engine has one output for each row. Dense prediction is therefore pixel by pixel here, as in Ciresan et al., and the
    accuracy of ``class`` is that over pixels of the grid; published mean IoU of whole images is another number.

    Args:
        size: odd, at least 1.
        stride: at least 1.
        reach: in pixels, above 0.
        path: the folder that holds ``train``, ``trainannot``, ``test`` and ``testannot``, with one ``.png`` of class numbers for each
            image, as in the tutorial of SegNet, in any one size; here or below ``$STREAMLEARN_DATA``. ``None``: ``CamVid``, else
            ``camvid120``.

    Raises:
        DataError: an argument is out of its range, or a file is missing or damaged.
        MissingExtraError: Pillow is not installed.

    Source: Brostow, Fauqueur and Cipolla, "Semantic object classes in video", Pattern Recognition Letters 2009; split and classes:
        Badrinarayanan, Kendall and Cipolla, "SegNet", TPAMI 2017; rows: Ciresan, Giusti, Gambardella and Schmidhuber, "Deep neural
        networks segment neuronal membranes in electron microscopy images", NeurIPS 2012.
    """
    if whole_number(size, "size of source 'camvid'", 1) % 2 == 0:
        raise DataError(f"size of source 'camvid' is {size}: give an odd number, so that a pixel is in the middle")
    whole_number(stride, "stride of source 'camvid'", 1)
    if not 0 < real_number(reach) < float("inf"):
        raise DataError(f"reach of source 'camvid' is {reach!r}: give a number of pixels above 0")
    folder = _folder(path)
    train, test = (_part(folder, part, name, size, stride, float(reach)) for part, name in (("train", "camvid"), ("test", "camvid/test")))
    return train, test


def border_distance(classes: NDArray[np.integer[Any]], reach: float, void: int = len(CLASSES)) -> NDArray[np.float32]:
    """For each pixel of ``classes``, ``(height, width)``, the distance to the nearest pixel of another class.

    It is at most ``reach``, and divided by ``reach``. Pixels of ``void`` have NaN, and make no border.

    Example:
        >>> border_distance(np.array([[0, 0, 0, 1, 11]]), reach=4.0).tolist()
        [[0.75, 0.5, 0.25, 0.25, nan]]
    """
    from scipy.ndimage import distance_transform_edt

    found = np.full(classes.shape, np.nan, dtype=np.float32)
    present = [number for number in np.unique(classes).tolist() if number != void]
    for number in present:
        own, others = classes == number, (classes != number) & (classes != void)
        found[own] = np.minimum(distance_transform_edt(~others)[own], reach) / reach if others.any() else 1.0
    return found


def _folder(path: str | None) -> Path:
    refused: list[DataError] = []
    for name in _FOLDERS if path is None else (path,):
        try:
            return find_path(name, "camvid", folder=True)
        except DataError as error:
            refused.append(error)
    raise refused[0]


def _part(folder: Path, part: str, name: str, size: int, stride: int, reach: float) -> PatchSource:
    files = sorted((folder / part).glob("*.png"))
    if not files:
        raise DataError(f"source 'camvid' finds no image {folder / part / '*.png'}: fetch the folder again")
    images = [_levels(file, "RGB") for file in files]
    labels = [_levels(folder / f"{part}annot" / file.name, "") for file in files]
    for file, image, label in zip(files, images, labels, strict=True):
        if image.shape[:2] != images[0].shape[:2] or label.shape != image.shape[:2] or int(label.max()) > len(CLASSES):
            raise DataError(
                f"{file} and its labels have the shapes {image.shape} and {label.shape} and classes up to {int(label.max())}: give images "
                f"of one size, each with as many class numbers from 0 to {len(CLASSES)}"
            )
    stacked = torch.from_numpy(np.stack(labels).astype(np.int64))
    targets = {
        "class": stacked.masked_fill(stacked == len(CLASSES), -1),
        "border": torch.from_numpy(np.stack([border_distance(label, reach) for label in labels])),
    }
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return PatchSource(pixels, targets, name, size=size, stride=stride, class_names=CLASSES)


def _levels(file: Path, mode: str) -> NDArray[np.uint8]:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("source 'camvid'", "pillow", "vision") from error
    try:
        with Image.open(file) as image:
            return np.array(image.convert(mode) if mode else image, dtype=np.uint8)
    except Exception as error:  # what a decoder raises on rubbish differs from format to format
        raise DataError(f"{file} cannot be read as an image ({type(error).__name__}: {error}): fetch it again") from error
