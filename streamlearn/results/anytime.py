"""Metrics of evaluations within experiences (``Engine(evaluate_every=...)``): how good a model is at any time, not only at the ends.

``A_n`` are the accuracies at evaluation ``n``, after ``u_n`` updates; ``b_k`` is the number of updates made when the training of set ``k``
begins and ``e_k`` when it ends. Sets are counted from 0, and there are ``T`` of them, learnt one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from streamlearn.results.measure import Matrix, Measure
from streamlearn.results.trajectory import Trajectory

__all__ = ["ANYTIME"]

_WINDOW = 10
_BATCHES = 10
_CACCIA = "Caccia et al. 2020 (OSAKA); Soutif-Cormerais et al. 2023"
_DE_LANGE = "De Lange et al. 2023"
_OURS = "defined here, after De Lange et al. 2023"
_TWO = "it needs at least 2 evaluation sets, this run has 1"

Found = tuple[float | None, str | None]


def anytime_accuracy(t: Trajectory) -> Found:
    """Accuracy on the sets met so far, the one being learnt among them, averaged over every evaluation but that before training (AAA)."""
    places = np.flatnonzero(t.seen.any(axis=1))
    missing = np.isnan(t.values) & t.seen
    if missing.any():
        return None, _lacking(t, missing)
    return float(np.mean([t.values[n, t.seen[n]].mean() for n in places])), None


def minimum_accuracy(t: Trajectory) -> Found:
    """The lowest accuracy on each set after it was learnt, averaged over all sets but the last (min-ACC)."""
    lowest, reason = _lowest(t)
    return (float(np.mean(lowest)), None) if lowest else (None, reason)


def worst_case_accuracy(t: Trajectory) -> Found:
    """The final accuracy on the last set and the lowest ones on the others, each with weight 1/T (WC-ACC)."""
    (lowest, reason), end = _lowest(t), t.at(int(t.last[-1]))
    if not lowest:
        return None, reason
    if end is None or np.isnan(t.values[end, -1]):
        return None, f"it needs the accuracy on set {len(t.first) - 1} at the end of the stream, which is undefined or not measured"
    return float(np.mean([*lowest, t.values[end, -1]])), None


def _lowest(t: Trajectory) -> tuple[list[float], str | None]:
    lowest = []
    for number in range(len(t.first) - 1):
        column = t.values[t.updates > t.last[number], number]
        if np.isnan(column).any():
            return [], f"it needs every accuracy on set {number} after it was learnt, and one is undefined"
        lowest.append(float(column.min()))
    return lowest, None if lowest else _TWO


def drop_after_switch(t: Trajectory) -> Found:
    """How far the accuracy on an earlier set falls while a later one is learnt, averaged over all such pairs: drop for good or not."""
    return _mean_over_switches(t, lambda before, inside, _: before - inside.min())


def stability_gap(t: Trajectory) -> Found:
    """The part of that drop that is made good again: how far the lowest point lies below both ends, averaged over all such pairs."""
    return _mean_over_switches(t, lambda before, inside, _: min(before, inside[-1]) - min(before, inside.min()))


def recovery_updates(t: Trajectory) -> Found:
    """Updates until the accuracy on an earlier set, past its lowest point, is again what it is when the later set has been learnt.

    0 where it never falls below its value before; all updates of the later set where it only falls.
    """

    def updates(before: float, inside: Matrix, since: Matrix) -> float:
        if inside.min() >= before:
            return 0.0
        lowest = int(inside.argmin())
        return float(since[lowest + int(np.argmax(inside[lowest:] >= inside[-1]))])

    return _mean_over_switches(t, updates)


def _mean_over_switches(t: Trajectory, of: Callable[[float, Matrix, Matrix], float]) -> Found:
    """The mean of ``of(before, inside, updates since)`` over every set ``k`` that is learnt and every earlier set ``j``."""
    found = []
    for k in range(1, len(t.first)):
        before, inside = t.at(int(t.first[k])), t.between(int(t.first[k]), int(t.last[k]))
        if before is None or t.at(int(t.last[k])) is None:
            return None, f"it needs evaluations right before and after set {k} was learnt: leave the engine's evaluate at 'experience'"
        columns = t.values[[before, *inside], :k]
        if np.isnan(columns).any():
            return None, f"it needs the accuracies on earlier sets while set {k} was learnt, and one is undefined"
        since = (t.updates[inside] - t.first[k]).astype(np.float64)
        found += [of(float(columns[0, j]), columns[1:, j], since) for j in range(k)]
    return (float(np.mean(found)), None) if found else (None, _TWO)


def windowed_forgetting_10(t: Trajectory) -> Found:
    """The largest drop between two of 10 evaluations in a row, at least 0, averaged over sets (WF^10)."""
    return _windowed(t, -1.0)


def windowed_plasticity_10(t: Trajectory) -> Found:
    """The largest rise between two of 10 evaluations in a row, at least 0, averaged over sets (WP^10)."""
    return _windowed(t, 1.0)


def _windowed(t: Trajectory, sign: float) -> Found:
    largest = []
    for number in range(len(t.first)):
        column = t.values[t.seen[:, number], number]
        if np.isnan(column).any():
            return None, f"it needs every accuracy on set {number} since its training began, and one is undefined"
        changes = [(sign * (column[n] - column[max(0, n - _WINDOW + 1) : n])).max(initial=0.0) for n in range(len(column))]
        largest.append(max(changes, default=0.0))
    return float(np.mean(largest)), None


def learning_curve_area_10(t: Trajectory) -> Found:
    """Accuracy on the set being learnt after each of its first 10 updates and before them, averaged (LCA_10)."""
    curves = []
    for number, first in enumerate(t.first.tolist()):
        if t.last[number] < first + _BATCHES:
            return None, f"it needs {_BATCHES} updates for each set, and set {number} was learnt in {t.last[number] - first}"
        places = [place for batch in range(_BATCHES + 1) if (place := t.at(first + batch)) is not None]
        if len(places) <= _BATCHES:
            return (
                None,
                f"it needs the accuracy on set {number} after each of its first {_BATCHES} updates: give the engine evaluate_every=1",
            )
        curves.append(t.values[places, number])
    if np.isnan(curves).any():
        return None, "an accuracy on a set before its training, or in its first updates, is undefined"
    return float(np.mean(curves)), None


def _lacking(t: Trajectory, missing: np.ndarray) -> str:
    n, number = (int(place) for place in np.argwhere(missing)[0])
    return f"it needs the accuracy on set {number} after {t.updates[n]} updates, which is undefined or not measured"


_DEFINITIONS: tuple[tuple[Callable[[Trajectory], Found], str, str], ...] = (
    (anytime_accuracy, "mean over evaluations n > 0 of the mean over sets k with b_k < u_n of A_n[k]", _CACCIA),
    (minimum_accuracy, "mean over k < T-1 of min over u_n > e_k of A_n[k]", f"{_DE_LANGE}, min-ACC"),
    (worst_case_accuracy, "A_end[T-1] / T + (1 - 1/T) mean over k < T-1 of min over u_n > e_k of A_n[k]", f"{_DE_LANGE}, WC-ACC"),
    (drop_after_switch, "mean over j < k of A[j] at b_k - min over b_k < u_n <= e_k of A_n[j]", _OURS),
    (stability_gap, "mean over j < k of m - min(m, min over b_k < u_n <= e_k of A_n[j]), m = min of A[j] at b_k and at e_k", _OURS),
    (recovery_updates, "mean over j < k of updates from b_k until A[j], past its minimum, is at least A[j] at e_k", _OURS),
    (windowed_forgetting_10, "mean over k of max over m < n < m + 10 of A_m[k] - A_n[k], from b_k on", f"{_DE_LANGE}, WF"),
    (windowed_plasticity_10, "mean over k of max over m < n < m + 10 of A_n[k] - A_m[k], from b_k on", f"{_DE_LANGE}, WP"),
    (learning_curve_area_10, "mean over b = 0..10 and over k of A[k] after b updates of set k", "Chaudhry et al. 2019 (A-GEM), LCA"),
)


def _named(function: Callable[[Trajectory], Found], formula: str, source: str) -> Callable[[Trajectory | str], Measure]:
    unit = "updates" if function is recovery_updates else "fraction"

    def compute(found: Trajectory | str) -> Measure:
        value, reason = (None, found) if isinstance(found, str) else function(found)
        return Measure(function.__name__, value, formula, source, reason, unit)

    compute.__doc__ = function.__doc__
    return compute


ANYTIME: Mapping[str, Callable[[Trajectory | str], Measure]] = MappingProxyType(
    {function.__name__: _named(function, formula, source) for function, formula, source in _DEFINITIONS}
)
"""From a trajectory, or the reason why there is none, to each metric."""
