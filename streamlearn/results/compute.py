"""All metrics of a run at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from streamlearn.results.measure import Measure
from streamlearn.results.metrics import METRICS

__all__ = ["as_json", "compute"]


def compute(
    matrix: ArrayLike, *, metric: str = "accuracy", trained: int | None = None, class_incremental: bool = False
) -> dict[str, Measure]:
    """Every metric of `METRICS`, in its order; those that do not apply are undefined and say why.

    Args:
        matrix: shape ``(T + 1, T)``, see `streamlearn.results.metrics`.
        metric: what the entries are; the definitions are for ``"accuracy"`` only.
        trained: how many of the ``T`` experiences have been trained; all when ``None``.
        class_incremental: see `streamlearn.results.metrics.forward_transfer`.

    Raises:
        ConfigurationError: an accuracy matrix of the wrong shape, or with an entry outside [0, 1].

    Example:
        >>> compute([[0.5, 0.5], [1.0, 0.5], [0.6, 0.8]])["forgetting"].value
        0.4
        >>> compute([[0.5, 0.5], [1.0, 0.5], [np.nan, np.nan]], trained=1)["forgetting"].reason
        'the run is not complete: 1 of 2 experiences have been trained'
    """
    values = np.asarray(matrix, dtype=np.float64)
    reason = None
    if metric != "accuracy":
        reason = f"it is defined for accuracies, and {metric} is none"
        values = np.full_like(values, np.nan)
    elif trained is not None and trained < values.shape[-1]:
        reason = f"the run is not complete: {trained} of {values.shape[-1]} experiences have been trained"
    measures = {
        name: function(values, class_incremental=class_incremental) if name == "forward_transfer" else function(values)
        for name, function in METRICS.items()
    }
    if reason is None:
        return measures
    return {name: replace(measure, value=None, reason=reason) for name, measure in measures.items()}


def as_json(measures: Mapping[str, Measure]) -> dict[str, Any]:
    """The values (``None`` when undefined), the reasons of the undefined ones, and the definitions, each by name."""
    return {
        "metrics": {name: measure.value for name, measure in measures.items()},
        "undefined": {name: measure.reason for name, measure in measures.items() if measure.value is None},
        "definitions": {name: {"formula": measure.formula, "source": measure.source} for name, measure in measures.items()},
    }
