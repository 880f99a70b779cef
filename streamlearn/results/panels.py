"""The two pictures of an accuracy matrix, each drawn on one matplotlib Axes: a heat map, and curves over time.

Neither needs a legend: axes are labelled in words, what had just been trained is outlined, lines carry their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from streamlearn.results.measure import Matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

__all__ = ["curves", "heat_map"]

# Okabe and Ito 2008: told apart with every common kind of colour vision. Their yellow is left out: too pale for a line.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_NAMED = len(_COLOURS)  # with more experiences, lines are shaded by age and only the first and the last are named
_ANNOTATED = 10  # cells carry numbers up to so many experiences
_NAME = 16  # letters of a name in a picture


def heat_map(axes: Axes, matrix: Matrix, names: Sequence[str], quantity: str, *, limits: tuple[float, float]) -> AxesImage:
    """Draw the matrix: evaluation sets to the right, time downwards, undefined cells grey."""
    import matplotlib
    from matplotlib.patches import Rectangle

    experiences = matrix.shape[1]
    image = axes.imshow(
        matrix, cmap=matplotlib.colormaps["cividis"], vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="nearest"
    )
    axes.set_facecolor("0.88")
    for j in range(experiences):
        axes.add_patch(Rectangle((j - 0.5, j + 0.5), 1, 1, fill=False, edgecolor="#D55E00", linewidth=2 if experiences <= 20 else 0.8))
    if experiences <= _ANNOTATED:
        _annotate(axes, matrix, limits, percent=quantity == "accuracy")
    columns = _places(experiences)
    axes.set_xticks(
        columns, [_label(j, names) for j in columns], rotation=_slant(columns, names), ha="right" if _slant(columns, names) else "center"
    )
    rows = [0, *(j + 1 for j in columns)]
    axes.set_yticks(rows, ["none yet", *(_label(j, names) for j in columns)])
    axes.set_xlabel(f"{quantity.replace('_', ' ')} on the test rows of experience ...")
    axes.set_ylabel("after training experience ...")
    axes.tick_params(length=0)
    return image


def _annotate(axes: Axes, matrix: Matrix, limits: tuple[float, float], *, percent: bool) -> None:
    middle = sum(limits) / 2
    for (i, j), value in np.ndenumerate(matrix):
        text = (
            "no\nvalue"
            if np.isnan(value) and matrix.shape[1] <= 5
            else "–"
            if np.isnan(value)
            else f"{100 * value:.0f}"
            if percent
            else f"{value:.2g}"
        )
        colour = "0.45" if np.isnan(value) else "white" if value < middle else "black"
        axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=7 if np.isnan(value) else 9)


def curves(axes: Axes, matrix: Matrix, names: Sequence[str], quantity: str, *, limits: tuple[float, float]) -> None:
    """Draw each column over time, thin until its experience is trained (the dot), named at its end."""
    from matplotlib.ticker import PercentFormatter

    experiences = matrix.shape[1]
    times = np.arange(experiences + 1)
    ends: list[tuple[float, str, Any]] = []
    for j in range(experiences):
        colour = _colour(j, experiences)
        width = 2.0 if experiences <= _NAMED else 0.9
        axes.plot(times[: j + 2], matrix[: j + 2, j], color=colour, linewidth=width / 2, alpha=0.45)
        axes.plot(times[j + 1 :], matrix[j + 1 :, j], color=colour, linewidth=width)
        axes.plot(times[j + 1], matrix[j + 1, j], color=colour, marker="o", markersize=5 if experiences <= _NAMED else 2.5, clip_on=False)
        measured = np.flatnonzero(~np.isnan(matrix[:, j]))
        if len(measured) and (experiences <= _NAMED or j in (0, experiences - 1)):
            ends.append((float(matrix[measured[-1], j]), _label(j, names), colour))
    if experiences > _NAMED:
        mean = np.array([np.nan, *(matrix[i, :i].mean() for i in range(1, experiences + 1))])
        axes.plot(times, mean, color="black", linewidth=2.5)
        if not np.isnan(mean[1:]).all():
            ends.append((float(mean[~np.isnan(mean)][-1]), "mean of those\ntrained so far", "black"))
    axes.set_ylim(*limits)
    axes.set_xlim(0, experiences)
    _name_ends(axes, ends, limits)
    axes.set_xticks([0, *(j + 1 for j in _places(experiences))])
    axes.set_xlabel("number of experiences trained\n(a dot: the line's own experience has just been trained)")
    axes.set_ylabel(quantity.replace("_", " ") + " on its test rows")
    if quantity == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.spines[["top", "right"]].set_visible(False)


def _name_ends(axes: Axes, ends: Sequence[tuple[float, str, Any]], limits: tuple[float, float]) -> None:
    """Write each name beside the end of its line, moved up or down just enough not to cover another."""
    span = limits[1] - limits[0]
    gap = 0.062 * span
    ends = sorted(ends, key=lambda end: end[0])
    heights = [2 * gap if "\n" in text else gap for _, text, _ in ends]
    places = _spread([value for value, _, _ in ends], heights, limits)
    for (value, text, colour), place in zip(ends, places, strict=True):
        axes.annotate(
            text,
            xy=(1.0, (value - limits[0]) / span),
            xytext=(1.035, (place - limits[0]) / span),
            xycoords="axes fraction",
            color=colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)},
        )


def _spread(values: Sequence[float], heights: Sequence[float], limits: tuple[float, float]) -> list[float]:
    """Places around the ascending ``values``, neighbours at least the mean of their heights apart, within ``limits`` if they fit."""
    gaps = [(low + high) / 2 for low, high in pairwise(heights)]
    up, down = _pushed_up(values, gaps), _pushed_down(values, gaps)
    places = [(a + b) / 2 for a, b in zip(up, down, strict=True)]  # the mean of two placements without overlap has none either
    return _pushed_up([max(place, limits[0]) for place in _pushed_down([min(place, limits[1]) for place in places], gaps)], gaps)


def _pushed_up(values: Sequence[float], gaps: Sequence[float]) -> list[float]:
    places = list(values)
    for k, gap in enumerate(gaps, start=1):
        places[k] = max(places[k], places[k - 1] + gap)
    return places


def _pushed_down(values: Sequence[float], gaps: Sequence[float]) -> list[float]:
    return [-place for place in reversed(_pushed_up([-value for value in reversed(values)], gaps[::-1]))]


def _colour(j: int, experiences: int) -> Any:
    if experiences <= _NAMED:
        return _COLOURS[j]
    import matplotlib

    return matplotlib.colormaps["cividis"](0.8 * j / (experiences - 1))


def _places(experiences: int) -> list[int]:
    """The experiences whose number is written on an axis: all, or about ten at even steps."""
    if experiences <= 12:
        return list(range(experiences))
    step = next(size for power in count() for size in (5 * 10**power, 10 * 10**power, 20 * 10**power) if experiences / size <= 12)
    return list(range(step - 1, experiences, step))


def _label(j: int, names: Sequence[str]) -> str:
    name = names[j] if j < len(names) and len(names) <= _ANNOTATED else ""
    if len(name) > _NAME:
        name = name[: _NAME - 1] + "…"
    return f"{j + 1}: {name}" if name else str(j + 1)


def _slant(columns: Sequence[int], names: Sequence[str]) -> int:
    return 35 if sum(len(_label(j, names)) for j in columns) > 40 else 0
