"""Grids of a picture of a stream: experiences to the right, classes, tasks, domains or evaluation sets downwards, a shade for rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from streamlearn.streams.overview import Amount, Overview, RoleOverview, SetOverview
from streamlearn.streams.task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Grid", "counted", "draw_grid", "grids_of", "places", "short"]

_LABELLED, _UNLABELLED, _EVALUATED = "#0072B2", "#E69F00", "#009E73"  # Okabe and Ito 2008
_EMPTY = "#F4F4F4"
_PALEST = 0.22  # of the hue of a cell with hardly any rows
_FINE = 8  # steps in which the share of labelled rows of a cell is shown
_BANDS = 120  # with more classes, neighbours share a line
_ANNOTATED = 150  # cells carry numbers up to so many
_NO_LABEL = "no label"
_NAME = 18  # letters of a name in a picture


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """What one grid shows.

    Args:
        title: what its lines are.
        names: of its lines.
        rows: how many rows there are, ``(lines, experiences)``.
        labelled: how many of them carry a label, of the same shape.
        evaluated: whether these are rows for evaluation.
    """

    title: str
    names: Sequence[str]
    rows: np.ndarray[Any, np.dtype[np.int64]]
    labelled: np.ndarray[Any, np.dtype[np.int64]]
    evaluated: bool = False

    @property
    def darkest(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """For each line how many rows are shown darkest: lines of classes and of rows without a label are apart, ``(lines, 1)``."""
        bare = np.array([name.endswith(_NO_LABEL) for name in self.names]) & (self.title == "class")
        each = np.array([self.rows[bare == mine].max(initial=1) for mine in bare])
        return each[:, None]

    @property
    def height(self) -> float:
        """Inches that it takes."""
        return float(np.clip(0.21 * len(self.names), 0.24, 3.4))


class _Seen(NamedTuple):
    """An experience: all its roles taken together, and its evaluation sets."""

    rows: RoleOverview
    sets: tuple[int, ...]


Line = tuple[str, Callable[[_Seen], Amount]]
"""A line of a grid: its name, and how much of it there is in an experience."""


def grids_of(found: Overview) -> list[Grid]:
    """The grids that tell something about what was ``found``: one of tasks or of domains only where there are several."""
    seen = [_Seen(experience.whole, experience.sets) for experience in found.experiences]
    tasks = [(task.name, _asked_on(task.name)) for task in found.tasks]
    domains = [(name or "(unnamed)", _from_domain(name)) for name in _domains(found)]
    grids = [_grid(title, lines, seen) for title, lines in (("task", tasks), ("domain", domains)) if len(lines) > 1]
    classes = _class_lines(found.tasks, seen)
    if classes:
        grids.append(_grid("class", [line for lines in classes for line in _in_order_of_arrival(lines, seen)], seen))
    if any(experience.sets != (experience.index,) for experience in found.experiences):
        grids.append(_grid("evaluated\non", [_set_line(one) for one in found.sets], seen, evaluated=True))
    return grids


def _grid(title: str, lines: Sequence[Line], seen: Sequence[_Seen], *, evaluated: bool = False) -> Grid:
    amounts = [[amount(experience) for experience in seen] for _, amount in lines]
    rows = np.array([[one.rows for one in line] for line in amounts])
    labelled = np.array([[one.labelled for one in line] for line in amounts])
    names = [name for name, _ in lines]
    if len(names) > _BANDS:
        starts = np.linspace(0, len(names), _BANDS, endpoint=False).astype(int)
        rows, labelled, names = np.add.reduceat(rows, starts), np.add.reduceat(labelled, starts), [names[start] for start in starts]
    return Grid(title, names, rows, labelled, evaluated)


def _asked_on(task: str) -> Callable[[_Seen], Amount]:
    def amount(experience: _Seen) -> Amount:
        known = experience.rows.tasks.get(task)
        return Amount() if known is None else known.amount

    return amount


def _from_domain(name: str) -> Callable[[_Seen], Amount]:
    return lambda experience: experience.rows.domains.get(name, Amount())


def _domains(found: Overview) -> list[str]:
    """Their names, in order of arrival."""
    return list(dict.fromkeys(name for one in found.experiences for role in one.roles.values() for name in role.domains))


def _set_line(one: SetOverview) -> Line:
    rows = one.rows.amount.rows
    return one.name or str(one.index + 1), lambda experience: Amount(rows, rows) if one.index in experience.sets else Amount()


def _class_lines(every: Sequence[Task], seen: Sequence[_Seen]) -> list[list[Line]]:
    """For each classification task a line for each class, and one for the rows without a label if there are any."""
    tasks = [task for task in every if task.kind == "classification"]
    lines = []
    for task in tasks:
        prefix = f"{short(task.name, 12)}: " if len(tasks) > 1 else ""
        names = task.classes or tuple(map(str, range(task.size)))
        mine: list[Line] = [(prefix + name, _with_class(task.name, number)) for number, name in enumerate(names)]
        if any(_unlabelled(task.name)(experience).rows for experience in seen):
            mine.append((prefix + _NO_LABEL, _unlabelled(task.name)))
        lines.append(mine)
    return lines


def _with_class(task: str, number: int) -> Callable[[_Seen], Amount]:
    def amount(experience: _Seen) -> Amount:
        known = experience.rows.tasks.get(task)
        rows = 0 if known is None else known.classes.get(number, 0)
        return Amount(rows, rows)

    return amount


def _unlabelled(task: str) -> Callable[[_Seen], Amount]:
    def amount(experience: _Seen) -> Amount:
        asked = _asked_on(task)(experience)
        return Amount(asked.rows - asked.labelled, 0)

    return amount


def _in_order_of_arrival(lines: Sequence[Line], seen: Sequence[_Seen]) -> Iterator[Line]:
    """The lines of a task; classes in the order in which they come, where they do not all come alike."""
    time = np.arange(len(seen))
    rows = np.array([[amount(experience).rows for experience in seen] for _, amount in lines], dtype=float)
    met = rows.sum(1) > 0
    first = np.where(met, (rows > 0).argmax(1), len(time))
    middle = np.where(met, rows @ time / np.maximum(rows.sum(1), 1), len(time))
    last = np.array([name.endswith(_NO_LABEL) for name, _ in lines])
    keys = [key if _differs(key[met & ~last], share * len(time)) else 0 * key for key, share in ((middle, 0.1), (first, 0.05))]
    return (lines[k] for k in np.lexsort((*keys, last)))


def _differs(values: np.ndarray[Any, Any], much: float) -> bool:
    return len(values) > 1 and float(values.std()) > much


def draw_grid(axes: Axes, grid: Grid) -> None:
    """Draw ``grid``: blue cells have labels, orange ones none, and a cell of both colours has as large a share of either."""
    lines, width = grid.rows.shape
    extent = (-0.5, width - 0.5, lines - 0.5, -0.5)
    axes.imshow(_colours(grid), aspect="auto", interpolation="nearest", extent=extent)
    if width <= 60:
        axes.vlines(np.arange(width - 1) + 0.5, -0.5, lines - 0.5, colors="white", linewidth=1.5 if width <= 20 else 0.6)
    if lines <= 40:
        axes.hlines(np.arange(lines - 1) + 0.5, -0.5, width - 0.5, colors="white", linewidth=1.0 if lines <= 20 else 0.5)
    shown = places(lines, 24)
    axes.set_yticks(shown, [short(grid.names[line]) for line in shown], fontsize=8)
    axes.set_ylabel(grid.title, rotation=0, ha="right", va="center", fontsize=9, fontweight="bold")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if width <= 12 and grid.rows.size <= _ANNOTATED:
        _annotate(axes, grid)
    else:
        axes.text(1.015, 0.5, _scale(grid), transform=axes.transAxes, va="center", fontsize=8, color="0.35")


def _scale(grid: Grid) -> str:
    """What the darkest cells stand for."""
    lines = []
    for labelled in (True, False):
        rows = grid.rows[(grid.labelled > 0) == labelled]
        rows = rows[rows > 0]
        if len(rows):
            darkest = "darkest" if rows.min() < rows.max() else "each"
            lines.append(f"{darkest}: {counted(int(rows.max()))}" + ("" if labelled else "\nwithout label"))
    return "\n".join(lines)


def _colours(grid: Grid) -> np.ndarray[Any, Any]:
    """An RGB image, ``_FINE`` pixels high for each line: from below, as many are labelled as rows are."""
    rows, labelled = grid.rows, grid.labelled
    share = labelled / np.maximum(rows, 1)
    filled = np.where(labelled == rows, _FINE, np.clip(np.rint(share * _FINE), labelled > 0, _FINE - 1))
    blue = np.arange(_FINE, 0, -1)[None, :, None] <= filled[:, None, :]
    strength = (_PALEST + (1 - _PALEST) * np.sqrt(rows / grid.darkest))[:, None, :, None]
    hue = np.where(blue[..., None], _rgb(_EVALUATED if grid.evaluated else _LABELLED), _rgb(_UNLABELLED))
    image = np.where((rows > 0)[:, None, :, None], 1 - strength * (1 - hue), _rgb(_EMPTY))
    return image.reshape(-1, rows.shape[1], 3)


def _annotate(axes: Axes, grid: Grid) -> None:
    size = 7.5 if len(f"{grid.rows.max():,}") <= 6 else 6.5
    for (line, place), rows in np.ndenumerate(grid.rows):
        if rows:
            shared = 0 < grid.labelled[line, place] < rows
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6} if shared else None
            dark = not shared and rows > grid.darkest[line, 0] / 4 and (grid.evaluated or grid.labelled[line, place] * 2 > rows)
            axes.text(place, line, f"{rows:,}", ha="center", va="center", fontsize=size, color="white" if dark else "black", bbox=box)


def _rgb(colour: str) -> np.ndarray[Any, Any]:
    return np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])


def counted(rows: int) -> str:
    """How many rows, as people write it.

    Example:
        >>> counted(1), counted(60000)
        ('1 row', '60,000 rows')
    """
    return f"{rows:,} row{'' if rows == 1 else 's'}"


def places(number: int, most: int = 12) -> list[int]:
    """Those of ``number`` things that are named on an axis: all, or at most ``most`` of them at round steps.

    Example:
        >>> places(4), places(40)
        ([0, 1, 2, 3], [4, 9, 14, 19, 24, 29, 34, 39])
    """
    if number <= most:
        return list(range(number))
    step = next(size for power in count() for size in (2 * 10**power, 5 * 10**power, 10 * 10**power) if number / size <= most)
    return list(range(step - 1, number, step))


def short(name: str, letters: int = _NAME) -> str:
    """``name`` in at most so many letters, on one line, and never read as a formula.

    Example:
        >>> short("a very long name indeed", 10)
        'a very lo…'
    """
    line = " ".join(name.split())
    return (line if len(line) <= letters else line[: letters - 1] + "…").replace("$", r"\$")
