"""What task schedulers share: which tasks may be drawn, how many rows each has, and probabilities that follow the sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from streamlearn.errors import UnknownNameError

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.streams import Task
    from streamlearn.streams.data import Data, JoinedData

__all__ = ["drawable_tasks", "labelled_tasks", "power_probabilities", "refuse_unknown_tasks", "rows_by_task"]


def rows_by_task(data: Data | JoinedData) -> dict[str, int]:
    """How many rows of ``data`` are asked on each task that has any, labelled or not; a row with several tasks counts for each."""
    rows: dict[str, int] = {}
    for part in data.parts():
        for task in part.tasks if len(part) else ():
            rows[task.name] = rows.get(task.name, 0) + len(part)
    return rows


def labelled_tasks(data: Data | JoinedData) -> dict[str, Task]:
    """The tasks that have a labelled row in ``data``, in the order of its parts."""
    found: dict[str, Task] = {}
    for part in data.parts():
        for task in part.tasks if len(part) else ():
            some = part.labelled.get(task.name)
            if task.name in part.targets and (some is None or bool(some.any())):
                found[task.name] = task
    return found


def drawable_tasks(data: Data | JoinedData) -> list[str]:
    """The tasks that have a labelled row in ``data``; where none has any, as in adaptation, all that have rows."""
    return list(labelled_tasks(data)) or list(rows_by_task(data))


def power_probabilities(rows: Mapping[str, int], exponent: float, cap: int | None = None) -> dict[str, float]:
    """p_k = min(n_k, cap)^α / Σ_j min(n_j, cap)^α; a task without rows has probability 0.

    Args:
        rows: n_k by task, at least one of them above 0.
        exponent: α, at least 0.
        cap: no task counts for more rows than this; ``None`` sets no limit.

    Example:
        >>> power_probabilities({"a": 16, "b": 4}, 0.5)
        {'a': 0.6666666666666666, 'b': 0.3333333333333333}
    """
    counted = {task: n if cap is None else min(n, cap) for task, n in rows.items()}
    largest = max(counted.values())
    weights = {task: (n / largest) ** exponent if n else 0.0 for task, n in counted.items()}  # of ratios: no power overflows
    total = math.fsum(weights.values())
    return {task: weight / total for task, weight in weights.items()}


def refuse_unknown_tasks(named: Iterable[str], where: str, run: Run) -> None:
    """Refuse the name of a task that never comes.

    Args:
        named: names of tasks.
        where: what names them, as in ``"order of plugin round_robin"``.
        run: whose stream is asked.

    Raises:
        UnknownNameError: the stream never has a task of that name; the nearest is offered.
    """
    wanted, stream = set(named), run.stream
    known = {task.name for task in stream.tasks}
    if not wanted <= known:  # a stream may have tasks that it does not announce
        known |= {task.name for number in range(len(stream)) for task in stream[number].tasks}
    for task in sorted(wanted - known):
        raise UnknownNameError(f"task in the {where}", task, known)
