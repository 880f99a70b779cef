"""A measured number with its definition, and the checks that every metric makes on the accuracy matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamlearn.errors import ConfigurationError

__all__ = ["Matrix", "Measure", "checked", "columns", "just_trained", "measure", "rows", "since_trained"]

Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, repr=False)
class Measure:
    """One number about a run, with its definition; or the reason why there is none.

    Args:
        name: its key in `streamlearn.results.METRICS`, or in the dictionary of all in ``Result.every_metric``.
        value: a fraction, never a percentage, unless ``unit`` says otherwise; ``None`` when undefined.
        formula: the variant, in the notation of `streamlearn.results.metrics`.
        source: authors, year and equation.
        reason: why it is undefined; ``None`` when it is defined.
        unit: what the value counts: ``"fraction"``, ``"bytes"``, ``"updates"``, ...

    Example:
        >>> Measure("average_accuracy", 0.7, "mean over j of R[T, j]", "Lopez-Paz and Ranzato 2017, eq. 2")
        Measure(average_accuracy = 0.7000, mean over j of R[T, j])
    """

    name: str
    value: float | None
    formula: str
    source: str
    reason: str | None = None
    unit: str = "fraction"

    def __float__(self) -> float:
        if self.value is None:
            raise ConfigurationError(f"{self.name} is undefined: {self.reason}; test  .value is None  before using it as a number")
        return self.value

    def __repr__(self) -> str:
        text = f"is undefined: {self.reason}" if self.value is None else f"= {self._number}, {self.formula}"
        return f"{type(self).__name__}({self.name} {text})"

    @property
    def _number(self) -> str:
        return f"{self.value:.4f}" if self.unit == "fraction" else f"{self.value:.10g} {self.unit}"


def checked(matrix: ArrayLike, learnt: Sequence[int] | None = None) -> Matrix:
    """``matrix`` as an array with entries in [0, 1] or NaN, of shape ``(T + 1, T)``; of ``(T + 1, len(learnt))`` when that is given.

    Raises:
        ConfigurationError: it is something else, or ``learnt`` has a number outside 1..T.
    """
    r = np.asarray(matrix, dtype=np.float64)
    if learnt is not None:
        _check_learnt(r, learnt)
    elif r.ndim != 2 or r.shape[1] < 1 or r.shape[0] != r.shape[1] + 1:
        raise ConfigurationError(
            f"an accuracy matrix has the shape (experiences + 1, experiences), this one has {r.shape}: "
            "the first row holds the accuracies before any training (NaN when they were not measured)"
        )
    wrong = np.argwhere((r < 0) | (r > 1))
    if len(wrong):
        i, j = (int(place) for place in wrong[0])
        raise ConfigurationError(f"accuracies lie in [0, 1], but R[{i}, {j}] is {float(r[i, j])}: divide percentages by 100")
    return r


def _check_learnt(r: Matrix, learnt: Sequence[int]) -> None:
    if r.ndim != 2 or not learnt or r.shape[0] < 2 or r.shape[1] != len(learnt):
        raise ConfigurationError(
            f"an accuracy matrix has the shape (experiences + 1, evaluation sets), this one has {r.shape} and learnt names "
            f"{len(learnt)} evaluation sets: give one number for each column"
        )
    strange = next((after for after in learnt if not 1 <= after < len(r)), None)
    if strange is not None:
        raise ConfigurationError(
            f"an evaluation set cannot be learnt after {strange} of {len(r) - 1} experiences: give numbers from 1 to {len(r) - 1} in learnt"
        )


def rows(r: Matrix) -> NDArray[np.intp]:
    """The row number of every entry."""
    return np.asarray(np.indices(r.shape)[0])


def columns(r: Matrix) -> NDArray[np.intp]:
    """The column number of every entry."""
    return np.asarray(np.indices(r.shape)[1])


def since_trained(r: Matrix) -> Mask:
    """The entries ``R[i, j]`` that were measured when experience ``j`` had been trained: ``j < i``."""
    return np.asarray(columns(r) < rows(r))


def just_trained(r: Matrix, *, before: bool = False) -> Mask:
    """The entries measured right after training experience ``j``, ``R[j+1, j]``, or right before it, ``R[j, j]``."""
    return np.asarray(rows(r) == columns(r) + (0 if before else 1))


def measure(
    name: str,
    formula: str,
    source: str,
    r: Matrix,
    *,
    needed: Mask,
    terms: Callable[[], ArrayLike],
    least: int = 1,
    after: Sequence[int] | None = None,
) -> Measure:
    """The `Measure` of the mean of ``terms()``, or an undefined one when there are too few columns or a ``needed`` entry is missing.

    ``after`` says how many experiences had been trained at each row of ``r``; ``None`` for one more at each.
    """
    sets = r.shape[1]
    if sets < least:
        what = "experiences" if after is None else "evaluation sets"
        return Measure(name, None, formula, source, f"it needs at least {least} {what}, this run has {sets}")
    missing = np.argwhere(needed & np.isnan(r))
    if len(missing):
        times = range(sets + 1) if after is None else after
        i, j = times[missing[0][0]], missing[0][1]  # of the matrix of the run, where a reader looks it up
        when = f"after {i} of {times[-1]} experiences" if i else "before any training"
        return Measure(
            name, None, formula, source, f"it needs R[{i}, {j}], the accuracy on set {j} {when}, which is undefined or not measured"
        )
    return Measure(name, float(np.asarray(terms()).mean()), formula, source)
