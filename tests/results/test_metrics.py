from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from streamlearn.errors import ConfigurationError
from streamlearn.results import METRICS, compute
from streamlearn.results.metrics import (
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
)

from .conftest import LEARNT, MATRIX, ONLINE

nan = np.nan
matrices = st.integers(2, 6).flatmap(lambda t: arrays(np.float64, (t + 1, t), elements=st.floats(0, 1, width=32)))


def test_hand_computed_values() -> None:
    # R[0] = .1 .2 .3 | R[1] = .9 .3 .4 | R[2] = .7 1 .5 | R[3] = .5 .6 .8
    expected = {
        "average_accuracy": (0.5 + 0.6 + 0.8) / 3,
        "average_incremental_accuracy": (0.9 + (0.7 + 1.0) / 2 + (0.5 + 0.6 + 0.8) / 3) / 3,
        "forgetting": ((0.9 - 0.5) + (1.0 - 0.6)) / 2,
        "backward_transfer": ((0.5 - 0.9) + (0.6 - 1.0)) / 2,
        "forward_transfer": ((0.3 - 0.2) + (0.5 - 0.3)) / 2,
        "learning_accuracy": (0.9 + 1.0 + 0.8) / 3,
    }
    measures = compute(MATRIX)
    assert list(measures) == list(METRICS) == list(expected)
    for name, value in expected.items():
        assert float(measures[name]) == pytest.approx(value, abs=1e-15), name


def test_forgetting_takes_the_maximum_of_the_papers_rows() -> None:
    # the best of column 0 is in row 2, after it was trained; of column 1 in row 1, before it was trained
    assert forgetting([[0, 0, 0], [0.5, 0.9, 0], [0.8, 0.6, 0], [0.4, 0.3, 1]]).value == pytest.approx((0.4 + 0.6) / 2)


def test_forgetting_leaves_out_the_row_before_training_and_the_last() -> None:
    assert forgetting([[1, 1], [0.2, 1], [0.7, 1]]).value == pytest.approx(-0.5)


def test_forgetting_does_without_rows_before_the_head_exists_but_not_without_later_ones() -> None:
    headless = [[nan, nan, nan], [0.9, nan, nan], [0.7, 1.0, nan], [0.5, 0.6, 0.8]]
    assert forgetting(headless).value == pytest.approx(0.4)
    headless[2][0] = nan
    assert "R[2, 0], the accuracy on set 0 after 2 of 3 experiences" in (forgetting(headless).reason or "")


@given(matrices)
def test_identities_and_bounds(r: np.ndarray) -> None:
    t = r.shape[1]
    values = {name: float(measure) for name, measure in compute(r).items()}
    transfer = (t - 1) / t * values["backward_transfer"]
    assert values["average_accuracy"] == pytest.approx(values["learning_accuracy"] + transfer, abs=1e-12)
    assert values["forgetting"] >= -values["backward_transfer"] - 1e-12
    for name in ("average_accuracy", "average_incremental_accuracy", "learning_accuracy"):
        assert 0 <= values[name] <= 1
    for name in ("forgetting", "backward_transfer", "forward_transfer"):
        assert -1 <= values[name] <= 1


@given(matrices, st.randoms(use_true_random=False))
def test_average_accuracy_does_not_know_the_order_of_the_sets(r: np.ndarray, random) -> None:
    order = list(range(r.shape[1]))
    random.shuffle(order)
    assert float(average_accuracy(r[:, order])) == pytest.approx(float(average_accuracy(r)), abs=1e-12)


@given(matrices)
def test_without_interference_nothing_is_forgotten(r: np.ndarray) -> None:
    for j in range(r.shape[1]):
        r[j + 1 :, j] = r[j + 1, j]
        r[: j + 1, j] = 0
    assert float(backward_transfer(r)) == 0
    assert float(forgetting(r)) == 0
    assert float(forward_transfer(r)) == 0
    assert float(average_accuracy(r)) == float(learning_accuracy(r))


@given(matrices)
def test_each_metric_needs_exactly_the_entries_of_its_formula(r: np.ndarray) -> None:
    """An entry changes the value (or makes it undefined when missing) only where the formula has it."""
    t = r.shape[1]
    rows, columns = np.indices(r.shape)
    diagonal, last, first = rows == columns + 1, rows == t, rows == 0
    expected = {
        average_accuracy: last,
        average_incremental_accuracy: rows > columns,
        forgetting: (rows > columns) & (columns < t - 1),
        backward_transfer: (diagonal | last) & (columns < t - 1),
        forward_transfer: ((rows == columns) | first) & (columns > 0),
        learning_accuracy: diagonal,
    }
    for function, needed in expected.items():
        for i, j in np.ndindex(r.shape):
            holed = r.copy()
            holed[i, j] = nan
            assert (function(holed).value is None) == needed[i, j], (function.__name__, i, j)


def test_a_single_experience() -> None:
    measures = compute([[0.25], [0.75]])
    for name in ("average_accuracy", "average_incremental_accuracy", "learning_accuracy"):
        assert float(measures[name]) == 0.75
    for name in ("forgetting", "backward_transfer", "forward_transfer"):
        assert measures[name].value is None
        assert measures[name].reason == "it needs at least 2 experiences, this run has 1"


def test_a_missing_entry_is_named() -> None:
    reason = forward_transfer([[nan, nan], [1, 0.5], [1, 1]]).reason
    assert reason == "it needs R[0, 1], the accuracy on set 1 before any training, which is undefined or not measured"


def test_forward_transfer_in_class_incremental_streams() -> None:
    measure = forward_transfer(MATRIX, class_incremental=True)
    assert measure.value is None
    assert measure.reason == "in a class-incremental stream, classes not yet trained can never be predicted"
    measures = compute(MATRIX, class_incremental=True)
    assert [name for name, found in measures.items() if found.value is None] == ["forward_transfer"]


def test_an_incomplete_run_has_no_metric() -> None:
    measures = compute(MATRIX, trained=2)
    assert {measure.reason for measure in measures.values()} == {"the run is not complete: 2 of 3 experiences have been trained"}
    assert {measure.value for measure in measures.values()} == {None}
    assert compute(MATRIX, trained=3)["forgetting"].value is not None


def test_what_is_no_accuracy_has_no_metric() -> None:
    measures = compute([[30.0, 20.0], [1.0, 20.0], [2.0, 1.0]], metric="mean_squared_error")
    assert {measure.reason for measure in measures.values()} == {"it is defined for accuracies, and mean_squared_error is none"}


def test_where_experiences_share_an_evaluation_set_the_rows_in_which_one_has_been_learnt_count() -> None:
    expected = {
        "average_accuracy": (0.6 + 0.7) / 2,
        "average_incremental_accuracy": (0.9 + (0.6 + 0.7) / 2) / 2,
        "forgetting": 0.9 - 0.6,
        "backward_transfer": 0.6 - 0.9,
        "forward_transfer": 0.5 - 0.4,
        "learning_accuracy": (0.9 + 0.7) / 2,
    }
    measures = compute(ONLINE, learnt=LEARNT)
    assert list(measures) == list(expected)
    for name, value in expected.items():
        assert float(measures[name]) == pytest.approx(value, abs=1e-15), name


def test_the_last_row_is_the_end_of_the_stream_even_when_the_last_set_was_learnt_before() -> None:
    assert compute(ONLINE, learnt=[3, 5]) == compute(ONLINE, learnt=LEARNT)
    assert compute([[0.1], [0.9], [0.4]], learnt=[1])["average_accuracy"].value == 0.4


@given(matrices)
def test_with_a_set_for_each_experience_nothing_changes(r: np.ndarray) -> None:
    assert compute(r, learnt=range(1, len(r))) == compute(r) == {name: function(r) for name, function in METRICS.items()}


@given(matrices, st.integers(1, 3))
def test_rows_between_those_that_count_change_nothing(r: np.ndarray, times: int) -> None:
    long = np.repeat(r, times, axis=0)[times - 1 :]
    long[[i for i in range(len(long)) if i % times]] = nan
    assert compute(long, learnt=[times * (j + 1) for j in range(r.shape[1])]) == compute(r)


def test_a_missing_entry_is_named_by_its_place_in_the_matrix_of_the_run() -> None:
    holed = np.array(ONLINE)
    holed[3, 0] = nan
    reason = compute(holed, learnt=LEARNT)["backward_transfer"].reason
    assert reason == "it needs R[3, 0], the accuracy on set 0 after 3 of 6 experiences, which is undefined or not measured"
    holed[0, 1] = nan
    assert "R[0, 1], the accuracy on set 1 before any training" in (compute(holed, learnt=LEARNT)["forward_transfer"].reason or "")


def test_one_evaluation_set_for_all_experiences() -> None:
    measures = compute([[0.25], [0.5], [0.75]], learnt=[2])
    for name in ("average_accuracy", "average_incremental_accuracy", "learning_accuracy"):
        assert float(measures[name]) == 0.75
    for name in ("forgetting", "backward_transfer", "forward_transfer"):
        assert measures[name].reason == "it needs at least 2 evaluation sets, this run has 1"


@pytest.mark.parametrize(
    ("matrix", "learnt"), [([[0, 0, 0], [0.5, 0.6, 0.7]], [1, 1, 1]), ([[0] * 3, [1] * 3, [0.5, 0.6, 0.7]], [2, 1, 2])]
)
def test_of_sets_that_are_learnt_together_or_out_of_order_only_the_average_is_defined(matrix: list[list[float]], learnt: list[int]) -> None:
    measures = compute(matrix, learnt=learnt)
    assert float(measures.pop("average_accuracy")) == pytest.approx(0.6)
    assert {measure.reason for measure in measures.values()} == {"its evaluation sets are not learnt one after another"}
    assert {measure.value for measure in measures.values()} == {None}
    assert list(measures) == list(METRICS)[1:]
    matrix[-1] = [0.5, nan, 0.7]
    reason = f"it needs R[{len(matrix) - 1}, 1], the accuracy on set 1 after {len(matrix) - 1} of {len(matrix) - 1} experiences"
    assert reason in (compute(matrix, learnt=learnt)["average_accuracy"].reason or "")


def test_a_run_is_complete_when_all_experiences_have_been_trained_not_as_many_as_there_are_sets() -> None:
    measures = compute(ONLINE, learnt=LEARNT, trained=2)
    assert {measure.reason for measure in measures.values()} == {"the run is not complete: 2 of 6 experiences have been trained"}
    together = compute([[0, 0, 0], [1, 1, 1]], learnt=[1, 1, 1], trained=1)
    assert together["average_accuracy"].value == 1.0


@pytest.mark.parametrize("learnt", [[3], [1, 2, 3], []])
def test_refuses_another_number_of_sets(learnt: list[int]) -> None:
    with pytest.raises(ConfigurationError, match=rf"this one has \(7, 2\) and learnt names {len(learnt)} evaluation sets: give one number"):
        compute(ONLINE, learnt=learnt)


@pytest.mark.parametrize("strange", [0, 7, -1])
def test_refuses_sets_that_are_learnt_outside_the_stream(strange: int) -> None:
    with pytest.raises(ConfigurationError, match=f"cannot be learnt after {strange} of 6 experiences: give numbers from 1 to 6 in learnt"):
        compute(ONLINE, learnt=[3, strange])


def test_percentages_are_refused_in_rows_that_do_not_count_too() -> None:
    with pytest.raises(ConfigurationError, match=r"R\[1, 0\] is 70\.0: divide percentages by 100"):
        compute([ONLINE[0], [70.0, 0.3], *ONLINE[2:]], learnt=LEARNT)


def test_every_measure_carries_its_definition() -> None:
    for name, measure in {**compute(MATRIX), **compute(MATRIX, trained=1)}.items():
        assert measure.name == name
        assert "R[" in measure.formula
        assert "20" in measure.source


def test_an_undefined_measure_is_no_number() -> None:
    measure = backward_transfer([[0.1], [0.9]])
    with pytest.raises(ConfigurationError, match="backward_transfer is undefined: it needs at least 2 experiences, this run has 1; test"):
        float(measure)
    assert repr(measure) == "Measure(backward_transfer is undefined: it needs at least 2 experiences, this run has 1)"


def test_repr_of_a_defined_measure() -> None:
    assert repr(average_accuracy(MATRIX)) == "Measure(average_accuracy = 0.6333, mean over j of R[T, j])"


@pytest.mark.parametrize("function", METRICS.values())
@pytest.mark.parametrize("matrix", [np.zeros((3, 3)), np.zeros((2, 3)), np.zeros(3), np.zeros((1, 0))])
def test_refuses_other_shapes(function, matrix: np.ndarray) -> None:
    with pytest.raises(ConfigurationError, match=r"has the shape \(experiences \+ 1, experiences\), this one has"):
        function(matrix)


@pytest.mark.parametrize(("value", "text"), [(97.5, "97.5"), (-0.1, "-0.1"), (np.inf, "inf")])
def test_refuses_percentages(value: float, text: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"accuracies lie in \[0, 1\], but R\[2, 0\] is {text}: divide percentages by 100"):
        compute([[0, 0], [0, 0], [value, 0]])
