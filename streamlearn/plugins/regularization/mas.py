"""Memory aware synapses (MAS): hold the parameters on which the outputs depend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from streamlearn.core.penalties import embedded, quadratic_penalty
from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Experience

__all__ = ["MAS"]


class MAS(Plugin):
    r"""Memory aware synapses.

    .. math:: P(θ) = λ \sum_j Ω_j (θ_j - θ^*_j)^2, \qquad
        Ω_j \text{ of one experience} = \frac1N \sum_i \Big| \frac{\partial \|F(x_i)\|_2^2}{\partial θ_j} \Big|

    with θ* the weights when the last experience ended and F(x_i) the outputs for row i, logits of a classifier (eqs. 2 to 4). There
    is no 1/2 before λ: the same λ holds twice as firmly as EWC's would at equal importance.

    Labels are never read; rows without one count like any other. The absolute value is taken for each row, so that Ω does not
    depend on a batch size. Avalanche 0.6 takes it of the mean over a mini-batch, in which rows cancel: the two agree at batch size
    1, and its Ω shrinks as batches grow. On rows asked on several tasks the Ω of the tasks are added up. Logits without bounds make
    Ω large: a step of gradient descent on P is stable while its rate is below 1 / (λ max Ω).

    ``accumulation="sum"`` adds the Ω of all experiences, as the paper and its authors' code do. ``"average"`` keeps the moving
    average Ω ← α Ω + (1 - α) Ω_new of FACIL and Avalanche, which forgets. A parameter that an experience does not reach (a head of
    another task) keeps its Ω.

    Args:
        strength: λ, at least 0; 0 switches the penalty off. The paper uses 1.
        accumulation: ``"sum"`` or ``"average"``.
        alpha: α of the moving average, in [0, 1].

    Cost: no additional pass per step; one pass over the experience's rows after it. Memory: 2 x parameters.

    Reference: Aljundi, Babiloni, Elhoseiny, Rohrbach & Tuytelaars, Memory aware synapses: learning what (not) to forget, ECCV 2018,
    section 4.1, the global version; average: Masana et al., Class-incremental learning: survey and performance evaluation, PAMI 2022
    (FACIL). Deviations: Ω is taken on the rows of the experience just learnt, in evaluation mode, and not on other unlabelled data.

    Example:
        >>> from streamlearn.plugins import MAS
        >>> MAS(strength=0.1, accumulation="average", alpha=0.5)
        MAS(accumulation='average', alpha=0.5, strength=0.1)
    """

    info = PluginInfo(
        name="mas",
        family="regularization",
        summary="Holds parameters near their old values, each as firmly as the outputs are sensitive to it; needs no labels for that.",
        reference="Aljundi et al. 2018, ECCV, eqs. 2-4; average: Masana et al. 2022, PAMI",
        memory="2 x parameters",
        strength="strength",
        vmappable=True,
    )

    class Config(PluginConfig):
        """Options of `MAS`."""

        strength: Annotated[float, Tunable(1e-3, 1e2, log=True)] = Field(1.0, ge=0)
        accumulation: Literal["sum", "average"] = "sum"
        alpha: float = Field(0.5, ge=0, le=1)

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._importance: dict[str, Tensor] = {}
        self._anchor: dict[str, Tensor] = {}

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """λ times the weighted square, once there is something to hold."""
        strength = step.run.value(self, "strength")
        if not self._importance or strength == 0:
            return None
        return 2 * strength * quadratic_penalty(step.parameters, self._importance, self._anchor)

    @hookimpl
    def after_experience(self, experience: Experience, run: Run) -> None:
        """Add what matters to the outputs of this experience."""
        if run.value(self, "strength") == 0:
            return
        fresh = run.importance("outputs", run.data(experience.main_role))
        self._anchor = run.snapshot(frozenset(fresh) | frozenset(self._importance))
        for name, start in self._anchor.items():
            if name not in self._importance:
                self._importance[name] = fresh[name]
                continue
            old = embedded(self._importance[name], start)
            self._importance[name] = self._accumulated(old, fresh[name]) if name in fresh else old

    def _accumulated(self, old: Tensor, fresh: Tensor) -> Tensor:
        if self.config.accumulation == "sum":
            return old + fresh
        return fresh.lerp(old, self.config.alpha)

    def state_dict(self) -> dict[str, Any]:
        """Importance and anchor."""
        return {"importance": dict(self._importance), "anchor": dict(self._anchor)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._importance, self._anchor = dict(state["importance"]), dict(state["anchor"])
