"""Augmentation of training rows: random crops and flips, or any transform of the user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams.data import Data, Transform
from streamlearn.streams.experience import Experience
from streamlearn.streams.inputs import whole_number
from streamlearn.streams.operators.deriving import checked_stream, derived, map_role
from streamlearn.streams.stream import Stream

__all__ = ["CropAndFlip", "EachBatch", "EachRow", "augmented"]


def augmented(
    stream: Stream, transform: Callable[..., Any] | None = None, *, crop: int = 0, flip: bool = False, per: str = "row"
) -> Stream:
    """The same rows, changed at random each time that they are trained on; evaluation and validation stay clean.

    Protocol: rows of role ``train``, also when they are replayed, get an augmentation (`Data.augment`) before any other change of their
    inputs. ``crop=c`` pads an image with ``c`` zeros on every side and cuts an image of its own size out at a place drawn uniformly from
    the ``(2c + 1)²`` possible ones; ``flip`` mirrors it left to right with probability 1/2. Each row has draws of its own. All draws are
    from torch's global generator, which a run seeds for every update: the same seed gives the same rows, also after a resume.

    Args:
        stream: any stream; with ``crop`` or ``flip`` one of images ``(channels, height, width)``.
        transform: instead of ``crop`` and ``flip``: any callable that keeps the shape of its input, such as a transform of
            ``torchvision.transforms.v2``. What it draws must come from torch's global generator.
        crop: at least 0, below the height and the width.
        flip: whether images are mirrored.
        per: of ``transform``: ``"row"`` calls it with each input ``(channels, height, width)``; ``"batch"`` once for all ``(rows, ...)``,
            which is faster, but gives all rows of a batch the same draw where the transform draws once a call, as those of torchvision do.

    Raises:
        DataError: an argument is out of its range, nothing is asked for, or inputs are no images; in training, the transform fails or
            changes the shape.
        UnknownNameError: ``per`` is something else.

    Source: He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2 (crops of images padded by 4, and flips).

    Example:
        >>> from streamlearn.streams import class_incremental
        >>> stream = augmented(class_incremental("digits", 5), crop=1, flip=True)
        >>> stream[0].data["train"].augment
        CropAndFlip(crop=1, flip=True)
    """
    base = checked_stream(stream, "augmented")
    augment = _augmentation(transform, crop, flip, per)

    def changed(part: Data) -> Data:
        if isinstance(augment, CropAndFlip):
            augment.check(part.source.name, part.source.input_shape)
        return replace(part, augment=augment if part.augment is None else Chain(part.augment, augment))

    def experience(i: int) -> Experience:
        found = base[i]
        if "train" not in found.data:
            return found
        return replace(found, data={**found.data, "train": map_role(found.data["train"], changed)})

    experience(0)  # what is no image is told now
    told = None if transform is None else {"given by the user": True, "name": _name(transform)}
    options = {"transform": told, "crop": int(crop), "flip": bool(flip), "per": per}
    return derived(base, "augmented", options, experience=experience, length=None if base.endless else len(base))


@dataclass(frozen=True, slots=True)
class CropAndFlip:
    """A random crop of the image padded with zeros, then a random flip from left to right, drawn for each row.

    Args:
        crop: zeros on every side, at least 0.
        flip: whether to flip, with probability 1/2.

    Example:
        >>> CropAndFlip(crop=2, flip=True)(torch.ones(5, 1, 8, 8)).shape
        torch.Size([5, 1, 8, 8])
    """

    trusted: ClassVar[bool] = True

    crop: int = 0
    flip: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Images ``(rows, channels, height, width)``; same shape."""
        rows, channels, height, width = x.shape
        across, down = torch.arange(width), torch.arange(height)
        if self.flip:
            mirrored = torch.rand(rows, 1, device="cpu") < 0.5
            across = torch.where(mirrored, across.flip(0), across)
        if self.crop:
            places = torch.randint(0, 2 * self.crop + 1, (2, rows, 1), device="cpu")
            down, across = down + places[0], across + places[1]
            x = pad(x, (self.crop,) * 4)
        row, channel = torch.arange(rows).view(-1, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1)
        down, across = down.expand(rows, -1).view(rows, 1, height, 1), across.expand(rows, -1).view(rows, 1, 1, width)
        return x[row, channel, down, across]

    def check(self, source: str, shape: tuple[int, ...]) -> None:
        """Refuse inputs that are no images, or so small that nothing of them might be left.

        Raises:
            DataError: says so.
        """
        if len(shape) != 3:
            raise DataError(
                f"inputs of source {source!r} have shape {shape}, and crop and flip need images (channels, height, width): reshape them, "
                "or give a transform"
            )
        if self.crop >= min(shape[1:]):
            raise DataError(
                f"crop is {self.crop}, but images of source {source!r} are {shape[1]} by {shape[2]}: give less than {min(shape[1:])}"
            )


@dataclass(frozen=True, slots=True)
class EachRow:
    """``transform`` of each row; it must keep the shape."""

    transform: Callable[..., Any]

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` ``(rows, ...)``; same shape."""
        return torch.stack([_same_shape(self.transform, row) for row in x]) if len(x) else x


@dataclass(frozen=True, slots=True)
class EachBatch:
    """``transform`` of all rows of a batch at once; it must keep the shape."""

    transform: Callable[..., Any]

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` ``(rows, ...)``; same shape."""
        return _same_shape(self.transform, x)


@dataclass(frozen=True, slots=True)
class Chain:
    """One augmentation after another."""

    first: Transform
    second: Transform

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` ``(rows, ...)``."""
        return self.second(self.first(x))


def _augmentation(transform: object, crop: object, flip: object, per: object) -> CropAndFlip | EachRow | EachBatch:
    padding = whole_number(crop, "crop", 0)
    if not isinstance(flip, bool):
        raise DataError(f"flip is {flip!r}: give true or false")
    if per not in ("row", "batch"):
        raise UnknownNameError("unit of augmentation", str(per), ("row", "batch"))
    if transform is None:
        if not padding and not flip:
            raise DataError("augmented is asked for nothing: give crop (such as 4), flip=true, or a transform")
        if per != "row":
            raise DataError("per is 'batch', but crop and flip are drawn for each row: leave it out, or give a transform")
        return CropAndFlip(padding, flip)
    if padding or flip:
        raise DataError("a transform is given beside crop or flip: give one or the other, or augment twice")
    if not callable(transform):
        raise DataError(f"transform is {transform!r}: give a callable, such as one of torchvision.transforms.v2, or crop and flip")
    return EachRow(transform) if per == "row" else EachBatch(transform)


def _same_shape(transform: Callable[..., Any], x: Tensor) -> Tensor:
    try:
        found = transform(x)
    except Exception as error:
        raise DataError(
            f"the augmentation {_name(transform)} fails on inputs of shape {tuple(x.shape)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, Tensor) or found.shape != x.shape:
        given = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise DataError(f"the augmentation {_name(transform)} makes {given} of inputs of shape {tuple(x.shape)}: let it keep the shape")
    return found


def _name(transform: Callable[..., Any]) -> str:
    return str(getattr(transform, "__name__", type(transform).__name__))
