"""What a run costs: sizes and declared passes from the record, seconds from the times.

``T`` is the number of evaluation sets, and ``i`` the moment when set ``i`` has been learnt; the last moment is the end of the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from streamlearn.results.measure import Measure

__all__ = ["COSTS", "Costs"]

Event = dict[str, Any]
Found = float | str  # or why it is undefined

_OLD = "the record has no costs: it was written by an earlier streamlearn, or nothing has been learnt yet"
_DIAZ = "Díaz-Rodríguez et al. 2018"
_OURS = "recorded by the engine"


@dataclass(frozen=True, slots=True)
class Costs:
    """What the record and the times of a run say of its cost.

    Args:
        events: the record.
        times: seconds by activity.
        learnt: for each evaluation set, after how many experiences it has been learnt, ascending.
        experiences: their number.
    """

    events: Sequence[Event]
    times: Sequence[Event]
    learnt: Sequence[int]
    experiences: int

    @property
    def moments(self) -> list[Event]:
        """The costs when each evaluation set had been learnt, in order."""
        return [event for event in self.events if event["event"] == "cost"]

    @property
    def trained(self) -> list[Event]:
        """The experiences that have been trained, in order."""
        return [event for event in self.events if event["event"] == "experience"]

    def seconds(self, what: str) -> dict[int, float]:
        """Seconds by the number that an activity had, added up."""
        found: dict[int, float] = {}
        for event in self.times:
            if event["event"] == "time" and event["what"] == what and event["seconds"] is not None:
                found[event["index"]] = found.get(event["index"], 0.0) + event["seconds"]
        return found


def _last(key: str) -> Callable[[Costs], Found]:
    return lambda costs: _numbers([costs.moments[-1][key]])


def _memories(key: str) -> Callable[[Costs], Found]:
    return lambda costs: _numbers(memory[key] for memory in costs.moments[-1]["memories"].values())


def _plugins(costs: Costs) -> Found:
    last = costs.moments[-1]
    return _numbers([*last["plugin_bytes"].values(), *last["helper_bytes"].values(), last["teacher_bytes"]])


def _numbers(values: Iterable[float | None]) -> Found:
    """Their sum; what a row takes is only known of sources in memory."""
    found = list(values)
    known = [float(value) for value in found if value is not None]
    return sum(known) if len(known) == len(found) else "how much a row takes is known of data in memory only"


def _model_size_efficiency(costs: Costs) -> Found:
    sizes: list[int] = [event["parameter_bytes"] for event in costs.moments]
    if not all(sizes):
        return "the model has no parameters"
    return min(1.0, sum(sizes[0] / size for size in sizes) / len(sizes))


def _storage_efficiency(costs: Costs) -> Found:
    stream = sum(event["rows"] for event in costs.trained)
    kept = [sum(memory["rows"] for memory in event["memories"].values()) for event in costs.moments]
    return 1.0 - min(1.0, sum(kept) / len(kept) / stream) if stream else "the stream has no rows"


def _updates(costs: Costs) -> Found:
    return float(sum(event["updates"] for event in costs.trained))


def _seconds(what: str) -> Callable[[Costs], Found]:
    def total(costs: Costs) -> Found:
        found = costs.seconds(what)
        return float(sum(found.values())) if found else f"no {what} was timed"

    return total


def _time_efficiency(costs: Costs) -> Found:
    found, ends = costs.seconds("experience"), [*costs.learnt[:-1], costs.experiences]
    if set(found) < set(range(costs.experiences)):
        return f"{len(found)} of {costs.experiences} experiences were timed"
    if sorted(set(costs.learnt)) != list(costs.learnt):
        return "its evaluation sets are not learnt one after another"
    groups = [sum(found[index] for index in range(begin, end)) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    return min(1.0, sum(groups[0] / seconds for seconds in groups) / len(groups)) if all(groups) else "an experience took no time"


_DEFINITIONS: tuple[tuple[str, Callable[[Costs], Found], str, str, str], ...] = (
    ("model_parameters", _last("parameters"), "parameters of the model at the end", _OURS, "parameters"),
    ("model_bytes", _last("parameter_bytes"), "bytes of the parameters of the model at the end", _OURS, "bytes"),
    ("model_size_efficiency", _model_size_efficiency, "min(1, mean over i of model_bytes at 0 / at i)", f"{_DIAZ}, MS", "fraction"),
    ("memory_rows", _memories("rows"), "rows in replay memories at the end", _OURS, "rows"),
    ("memory_bytes", _memories("bytes"), "bytes that copies of their inputs would take", _OURS, "bytes"),
    ("memory_held_bytes", _memories("held_bytes"), "bytes that the memories hold in place of copies", _OURS, "bytes"),
    ("samples_storage_efficiency", _storage_efficiency, "1 - min(1, mean over i of rows in memories / rows of the stream)",
     f"{_DIAZ}, SSS", "fraction"),
    ("plugin_bytes", _plugins, "bytes of plugins' states, their modules and teachers at the end", _OURS, "bytes"),
    ("updates", _updates, "optimiser steps in all", _OURS, "updates"),
    ("forward_passes", _last("forward_passes"), "forward passes of the model in an update, as declared", _OURS, "passes"),
    ("backward_passes", _last("backward_passes"), "backward passes of the model in an update, as declared", _OURS, "passes"),
    ("teacher_passes", _last("teacher_passes"), "forward passes of teachers in an update, as declared", _OURS, "passes"),
    ("training_seconds", _seconds("experience"), "seconds in experiences, evaluations within them included", _OURS, "seconds"),
    ("evaluation_seconds", _seconds("evaluation"), "seconds in evaluations", _OURS, "seconds"),
    ("time_efficiency", _time_efficiency, "min(1, mean over i of seconds of set 0 / of set i)", f"code of clfd, as CE of {_DIAZ}",
     "fraction"),
)  # fmt: skip

_FROM_TIMES = {"training_seconds", "evaluation_seconds", "time_efficiency"}


def _named(name: str, function: Callable[[Costs], Found], formula: str, source: str, unit: str) -> Callable[[Costs], Measure]:
    def compute(costs: Costs) -> Measure:
        found = function(costs) if costs.moments or name in _FROM_TIMES else _OLD
        undefined = isinstance(found, str)
        return Measure(name, None if undefined else float(found), formula, source, str(found) if undefined else None, unit)

    return compute


COSTS: Mapping[str, Callable[[Costs], Measure]] = MappingProxyType({given[0]: _named(*given) for given in _DEFINITIONS})
"""From the costs of a run to each metric."""
