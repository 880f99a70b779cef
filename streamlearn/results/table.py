"""A run, or several, as plain text of at most 100 columns: for a terminal, a log file or an issue."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from streamlearn.errors import ConfigurationError
from streamlearn.results.layout import Layout
from streamlearn.results.measure import Matrix, Measure

if TYPE_CHECKING:
    from rich.table import Table

    from streamlearn.results.result import Result

__all__ = ["WIDTH", "compare_table", "fit", "matrix_table", "metrics_table"]

WIDTH = 100
_SHOWN = 10  # columns of a matrix, and one row more; of a longer one the middle is left out
_CELL = 8  # columns of text for a number, or more where the heading needs it
_CORNER = "trained so far"


def matrix_table(
    matrix: Matrix,
    names: Sequence[str],
    quantity: str = "accuracy",
    *,
    learnt: Sequence[int] | None = None,
    sets: Sequence[str] | None = None,
) -> str:
    """The matrix, rows in time, with brackets around what had just been trained.

    Args:
        matrix: shape ``(T + 1, S)``; accuracies are written as percentages, anything else as it is.
        names: of the ``T`` experiences; may be empty.
        quantity: what the entries are.
        learnt: for each of the ``S`` evaluation sets, after how many experiences it has been learnt; ``None`` for 1..T.
        sets: names of the evaluation sets, listed where these are not one for each experience; may be empty or ``None``.

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
    layout = Layout.of(matrix, names, learnt, sets)
    columns, rows = _selection(len(layout.learnt), _SHOWN), _rows(layout)
    heads = ["..." if j is None else f"{layout.column} {j + 1}" for j in columns]
    widths = [max(_CELL, len(head) + 1) for head in heads]
    titles = ["..." if i is None else textwrap.shorten(_row_name(i, layout.rows), WIDTH - sum(widths), placeholder="...") for i in rows]
    left = max(map(len, [*titles, _CORNER]))
    lines = [_CORNER.ljust(left) + _line(heads, widths)]
    lines.append("-" * len(lines[0]))
    for title, i in zip(titles, rows, strict=True):
        cells = ["" if i is None or j is None else _cell(matrix[i, j], i == layout.learnt[j], quantity) for j in columns]
        lines.append(title.ljust(left) + _line(cells, widths))
    return "\n".join(line.rstrip() for line in [*_head(layout, quantity, rows, columns), "", *lines])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _rows(layout: Layout) -> list[int | None]:
    """The rows to show of a long matrix: where the evaluation sets have been learnt, if so few rows say it; or both ends."""
    telling = sorted({0, *layout.learnt, layout.experiences})
    if layout.experiences > _SHOWN >= len(telling) - 1:
        return list(telling)
    return _selection(layout.experiences + 1, _SHOWN + 1)


def _head(layout: Layout, quantity: str, rows: Sequence[int | None], columns: Sequence[int | None]) -> list[str]:
    """What the numbers are, what the signs mean, and what is left out."""
    percent = " in %" if quantity == "accuracy" else ""
    head = [f"{quantity.replace('_', ' ')}{percent} on the test rows of each {layout.belongs_to}"]
    head.append(f"[ ] {layout.marked}    - undefined or not measured")
    shown = [f"{j + 1}: {layout.columns[j]}" for j in columns if j is not None and j < len(layout.columns) and layout.columns[j]]
    if shown and not layout.square:
        head.append(f"sets: {'; '.join(shown)}")
    if None in rows:
        head.append(f"{layout.experiences} experiences: the middle ones are left out here, the matrix itself has them all")
    elif len(rows) <= layout.experiences:
        head.append(f"{layout.experiences} experiences: most are left out here, the matrix itself has them all")
    if None in columns and not layout.square:
        head.append(f"{len(layout.learnt)} evaluation sets: the middle ones are left out here, the matrix itself has them all")
    return head


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


def _cell(value: float, just_trained: bool, quantity: str) -> str:
    text = "-" if np.isnan(value) else f"{100 * value:.1f}" if quantity == "accuracy" else f"{value:.4g}"
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
