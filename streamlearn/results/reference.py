"""A run measured against another: what a model that may see more would have reached."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from streamlearn.errors import ConfigurationError
from streamlearn.results.measure import Matrix, Measure

if TYPE_CHECKING:
    from streamlearn.results.result import Result

__all__ = ["accuracy_gap", "intransigence"]

Entries = Callable[["Result"], tuple[Matrix, str]]


def intransigence(result: Result, reference: Result) -> Measure:
    """How much worse each set is learnt than by the reference (I): ``mean_k (R*[l_k, k] - R[k+1, k])``, in [-1, 1]; below 0 is better.

    ``R*`` is the matrix of the reference and ``l_k`` the row in which it has learnt set ``k``: the last of a joint run, which saw the whole
    stream, and row ``k + 1`` of a run that trains on all experiences so far. The paper's ``a*_k`` is the latter.

    Source: Chaudhry et al. 2018, "Riemannian Walk for Incremental Learning", where it is I_k; averaged over k here.
    """
    formula, source = "mean over k of R*[l_k, k] - R[k+1, k]", "Chaudhry et al. 2018, I_k, averaged"
    return _compared("intransigence", formula, source, result, reference, _when_learnt)


def accuracy_gap(result: Result, reference: Result) -> Measure:
    """How much lower the final average accuracy is than that of the reference: ``mean_j (R*[T*, j] - R[T, j])``, in [-1, 1]."""
    formula, source = "mean over j of R*[T*, j] - R[T, j]", "van de Ven et al. 2022 and others show both"
    return _compared("accuracy_gap", formula, source, result, reference, lambda found: (found.accuracy_matrix[-1], "at the end"))


def _when_learnt(result: Result) -> tuple[Matrix, str]:
    learnt = list(result.learnt_after)
    return result.accuracy_matrix[learnt, range(len(learnt))], "when it had been learnt"


def _compared(name: str, formula: str, source: str, result: Result, reference: Result, entries: Entries) -> Measure:
    _check_same_sets(result, reference)
    values = []
    for whose, run in (("the reference", reference), ("this run", result)):
        if run.main_metric != "accuracy":
            return Measure(name, None, formula, source, f"it is defined for accuracies, and {run.main_metric} of {whose} is none")
        found, when = entries(run)
        missing = np.flatnonzero(np.isnan(found))
        if len(missing):
            return Measure(
                name,
                None,
                formula,
                source,
                f"it needs the accuracy of {whose} on set {missing[0]} {when}, which is undefined or not measured",
            )
        values.append(found)
    return Measure(name, float(np.mean(values[0] - values[1])), formula, source)


def _check_same_sets(result: Result, reference: Result) -> None:
    if len(result.learnt_after) != len(reference.learnt_after):
        raise ConfigurationError(
            f"the reference has {len(reference.learnt_after)} evaluation sets and this run has {len(result.learnt_after)}: "
            "give a run on the same sets, such as one on streams.joint(stream)"
        )
    for number, (mine, other) in enumerate(zip(result.set_names, reference.set_names, strict=True)):
        if mine and other and mine != other:
            raise ConfigurationError(
                f"set {number} is {mine!r} in this run and {other!r} in the reference: give a run on the same sets in the same order, "
                "such as one on streams.joint(stream)"
            )
