"""What several tasks measured, as metrics over tasks take it: from the end of a run, or plain numbers; and which way is the better one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, TypeAlias, Union, cast

import numpy as np

from streamlearn.errors import ConfigurationError
from streamlearn.results.matrix import rows_of_matrix

if TYPE_CHECKING:
    from streamlearn.results.result import Result

__all__ = ["HIGHER_IS_BETTER", "LOWER_IS_BETTER", "Directions", "Told", "Values", "check_alike", "final_values", "read_values"]

Values: TypeAlias = Mapping[str, Mapping[str, float]]
Told: TypeAlias = Union["Result", Mapping[str, "Mapping[str, float] | float | Result"]]
"""A result; or by task a number, numbers by metric, or the result of a run on this task."""

HIGHER_IS_BETTER = frozenset({"accuracy"})
LOWER_IS_BETTER = frozenset({"loss", "mean_squared_error"})
"""Of the metrics that the engine records, and the loss of each task, which stands beside them."""


def final_values(result: Result, *, loss: bool = False) -> dict[str, dict[str, float]]:
    """What each task measured at the end of a run, by its metric: the mean over the evaluation sets that ask it.

    Evaluation sets count alike, whatever their number of rows. A set without a row of the task has no say; one whose value is undefined
    for another reason makes the task's value NaN.

    Args:
        result: of a run that has been measured after its last experience.
        loss: the loss in place of the metric, under the name ``"loss"``.

    Raises:
        ConfigurationError: the run was not measured after its last experience.

    Example:
        >>> from streamlearn.results import Record, Result
        >>> record = Record()
        >>> for task, value in (("left", 0.9), ("right", 0.7)):
        ...     line = {"event": "evaluation", "trained": 1, "set": 0, "task": task, "metric": "accuracy", "value": value}
        ...     record.append(line)
        >>> final_values(Result({"format": 1, "stream": {"name": "digits", "experiences": 1}}, record))
        {'left': {'accuracy': 0.9}, 'right': {'accuracy': 0.7}}
    """
    last: dict[tuple[str, str, int], float] = {}
    for event in rows_of_matrix(result.events):
        if event["trained"] == result.experiences and event["task"] and event.get("count", 1):
            value = event.get("loss") if loss else event["value"]
            last[event["task"], "loss" if loss else event["metric"], event["set"]] = math.nan if value is None else float(value)
    if not last:
        raise ConfigurationError(
            f"the run on stream {result.stream_name!r} has not been measured after its last experience: finish it, with evaluate='end' or "
            "'experience'"
        )
    gathered: dict[str, dict[str, list[float]]] = {}
    for (task, metric, _), value in last.items():
        gathered.setdefault(task, {}).setdefault(metric, []).append(value)
    return {task: {metric: float(np.mean(values)) for metric, values in by.items()} for task, by in gathered.items()}


class Directions:
    """Which metrics are better the higher they are.

    Args:
        higher, lower: names of metrics; they go before what is known of those of the engine.

    Raises:
        ConfigurationError: a name is in both, or no list is given.
    """

    def __init__(self, higher: Iterable[str], lower: Iterable[str]) -> None:
        if isinstance(higher, str) or isinstance(lower, str):
            raise ConfigurationError(f"higher_is_better and lower_is_better are lists of names of metrics: write [{higher or lower!r}]")
        self._higher, self._lower = frozenset(higher), frozenset(lower)
        both = sorted(self._higher & self._lower)
        if both:
            raise ConfigurationError(f"metric {both[0]!r} is told to be better both ways: leave it in one of the two lists")

    def higher(self, metric: str) -> bool:
        """Whether a higher value of ``metric`` is better.

        Raises:
            ConfigurationError: nothing says so.
        """
        if metric in self._higher or metric in self._lower:
            return metric in self._higher
        if metric not in HIGHER_IS_BETTER | LOWER_IS_BETTER:
            raise ConfigurationError(f"nothing says whether a higher {metric} is better: add it to higher_is_better or lower_is_better")
        return metric in HIGHER_IS_BETTER


def check_alike(values: Values, others: Values, whose: str, other: str) -> None:
    """Refuse values of other tasks or metrics than those of ``others``.

    Raises:
        ConfigurationError: they are, or there are none.
    """
    pairs, known = ({(task, metric) for task, by in found.items() for metric in by} for found in (values, others))
    if not pairs or pairs != known:
        task, metric = sorted(pairs ^ known)[0] if pairs != known else ("", "")
        has, lacks = (whose, other) if (task, metric) in pairs else (other, whose)
        told = f"{has} has {metric} of task {task!r} and {lacks} has not" if pairs != known else f"{whose} has no task"
        raise ConfigurationError(f"{told}: give the same tasks and metrics in both")


def read_values(given: Told, metric: str) -> Values:
    """What was ``given``, by task and metric; numbers without a metric are of ``metric``.

    Raises:
        ConfigurationError: a run has not been measured at its end, or not on the task that it is given for.
    """
    if not isinstance(given, Mapping):
        return final_values(given)
    found: dict[str, Mapping[str, float]] = {}
    for task, told in given.items():
        if isinstance(told, Mapping):
            found[task] = {name: float(value) for name, value in told.items()}
        elif isinstance(told, Real):  # of numpy, too
            found[task] = {metric: float(cast("float", told))}
        else:
            found[task] = _of_task(cast("Result", told), task)
    return found


def _of_task(result: Result, task: str) -> Mapping[str, float]:
    measured = final_values(result)
    if task not in measured:
        raise ConfigurationError(f"the run that is given for task {task!r} measured {', '.join(measured)}: give one on that task")
    return measured[task]
