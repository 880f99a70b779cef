"""The hypervolume of a set of points: how much of what is worse than them, down to a reference, they dominate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamlearn.errors import ConfigurationError
from streamlearn.results.measure import Measure

__all__ = ["hypervolume"]

Points = NDArray[np.float64]


def hypervolume(points: ArrayLike, reference: Sequence[float], *, maximize: bool = False) -> Measure:
    r"""How much volume the points dominate, exactly, for one, two or three objectives; a larger one is a better front.

    .. math:: HV(P, r) = \lambda\Bigl(\bigcup_{p \in P} [p_1, r_1] \times \dots \times [p_n, r_n]\Bigr)

    with ``λ`` the area or volume. Objectives are minimised (losses, errors). A point counts with the box between it and the reference;
    one that is not better than the reference in every objective counts nothing. The number means something beside the same reference
    only, which the formula tells: (2, 2) for the losses of MultiMNIST in Ruchte and Grabocka.

    Computed by a sweep: in two objectives over the points as the first grows, O(n log n); in three over the third, with the area of the
    first two between each two levels, O(n² log n).

    Args:
        points: ``(points, objectives)``, one point (a trained model) a row; none gives 0. Finite.
        reference: one value for each objective: the worst that still counts.
        maximize: objectives are maximised (accuracies), and the reference is the least that still counts.

    Raises:
        ConfigurationError: points and reference do not fit together, a value is not finite, or there are more than three objectives.

    Source: Zitzler and Thiele, "Multiobjective optimization using evolutionary algorithms: a comparative case study", PPSN 1998;
        Ruchte and Grabocka, "Scalable Pareto front approximation for deep multi-objective learning", ICDM 2021.

    Example:
        >>> hypervolume([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [3.0, 3.0]], (4.0, 4.0))
        Measure(hypervolume = 6 volume, of what the points dominate, minimising, up to the reference (4, 4))
    """
    known = np.asarray(reference, dtype=np.float64)
    found = np.asarray(points, dtype=np.float64)
    found = found.reshape(0, len(known)) if found.size == 0 and known.ndim == 1 else found
    if known.ndim != 1 or not 1 <= len(known) <= 3:
        raise ConfigurationError(f"the reference has shape {known.shape}: give one value for each objective, of which there are 1, 2 or 3")
    if found.ndim != 2 or found.shape[1] != len(known):
        raise ConfigurationError(f"points have shape {found.shape}, but the reference has {len(known)} values: give (points, objectives)")
    if not (np.isfinite(found).all() and np.isfinite(known).all()):
        raise ConfigurationError("a point or the reference holds NaN or infinity: leave such points out")
    told = ", ".join(f"{value:g}" for value in known.tolist())
    way, to = ("maximising", "down") if maximize else ("minimising", "up")
    # from here on, how much better than the reference: boxes that begin at 0
    gains = found - known if maximize else known - found
    volume = _volume(gains[(gains > 0).all(1)])
    formula = f"of what the points dominate, {way}, {to} to the reference ({told})"
    return Measure("hypervolume", volume, formula, "Zitzler and Thiele 1998", unit="volume")


def _volume(gains: Points) -> float:
    """Of the union of the boxes from 0 to each point."""
    if not len(gains):
        return 0.0
    if gains.shape[1] == 1:
        return float(gains.max())
    if gains.shape[1] == 2:
        return _area(gains)
    levels = np.unique(gains[:, 2])
    below = np.concatenate([[0.0], levels[:-1]])
    slabs = [(top - bottom) * _area(gains[gains[:, 2] >= top][:, :2]) for bottom, top in zip(below, levels, strict=True)]
    return float(np.sum(slabs))


def _area(gains: Points) -> float:
    """Of the union of the rectangles from 0: from the widest to the narrowest, what each adds in height."""
    widest = gains[np.lexsort((-gains[:, 1], -gains[:, 0]))]
    heights = np.maximum.accumulate(widest[:, 1])
    added = np.diff(heights, prepend=0.0)
    return float(np.sum(widest[:, 0] * added))
