"""Metrics of evaluations within experiences: by hand, against a second implementation, and in real runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from streamlearn.results import Record, Result
from streamlearn.results.anytime import ANYTIME

from .conftest import ONLINE, MakeResult, description, evaluation, experience

# two experiences of four updates each, evaluated after every second one: (update, experiences trained, within, accuracies)
POINTS = [
    (0, 0, None, (0.1, 0.1)),
    (2, 0, 0, (0.5, 0.1)),
    (4, 1, None, (0.9, 0.2)),
    (6, 1, 1, (0.3, 0.6)),
    (8, 2, None, (0.7, 0.8)),
]


def run_of(points: Any = POINTS, sizes: tuple[int, ...] = (4, 4), **changes: Any) -> Result:
    record, trained = Record(), 0
    for update, after, within, row in points:
        while trained < after:
            record.append(experience(trained, updates=sizes[trained]))
            trained += 1
        for number, value in enumerate(row):
            extra = {} if within is None else {"within": within}
            record.append(evaluation(after, number, value, update=update, **extra))
    told = description(len(sizes))
    told["stream"].update(changes)
    return Result(told, record)


def test_hand_computed_values() -> None:
    expected = {
        "anytime_accuracy": (0.5 + 0.9 + (0.3 + 0.6) / 2 + (0.7 + 0.8) / 2) / 4,
        "minimum_accuracy": 0.3,
        "worst_case_accuracy": (0.3 + 0.8) / 2,
        "drop_after_switch": 0.9 - 0.3,
        "stability_gap": 0.7 - 0.3,
        "recovery_updates": 4,
        "windowed_forgetting_10": (0.9 - 0.3) / 2,
        "windowed_plasticity_10": ((0.9 - 0.5) + (0.8 - 0.6)) / 2,
    }
    measures = run_of().every_metric
    assert {name: float(measures[name]) for name in expected} == pytest.approx(expected, abs=1e-14)
    assert list(expected) == list(ANYTIME)[:-1]
    assert (measures["recovery_updates"].unit, measures["stability_gap"].unit) == ("updates", "fraction")
    assert repr(measures["recovery_updates"]).startswith("Measure(recovery_updates = 4 updates, mean over j < k")


def test_three_sets() -> None:
    rows = [(0.1, 0.1, 0.1), (0.8, 0.0, 0.0), (0.4, 0.5, 0.0), (0.6, 0.9, 0.0), (0.5, 0.3, 0.2), (0.4, 0.7, 0.6)]
    places = [(0, 0, None), (1, 1, None), (2, 1, 1), (3, 2, None), (4, 2, 2), (5, 3, None)]
    first = (1, 0, 0, (0.8, 0.0, 0.0))  # falls on the update of the row after the first experience, which counts
    points = [(*place, row) for place, row in zip(places, rows, strict=True)]
    found = run_of([points[0], first, *points[1:]], sizes=(1, 2, 2))
    measures = found.every_metric
    assert float(measures["minimum_accuracy"]) == pytest.approx((0.4 + 0.3) / 2)
    assert float(measures["worst_case_accuracy"]) == pytest.approx((0.4 + 0.3 + 0.6) / 3)
    # pairs (k, j): (1, 0), (2, 0), (2, 1)
    assert float(measures["drop_after_switch"]) == pytest.approx(((0.8 - 0.4) + (0.6 - 0.4) + (0.9 - 0.3)) / 3)
    assert float(measures["stability_gap"]) == pytest.approx(((0.6 - 0.4) + 0 + (0.7 - 0.3)) / 3)
    assert float(measures["recovery_updates"]) == pytest.approx((2 + 2 + 2) / 3)
    assert float(measures["anytime_accuracy"]) == pytest.approx(np.mean([0.8, 0.45, 0.75, (0.5 + 0.3 + 0.2) / 3, (0.4 + 0.7 + 0.6) / 3]))


def test_where_nothing_falls() -> None:
    points = [(*POINTS[i][:3], (value, value)) for i, value in enumerate((0.1, 0.2, 0.3, 0.4, 0.5))]
    measures = run_of(points).every_metric
    assert float(measures["recovery_updates"]) == 0
    assert float(measures["stability_gap"]) == 0
    assert float(measures["windowed_forgetting_10"]) == 0
    assert float(measures["drop_after_switch"]) == pytest.approx(0.3 - 0.4)


def test_the_curve_of_the_first_ten_updates() -> None:
    points: list[Any] = [(0, 0, None, (0.0, 0.5))]
    for k in range(2):
        points += [(11 * k + b, k, k, (0.05 * b, 0.5 + 0.01 * b)) for b in range(1, 11)]
        points += [(11 * (k + 1), k + 1, None, (1.0, 0.5))]
    expected = np.mean([[0.05 * b for b in range(11)], [0.5, *(0.5 + 0.01 * b for b in range(1, 11))]])
    found = run_of(points, sizes=(11, 11)).measure("learning_curve_area_10")
    assert float(found) == pytest.approx(expected)
    gap = run_of([p for p in points if p[0] != 15], sizes=(11, 11)).measure("learning_curve_area_10")
    assert gap.reason == "it needs the accuracy on set 1 after each of its first 10 updates: give the engine evaluate_every=1"
    assert run_of().measure("learning_curve_area_10").reason == "it needs 10 updates for each set, and set 0 was learnt in 4"


def test_why_they_are_undefined(make_result: MakeResult) -> None:
    def reasons(result: Result) -> set[str | None]:
        return {result.measure(name).reason for name in ANYTIME}

    assert reasons(make_result()) == {
        "it needs evaluations within experiences: give the engine evaluate_every=..., the number of updates between two of them"
    }
    assert reasons(run_of([p for p in POINTS if p[2] != 1])) == {
        "set 1 was learnt without an evaluation on the way: give the engine a smaller evaluate_every"
    }
    assert reasons(run_of(POINTS[:4])) == {"the run is not complete: 1 of 2 experiences have been trained"}
    together = run_of([(0, 0, None, (0, 0)), (1, 0, 0, (0.5, 0.5)), (2, 1, None, (1, 1))], sizes=(2,), learnt_after=[1, 1])
    assert reasons(together) == {"its evaluation sets are not learnt one after another"}
    single = run_of([(0, 0, None, (0,)), (1, 0, 0, (0.5,)), (2, 1, None, (1.0,))], sizes=(2,))
    assert single.measure("minimum_accuracy").reason == single.measure("stability_gap").reason
    assert single.measure("minimum_accuracy").reason == "it needs at least 2 evaluation sets, this run has 1"
    assert float(single.measure("anytime_accuracy")) == 0.75


@pytest.mark.parametrize(
    ("place", "name", "reason"),
    [
        (1, "anytime_accuracy", "it needs the accuracy on set 0 after 2 updates, which is undefined or not measured"),
        (3, "minimum_accuracy", "it needs every accuracy on set 0 after it was learnt, and one is undefined"),
        (3, "stability_gap", "it needs the accuracies on earlier sets while set 1 was learnt, and one is undefined"),
        (3, "windowed_forgetting_10", "it needs every accuracy on set 0 since its training began, and one is undefined"),
    ],
)
def test_what_is_missing_is_named(place: int, name: str, reason: str) -> None:
    points = [p if i != place else (*p[:3], (None, p[3][1])) for i, p in enumerate(POINTS)]
    assert run_of(points).measure(name).reason == reason


def test_without_evaluations_between_experiences() -> None:
    points = [p for p in POINTS if p[0] not in (0, 4)]
    found = run_of([*points[:-1], points[-1]])
    assert found.measure("stability_gap").reason is not None
    assert "right before and after set 1" in (found.measure("stability_gap").reason or "")
    assert float(found.measure("minimum_accuracy")) == 0.3
    assert "at the end of the stream" in (run_of([*POINTS[:4], (7, 2, 1, (0.5, 0.5))]).measure("worst_case_accuracy").reason or "")


@given(st.integers(2, 4).flatmap(lambda t: arrays(np.float64, (3 * t + 1, t), elements=st.floats(0, 1, width=32))))
@settings(max_examples=60, deadline=None)
def test_bounds_identities_and_a_second_implementation(values: np.ndarray) -> None:
    """Three updates an experience, evaluated after each: row ``n`` is measured after ``n`` updates."""
    sets = values.shape[1]
    points: list[Any] = []
    for n, row in enumerate(values):
        if n % 3 == 0:
            points.append((n, n // 3, None, tuple(map(float, row))))
        else:
            points.append((n, n // 3, n // 3, tuple(map(float, row))))
    measures = {name: measure.value for name, measure in run_of(points, sizes=(3,) * sets).every_metric.items()}
    lows = [values[3 * (j + 1) + 1 :, j].min() for j in range(sets - 1)]
    assert measures["minimum_accuracy"] == pytest.approx(sum(lows) / (sets - 1))
    assert measures["worst_case_accuracy"] == pytest.approx(values[-1, -1] / sets + (1 - 1 / sets) * sum(lows) / (sets - 1))
    assert measures["anytime_accuracy"] == pytest.approx(np.mean([values[n, : (n - 1) // 3 + 1].mean() for n in range(1, len(values))]))
    drops, rises = [], []
    for j in range(sets):
        since = values[3 * j + 1 :, j]
        pairs = [(m, n) for n in range(len(since)) for m in range(n) if n - m < 10]
        drops.append(max([0.0, *(since[m] - since[n] for m, n in pairs)]))
        rises.append(max([0.0, *(since[n] - since[m] for m, n in pairs)]))
    assert measures["windowed_forgetting_10"] == pytest.approx(np.mean(drops))
    assert measures["windowed_plasticity_10"] == pytest.approx(np.mean(rises))
    # what falls and does not come back is what the end of each experience shows
    lost = np.mean([max(values[3 * k, j] - values[3 * (k + 1), j], 0) for k in range(1, sets) for j in range(k)])
    fallen = np.mean([max(values[3 * k, j] - values[3 * k + 1 : 3 * k + 4, j].min(), 0) for k in range(1, sets) for j in range(k)])
    assert measures["stability_gap"] + lost == pytest.approx(fallen)
    assert 0 <= measures["recovery_updates"] <= 3
    assert measures["minimum_accuracy"] <= np.mean(values[-1, :-1]) + 1e-12
    assert measures["worst_case_accuracy"] <= measures["average_accuracy"] + 1e-12


def test_the_chunks_of_an_evaluation_set_count_together() -> None:
    points: list[Any] = []
    for i, row in enumerate(ONLINE):
        if i:
            points.append((2 * i - 1, i - 1, i - 1, tuple(row)))
        points.append((2 * i, i, None, tuple(row)))
    found = run_of(points, sizes=(2,) * 6, learnt_after=[3, 6])
    assert float(found.measure("minimum_accuracy")) == min(row[0] for row in ONLINE[4:])
    assert float(found.measure("drop_after_switch")) == pytest.approx(0.9 - 0.2)
    assert float(found.measure("recovery_updates")) == 5  # the lowest is met after updates 9 and 10, and 0.6 again with update 11


def test_a_real_run_and_after_a_resume(tmp_path: Path) -> None:
    from streamlearn import Engine
    from tests.core.support import Stop, class_stream, net, sgd, stop_at

    def engine(**options: Any) -> Engine:
        return Engine(net(), sgd(), batch_size=5, evaluate_every=1, **options)

    result = engine().run(class_stream())
    assert float(result.measure("stability_gap")) >= 0
    rows = [e for e in result.events if e["event"] == "evaluation"]
    after = {j: [e["value"] for e in rows if e["set"] == j and e["update"] > 4 * (j + 1)] for j in range(2)}
    assert float(result.measure("minimum_accuracy")) == pytest.approx(np.mean([min(column) for column in after.values()]))
    with pytest.raises(Stop):
        engine(checkpoint_every=1, progress=stop_at(6)).run(class_stream(), tmp_path)
    resumed = engine(checkpoint_every=1).resume(tmp_path, class_stream())
    assert {n: m for n, m in resumed.every_metric.items() if m.unit != "seconds" and n != "time_efficiency"} == {
        n: m for n, m in result.every_metric.items() if m.unit != "seconds" and n != "time_efficiency"
    }
    assert Result.load(tmp_path).measure("anytime_accuracy") == result.measure("anytime_accuracy")
