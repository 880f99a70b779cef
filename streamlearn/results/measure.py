"""A measured number with its definition, and the checks that every metric makes on the accuracy matrix."""

from __future__ import annotations

from collections.abc import Callable
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
        name: its key in `streamlearn.results.METRICS`.
        value: a fraction, never a percentage; ``None`` when undefined.
        formula: the variant, in the notation of `streamlearn.results.metrics`.
        source: authors, year and equation.
        reason: why it is undefined; ``None`` when it is defined.

    Example:
        >>> Measure("average_accuracy", 0.7, "mean over j of R[T, j]", "Lopez-Paz and Ranzato 2017, eq. 2")
        Measure(average_accuracy = 0.7000, mean over j of R[T, j])
    """

    name: str
    value: float | None
    formula: str
    source: str
    reason: str | None = None

    def __float__(self) -> float:
        if self.value is None:
            raise ConfigurationError(f"{self.name} is undefined: {self.reason}; test  .value is None  before using it as a number")
        return self.value

    def __repr__(self) -> str:
        text = f"is undefined: {self.reason}" if self.value is None else f"= {self.value:.4f}, {self.formula}"
        return f"{type(self).__name__}({self.name} {text})"


def checked(matrix: ArrayLike) -> Matrix:
    """``matrix`` as an array of shape ``(T + 1, T)`` with entries in [0, 1] or NaN.

    Raises:
        ConfigurationError: it is something else.
    """
    r = np.asarray(matrix, dtype=np.float64)
    if r.ndim != 2 or r.shape[1] < 1 or r.shape[0] != r.shape[1] + 1:
        raise ConfigurationError(
            f"an accuracy matrix has the shape (experiences + 1, experiences), this one has {r.shape}: "
            "the first row holds the accuracies before any training (NaN when they were not measured)"
        )
    wrong = np.argwhere((r < 0) | (r > 1))
    if len(wrong):
        i, j = (int(place) for place in wrong[0])
        raise ConfigurationError(f"accuracies lie in [0, 1], but R[{i}, {j}] is {float(r[i, j])}: divide percentages by 100")
    return r


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


def measure(name: str, formula: str, source: str, r: Matrix, *, needed: Mask, terms: Callable[[], ArrayLike], least: int = 1) -> Measure:
    """The `Measure` of the mean of ``terms()``, or an undefined one when there are too few experiences or a ``needed`` entry is missing."""
    experiences = r.shape[1]
    if experiences < least:
        return Measure(name, None, formula, source, f"it needs at least {least} experiences, this run has {experiences}")
    missing = np.argwhere(needed & np.isnan(r))
    if len(missing):
        i, j = missing[0]
        when = f"after {i} of {experiences} experiences" if i else "before any training"
        return Measure(
            name, None, formula, source, f"it needs R[{i}, {j}], the accuracy on set {j} {when}, which is undefined or not measured"
        )
    return Measure(name, float(np.asarray(terms()).mean()), formula, source)
