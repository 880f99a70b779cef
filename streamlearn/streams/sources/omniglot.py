"""Omniglot, from its folders or from the zip archives in which they come."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from streamlearn.errors import ConfigurationError, DataError
from streamlearn.streams.sources.files import DataFolder, at_least, read_image
from streamlearn.streams.sources.tensors import TensorSource

__all__ = ["omniglot"]

_DRAWING = re.compile(r"([^/]+/[^/]+)/[^/._][^/]*_(\d\d)\.png")
_DRAWERS = 20
_PARTS = {"background": ("background",), "evaluation": ("evaluation",), "all": ("background", "evaluation")}


def omniglot(
    part: str = "background", size: int = 28, test_drawers: int = 5, root: str | None = None
) -> tuple[TensorSource, TensorSource | None]:
    """``"omniglot"``: 20 drawings, each by another person, of every character of many alphabets, x ``(rows, 1, size, size)`` in [0, 1].

    Protocol: drawers ``1`` to ``20 - test_drawers`` of every character are training rows and the others are test rows, so that both
    have all classes. Strokes are bright on a dark ground (the files have it the other way round). Classes are numbered in the order of
    their names, ``"Alphabet/character01"``, those of ``evaluation`` after those of ``background``.

    Args:
        part: ``"background"`` (964 characters of 30 alphabets), ``"evaluation"`` (659 of 20 other alphabets; the source is then called
            ``omniglot/evaluation``) or ``"all"`` (``omniglot/all``).
        size: of the images, at least 1; 105 is that of the files, others are resized with antialiasing.
        test_drawers: 0 to 19; with 0 there is no test source, and all 20 drawings are at hand, as episodes want.
        root: the folder that holds ``omniglot-py``, with the folders or the zip archives ``images_background`` and
            ``images_evaluation``; by default the one that ``STREAMLEARN_DATA`` names.

    Source: Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic program induction", Science, 2015;
        28 by 28 pixels after Vinyals et al., "Matching networks for one shot learning", NeurIPS 2016.

    Raises:
        ConfigurationError: ``part`` is another word.
        DataError: a file is missing or damaged, or a number is out of its range.
    """
    if part not in _PARTS:
        raise ConfigurationError(f"source 'omniglot' has part={part!r}: give background, evaluation or all")
    at_least(size, 1, "source 'omniglot' has size")
    if at_least(test_drawers, 0, "source 'omniglot' has test_drawers") >= _DRAWERS:
        raise DataError(f"source 'omniglot' has test_drawers={test_drawers}: there are 20 drawers, leave one or more to train on")
    place = DataFolder.of(
        "omniglot", root, "omniglot-py/images_background.zip", "Omniglot({root}, True, download=True), and again with False"
    )
    drawings = [drawing for half in _PARTS[part] for drawing in sorted(_Drawings(place, half), key=lambda drawing: drawing[:3])]
    class_names = tuple(dict.fromkeys(character for character, _, _, _ in drawings))
    numbers = {character: number for number, character in enumerate(class_names)}
    x = np.empty((len(drawings), 1, size, size), dtype=np.uint8)
    for row, (_, _, where, archive) in enumerate(drawings):
        np.subtract(255, archive.image(where, size), out=x[row, 0])
    y = torch.tensor([numbers[character] for character, _, _, _ in drawings])
    drawer = torch.tensor([number for _, number, _, _ in drawings])
    return _split(torch.from_numpy(x), y, drawer > _DRAWERS - test_drawers, part, class_names)


def _split(x: Tensor, y: Tensor, held_out: Tensor, part: str, class_names: tuple[str, ...]) -> tuple[TensorSource, TensorSource | None]:
    name = "omniglot" if part == "background" else f"omniglot/{part}"
    missing = torch.bincount(y[~held_out], minlength=len(class_names)) == 0
    if bool(missing.any()):
        character = class_names[int(missing.nonzero()[0, 0])]
        raise DataError(f"source {name!r} has no training drawing of {character}: fetch its files again, or choose fewer test_drawers")

    def rows(which: Tensor, called: str) -> TensorSource:
        return TensorSource(x[which], {"y": y[which]}, called, divide_by=255, class_names=class_names)

    if not bool(held_out.any()):
        return TensorSource(x, {"y": y}, name, divide_by=255, class_names=class_names), None
    return rows(~held_out, name), rows(held_out, f"{name}/test")


class _Drawings:
    """The drawings of one half: class, drawer, where, and this, which reads it there."""

    def __init__(self, place: DataFolder, half: str) -> None:
        self._folder = place.path / "omniglot-py" / f"images_{half}"
        self._zip: zipfile.ZipFile | None = None
        if not self._folder.is_dir():
            path = place.search(f"omniglot-py/images_{half}.zip")
            if path is None:
                raise DataError(
                    f"source 'omniglot' needs the folder omniglot-py/images_{half} (or the file omniglot-py/images_{half}.zip), which is "
                    f"not in {place.path}: {place.cure}"
                )
            self._zip = _opened(path)
            self._folder = path

    def __iter__(self) -> Iterator[tuple[str, int, str, _Drawings]]:
        found = [(match[1], int(match[2]), where, self) for where in self._places() if (match := _DRAWING.fullmatch(where))]
        if not found:
            raise DataError(f"{self._folder} holds no drawings (ALPHABET/character01/0001_01.png and so on): fetch it again")
        strange = next((where for _, drawer, where, _ in found if not 1 <= drawer <= _DRAWERS), None)
        if strange is not None:
            raise DataError(
                f"{self._folder} holds {strange}, but drawers are numbered 01 to {_DRAWERS}: remove it or fetch the folder again"
            )
        return iter(found)

    def _places(self) -> Iterator[str]:
        if self._zip is None:
            return (path.relative_to(self._folder).as_posix() for path in self._folder.glob("*/*/*.png"))
        return (name.partition("/")[2] for name in self._zip.namelist())

    def image(self, where: str, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """The drawing, dark on bright."""
        what = f"{self._folder}/{where}"
        if self._zip is None:
            return read_image(what, what, "L", size, "LANCZOS")
        try:
            content = self._zip.read(f"{self._folder.stem}/{where}")
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError, KeyError) as error:
            raise DataError(f"{what} is damaged ({error}): fetch the archive again") from error
        return read_image(io.BytesIO(content), what, "L", size, "LANCZOS")


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path} is damaged ({error}): fetch it again") from error
