"""UPGrad: each gradient is projected onto what conflicts with none, and the projections are averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.solvers import dual_cone_weights, preference_weights, short_rows

if TYPE_CHECKING:
    from streamlearn.core.gradients import TaskRows
    from streamlearn.core.step import Step

__all__ = ["UPGrad", "unconflicting_weights"]


def unconflicting_weights(gramian: Tensor, preference: Tensor) -> Tensor:
    """The weights w with Σ_k w_k g_k = Σ_k p_k π(g_k), ``(rows,)`` in float64 on the CPU; see `UPGrad`.

    Args:
        gramian: G with G_ij = g_i · g_j, ``(rows, rows)``.
        preference: p, ``(rows,)``.

    Example:
        >>> unconflicting_weights(torch.tensor([[1.0, -1.0], [-1.0, 4.0]]), torch.tensor([1.0, 1.0]))  # PCGrad's, for two rows
        tensor([2.0000, 1.2500], dtype=torch.float64)
    """
    rows = short_rows(gramian)
    each = [dual_cone_weights(rows, start) for start in preference.double().cpu().diag()]
    return torch.stack(each).sum(0)


class UPGrad(Plugin):
    r"""UPGrad: the average of unconflicting projections.

    .. math:: g = \sum_k p_k\, π(g_k), \qquad π(x) = \arg\min_{y:\, y \cdot g_j \ge 0\ \forall j} \|y - x\|^2

    with g_k = ∂s/∂L_k · ∇L_k over the parameters that tasks share and p_k = 1/rows (Quinton & Rey 2024, section 3). g descends on every
    loss, and every row contributes in proportion to its length. Without a conflict it is the mean of the rows; for two rows it is half
    of what PCGrad gives, for more it keeps the promise that PCGrad does not.

    A row of zeros conflicts with none and adds nothing. Doubling all losses doubles g, and opposite rows give zero.

    Args:
        preference: p by the name of a row, at least 0, relative to each other; one that is not named has 1.

    Cost: one backward pass for each row through what the rows share, in place of one for all. Memory: one gradient for each row while
    a step lasts.

    Reference: Quinton & Rey, Jacobian descent for multi-objective optimization, arXiv 2406.16232, 2024. Deviation: the projections are
    exact (problems of least squares with weights that are not negative), where TorchJD adds 1e-4 of the trace of G to its diagonal
    and needs the package quadprog. Task-specific parameters get their plain gradient.

    Example:
        >>> from streamlearn.plugins import UPGrad
        >>> UPGrad()
        UPGrad()
    """

    info = PluginInfo(
        name="upgrad",
        family="gradients",
        summary="Projects each task's gradient onto the directions in which no loss rises, and averages the projections.",
        reference="Quinton & Rey 2024, arXiv 2406.16232, section 3",
        needs=frozenset({"task_gradients"}),
        memory="1 gradient for each row, within a step",
    )

    class Config(PluginConfig):
        """Options of `UPGrad`."""

        preference: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)

    @hookimpl
    def provide_gradient_combination(self, rows: TaskRows, step: Step) -> dict[str, float]:
        """The weight of each row in the average of projections."""
        weights = unconflicting_weights(rows.gramian, preference_weights(rows.names, self.config.preference))
        return dict(zip(rows.names, weights.tolist(), strict=True))
