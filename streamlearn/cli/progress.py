"""How far a run is: a moving bar on a terminal, a plain line for each experience elsewhere."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from streamlearn.cli.text import say
from streamlearn.results.matrix import entries_of, main_metric

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from streamlearn.core.engine import Progress
    from streamlearn.core.run import Run

__all__ = ["experience_line", "fraction_done", "progress"]

_SHOWN = 10  # evaluation sets of which each accuracy is shown
_EVERY = 0.1  # seconds between two movements of the bar


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Progress | None]:
    """What to give to the engine as ``progress``, for as long as it runs."""
    if quiet:
        yield None
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not sys.stdout.isatty() or console.is_dumb_terminal:
        yield _lines(say)
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        yield _Moving(bar)


def _lines(say: Callable[[str], Any]) -> Progress:
    def tell(event: str, run: Run) -> None:
        if event == "experience":
            say(experience_line(run))

    return tell


class _Moving:
    """Moves a bar a few times a second, and leaves a line above it for each experience."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=1.0)
        self._last = 0.0

    def __call__(self, event: str, run: Run) -> None:
        if event == "experience":
            self._bar.console.print(experience_line(run))
        elif time.monotonic() - self._last < _EVERY:
            return
        self._last = time.monotonic()
        clock, total = run.clock, len(run.stream)
        place = f"experience {min(clock.experience + 1, total)}/{total}"
        if clock.inside:
            place += f", epoch {min(clock.epoch + 1, clock.epochs)}/{clock.epochs}"
        self._bar.update(self._task, completed=fraction_done(run), description=f"{place}, step {clock.update}")


def fraction_done(run: Run) -> float:
    """How much of the run is done, in [0, 1]; within an experience, as if its present phase were the only one."""
    clock = run.clock
    inside = clock.progress if clock.inside and run.phase is not None else 0.0
    return min((clock.experience + min(inside, 1.0)) / len(run.stream), 1.0)


def experience_line(run: Run) -> str:
    """What the experience just trained was, and what was measured after it."""
    trained, total = run.clock.experience, len(run.stream)
    event = next(event for event in reversed(run.record.events) if event["event"] == "experience")
    name = f" ({event['name']})" if event["name"] else ""
    return f"experience {trained}/{total}{name}, {event['updates']} updates: {_measured(run, trained, total)}"


def _measured(run: Run, trained: int, total: int) -> str:
    fresh: list[dict[str, Any]] = []
    for event in reversed(run.record.events):
        if event["event"] != "evaluation":
            break
        fresh.append(event)
    if not fresh:
        return "not evaluated"
    metric = main_metric(fresh)
    sets, percent = len(run.stream.sets), metric == "accuracy"
    entries = entries_of(fresh, total, sets, metric)
    row = [entries.get((trained, j), math.nan) for j in range(sets)]
    newest = run.stream.sets_of(trained - 1)[-1]
    values = " ".join(f"{_number(value, percent):>5}" for value in row) if sets <= _SHOWN else f"... {_number(row[newest], percent)}"
    learnt = run.stream.learnt_after
    known = [value for value, after in zip(row, learnt, strict=True) if after <= trained and not math.isnan(value)]
    mean = _number(math.fsum(known) / len(known), percent) if known else "-"
    return f"{metric}{' %' if percent else ''} {values}, mean so far {mean}"


def _number(value: float, percent: bool) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}" if percent else f"{value:.4g}"
