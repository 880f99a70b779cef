"""Online hypergradients: numbers of a strategy move after every step, along the derivative of a loss through the step just made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.plugin import Passes, PluginInfo, Tunable, hookimpl
from streamlearn.core.tuning.hypergradients import cross_slopes, dot, held_out_slopes, training_total, with_decay
from streamlearn.core.tuning.tunables import SETTINGS, Number, groups_of_the_model, names_in, with_graph
from streamlearn.core.tuning.tuners import Tuner, TunerOptions
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Stream

__all__ = ["Hypergradient", "descended"]

Update = Callable[[Mapping[str, Tensor]], None]


def descended(rate: float, slope: float, lengths: float, hyper_rate: float, form: Literal["additive", "multiplicative"]) -> float:
    """The learning rate after a step of hypergradient descent.

    Args:
        rate: α.
        slope: h = ∂L/∂α = g_t · ∂θ_t/∂α.
        lengths: ‖g_t‖ ‖∂θ_t/∂α‖.
        hyper_rate: β.
        form: ``"additive"``: α - β h; ``"multiplicative"``: α (1 - β h / lengths).

    Example:
        >>> descended(0.1, -2.0, 4.0, 0.01, "additive"), descended(0.1, -2.0, 4.0, 0.02, "multiplicative")
        (0.12000000000000001, 0.101)
    """
    if form == "additive":
        return rate - hyper_rate * slope
    return rate * (1.0 - hyper_rate * slope / lengths) if lengths > 0 else rate


class Hypergradient(Tuner):
    r"""Online hypergradients.

    ``mode="descent"`` (Baydin et al. 2018) moves the learning rate α of the main optimiser before each step, by the gradient of the
    loss just met with respect to the α of the step before,

    .. math:: h_t = ∇L_t(θ_t) \cdot \frac{∂θ_t}{∂α}, \qquad α ← α - β h_t
        \quad\text{or}\quad α ← α \left(1 - β \frac{h_t}{‖∇L_t‖ \, ‖∂θ_t/∂α‖}\right)

    with ∂θ_t/∂α = (θ_t - θ_{t-1}) / α: -g_{t-1} under SGD, and as right for momentum, Adam and AdamW, whose steps are linear in α.
    The gradient is that of what is minimised, decay of weights included, after combination and projection. The first step of a phase
    follows a step on another objective and moves nothing.

    ``mode="t1_t2"`` (Luketina et al. 2016) moves numbers h of the objective, such as ``tune=("ewc.strength",)``, after each step, by the
    gradient of the loss on held-out rows through that step,

    .. math:: \frac{∂L_{val}(θ')}{∂h} = -\sum_n α_n \, ∇_n L_{val}(θ') \cdot \frac{∂∇_n (s + P)(θ, h)}{∂h}, \qquad θ' = θ - α ∇(s + P)(θ, h)

    in log space where the range of h is one: log h ← log h - β h ∂L_val/∂h. Besides options of plugins, ``"weight_decay"`` and
    ``"learning_rate"`` of the optimiser can be named. The held-out loss is the mean over labels in evaluation mode, without terms. The
    step is differentiated as one of plain gradient descent: under momentum or Adam, a combiner or a projection of gradients that is an
    approximation, but for ``"learning_rate"``. Every number stays within the range it is declared with; values are recorded after
    each epoch as events ``"tuning"``. An experience without an old task has no penalty yet, and moves no strength.

    Args:
        mode: ``"descent"`` or ``"t1_t2"``.
        tune: names of the numbers that ``"t1_t2"`` moves: ``"<plugin>.<option>"`` of one marked `Tunable`, ``"weight_decay"`` or
            ``"learning_rate"``. Empty for ``"descent"``.
        rate: β, above 0. For the additive descent 1e-6 to 1e-2 (the scale is that of 1 / squared gradients), for the multiplicative one
            around 0.01; for numbers in log space 0.1 to 10 (the change of a loss in one step is small).
        form: ``"additive"`` or ``"multiplicative"``, of ``"descent"``.
        held_out: where ``"t1_t2"`` has its rows: ``"validation"`` or another role of the experiences, or ``"memory:<name>"``, a replay
            memory. What is replayed from it too is trained on and no longer held out.
        fraction: in [0, 1); this share of the training rows of each class becomes ``"validation"`` where the stream has no such rows,
            as by `streams.validation`.
        rows: how many of those are drawn each time, at least 1.
        every: a number of ``"t1_t2"`` moves after every so many updates, at least 1.

    Raises:
        ConfigurationError: a number does not exist, starts outside its range, or is moved by two plugins; or there are no held-out rows.

    Warns:
        UserWarning: at the end of a run, a number on which the objective never depended: it did not move.

    Cost: ``"descent"`` nothing; ``"t1_t2"`` one more evaluation of the objective, a forward and a backward pass on held-out rows, and
    a backward pass along the way of each number. Memory: 1 x the parameters, kept from step to step by ``"descent"``.

    Reference: Baydin, Cornish, Martínez Rubio, Schmidt & Wood, Online learning rate adaptation with hypergradient descent, ICLR 2018
    (SGD-HD, SGDN-HD and Adam-HD, the additive and the multiplicative rule); Luketina, Berglund, Greff & Raiko, Scalable gradient-based
    tuning of continuous regularization hyperparameters, ICML 2016 (T1-T2). Deviations: α stays in [1e-6, 10] (the additive rule may
    cross 0 in the paper); ∂θ/∂α is read off the step that was made rather than written for each optimiser. The authors'
    published AdamHD adds to α tensor by tensor within one step, so that the first of them move at another α than the last; here all move
    at the same, as algorithm and text have it.

    Example:
        >>> from streamlearn.plugins import Hypergradient
        >>> Hypergradient(rate=1e-4), Hypergradient(mode="t1_t2", tune=("ewc.strength",), rate=1.0)
        (Hypergradient(rate=0.0001), Hypergradient(mode='t1_t2', rate=1.0, tune=('ewc.strength',)))
    """

    info = PluginInfo(
        name="hypergradient",
        family="tuning",
        summary="Moves the learning rate, or strengths of penalties, along a loss differentiated through the step just made.",
        reference="Baydin et al. 2018, ICLR, SGD-HD, SGDN-HD and Adam-HD; Luketina et al. 2016, ICML, T1-T2",
        passes=lambda plugin: Passes() if plugin.config.mode == "descent" else Passes(forward=1, backward=2, look_ahead=1),
        memory="1 x parameters",
    )

    class Config(TunerOptions):
        """Options of `Hypergradient`."""

        mode: Literal["descent", "t1_t2"] = "descent"
        tune: tuple[str, ...] = ()
        rate: Annotated[float, Tunable(1e-6, 10.0, log=True)] = Field(1e-3, gt=0)
        form: Literal["additive", "multiplicative"] = "additive"
        every: int = Field(1, ge=1)

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        config = self.config
        if (config.mode == "descent") != (config.tune == ()):
            raise ConfigurationError(
                f"plugin {self.name}: option 'tune' is {config.tune!r} and mode is {config.mode!r}: name numbers with mode='t1_t2', "
                "and none with 'descent', which moves the learning rate"
            )
        self._way: dict[str, Tensor] = {}  # ∂θ/∂α of the last step

    def driven(self) -> tuple[str, ...]:
        """What it moves."""
        return self.config.tune or ("learning_rate",)

    @hookimpl
    def transform_stream(self, stream: Stream, run: Run) -> Stream:
        """Keep held-out rows from training, where there are none."""
        return stream if self.config.mode == "descent" else super().transform_stream(stream, run)

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Refuse what is no number of this run."""
        self.claim(run)

    @hookimpl
    def before_epoch(self, run: Run) -> None:
        """The step before the first of a phase was one on another objective."""
        if run.clock.epoch == 0:
            self._way = {}

    @hookimpl
    def around_update(self, update: Update, gradients: Mapping[str, Tensor], step: Step) -> None:
        """Move the numbers, before or after the update."""
        run = step.run
        if run.phase is not None and run.phase.optimizer is not None:
            update(gradients)  # by an optimiser of the phase's own, whose settings are not those of the run
        elif self.config.mode == "descent":
            self._descend(update, gradients, run)
        else:
            self._look_back(update, gradients, step)

    # ------------------------------------------------------------------ hypergradient descent

    def _descend(self, update: Update, gradients: Mapping[str, Tensor], run: Run) -> None:
        number = self.numbers(run)[0]
        rate = number.read(run)
        slopes = with_decay(gradients, run)
        way = {name: value for name, value in self._way.items() if name in slopes}
        if way:
            lengths = math.sqrt(dot(slopes, slopes) * dot(way, way))
            number.write(run, descended(rate, dot(slopes, way), lengths, run.value(self, "rate"), self.config.form))
            rate = number.read(run)
        before = run.snapshot(frozenset(slopes))
        update(gradients)
        after = run.parameters()
        self._way = {name: (after[name].detach() - old) / rate for name, old in before.items()}

    # ------------------------------------------------------------------ T1-T2

    def _look_back(self, update: Update, gradients: Mapping[str, Tensor], step: Step) -> None:
        run = step.run
        held = self.held_out_rows(step) if step.update % self.config.every == 0 else None
        if held is None:
            update(gradients)
            return
        numbers = self.numbers(run)
        before = {name: p.detach().clone().requires_grad_() for name, p in run.optimization.trainable().items()}
        inside = [number for number in numbers if number.name not in SETTINGS]
        with torch.enable_grad(), with_graph(run, inside) as scalars:
            total = training_total(step.at(before)) if inside else None
            cross = {} if total is None else cross_slopes(total, before, scalars)
        rates = {name: group["lr"] for group in groups_of_the_model(run) for name in names_in(group, run)}
        update(gradients)
        slopes = {name: slope for name, slope in held_out_slopes(run, held).items() if name in rates and name in before}
        scaled = {name: float(rates[name]) * slope for name, slope in slopes.items()}
        for number in numbers:
            self.move(number, self._slope(number, slopes, scaled, before, cross, run), run, run.value(self, "rate"))

    @staticmethod
    def _slope(
        number: Number,
        slopes: Mapping[str, Tensor],
        scaled: Mapping[str, Tensor],
        before: Mapping[str, Tensor],
        cross: Mapping[str, Mapping[str, Tensor]],
        run: Run,
    ) -> float | None:
        """∂L_val(θ')/∂h; ``None`` where the objective does not depend on h."""
        if number.name == "learning_rate":
            after = run.parameters()
            way = {name: after[name].detach() - before[name].detach() for name in slopes}
            return dot(slopes, way) / number.read(run)
        if number.name == "weight_decay":
            return -dot(scaled, {name: value.detach() for name, value in before.items()})
        return -dot(scaled, cross[number.name]) if number.name in cross else None

    # ------------------------------------------------------------------ record and state

    @hookimpl
    def after_epoch(self, run: Run) -> None:
        """Record the values."""
        self.record(run)

    def state_dict(self) -> dict[str, Any]:
        """The way of the last step, and which numbers have moved."""
        return {**super().state_dict(), "way": dict(self._way)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self._way = dict(state["way"])
