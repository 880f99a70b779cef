"""Uncertainty weighting: a learned noise level for each task weighs its loss."""

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

__all__ = ["UncertaintyWeighting", "uncertainty_weighted"]


def uncertainty_weighted(losses: Mapping[str, Tensor], log_variances: Mapping[str, Tensor]) -> Tensor:
    """Σ_k (½ exp(-s_k) L_k + ½ s_k), a scalar.

    Args:
        losses: L by row, at least one.
        log_variances: s = log σ² by row.

    Example:
        >>> losses = {"a": torch.tensor(3.0), "b": torch.tensor(1.0)}
        >>> uncertainty_weighted(losses, {"a": torch.tensor(0.0), "b": torch.tensor(2.0)}).item()  # 1.5 + exp(-2) / 2 + 1
        2.5676...
    """
    parts = [0.5 * torch.exp(-log_variances[row]) * loss + 0.5 * log_variances[row] for row, loss in losses.items()]
    return sum(parts[1:], parts[0])


class UncertaintyWeighting(Plugin):
    r"""Uncertainty weighting.

    .. math:: s(L) = \sum_k \frac12 e^{-s_k} L_k + \frac12 s_k, \qquad s_k = \log σ_k^2

    with one log-variance for each task, learned together with the model (Kendall et al. 2018, eqs. 7 and 10). A loss that stays
    large gets a large σ² and a small weight; at its optimum σ_k² = L_k, each task adds ½ to the objective, whatever its scale. The
    objective becomes negative when losses are small: that is no error, the record holds the losses themselves.

    A log-variance belongs to a *task*. Rows that are parts of one (``"digit@photo"``, ``"digit/memory"``) share the task's, and each
    of them adds ½ s_k, as one more observation with that noise; a row whose name does not begin with a task's belongs to the task of
    its supervision. A task that a batch does not have adds nothing, and its log-variance stays where it is.

    Args:
        initial: s_k when a task arrives, finite and of either sign: 0 gives all tasks weight ½. The paper reports that the result
            does not depend on it.
        learning_rate: of the log-variances; ``None`` takes the model's. Above 0. They are never decayed.

    Raises:
        TrainingError: a row belongs to no task.

    Cost: no additional pass. Memory: 1 number for each task.

    Reference: Kendall, Gal & Cipolla, Multi-task learning using uncertainty to weigh losses for scene geometry and semantics, CVPR
    2018. Deviations: classification has the factor ½ that the paper has for regression only, as in the authors' code, LibMTL and
    TorchJD. L_k is the mean over the rows that have a label of k, whatever their number.

    Example:
        >>> from streamlearn.plugins import UncertaintyWeighting
        >>> UncertaintyWeighting(learning_rate=0.01)
        UncertaintyWeighting(learning_rate=0.01)
    """

    info = PluginInfo(
        name="uncertainty_weighting",
        family="weighting",
        summary="Weighs the loss of each task by a noise level that is learned together with the model.",
        reference="Kendall, Gal & Cipolla 2018, CVPR, eqs. 7 and 10",
        memory="1 number for each task",
        vmappable=True,
    )

    class Config(PluginConfig):
        """Options of `UncertaintyWeighting`."""

        initial: Annotated[float, Tunable(-2.0, 2.0)] = Field(0.0, allow_inf_nan=False)
        learning_rate: float | None = Field(None, gt=0, allow_inf_nan=False)

    @hookimpl
    def collect_modules(self, run: Run) -> dict[str, Trainable]:
        """One log-variance for every task met so far."""
        return learned_numbers(run, run.value(self, "initial"), self.config.learning_rate)

    @hookimpl
    def provide_weighting(self, losses: Mapping[str, Tensor], step: Step) -> Tensor:
        """s(L)."""
        return uncertainty_weighted(losses, {row: learned_number(row, step, self.name) for row in losses})
