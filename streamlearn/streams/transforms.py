"""Changes of the input that make domains out of one data set. Each looks at a whole batch and draws nothing."""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams.corruptions import KINDS, Corruption
from streamlearn.streams.data import Source, Transform
from streamlearn.streams.partition import permutation

__all__ = [
    "EXAMPLES", "Domain", "Permutation", "Resize", "Rotation", "check_images", "described_transforms", "family_permutation",
    "listed_transforms", "named_transform", "transformed_shape",
]  # fmt: skip

Domain = tuple[str, Transform | None]
"""The name of a domain, and what is done to its inputs (``None``: nothing)."""

EXAMPLES = "'identity', 'rotation/30', 'permutation/7', 'gaussian_noise/3'"


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

    trusted: ClassVar[bool] = True

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

    trusted: ClassVar[bool] = True

    angle: float

    def __call__(self, x: Tensor) -> Tensor:
        """Images ``(rows, channels, height, width)``, floating; same shape."""
        if self.angle % 360 == 0:
            return x
        grid = _grid(self.angle, x.shape[2], x.shape[3]).to(x.device, x.dtype)
        return grid_sample(x, grid.expand(len(x), -1, -1, -1), mode="bilinear", padding_mode="zeros", align_corners=False)


@dataclass(frozen=True, slots=True)
class Resize:
    """Images of another size: every new pixel is the mean of the area that it covers. Grey ones may get more channels, all alike.

    Args:
        height, width: of the result, in pixels.
        channels: of the result; ``None`` keeps them.

    Example:
        >>> Resize(1, 2)(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])).tolist()
        [[[[2.0, 3.0]]]]
    """

    trusted: ClassVar[bool] = True

    height: int
    width: int
    channels: int | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Images ``(rows, channels, ...)``, floating, to ``(rows, channels, height, width)``."""
        resized = interpolate(x, (self.height, self.width), mode="area")
        return resized if self.channels is None else resized.expand(-1, self.channels, -1, -1).contiguous()


class _Orders:
    """The permutations used last, in one block: many small tensors, made between large batches, would keep their freed memory apart."""

    def __init__(self, size: int) -> None:
        self._block = torch.empty(max(8, min(256, 2**21 // size)), size, dtype=torch.int64)
        self._places: OrderedDict[tuple[int, int], int] = OrderedDict()

    def of(self, seed: int, number: int) -> Tensor:
        """The permutation, to be used at once: the next ones may take its place."""
        place = self._places.pop((seed, number), None)
        if place is None:
            full = len(self._places) == len(self._block)
            place = self._places.popitem(last=False)[1] if full else len(self._places)
            self._block[place] = permutation(self._block.shape[1], seed=seed, purpose="pixels", number=number)
        self._places[seed, number] = place
        return self._block[place]


_ORDERS: dict[int, _Orders] = {}


def _pixel_order(size: int, seed: int, number: int) -> Tensor:
    if size not in _ORDERS:
        _ORDERS[size] = _Orders(size)
    return _ORDERS[size].of(seed, number)


@functools.lru_cache(maxsize=256)
def _grid(angle: float, height: int, width: int) -> Tensor:
    """Where each pixel of the turned image comes from. Coordinates run from -1 to 1 on both axes, hence the ratio."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    theta = torch.tensor([[[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]]])
    return affine_grid(theta, [1, 1, height, width], align_corners=False)


family_permutation = functools.lru_cache(maxsize=4096)(Permutation)  # one object each: rows of one domain melt into one piece


def named_transform(text: str, *, seed: int, severity: float = 3) -> Domain:
    """The transform that ``text`` names, under its canonical name.

    Args:
        text: ``"identity"``, ``"rotation/DEGREES"``, ``"permutation/NUMBER"``, or a kind of `Corruption`, alone or ``"KIND/SEVERITY"``.
        seed: of permutations and of noise.
        severity: of a corruption that names none.

    Raises:
        UnknownNameError: no transform is called so.
        DataError: its number is missing or out of range.

    Example:
        >>> named_transform("rotation/30.0", seed=0)
        ('rotation/30', Rotation(angle=30.0))
        >>> named_transform("contrast", seed=0)
        ('contrast/3', Corruption(kind='contrast', severity=3, seed=0))
    """
    kind, _, number = text.partition("/")
    if kind not in (*KINDS, "identity", "rotation", "permutation"):
        raise UnknownNameError("transform", kind, [*KINDS, "identity", "rotation", "permutation"])
    if kind in KINDS:
        corruption = Corruption(kind, _number(text, number) if number else severity, seed)
        return corruption.name, corruption
    if kind == "identity":
        return kind, None
    if kind == "rotation":
        angle = _number(text, number)
        return f"rotation/{angle!r}".removesuffix(".0"), Rotation(angle)
    if not number.isdecimal():
        raise DataError(f"the transform {text!r} names no permutation: write its number, of at least 0, as in 'permutation/7'")
    return f"permutation/{int(number)}", family_permutation(seed, int(number))


def _number(text: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"the transform {text!r} has no number after its name: write one, as in {EXAMPLES}")
    return value


def listed_transforms(listed: Sequence[str | Transform], source: Source, what: str, *, seed: int, severity: float) -> tuple[Domain, ...]:
    """The domain that each item of ``listed`` makes of ``source``: names as in `named_transform`, and callables.

    Raises:
        DataError: an item is neither, or ``source`` holds no images where it must; says which ``what`` it is.
    """
    found: list[Domain] = []
    for i, item in enumerate(listed):
        try:
            found.append(named_transform(item, seed=seed, severity=severity) if isinstance(item, str) else (f"{what}/{i}", item))
        except UnknownNameError as error:
            raise DataError(
                f"{what} {i} is {item!r}: give callables that map (rows, ...) to (rows, ...), or names such as {EXAMPLES} ({error})"
            ) from None
        if not isinstance(item, str) and not callable(item):
            raise DataError(f"{what} {i} is {item!r}: give callables that map (rows, ...) to (rows, ...), or names such as {EXAMPLES}")
    imaging = next((name for name, change in found if isinstance(change, (Rotation, Corruption))), None)
    if imaging is not None:
        check_images(source, imaging, channels=(1, 3) if any(isinstance(change, Corruption) for _, change in found) else None)
    return tuple(found)


def described_transforms(listed: Sequence[str | Transform], domains: Sequence[Domain]) -> Any:
    """What a description says of listed transforms: their names, which bring them back, unless the user gave objects."""
    names = [name for name, _ in domains]
    return names if all(isinstance(item, str) for item in listed) else {"given by the user": True, "transforms": names}


def transformed_shape(domains: Sequence[Domain], source: Source) -> tuple[int, ...]:
    """Shape of one input after any of the transforms, found by trying those we did not write on one row.

    Raises:
        DataError: two transforms give different shapes, or one fails.
    """
    shapes = {source.input_shape: "no transform"} if any(_keeps_shape(change) for _, change in domains) else {}
    foreign = [(name, change) for name, change in domains if change is not None and not _keeps_shape(change)]
    first = torch.tensor([0])
    row = source.take(first).x if foreign else None
    for name, change in foreign:
        try:
            changed = change(row, first) if getattr(change, "needs_index", False) else change(row)
            shapes.setdefault(tuple(changed[0].shape), name)
        except Exception as error:
            raise DataError(
                f"the transform {name!r} fails on inputs of shape {source.input_shape}: {type(error).__name__}: {error}"
            ) from error
    if len(shapes) > 1:
        found = ", ".join(f"{shape} ({name})" for shape, name in shapes.items())
        raise DataError(f"the transforms give inputs of different shapes, {found}: let all give the same")
    return next(iter(shapes))


def _keeps_shape(change: Transform | None) -> bool:
    return change is None or isinstance(change, (Permutation, Rotation, Corruption))


def check_images(source: Source, what: str, *, channels: Sequence[int] | None = None) -> None:
    """Refuse inputs of ``source`` that are no floating images, of any of the numbers of ``channels`` where given.

    Raises:
        DataError: they are not; says that ``what`` needs them.
    """
    x = source.take(torch.tensor([0])).x
    if x.dim() != 4 or not x.is_floating_point() or (channels is not None and x.shape[1] not in channels):
        kind = str(x.dtype).removeprefix("torch.")
        of = "" if channels is None else f" with {' or '.join(map(str, channels))} channels"
        raise DataError(
            f"{what} needs floating images of shape (channels, height, width){of}, and source {source.name!r} has {kind} inputs of shape "
            f"{tuple(x.shape[1:])}: reshape them, or use permutations"
        )
