"""From the raw record to matrices: which event is which entry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from streamlearn.errors import RunFolderError, UnknownNameError
from streamlearn.results.measure import Matrix

__all__ = [
    "final_row_is_measured",
    "is_class_incremental",
    "main_metric",
    "matrix_of",
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


def matrix_of(events: Iterable[Event], experiences: int, metric: str, task: str | None = None) -> Matrix:
    """The matrix of ``metric``, shape ``(experiences + 1, experiences)``, NaN where undefined or not measured.

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
            place = _place(event, experiences)
            values.setdefault(place, {})[event["task"]] = np.nan if event["value"] is None else float(event["value"])
    matrix = np.full((experiences + 1, experiences), np.nan)
    for place, by_task in values.items():
        named = [value for name, value in by_task.items() if name]  # a metric over the whole set has no task
        matrix[place] = np.mean(named or list(by_task.values()))
    return matrix


def _place(event: Event, experiences: int) -> tuple[int, int]:
    row, column = int(event["trained"]), int(event["set"])
    if not (0 <= row <= experiences and 0 <= column < experiences):
        raise RunFolderError(
            f"the record measures evaluation set {column} after {row} experiences, but the run description says "
            f"{experiences} experiences: the files are of different runs"
        )
    return row, column


def set_names(events: Iterable[Event], experiences: int) -> tuple[str, ...]:
    """A name for each experience, as far as the record knows one; otherwise empty."""
    names = [""] * experiences
    for event in events:
        number = event.get("set") if event["event"] == "evaluation" else event.get("index") if event["event"] == "experience" else None
        if number is not None and number < experiences and not names[number]:
            names[number] = str(event.get("set_name") or event.get("name") or "")
    return tuple(names)


def trained_experiences(events: Iterable[Event]) -> int:
    """How many experiences have been trained to their end."""
    return len({event["index"] for event in events if event["event"] == "experience"})


def final_row_is_measured(events: Iterable[Event], experiences: int) -> bool:
    """Whether every evaluation set was evaluated after the last experience; the value may be undefined."""
    return {event["set"] for event in rows_of_matrix(events) if event["trained"] == experiences} == set(range(experiences))


def is_class_incremental(events: Iterable[Event]) -> bool:
    """Whether an experience after the first brought only classes that a task met earlier had not shown before."""
    seen: dict[str, set[int]] = {}
    for event in events:
        if event["event"] != "experience":
            continue
        for task, classes in event.get("classes", {}).items():
            earlier = seen.setdefault(task, set())
            if earlier and classes and earlier.isdisjoint(classes):
                return True
            earlier.update(classes)
    return False


def undefined_reasons(events: Iterable[Event], metric: str) -> Sequence[str]:
    """Why values of ``metric`` are undefined: each reason once, in order of appearance."""
    entries = (event for event in rows_of_matrix(events) if event["metric"] == metric and event["value"] is None)
    return list(dict.fromkeys(str(event.get("reason") or "no reason was recorded") for event in entries))
