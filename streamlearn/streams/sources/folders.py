"""A folder of images, one sub-folder for each class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from streamlearn.errors import ConfigurationError, DataError
from streamlearn.streams.data import Source
from streamlearn.streams.sources.datasets import DatasetSource
from streamlearn.streams.sources.files import at_least, read_image
from streamlearn.streams.sources.tensors import TensorSource

__all__ = ["folder", "image_folder"]

_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_HALVES = ("train", "training", "test", "val", "valid", "validation")


def folder(
    path: str, test: str | None = None, size: int = 64, workers: int = 0, in_memory: bool = False, name: str | None = None
) -> tuple[Source, Source | None]:
    """``"folder:path=..."``: the images of a folder with one sub-folder for each class, as torchvision's ``ImageFolder`` lays it out.

    Args:
        path: the folder of training images; ``~`` is the home folder.
        test: that of test images, whose sub-folders have some or all of the same names; without it the builder splits rows off.
        size, workers, in_memory: as `image_folder` takes them.
        name: what the record calls the source; by default the name of ``path``, or, if that is one like ``train``, of the folder around it.

    Raises:
        ConfigurationError: an option has another type.
        DataError: as `image_folder` does.
    """
    train = image_folder(path, size=size, workers=workers, in_memory=in_memory, name=name)
    if test is None:
        return train, None
    names = train.class_names  # type: ignore[attr-defined]
    return train, image_folder(test, size=size, workers=workers, in_memory=in_memory, name=f"{train.name}/test", classes=names)


def image_folder(
    path: str | os.PathLike[str],
    *,
    size: int = 64,
    workers: int = 0,
    in_memory: bool = False,
    name: str | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """The images below ``path`` as a source: x ``(rows, 3, size, size)`` in [0, 1], class names from the sub-folders.

    Images, at any depth below the sub-folder of their class, are found at once and decoded when a batch asks for them. Whatever
    they hold becomes RGB and is resized to a square, with antialiasing, as torchvision's ``Resize((size, size))`` and ``ToTensor``
    do bit for bit. The fingerprint tells the names and lengths of the files.

    Args:
        path: the folder.
        size: of the images, at least 1.
        workers: processes that decode, at least 0; 0 decodes in this process.
        in_memory: decode everything once and keep it, at ``3 * size * size`` bytes for each row.
        name: what messages and the record call the source.
        classes: the names of the sub-folders in the order in which classes are to be numbered, some of which may be missing; by
            default those that are there, in alphabetical order.

    Raises:
        ConfigurationError: an argument has another type.
        DataError: there is no such folder, it has no sub-folders, one of them is strange or holds no image, or a number is out of its
            range; and, when it is read, an image that cannot be decoded is named.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as place:
        ...     for kind, colour in (("cat", "red"), ("dog", "blue")):
        ...         (Path(place) / kind).mkdir()
        ...         Image.new("RGB", (4, 4), colour).save(Path(place) / kind / "1.png")
        ...     source = image_folder(place, size=2, in_memory=True, name="pets")
        >>> source.class_names, source.input_shape, source.take(torch.tensor([1])).x[0, :, 0, 0].tolist()
        (('cat', 'dog'), (3, 2, 2), [0.0, 0.0, 1.0])
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigurationError(f"a source of images has path={path!r}: give the name of a folder, in double quotes if need be")
    if not isinstance(in_memory, bool) or not isinstance(name, (str, type(None))):
        raise ConfigurationError(f"{path} is given with in_memory={in_memory!r} and name={name!r}: give true or false, and a text")
    place = Path(path).expanduser().resolve()
    name = _default_name(place) if name is None else name
    images = _Images(place, _found(place, classes), at_least(size, 1, f"source {name!r} has size"), classes)
    if not in_memory:
        return DatasetSource(images, name, workers=workers)
    x = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    for row in range(len(images)):
        x[row] = images.pixels(row)
    return TensorSource(x, {"y": images.targets}, name, divide_by=255, class_names=images.classes)


def _default_name(place: Path) -> str:
    return (place.parent.name if place.name.lower() in _HALVES else place.name) or "folder"


def _found(place: Path, classes: Sequence[str] | None) -> dict[str, list[str]]:
    """The images of every class, as paths below ``place``, in order."""
    layout = f"put one sub-folder for each class in it, with the images of that class ({' '.join(_ENDINGS)})"
    if not place.is_dir():
        raise DataError(f"there is no folder {place}: {layout}, or name another")
    try:
        present = sorted(entry.name for entry in os.scandir(place) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"the folder {place} cannot be read: {error}") from error
    if not present:
        raise DataError(f"{place} has no sub-folders, so its images have no classes: {layout}")
    strange = [kind for kind in present if classes is not None and kind not in classes]
    if strange:
        raise DataError(f"{place} has a sub-folder {strange[0]!r}, which is no class of the training images ({', '.join(classes or ())})")
    found = {kind: _images_below(place, kind) for kind in present}
    empty = next((kind for kind, images in found.items() if not images), None)
    if empty is not None:
        raise DataError(f"{place / empty} holds no image ({' '.join(_ENDINGS)}): put the images of class {empty!r} there, or remove it")
    return found


def _images_below(place: Path, kind: str) -> list[str]:
    found = []
    for top, _, files in os.walk(place / kind, followlinks=True):
        below = Path(top).relative_to(place).as_posix()
        found += [f"{below}/{file}" for file in files if file.lower().endswith(_ENDINGS) and not file.startswith(".")]
    return sorted(found)


class _Images(Dataset[tuple[Tensor, int]]):
    """Images of a folder, decoded one by one; what a process that reads rows is given is their names."""

    def __init__(self, place: Path, found: dict[str, list[str]], size: int, classes: Sequence[str] | None) -> None:
        self.classes = list(found if classes is None else classes)
        self._place, self._size = place, size
        numbers = {kind: number for number, kind in enumerate(self.classes)}
        self._files = [file for files in found.values() for file in files]
        self.targets = torch.tensor([numbers[kind] for kind, files in found.items() for _ in files])

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.pixels(row).float().div_(255), int(self.targets[row])

    def pixels(self, row: int) -> Tensor:
        """uint8, ``(3, size, size)``."""
        path = self._place / self._files[row]
        return torch.from_numpy(np.ascontiguousarray(read_image(path, str(path), "RGB", self._size).transpose(2, 0, 1)))

    def fingerprint(self) -> str:
        """Tells the names and lengths of the files, and the size to which they are brought."""
        digest = hashlib.sha256(f"{self._size}".encode())
        for file in self._files:
            try:
                digest.update(f"\n{file} {(self._place / file).stat().st_size}".encode())
            except OSError as error:
                raise DataError(
                    f"the image {self._place / file} is no longer there ({error}): put it back, or make the source anew"
                ) from error
        return digest.hexdigest()
