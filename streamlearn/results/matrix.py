"""From the raw record to matrices: which event is which entry."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from streamlearn.errors import RunFolderError, UnknownNameError
from streamlearn.results.measure import Matrix

__all__ = [
    "entries_of",
    "experience_names",
    "final_row_is_measured",
    "is_class_incremental",
    "main_metric",
    "matrix_of",
    "mean_over_tasks",
    "set_names",
    "trained_experiences",
    "undefined_reasons",
]

Event = dict[str, Any]


def rows_of_matrix(events: Iterable[Event]) -> Iterator[Event]:
    """The evaluations that are entries of a matrix: all but those taken in the middle of an experience."""
    return (event for event in events if event["event"] == "evaluation" and "within" not in event)


def main_metric(events: Iterable[Event], task: str | None = None) -> str:
    """What was measured (on ``task``): ``"accuracy"`` when anything was, otherwise the first metric in the record.

    Raises:
        UnknownNameError: no task of this name was evaluated.
    """
    entries = list(rows_of_matrix(events))
    if task is not None and task not in {event["task"] for event in entries}:
        raise UnknownNameError("task", task, {event["task"] for event in entries} - {""}, "these were evaluated in the run")
    names = [event["metric"] for event in entries if task in (None, event["task"])]
    return "accuracy" if "accuracy" in names or not names else str(names[0])


def matrix_of(events: Iterable[Event], experiences: int, sets: int, metric: str, task: str | None = None) -> Matrix:
    """The matrix of ``metric``, shape ``(experiences + 1, sets)``, NaN where undefined or not measured; see `entries_of`.

    Raises:
        UnknownNameError, RunFolderError: as `entries_of`.
    """
    matrix = np.full((experiences + 1, sets), np.nan)
    for place, value in entries_of(events, experiences, sets, metric, task).items():
        matrix[place] = value
    return matrix


def entries_of(events: Iterable[Event], experiences: int, sets: int, metric: str, task: str | None = None) -> dict[tuple[int, int], float]:
    """The measured entries of the matrix of ``metric``, by row and column; NaN where undefined.

    An entry is the mean over the tasks of the evaluation set that are measured by ``metric``, or the value of ``task`` alone.
    A task without a value makes the mean undefined. The last event about an entry counts.

    Raises:
        UnknownNameError: nothing (of ``task``) was measured by ``metric``; without a task, accuracy may be absent (all NaN).
        RunFolderError: an event lies outside the matrix.
    """
    entries = list(rows_of_matrix(events))
    known = {event["metric"] for event in entries if task in (None, event["task"])}
    if metric not in known and not (metric == "accuracy" and task is None):
        raise UnknownNameError("metric" if task is None else f"metric of task {task!r}", metric, known, "these were measured in the run")
    values: dict[tuple[int, int], dict[str, float]] = {}
    for event in entries:
        if event["metric"] == metric and task in (None, event["task"]):
            place = _place(event, experiences, sets)
            values.setdefault(place, {})[event["task"]] = np.nan if event["value"] is None else float(event["value"])
    return {place: mean_over_tasks(by_task) for place, by_task in values.items()}


def mean_over_tasks(by_task: Mapping[str, float]) -> float:
    """The value of an evaluation set from those of its tasks; NaN when one is."""
    named = [value for name, value in by_task.items() if name]  # a metric over the whole set has no task
    return float(np.mean(named or list(by_task.values())))


def _place(event: Event, experiences: int, sets: int) -> tuple[int, int]:
    row, column = int(event["trained"]), int(event["set"])
    if not (0 <= row <= experiences and 0 <= column < sets):
        said = f"{experiences} experiences" if sets == experiences else f"{experiences} experiences and {sets} evaluation sets"
        raise RunFolderError(
            f"the record measures evaluation set {column} after {row} experiences, but the run description says "
            f"{said}: the files are of different runs"
        )
    return row, column


def experience_names(events: Iterable[Event], experiences: int) -> tuple[str, ...]:
    """The name of each experience that the record knows; otherwise empty."""
    return _names(((event.get("index"), event.get("name")) for event in events if event["event"] == "experience"), experiences)


def set_names(events: Iterable[Event], sets: int) -> tuple[str, ...]:
    """The name of each evaluation set that the record knows; otherwise empty."""
    return _names(((event.get("set"), event.get("set_name")) for event in events if event["event"] == "evaluation"), sets)


def _names(told: Iterable[tuple[int | None, str | None]], count: int) -> tuple[str, ...]:
    names = [""] * count
    for number, name in told:
        if number is not None and number < count and not names[number]:
            names[number] = str(name or "")
    return tuple(names)


def trained_experiences(events: Iterable[Event]) -> int:
    """How many experiences have been trained to their end."""
    return len({event["index"] for event in events if event["event"] == "experience"})


def final_row_is_measured(events: Iterable[Event], experiences: int, sets: int) -> bool:
    """Whether every evaluation set was evaluated after the last experience; the value may be undefined."""
    return {event["set"] for event in rows_of_matrix(events) if event["trained"] == experiences} == set(range(sets))


def is_class_incremental(events: Iterable[Event], learnt: Sequence[int]) -> bool:
    """Whether what taught an evaluation set after the first brought only classes that a task met earlier had not shown before.

    ``learnt`` says after how many experiences each evaluation set has been learnt. The experiences up to there count as one: a
    chunk of a few rows that happens to have only new classes does not make a stream class-incremental.
    """
    seen: dict[str, set[int]] = {}
    for met in _classes_by_set(events, sorted(learnt)):
        for task, classes in met.items():
            earlier = seen.setdefault(task, set())
            if earlier and classes and earlier.isdisjoint(classes):
                return True
            earlier.update(classes)
    return False


def _classes_by_set(events: Iterable[Event], learnt: Sequence[int]) -> Iterable[dict[str, set[int]]]:
    """The classes of each task that were taught until each evaluation set had been learnt, since the one before."""
    groups: dict[int, dict[str, set[int]]] = {}
    for event in events:
        if event["event"] == "experience":
            met = groups.setdefault(bisect_right(learnt, event["index"]), {})
            for task, classes in event.get("classes", {}).items():
                met.setdefault(task, set()).update(classes)
    return [groups[number] for number in sorted(groups)]


def undefined_reasons(events: Iterable[Event], metric: str) -> Sequence[str]:
    """Why values of ``metric`` are undefined: each reason once, in order of appearance."""
    entries = (event for event in rows_of_matrix(events) if event["metric"] == metric and event["value"] is None)
    return list(dict.fromkeys(str(event.get("reason") or "no reason was recorded") for event in entries))
