"""GLS: the geometric mean of the losses, in which no task's scale counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streamlearn.core.plugin import Plugin, PluginInfo, hookimpl
from streamlearn.errors import TrainingError

if TYPE_CHECKING:
    from streamlearn.core.step import Step

__all__ = ["GLS", "geometric_mean"]


def geometric_mean(losses: Mapping[str, Tensor]) -> Tensor:
    """(Π_k L_k)^(1/K), a scalar.

    Args:
        losses: L by row, at least one, all above 0.

    Raises:
        TrainingError: a loss is 0 or below.

    Example:
        >>> geometric_mean({"a": torch.tensor(8.0), "b": torch.tensor(2.0)}).item()
        4.0
    """
    _refuse_not_positive(losses)
    if len(losses) == 1:
        return next(iter(losses.values()))
    logarithms = [loss.log() for loss in losses.values()]  # the product itself leaves the range of floats when there are many
    return torch.exp(sum(logarithms[1:], logarithms[0]) / len(logarithms))


def _refuse_not_positive(losses: Mapping[str, Tensor]) -> None:
    values = torch.stack([loss.detach() for loss in losses.values()]).tolist()  # one wait for the device, not one for each row
    for row, value in zip(losses, values, strict=True):
        if value <= 0:
            raise TrainingError(
                f"the loss of row {row!r} is {value:g}, and a geometric mean is of losses above 0 only: use larger batches or another "
                "weighting, or a loss that stays above 0, as cross-entropy with label smoothing does"
            )


class GLS(Plugin):
    r"""Geometric loss strategy.

    .. math:: s(L) = \Big(\prod_{k=1}^{K} L_k\Big)^{1/K}, \qquad \frac{\partial s}{\partial L_k} = \frac{s}{K L_k}

    over the K rows of the batch (Chennupati et al. 2019). A loss multiplied by a constant changes the length of the gradient and not
    its direction: tasks are balanced by their *relative* improvement, whatever their scales. The smaller a loss, the larger its weight,
    without bound: a task that is learned to the end comes to rule the shared parameters.

    Every row is a factor. Rows that are parts of one task (``"digit@photo"``, ``"digit/memory"``) count as so many losses; a task that
    the batch does not have is no factor, and K is smaller. With one row s is its loss. With micro-batches s is the mean of their
    geometric means, because each is differentiated on its own.

    Raises:
        TrainingError: a loss is 0 or below, as cross-entropy becomes in single precision on rows that are known by heart.

    Cost: no additional pass. Memory: none.

    Reference: Chennupati, Sistu, Yogamani & Rawashdeh, MultiNet++: multi-stream feature aggregation and geometric loss strategy for
    multi-task learning, CVPR Workshops 2019. Deviations: computed by logarithms; their focused variant, which stresses some tasks, is
    left out. LibMTL minimises the same s, but the weights that it reports are L_k / (K Π L), which is neither ∂s/∂L_k nor
    proportional to it. TorchJD accepts a loss of 0, where the gradient is not a number.

    Example:
        >>> from streamlearn.plugins import GLS
        >>> GLS()
        GLS()
    """

    info = PluginInfo(
        name="gls",
        family="weighting",
        summary="Minimises the geometric mean of the tasks' losses, in which their scales do not count.",
        reference="Chennupati et al. 2019, CVPR Workshops",
    )

    @hookimpl
    def provide_weighting(self, losses: Mapping[str, Tensor], step: Step) -> Tensor:
        """s(L)."""
        return geometric_mean(losses)
