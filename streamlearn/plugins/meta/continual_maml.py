"""Continual-MAML: adapt fast to what comes, tell from the loss when the task has changed, and learn slowly where to start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.inner_loop.fast_weights import adapted, loss_at, resumed, values_after
from streamlearn.core.inner_loop.keeping import anew, halves, packed, unpacked
from streamlearn.core.objective import Objective, weigh
from streamlearn.core.plugin import Passes, Plugin, PluginConfig, PluginInfo, State, Tunable, hookimpl
from streamlearn.core.randomness import forked
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.core.step import Step
    from streamlearn.streams import Batch

__all__ = ["ContinualMAML", "modulated"]

Modulation = Literal["none", "step", "smooth"]


def modulated(loss: float, modulation: Modulation, novelty: float) -> float:
    """g(loss), how much the slow weights learn from rows on which the fast ones have this loss.

    Args:
        loss: at least 0.
        modulation: ``"none"``: 1; ``"step"``: 1 above λ, else 0; ``"smooth"``: 1 - exp(-λ · loss).
        novelty: λ.

    Example:
        >>> [round(modulated(0.5, kind, 2.0), 3) for kind in ("none", "step", "smooth")]
        [1.0, 0.0, 0.632]
    """
    if modulation == "none":
        return 1.0
    if modulation == "step":
        return float(loss > novelty)
    return float(-torch.expm1(torch.tensor(-novelty * loss, dtype=torch.float64)))


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is decided of a step before it: whether the task has changed, whether the slow weights learn, and the fast ones after it."""

    changed: bool
    learns: bool
    fast: dict[str, Tensor] | None = None


class ContinualMAML(Plugin):
    r"""Continual-MAML.

    .. math:: φ = U^k(θ; B_{t-1}), \qquad c_t = \big[\, s(φ; B_t) - s(U^k(θ; B_t); B_t) \ge γ \,\big], \qquad
        θ ← θ - η \, (1 - c_t) \, g(s) \, ∇_θ (s + P)(φ; B_t)

    The model's weights are the slow ones, θ. U^k are ``steps`` steps of gradient descent on the rows of one step: fast weights φ,
    adapted to the rows B of the step before, meet the rows of this one. Where adapting to these helps by γ or more, the task has
    changed (c = 1): the gradient would go from one task through rows of another, and is left out. Else θ learns to be a place from
    which the rows of one step help with the next of the same task (Caccia et al. 2020). The *update modulation* g lets it learn little
    from what it knows: ``"step"`` is 1[s > λ], ``"smooth"`` is 1 - exp(-λ s).

    With ``prolonged=True`` (the prolonged adaptation phase) φ goes on from step to step, φ ← U^k(φ; B_t), until the task changes or
    ``longest`` batches have come; the loss is compared before and after. Only then θ learns: from the batches of the task that has
    ended, the first half to adapt to and the second to be asked on, at weight g of that loss. A change puts φ back to U^k(θ; B_t), and
    B_t is the first batch of the task to come.

    The losses on the record are prequential: on the rows of a step at φ, which has not seen them (with ``prolonged=True``, in the steps
    in which θ learns, those of the second half). No boundary is read from the stream, and none is needed: take a `data_incremental` or
    domain-incremental one, in one epoch. An evaluation measures θ.

    Losses, terms and the weighting act at φ and in the inner steps. A combiner, or a projection that comes before in the order, gets
    the gradient of θ as it is; then it is modulated or left out. A step without an update moves no helper module either.

    Args:
        steps: k, at least 1.
        rate: α, above 0.
        order: 2 differentiates through the inner steps; 1 takes their gradients as constants.
        threshold: γ, above 0; ``None`` detects nothing.
        modulation: g: ``"none"``, ``"step"`` or ``"smooth"``. An optimiser that divides by the size of gradients weakens the last.
        novelty: λ, at least 0.
        prolonged: whether φ goes on while the task lasts.
        longest: with ``prolonged``, batches after which θ learns without a change, at least 1.

    Raises:
        ConfigurationError: the stream has episodes.

    Cost: ``steps`` evaluations of the objective more, at order 2 differentiated; with ``threshold`` or ``prolonged``, as many again to
    find φ and where the rows lead, and two passes to compare. Memory: the rows of a step; with ``prolonged`` those of ``longest``
    steps, and 1 x the parameters.

    Reference: Caccia et al., Online fast adaptation and knowledge accumulation (OSAKA): a new approach to continual learning, NeurIPS
    2020, Continual-MAML, after the authors' code. Deviations from that: φ is computed anew from the present θ, where theirs stems from
    θ before its last update, and their gradient with it (newer PyTorch refuses that); in the prolonged phase theirs puts φ back one step
    later, drops the batch that showed the change, and lets ``"step"`` do nothing. Rates are not learnt, and there is no pre-training:
    start from a prior with `FromPrior`. BatchNorm's running statistics move once a step, at φ, or at θ where a task that has ended is
    learnt from.

    Example:
        >>> from streamlearn.plugins import ContinualMAML
        >>> ContinualMAML(rate=0.1, threshold=0.5, modulation="smooth", novelty=1.0)
        ContinualMAML(modulation='smooth', novelty=1.0, rate=0.1, threshold=0.5)
    """

    info = PluginInfo(
        name="continual_maml",
        family="meta",
        summary="Fast weights follow the stream, the loss tells when its task changes, and slow weights learn where to start.",
        reference="Caccia et al. 2020, NeurIPS, Continual-MAML, update modulation and prolonged adaptation phase",
        provides=frozenset({"inner-loop!", "look-ahead"}),
        passes=lambda plugin: Passes(forward=2 * plugin.detects, look_ahead=plugin.config.steps * (3 if plugin.detects else 1)),
        memory="rows of the present task; prolonged: 1 x parameters",
    )

    class Config(PluginConfig):
        """Options of `ContinualMAML`."""

        steps: int = Field(1, ge=1)
        rate: Annotated[float, Tunable(1e-3, 1.0, log=True)] = Field(0.1, gt=0)
        order: Literal[1, 2] = 2
        threshold: float | None = Field(None, gt=0)
        modulation: Modulation = "none"
        novelty: float = Field(1.0, ge=0)
        prolonged: bool = False
        longest: int = Field(20, ge=1)

    config: Config

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._rows: list[Batch] = []  # those of the step before; prolonged: those of the present task
        self._fast: dict[str, Tensor] = {}  # prolonged: φ
        self._plan = _Plan(changed=False, learns=False)

    @property
    def detects(self) -> bool:
        """Whether the loss is compared before the step."""
        return self.config.threshold is not None or self.config.prolonged

    # ------------------------------------------------------------------ what the step will be

    @hookimpl
    def before_step(self, step: Step) -> None:
        """Tell whether the task has changed."""
        if "support" in step.batch.roles:
            raise ConfigurationError(
                f"plugin {self.name} follows a stream of rows, but experience {step.run.clock.experience} has episodes: take MAML"
            )
        with forked(step.run.device):
            self._plan = self._planned(step)

    def _planned(self, step: Step) -> _Plan:
        if not self._rows and not self._fast:
            return _Plan(changed=True, learns=False)  # the very first rows
        if not self.detects:
            return _Plan(changed=False, learns=True)
        rows = anew(step.batch)
        start = resumed(step, self._fast) if self.config.prolonged else self._after(step, self._rows[0])
        end = self._after(step, rows, start if self.config.prolonged else None)
        threshold = self.config.threshold
        changed = threshold is not None and loss_at(step, start, rows) - loss_at(step, end, rows) >= threshold
        if not self.config.prolonged:
            return _Plan(changed, learns=not changed)
        return _Plan(changed, learns=bool(self._rows) and (changed or len(self._rows) >= self.config.longest), fast=end)

    def _after(self, step: Step, rows: Batch, start: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Where inner steps on ``rows`` lead from ``start``, or from θ, as numbers."""
        start = {name: value for name, value in step.parameters.items() if value.requires_grad} if start is None else start
        return values_after(step, start, rows, steps=self.config.steps, rates=step.run.value(self, "rate"))

    # ------------------------------------------------------------------ the step

    @hookimpl
    def around_objective(self, objective: Callable[[Step], Objective], step: Step) -> Objective:
        """The objective of the step at fast weights; prolonged, where the slow ones learn, that of the task that has ended."""
        if not self._rows and not self._fast:
            return objective(step)
        theta = {name: value for name, value in step.parameters.items() if value.requires_grad}
        if self.config.prolonged and not self._plan.learns:
            start = resumed(step, self._fast)  # at the values of φ, with a way to θ that is not taken
            return objective(step.at({name: start[name] + (value - value.detach()) for name, value in theta.items()}))
        learnt, asked = halves(self._rows) if self.config.prolonged else (self._rows[0], None)
        steps, rate = self.config.steps, step.run.value(self, "rate")
        fast = adapted(objective, step, theta, learnt, steps=steps, rates=rate, order=self.config.order)
        if asked is None:
            return objective(step.at(fast))
        if step.run.has_buffers:
            with torch.no_grad():
                _ = step.at().outputs.features  # other rows move no statistics
        return objective(step.at(fast, batch=asked))

    @hookimpl
    def transform_gradients(self, gradients: Mapping[str, Tensor], step: Step) -> Mapping[str, Tensor]:
        """Left out where the task has changed, and modulated."""
        config = self.config
        if not self._plan.learns:
            return {}
        if config.modulation == "none" or step.objective is None:
            return gradients
        with torch.no_grad():
            loss = weigh(step.objective.detached(), step)
        weight = 1.0 if loss is None else modulated(float(loss), config.modulation, config.novelty)
        return {name: weight * gradient for name, gradient in gradients.items()} if weight else {}

    @hookimpl
    def after_step(self, step: Step) -> None:
        """Keep the rows, and the fast weights."""
        plan, rows = self._plan, step.batch.replace(stored={})
        if not self.config.prolonged:
            self._rows = [rows]
            return
        self._rows = [rows] if plan.changed else [] if plan.learns else [*self._rows, rows]
        if plan.changed:
            with forked(step.run.device):
                self._fast = self._after(step, anew(step.batch))
        elif plan.fast is not None:
            self._fast = plan.fast

    # ------------------------------------------------------------------ state

    def state_dict(self) -> State:
        """The rows and the fast weights."""
        return {"rows": [packed(rows) for rows in self._rows], "fast": dict(self._fast)}

    def load_state_dict(self, state: State) -> None:
        """Take them back."""
        self._rows = [unpacked(rows) for rows in state["rows"]]
        self._fast = dict(state["fast"])
