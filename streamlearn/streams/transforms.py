"""Changes of the input that make domains out of one data set. Each looks at a whole batch and draws nothing."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams.data import Source, Transform
from streamlearn.streams.inputs import Inputs, count_experiences
from streamlearn.streams.partition import permutation

__all__ = ["Domain", "Permutation", "Resize", "Rotation", "domain_transforms", "transformed_shape"]

Domain = tuple[str, Transform | None]
"""The name of a domain, and what is done to its inputs (``None``: nothing)."""


@dataclass(frozen=True, slots=True)
class Permutation:
    """``x[:, π]`` on the flattened input, with ``π`` the permutation numbered ``number`` of ``seed``.

    Keeps two numbers, not ``π``: a thousand of these weigh nothing until they are used.

    Args:
        seed: of the family of permutations.
        number: which of the family.

    Example:
        >>> x = torch.arange(4.0).reshape(1, 2, 2)
        >>> Permutation(seed=0, number=1)(x).flatten().tolist()
        [0.0, 3.0, 1.0, 2.0]
    """

    seed: int
    number: int

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` ``(rows, ...)`` with the values of every row in another order; same shape."""
        flat = x.flatten(1)
        order = _pixel_order(flat.shape[1], self.seed, self.number)
        return flat.index_select(1, order.to(x.device)).reshape(x.shape)


@dataclass(frozen=True, slots=True)
class Rotation:
    """Images turned anti-clockwise about their centre by ``angle`` degrees: bilinear, black beyond the border.

    Args:
        angle: in degrees; 0 gives the images back untouched.

    Example:
        >>> image = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 1, 2, 2)
        >>> Rotation(90)(image).round(decimals=3)
        tensor([[[[2., 4.],
                  [1., 3.]]]])
    """

    angle: float

    def __call__(self, x: Tensor) -> Tensor:
        """Images ``(rows, channels, height, width)``, floating; same shape."""
        if self.angle % 360 == 0:
            return x
        grid = _grid(self.angle, x.shape[2], x.shape[3]).to(x.device, x.dtype)
        return grid_sample(x, grid.expand(len(x), -1, -1, -1), mode="bilinear", padding_mode="zeros", align_corners=False)


@dataclass(frozen=True, slots=True)
class Resize:
    """Images of another size: every new pixel is the mean of the area that it covers.

    Args:
        height, width: of the result, in pixels.

    Example:
        >>> Resize(1, 2)(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])).tolist()
        [[[[2.0, 3.0]]]]
    """

    height: int
    width: int

    def __call__(self, x: Tensor) -> Tensor:
        """Images ``(rows, channels, ...)``, floating, to ``(rows, channels, height, width)``."""
        return interpolate(x, (self.height, self.width), mode="area")


@functools.lru_cache(maxsize=256)
def _pixel_order(size: int, seed: int, number: int) -> Tensor:
    return permutation(size, seed=seed, purpose="pixels", number=number)


@functools.lru_cache(maxsize=256)
def _grid(angle: float, height: int, width: int) -> Tensor:
    """Where each pixel of the turned image comes from. Coordinates run from -1 to 1 on both axes, hence the ratio."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    theta = torch.tensor([[[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]]])
    return affine_grid(theta, [1, 1, height, width], align_corners=False)


def domain_transforms(
    transform: str | Sequence[Transform], experiences: int | None, inputs: Inputs, *, degrees: float, first_identity: bool
) -> tuple[Domain, ...]:
    """The domain of each experience, as `domain_incremental` documents them.

    Raises:
        DataError: an option is out of its range, or the inputs cannot be transformed so.
        UnknownNameError: no transform is called so.
    """
    if isinstance(degrees, bool) or not isinstance(degrees, (int, float)) or not 0 < degrees <= 360:
        raise DataError(f"degrees is {degrees!r}: give a number above 0, at most 360")
    if not isinstance(transform, str):
        return _given(transform, experiences)
    count = count_experiences(experiences, 5)
    if transform == "permutation":
        kept = 1 if first_identity else 0
        return tuple((f"permutation/{i}", None if i < kept else Permutation(inputs.seed, i)) for i in range(count))
    if transform != "rotation":
        raise UnknownNameError("transform", transform, ["permutation", "rotation"])
    _check_images(inputs.train.source)
    angles = [degrees * i / count for i in range(count)]
    return tuple((f"rotation/{angle:g}", Rotation(angle) if angle else None) for angle in angles)


def transformed_shape(domains: Sequence[Domain], source: Source) -> tuple[int, ...]:
    """Shape of one input after any of the transforms, found by trying those we did not write on one row.

    Raises:
        DataError: two transforms give different shapes, or one fails.
    """
    shapes = {source.input_shape: "no transform"} if any(_keeps_shape(change) for _, change in domains) else {}
    foreign = [(name, change) for name, change in domains if change is not None and not _keeps_shape(change)]
    row = source.take(torch.tensor([0])).x if foreign else None
    for name, change in foreign:
        try:
            shapes.setdefault(tuple(change(row)[0].shape), name)  # type: ignore[arg-type]  # there is a row if there is a transform
        except Exception as error:
            raise DataError(
                f"the transform {name!r} fails on inputs of shape {source.input_shape}: {type(error).__name__}: {error}"
            ) from error
    if len(shapes) > 1:
        found = ", ".join(f"{shape} ({name})" for shape, name in shapes.items())
        raise DataError(f"the transforms give inputs of different shapes, {found}: let all give the same")
    return next(iter(shapes))


def _keeps_shape(change: Transform | None) -> bool:
    return change is None or isinstance(change, (Permutation, Rotation))


def _given(transforms: Sequence[Transform], experiences: int | None) -> tuple[Domain, ...]:
    if not isinstance(transforms, Sequence) or not transforms:
        raise DataError(f"transform is {transforms!r}: give 'permutation', 'rotation' or a list of callables, one for each experience")
    count = count_experiences(experiences, len(transforms))
    if len(transforms) != count:
        raise DataError(f"transform lists {len(transforms)} callables but {count} experiences are asked for: leave experiences out")
    strange = next((i for i, change in enumerate(transforms) if not callable(change)), None)
    if strange is not None:
        raise DataError(f"transform {strange} is {transforms[strange]!r}: give callables that map (rows, ...) to (rows, ...)")
    return tuple((f"transform/{i}", change) for i, change in enumerate(transforms))


def _check_images(source: Source) -> None:
    x = source.take(torch.tensor([0])).x
    if x.dim() != 4 or not x.is_floating_point():
        kind = str(x.dtype).removeprefix("torch.")
        raise DataError(
            f"rotation needs floating images of shape (channels, height, width), and source {source.name!r} has {kind} inputs of shape "
            f"{tuple(x.shape[1:])}: reshape them, or use transform='permutation'"
        )
