"""Hard attention to the task (HAT): every task opens some units of the encoder, and what earlier tasks have opened does not move."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.importance import evaluating
from streamlearn.core.own_tasks import has_training_rows, refuse_rows_of_other_tasks, refuse_shared_tasks
from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from streamlearn.errors import ConfigurationError
from streamlearn.models import Heads, Model
from streamlearn.models.gated import GatedHeads, GatedModel, layers_of, protection

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Experience

__all__ = ["HAT", "annealed", "compensated", "open_units"]

_LARGEST_EMBEDDING, _LARGEST_ARGUMENT = 6.0, 50.0  # of the paper, below equation 4


def annealed(batch: int, batches: int, largest: float) -> float:
    """s = 1/s_max + (s_max - 1/s_max) (b - 1) / (B - 1), equation 3; s_max where an epoch has one batch.

    Args:
        batch: b, counted from 1.
        batches: B, those of the epoch.
        largest: s_max.

    Example:
        >>> [annealed(b, 3, 400.0) for b in (1, 2, 3)]
        [0.0025, 200.00125, 400.0]
    """
    if batches <= 1:
        return largest
    return 1 / largest + (largest - 1 / largest) * (batch - 1) / (batches - 1)


def compensated(gradient: Tensor, embedding: Tensor, scale: float, largest: float) -> Tensor:
    """q' = s_max (cosh(s e) + 1) / (s (cosh(e) + 1)) q, equation 4: as if gates had been those of s = 1, s_max times as steep.

    Args:
        gradient: q.
        embedding: e, of the same shape; s e is brought into [-50, 50].
        scale: s.
        largest: s_max.

    Example:
        >>> compensated(torch.tensor([1.0]), torch.tensor([0.0]), 2.0, 400.0)
        tensor([200.])
    """
    steepness = (scale * embedding).clamp(-_LARGEST_ARGUMENT, _LARGEST_ARGUMENT).cosh() + 1
    return gradient * (largest / scale * steepness / (embedding.cosh() + 1))


def open_units(gates: Sequence[Tensor], claimed: Sequence[Tensor]) -> Tensor:
    """R = Σ a (1 - c) / Σ (1 - c) over the units of all layers, equation 5: how much of what is free is opened, 0 if nothing is free.

    Args:
        gates: a of each layer.
        claimed: c, the largest a that any earlier task has, likewise.

    Example:
        >>> float(open_units([torch.tensor([1.0, 1.0, 0.0])], [torch.tensor([1.0, 0.0, 0.0])]))
        0.5
    """
    used = torch.stack([(a * (1 - c)).sum() for a, c in zip(gates, claimed, strict=True)]).sum()
    free = torch.stack([(1 - c).sum() for c in claimed]).sum()
    return used / free.clamp_min(torch.finfo(free.dtype).tiny) if bool(free > 0) else 0 * used


class _Protection(NamedTuple):
    """What is protected during an experience, by name; a parameter that moves freely is absent."""

    factors: Mapping[str, Tensor | None]
    """What gradients are multiplied by; ``None`` for 0 everywhere."""
    fixed: Mapping[str, Tensor | None]
    """Which entries have the factor 0; ``None`` for all of them."""


class HAT(Plugin):
    r"""Hard attention to the task.

    Task t has an embedding e for each layer l of the encoder, one number for each unit, and its outputs are those of the encoder with every
    layer multiplied by its gates,

    .. math:: h_l' = a_l^t \odot h_l, \qquad a_l^t = σ(s \, e_l^t)

    which are nearly 0 or 1 at s = s_max, where the model is evaluated. Within each epoch of B batches s rises from 1/s_max to s_max,

    .. math:: s = \tfrac{1}{s_{max}} + \bigl(s_{max} - \tfrac{1}{s_{max}}\bigr) \tfrac{b - 1}{B - 1}

    and the gradient q of an embedding is made up for the flatness of steep gates:

    .. math:: q' = \frac{s_{max} [\cosh(s e) + 1]}{s \, [\cosh(e) + 1]} \, q

    with s e cut at ±50, and e kept within ±6. When an experience ends, :math:`a^{\le t} = \max(a^{\le t-1}, a^t)` unit by unit. From then
    on the gradient of a weight from unit j to unit i is multiplied by :math:`1 - \min(a_{l,i}^{\le t}, a_{l-1,j}^{\le t})`; for the
    first layer, for biases and normalisation only i counts. A term c R keeps tasks from opening more than they need,

    .. math:: R = \frac{\sum_l \sum_i a_{l,i}^t (1 - a_{l,i}^{<t})}{\sum_l \sum_i (1 - a_{l,i}^{<t})}

    What is protected wholly (the factor is 0), and the embeddings and heads of earlier tasks, does not move by a bit, whatever the
    optimiser does. What is protected in part has a smaller gradient, which Adam enlarges again: HAT was made for SGD.

    The encoder must be an ``nn.Sequential`` (nested, if you like) of linear and convolutional layers without groups, batch or instance
    normalisation behind them, and modules without parameters. Each layer has a gate for each unit or channel, which acts right before
    the next layer, before an ``nn.Flatten``, or at the end: behind the layer's normalisation, activation, dropout and pooling. Heads have
    none. Statistics of normalisation rest after the first experience.

    Gates are made of parameters of the model (``heads.gates.<task>.<layer>``), so ``model(x, task)`` and copies of the model have them.
    The model hands its input to the part behind, where the task is known, so ``"features"`` are the inputs; methods that read features
    are refused.

    Args:
        strength: c, at least 0. The paper takes 0.75; larger leaves more units to later tasks.
        largest_scale: s_max, at least 1. The paper takes 400; smaller makes gates softer, and forgets more.

    Raises:
        ConfigurationError: the model has no heads by task, or an encoder of another kind; an experience has no task of its own; or rows of
            another task are trained on (Replay, Joint): earlier tasks are not forgotten anyway.

    Cost: no additional pass; a copy of the protected weights per step. A row passes once for each task that it is asked on. Memory: one
    number for each unit, and in the model one for each unit and task.

    Reference: Serrà, Surís, Miron & Karatzoglou, Overcoming catastrophic forgetting with hard attention to the task, ICML 2018,
    equations 1 to 5. Embeddings start at N(0, 1), as in the authors' code; that code ends an epoch one step below s_max, here equation 3
    holds. Their optimiser is a new one for each task; here it is the run's, and its momentum is kept.

    Example:
        >>> from streamlearn.plugins import HAT
        >>> HAT(strength=1.5)
        HAT(strength=1.5)
    """

    info = PluginInfo(
        name="hat",
        family="sharing",
        summary="Every task opens units of the encoder by learnt gates; what earlier tasks have opened is protected.",
        reference="Serra et al. 2018, ICML, equations 1-5",
        provides=frozenset({"sharing!"}),
        conflicts=frozenset(
            {"replay", "joint", "gdumb", "ema", "packnet", "bic"}  # rows of earlier tasks, or other ideas of what moves
            | {"nearest_class_mean", "slda", "ranpac", "feature_distillation", "dann", "coral", "mgda_ub", "graddrop"}  # they read features
        ),
        after=frozenset({"multi_head"}),
        before=frozenset({"clipping"}),
        memory="one number for each unit",
        ranks="local",
        streams=frozenset({"task_incremental"}),
    )

    class Config(PluginConfig):
        """Options of `HAT`."""

        strength: Annotated[float, Tunable(0.1, 4.0, log=True)] = Field(0.75, ge=0)
        largest_scale: float = Field(400.0, ge=1)

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._claimed: list[Tensor] = []  # by layer, the largest gate that any finished experience has
        self._number: dict[str, int] = {}  # by task, the experience that brought it, counted from 1
        self._protection: _Protection | None = None

    # ------------------------------------------------------------------ what it asks for

    @hookimpl
    def transform_model(self, model: Model, run: Run) -> Model:
        """Put gates into the encoder."""
        if type(model) is not Model or type(model.heads) is not Heads:
            what = "a plain module" if model.is_plain else f"{type(model).__name__} with {type(model.heads).__name__}"
            raise ConfigurationError(
                f"{self.name} needs a Model with a linear head for each task, but the model is {what}: take one of streamlearn.models, "
                "or list MultiHead() before it"
            )
        gated = GatedModel(model.encoder, GatedHeads(model.heads, layers_of(model.encoder), self.config.largest_scale))
        nothing = torch.zeros(1, *run.stream.input_shape, dtype=next(gated.encoder.parameters()).dtype)
        # encoders whose units are not where their gates act are refused now; what else is wrong with them, training tells
        with torch.no_grad(), evaluating(gated), contextlib.suppress(RuntimeError):
            for task in tuple(model.heads.sizes())[:1]:
                gated(nothing, task)
        return gated

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Refuse a stream in which an experience has no task of its own."""
        refuse_shared_tasks(self, run)

    # ------------------------------------------------------------------ an experience

    @hookimpl
    def before_experience(self, experience: Experience, run: Run) -> None:
        """A task comes up."""
        self._protection = None
        if has_training_rows(experience):
            self._number[experience.tasks[0].name] = run.clock.experience + 1

    @hookimpl
    def after_experience(self, experience: Experience, run: Run) -> None:
        """Protect what the task has opened, too."""
        if has_training_rows(experience):
            heads = _heads(run)
            with torch.no_grad():
                gates = [gate.clone() for gate in heads.gates_of(experience.tasks[0].name, heads.largest)]
            self._claimed = [torch.maximum(*pair) for pair in zip(self._claimed or gates, gates, strict=True)]

    def claimed(self) -> list[Tensor]:
        """a^{≤t} of each layer of the encoder: by unit, the largest gate of all experiences finished. Empty before the first."""
        return list(self._claimed)

    # ------------------------------------------------------------------ a step

    @hookimpl
    def before_step(self, step: Step) -> None:
        """Gates become steeper; statistics of normalisation rest after the first experience; rows of other tasks are refused."""
        run, clock = step.run, step.run.clock
        refuse_rows_of_other_tasks(self, step, self._number)
        heads = _heads(run)
        length = min(clock.batches, clock.iterations - clock.epoch * clock.batches)  # the last epoch may be cut short
        heads.scale = annealed(clock.batch + 1, length, heads.largest)
        if self._claimed:
            for module in run.model.encoder.modules():
                if next(module.buffers(recurse=False), None) is not None:
                    module.eval()

    @hookimpl
    def collect_terms(self, step: Step) -> dict[str, Tensor]:
        """c R at the present gates."""
        if not has_training_rows(step.run.experience):
            return {}
        heads = _heads(step.run)
        gates = [(heads.scale * step.parameters[name]).sigmoid() for name in self._embeddings(step.run)]
        claimed = self._claimed or [torch.zeros_like(gate) for gate in gates]
        return {"open_units": step.run.value(self, "strength") * open_units(gates, claimed)}

    @hookimpl
    def transform_gradients(self, gradients: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
        """Protect what is claimed; make up for steep gates. What does not move at all is left out."""
        run, parameters, heads = step.run, step.run.parameters(), _heads(step.run)
        factors = self._protected(run).factors
        found: dict[str, Tensor] = {}
        for name, gradient in gradients.items():
            factor = factors.get(name)
            if factor is not None:
                found[name] = gradient * factor
            elif name not in factors:
                found[name] = gradient
        for name in self._embeddings(run):
            if name in found:
                found[name] = compensated(found[name], parameters[name].detach(), heads.scale, heads.largest)
        return found

    @hookimpl
    def around_update(self, update: Callable[[Mapping[str, Tensor]], None], gradients: Mapping[str, Tensor], step: Step) -> None:
        """Put back what is protected wholly: momentum and weight decay move it without a gradient, too. Keep embeddings in bounds."""
        run, parameters = step.run, step.run.parameters()
        before = {name: (fixed, parameters[name].detach().clone()) for name, fixed in self._protected(run).fixed.items()}
        update(gradients)
        with torch.no_grad():
            for name, (fixed, old) in before.items():
                parameters[name].copy_(old if fixed is None else old.where(fixed, parameters[name]))
            for name in self._embeddings(run):
                parameters[name].clamp_(-_LARGEST_EMBEDDING, _LARGEST_EMBEDDING)

    def _embeddings(self, run: Run) -> list[str]:
        """The names of the embeddings in training, layer by layer."""
        if run.experience is None or not has_training_rows(run.experience):
            return []
        mine = {id(p) for p in _heads(run).embeddings_of(run.experience.tasks[0].name)}
        return [name for name, p in run.parameters().items() if id(p) in mine]

    def _protected(self, run: Run) -> _Protection:
        if self._protection is None:
            self._protection = self._find_protection(run)
        return self._protection

    def _find_protection(self, run: Run) -> _Protection:
        heads, encoder = _heads(run), run.model.encoder
        names = {id(p): name for name, p in run.parameters().items()}
        factors: dict[str, Tensor | None] = {}
        for name, factor in (protection(encoder, heads.layers, self._claimed) if self._claimed else {}).items():
            factors[f"encoder.{name}"] = factor if bool(factor.any()) else None
        if not has_training_rows(run.experience):
            factors |= dict.fromkeys(run.model.shared_names())
        earlier = [task for task, number in self._number.items() if number < run.clock.experience + 1]
        factors |= dict.fromkeys(names[id(p)] for task in earlier for p in heads.parameters_of(task))
        zeros = {name: None if factor is None else factor == 0 for name, factor in factors.items()}
        return _Protection(factors, {name: fixed for name, fixed in zeros.items() if fixed is None or bool(fixed.any())})

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """What is claimed, and which experience brought which task."""
        return {"claimed": list(self._claimed), "number": dict(self._number)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._claimed, self._protection = list(state["claimed"]), None
        self._number = {task: int(number) for task, number in state["number"].items()}


def _heads(run: Run) -> GatedHeads:
    assert isinstance(run.model, GatedModel)  # what else exchanges heads is in conflict
    return run.model.heads
