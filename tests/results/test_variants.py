"""The definitions that circulate under the names of the usual metrics: by hand, against peers' code, and against one another."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from streamlearn.errors import ConfigurationError
from streamlearn.results import METRICS, compute
from streamlearn.results.variants import VARIANTS

from .conftest import LEARNT, MATRIX, ONLINE, MakeResult
from .test_metrics import matrices

nan = np.nan

# R[0] = .1 .2 .3 | R[1] = .9 .3 .4 | R[2] = .7 1 .5 | R[3] = .5 .6 .8
BY_HAND = {
    "accuracy_area": (0.9 + 0.7 + 1.0 + 0.5 + 0.6 + 0.8) / 6,
    "backward_transfer_all_rows": ((0.7 - 0.9) + (0.5 - 0.9) + (0.6 - 1.0)) / 3,
    "backward_transfer_over_all_experiences": ((0.5 - 0.9) + (0.6 - 1.0) + 0) / 3,
    "positive_backward_transfer": 0.0,
    "remembering": 1 - 1 / 3,
    "forward_transfer_without_baseline": (0.3 + 0.5) / 2,
    "forward_transfer_upper_triangle": (0.3 + 0.4 + 0.5) / 3,
    "forgetting_since_learnt": (0.4 + 0.4) / 2,
    "forgetting_including_last_row": (0.4 + 0.4) / 2,
    "forgetting_over_all_rows": (0.4 + 0.4) / 2,
    "forgetting_from_first": (0.4 + 0.4) / 2,
    "worst_forgetting": 0.4,
    "relative_forgetting": (0.4 / 0.9 + 0.4 / 1.0) / 2,
}


def values(r: object, **options: object) -> dict[str, float]:
    return {name: float(measure) for name, measure in compute(r, variants=True, **options).items()}  # type: ignore[arg-type]


def test_hand_computed_values() -> None:
    found = values(MATRIX)
    assert list(found) == [*METRICS, *VARIANTS]
    assert list(VARIANTS) == list(BY_HAND)
    assert {name: found[name] for name in BY_HAND} == pytest.approx(BY_HAND, abs=1e-14)


def test_where_the_definitions_of_forgetting_part() -> None:
    # set 0 gets better after it was learnt and worse again; set 1 was best before it was learnt; both end at 0.6
    r = [[0, 0, 0, 0], [0.7, 0.9, 0, 0], [0.8, 0.7, 0, 0], [0.5, 0.4, 1, 0], [0.6, 0.6, 1, 1]]
    found = values(r)
    assert found["forgetting"] == pytest.approx((0.2 + 0.3 + 0) / 3)
    assert found["forgetting_since_learnt"] == pytest.approx((0.2 + 0.1 + 0) / 3)
    assert found["forgetting_from_first"] == pytest.approx((0.1 + 0.1 + 0) / 3)
    assert found["worst_forgetting"] == pytest.approx(0.3)
    assert found["relative_forgetting"] == pytest.approx((0.2 / 0.8 + 0.3 / 0.9 + 0) / 3)
    r[-1] = [0.9, 0.6, 1, 1]  # the end is the best of set 0
    found = values(r)
    assert found["forgetting"] == pytest.approx((-0.1 + 0.3 + 0) / 3)
    assert found["forgetting_since_learnt"] == pytest.approx((-0.1 + 0.1 + 0) / 3)
    assert found["forgetting_including_last_row"] == pytest.approx((0 + 0.1 + 0) / 3)
    assert found["forgetting_over_all_rows"] == pytest.approx((0 + 0.3 + 0) / 3)


def test_transfer_that_is_positive() -> None:
    found = values([[0, 0, 0], [0.5, 0, 0], [0.6, 0.5, 0], [0.7, 0.9, 1]])
    assert found["backward_transfer_all_rows"] == pytest.approx((0.1 + 0.2 + 0.4) / 3)
    assert found["positive_backward_transfer"] == pytest.approx((0.1 + 0.2 + 0.4) / 3)
    assert found["remembering"] == 1.0


@given(matrices)
@settings(deadline=None)
def test_identities_and_bounds(r: np.ndarray) -> None:
    r[1:-1, :-1] = np.maximum(r[1:-1, :-1], 0.01)  # relative forgetting is defined
    t, found = r.shape[1], values(r)
    assert found["forgetting_from_first"] == pytest.approx(-found["backward_transfer"], abs=1e-12)
    assert found["backward_transfer_over_all_experiences"] == pytest.approx((t - 1) / t * found["backward_transfer"], abs=1e-12)
    assert found["remembering"] - found["positive_backward_transfer"] == pytest.approx(
        1 - abs(found["backward_transfer_all_rows"])
        if found["backward_transfer_all_rows"] < 0
        else 1 - found["backward_transfer_all_rows"],
        abs=1e-12,
    )
    chain = ("forgetting_from_first", "forgetting_including_last_row", "forgetting_over_all_rows", "worst_forgetting")
    assert found["forgetting_from_first"] <= found["forgetting_since_learnt"] + 1e-12
    assert found["forgetting_since_learnt"] <= min(found["forgetting_including_last_row"], found["forgetting"]) + 1e-12
    assert found["forgetting_including_last_row"] <= found["forgetting_over_all_rows"] + 1e-12
    assert found["forgetting"] <= min(found["worst_forgetting"], found["forgetting_over_all_rows"]) + 1e-12
    assert found["forgetting_including_last_row"] >= 0
    assert found["relative_forgetting"] <= 1
    assert all(-1 <= found[name] <= 1 for name in chain)
    for name in ("accuracy_area", "positive_backward_transfer", "remembering", "forward_transfer_without_baseline"):
        assert 0 <= found[name] <= 1
    if t == 2:
        assert found["backward_transfer_all_rows"] == pytest.approx(found["backward_transfer"], abs=1e-12)
        assert found["forward_transfer_upper_triangle"] == pytest.approx(found["forward_transfer_without_baseline"], abs=1e-12)


@given(matrices)
@settings(deadline=None)
def test_each_needs_exactly_the_entries_of_its_formula(r: np.ndarray) -> None:
    r = 0.1 + 0.9 * r
    t = r.shape[1]
    rows, columns = np.indices(r.shape)
    diagonal, last, below, early = rows == columns + 1, rows == t, rows > columns, columns < t - 1
    expected = dict.fromkeys(VARIANTS, below & early) | {
        "accuracy_area": below,
        "backward_transfer_over_all_experiences": diagonal | last,
        "forgetting_from_first": (diagonal | last) & early,
        "forward_transfer_without_baseline": (rows == columns) & (columns > 0),
        "forward_transfer_upper_triangle": ~below & (rows > 0),
    }
    for name, needed in expected.items():
        for i, j in np.ndindex(r.shape):
            holed = r.copy()
            holed[i, j] = nan
            assert (VARIANTS[name](holed).value is None) == needed[i, j], (name, i, j)


@pytest.fixture(scope="module")
def avalanche() -> Any:
    pytest.importorskip("avalanche")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from avalanche.evaluation.functional import forgetting
        from avalanche.evaluation.metrics.forgetting_bwt import BWT, Forgetting
    return forgetting, Forgetting, BWT


@given(matrices)
@settings(deadline=None)
def test_agreement_with_avalanche(avalanche: Any, r: np.ndarray) -> None:
    over_time, Forgetting, BWT = avalanche
    r = 0.5 + r / 2  # relative forgetting is defined
    t, found = r.shape[1], values(r)
    forgetting, transfer = Forgetting(), BWT()
    for metric in (forgetting, transfer):
        for j in range(t):
            metric.update(j, r[j + 1, j], initial=True)
        for j in range(t - 1):
            metric.update(j, r[t, j])
    assert np.mean(list(forgetting.result().values())) == pytest.approx(found["forgetting_from_first"], abs=1e-12)
    assert np.mean(list(transfer.result().values())) == pytest.approx(found["backward_transfer"], abs=1e-12)
    assert over_time(r[1:])[-1, :-1].mean() == pytest.approx(found["forgetting_from_first"], abs=1e-12)


def test_a_set_that_was_never_predicted() -> None:
    measure = VARIANTS["relative_forgetting"]([[0, 0, 0], [0.5, 0, 0], [0.5, 0, 0], [0.5, 0, 1]])
    assert measure.value is None
    assert measure.reason == "set 1 was never predicted, so that no part of its accuracy can be lost"


def test_a_single_experience_and_class_incremental_streams() -> None:
    measures = compute([[0.25], [0.75]], variants=True)
    assert measures.pop("accuracy_area").value == 0.75
    for name in measures.keys() & VARIANTS.keys():
        assert measures[name].reason == "it needs at least 2 experiences, this run has 1"
    measures = compute(MATRIX, class_incremental=True, variants=True)
    undefined = {name for name, measure in measures.items() if measure.value is None}
    assert undefined == {"forward_transfer", "forward_transfer_without_baseline", "forward_transfer_upper_triangle"}


def test_an_incomplete_run_has_no_variant() -> None:
    assert {measure.value for measure in compute(MATRIX, trained=2, variants=True).values()} == {None}


def test_where_experiences_share_an_evaluation_set() -> None:
    found = compute(ONLINE, learnt=LEARNT, variants=True)
    assert float(found["forgetting_from_first"]) == pytest.approx(0.9 - 0.6)
    assert float(found["accuracy_area"]) == pytest.approx((0.9 + 0.6 + 0.7) / 3)


def test_every_variant_carries_its_definition_and_refuses_what_is_no_matrix() -> None:
    for name, function in VARIANTS.items():
        measure = function(MATRIX)
        assert (measure.name, measure.unit) == (name, "fraction")
        assert "R[" in measure.formula
        with pytest.raises(ConfigurationError, match="divide percentages by 100"):
            function([[70.0, 20.0], [1.0, 1.0], [1.0, 1.0]])


def test_a_result_gives_them_by_name_and_shows_the_usual_ones(make_result: MakeResult) -> None:
    result = make_result()
    assert list(result.metrics) == list(METRICS)
    assert list(result.every_metric)[: len(METRICS) + len(VARIANTS)] == [*METRICS, *VARIANTS]
    assert float(result.measure("worst_forgetting")) == pytest.approx(0.4)
    assert list(result.to_json()["metrics"]) == list(METRICS)
    with pytest.raises(Exception, match="unknown metric 'worst_forgeting': did you mean 'worst_forgetting'"):
        result.measure("worst_forgeting")
