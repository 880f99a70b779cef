"""L2 anchor: every parameter is pulled towards the value it had when the last experience ended.

The mathematics is a function that knows nothing of streamlearn; the class below it says when it acts, and what it keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from streamlearn import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from torch import Tensor

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step

__all__ = ["L2Anchor", "squared_distance"]


def squared_distance(parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor:
    """Σ_n ‖θ_n - θ*_n‖², a scalar.

    A parameter that has grown since is compared on its leading slice; one that is absent is skipped.

    Args:
        parameters: θ by name.
        anchor: θ* by name.

    Example:
        >>> squared_distance({"w": torch.tensor([3.0, 1.0, 5.0])}, {"w": torch.tensor([1.0, 1.0])}).item()
        4.0
    """
    total = torch.zeros(())
    for name, old in anchor.items():
        if name in parameters:
            now = parameters[name][tuple(slice(0, size) for size in old.shape)]
            total = total.to(now) + (now - old).square().sum()
    return total


class L2Anchor(Plugin):
    r"""L2 anchor: a pull towards the weights with which the last experience ended.

    .. math:: P(θ) = \frac{λ}{2} \sum_j (θ_j - θ^*_j)^2

    with θ* the weights when the last experience ended. Before the first has ended there is no term.

    Args:
        strength: λ, at least 0; 0 switches it off.

    Cost: no additional pass. Memory: 1 x parameters.

    Reference: Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017: the baseline L2 of figure 2.

    Example:
        >>> L2Anchor(strength=0.5)
        L2Anchor(strength=0.5)
    """

    # What is known without running it: 'streamlearn plugins info l2_anchor' shows it, and the tests hold the plugin to it.
    info = PluginInfo(
        name="l2_anchor",
        family="regularization",
        summary="Holds every parameter near the value it had when the last experience ended.",
        reference="Kirkpatrick et al. 2017, PNAS 114(13), the L2 baseline of figure 2",
        memory="1 x parameters",
        strength="strength",
    )

    class Config(PluginConfig):
        """Options of `L2Anchor`: checked when it is made, and refused with the nearest name when they are misspelt."""

        strength: Annotated[float, Tunable(1e-3, 1e3, log=True)] = Field(0.1, ge=0)

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._anchor: dict[str, Tensor] = {}  # by name, because parameters grow and arrive while a stream is walked

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """P, once there is something to hold.

        It reads the parameters through the step and changes nothing: then the term is right at the fast weights of MAML and SAM, too.
        At strength 0 there is no term at all, so that the run is the plain one bit for bit.
        """
        strength = step.run.value(self, "strength")
        if strength == 0 or not self._anchor:
            return None
        return 0.5 * strength * squared_distance(step.parameters, self._anchor)

    @hookimpl
    def after_experience(self, run: Run) -> None:
        """Remember the weights: the engine names only the hooks' arguments that are asked for, so the experience is left out."""
        if run.value(self, "strength") > 0:
            self._anchor = run.snapshot(run.model_parameter_names)

    def state_dict(self) -> dict[str, Any]:
        """θ* by name: all that a resume needs, in tensors, numbers, strings, lists and dicts."""
        return {"anchor": dict(self._anchor)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._anchor = dict(state["anchor"])
