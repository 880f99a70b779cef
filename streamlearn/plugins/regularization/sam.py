"""Sharpness-aware minimisation (SAM): descend from where the objective is worst nearby."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.gradients import named_gradients
from streamlearn.core.objective import Objective, minimised
from streamlearn.core.plugin import Passes, Plugin, PluginConfig, PluginInfo, Tunable, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.step import Step

__all__ = ["SAM", "ascended"]


def ascended(parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor], radius: float) -> dict[str, Tensor]:
    """θ + ρ g / ‖g‖₂ by name, with one norm over all gradients together.

    Args:
        parameters: θ; gradients with respect to the result flow to it unchanged.
        gradients: g, constants; the names of the result.
        radius: ρ.

    Example:
        >>> ascended({"w": torch.ones(2)}, {"w": torch.tensor([0.0, 4.0])}, 0.5)["w"].tolist()
        [1.0, 1.5]
    """
    if not gradients:
        return {}
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    scale = radius / (norm + 1e-12)  # no step where the gradient vanishes, instead of NaN
    return {name: parameters[name] + scale * gradient for name, gradient in gradients.items()}


class SAM(Plugin):
    r"""Sharpness-aware minimisation.

    .. math:: \hat ε = ρ \, \frac{∇(s + P)(θ)}{\lVert ∇(s + P)(θ) \rVert_2}, \qquad g = ∇(s + P)(θ + \hat ε)

    The first gradient is that of the whole objective at θ, with every plugin's losses, weighting and terms. The step then minimises
    the objective at the ascended weights, whose gradient with respect to θ takes ε as a constant (Foret et al. 2021, eqs. 2 and 3).
    What acts on rows or gradients afterwards (combiners, projections) acts on that gradient.

    Args:
        rho: ρ, at least 0; 0 leaves the step as it is. The paper uses 0.05 on images.

    Listed after MAML it ascends from the fast weights of each look-ahead; listed before, it takes the look-ahead for the objective. The
    weighting of the rows is that at θ.

    Cost: one evaluation of the objective more (a forward and a backward pass). Memory: 1 x the parameters, within the step.
    BatchNorm's running statistics move once, by the pass at θ itself; dropout masks are the same in both passes.

    Reference: Foret et al., Sharpness-aware minimization for efficiently improving generalization, ICLR 2021. Deviations: penalties
    of plugins belong to the loss whose sharpness counts, while the optimiser's weight decay does not.

    Example:
        >>> from streamlearn.plugins import SAM
        >>> SAM(rho=0.1)
        SAM(rho=0.1)
    """

    info = PluginInfo(
        name="sam",
        family="regularization",
        summary="Takes the gradient at the worst weights nearby, so that training ends in flat minima.",
        reference="Foret et al. 2021, ICLR, eqs. 2-3",
        provides=frozenset({"look-ahead"}),
        passes=lambda plugin: Passes(look_ahead=1 if plugin.config.rho else 0),
        memory="1 x parameters within a step",
        strength="rho",
    )

    class Config(PluginConfig):
        """Options of `SAM`."""

        rho: Annotated[float, Tunable(0.005, 0.5, log=True)] = Field(0.05, ge=0)

    @hookimpl
    def around_objective(self, objective: Callable[[Step], Objective], step: Step) -> Objective:
        """The objective at the ascended parameters."""
        rho = step.run.value(self, "rho")
        if rho == 0:
            return objective(step)
        trainable = step.run.optimization.trainable_names()
        wanted = {name: step.parameters[name] for name in trainable if step.parameters[name].requires_grad}
        here = step
        if step is not step.root:
            # at the fast weights of a look-ahead, one parameter may depend on another: g takes each by itself, as at θ
            wanted = {name: value.detach().requires_grad_() for name, value in wanted.items()}
            here = step.at(wanted)
            if step.run.has_buffers:
                with torch.no_grad():
                    _ = step.outputs.features  # the pass that moves the statistics, if none has yet
        found = objective(here)
        total = minimised(found, here)
        if total is None or not total.requires_grad:
            return found
        return objective(step.at(ascended(step.parameters, named_gradients(total, wanted), rho)))
