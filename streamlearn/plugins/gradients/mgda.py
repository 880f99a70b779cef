"""MGDA: the shortest vector among the convex combinations of the gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamlearn.core.plugin import Plugin, PluginInfo, hookimpl
from streamlearn.core.solvers import min_norm_weights

if TYPE_CHECKING:
    from streamlearn.core.gradients import TaskRows
    from streamlearn.core.step import Step

__all__ = ["MGDA"]


class MGDA(Plugin):
    r"""Multiple-gradient descent.

    .. math:: g = \sum_k α_k g_k, \qquad α = \arg\min_{α \ge 0,\, \sum_k α_k = 1} \Big\| \sum_k α_k g_k \Big\|^2

    with g_k = ∂s/∂L_k · ∇L_k over the parameters that tasks share (Désidéri 2012; Sener & Koltun 2018, algorithm 2). A step along -g
    makes no loss larger, to first order; g is zero where no direction serves all tasks.

    Rows are never refused. One whose gradient is zero (nothing of it depends on shared parameters, or its weight is 0) makes g zero:
    then shared parameters move by penalties alone, while task-specific ones keep their plain gradient. Tasks without a label in the
    batch are no rows and stop nothing. The norm of g is at most that of the shortest row, so that learning rates are larger than for
    a sum. A weighting changes g: scaling a row up makes its α smaller.

    Cost: one backward pass for each row through what the rows share, in place of one for all. Memory: one gradient for each row while
    a step lasts.

    Reference: Désidéri, Multiple-gradient descent algorithm (MGDA) for multiobjective optimization, Comptes Rendus Mathématique 350,
    2012; Sener & Koltun, Multi-task learning as multi-objective optimization, NeurIPS 2018. Deviations: gradients are not normalised,
    which the authors' code offers. α is exact for any number of rows: it is found as a problem of least squares, where the paper and
    TorchJD take steps of Frank and Wolfe and stop some per cent above the least ‖g‖² when there are more than two.

    Example:
        >>> from streamlearn.plugins import MGDA
        >>> MGDA()
        MGDA()
    """

    info = PluginInfo(
        name="mgda",
        family="gradients",
        summary="Takes the shortest convex combination of the tasks' gradients, which descends on every loss.",
        reference="Désidéri 2012, C. R. Math. 350:313; Sener & Koltun 2018, NeurIPS, algorithm 2",
        needs=frozenset({"task_gradients"}),
        memory="1 gradient for each row, within a step",
    )

    @hookimpl
    def provide_gradient_combination(self, rows: TaskRows, step: Step) -> dict[str, float]:
        """α by row."""
        return dict(zip(rows.names, min_norm_weights(rows.gramian).tolist(), strict=True))
