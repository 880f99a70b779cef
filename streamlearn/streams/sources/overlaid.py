"""Two images laid over one another, and the classes of both: MultiDigits, MultiMNIST, MultiFashion, and a mix of the latter two.

"MultiMNIST" is not one data set. `CONSTRUCTIONS` holds the two that results are published on; a row of the one is easier than of the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams.inputs import whole_number
from streamlearn.streams.sources.bundled import digits
from streamlearn.streams.sources.draws import uniform
from streamlearn.streams.sources.tensors import TensorSource
from streamlearn.streams.sources.vision import fashion_mnist, mnist

__all__ = ["CONSTRUCTIONS", "Construction", "fashion_and_mnist", "multi_digits", "multi_fashion", "multi_mnist"]

_CHUNK = 8192


@dataclass(frozen=True, slots=True)
class Construction:
    """How an overlay is made of two square images of levels, of ``side`` pixels.

    Args:
        canvas: height and width on which they are laid, the left image at the upper left corner.
        corner: row and column at which the right image begins.
        jitter: up to so many pixels, drawn for both directions alike, each image moves inwards from there: the left one down and to the
            right, the right one up and to the left.
        times: how often each image is the left one.
        distinct: whether both have different classes.
        stretched: whether an overlay is then stretched to the whole range of levels, its largest to the largest.
        resized: height and width to which it is then brought by taking the nearest pixel; ``None``: it stays.
    """

    canvas: int
    corner: int
    jitter: int = 0
    times: int = 1
    distinct: bool = False
    stretched: bool = False
    resized: int | None = None


CONSTRUCTIONS = {
    "sener": Construction(canvas=36, corner=6, stretched=True, resized=28),
    "lin": Construction(canvas=36, corner=8, jitter=4, times=2, distinct=True),
}
"""Those of MultiMNIST, by name; see `multi_mnist`."""


def multi_mnist(construction: str = "sener", seed: int = 0, root: str | None = None) -> tuple[TensorSource, TensorSource]:
    """``"multi-mnist"``: two handwritten digits laid over one another; the targets ``left`` and ``right`` are their classes.

    Protocol: the pixelwise maximum of two images of `mnist`. Training overlays are made of training images, test overlays of test images.

    - ``"sener"`` (Sener and Koltun, and after them Kurin et al.): on 36 by 36 pixels the left digit begins at (0, 0) and the right one at
      (6, 6). Row i has image i at the left and any image, drawn with replacement, at the right (so at times the same). The overlay is
      stretched, so that its brightest pixel has the level 255, and brought to 28 by 28 pixels by taking the nearest pixel, as scipy's old
      ``imresize`` did: pixel k of the result is pixel ``floor((k + 1/2) 36 / 28)``. 60,000 and 10,000 rows.
    - ``"lin"`` (Lin et al., and after them most work on Pareto fronts): on 36 by 36 pixels the left digit is moved by 0 to 4 pixels down
      and to the right of the upper left corner, the right one by 0 to 4 pixels up and to the left of the lower right corner, each
      direction drawn for itself; both are of different classes. Rows i and n + i have image i at the left: 120,000 and 20,000 rows. The
      authors give the finished images only. That moves go inwards alone is our reading of "each digit can be moved up to 4 pixels on each
      direction" within 36 pixels: if both were free to go anywhere, no image would show which digit is the left one.

    Args:
        construction: ``"sener"`` or ``"lin"``.
        seed: at least 0; of the pairs and of the moves.
        root: the folder that holds ``MNIST/raw``; by default the one that ``STREAMLEARN_DATA`` names.

    Raises:
        UnknownNameError: no construction is called so.
        DataError: a file is missing or damaged.

    Source: Sener and Koltun, "Multi-task learning as multi-objective optimization", NeurIPS 2018, section 4.1 and the authors' code; Lin,
        Zhen, Li, Zhang and Kwong, "Pareto multi-task learning", NeurIPS 2019, section 5.2; both after Sabour, Frosst and Hinton, "Dynamic
        routing between capsules", NeurIPS 2017.

    Example:
        >>> from streamlearn.streams import multitask
        >>> multitask("multi-mnist:construction=lin")  # doctest: +SKIP
        Stream('multi-mnist/lin/multitask', 1 experiences, tasks left, right)
    """
    made = _construction(construction)
    return _both("multi-mnist", construction, made, seed, lambda: mnist(root), None)


def multi_fashion(construction: str = "sener", seed: int = 0, root: str | None = None) -> tuple[TensorSource, TensorSource]:
    """``"multi-fashion"``: two garments of `fashion_mnist` laid over one another, in the constructions of `multi_mnist`.

    Args:
        construction, seed, root: as there; the folder holds ``FashionMNIST/raw``.

    Raises:
        UnknownNameError, DataError: as there.

    Source: Lin et al. 2019, as there; the first construction has been used with garments by others.
    """
    made = _construction(construction)
    return _both("multi-fashion", construction, made, seed, lambda: fashion_mnist(root), None)


def fashion_and_mnist(construction: str = "lin", seed: int = 0, root: str | None = None) -> tuple[TensorSource, TensorSource]:
    """``"fashion-and-mnist"``: a garment at the left and a handwritten digit at the right, in the constructions of `multi_mnist`.

    Classes of garments and of digits are never alike, so that any pair may come. Which of the two Lin et al. have at the left their
    images alone tell; here it is the one that the name says first.

    Args:
        construction, seed, root: as there; the folder holds ``FashionMNIST/raw`` and ``MNIST/raw``.

    Raises:
        UnknownNameError, DataError: as there.

    Source: Lin et al. 2019, as there.
    """
    made = _construction(construction)
    return _both("fashion-and-mnist", construction, made, seed, lambda: fashion_mnist(root), lambda: mnist(root))


def multi_digits(jitter: int = 1, seed: int = 0) -> tuple[TensorSource, TensorSource]:
    """``"multi-digits"``: two of scikit-learn's digits laid over one another on 12 by 12 pixels: MultiMNIST in small, without any file.

    Protocol: as the construction ``"lin"`` of `multi_mnist`, in these sizes: the pixelwise maximum of two of `digits`, 8 by 8, the left
    one moved by 0 to ``jitter`` pixels from the upper left corner, the right one by as many from the lower right one. Row i has image i
    at the left and any image, drawn with replacement, at the right. Training overlays (1,438) are made of training images, test overlays
    (359) of test images.

    Args:
        jitter: 0 to 2; with 2 both images may begin at the same pixel, and nothing then tells which is the left one.
        seed: at least 0; of the pairs and of the moves.

    Raises:
        DataError: an argument is out of its range.

    Example:
        >>> train, test = multi_digits()
        >>> train
        TensorSource('multi-digits', 1438 rows of (1, 12, 12), targets left, right)
        >>> len(test)
        359
    """
    if whole_number(jitter, "jitter", 0) > 2:
        raise DataError(f"jitter is {jitter}: give 0, 1 or 2, as the canvas is 4 pixels wider than a digit")
    made = Construction(canvas=12, corner=4, jitter=jitter)
    return _both("multi-digits", "", made, seed, digits, None, levels=16)


def _construction(name: object) -> Construction:
    if not isinstance(name, str) or name not in CONSTRUCTIONS:
        raise UnknownNameError("construction", str(name), CONSTRUCTIONS)
    return CONSTRUCTIONS[name]


Pair = tuple[TensorSource, TensorSource]


def _both(
    name: str, called: str, made: Construction, seed: int, left: Callable[[], Pair], right: Callable[[], Pair] | None, *, levels: int = 255
) -> Pair:
    """Training and test overlays; ``right`` is ``None`` where both images are of one source."""
    whole = f"{name}/{called}" if called else name
    lefts = left()
    rights = lefts if right is None else right()
    distinct = made.distinct and right is None
    train, test = (
        _overlays(f"{whole}{suffix}", f"{name} {part}", (a, b), made, seed, levels, distinct)
        for a, b, suffix, part in zip(lefts, rights, ("", "/test"), ("train", "test"), strict=True)
    )
    return train, test


def _overlays(name: str, purpose: str, given: Pair, made: Construction, seed: int, levels: int, distinct: bool) -> TensorSource:
    left, right = (source.targets["y"] for source in given)
    first = torch.arange(len(left)).repeat(made.times)
    second = _partners(purpose, seed, left[first], right, distinct)
    size = made.resized or made.canvas
    x = torch.empty(len(first), 1, size, size, dtype=torch.uint8)
    for start in range(0, len(first), _CHUNK):
        rows = slice(start, start + _CHUNK)
        a, b = (
            source.take(chosen[rows]).x.mul(levels).round_().to(torch.uint8) for source, chosen in zip(given, (first, second), strict=True)
        )
        moves = _moves(f"{purpose} moves {start}", seed, len(a), made.jitter)
        laid = torch.maximum(_laid(a, moves[0], made.canvas), _laid(b, made.corner - moves[1], made.canvas))
        x[rows] = _finished(laid, made, levels)
    return TensorSource(x, {"left": left[first], "right": right[second]}, name, divide_by=levels)


def _partners(purpose: str, seed: int, left: Tensor, right: Tensor, distinct: bool) -> Tensor:
    """For each left image the number of its right one, drawn with replacement; drawn again while it has the same class, if need be."""
    chosen = _below(f"{purpose} pairs", seed, len(left), len(right))
    again = 0
    if distinct and bool((right == right[0]).all()):
        raise DataError(f"all {len(right)} images of {purpose} are of one class, and pairs must be of two: fetch the files again")
    while distinct and bool((same := right[chosen] == left).any()):
        again += 1
        chosen[same] = _below(f"{purpose} pairs {again}", seed, int(same.sum()), len(right))
    return chosen


def _moves(purpose: str, seed: int, rows: int, jitter: int) -> Tensor:
    """Pixels inwards, ``(2 images, rows, 2 directions)``."""
    return _below(purpose, seed, 4 * rows, jitter + 1).view(2, rows, 2)


def _below(purpose: str, seed: int, count: int, limit: int) -> Tensor:
    """Whole numbers from 0 to ``limit - 1``, each as likely."""
    return torch.from_numpy((uniform(purpose, seed, count) * limit).astype("int64"))


def _laid(images: Tensor, place: Tensor, canvas: int) -> Tensor:
    """The images on dark canvases, each begun at its own row and column ``place`` ``(rows, 2)``."""
    rows, _, side, _ = images.shape
    laid = images.new_zeros(rows, 1, canvas, canvas)
    number, step = torch.arange(rows).view(-1, 1, 1), torch.arange(side)
    down, across = (place[:, axis].view(-1, 1) + step for axis in (0, 1))
    laid[number, 0, down.unsqueeze(2), across.unsqueeze(1)] = images[:, 0]
    return laid


def _finished(laid: Tensor, made: Construction, levels: int) -> Tensor:
    if made.stretched:  # halves are rounded up, and an overlay without light stays dark
        brightest = laid.flatten(1).max(1).values.clamp(min=1).view(-1, 1, 1, 1).double()
        laid = (laid.double() * (levels / brightest) + 0.5).floor().clamp(max=levels).to(torch.uint8)
    if made.resized is None:
        return laid
    return interpolate(laid.float(), size=(made.resized, made.resized), mode="nearest-exact").to(torch.uint8)
