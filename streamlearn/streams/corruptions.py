"""Common corruptions of images: noise, blur and changes of light, in five severities. None of them draws.

What looks random in a corrupted image is a hash of the seed, the row and the pixel, so that a row is corrupted in the same way whenever
it is met, whatever it shares a batch with.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from streamlearn.errors import DataError, UnknownNameError

__all__ = ["KINDS", "NOISES", "Corruption", "checked_severity", "hashed_uniforms"]

NOISES = ("gaussian_noise", "shot_noise", "impulse_noise")
KINDS = (*NOISES, "defocus_blur", "motion_blur", "gaussian_blur", "brightness", "contrast", "pixelate")
"""All kinds, in the order of the paper."""

_TOLERANCE = 1e-3  # interpolation may leave [0, 1] by a rounding error
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as signed 64-bit numbers, which is how torch multiplies
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


@dataclass(frozen=True, slots=True)
class Corruption:
    """Images ``x`` in [0, 1] corrupted by one kind of noise, blur or light; the result is clipped to [0, 1].

    Constants ``c`` of severities 1 to 5: gaussian_noise ``x + c n`` (.08, .12, .18, .26, .38); shot_noise ``Poisson(c x) / c`` (60, 25,
    12, 5, 3); impulse_noise: a share c of the values becomes 0 or 1 (.03, .06, .09, .17, .27); brightness: c is added to the value of
    HSV (.1, .2, .3, .4, .5); contrast ``(x - mean) c + mean``, the mean of each image and channel (.4, .3, .2, .1, .05); pixelate:
    resized to c of the size, in whole pixels, and back (.6, .5, .4, .3, .25). Lengths in pixels, times ``max(1, shorter side / 32)``:
    defocus_blur, a disk of radius (.3, .4, .5, 1, 1.5) smoothed over 3 by 3 pixels by a Gaussian of (.4, .5, .6, .2, .1), never scaled;
    gaussian_blur, σ (.4, .6, .7, .8, 1); motion_blur, along a horizontal line, half a Gaussian of σ (1, 1.5, 2, 2.5, 3).

    Deviations: lengths are those of the authors' CIFAR-10-C, because those of the paper (ImageNet-C, 224 pixels) would wipe a small image
    out; motion has one direction, and its σ rises evenly; borders are continued by their last pixel; nothing is rounded to 8 bits or
    compressed; kinds of the paper that need other pictures or compression are left out.

    Args:
        kind: one of `KINDS`.
        severity: from 1 to 5; between whole numbers, constants are interpolated.
        seed: of the noise, at least 0.

    Raises:
        UnknownNameError: no corruption is called so.
        DataError: severity or seed is out of range; when called, ``x`` holds no floating images of 1 or 3 channels in [0, 1].

    Source: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", ICLR 2019.

    Example:
        >>> image = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])
        >>> Corruption("contrast", 1)(image).tolist()
        [[[[0.30000001192092896, 0.699999988079071], [0.5, 0.5]]]]
        >>> noisy = Corruption("gaussian_noise", 3, seed=1)(image, torch.tensor([7]))
        >>> torch.equal(noisy, Corruption("gaussian_noise", 3, seed=1)(image, torch.tensor([7])))
        True
    """

    trusted: ClassVar[bool] = True

    kind: str
    severity: float
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownNameError("corruption", self.kind, KINDS)
        checked_severity(self.severity)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise DataError(f"the seed of corruption {self.kind!r} is {self.seed!r}: give a whole number of at least 0")

    @property
    def name(self) -> str:
        """``"kind/severity"``, which names it in text."""
        return f"{self.kind}/{float(self.severity)!r}".removesuffix(".0")

    @property
    def needs_index(self) -> bool:
        """Whether it must know which rows it is given."""
        return self.kind in NOISES

    def __call__(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """Images ``(rows, channels, height, width)``, of the rows ``index`` ``(rows,)`` of their source; same shape and type."""
        _check_images(x, self.kind)
        change, table = _CHANGES[self.kind]
        constants = _interpolated(table, self.severity)
        if not self.needs_index:
            return change(x, *constants).clamp(0, 1)
        if index is None:
            raise DataError(f"corruption {self.kind!r} was called without the rows' index, which its noise is made of: pass (x, index)")
        uniforms = hashed_uniforms(f"{self.kind}/{self.seed}", index, x.shape[1:].numel()).view(x.shape).to(x.device)
        return change(x, uniforms, *constants).clamp(0, 1)


def checked_severity(value: object) -> float:
    """``value`` if it is a number from 1 to 5.

    Raises:
        DataError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= 5:
        raise DataError(f"severity is {value!r}: give a number from 1 to 5")
    return value


def hashed_uniforms(key: str, index: Tensor, size: int) -> Tensor:
    """``size`` uniform numbers in (0, 1) for each of the rows ``index``, float64, ``(rows, size)``: a hash of key, row and place.

    The same on every platform: number ``j`` of row ``i`` is ``mix(mix(i γ + key) + j γ)`` with the finaliser of splitmix64.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

    Example:
        >>> both = hashed_uniforms("toy", torch.tensor([3, 5]), 4)
        >>> torch.equal(both[1:], hashed_uniforms("toy", torch.tensor([5]), 4))
        True
    """
    start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little", signed=True)
    rows = _mixed(index.to(torch.int64) * _GOLDEN + start).unsqueeze(1)
    uniforms: Tensor = (_shifted(_mixed(rows + torch.arange(size, device=index.device) * _GOLDEN), 12).double() + 0.5) * 2.0**-52
    return uniforms


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _FIRST  # an overflow wraps around, as it must
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    shifted: Tensor = (z >> bits) & (2 ** (64 - bits) - 1)  # zeros from the left: torch repeats the sign
    return shifted


def _check_images(x: Tensor, kind: str) -> None:
    if x.dim() != 4 or x.shape[1] not in (1, 3) or not x.is_floating_point():
        found = f"{str(x.dtype).removeprefix('torch.')} inputs of shape {tuple(x.shape[1:])}"
        raise DataError(f"corruption {kind!r} needs floating images of 1 or 3 channels, (channels, height, width), and met {found}")
    low, high = (float(x.min()), float(x.max())) if x.numel() else (0.0, 1.0)
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
        raise DataError(f"corruption {kind!r} needs images in [0, 1], and met values from {low:g} to {high:g}: rescale the source")


def _interpolated(constants: tuple[tuple[float, ...], ...], severity: float) -> tuple[float, ...]:
    low = min(int(severity), 4) - 1
    share = severity - 1 - low
    if share in (0, 1):
        return constants[low + int(share)]
    return tuple(a + share * (b - a) for a, b in zip(constants[low], constants[low + 1], strict=True))


def _gaussian_noise(x: Tensor, uniforms: Tensor, scale: float) -> Tensor:
    normal: Tensor = torch.special.ndtri(uniforms)
    return x + (scale * normal).to(x.dtype)


def _shot_noise(x: Tensor, uniforms: Tensor, photons: float) -> Tensor:
    """The inverse of Poisson's distribution function, found term by term."""
    rate = x.double().clamp(0, 1) * photons
    term = torch.exp(-rate)
    total, count, number = term.clone(), torch.zeros_like(rate), 0
    while number < photons + 12 * math.sqrt(photons) + 20 and bool((above := uniforms > total).any()):  # beyond it lies nothing to speak of
        number += 1
        count += above
        total += term.mul_(rate).div_(number)
    return (count / photons).to(x.dtype)


def _impulse_noise(x: Tensor, uniforms: Tensor, share: float) -> Tensor:
    return x.masked_fill(uniforms < share / 2, 0.0).masked_fill(uniforms > 1 - share / 2, 1.0)


def _defocus_blur(x: Tensor, radius: float, smoothing: float) -> Tensor:
    return _blurred(x, _disk(radius * _scale(x), smoothing))


def _motion_blur(x: Tensor, sigma: float) -> Tensor:
    sigma = sigma * _scale(x)
    reach = math.ceil(3 * sigma)
    line = _gaussian(sigma, reach)
    line[:reach] = 0
    return _blurred(x, (line / line.sum()).unsqueeze(0))


def _gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    line = _gaussian(sigma * _scale(x), math.ceil(4 * sigma * _scale(x)))
    return _blurred(_blurred(x, line.unsqueeze(0)), line.unsqueeze(1))


def _brightness(x: Tensor, more: float) -> Tensor:
    """Hue and saturation stay, so the channels keep their ratios; black has none and becomes grey."""
    value = x.amax(1, keepdim=True)
    brighter = (value + more).clamp(max=1)
    return torch.where(value > 0, x * (brighter / value.clamp(min=torch.finfo(x.dtype).tiny)), brighter)


def _contrast(x: Tensor, share: float) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * share + mean


def _pixelate(x: Tensor, share: float) -> Tensor:
    height, width = x.shape[2:]
    small = interpolate(x, (max(1, round(height * share)), max(1, round(width * share))), mode="area")
    return interpolate(small, (height, width), mode="nearest-exact")


def _scale(x: Tensor) -> float:
    return max(1.0, min(x.shape[2:]) / 32)


def _gaussian(sigma: float, reach: int) -> Tensor:
    line = torch.exp(-torch.arange(-reach, reach + 1.0, dtype=torch.float64).square() / (2 * sigma**2))
    return line / line.sum()


def _disk(radius: float, smoothing: float) -> Tensor:
    reach = math.ceil(radius)
    squares = torch.arange(-reach, reach + 1.0, dtype=torch.float64).square()
    disk, window = ((squares.unsqueeze(0) + squares.unsqueeze(1)) <= radius**2).double(), _gaussian(smoothing, 1)
    smooth = conv2d(pad(disk / disk.sum(), (2, 2, 2, 2)).view(1, 1, 2 * reach + 5, -1), torch.outer(window, window).view(1, 1, 3, 3))
    return smooth.view(2 * reach + 3, -1)


def _blurred(x: Tensor, kernel: Tensor) -> Tensor:
    """Every channel of ``x`` correlated with ``kernel``, whose sides are odd: sums in one order, whatever else is in the batch."""
    up, left = kernel.shape[0] // 2, kernel.shape[1] // 2
    wide, total = pad(x, (left, left, up, up), mode="replicate"), torch.zeros_like(x)
    for i, j in kernel.nonzero().tolist():
        total += wide[:, :, i : i + x.shape[2], j : j + x.shape[3]] * float(kernel[i, j])
    return total


# what each kind does, and its constants for severities 1 to 5
_CHANGES: dict[str, tuple[Callable[..., Tensor], tuple[tuple[float, ...], ...]]] = {
    "gaussian_noise": (_gaussian_noise, ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,))),
    "shot_noise": (_shot_noise, ((60.0,), (25.0,), (12.0,), (5.0,), (3.0,))),
    "impulse_noise": (_impulse_noise, ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,))),
    "defocus_blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))),
    "motion_blur": (_motion_blur, ((1.0,), (1.5,), (2.0,), (2.5,), (3.0,))),
    "gaussian_blur": (_gaussian_blur, ((0.4,), (0.6,), (0.7,), (0.8,), (1.0,))),
    "brightness": (_brightness, ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,))),
    "contrast": (_contrast, ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,))),
    "pixelate": (_pixelate, ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,))),
}
