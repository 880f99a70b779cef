"""Metrics of continual learning, each from the accuracy matrix alone, each naming the variant that it is.

The matrix ``R`` has shape ``(T + 1, T)`` for ``T`` experiences and entries in ``[0, 1]``: ``R[i, j]`` is the accuracy on
evaluation set ``j`` (from 0) when ``i`` experiences have been trained. Row 0 is before any training; the row that was
measured right after training experience ``j`` is ``R[j + 1]``; NaN marks what is undefined or was not measured.

Every experience has one evaluation set here. Where several share one (an online stream that comes in chunks), the matrix of the
run has more rows than these formulas speak of: ``T`` then stands for the number of evaluation sets, and ``R`` for the rows
before any training, after each evaluation set but the last has been learnt, and at the end of the stream. A column is trained
where its set has been learnt. `streamlearn.results.compute` takes these rows. Evaluation sets that are learnt together, or in
another order than that of the columns, leave only `average_accuracy` defined.

Several definitions circulate under each name (backward transfer averaged over all rows, or divided by T; forgetting whose
maximum includes the last row). A value is only comparable with one of the same formula, so `Measure` carries it; the variants have
names of their own in `streamlearn.results.variants`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

from streamlearn.results.measure import Measure, checked, columns, just_trained, measure, rows, since_trained

__all__ = [
    "METRICS",
    "NEVER_MET",
    "average_accuracy",
    "average_incremental_accuracy",
    "backward_transfer",
    "forgetting",
    "forward_transfer",
    "learning_accuracy",
]

NEVER_MET = "in a class-incremental stream, classes not yet trained can never be predicted"
"""Why forward transfer is undefined there."""


def average_accuracy(matrix: ArrayLike, *, after: Sequence[int] | None = None) -> Measure:
    """Accuracy after the whole stream, averaged over evaluation sets (ACC): ``mean_j R[T, j]``, in [0, 1].

    Every evaluation set counts alike, whatever its number of rows (the macro average).
    Source: Lopez-Paz and Ranzato 2017, "Gradient Episodic Memory", eq. 2.

    Args:
        matrix: the accuracy matrix, shape ``(T + 1, T)``.
        after: how many experiences had been trained at each of its rows, where that is not 0..T; used in reasons only.

    Raises:
        ConfigurationError: ``matrix`` has not the shape ``(T + 1, T)``, or an entry lies outside [0, 1].

    Example:
        >>> average_accuracy([[0.5, 0.5], [1.0, 0.5], [0.6, 0.8]]).value
        0.7
    """
    r = checked(matrix)
    return measure(
        "average_accuracy",
        "mean over j of R[T, j]",
        "Lopez-Paz and Ranzato 2017, eq. 2",
        r,
        needed=rows(r) == r.shape[1],
        terms=lambda: r[-1],
        after=after,
    )


def average_incremental_accuracy(matrix: ArrayLike, *, after: Sequence[int] | None = None) -> Measure:
    """Average over time of the mean accuracy on what has been trained so far: ``mean_{i=1..T} mean_{j<i} R[i, j]``, in [0, 1].

    Each evaluation set counts alike within a row. iCaRL measures one accuracy over all rows of the classes seen so far, which
    is the same number when the evaluation sets have equally many rows.
    Source: Rebuffi et al. 2017, "iCaRL", section 4.

    Raises:
        ConfigurationError: as for `average_accuracy`.

    Example:
        >>> average_incremental_accuracy([[0.5, 0.5], [1.0, 0.5], [0.6, 0.8]]).value
        0.85
    """
    r = checked(matrix)
    return measure(
        "average_incremental_accuracy",
        "mean over i = 1..T of the mean over j < i of R[i, j]",
        "Rebuffi et al. 2017, section 4",
        r,
        needed=since_trained(r),
        terms=lambda: [r[i, :i].mean() for i in range(1, len(r))],
        after=after,
    )


def forgetting(matrix: ArrayLike, *, after: Sequence[int] | None = None) -> Measure:
    """What was once known and is lost at the end: ``mean_{j<T-1} (max_{1<=l<=T-1} R[l, j] - R[T, j])``, in [-1, 1].

    The maximum is over the paper's rows ``l`` in ``{1..T-1}``: after each experience but the last. So row 0 (before training)
    and the last row are out, which makes it negative when the end is the best; the last experience has no term. Rows before
    experience ``j`` was trained count when they were measured, as in the paper; where they are undefined (a head that does
    not exist yet) there is nothing to forget and they are left out. Rows from ``j`` on are required.

    Source: Chaudhry et al. 2018, "Riemannian Walk for Incremental Learning", eq. 3, averaged as F_k below it.

    Raises:
        ConfigurationError: as for `average_accuracy`.

    Example:
        >>> forgetting([[0.5, 0.5], [1.0, 0.5], [0.6, 0.8]]).value
        0.4
    """
    r = checked(matrix)
    return measure(
        "forgetting",
        "mean over j < T-1 of (max over measured rows l = 1..T-1 of R[l, j]) - R[T, j]",
        "Chaudhry et al. 2018, eq. 3",
        r,
        needed=since_trained(r) & (columns(r) < r.shape[1] - 1),
        terms=lambda: (np.fmax.reduce(r[1:-1]) - r[-1])[:-1],
        least=2,
        after=after,
    )


def backward_transfer(matrix: ArrayLike, *, after: Sequence[int] | None = None) -> Measure:
    """How later training changed earlier experiences (BWT): ``mean_{j<T-1} (R[T, j] - R[j+1, j])``, in [-1, 1].

    Negative when the stream is forgotten. Only the last row is compared with the diagonal, and the sum is divided by T - 1
    (Díaz-Rodríguez et al. 2018 average over all rows below the diagonal instead, under the same name).

    Source: Lopez-Paz and Ranzato 2017, "Gradient Episodic Memory", eq. 3.

    Raises:
        ConfigurationError: as for `average_accuracy`.

    Example:
        >>> backward_transfer([[0.5, 0.5], [1.0, 0.5], [0.6, 0.8]]).value
        -0.4
    """
    r = checked(matrix)
    return measure(
        "backward_transfer",
        "mean over j < T-1 of R[T, j] - R[j+1, j]",
        "Lopez-Paz and Ranzato 2017, eq. 3",
        r,
        needed=(just_trained(r) | (rows(r) == r.shape[1])) & (columns(r) < r.shape[1] - 1),
        terms=lambda: (r[-1] - np.diag(r[1:]))[:-1],
        least=2,
        after=after,
    )


def forward_transfer(matrix: ArrayLike, *, class_incremental: bool = False, after: Sequence[int] | None = None) -> Measure:
    """How much earlier training helps an experience before its own (FWT): ``mean_{j>=1} (R[j, j] - R[0, j])``, in [-1, 1].

    ``R[j, j]`` is measured just before experience ``j`` is trained; ``R[0, j]`` is the same weights' accuracy at initialisation
    (b_j in the paper). The sum is divided by T - 1. Some libraries leave b_j out, or average the whole upper triangle.

    Args:
        matrix: the accuracy matrix.
        class_incremental: experiences bring classes that no earlier one had, to outputs that they share. Such classes cannot
            be predicted before they are met, so the number would only say how well they were guessed at initialisation; it
            is then undefined, as in Renate and contilab.
        after: as for `average_accuracy`.

    Source: Lopez-Paz and Ranzato 2017, "Gradient Episodic Memory", eq. 4.

    Raises:
        ConfigurationError: as for `average_accuracy`.

    Example:
        >>> forward_transfer([[0.5, 0.25], [1.0, 0.5], [0.6, 0.8]]).value
        0.25
    """
    r = checked(matrix)
    result = measure(
        "forward_transfer",
        "mean over j >= 1 of R[j, j] - R[0, j]",
        "Lopez-Paz and Ranzato 2017, eq. 4",
        r,
        needed=(just_trained(r, before=True) | (rows(r) == 0)) & (columns(r) > 0),
        terms=lambda: (np.diag(r) - r[0])[1:],
        least=2,
        after=after,
    )
    if class_incremental and r.shape[1] > 1:
        return replace(result, value=None, reason=NEVER_MET)
    return result


def learning_accuracy(matrix: ArrayLike, *, after: Sequence[int] | None = None) -> Measure:
    """Accuracy on each experience right after it was trained (LA), averaged: ``mean_j R[j+1, j]``, in [0, 1].

    Always ``average_accuracy = learning_accuracy + (T - 1) / T * backward_transfer``.
    Source: Riemer et al. 2019, "Learning to Learn without Forgetting" (MER); "diagonal accuracy" elsewhere.

    Raises:
        ConfigurationError: as for `average_accuracy`.

    Example:
        >>> learning_accuracy([[0.5, 0.5], [1.0, 0.5], [0.6, 0.8]]).value
        0.9
    """
    r = checked(matrix)
    return measure(
        "learning_accuracy",
        "mean over j of R[j+1, j]",
        "Riemer et al. 2019",
        r,
        needed=just_trained(r),
        terms=lambda: np.diag(r[1:]),
        after=after,
    )


_ALL = (average_accuracy, average_incremental_accuracy, forgetting, backward_transfer, forward_transfer, learning_accuracy)
METRICS: Mapping[str, Callable[..., Measure]] = MappingProxyType({function.__name__: function for function in _ALL})
