"""MGDA-UB: the weights of MGDA from gradients at the features, at the price of one backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamlearn.core.plugin import Plugin, PluginInfo, hookimpl
from streamlearn.core.solvers import min_norm_weights

if TYPE_CHECKING:
    from streamlearn.core.gradients import TaskRows
    from streamlearn.core.step import Step

__all__ = ["MGDAUB"]


class MGDAUB(Plugin):
    r"""Multiple-gradient descent on the upper bound.

    .. math:: g = \sum_k α_k \nabla_θ L_k, \qquad
        α = \arg\min_{α \ge 0,\, \sum_k α_k = 1} \Big\| \sum_k α_k \nabla_Z L_k \Big\|^2

    with Z the features, the output of the encoder on every row of the batch (Sener & Koltun 2018, eq. MGDA-UB and theorem 1): since
    ∇_θ L_k = (∂Z/∂θ)ᵀ ∇_Z L_k, the norm at the features bounds the norm at the parameters up to that of ∂Z/∂θ, which is left out.
    Rows are those of the weighting, ∂s/∂L_k · L_k.

    As with `MGDA`, a row whose gradient at the features is zero makes g zero. Rows of tasks that are asked on *different* rows of the
    batch are orthogonal at the features, so that α_k ∝ 1 / ‖∇_Z L_k‖²: conflicts within shared parameters are not seen.

    Cost: one backward pass through the heads for each row, one through the encoder for all. Memory: features x rows, while a step
    lasts.

    Reference: Sener & Koltun, Multi-task learning as multi-objective optimization, NeurIPS 2018, section 3.3. Deviations: gradients
    are not normalised, which the authors' code offers; α is exact for any number of rows, as with `MGDA`. Refused beside plugins that
    evaluate the objective at other parameters (MAML, SAM): then there is no one tensor of features; and with micro-batches.

    Example:
        >>> from streamlearn.plugins import MGDAUB
        >>> MGDAUB()
        MGDAUB()
    """

    info = PluginInfo(
        name="mgda_ub",
        family="gradients",
        summary="MGDA with gradients taken at the features: one backward pass through the encoder however many tasks.",
        reference="Sener & Koltun 2018, NeurIPS, section 3.3 (MGDA-UB)",
        conflicts=frozenset({"inner-loop", "look-ahead"}),
        needs=frozenset({"task_gradients"}),
        memory="1 gradient of the features for each row, within a step",
        rows="features",
    )

    @hookimpl
    def provide_gradient_combination(self, rows: TaskRows, step: Step) -> dict[str, float]:
        """α by row."""
        return dict(zip(rows.names, min_norm_weights(rows.gramian).tolist(), strict=True))
