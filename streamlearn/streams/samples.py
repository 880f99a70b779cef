"""Sample inputs in a picture of a stream: images, points, functions, or rows of features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from streamlearn.streams.batch import Batch
from streamlearn.streams.data import Data, JoinedData
from streamlearn.streams.grids import short
from streamlearn.streams.overview import Overview
from streamlearn.streams.partition import permutation
from streamlearn.streams.protocols.episodes import Episodes
from streamlearn.streams.stream import Stream

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Sample", "painter_for", "samples_of"]

_COLUMNS = 8
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_UNKNOWN = "0.6"
_PIXELS = 40
_POINTS, _LINES, _IMAGES, _FUNCTIONS = 150, 12, 4, 4

Rows = Data | JoinedData
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A few rows as a model would receive them.

    Args:
        title: where they are from.
        x: inputs, ``(rows, ...)``.
        y: for each row its label, or ``None`` where training sees none.
        names: for each row what its label is called.
        groups: for each row the number of the episode it is from; 0 everywhere when there are none.
        support: for each row whether it is one to learn the episode from.
    """

    title: str
    x: Array
    y: Sequence[float | None]
    names: Sequence[str]
    groups: Array
    support: Array


Painter = Callable[["Axes", Sample], None]


def painter_for(stream: Stream) -> Painter | None:
    """How sample inputs of ``stream`` are drawn; ``None`` where a picture would not tell anything."""
    shape = stream.input_shape
    regression = stream.tasks[0].kind == "regression"
    if len(shape) == 2 or (len(shape) == 3 and min(shape) > 0):
        return _images
    if shape == (1,) and regression:
        return _functions
    if shape == (2,) and not regression:
        return _points
    return _lines if len(shape) == 1 and shape[0] > 1 else None


def samples_of(stream: Stream, found: Overview, painter: Painter, seed: int) -> list[Sample]:
    """Rows of at most eight pieces of the stream: of experiences at even steps, or, of a few, of each role and domain.

    The random draws of an augmentation are not taken from the caller's generator.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [_sample(stream, data, title, painter, seed) for title, data in _pieces(stream, found)]


def _pieces(stream: Stream, found: Overview) -> list[tuple[str, Rows]]:
    numbers = [found.experiences[k].index for k in _spread(len(found.experiences), _COLUMNS)]
    whole = {i: stream[i] for i in numbers}
    apart = [(i, role, part) for i in numbers for role, data in whole[i].data.items() for part in _by_domain(data)]
    if len(apart) <= _COLUMNS:
        return [(_title(i, role if len(whole[i].data) > 1 else "", part), part) for i, role, part in apart]
    if len(numbers) * 2 > _COLUMNS:
        return [(_title(i, "", whole[i].data[whole[i].main_role]), whole[i].data[whole[i].main_role]) for i in numbers]
    some = [apart[k] for k in _spread(len(apart), _COLUMNS)]
    return [(_title(i, role if len(whole[i].data) > 1 else "", part), part) for i, role, part in some]


def _spread(number: int, most: int) -> list[int]:
    """At most ``most`` of ``number`` places, at even steps."""
    return list(range(number)) if number <= most else [k * (number - 1) // (most - 1) for k in range(most)]


def _by_domain(data: Rows) -> list[Rows]:
    """Pieces of one domain and one set of tasks each."""
    groups: dict[object, list[Data]] = {}
    for part in data.parts():
        groups.setdefault((part.domain, part.tasks, len(part.source.name)), []).append(part)
    return [parts[0] if len(parts) == 1 else JoinedData(parts) for parts in groups.values()]


def _title(i: int, role: str, data: Rows) -> str:
    domains = {part.domain.strip("/") for part in data.parts()} - {"train"}
    tasks = {part.tasks[0].name for part in data.parts() if len(part.tasks) == 1}
    told = next(iter(domains)) if len(domains) == 1 else ""
    if not told and len(tasks) == 1 and len(data.tasks) > 1:
        told = next(iter(tasks))
    words = [word for word in dict.fromkeys((role, told)) if word]
    return short(f"{i + 1}: {', '.join(words)}", 24) if words else str(i + 1)


def _sample(stream: Stream, data: Rows, title: str, painter: Painter, seed: int) -> Sample:
    episodes = any(isinstance(part, Episodes) for part in data.parts())
    chosen = permutation(len(data), seed=seed, purpose="samples")[: _wanted(painter, episodes)]
    batch = data.batch(chosen.sort().values)
    if episodes and painter is _images:
        rows = batch.rows("support")
        batch = _rows_of(batch, torch.tensor(_spread(rows.stop - rows.start, _IMAGES)) + rows.start)
    y, names = _labels(stream, batch)
    groups, support = torch.zeros(len(batch)), torch.zeros(len(batch), dtype=torch.bool)
    order: dict[str, int] = {}
    for segment in batch.segments:
        if episodes:
            groups[segment.start : segment.stop] = order.setdefault(segment.domain, len(order))
        support[segment.start : segment.stop] = segment.role == "support"
    return Sample(title, batch.x.double().numpy(), y, names, groups.numpy(), support.numpy())


def _wanted(painter: Painter, episodes: bool) -> int:
    """How many rows, or episodes, one panel takes."""
    if painter is _images:
        return 1 if episodes else _IMAGES
    if painter is _functions and episodes:
        return _FUNCTIONS
    return _POINTS if painter in (_functions, _points) else _LINES


def _rows_of(batch: Batch, rows: Tensor) -> Batch:
    """Those rows of the only role ``support``, of which nothing but inputs and labels is asked."""
    segments = tuple(segment for segment in batch.segments if segment.role == "support")[:1]
    targets = {task: column[rows] for task, column in batch.targets.items()}
    segment = segments[0]._replace(start=0, stop=len(rows))
    return Batch(batch.x[rows], targets, dict.fromkeys(targets, slice(None)), (segment,), batch.index[rows])


def _labels(stream: Stream, batch: Batch) -> tuple[list[float | None], list[str]]:
    """For each row its visible label, of the first of its tasks that has one, and what people call it."""
    tasks = {task.name: task for task in stream.tasks}
    y: list[float | None] = [None] * len(batch)
    names = ["?"] * len(batch)
    for segment in batch.segments:
        for name in segment.tasks:
            if name not in batch.targets:
                continue
            seen, column = batch.labelled_rows(name), batch.targets[name]
            for row in range(segment.start, segment.stop):
                if seen[row] and y[row] is None:
                    value = float(column[row].reshape(-1)[0])
                    y[row], known = value, tasks[name].classes
                    names[row] = f"{value:.2g}" if tasks[name].kind == "regression" else known[int(value)] if known else str(int(value))
    return y, names


# ---------------------------------------------------------------------- painters


def _bare(axes: Axes, sample: Sample) -> None:
    axes.set_title(sample.title, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])


def _images(axes: Axes, sample: Sample) -> None:
    """Two by two images with their labels."""
    axes.imshow(_montage(sample.x), interpolation="nearest", vmin=0, vmax=1, cmap="gray")
    _bare(axes, sample)
    axes.spines[:].set_visible(False)
    look: dict[str, Any] = {"fontsize": 6.5, "ha": "left", "va": "top", "transform": axes.transAxes}
    look["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
    for k, name in enumerate(sample.names):
        axes.text(k % 2 * 0.51 + 0.01, 0.99 - k // 2 * 0.51, short(name, 9), **look)


def _montage(x: Array) -> Array:
    """Up to four images, ``(rows, channels, height, width)`` or without channels, as one of colours between 0 and 1."""
    images = x[:, None] if x.ndim == 3 else x if x.shape[1] in (1, 3) else x.mean(1, keepdims=True)
    low, high = images.min(), images.max()
    if low < 0 or high > 1:
        images = (images - low) / max(high - low, 1e-12)
    grown = max(_PIXELS // max(images.shape[2:]), 1)  # so that the gap between small images is not as wide as their pixels
    images = images.repeat(grown, 2).repeat(grown, 3)
    height, width = images.shape[2:]
    canvas = np.ones((2 * height + 1, 2 * width + 1, 3))
    for k, image in enumerate(images):
        top, left = k // 2 * (height + 1), k % 2 * (width + 1)
        canvas[top : top + height, left : left + width] = np.broadcast_to(image.transpose(1, 2, 0), (height, width, 3))
    return canvas


def _colour(label: float | None) -> str:
    return _UNKNOWN if label is None else _COLOURS[int(label) % len(_COLOURS)]


def _points(axes: Axes, sample: Sample) -> None:
    """Inputs of two values as points, coloured by class; grey and hollow where there is no label."""
    colours = [_colour(label) for label in sample.y]
    faces = ["none" if label is None else colour for label, colour in zip(sample.y, colours, strict=True)]
    axes.scatter(sample.x[:, 0], sample.x[:, 1], s=7, facecolors=faces, edgecolors=colours, linewidths=0.6)
    _bare(axes, sample)
    axes.set_aspect("equal", adjustable="box")


def _functions(axes: Axes, sample: Sample) -> None:
    """Values over inputs of one value: a curve for each episode, with dots at its support rows."""
    y = np.array([np.nan if label is None else label for label in sample.y])
    x = sample.x[:, 0]
    if not len(set(sample.groups.tolist())) > 1 and not sample.support.any():
        axes.scatter(x, y, s=7, color=_COLOURS[0])
    else:
        for number in sorted(set(sample.groups.tolist())):
            mine = np.flatnonzero(sample.groups == number)
            mine = mine[x[mine].argsort()]
            colour = _COLOURS[int(number) % len(_COLOURS)]
            axes.plot(x[mine], y[mine], color=colour, linewidth=1)
            learnt = mine[sample.support[mine].astype(bool)]
            axes.plot(x[learnt], y[learnt], "o", color=colour, markersize=3)
    axes.set_title(sample.title, fontsize=8)
    axes.tick_params(labelsize=6)


def _lines(axes: Axes, sample: Sample) -> None:
    """Rows of features as lines from the first feature to the last, coloured by class."""
    regression = any(label is not None and label != int(label) for label in sample.y)
    for row, label in zip(sample.x, sample.y, strict=True):
        axes.plot(row, color=_COLOURS[0] if regression and label is not None else _colour(label), linewidth=0.7, alpha=0.8)
    _bare(axes, sample)
