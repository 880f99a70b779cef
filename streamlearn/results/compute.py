"""All metrics of a run at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from streamlearn.results.layout import is_square, one_after_another
from streamlearn.results.measure import Matrix, Measure, checked
from streamlearn.results.metrics import METRICS
from streamlearn.results.variants import VARIANTS

__all__ = ["as_json", "compute"]

_NO_ORDER = "its evaluation sets are not learnt one after another"


def compute(
    matrix: ArrayLike,
    *,
    metric: str = "accuracy",
    trained: int | None = None,
    class_incremental: bool = False,
    learnt: Sequence[int] | None = None,
    variants: bool = False,
) -> dict[str, Measure]:
    """Every metric of `METRICS`, in its order; those that do not apply are undefined and say why.

    The formulas are for one evaluation set per experience. With ``S`` sets that are learnt one after another, each in as many
    experiences as it likes, they are taken from the ``S + 1`` rows ``[0, *learnt[:-1], T]`` of the matrix: before any training,
    after each set but the last has been learnt, and at the end of the stream, be it later than the last set has been learnt.
    With sets that are learnt together or in another order, only the average accuracy is defined, from row ``T``.

    Args:
        matrix: shape ``(T + 1, S)``, see `streamlearn.results.metrics`.
        metric: what the entries are; the definitions are for ``"accuracy"`` only.
        trained: how many of the ``T`` experiences have been trained; all when ``None``.
        class_incremental: see `streamlearn.results.metrics.forward_transfer`.
        learnt: for each of the ``S`` columns, after how many experiences it has been learnt, in 1..T; ``None`` for 1..T.
        variants: also those of `streamlearn.results.variants`, after the usual ones.

    Raises:
        ConfigurationError: an accuracy matrix of the wrong shape, or with an entry outside [0, 1]; or a number of ``learnt``
            outside 1..T.

    Example:
        >>> compute([[0.5, 0.5], [1.0, 0.5], [0.6, 0.8]])["forgetting"].value
        0.4
        >>> compute([[0.5, 0.5], [1.0, 0.5], [np.nan, np.nan]], trained=1)["forgetting"].reason
        'the run is not complete: 1 of 2 experiences have been trained'
        >>> chunks = [[0.5, 0.5], [0.8, 0.5], [1.0, 0.5], [0.7, 0.6], [0.6, 0.8]]
        >>> compute(chunks, learnt=[2, 4])["forgetting"].value
        0.4
    """
    values = np.asarray(matrix, dtype=np.float64)
    r = checked(values if metric == "accuracy" else np.full_like(values, np.nan), learnt)
    experiences, reason = len(r) - 1, None
    if metric != "accuracy":
        reason = f"it is defined for accuracies, and {metric} is none"
    elif trained is not None and trained < experiences:
        reason = f"the run is not complete: {trained} of {experiences} experiences have been trained"
    functions = {**METRICS, **VARIANTS} if variants else METRICS
    measures = _measures(functions, r, range(1, experiences + 1) if learnt is None else learnt, class_incremental)
    if reason is None:
        return measures
    return {name: replace(measure, value=None, reason=reason) for name, measure in measures.items()}


def _measures(
    functions: Mapping[str, Callable[..., Measure]], r: Matrix, learnt: Sequence[int], class_incremental: bool
) -> dict[str, Measure]:
    experiences, ordered = len(r) - 1, one_after_another(learnt)
    between = learnt[:-1] if ordered else [0] * (len(learnt) - 1)  # without an order only the last row is used
    taken = [0, *between, experiences]
    after = None if is_square(learnt, experiences) else taken
    options = {"class_incremental": class_incremental}
    measures = {
        name: function(r[taken], after=after, **(options if name.startswith("forward_transfer") else {}))
        for name, function in functions.items()
    }
    if ordered:
        return measures
    undefined = {name: replace(measure, value=None, reason=_NO_ORDER) for name, measure in measures.items()}
    return {**undefined, "average_accuracy": measures["average_accuracy"]}


def as_json(measures: Mapping[str, Measure]) -> dict[str, Any]:
    """The values (``None`` when undefined), the reasons of the undefined ones, and the definitions, each by name."""
    return {
        "metrics": {name: measure.value for name, measure in measures.items()},
        "undefined": {name: measure.reason for name, measure in measures.items() if measure.value is None},
        "definitions": {name: {"formula": measure.formula, "source": measure.source} for name, measure in measures.items()},
    }
