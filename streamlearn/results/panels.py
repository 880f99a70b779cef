"""The two pictures of an accuracy matrix, each drawn on one matplotlib Axes: a heat map, and curves over time.

Neither needs a legend: axes are labelled in words, what had just been trained is outlined, lines carry their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from streamlearn.results.layout import Layout
from streamlearn.results.measure import Matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

__all__ = ["curves", "heat_map"]

# Okabe and Ito 2008: told apart with every common kind of colour vision. Their yellow is left out: too pale for a line.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_NAMED = len(_COLOURS)  # with more evaluation sets, lines are shaded by age and only the first and the last are named
_ANNOTATED = 10  # cells carry numbers up to so many experiences and evaluation sets
_NAME = 16  # letters of a name in a picture


def heat_map(axes: Axes, matrix: Matrix, layout: Layout, quantity: str, *, limits: tuple[float, float]) -> AxesImage:
    """Draw the matrix: evaluation sets to the right, time downwards, undefined cells grey."""
    import matplotlib
    from matplotlib.patches import Rectangle

    most = max(layout.experiences, len(layout.learnt))
    image = axes.imshow(
        matrix, cmap=matplotlib.colormaps["cividis"], vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="nearest"
    )
    axes.set_facecolor("0.88")
    for j, i in enumerate(layout.learnt):
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="#D55E00", linewidth=2 if most <= 20 else 0.8))
    if most <= _ANNOTATED:
        _annotate(axes, matrix, limits, percent=quantity == "accuracy")
    columns, rows = _places(len(layout.learnt)), _places(layout.experiences)
    slant = _slant(columns, layout.columns)
    axes.set_xticks(columns, [_label(j, layout.columns) for j in columns], rotation=slant, ha="right" if slant else "center")
    axes.set_yticks([0, *(i + 1 for i in rows)], ["none yet", *(_label(i, layout.rows) for i in rows)])
    axes.set_xlabel(f"{quantity.replace('_', ' ')} on the test rows of {layout.belongs_to} ...")
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


def curves(axes: Axes, matrix: Matrix, layout: Layout, quantity: str, *, limits: tuple[float, float]) -> None:
    """Draw each column over time, thin until its evaluation set has been learnt (the dot), named at its end."""
    from matplotlib.ticker import PercentFormatter

    experiences, sets = layout.experiences, len(layout.learnt)
    times = np.arange(experiences + 1)
    ends: list[tuple[float, str, Any]] = []
    for j, i in enumerate(layout.learnt):
        colour = _colour(j, sets)
        width = 2.0 if sets <= _NAMED else 0.9
        axes.plot(times[: i + 1], matrix[: i + 1, j], color=colour, linewidth=width / 2, alpha=0.45)
        axes.plot(times[i:], matrix[i:, j], color=colour, linewidth=width)
        axes.plot(times[i], matrix[i, j], color=colour, marker="o", markersize=5 if sets <= _NAMED else 2.5, clip_on=False)
        measured = np.flatnonzero(~np.isnan(matrix[:, j]))
        if len(measured) and (sets <= _NAMED or j in (0, sets - 1)):
            ends.append((float(matrix[measured[-1], j]), _label(j, layout.columns), colour))
    if sets > _NAMED:
        mean = _mean_so_far(matrix, layout)
        axes.plot(times, mean, color="black", linewidth=2.5)
        if not np.isnan(mean).all():
            ends.append((float(mean[~np.isnan(mean)][-1]), "mean of those\ntrained so far", "black"))
    axes.set_ylim(*limits)
    axes.set_xlim(0, experiences)
    _name_ends(axes, ends, limits)
    axes.set_xticks([0, *(i + 1 for i in _places(experiences))])
    dot = "own experience has just been trained" if layout.square else "evaluation set has just been learnt"
    axes.set_xlabel(f"number of experiences trained\n(a dot: the line's {dot})")
    axes.set_ylabel(quantity.replace("_", " ") + " on its test rows")
    if quantity == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.spines[["top", "right"]].set_visible(False)


def _mean_so_far(matrix: Matrix, layout: Layout) -> Matrix:
    """The mean over the sets that have been learnt, at each row; NaN while there is none."""
    learnt = np.asarray(layout.learnt) <= np.arange(len(matrix))[:, None]
    return np.array([row[known].mean() if known.any() else np.nan for row, known in zip(matrix, learnt, strict=True)])


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


def _colour(j: int, sets: int) -> Any:
    if sets <= _NAMED:
        return _COLOURS[j]
    import matplotlib

    return matplotlib.colormaps["cividis"](0.8 * j / (sets - 1))


def _places(number: int) -> list[int]:
    """Those of ``number`` experiences or evaluation sets whose number is written on an axis: all, or about ten at even steps."""
    if number <= 12:
        return list(range(number))
    step = next(size for power in count() for size in (5 * 10**power, 10 * 10**power, 20 * 10**power) if number / size <= 12)
    return list(range(step - 1, number, step))


def _label(j: int, names: Sequence[str]) -> str:
    name = names[j] if j < len(names) and len(names) <= _ANNOTATED else ""
    if len(name) > _NAME:
        name = name[: _NAME - 1] + "…"
    return f"{j + 1}: {name}" if name else str(j + 1)


def _slant(columns: Sequence[int], names: Sequence[str]) -> int:
    return 35 if sum(len(_label(j, names)) for j in columns) > 40 else 0
