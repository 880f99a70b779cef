"""IMTL-L: a learned scale for each task brings all losses to the same size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from streamlearn.core.task_weights import learned_number, learned_numbers

if TYPE_CHECKING:
    from streamlearn.core.optimization import Trainable
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step

__all__ = ["IMTLL", "impartially_scaled"]


def impartially_scaled(losses: Mapping[str, Tensor], scales: Mapping[str, Tensor]) -> Tensor:
    """Σ_k (exp(s_k) L_k - s_k), a scalar.

    Args:
        losses: L by row, at least one.
        scales: s by row.

    Example:
        >>> losses = {"a": torch.tensor(3.0), "b": torch.tensor(1.0)}
        >>> impartially_scaled(losses, {"a": torch.tensor(0.0), "b": torch.tensor(-2.0)}).item()  # 3 + exp(-2) + 2
        5.1353...
    """
    parts = [torch.exp(scales[row]) * loss - scales[row] for row, loss in losses.items()]
    return sum(parts[1:], parts[0])


class IMTLL(Plugin):
    r"""Impartial multi-task learning, the loss balance.

    .. math:: s(L) = \sum_k e^{s_k} L_k - s_k

    with one scale for each task, learned together with the model (Liu et al. 2021). At its optimum e^{s_k} L_k = 1: every scaled loss
    has the same size, whatever its unit, and no distribution is assumed. Written so, it is twice uncertainty weighting at the negated
    parameter: the weights of the two agree but for that 2, so that with equal learning rates this one moves twice as far. The
    objective may become negative, because s_k may be positive; the record holds the losses themselves.

    A scale belongs to a *task*. Rows that are parts of one (``"digit@photo"``, ``"digit/memory"``) share the task's, and each of them
    subtracts s_k; a row whose name does not begin with a task's belongs to the task of its supervision. A task that a batch does not
    have adds nothing, and its scale stays where it is. The gradient balance of the same paper, IMTL-G, is a combiner, and may stand
    beside this.

    Args:
        initial: s_k when a task arrives, finite and of either sign: 0, the paper's, starts from the plain sum of the losses.
        learning_rate: of the scales; ``None`` takes the model's. Above 0. They are never decayed.

    Raises:
        TrainingError: a row belongs to no task.

    Cost: no additional pass. Memory: 1 number for each task.

    Reference: Liu, Li, Kuang, Xue, Chen, Yang, Liao & Zhang, Towards impartial multi-task learning, ICLR 2021, the loss balance with
    a = e. Deviations: LibMTL has it only inside its IMTL, which combines gradients as well. L_k is the mean over the rows that have a
    label of k, whatever their number.

    Example:
        >>> from streamlearn.plugins import IMTLL
        >>> IMTLL(learning_rate=0.01)
        IMTLL(learning_rate=0.01)
    """

    info = PluginInfo(
        name="imtl_l",
        family="weighting",
        summary="Learns a scale for each task that brings all losses to the same size.",
        reference="Liu et al. 2021, ICLR, the loss balance",
        memory="1 number for each task",
        vmappable=True,
    )

    class Config(PluginConfig):
        """Options of `IMTLL`."""

        initial: Annotated[float, Tunable(-2.0, 2.0)] = Field(0.0, allow_inf_nan=False)
        learning_rate: float | None = Field(None, gt=0, allow_inf_nan=False)

    @hookimpl
    def collect_modules(self, run: Run) -> dict[str, Trainable]:
        """One scale for every task met so far."""
        return learned_numbers(run, run.value(self, "initial"), self.config.learning_rate)

    @hookimpl
    def provide_weighting(self, losses: Mapping[str, Tensor], step: Step) -> Tensor:
        """s(L)."""
        return impartially_scaled(losses, {row: learned_number(row, step, self.name) for row in losses})
