"""Trace norm: the weights of all tasks, stacked, should have low rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.correspondence import LayerOptions, LayerPenalty
from streamlearn.core.plugin import PluginInfo, Tunable, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.step import Step

__all__ = ["TraceNorm", "nuclear_norm", "unfoldings"]

Unfolding = Literal["last_axis", "tucker", "tensor_train"]


def nuclear_norm(matrix: Tensor) -> Tensor:
    """The sum of the singular values; its gradient is the shortest of the subgradients, U Vᵀ over those that are not 0.

    Args:
        matrix: ``(n, m)``.

    Example:
        >>> nuclear_norm(torch.diag(torch.tensor([3.0, 4.0]))).item()
        7.0
    """
    if not bool(matrix.isfinite().all()):
        return matrix.sum() * float("nan")  # the run says that it has diverged, and where
    values = torch.linalg.svdvals(matrix)
    rounding = max(matrix.shape) * torch.finfo(values.dtype).eps * values.detach().max()
    return torch.where(values > rounding, values, 0.0).sum()


def unfoldings(tensor: Tensor, unfolding: Unfolding) -> list[Tensor]:
    """The matrices into which a tensor is unfolded.

    Args:
        tensor: ``(d_1, ..., d_N)``, N at least 2.
        unfolding: ``"last_axis"``, the last axis against all others; ``"tucker"``, each axis against all others; ``"tensor_train"``, the
            first j axes against the others, for each j below N.

    Example:
        >>> [tuple(m.shape) for m in unfoldings(torch.zeros(2, 3, 5), "tensor_train")]
        [(2, 15), (6, 5)]
    """
    if unfolding == "last_axis":
        return [tensor.flatten(0, -2)]
    if unfolding == "tucker":
        return [tensor.movedim(axis, 0).flatten(1) for axis in range(tensor.ndim)]
    return [tensor.flatten(0, axis).flatten(1) for axis in range(tensor.ndim - 1)]


class TraceNorm(LayerPenalty):
    r"""Trace norm regularisation of deep multi-task learning.

    .. math:: P(θ) = λ \sum_{layers} \sum_u \|\mathcal{W}_{(u)}\|_*

    with :math:`\mathcal{W}` the weights of one layer of all tasks, stacked to a tensor whose last axis is the task,
    :math:`\mathcal{W}_{(u)}` its unfoldings to matrices, and :math:`\|\cdot\|_*` the sum of singular values. A low rank says that the
    tasks' weights are combinations of a few: how much is shared in which layer is learnt. There are three published settings:

    * ``unfolding="last_axis"``: one matrix, (all weights of a task) x (tasks). For linear models the classic trace norm;
    * ``unfolding="tucker"``: one matrix for each axis;
    * ``unfolding="tensor_train"``: one for each place at which the axes, in their order, can be cut in two.

    Axes are ordered as in the paper: positions in a kernel, inputs, outputs, tasks.

    What corresponds is found by the names of parameters: the networks of `SeparateNetworks` and the towers of `CrossStitch` or `Sluice`
    where there are some, else heads of equal shape. Only weights take part (parameters with two dimensions or more), and only tasks that
    have been met. With one task there is no penalty.

    The norm has a kink where a singular value is 0. There the shortest subgradient is taken, which leaves a rank that is not full as it is;
    the optimiser's own steps end near such points, at singular values of the size of λ times the learning rate, and seldom on them.

    Args:
        strength: λ, at least 0; 0 switches the penalty off.
        unfolding: ``"last_axis"``, ``"tucker"`` or ``"tensor_train"``.
        parameters: patterns of names, each with ``{task}`` once where the name has that of the task, and ``*`` for anything, such as
            ``("encoder.towers.{task}.*",)``; ``None`` finds them as told above.

    Raises:
        ConfigurationError: the stream has several tasks and no weights correspond.

    Cost: no additional pass; one singular value decomposition for each unfolding of each layer, which grows with the weights times the
    smaller side of the matrix. Memory: none.

    Reference: Yang & Hospedales, Trace norm regularised deep multi-task learning, ICLR workshop 2017, arXiv 1606.04038; for linear models
    Argyriou, Evgeniou & Pontil, Convex multi-task feature learning, Machine Learning 73, 2008. Deviation: the subgradient, which the
    paper takes as :math:`U V^T` over all singular values, those of 0 included.

    Example:
        >>> from streamlearn.plugins import TraceNorm
        >>> TraceNorm(strength=0.1, unfolding="tucker")
        TraceNorm(strength=0.1, unfolding='tucker')
    """

    least_dims = 2

    info = PluginInfo(
        name="trace_norm",
        family="regularization",
        summary="Keeps the rank of all tasks' weights, stacked layer by layer, low.",
        reference="Yang & Hospedales 2017, ICLR workshop, arXiv 1606.04038",
        strength="strength",
        streams=frozenset({"task_incremental", "multitask"}),
    )

    class Config(LayerOptions):
        """Options of `TraceNorm`."""

        strength: Annotated[float, Tunable(1e-5, 1.0, log=True)] = Field(0.01, ge=0)
        unfolding: Unfolding = "last_axis"

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """λ times the norms, once two tasks have been met."""
        strength = step.run.value(self, "strength")
        parts = [
            nuclear_norm(matrix)
            for layer in self.layers(step.parameters, step.run)
            for matrix in unfoldings(torch.stack([_ordered(step.parameters[name]) for name in layer.parameters], -1), self.config.unfolding)
        ]
        return strength * sum(parts[1:], parts[0]) if parts else None


def _ordered(weight: Tensor) -> Tensor:
    """``(outputs, inputs, positions...)`` to ``(positions..., inputs, outputs)``."""
    return weight.permute(*range(2, weight.ndim), 1, 0)
