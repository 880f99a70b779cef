"""The metrics of a result: the usual ones, and every one there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamlearn.results.anytime import ANYTIME
from streamlearn.results.compute import compute
from streamlearn.results.costs import COSTS, Costs
from streamlearn.results.matrix import is_class_incremental, trained_experiences
from streamlearn.results.measure import Measure
from streamlearn.results.trajectory import trajectory

if TYPE_CHECKING:
    from streamlearn.results.result import Result

__all__ = ["every_metric", "matrix_metrics"]


def matrix_metrics(result: Result, *, variants: bool = False) -> dict[str, Measure]:
    """Those that follow from the accuracy matrix; see `streamlearn.results.compute`."""
    metric, events, learnt = result.main_metric, result.events, result.learnt_after
    return compute(
        result.matrix(metric=metric),
        metric=metric,
        trained=trained_experiences(events),
        class_incremental=is_class_incremental(events, learnt),
        learnt=learnt,
        variants=variants,
    )


def every_metric(result: Result) -> dict[str, Measure]:
    """Those of the matrix, usual ones first, then those of evaluations within experiences, then costs."""
    path = trajectory(result.events, result.main_metric, result.learnt_after, result.experiences)
    costs = Costs(result.events, result.times, result.learnt_after, result.experiences)
    within = {name: function(path) for name, function in ANYTIME.items()}
    return matrix_metrics(result, variants=True) | within | {name: function(costs) for name, function in COSTS.items()}
