"""Accuracies over time, also from within experiences: what a matrix with one row for each experience does not show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlearn.results.layout import one_after_another
from streamlearn.results.matrix import mean_over_tasks
from streamlearn.results.measure import Matrix

__all__ = ["Trajectory", "trajectory"]

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Every evaluation of a run, in order, one for each number of updates.

    Where an evaluation within an experience and the one after it fall on the same update, the latter counts.

    Args:
        updates: how many updates had been made, shape ``(N,)``, ascending.
        values: accuracy on each of the ``S`` evaluation sets, shape ``(N, S)``; NaN where undefined.
        begun: how many experiences had been begun, shape ``(N,)``.
        first: for each set, how many updates had been made when the experiences that teach it began, shape ``(S,)``.
        last: likewise when they had ended; of the last set, the end of the stream.
        seen: which sets had begun to be taught, shape ``(N, S)``.
    """

    updates: NDArray[np.int64]
    values: Matrix
    begun: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    seen: NDArray[np.bool_]

    def at(self, update: int) -> int | None:
        """The place of the evaluation after ``update`` updates, ``None`` if there is none."""
        found = np.flatnonzero(self.updates == update)
        return int(found[-1]) if len(found) else None

    def between(self, begin: int, end: int) -> NDArray[np.int64]:
        """The places of the evaluations after more than ``begin`` and up to ``end`` updates."""
        return np.flatnonzero((self.updates > begin) & (self.updates <= end))


def trajectory(events: Iterable[Event], metric: str, learnt: Sequence[int], experiences: int) -> Trajectory | str:
    """The evaluations of ``metric``; or, as the end of a sentence, why metrics of them are undefined."""
    events = list(events)
    if metric != "accuracy":
        return f"it is defined for accuracies, and {metric} is none"
    if not one_after_another(learnt):
        return "its evaluation sets are not learnt one after another"
    made = {event["index"]: int(event.get("updates", 0)) for event in events if event["event"] == "experience"}
    if len(made) < experiences:
        return f"the run is not complete: {len(made)} of {experiences} experiences have been trained"
    measured = [event for event in events if event["event"] == "evaluation" and event["metric"] == metric and "update" in event]
    inside = {int(event["within"]) for event in measured if "within" in event}
    if not inside:
        return "it needs evaluations within experiences: give the engine evaluate_every=..., the number of updates between two of them"
    begins = [0, *learnt[:-1]]
    ends = [*learnt[:-1], experiences]
    for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        if inside.isdisjoint(range(begin, end)):
            return f"set {number} was learnt without an evaluation on the way: give the engine a smaller evaluate_every"
    ended = np.concatenate([[0], np.cumsum([made[index] for index in range(experiences)])])
    updates, values, begun = _points(measured, len(learnt))
    seen = np.asarray(begins)[None, :] < begun[:, None]
    return Trajectory(updates, values, begun, ended[begins], ended[ends], seen)


def _points(measured: Sequence[Event], sets: int) -> tuple[NDArray[np.int64], Matrix, NDArray[np.int64]]:
    found: dict[int, dict[tuple[int, bool], dict[int, dict[str, float]]]] = {}
    for event in measured:
        moment = (int(event["trained"]), "within" in event)
        of_set = found.setdefault(int(event["update"]), {}).setdefault(moment, {}).setdefault(int(event["set"]), {})
        of_set[event["task"]] = np.nan if event["value"] is None else float(event["value"])
    updates = sorted(found)
    values, begun = np.full((len(updates), sets), np.nan), []
    for place, update in enumerate(updates):
        (trained, within), by_set = list(found[update].items())[-1]
        begun.append(trained + within)
        for number, by_task in by_set.items():
            values[place, number] = mean_over_tasks(by_task)
    return np.asarray(updates, dtype=np.int64), values, np.asarray(begun, dtype=np.int64)
