"""A picture of a stream: what arrives when, how many rows of it, and what they look like.

matplotlib is loaded when the first picture is drawn, without pyplot or a screen.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamlearn.errors import DataError
from streamlearn.streams.grids import Grid, draw_grid, grids_of, places, short
from streamlearn.streams.inputs import whole_number
from streamlearn.streams.overview import Overview, Values, overview
from streamlearn.streams.samples import Sample, painter_for, samples_of
from streamlearn.streams.stream import Stream

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SUFFIXES", "check_picture", "draw", "picture", "write"]

SUFFIXES = (".svg", ".png", ".pdf")
_MOST, _MOST_ENDLESS = 1000, 50
_ROLES = {"train": "#0072B2", "target": "#E69F00", "validation": "#009E73"}  # Okabe and Ito 2008
_OTHERS = ("#CC79A7", "#56B4E9", "#D55E00")
_METADATA: dict[str, dict[str, str | None]] = {
    ".svg": {"Date": None, "Creator": "streamlearn"},
    ".png": {"Software": "streamlearn"},
    ".pdf": {"CreationDate": None, "Creator": "streamlearn", "Producer": "streamlearn"},
}

Panel = tuple[float, Callable[["Axes"], None]]


def draw(stream: Stream, *, samples: bool = True, seed: int = 0) -> Figure:
    """A picture of ``stream``: experiences to the right; below each other tasks, domains, classes, evaluation sets, rows, sample inputs.

    Protocol: a grid is drawn where there is something to tell: of tasks and domains where there are several, of evaluation sets where they
    are not one for each experience. The darker a cell, the more rows (as their square root); rows with a label that training sees are blue,
    those without are orange, and of those no class is told. Of more than 1,000 experiences 1,000 at even steps are shown, of an endless
    stream the first 50. Sample inputs come from at most eight experiences and are transformed and augmented as a model receives them, under
    their labels, or ``?`` where training sees none.

    Args:
        stream: any stream.
        samples: whether to show sample inputs, which have to be read; without them none are.
        seed: at least 0; of the choice of sample inputs.

    Raises:
        DataError: ``seed`` is out of its range, or an experience cannot be built.

    Example:
        >>> from streamlearn.streams import class_incremental
        >>> figure = draw(class_incremental("digits", 5), samples=False)
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['class', 'rows']
    """
    from matplotlib.figure import Figure

    seed = whole_number(seed, "seed", 0)
    found = overview(stream, most=_MOST_ENDLESS if stream.endless else _MOST)
    painter = painter_for(stream) if samples else None
    shown = samples_of(stream, found, painter, seed) if painter is not None else []
    panels = _panels(found)
    heights = [height for height, _ in panels]
    width = 3.4 + float(np.clip(0.8 * len(found.experiences), 2.2, 7.6))
    below = 1.6 if shown else 0.0
    with _house_style():
        figure = Figure(figsize=(max(width, 1.15 * len(shown)), 0.95 + sum(heights) + 0.12 * len(heights) + below), layout="constrained")
        figure.suptitle(f"{short(stream.name, 70)}: {_length(found)}", fontsize=11)
        parts: Any = figure.subfigures(2, 1, height_ratios=[sum(heights) + 0.6, below]) if shown else [figure]
        stack = parts[0].subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for axes, (_, paint) in zip(stack, panels, strict=True):
            paint(axes)
        _name_experiences(stack[-1], found)
        if painter is not None and shown:
            _paint_samples(parts[1], shown, painter)
        _settle(figure)
    return figure


def _panels(found: Overview) -> list[Panel]:
    grids = grids_of(found)
    first, last = ([(grid.height, _grid_painter(grid)) for grid in grids if grid.evaluated == late] for late in (False, True))
    values = [(1.0, _values_painter(found, task.name)) for task in found.tasks if task.kind == "regression"][:4]
    return [*first, *values, (1.1, lambda axes: _rows(axes, found)), *last]


def _grid_painter(grid: Grid) -> Callable[[Axes], None]:
    return lambda axes: draw_grid(axes, grid)


def _values_painter(found: Overview, task: str) -> Callable[[Axes], None]:
    return lambda axes: _values(axes, found, task)


def _length(found: Overview) -> str:
    if found.length is None:
        return "endless"
    return f"{found.length:,} experience{'' if found.length == 1 else 's'}"


# ---------------------------------------------------------------------- panels


def _rows(axes: Axes, found: Overview) -> None:
    """Bars of rows, stacked by role; hatched where there is no label, outlined what is scored before it is learnt from."""
    bottom = np.zeros(len(found.experiences))
    others = iter(_OTHERS * 3)
    for role in sorted(found.totals, key=lambda role: role != "train"):
        colour = _ROLES.get(role) or next(others, "0.5")
        mine = [one.roles[role].amount if role in one.roles else None for one in found.experiences]
        labelled = np.array([0 if one is None else one.labelled for one in mine])
        unlabelled = np.array([0 if one is None else one.rows - one.labelled for one in mine])
        for values, words, hatched in ((labelled, role, False), (unlabelled, f"{role}, no label", True)):
            if values.any():
                _bars(axes, values, bottom, colour, words, hatched=hatched)
                bottom = bottom + values
    scored = np.array([one.scored for one in found.experiences])
    if scored.any():
        edges = np.arange(len(scored) + 1) - 0.5
        axes.stairs(scored, edges, color="black", linewidth=1.2, linestyle=":", label="scored before\nlearnt from")
    episodes = {one.roles[role].episodes for one in found.experiences for role in one.roles}
    axes.set_ylabel("rows" if episodes == {0} else "rows of\nepisodes", rotation=0, ha="right", va="center", fontsize=9, fontweight="bold")
    axes.set_ylim(0, 1.06 * max(float(bottom.max()), float(scored.max()), 1.0))
    _quiet(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8, handlelength=1.2)


def _bars(axes: Axes, values: np.ndarray[Any, Any], bottom: np.ndarray[Any, Any], colour: str, words: str, *, hatched: bool) -> None:
    look: dict[str, Any] = {"label": words, "linewidth": 0}
    look |= {"facecolor": "white", "edgecolor": colour, "hatch": "//////"} if hatched else {"facecolor": colour}
    if len(values) <= 60:
        axes.bar(np.arange(len(values)), values, 0.86, bottom, **look)
        return
    edges = np.arange(len(values) + 1) - 0.5
    axes.fill_between(edges, np.append(bottom, bottom[-1]), np.append(bottom + values, (bottom + values)[-1]), step="post", **look)


def _values(axes: Axes, found: Overview, task: str) -> None:
    """Labels of a regression task: a dot at the mean of each output, a line from the smallest to the largest."""
    known = [_values_of(found, k, task) for k in range(len(found.experiences))]
    outputs = max((len(one.mean) for one in known if one is not None), default=0)
    shown, time = min(outputs, len(_OTHERS) + 1), np.arange(len(known))
    for output in range(shown):
        colour = ("#0072B2", *_OTHERS)[output]
        low, mean, high = (
            np.array([np.nan if one is None else getattr(one, what)[output] for one in known]) for what in ("low", "mean", "high")
        )
        place = time + 0.5 * ((output + 0.5) / shown - 0.5)
        if len(known) <= 60:
            axes.vlines(place, low, high, colors=colour, linewidth=2, alpha=0.5)
            axes.plot(place, mean, "o", color=colour, markersize=4)
        else:
            axes.fill_between(time, low, high, color=colour, alpha=0.25, linewidth=0)
            axes.plot(time, mean, color=colour, linewidth=1)
    more = f"\n({shown} of {outputs})" if outputs > shown else ""
    name = f"\nof {short(task, 14)}" if len(found.tasks) > 1 else ""
    axes.set_ylabel(f"target{name}{more}", rotation=0, ha="right", va="center", fontsize=9, fontweight="bold")
    axes.text(1.015, 0.5, "mean and range", transform=axes.transAxes, va="center", fontsize=8, color="0.35")
    axes.margins(y=0.12)
    _quiet(axes)


def _values_of(found: Overview, k: int, task: str) -> Values | None:
    known = found.experiences[k].whole.tasks.get(task)
    return None if known is None else known.values


def _quiet(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.4g}" if axes.get_ylim()[1] < 1000 else "{x:,.0f}"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _name_experiences(axes: Axes, found: Overview) -> None:
    """Numbers, and names where there is room, below the last panel."""
    count = len(found.experiences)
    shown = places(count)
    room = 20 if count <= 3 else 14 if count <= 5 else 11
    names = [f"\n{short(one.name, room)}" if count <= 8 and one.name else "" for one in found.experiences]
    axes.set_xticks(shown, [f"{found.experiences[k].index + 1:,}{names[k]}" for k in shown], fontsize=8)
    axes.set_xlim(-0.5, count - 0.5)
    part = "" if found.complete else f" (the first {count})" if found.length is None else f" ({count:,} of {found.length:,}, at even steps)"
    axes.set_xlabel(f"experience{part}", fontsize=9)


def _paint_samples(part: Any, shown: Sequence[Sample], painter: Callable[[Axes, Sample], None]) -> None:
    alike = any(sample.x.shape[1:] in ((1,), (2,)) for sample in shown)
    row = part.subplots(1, len(shown), squeeze=False, sharex=alike, sharey=alike)[0]
    for axes, sample in zip(row, shown, strict=True):
        painter(axes, sample)
    hidden = any(label is None for sample in shown for label in sample.y)
    part.supxlabel(f"samples, by experience{'; ? or grey: training sees no label' if hidden else ''}", fontsize=9)


def _settle(figure: Figure) -> None:
    """Lay ``figure`` out once and for all: the solver differs in the last bits from time to time, and those show in the bytes."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    parts: list[Any] = list(figure.subfigs)
    for part in parts:
        part.bbox_relative.set_points(part.bbox_relative.get_points().round(4))
    for part in (figure, *parts):
        for text in part.texts:
            x, y = text.get_position()
            text.set_position((round(x, 4), round(y, 4)))
    for axes in figure.axes:
        axes.set_position(np.round(axes.get_position().bounds, 4).tolist())


# ---------------------------------------------------------------------- files


def check_picture(path: str | Path) -> Path:
    """``path``, if a picture can be written there.

    Raises:
        DataError: its suffix is no kind of picture, or its folder does not exist.

    Example:
        >>> check_picture("stream.jpg")
        Traceback (most recent call last):
        ...
        streamlearn.errors.DataError: a picture cannot be written to stream.jpg: choose a name that ends in .svg, .png or .pdf
    """
    wanted = Path(path)
    if wanted.suffix.lower() not in SUFFIXES:
        raise DataError(f"a picture cannot be written to {wanted}: choose a name that ends in .svg, .png or .pdf")
    if not wanted.parent.is_dir():
        raise DataError(f"a picture cannot be written to {wanted}: there is no folder {wanted.parent}, make it first")
    return wanted


def picture(figure: Figure, kind: str = ".svg") -> bytes:
    """``figure`` as a file of kind ``".svg"``, ``".png"`` or ``".pdf"``: the same bytes each time, without a date."""
    import matplotlib

    out = io.BytesIO()
    with _house_style(), matplotlib.rc_context({"svg.hashsalt": "streamlearn"}):
        figure.savefig(out, format=kind[1:], dpi=110, metadata=_METADATA[kind])
    return out.getvalue()


def write(figure: Figure, path: str | Path) -> None:
    """Write ``figure`` to ``path``; the suffix says in which form.

    Raises:
        DataError: as `check_picture`, or the file cannot be written.
    """
    wanted = check_picture(path)
    content = picture(figure, wanted.suffix.lower())
    try:
        wanted.write_bytes(content)
    except OSError as error:
        raise DataError(f"the picture cannot be written to {wanted}: {error.strerror or error}; choose another place") from error


@contextlib.contextmanager
def _house_style() -> Iterator[None]:
    """Use the defaults of matplotlib, whatever the user's matplotlibrc says: a picture depends on the stream alone."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a class may be called anything; a box stands for the letter
        yield
