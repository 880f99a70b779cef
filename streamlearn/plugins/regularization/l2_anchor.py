"""L2 anchor: hold every parameter alike near the value that it had."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from torch import Tensor

from streamlearn.core.penalties import quadratic_penalty
from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Experience

__all__ = ["L2Anchor"]


class L2Anchor(Plugin):
    r"""L2 penalty on the way from the last weights, the baseline of EWC and its kin.

    .. math:: P(θ) = \frac{λ}{2} \|θ - θ^*\|_2^2

    with θ* the model's weights when the last experience ended: EWC with an importance of 1 everywhere. What held in older
    experiences is held through the last one only. The parameters are those that have been trained: what was frozen when an
    experience ended gets no anchor then, and the modules of other plugins never do. A head that has grown since is held on its old
    part. Reads no rows, so it goes with any stream, task and plugin; unlike weight decay it does not pull towards zero.

    Args:
        strength: λ, at least 0; 0 switches the penalty off.

    Cost: no additional pass. Memory: 1 x parameters.

    Reference: the baseline "L2" of Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017, figure 2;
    Li, Grandvalet & Davoine, Explicit inductive bias for transfer learning with convolutional networks, ICML 2018, eq. 3 (L2-SP),
    has the same term with the weights of a pre-trained network for θ*, and plain weight decay for what is new.

    Example:
        >>> from streamlearn.plugins import L2Anchor
        >>> L2Anchor(strength=0.1)
        L2Anchor(strength=0.1)
    """

    info = PluginInfo(
        name="l2",
        family="regularization",
        summary="Holds every parameter, with one strength for all, near the value that it had when the last experience ended.",
        reference="Kirkpatrick et al. 2017, PNAS 114(13), figure 2; Li, Grandvalet & Davoine 2018, ICML, eq. 3",
        memory="1 x parameters",
        ranks="local",
        strength="strength",
        vmappable=True,
    )

    class Config(PluginConfig):
        """Options of `L2Anchor`."""

        strength: Annotated[float, Tunable(1e-4, 1e2, log=True)] = Field(0.1, ge=0)

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._anchor: dict[str, Tensor] = {}

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """λ times the quadratic, once there is something to hold."""
        strength = step.run.value(self, "strength")
        if not self._anchor or strength == 0:
            return None
        return strength * quadratic_penalty(step.parameters, None, self._anchor)

    @hookimpl
    def after_experience(self, experience: Experience, run: Run) -> None:
        """Take the weights as the anchor."""
        if run.value(self, "strength") != 0:
            self._anchor |= run.snapshot(frozenset(run.optimization.trainable_names()) & run.model_parameter_names)

    def state_dict(self) -> dict[str, Any]:
        """The anchor."""
        return {"anchor": dict(self._anchor)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._anchor = dict(state["anchor"])
