"""Synaptic intelligence (SI): hold the parameters whose movement lowered the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.penalties import embedded, leading, quadratic_penalty
from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Experience

__all__ = ["SI"]


class SI(Plugin):
    r"""Synaptic intelligence.

    .. math:: P(θ) = c \sum_j Ω_j (θ_j - \tildeθ_j)^2, \qquad
        Ω_j \mathrel{+}= \frac{ω_j}{Δ_j^2 + ξ}, \qquad ω_j = - \sum_t g_j(t) \, (θ_j(t+1) - θ_j(t))

    with θ̃ the weights when the last experience ended, Δ_j how far an experience has moved θ_j, and the sum over its steps (Zenke et
    al. 2017, eqs. 3 to 5). There is no 1/2 before c: the same number holds twice as firmly as EWC's λ would at equal importance.

    θ(t+1) - θ(t) is what the update did: momentum, Adam, clipping, projections and weight decay included. g is the gradient before
    projection and clipping, in one of two published settings:

    - ``gradient="task"``: of the loss without P, as the paper and its authors' code have it. The gradient of P is subtracted in
      closed form, at the weights before the step; beside a look-ahead (SAM, MAML) it is the one at the weights looked from. The
      terms of other plugins stay in.
    - ``gradient="total"``: of everything that is minimised, P included, as in van de Ven's code.

    A parameter without a gradient in a step, such as the head of an absent task, contributes nothing, and one that never had any is
    not held. What a head has grown by starts with Ω = 0. Only the model's own parameters are held.

    With ``around_update`` hooks that write weights themselves (EMA, PackNet), list this plugin before them: the first listed is the
    outermost, and sees what they did.

    Args:
        strength: c, at least 0; 0 switches the penalty off. The paper uses 1 on split MNIST and 0.1 on permuted MNIST.
        damping: ξ, above 0. The paper uses 1e-3 on split MNIST and 0.1 on permuted MNIST; van de Ven 0.1 everywhere.
        gradient: ``"task"`` or ``"total"``.
        clamp: bring the sum Ω to at least 0 after every experience, as the authors' code does. The equations, and van de Ven's code, do
            not: then P may have directions in which it falls without bound.

    Cost: a pass over the parameters per update, none through the model. Memory: 3 x parameters, and 2 x more within a step.

    Reference: Zenke, Poole & Ganguli, Continual learning through synaptic intelligence, ICML 2017, eqs. 3-5; ``"total"``: van de Ven,
    Tuytelaars & Tolias, Three types of incremental learning, Nature Machine Intelligence 2022. Deviation: the optimiser's memory is
    not reset between experiences, as the paper's experiments do.

    Example:
        >>> from streamlearn.plugins import SI
        >>> SI(strength=0.1, gradient="total", clamp=False)
        SI(clamp=False, gradient='total', strength=0.1)
    """

    info = PluginInfo(
        name="si",
        family="regularization",
        summary="Holds parameters near their old values, each as firmly as its movement has lowered the loss.",
        reference="Zenke, Poole & Ganguli 2017, ICML, eqs. 3-5; total: van de Ven et al. 2022, Nature Machine Intelligence",
        memory="3 x parameters",
        strength="strength",
        vmappable=True,
    )

    class Config(PluginConfig):
        """Options of `SI`."""

        strength: Annotated[float, Tunable(1e-2, 1e4, log=True)] = Field(1.0, ge=0)
        damping: Annotated[float, Tunable(1e-4, 1.0, log=True)] = Field(0.1, gt=0)
        gradient: Literal["task", "total"] = "task"
        clamp: bool = True

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._path: dict[str, Tensor] = {}  # ω of the experience in progress, for what has had a gradient in it
        self._importance: dict[str, Tensor] = {}
        self._anchor: dict[str, Tensor] = {}

    @hookimpl
    def before_experience(self, experience: Experience, run: Run) -> None:
        """The way is measured from here; what is new, or has grown, starts at its present value."""
        if run.value(self, "strength") == 0:
            return
        self._path = {}
        for name, now in run.snapshot(frozenset(run.optimization.trainable_names()) & run.model_parameter_names).items():
            if name in self._anchor:
                leading(now, self._anchor[name].shape).copy_(self._anchor[name])
            self._anchor[name] = now
            if name in self._importance:
                self._importance[name] = embedded(self._importance[name], now)

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """c times the weighted square, once there is something to hold."""
        strength = step.run.value(self, "strength")
        if not self._importance or strength == 0:
            return None
        return 2 * strength * quadratic_penalty(step.parameters, self._importance, self._anchor)

    @hookimpl
    def around_update(self, update: Callable[[Mapping[str, Tensor]], None], gradients: Mapping[str, Tensor], step: Step) -> None:
        """Update, and add -g (θ(t+1) - θ(t)) to the path integral."""
        run = step.run
        strength = run.value(self, "strength")
        if strength == 0:
            update(gradients)
            return
        parameters = run.parameters()
        before: dict[str, tuple[Tensor, Tensor]] = {}
        for name, gradient in run.optimization.gradients().items():  # as they were before projections
            if name in self._anchor:
                start = parameters[name].detach().clone()
                before[name] = (self._integrated(name, gradient, start, strength), start)
        update(gradients)
        for name, (gradient, start) in before.items():
            moved = torch.sub(parameters[name].detach(), start, out=start)
            if name not in self._path:
                self._path[name] = torch.zeros_like(moved)
            self._path[name].addcmul_(gradient, moved, value=-1)

    def _integrated(self, name: str, gradient: Tensor, theta: Tensor, strength: float) -> Tensor:
        """The gradient that is integrated, in a tensor of its own: some optimisers work in that of the parameter."""
        if self.config.gradient == "total" or name not in self._importance:
            return gradient.clone()
        way = theta - self._anchor[name]
        return torch.addcmul(gradient, self._importance[name], way, value=-2 * strength, out=way)

    @hookimpl
    def after_experience(self, experience: Experience, run: Run) -> None:
        """Turn the path integral into importance, and take the weights as the anchor."""
        weights = run.snapshot(frozenset(self._anchor))
        for name, path in self._path.items():
            total = path / ((weights[name] - self._anchor[name]).square() + run.value(self, "damping"))
            if name in self._importance:
                total += self._importance[name]
            self._importance[name] = total.clamp(min=0) if self.config.clamp else total
        self._anchor, self._path = weights, {}

    def state_dict(self) -> dict[str, Any]:
        """Path integral, importance and anchor."""
        path = {name: value.clone() for name, value in self._path.items()}  # it goes on in place
        return {"path": path, "importance": dict(self._importance), "anchor": dict(self._anchor)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._path = {name: value.clone() for name, value in state["path"].items()}
        self._importance, self._anchor = dict(state["importance"]), dict(state["anchor"])
