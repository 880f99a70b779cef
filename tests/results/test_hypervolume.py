"""The hypervolume: hand cases, an independent count by inclusion and exclusion, and what must hold of any set of points."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from streamlearn.errors import ConfigurationError
from streamlearn.results.hypervolume import hypervolume

Points = NDArray[np.float64]


def volume(points: object, reference: object, *, maximize: bool = False) -> float:
    return float(hypervolume(points, reference, maximize=maximize))  # type: ignore[arg-type]


def fronts(objectives: int, most: int = 6) -> st.SearchStrategy[Points]:
    """Points of which some share coordinates, some are dominated, and some lie beyond the reference (1, ...)."""
    value = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5]), st.floats(-1, 2, allow_nan=False, width=32))
    return st.integers(0, most).flatmap(lambda n: arrays(np.float64, (n, objectives), elements=value))


FRONTS = st.integers(1, 3).flatmap(fronts)


def by_inclusion_and_exclusion(points: Points, reference: Points) -> float:
    """Σ over subsets of (-1)^(size + 1) times the volume of the intersection of their boxes."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for chosen in itertools.combinations(points.tolist(), size):
            corner = np.max(np.array(chosen), axis=0)
            total += (-1) ** (size + 1) * float(np.prod(np.maximum(reference - corner, 0)))
    return total


@pytest.mark.parametrize(
    ("points", "reference", "expected"),
    [
        ([[1.0]], (4.0,), 3.0),
        ([[3.0], [1.0], [2.0]], (4.0,), 3.0),
        ([[1.0, 1.0]], (2.0, 3.0), 2.0),
        ([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]], (4.0, 4.0), 6.0),
        ([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [3.5, 3.5]], (4.0, 4.0), 6.0),
        ([[1.0, 3.0], [1.0, 3.0]], (4.0, 4.0), 3.0),
        ([[1.0, 5.0]], (4.0, 4.0), 0.0),
        ([[4.0, 1.0]], (4.0, 4.0), 0.0),
        ([], (2.0, 2.0), 0.0),
        ([[0.0, 0.0, 0.0]], (2.0, 3.0, 4.0), 24.0),
        ([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]], (2.0, 2.0, 2.0), 4.0),
        ([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], (2.0, 2.0, 2.0), 5.0),
    ],
)
def test_by_hand(points: list[list[float]], reference: tuple[float, ...], expected: float) -> None:
    assert volume(points, reference) == pytest.approx(expected, abs=1e-12)


def test_accuracies_are_maximised() -> None:
    assert volume([[0.9, 0.5], [0.6, 0.8]], (0.1, 0.1), maximize=True) == pytest.approx(0.8 * 0.4 + 0.5 * 0.3)
    told = hypervolume([[0.9, 0.5]], (0.1, 0.1), maximize=True)
    assert (told.name, told.unit) == ("hypervolume", "volume")
    assert told.formula == "of what the points dominate, maximising, down to the reference (0.1, 0.1)"


@settings(deadline=None, max_examples=150)
@given(FRONTS)
def test_as_by_inclusion_and_exclusion(points: Points) -> None:
    reference = np.ones(points.shape[1])
    assert volume(points, reference) == pytest.approx(by_inclusion_and_exclusion(points, reference), abs=1e-9)


@settings(deadline=None, max_examples=80)
@given(FRONTS, st.randoms(use_true_random=False), st.floats(0.1, 9), st.floats(-3, 3))
def test_order_scale_place_and_direction(points: Points, random: object, scale: float, place: float) -> None:
    objectives = points.shape[1]
    reference = np.ones(objectives)
    found = volume(points, reference)
    rows, columns = list(range(len(points))), list(range(objectives))
    random.shuffle(rows)  # type: ignore[attr-defined]
    random.shuffle(columns)  # type: ignore[attr-defined]
    assert volume(points[rows][:, columns], reference) == pytest.approx(found, rel=1e-9, abs=1e-9)
    assert volume(scale * points + place, scale * reference + place) == pytest.approx(scale**objectives * found, rel=1e-6, abs=1e-6)
    assert volume(-points, -reference, maximize=True) == pytest.approx(found, rel=1e-12, abs=1e-12)


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 3).flatmap(lambda n: st.tuples(fronts(n), arrays(np.float64, (n,), elements=st.floats(-1, 1)))))
def test_a_further_point_never_takes_away_and_a_dominated_one_adds_nothing(given_points: tuple[Points, Points]) -> None:
    points, more = given_points
    reference = np.ones(points.shape[1])
    found = volume(points, reference)
    box = float(np.prod(np.maximum(reference - more, 0)))
    with_more = volume(np.vstack([points, more]), reference)
    assert max(found, box) - 1e-9 <= with_more <= found + box + 1e-9
    if len(points):
        assert volume(np.vstack([points, points[0] + 0.25]), reference) == pytest.approx(found, abs=1e-9)


def test_by_counting_random_places() -> None:
    draw = np.random.default_rng(0)
    points = draw.random((12, 3))
    places = draw.random((200_000, 3))
    dominated = (points[:, None] <= places[None]).all(2).any(0).mean()
    assert volume(points, (1, 1, 1)) == pytest.approx(float(dominated), abs=0.005)


@pytest.mark.parametrize(
    ("points", "reference", "message"),
    [
        ([[1.0, 2.0]], (1.0, 2.0, 3.0), r"points have shape \(1, 2\), but the reference has 3 values"),
        ([1.0, 2.0], (1.0, 2.0), r"points have shape \(2,\)"),
        ([[1.0] * 4], (1.0,) * 4, r"the reference has shape \(4,\): give one value for each objective, of which there are 1, 2 or 3"),
        ([[math.nan, 1.0]], (1.0, 1.0), "a point or the reference holds NaN or infinity"),
        ([[0.0, 1.0]], (math.inf, 1.0), "a point or the reference holds NaN or infinity"),
    ],
)
def test_what_has_no_volume_is_refused(points: list[object], reference: tuple[float, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        hypervolume(points, reference)  # type: ignore[arg-type]
