"""Metrics over tasks: by hand, against scipy, and what must hold of any values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from streamlearn.errors import ConfigurationError
from streamlearn.results import Record, Result
from streamlearn.results.multitask_metrics import delta_m, final_values, mean_ranks, worst_task

POSITIVE = st.floats(0.01, 100)
NAMES = ("a", "b", "c", "d")


def result(lines: list[tuple[int, int, str, str, float | None]], experiences: int = 1, sets: int | None = None) -> Result:
    """Of evaluations (trained, set, task, metric, value); the loss is ten times the value."""
    record = Record()
    for trained, number, task, metric, value in lines:
        loss = None if value is None else 10 * value
        line = {"event": "evaluation", "trained": trained, "set": number, "task": task, "metric": metric, "value": value, "loss": loss}
        record.append({**line, "count": 5})
    stream: dict[str, Any] = {"name": "toy", "experiences": experiences}
    if sets is not None:
        stream["learnt_after"] = [experiences] * sets
    return Result({"format": 1, "stream": stream}, record)


def test_final_values_are_those_of_the_last_row() -> None:
    lines = [(0, 0, "a", "accuracy", 0.1), (1, 0, "a", "accuracy", 0.5), (2, 0, "a", "accuracy", 0.7), (2, 1, "a", "accuracy", 0.9)]
    lines += [(2, 1, "b", "mean_squared_error", 0.4)]
    found = final_values(result(lines, experiences=2))
    assert found == {"a": {"accuracy": pytest.approx(0.8)}, "b": {"mean_squared_error": 0.4}}
    assert final_values(result(lines, experiences=2), loss=True) == {"a": {"loss": pytest.approx(8.0)}, "b": {"loss": pytest.approx(4.0)}}


def test_sets_without_a_row_of_the_task_have_no_say_and_undefined_values_do() -> None:
    made = result([(1, 0, "a", "accuracy", 0.5), (1, 1, "a", "accuracy", None)], sets=2)
    assert math.isnan(final_values(made)["a"]["accuracy"])
    record = Record()
    for event in made.events:
        record.append({**event, "count": 0 if event["value"] is None else 5})
    assert final_values(Result(made.description, record)) == {"a": {"accuracy": 0.5}}
    within = Record()
    within.append({"event": "evaluation", "trained": 1, "set": 0, "task": "a", "metric": "accuracy", "value": 0.5, "within": 3})
    with pytest.raises(ConfigurationError, match="the run on stream 'toy' has not been measured after its last experience"):
        final_values(Result(made.description, within))


def test_delta_by_hand() -> None:
    together = {"seg": {"miou": 0.66, "accuracy": 0.9}, "depth": {"absolute": 0.45}}
    alone = {"seg": {"miou": 0.60, "accuracy": 0.8}, "depth": {"absolute": 0.50}}
    found = delta_m(together, alone, higher_is_better=["miou"], lower_is_better=["absolute"])
    seg = (0.06 / 0.60 + 0.1 / 0.8) / 2
    assert float(found) == pytest.approx(100 * (seg + 0.05 / 0.50) / 2)
    assert (found.name, found.unit, found.value and found.value > 0) == ("delta_m", "percent", True)
    assert float(delta_m({"a": 0.9, "b": 0.6}, {"a": 1.0, "b": 0.5})) == pytest.approx(100 * (-0.1 + 0.2) / 2)
    assert float(delta_m({"a": 2.0}, {"a": 1.0}, metric="loss")) == pytest.approx(-100)
    assert float(delta_m({"a": -1.0}, {"a": -2.0}, metric="r2", higher_is_better=["r2"])) == pytest.approx(50), "better is above 0"


def test_delta_from_results() -> None:
    run = result([(1, 0, "a", "accuracy", 0.9), (1, 0, "b", "mean_squared_error", 0.2)])
    baselines = {"a": result([(1, 0, "a", "accuracy", 0.6)]), "b": result([(1, 0, "b", "mean_squared_error", 0.4)])}
    assert float(delta_m(run, baselines)) == pytest.approx(100 * (0.5 + 0.5) / 2)
    assert float(worst_task(run, baselines)) == pytest.approx(50)
    with pytest.raises(ConfigurationError, match="the run that is given for task 'b' measured a: give one on that task"):
        delta_m(run, {"a": baselines["a"], "b": baselines["a"]})


Tables = st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=4)


@settings(deadline=None)
@given(Tables, POSITIVE, st.booleans())
def test_units_and_order_of_tasks_make_no_difference(table: list[tuple[float, float]], unit: float, higher: bool) -> None:
    way = {"higher_is_better": ["m"]} if higher else {"lower_is_better": ["m"]}
    values, base = ({name: row[k] for name, row in zip(NAMES, table, strict=False)} for k in (0, 1))
    found = float(delta_m(values, base, metric="m", **way))
    sign = 1 if higher else -1
    assert found == pytest.approx(100 * np.mean([sign * (m - b) / b for m, b in table]), rel=1e-9, abs=1e-9)
    scaled = ({name: value * unit for name, value in given_values.items()} for given_values in (values, base))
    assert float(delta_m(*scaled, metric="m", **way)) == pytest.approx(found, rel=1e-6, abs=1e-6)
    backwards = dict(reversed(values.items()))
    assert float(delta_m(backwards, base, metric="m", **way)) == pytest.approx(found, rel=1e-9, abs=1e-9)
    assert float(delta_m(base, base, metric="m", **way)) == 0
    assert float(worst_task(values, base, metric="m", **way)) <= found + 1e-9


@settings(deadline=None)
@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(st.integers(0, 4), min_size=n, max_size=n), min_size=1, max_size=4)))
def test_ranks_as_scipy_ranks(table: list[list[int]]) -> None:
    """Of a column for each method and a row for each task, with ties."""
    methods = {f"m{k}": {NAMES[i]: float(row[k]) for i, row in enumerate(table)} for k in range(len(table[0]))}
    for metric, sign in (("accuracy", -1), ("loss", 1)):
        found = mean_ranks(methods, metric=metric)
        expected = np.mean([rankdata([sign * value for value in row]) for row in table], axis=0)
        np.testing.assert_allclose([float(rank) for rank in found.values()], expected)
        assert sum(map(float, found.values())) == pytest.approx(sum(range(1, len(methods) + 1)))


def test_every_metric_of_a_task_has_a_rank() -> None:
    methods = {
        "sum": {"a": {"accuracy": 0.9, "loss": 1.0}, "b": {"accuracy": 0.1}},
        "mgda": {"a": {"accuracy": 0.8, "loss": 0.5}, "b": {"accuracy": 0.2}},
    }
    assert {name: round(float(rank), 4) for name, rank in mean_ranks(methods).items()} == {"sum": 1.6667, "mgda": 1.3333}
    lost = mean_ranks({"sum": {"a": 0.5}, "mgda": {"a": math.nan}})
    assert {rank.reason for rank in lost.values()} == {"accuracy of task 'a' is undefined for method 'mgda'"}


def test_the_worst_task() -> None:
    assert float(worst_task({"a": 0.9, "b": 0.4})) == 0.4
    assert float(worst_task({"a": 0.9, "b": 0.4}, metric="loss")) == 0.9
    found = worst_task(result([(1, 0, "a", "accuracy", 0.9), (1, 0, "b", "accuracy", 0.4)]))
    assert found.formula == "worst over tasks of accuracy, of task 'b'"
    relative = worst_task({"a": 0.9, "b": 0.4}, {"a": 1.0, "b": 0.2})
    assert float(relative) == pytest.approx(-10)
    assert relative.formula.endswith("of task 'a'")
    assert worst_task({"a": math.nan, "b": 0.4}).reason == "accuracy of task 'a' is undefined"
    with pytest.raises(ConfigurationError, match="tasks are measured by accuracy, loss, which cannot be compared: give baselines"):
        worst_task({"a": {"accuracy": 0.9}, "b": {"loss": 0.9}})


def test_what_is_undefined_says_why() -> None:
    assert delta_m({"a": 0.5}, {"a": 0.0}).reason == "accuracy of task 'a' is 0 in the baselines, and nothing is a multiple of it"
    assert delta_m({"a": math.nan}, {"a": 0.5}).reason == "accuracy of task 'a' is undefined in this run"
    assert worst_task({"a": 0.5}, {"a": math.nan}).reason == "accuracy of task 'a' is undefined in the baselines"


@pytest.mark.parametrize(
    ("values", "baselines", "options", "message"),
    [
        ({"a": 0.5}, {"a": 0.5, "b": 0.5}, {}, "the baselines has accuracy of task 'b' and this run has not: give the same tasks"),
        ({"a": {"accuracy": 0.5}}, {"a": {"loss": 0.5}}, {}, "accuracy of task 'a' and the baselines has not"),
        ({}, {}, {}, "this run has no task"),
        ({"a": 0.5}, {"a": 0.5}, {"metric": "miou"}, "nothing says whether a higher miou is better: add it to higher_is_better or"),
        ({"a": 0.5}, {"a": 0.5}, {"higher_is_better": "miou"}, "are lists of names of metrics: write \\['miou'\\]"),
        ({"a": 0.5}, {"a": 0.5}, {"higher_is_better": ["m"], "lower_is_better": ["m"]}, "metric 'm' is told to be better both ways"),
    ],
)
def test_what_cannot_be_compared_is_refused(values: Any, baselines: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        delta_m(values, baselines, **options)
    with pytest.raises(ConfigurationError, match="there is no method to rank"):
        mean_ranks({})
    with pytest.raises(ConfigurationError, match="method 'x' has accuracy of task 'b' and method 'y' has not"):
        mean_ranks({"y": {"a": 1.0}, "x": {"a": 1.0, "b": 1.0}})
