"""Forward hypergradients: the derivative of the parameters with respect to a few numbers is carried along from step to step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.gradients import named_gradients
from streamlearn.core.plugin import Passes, PluginInfo, Tunable, hookimpl
from streamlearn.core.tuning.hypergradients import cross_slopes, dot, held_out_slopes, training_total
from streamlearn.core.tuning.tunables import SETTINGS, Number, groups_of_the_model, names_in, with_graph
from streamlearn.core.tuning.tuners import Tuner, TunerOptions
from streamlearn.errors import ConfigurationError, TrainingError

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step

__all__ = ["ForwardHypergradient", "carried"]

Named = dict[str, Tensor]
_REFUSED = ("provide_gradient_combination", "transform_gradients", "around_update")


def carried(
    way: Tensor, velocity: Tensor, slope: Tensor, rate: float, momentum: float = 0.0, nesterov: bool = False
) -> tuple[Tensor, Tensor]:
    """dθ/dh and dv/dh after a step of SGD: V ← μ V + G, Z ← Z - α V, or Z - α (G + μ V) with Nesterov's momentum.

    Args:
        way: Z = dθ/dh before it.
        velocity: V = dv/dh before it.
        slope: G = dg/dh, the derivative of the gradient along Z.
        rate: α.
        momentum: μ.
        nesterov: whether the step looks ahead along v.

    Example:
        >>> one = torch.ones(1)
        >>> [value.item() for value in carried(one, 2 * one, one, 0.5, 0.5)]
        [0.0, 2.0]
    """
    velocity = momentum * velocity + slope
    return way - rate * (slope + momentum * velocity if nesterov else velocity), velocity


class ForwardHypergradient(Tuner):
    r"""Forward hypergradients, in real time.

    .. math:: Z_{t+1} = Z_t - α \left(H_t Z_t + \frac{∂∇(s + P)(θ_t, h)}{∂h}\right), \qquad
        \frac{dL_{val}}{dh} = ∇L_{val}(θ_t) \cdot Z_t, \qquad Z_0 = 0

    with Z = dθ/dh, H the Hessian of s + P on the batch, and the recursion of SGD's momentum where there is one. Every ``every`` updates h
    moves by the gradient of the loss on held-out rows through *all* steps since the phase began, where `Hypergradient` sees the last one:
    log h ← log h - β h dL_val/dh for a range in log space. Z goes on after that (the authors'
    real-time optimisation, RTHO), and starts anew with each phase. Constants are helper modules with an optimiser of their own, and what
    an objective detaches, such as the ascent of `SAM`.

    Held-out losses are means over labels in evaluation mode, without terms. Values are recorded after each epoch (event ``"tuning"``).

    Args:
        tune: names of the numbers: ``"<plugin>.<option>"`` of one marked `Tunable`, ``"weight_decay"`` or ``"learning_rate"``; at least
            one. Each costs a product with H per step.
        rate: β, above 0. Begin small for ``"learning_rate"``: past the edge of stability Z grows without bound, and so do the moves.
        every: Δ, at least 1.
        held_out: ``"validation"`` or another role of the experiences, or ``"memory:<name>"``, a replay memory; what is replayed from it
            too is trained on and no longer held out.
        fraction: in [0, 1); this share of the training rows of each class becomes ``"validation"`` where the stream has no such rows,
            as by `streams.validation`.
        rows: how many of those are drawn each time, at least 1.

    Raises:
        ConfigurationError: a number does not exist, starts outside its range or is moved by two plugins; there are no held-out rows; the
            optimiser is not SGD; another plugin combines, changes or wraps gradients (also one that only watches updates, as `SI` does),
            whose derivative is not known here; or torch has no third derivative of an operation, as of BatchNorm under `MAML`.

    Warns:
        UserWarning: at the end of a run, a number on which the objective never depended: it did not move.

    Cost: per step one more evaluation of the objective, a backward pass with a graph, and for each number two backward passes; every
    ``every`` updates a forward and a backward pass on held-out rows. Memory: for each number 1 x the parameters, 2 x with momentum.

    Reference: Franceschi, Donini, Frasconi & Pontil, Forward and reverse gradient-based hyperparameter optimization, ICML 2017,
    Forward-HG and RTHO. Deviations: h moves in log space; Z starts anew with each phase, whose start is a constant.

    Example:
        >>> from streamlearn.plugins import ForwardHypergradient
        >>> ForwardHypergradient(tune=("ewc.strength", "learning_rate"), every=20)
        ForwardHypergradient(every=20, tune=('ewc.strength', 'learning_rate'))
    """

    info = PluginInfo(
        name="forward_hypergradient",
        family="tuning",
        summary="Moves a few numbers along a held-out loss differentiated through every step of the phase, forwards.",
        reference="Franceschi, Donini, Frasconi & Pontil 2017, ICML, Forward-HG and RTHO",
        passes=lambda plugin: Passes(forward=1, backward=1 + 2 * len(plugin.config.tune), look_ahead=1),
        memory="2 x parameters for each number",
    )

    class Config(TunerOptions):
        """Options of `ForwardHypergradient`."""

        tune: tuple[str, ...] = Field(min_length=1)
        rate: Annotated[float, Tunable(0.01, 10.0, log=True)] = Field(1.0, gt=0)
        every: int = Field(10, ge=1)

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._forget()

    def _forget(self) -> None:
        self._way: dict[str, Named] = {}  # by number, dθ/dh
        self._velocity: dict[str, Named] = {}  # by number, dv/dh
        self._steps = 0

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Refuse what is no number of this run, and steps whose derivative is not known."""
        self.claim(run)
        main = run.optimization.main
        if type(main) is not torch.optim.SGD or any(g["dampening"] or g["maximize"] for g in main.param_groups):
            raise ConfigurationError(
                f"plugin {self.name}: steps of {type(main).__name__} are not differentiated: take SGD, without dampening"
            )
        others = sorted({name for hook in _REFUSED for name in run.implementers(hook) if name != self.name})
        if others:
            raise ConfigurationError(
                f"plugin {self.name}: the step is differentiated as one of SGD on the gradient of the objective, but "
                f"{', '.join(others)} acts on gradients or updates: leave it out, or take hypergradient"
            )

    @hookimpl
    def before_epoch(self, run: Run) -> None:
        """The start of a phase depends on no number."""
        if run.clock.epoch == 0:
            self._forget()

    @hookimpl
    def around_update(self, update: Callable[[Mapping[str, Tensor]], None], gradients: Mapping[str, Tensor], step: Step) -> None:
        """Carry the derivative through the update; now and then, move the numbers."""
        run = step.run
        if run.phase is not None and run.phase.optimizer is not None:
            update(gradients)  # by an optimiser of the phase's own, whose settings are not those of the run
            return
        before = {name: p.detach().clone().requires_grad_() for name, p in run.parameters().items()}
        slopes = self._slopes(step, before)
        update(gradients)
        self._carry(slopes, {name: run.parameters()[name].detach() - before[name].detach() for name in gradients}, run)
        self._steps += 1
        held = self.held_out_rows(step) if self._steps % self.config.every == 0 else None
        if held is not None:
            outside = held_out_slopes(run, held)
            for number in self.numbers(run):
                way = self._way.get(number.name)
                self.move(number, dot(outside, way) if way else None, run, run.value(self, "rate"))

    def _slopes(self, step: Step, at: Named) -> dict[str, Named]:
        """H Z + ∂∇(s + P)/∂h by number and parameter, at the parameters ``at``; a number without one is left out."""
        run = step.run
        try:
            found = self._differentiated(step, at, [number for number in self.numbers(run) if number.name not in SETTINGS])
        except RuntimeError as error:
            raise (TrainingError if run.clock.update else ConfigurationError)(
                f"plugin {self.name}: torch cannot differentiate the gradient of this objective once more ({error}): change the operation, "
                "take a look-ahead of first order, or take hypergradient"
            ) from error
        if found is None:
            return {}
        for name in self.config.tune:
            if name in SETTINGS:
                found.setdefault(name, {})
        for group, is_tuned in _groups(run):
            for name, slopes in found.items():
                self._add_decay(slopes, self._way.get(name, {}), float(group["weight_decay"]), names_in(group, run))
                if name == "weight_decay" and is_tuned:
                    self._add_decay(slopes, at, 1.0, names_in(group, run))
        return found

    def _differentiated(self, step: Step, at: Named, inside: list[Number]) -> dict[str, Named] | None:
        """The same of s + P alone; ``None`` where there is none."""
        with torch.enable_grad(), with_graph(step.run, inside) as scalars:
            total = training_total(step.at(at))
            if total is None or not total.requires_grad:
                return None
            found: dict[str, Named] = {name: dict(slope) for name, slope in cross_slopes(total, at, scalars).items()}
            first = dict(zip(at, torch.autograd.grad(total, list(at.values()), create_graph=True, allow_unused=True), strict=True))
            ahead = {key: slope.detach() for key, slope in first.items() if slope is not None}  # of the first step: can it be done?
            ways = self._way or {"": ahead}
            for name, way in ways.items():
                mine = found.setdefault(name, {})
                parts = [(slope * way[key]).sum() for key, slope in first.items() if slope is not None and key in way]
                along = sum(parts[1:], parts[0]) if parts else None
                if along is not None and along.requires_grad:
                    for key, value in named_gradients(along, at, retain_graph=True).items():
                        mine[key] = mine[key] + value if key in mine else value
        return {name: slopes for name, slopes in found.items() if name}

    @staticmethod
    def _add_decay(slopes: Named, values: Named, factor: float, names: list[str]) -> None:
        """SGD adds w θ to the gradient: so come w Z, and θ where h is w."""
        for key in names if factor else ():
            if key in values:
                part = factor * values[key].detach()
                slopes[key] = slopes[key] + part if key in slopes else part

    def _carry(self, slopes: dict[str, Named], steps: Named, run: Run) -> None:
        """Z and V after the update, which was ``steps``."""
        self._found |= slopes.keys()
        for group, is_tuned in _groups(run):
            rate, momentum, nesterov = float(group["lr"]), float(group["momentum"]), bool(group["nesterov"])
            for name, mine in slopes.items():
                way, velocity = self._way.setdefault(name, {}), self._velocity.setdefault(name, {})
                for key in (key for key in names_in(group, run) if key in steps):
                    nothing = torch.zeros_like(steps[key])
                    slope = mine.get(key, nothing)
                    way[key], moving = carried(way.get(key, nothing), velocity.get(key, nothing), slope, rate, momentum, nesterov)
                    if momentum:
                        velocity[key] = moving
                    if name == "learning_rate" and is_tuned:
                        way[key] = way[key] + steps[key] / rate

    # ------------------------------------------------------------------ record and state

    @hookimpl
    def after_epoch(self, run: Run) -> None:
        """Record the values."""
        self.record(run)

    def state_dict(self) -> dict[str, Any]:
        """The derivatives carried along."""
        way, velocity = ({name: dict(part) for name, part in kept.items()} for kept in (self._way, self._velocity))
        return {**super().state_dict(), "way": way, "velocity": velocity, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self._way, self._velocity = ({name: dict(part) for name, part in state[key].items()} for key in ("way", "velocity"))
        self._steps = int(state["steps"])


def _groups(run: Run) -> list[tuple[dict[str, Any], bool]]:
    """The groups of the main optimiser, each with whether its settings are those that are tuned."""
    main, tuned = run.optimization.main, groups_of_the_model(run)
    return [(group, any(group is other for other in tuned)) for group in (main.param_groups if main is not None else ())]
