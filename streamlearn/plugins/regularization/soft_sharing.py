"""Soft parameter sharing: tasks have parameters of their own, which are held near each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from torch import Tensor

from streamlearn.core.correspondence import LayerOptions, LayerPenalty, stacked
from streamlearn.core.plugin import PluginInfo, Tunable, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.step import Step

__all__ = ["SoftSharing", "spread"]

Towards = Literal["each", "mean"]


def spread(values: Tensor, towards: Towards = "each") -> Tensor:
    """Σ_{i<j} ‖θ_i - θ_j‖², or with ``"mean"`` Σ_i ‖θ_i - θ̄‖², which is the K-th part of it.

    Args:
        values: θ of each of K tasks, ``(K, entries)``.
        towards: ``"each"`` or ``"mean"``.

    Example:
        >>> import torch
        >>> spread(torch.tensor([[0.0], [2.0], [4.0]])).item(), spread(torch.tensor([[0.0], [2.0], [4.0]]), "mean").item()
        (24.0, 8.0)
    """
    around_mean = (values - values.mean(0)).square().sum()
    return len(values) * around_mean if towards == "each" else around_mean


class SoftSharing(LayerPenalty):
    r"""Soft parameter sharing.

    .. math:: P(θ) = λ \sum_{i<j} \|θ_i - θ_j\|^2 \qquad\text{or}\qquad P(θ) = λ \sum_i \|θ_i - \barθ\|^2

    with θ_i what task i has of its own and corresponds to what the others have, weights and biases, layer by layer. There are two published
    settings: ``towards="each"`` holds every pair together (Duong et al. 2015, for two languages), ``towards="mean"`` every task to the
    mean of all (Evgeniou & Pontil 2004, for any number). The first is the second times the number of tasks.

    What corresponds is found by the names of parameters: the networks of `SeparateNetworks` and the towers of `CrossStitch` or `Sluice`
    where there are some, else heads of equal shape. Parameters of another shape than those of any other task are left alone. Only tasks
    that have been met take part; with one there is nothing to hold. A head whose task has grown corresponds to those of its new size.

    Hidden units correspond by their numbers alone. Networks that were drawn one by one have to come together first;
    ``SeparateNetworks(start="given")`` starts all at the same weights.

    A parameter that the optimiser may not move (frozen, or of a network that rests because its task has no rows in the batch, as
    `SeparateNetworks` has it) still pulls the others: so a new task starts from the old ones, and old ones keep what they have.

    Args:
        strength: λ, at least 0; 0 switches the penalty off.
        towards: ``"each"`` or ``"mean"``.
        parameters: patterns of names, each with ``{task}`` once where the name has that of the task, and ``*`` for anything, such as
            ``("encoder.towers.{task}.*",)``; ``None`` finds them as told above.

    Raises:
        ConfigurationError: the stream has several tasks and nothing corresponds.

    Cost: no additional pass; in proportion to the parameters that correspond. Memory: none.

    Reference: Duong, Cohn, Bird & Cook, Low resource dependency parsing: cross-lingual parameter sharing in a neural network parser,
    ACL 2015, section 3; Evgeniou & Pontil, Regularized multi-task learning, KDD 2004, lemma 2.2. Deviation: Duong et al. train the
    network of one task first and hold only the other to it; here all move, unless the first comes in an earlier experience.

    Example:
        >>> from streamlearn.plugins import SoftSharing
        >>> SoftSharing(strength=0.1, towards="mean")
        SoftSharing(strength=0.1, towards='mean')
    """

    info = PluginInfo(
        name="soft_sharing",
        family="regularization",
        summary="Holds what tasks have of their own, such as their networks, near each other.",
        reference="Duong et al. 2015, ACL, section 3; Evgeniou & Pontil 2004, KDD",
        strength="strength",
        streams=frozenset({"task_incremental", "multitask"}),
        vmappable=True,
    )

    class Config(LayerOptions):
        """Options of `SoftSharing`."""

        strength: Annotated[float, Tunable(1e-4, 10.0, log=True)] = Field(0.01, ge=0)
        towards: Towards = "each"

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """λ times the squared distances, once two tasks have been met."""
        strength = step.run.value(self, "strength")
        parts = [spread(stacked(layer, step.parameters), self.config.towards) for layer in self.layers(step.parameters, step.run)]
        return strength * sum(parts[1:], parts[0]) if parts else None
