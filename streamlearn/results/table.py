"""A run, or several, as plain text of at most 100 columns: for a terminal, a log file or an issue."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from streamlearn.errors import ConfigurationError
from streamlearn.results.measure import Matrix, Measure

if TYPE_CHECKING:
    from rich.table import Table

    from streamlearn.results.result import Result

__all__ = ["WIDTH", "compare_table", "fit", "matrix_table", "metrics_table"]

WIDTH = 100
_SHOWN = 10  # columns of a matrix, and one row more; of a longer one the middle is left out
_CELL = 8  # columns of text for a number
_CORNER = "trained so far"
_KEY = "[ ] the experience just trained    - undefined or not measured"


def matrix_table(matrix: Matrix, names: Sequence[str], quantity: str = "accuracy") -> str:
    """The matrix, rows in time, with brackets around what had just been trained.

    Args:
        matrix: shape ``(T + 1, T)``; accuracies are written as percentages, anything else as it is.
        names: of the ``T`` experiences; may be empty.
        quantity: what the entries are.

    Example:
        >>> print(matrix_table(np.array([[0.5, 0.5], [1.0, 0.5], [0.6, np.nan]]), ["zeros and ones", "twos"]))
        accuracy in % on the test rows of each experience
        [ ] the experience just trained    - undefined or not measured
        <BLANKLINE>
        trained so far           exp. 1  exp. 2
        ---------------------------------------
        before training           50.0    50.0
        after 1: zeros and ones [100.0]   50.0
        after 2: twos             60.0      [-]
    """
    experiences = matrix.shape[1]
    percent = quantity == "accuracy"
    columns, rows = _selection(experiences, _SHOWN), _selection(experiences + 1, _SHOWN + 1)
    room = WIDTH - _CELL * len(columns)
    titles = ["..." if i is None else textwrap.shorten(_row_name(i, names), room, placeholder="...") for i in rows]
    left = max(map(len, [*titles, _CORNER]))
    lines = [_CORNER.ljust(left) + "".join(f"{'...' if j is None else f'exp. {j + 1}':>{_CELL}}" for j in columns)]
    lines.append("-" * len(lines[0]))
    for title, i in zip(titles, rows, strict=True):
        shown = ("" if i is None or j is None else _cell(matrix[i, j], just_trained=i == j + 1, percent=percent) for j in columns)
        lines.append(title.ljust(left) + "".join(f"{cell:>{_CELL}}" for cell in shown))
    head = [f"{quantity.replace('_', ' ')}{' in %' if percent else ''} on the test rows of each experience", _KEY]
    if None in columns:
        head.append(f"{experiences} experiences: the middle ones are left out here, the matrix itself has them all")
    return "\n".join(line.rstrip() for line in [*head, "", *lines])


def metrics_table(measures: Mapping[str, Measure]) -> str:
    """Each metric in percent with the formula it stands for; an undefined one with the reason.

    Example:
        >>> print(metrics_table({"acc": Measure("acc", 0.5, "mean", "X 2020"), "f": Measure("f", None, "mean", "X 2020", "too short")}))
        | metric |   in % | definition           |
        |--------|--------|----------------------|
        | acc    |  50.00 | mean [X 2020]        |
        | f      |      - | undefined: too short |
    """
    table = _table("metric", "  in %", "definition", right=(1,))
    for name, measure in measures.items():
        text = f"undefined: {measure.reason}" if measure.value is None else f"{measure.formula} [{measure.source}]"
        table.add_row(name.replace("_", " "), _percent(measure), text)
    return _text(table)


def compare_table(results: Mapping[str, Result]) -> str:
    """Strategies side by side: a row for each, a column for each metric, in percent.

    Args:
        results: runs by the name under which they are shown.

    Raises:
        ConfigurationError: ``results`` is empty.
    """
    if not results:
        raise ConfigurationError("there is no result to compare: give at least one, {'name': result}")
    metrics = {name: result.metrics for name, result in results.items()}
    every = list(next(iter(metrics.values())))
    defined = [key for key in every if any(measures[key].value is not None for measures in metrics.values())]
    table = _table("strategy", *(key.replace("_", " ") for key in defined))
    for name, measures in metrics.items():
        table.add_row(name, *(_percent(measures[key]) for key in defined))
    _set_widths(table, max(map(len, metrics)))
    notes = []
    for key in every:
        reasons: dict[str | None, list[str]] = {}
        for name, measures in metrics.items():
            reasons.setdefault(measures[key].reason, []).append(name)
        for reason, names in reasons.items():
            whose = "" if len(names) == len(metrics) else f" of {', '.join(names)}"
            notes += [] if reason is None else [f"{key.replace('_', ' ')}{whose} is undefined: {reason}"]
    head = "in %; higher is better, except forgetting (lower is better)"
    return "\n".join([head, "", _text(table), *[""][: len(notes)], *(fit(note) for note in notes)])


def fit(text: str) -> str:
    """``text`` with lines longer than the width wrapped."""
    lines = (textwrap.wrap(line, WIDTH, subsequent_indent="  ") if len(line) > WIDTH else [line] for line in text.splitlines())
    return "\n".join(part for parts in lines for part in parts)


def _selection(count: int, most: int) -> list[int | None]:
    """The numbers to show, with ``None`` for the gap."""
    if count <= most:
        return list(range(count))
    half = (most - 1) // 2
    return [*range(half), None, *range(count - half, count)]


def _row_name(i: int, names: Sequence[str]) -> str:
    name = names[i - 1] if 0 < i <= len(names) else ""
    return "before training" if i == 0 else f"after {i}: {name}" if name else f"after {i}"


def _cell(value: float, *, just_trained: bool, percent: bool) -> str:
    text = "-" if np.isnan(value) else f"{100 * value:.1f}" if percent else f"{value:.4g}"
    return f"[{text}]" if just_trained else f"{text} "


def _percent(measure: Measure) -> str:
    return "-" if measure.value is None else f"{100 * measure.value:.2f}"


def _table(first: str, *others: str, right: Sequence[int] | None = None) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.MARKDOWN, show_edge=True, safe_box=True)
    table.add_column(first, overflow="fold", no_wrap=False)
    for number, name in enumerate(others, start=1):
        numeric = right is None or number in right
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    return table


def _set_widths(table: Table, longest: int) -> None:
    """Numbers as narrow as the words above them; the rest of the width is for the names in the first column."""
    for column in table.columns[1:]:
        column.width = max(7, *(len(word) for word in str(column.header).split()))
    room = WIDTH - 4 - sum((column.width or 0) + 3 for column in table.columns[1:])
    table.columns[0].width = min(max(longest, len("strategy")), room)


def _text(table: Table) -> str:
    """Plain ASCII: a log file has no colours, and a Windows console may not know box-drawing letters."""
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=WIDTH, color_system=None, force_terminal=False, markup=False, emoji=False, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines() if line.strip())
