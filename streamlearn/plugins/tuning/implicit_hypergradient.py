"""Implicit hypergradients: at the end of an experience, numbers move along the derivative of a loss at the minimum that they define."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.importance import evaluating
from streamlearn.core.inner_loop.estimators import Implicit
from streamlearn.core.plugin import Passes, PluginInfo, Tunable, hookimpl
from streamlearn.core.randomness import forked
from streamlearn.core.tuning.hypergradients import cross_slopes, held_out_slopes, implicit_slopes, training_total
from streamlearn.core.tuning.tunables import Number, groups_of_the_model, is_decoupled, names_in, with_graph
from streamlearn.core.tuning.tuners import Tuner, TunerOptions
from streamlearn.errors import ConfigurationError
from streamlearn.streams.batch import concatenate

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Batch

__all__ = ["ImplicitHypergradient"]


class ImplicitHypergradient(Tuner):
    r"""Implicit hypergradients at the end of an experience.

    .. math:: \frac{dL_{val}}{dh} = -∇L_{val}(θ) \cdot (H + δ)^{-1} \, \frac{∂∇(s + P)(θ, h)}{∂h}

    where θ, at the end of training, stands for the minimum of s + P, and H is the Hessian of s + P there. What is tuned at the end of an
    experience holds from the next one on: h moves once, in log space where its range is one (log h ← log h - β h dL_val/dh, by at most
    log ``factor``), and stays within the range it is declared with. The equation is solved by products with H, never H itself.

    L_val is the mean loss over the labels of held-out rows, without terms. s + P is taken after the last update of the phase ``"main"``,
    in evaluation mode, on rows of the experience beside those of other roles (replayed ones, a target domain) in the last batch; a decay
    of weights that is part of the objective is included. Look-aheads are differentiated, but for what they detach; combiners and
    projections of gradients have another fixed point than a minimum of s + P, of which nothing is known here. The values are recorded as
    events ``"tuning"``. An experience without an old task has no penalty yet, and moves no strength.

    Args:
        tune: names of the numbers: ``"<plugin>.<option>"`` of one marked `Tunable`, or ``"weight_decay"`` of the optimiser; at least one.
        rate: β, above 0.
        solver: ``"neumann"``: Σ_j (1 - r (H + δ))^j r, as if the last steps of gradient descent of rate r were differentiated, which
            needs r below 2 / ‖H + δ‖; or ``"cg"``, conjugate gradients, which needs H + δ positive definite.
        steps: products with H, at least 1.
        series_rate: r, above 0; default the learning rate of the optimiser.
        damping: δ, at least 0.
        factor: above 1; a number in log space is multiplied or divided by no more at once.
        held_out: ``"validation"`` or another role of the experiences, or ``"memory:<name>"``, a replay memory; what is replayed from it
            too is trained on and no longer held out.
        fraction: in [0, 1); this share of the training rows of each class becomes ``"validation"`` where the stream has no such rows,
            as by `streams.validation`.
        rows: at most so many are drawn to train on, and so many of those held out, at least 1.

    Raises:
        ConfigurationError: a number does not exist, starts outside its range, is moved by two plugins, or has no place in an objective; or
            there are no held-out rows.

    Warns:
        UserWarning: at the end of a run, a number on which the objective never depended: it did not move.

    Cost: nothing per step; after an experience 1 evaluation of the objective, a forward and a backward pass on held-out rows, and
    ``steps`` products with H, about two backward passes each. Memory: none of its own; for a moment a few copies of the parameters and
    the graph of one pass on ``rows`` rows.

    Reference: Lorraine, Vicol & Duvenaud, Optimizing millions of hyperparameters by implicit differentiation, AISTATS 2020, theorem 1,
    algorithms 1-3; conjugate gradients: Pedregosa, Hyperparameter optimization with approximate gradient, ICML 2016. Deviations: one
    step per experience of a stream, where they alternate on one data set; damping; the step in log space is limited.

    Example:
        >>> from streamlearn.plugins import ImplicitHypergradient
        >>> ImplicitHypergradient(tune=("ewc.strength",), solver="cg", damping=0.01)
        ImplicitHypergradient(damping=0.01, solver='cg', tune=('ewc.strength',))
    """

    info = PluginInfo(
        name="implicit_hypergradient",
        family="tuning",
        summary="After an experience, moves strengths along the derivative of a held-out loss at the minimum they define.",
        reference="Lorraine, Vicol & Duvenaud 2020, AISTATS, theorem 1 and algorithms 1-3; Pedregosa 2016, ICML",
        passes=Passes(),
        memory="none",
    )

    class Config(TunerOptions):
        """Options of `ImplicitHypergradient`."""

        tune: tuple[str, ...] = Field(min_length=1)
        rate: Annotated[float, Tunable(0.01, 100.0, log=True)] = Field(1.0, gt=0)
        solver: Literal["neumann", "cg"] = "neumann"
        steps: int = Field(20, ge=1)
        series_rate: float | None = Field(None, gt=0)
        damping: float = Field(0.0, ge=0)
        factor: float = Field(10.0, gt=1)
        rows: int = Field(1000, ge=1)

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._last = -1  # the last experience that has been tuned

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Refuse what is no number of an objective."""
        if "learning_rate" in self.config.tune:
            raise ConfigurationError(f"plugin {self.name}: no minimum depends on learning_rate: leave it to hypergradient")
        self.claim(run)
        if "weight_decay" in self.config.tune and is_decoupled(run):
            raise ConfigurationError(
                f"plugin {self.name}: weight_decay of {type(run.optimization.main).__name__} is part of no objective: take SGD or Adam"
            )

    @hookimpl
    def after_step(self, step: Step) -> None:
        """After the last update of an experience: tune."""
        run, clock = step.run, step.run.clock
        last = clock.epoch * clock.batches + clock.batch + 1 >= clock.iterations
        if not (last and step.updated and run.phase is not None and run.phase.name == "main" and self._last < clock.experience):
            return
        self._last = clock.experience
        held = self.held_out_rows(step)
        if held is not None:
            numbers = self.numbers(run)
            slopes = self._slopes(step, held, numbers)
            for number in numbers:
                self.move(number, slopes.get(number.name), run, run.value(self, "rate"), math.log(self.config.factor))
            self.record(run)

    def _slopes(self, step: Step, held: Batch, numbers: list[Number]) -> dict[str, float]:
        """dL_val/dh by number."""
        run, config = step.run, self.config
        parameters = {name: p.detach().requires_grad_() for name, p in run.optimization.trainable().items()}
        outside = held_out_slopes(run, held)
        with torch.enable_grad(), evaluating(run.model), forked(run.device), with_graph(run, numbers) as scalars:
            total = training_total(step.at(parameters, batch=self._training_rows(step)))
            decay = self._decay(run, parameters, scalars)
            total = decay if total is None else total if decay is None else total + decay
            if total is None or not total.requires_grad:
                return {}
            rate = config.series_rate or float(groups_of_the_model(run)[0]["lr"])
            how = Implicit(solver=config.solver, steps=config.steps, rate=rate)
            return implicit_slopes(outside, total, parameters, cross_slopes(total, parameters, scalars), how, config.damping)

    def _training_rows(self, step: Step) -> Batch:
        """Rows of the experience, and those that joined the last batch."""
        phase = step.run.phase
        assert phase is not None
        own = self.drawn(phase.data, phase.role, step.run)
        if any(
            step.batch.targets[task].shape[1:] != column.shape[1:] for task, column in own.targets.items() if task in step.batch.targets
        ):
            return step.batch  # its targets are of another kind (mixed ones), to which those of rows on their own cannot be joined
        return concatenate([own, *(step.batch.select(role) for role in step.batch.roles if role != phase.role)])

    @staticmethod
    def _decay(run: Run, parameters: Mapping[str, Tensor], scalars: Mapping[str, Tensor]) -> Tensor | None:
        """What the optimiser adds to the objective: weight decay / 2 · ‖θ‖²."""
        if is_decoupled(run):
            return None
        parts = []
        for group in groups_of_the_model(run):
            strength = scalars.get("weight_decay", group.get("weight_decay", 0.0))
            moving = [parameters[name] for name in names_in(group, run) if name in parameters]
            if isinstance(strength, Tensor) or strength:
                parts += [0.5 * strength * value.square().sum() for value in moving]
        return sum(parts[1:], parts[0]) if parts else None

    def state_dict(self) -> dict[str, Any]:
        """Which numbers have moved, and when last."""
        return {**super().state_dict(), "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self._last = int(state["last"])
