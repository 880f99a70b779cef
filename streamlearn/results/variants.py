"""What circulates under the names of the usual metrics and is another number, each variant under a name of its own.

The notation is that of `streamlearn.results.metrics`: ``R`` has shape ``(T + 1, T)``, and ``R[j + 1, j]`` was measured right after
experience ``j`` was trained. A published value can be compared with the variant by which it was computed, and with no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

from streamlearn.results.forgetting import FORGETTING
from streamlearn.results.measure import Matrix, Measure, checked, columns, just_trained, measure, rows, since_trained
from streamlearn.results.metrics import NEVER_MET

__all__ = ["VARIANTS"]

_DIAZ = "Díaz-Rodríguez et al. 2018"
_SYMBOLS = {"backward_transfer_all_rows": "BWT", "positive_backward_transfer": "BWT+", "remembering": "REM"}


def accuracy_area(matrix: ArrayLike, *, after: Sequence[int] | None = None) -> Measure:
    """Mean of every accuracy measured once its experience was trained (A): ``Σ_{i=1..T} Σ_{j<i} R[i, j] / (T (T + 1) / 2)``.

    Unlike in `average_incremental_accuracy`, every entry counts alike, so that late rows weigh more.

    Example:
        >>> round(accuracy_area([[0.5, 0.5], [1.0, 0.5], [0.6, 0.8]]).value, 4)
        0.8
    """
    r = checked(matrix)
    needed = since_trained(r)
    return measure("accuracy_area", "mean over all j < i of R[i, j]", f"{_DIAZ}, A", r, needed=needed, terms=lambda: r[needed], after=after)


def backward_transfer_all_rows(matrix: ArrayLike, *, after: Sequence[int] | None = None) -> Measure:
    """Every row below the diagonal compared with it: ``Σ_{i=2..T} Σ_{j<i-1} (R[i, j] - R[j+1, j]) / (T (T - 1) / 2)``, in [-1, 1].

    Example:
        >>> round(backward_transfer_all_rows([[0, 0, 0], [1.0, 0, 0], [0.8, 0.9, 0], [0.6, 0.8, 1]]).value, 4)
        -0.2333
    """
    return _all_rows(checked(matrix), after, "backward_transfer_all_rows", "", lambda value: value)


def positive_backward_transfer(matrix: ArrayLike, *, after: Sequence[int] | None = None) -> Measure:
    """``max(b, 0)`` for b = `backward_transfer_all_rows` (BWT+), in [0, 1].

    Example:
        >>> positive_backward_transfer([[0.5, 0.5], [1.0, 0.5], [0.6, 0.8]]).value
        0.0
    """
    return _all_rows(checked(matrix), after, "positive_backward_transfer", "max(b, 0), b ", lambda value: max(value, 0.0))


def remembering(matrix: ArrayLike, *, after: Sequence[int] | None = None) -> Measure:
    """``1 - |min(b, 0)|`` for b = `backward_transfer_all_rows` (REM), in [0, 1].

    Example:
        >>> remembering([[0.5, 0.5], [1.0, 0.5], [0.6, 0.8]]).value
        0.6
    """
    return _all_rows(checked(matrix), after, "remembering", "1 - |min(b, 0)|, b ", lambda value: 1.0 - abs(min(value, 0.0)))


def _all_rows(r: Matrix, after: Sequence[int] | None, name: str, prefix: str, change: Callable[[float], float]) -> Measure:
    below = since_trained(r) & ~just_trained(r)
    return measure(
        name,
        f"{prefix}{'= ' if prefix else ''}mean over all j < i-1 of R[i, j] - R[j+1, j]",
        f"{_DIAZ}, {_SYMBOLS[name]}",
        r,
        needed=since_trained(r) & (columns(r) < r.shape[1] - 1),
        terms=lambda: [change(float((r - np.diag(r[1:]))[below].mean()))],
        least=2,
        after=after,
    )


def backward_transfer_over_all_experiences(matrix: ArrayLike, *, after: Sequence[int] | None = None) -> Measure:
    """`backward_transfer` divided by T in place of T - 1, the last experience counting as one without transfer.

    Example:
        >>> backward_transfer_over_all_experiences([[0.5, 0.5], [1.0, 0.5], [0.6, 0.8]]).value
        -0.2
    """
    r = checked(matrix)
    return measure(
        "backward_transfer_over_all_experiences",
        "mean over all j of R[T, j] - R[j+1, j]",
        "code of Lopez-Paz and Ranzato 2017",
        r,
        needed=just_trained(r) | (rows(r) == r.shape[1]),
        terms=lambda: r[-1] - np.diag(r[1:]),
        least=2,
        after=after,
    )


def forward_transfer_without_baseline(matrix: ArrayLike, *, class_incremental: bool = False, after: Sequence[int] | None = None) -> Measure:
    """Accuracy on an experience right before it is trained, nothing subtracted: ``mean_{j>=1} R[j, j]``, in [0, 1].

    Example:
        >>> forward_transfer_without_baseline([[0.5, 0.25], [1.0, 0.5], [0.6, 0.8]]).value
        0.5
    """
    r = checked(matrix)
    found = measure(
        "forward_transfer_without_baseline",
        "mean over j >= 1 of R[j, j]",
        "Lopez-Paz and Ranzato 2017, eq. 4 without b_j",
        r,
        needed=just_trained(r, before=True) & (columns(r) > 0),
        terms=lambda: np.diag(r)[1:],
        least=2,
        after=after,
    )
    return _unless(class_incremental and r.shape[1] > 1, found)


def forward_transfer_upper_triangle(matrix: ArrayLike, *, class_incremental: bool = False, after: Sequence[int] | None = None) -> Measure:
    """Accuracy on every experience still to come: ``Σ_{1<=i<=j<T} R[i, j] / (T (T - 1) / 2)``, in [0, 1]; nothing is subtracted.

    Example:
        >>> forward_transfer_upper_triangle([[0.5, 0.25], [1.0, 0.5], [0.6, 0.8]]).value
        0.5
    """
    r = checked(matrix)
    ahead = ~since_trained(r) & (rows(r) > 0)
    formula = "mean over all 1 <= i <= j of R[i, j]"
    found = measure(
        "forward_transfer_upper_triangle", formula, f"{_DIAZ}, FWT", r, needed=ahead, terms=lambda: r[ahead], least=2, after=after
    )
    return _unless(class_incremental and r.shape[1] > 1, found)


def _unless(hopeless: bool, found: Measure) -> Measure:
    return replace(found, value=None, reason=NEVER_MET) if hopeless else found


_OTHERS = (
    accuracy_area, backward_transfer_all_rows, backward_transfer_over_all_experiences, positive_backward_transfer, remembering,
    forward_transfer_without_baseline, forward_transfer_upper_triangle,
)  # fmt: skip
VARIANTS: Mapping[str, Callable[..., Measure]] = MappingProxyType({function.__name__: function for function in (*_OTHERS, *FORGETTING)})
