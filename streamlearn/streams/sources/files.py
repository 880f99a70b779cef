"""Finding files that the user has, in the layout that torchvision uses, and reading the formats in which images come."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamlearn.errors import ConfigurationError, DataError, MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["DataFolder", "at_least", "checked_labels", "read_idx", "read_image"]

_VARIABLE = "STREAMLEARN_DATA"


@dataclass(frozen=True, slots=True)
class DataFolder:
    """Where the files of a named source belong; make it with `DataFolder.of`.

    Args:
        source: what messages call the source.
        path: an existing folder, absolute.
        call: what downloads the files, such as ``"MNIST({root}, download=True)"`` of ``torchvision.datasets``.
    """

    source: str
    path: Path
    call: str

    @classmethod
    def of(cls, source: str, root: object, file: str, call: str) -> DataFolder:
        """The folder ``root`` if it is given, else the one that ``STREAMLEARN_DATA`` names; ``file`` is one that belongs there.

        Raises:
            ConfigurationError: ``root`` is no text.
            DataError: neither is given, or there is no such folder.

        Example:
            >>> DataFolder.of("mnist", "/no/such/folder", "MNIST/raw/train-images-idx3-ubyte", "MNIST({root}, download=True)")
            Traceback (most recent call last):
            streamlearn.errors.DataError: source 'mnist' looks for its files in /no/such/folder (given as root), which is no folder: ...
        """
        if root is not None and not isinstance(root, (str, os.PathLike)):
            raise ConfigurationError(f"source {source!r} has root={root!r}: give the name of a folder, in double quotes if need be")
        named = os.environ.get(_VARIABLE, "") if root is None else os.fspath(root)
        cure = f"laid out as torchvision does, e.g. by torchvision.datasets.{call.format(root='root')}"
        if not named:
            raise DataError(
                f"source {source!r} needs the file {file} below the folder {_VARIABLE}, which is not set: set {_VARIABLE}, or the option "
                f"root, to a folder {cure}"
            )
        path = Path(named).expanduser().resolve()
        if not path.is_dir():
            given = _VARIABLE if root is None else "root"
            raise DataError(
                f"source {source!r} looks for its files in {path} (given as {given}), which is no folder: name an existing one, {cure}"
            )
        return cls(source, path, call)

    def find(self, *places: str) -> Path:
        """The first of ``places``, below the folder, that is a file.

        Raises:
            DataError: none is.
        """
        found = self.search(*places)
        folder = next((path for place in places if (path := self.path / place).is_dir()), None)
        if found is None and folder is not None:
            raise DataError(
                f"source {self.source!r} needs a file {folder}, which is a folder: put the file itself there, out of the folder"
            )
        if found is None:
            others = f" (or {' or '.join(places[1:])})" if places[1:] else ""
            raise DataError(f"source {self.source!r} needs the file {places[0]}{others}, which is not in {self.path}: {self.cure}")
        return found

    def search(self, *places: str) -> Path | None:
        """The first of ``places`` that is a file, or ``None``."""
        return next((path for place in places if (path := self.path / place).is_file()), None)

    @property
    def cure(self) -> str:
        """What to do about a file that is not there."""
        return f"put it there, e.g. by torchvision.datasets.{self.call.format(root=repr(str(self.path)))}"


def at_least(value: object, least: int, what: str) -> int:
    """``value`` if it is a whole number of at least ``least``.

    Raises:
        DataError: it is not; ``what`` says what it was to be.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise DataError(f"{what}={value!r}: give a whole number of at least {least}")
    return int(value)


def checked_labels(labels: Tensor, classes: int, path: Path, least: int = 0) -> Tensor:
    """``labels`` as int64, if all of them are numbers from ``least`` to ``classes - 1``.

    Raises:
        DataError: one is not; its row and the file ``path`` are named.
    """
    labels = labels.long()
    strange = (labels < least) | (labels >= classes)
    if bool(strange.any()):
        row = int(strange.nonzero()[0, 0])
        raise DataError(f"{path} is damaged: label {int(labels[row])} in row {row} is not one of {least} to {classes - 1}; fetch it again")
    return labels


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
    if expected == header:
        raise DataError(f"{path} holds nothing (its header announces {' by '.join(map(str, sizes))} values): fetch it again")
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


def read_image(file: str | Path | BinaryIO, what: str, mode: str, size: int, filtered: str = "BILINEAR") -> NDArray[np.uint8]:
    """One image, converted and resized to a square with antialiasing.

    Args:
        file: the file, or its content.
        what: what messages call it.
        mode: ``"L"`` (grey, result ``(size, size)``) or ``"RGB"`` (result ``(size, size, 3)``).
        size: of the result, at least 1.
        filtered: the name of one of Pillow's filters.

    Raises:
        DataError: it cannot be read as an image.
        MissingExtraError: Pillow is not installed.
    """
    pillow = _pillow()
    try:
        with pillow.open(file) as image:
            plain = _eight_bits(image, pillow).convert(mode)
            if plain.size != (size, size):
                plain = plain.resize((size, size), pillow.Resampling[filtered])
            return np.array(plain)
    except Exception as error:  # what a decoder raises on rubbish differs from format to format
        raise DataError(f"{what} cannot be read as an image ({type(error).__name__}: {error}): replace it") from error


def _eight_bits(image: Image, pillow: Any) -> Image:
    """The image in a mode from which conversion loses neither levels (Pillow cuts 16 bits off at 255) nor transparency."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).clip(0, 65535) // 257
        return pillow.fromarray(levels.astype(np.uint8))  # type: ignore[no-any-return]
    if image.mode == "F":
        raise ValueError("it holds floating-point levels, of which nobody says what is white")
    return image.convert("RGBA") if "transparency" in image.info else image


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("reading images", "pillow", "vision") from error
    return Image
