"""PCGrad: a gradient that conflicts with another is projected onto that one's normal plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streamlearn.core.plugin import Plugin, PluginInfo, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.gradients import TaskRows
    from streamlearn.core.step import Step

__all__ = ["PCGrad", "projected_weights"]


def projected_weights(gramian: Tensor, random: torch.Generator) -> Tensor:
    """The weights w such that Σ_k w_k g_k is the sum of the projected gradients, ``(rows,)``.

    Everything that algorithm 1 does to a gradient keeps it a combination of the rows, so that their inner products suffice.

    Args:
        gramian: G with G_ij = g_i · g_j, ``(rows, rows)``, on the CPU.
        random: draws the orders in which a gradient meets the others; a row of zeros conflicts with none.

    Example:
        >>> projected_weights(torch.tensor([[1.0, -1.0], [-1.0, 4.0]]), torch.Generator())  # g_a - (g_a·g_b / g_b·g_b) g_b, and likewise b
        tensor([2.0000, 1.2500])
    """
    count = len(gramian)
    total = torch.zeros_like(gramian[0])
    for i in range(count):
        weights = torch.zeros_like(total)
        weights[i] = 1.0
        for j in torch.randperm(count, generator=random).tolist():
            product = gramian[j] @ weights
            if j != i and product < 0 and gramian[j, j] > 0:
                weights[j] -= product / gramian[j, j]
        total += weights
    return total


class PCGrad(Plugin):
    r"""Projecting conflicting gradients (gradient surgery).

    .. math:: g = \sum_i g_i^{PC}, \qquad
        g_i^{PC} \leftarrow g_i^{PC} - \frac{g_i^{PC} \cdot g_j}{\|g_j\|^2} g_j \quad\text{if } g_i^{PC} \cdot g_j < 0

    for every other row j, in an order that is drawn anew for each i and step (Yu et al. 2020, algorithm 1). The rows g_i are those of
    the weighting, ∂s/∂L_i · ∇L_i, over the parameters that tasks share. Without a conflict g is the plain sum.

    Cost: one backward pass for each row through what the rows share, in place of one for all; the orders cost O(rows³).
    Memory: one gradient for each row while a step lasts.

    Reference: Yu, Kumar, Gupta, Levine, Hausman & Finn, Gradient surgery for multi-task learning, NeurIPS 2020. The paper's sum is
    kept; some implementations take the mean. Penalties are added after the projection, task-specific parameters get their plain
    gradient.

    Example:
        >>> from streamlearn.plugins import PCGrad
        >>> PCGrad()
        PCGrad()
    """

    info = PluginInfo(
        name="pcgrad",
        family="gradients",
        summary="Takes out of each task's gradient what points against another's.",
        reference="Yu et al. 2020, NeurIPS, algorithm 1",
        needs=frozenset({"task_gradients"}),
        memory="1 gradient for each row, within a step",
    )

    @hookimpl
    def provide_gradient_combination(self, rows: TaskRows, step: Step) -> dict[str, float]:
        """The weight of each row in the sum of projected gradients."""
        weights = projected_weights(rows.gramian.cpu(), step.run.generator(self, "order"))
        return dict(zip(rows.names, weights.tolist(), strict=True))
