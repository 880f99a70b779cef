"""The definitions of forgetting that circulate beside `streamlearn.results.metrics.forgetting`, each under a name of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from streamlearn.results.measure import Matrix, Measure, checked, columns, just_trained, measure, rows, since_trained

__all__ = ["FORGETTING"]


def _drops(r: Matrix, best: Callable[[Matrix, int], float]) -> Matrix:
    """For each experience but the last, how far its final accuracy lies below ``best(column, j)``."""
    return np.array([best(r[:, j], j) - r[-1, j] for j in range(r.shape[1] - 1)])


def _best_before_last(column: Matrix, j: int) -> float:
    return float(np.fmax.reduce(column[1:-1]))  # of rows before a head exists, none counts


def _forgetting(r: Matrix, after: Sequence[int] | None, name: str, formula: str, source: str, terms: Callable[[], ArrayLike]) -> Measure:
    needed = since_trained(r) & (columns(r) < r.shape[1] - 1)
    return measure(name, formula, source, r, needed=needed, terms=terms, least=2, after=after)


def forgetting_since_learnt(matrix: ArrayLike, *, after: Sequence[int] | None = None) -> Measure:
    """`forgetting` whose maximum leaves out the rows before an experience was trained: ``max_{j<l<T} R[l, j] - R[T, j]``.

    Example:
        >>> round(forgetting_since_learnt([[0.5, 0.5, 0], [0.6, 0.9, 0], [0.6, 0.8, 0], [0.6, 0.7, 1]]).value, 4)
        0.05
    """
    r = checked(matrix)
    formula = "mean over j < T-1 of (max over l = j+1..T-1 of R[l, j]) - R[T, j]"
    source = "Chaudhry et al. 2018, eq. 3, with l from j on"
    return _forgetting(
        r, after, "forgetting_since_learnt", formula, source, lambda: _drops(r, lambda column, j: float(column[j + 1 : -1].max()))
    )


def forgetting_including_last_row(matrix: ArrayLike, *, after: Sequence[int] | None = None) -> Measure:
    """`forgetting_since_learnt` whose maximum includes the last row: never negative, ``max_{j<l<=T} R[l, j] - R[T, j]``, in [0, 1].

    Example:
        >>> forgetting_including_last_row([[0.5, 0.5], [0.6, 0.5], [1.0, 0.8]]).value
        0.0
    """
    r = checked(matrix)
    formula = "mean over j < T-1 of (max over l = j+1..T of R[l, j]) - R[T, j]"
    source = "code of Buzzega et al. 2020 (Mammoth) and of Zhou et al. 2023 (PyCIL)"
    return _forgetting(
        r, after, "forgetting_including_last_row", formula, source, lambda: _drops(r, lambda column, j: float(column[j + 1 :].max()))
    )


def forgetting_over_all_rows(matrix: ArrayLike, *, after: Sequence[int] | None = None) -> Measure:
    """`forgetting` whose maximum includes the last row: never negative, ``max_{1<=l<=T} R[l, j] - R[T, j]``, in [0, 1].

    Rows before an experience was trained count where they were measured.

    Example:
        >>> round(forgetting_over_all_rows([[0.5, 0.5, 0], [0.6, 0.9, 0], [0.6, 0.8, 0], [0.6, 0.7, 1]]).value, 4)
        0.1
    """
    r = checked(matrix)
    formula = "mean over j < T-1 of (max over measured rows l = 1..T of R[l, j]) - R[T, j]"
    source = "code of Mai et al. 2022"
    return _forgetting(
        r, after, "forgetting_over_all_rows", formula, source, lambda: _drops(r, lambda column, j: float(np.fmax.reduce(column[1:])))
    )


def forgetting_from_first(matrix: ArrayLike, *, after: Sequence[int] | None = None) -> Measure:
    """From the first accuracy after training, not from the best: ``mean_{j<T-1} (R[j+1, j] - R[T, j])``; -`backward_transfer`.

    Example:
        >>> forgetting_from_first([[0.5, 0.5], [1.0, 0.5], [0.6, 0.8]]).value
        0.4
    """
    r = checked(matrix)
    return measure(
        "forgetting_from_first",
        "mean over j < T-1 of R[j+1, j] - R[T, j]",
        "code of Lomonaco et al. 2021 (Avalanche)",
        r,
        needed=(just_trained(r) | (rows(r) == r.shape[1])) & (columns(r) < r.shape[1] - 1),
        terms=lambda: (np.diag(r[1:]) - r[-1])[:-1],
        least=2,
        after=after,
    )


def worst_forgetting(matrix: ArrayLike, *, after: Sequence[int] | None = None) -> Measure:
    """The largest term of `forgetting` in place of their mean, in [-1, 1].

    Example:
        >>> worst_forgetting([[0, 0, 0], [0.9, 0, 0], [0.7, 1.0, 0], [0.5, 0.3, 1]]).value
        0.7
    """
    r = checked(matrix)
    formula = "max over j < T-1 of (max over measured rows l = 1..T-1 of R[l, j]) - R[T, j]"
    source = "Chaudhry et al. 2019 (A-GEM), table 2"
    return _forgetting(r, after, "worst_forgetting", formula, source, lambda: [_drops(r, _best_before_last).max()])


def relative_forgetting(matrix: ArrayLike, *, after: Sequence[int] | None = None) -> Measure:
    """Each term of `forgetting` as a part of the best accuracy, at most 1; undefined where the best accuracy is 0.

    Example:
        >>> round(relative_forgetting([[0.5, 0.5], [0.8, 0.5], [0.6, 0.8]]).value, 4)
        0.25
    """
    r = checked(matrix)
    best = np.array([_best_before_last(r[:, j], j) for j in range(r.shape[1] - 1)])
    formula = "mean over j < T-1 of 1 - R[T, j] / (max over measured rows l = 1..T-1 of R[l, j])"
    found = _forgetting(
        r, after, "relative_forgetting", formula, "code of contilab", lambda: 1.0 - r[-1, :-1] / np.where(best > 0, best, 1)
    )
    nothing = np.flatnonzero(best == 0)
    if found.value is None or not len(nothing):
        return found
    return replace(found, value=None, reason=f"set {nothing[0]} was never predicted, so that no part of its accuracy can be lost")


FORGETTING: tuple[Callable[..., Measure], ...] = (
    forgetting_since_learnt, forgetting_including_last_row, forgetting_over_all_rows, forgetting_from_first, worst_forgetting,
    relative_forgetting,
)  # fmt: skip
