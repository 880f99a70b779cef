"""IMTL-G: the combined gradient has the same projection on every task's gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streamlearn.core.plugin import Plugin, PluginInfo, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.gradients import TaskRows
    from streamlearn.core.step import Step

__all__ = ["IMTLG", "impartial_weights"]


def impartial_weights(gramian: Tensor) -> Tensor:
    """The weights α for which Σ_k α_k g_k has equal products with all g_k / ‖g_k‖, ``(rows,)`` in float64 on the CPU.

    Args:
        gramian: G with G_ij = g_i · g_j, ``(rows, rows)``. A row of zeros has weight 0.

    Example:
        >>> impartial_weights(torch.tensor([[1.0, 0.0], [0.0, 9.0]]))
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    products = gramian.detach().double().cpu()
    lengths = products.diagonal().clamp(min=0).sqrt()
    real = lengths > 0
    weights = torch.zeros_like(lengths)
    if not bool(real.any()):
        return weights
    scale = lengths[real]
    tolerance = len(scale) * torch.finfo(gramian.dtype).eps  # that of the products, not of the numbers that hold them here
    inverse = torch.linalg.pinv(products[real][:, real] / scale / scale.unsqueeze(1), rtol=10 * tolerance, hermitian=True)
    weights[real] = inverse.sum(1) / scale
    total = float(weights.sum().abs())
    return weights / total if total > tolerance * float(weights.abs().sum()) else torch.zeros_like(weights)


class IMTLG(Plugin):
    r"""Impartial multi-task learning, gradient part.

    .. math:: g = \sum_k α_k g_k, \qquad g \cdot u_1 = \dots = g \cdot u_K, \qquad \sum_k α_k = 1, \qquad u_k = g_k / \|g_k\|

    (Liu et al. 2021, eq. 4 and 5). The rows g_k are those of the weighting, ∂s/∂L_k · ∇L_k, over the parameters that tasks share; which
    direction g has depends on the u_k alone. With C the cosines of the rows, α_k ∝ (C⁺ 1)_k / ‖g_k‖.

    - For two rows α is positive and g halves the angle between them. For more, single α_k may be negative, and g may be long.
    - g descends on every loss, at the same rate relative to ‖g_k‖, where the rows are linearly independent. Where they are dependent the
      projections are as equal as least squares make them. Opposite rows give zero.
    - A row of zeros has weight 0. Doubling all losses doubles g.

    Cost: one backward pass for each row through what the rows share, in place of one for all. Memory: one gradient for each row while
    a step lasts.

    Reference: Liu, Li, Kuang, Xue, Chen, Yang, Liao & Zhang, Towards impartial multi-task learning, ICLR 2021, section 3.1. Deviations:
    with three or more rows the α of the paper's closed form may sum to 1 by pointing *against* every loss; α then sums to -1 here, where
    LibMTL and TorchJD climb. With dependent rows TorchJD makes the products g·g_k as equal to the ‖g_k‖ as least squares make them,
    which favours long rows. The loss part, IMTL-L, is a weighting.

    Example:
        >>> from streamlearn.plugins import IMTLG
        >>> IMTLG()
        IMTLG()
    """

    info = PluginInfo(
        name="imtl_g",
        family="gradients",
        summary="Takes the combination of the tasks' gradients that has the same projection on each of them.",
        reference="Liu et al. 2021, ICLR, eq. 4 and 5",
        needs=frozenset({"task_gradients"}),
        memory="1 gradient for each row, within a step",
    )

    @hookimpl
    def provide_gradient_combination(self, rows: TaskRows, step: Step) -> dict[str, float]:
        """α by row."""
        return dict(zip(rows.names, impartial_weights(rows.gramian).tolist(), strict=True))
