"""PackNet: every task claims some of the encoder's weights, and leaves the rest to tasks that come later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from streamlearn.core.own_tasks import has_training_rows, refuse_rows_of_other_tasks, refuse_shared_tasks
from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.core.evaluation import Evaluation
    from streamlearn.core.forward import Forward
    from streamlearn.core.phases import Phase
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.models import Model
    from streamlearn.streams import Batch, Experience

__all__ = ["PackNet", "keep_largest", "owned_until"]

_NORMALIZATION = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def keep_largest(weight: Tensor, among: Tensor, fraction: float) -> Tensor:
    """Which entries stay when ``fraction`` of those ``among`` which to choose, the smallest in absolute value, are pruned.

    round(``fraction`` · n) of n are pruned; of equal ones those that come first.

    Args:
        weight: of any shape.
        among: boolean, shaped like ``weight``; what is outside of it is never kept.
        fraction: in [0, 1].

    Example:
        >>> keep_largest(torch.tensor([3.0, -1.0, 2.0, 0.5, 9.0]), torch.tensor([True, True, True, True, False]), 0.5)
        tensor([ True, False,  True, False, False])
    """
    places = among.flatten().nonzero().squeeze(1)
    order = weight.detach().flatten()[places].abs().argsort(stable=True)
    kept = among.clone()
    kept.view(-1)[places[order[: round(fraction * len(places))]]] = False
    return kept


def owned_until(weight: Tensor, owner: Tensor, experience: int) -> Tensor:
    """``weight`` where it is owned by one of the experiences 1 to ``experience``, 0 elsewhere.

    Example:
        >>> owned_until(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 2, 0]), 1)
        tensor([1., 0., 0.])
    """
    return weight.where((owner > 0) & (owner <= experience), 0.0)


class PackNet(Plugin):
    r"""PackNet: pack several tasks into one network by pruning.

    Every matrix and kernel of the encoder has an owner o for each of its entries: 0 while it is free, k once experience k (counted from
    1) has claimed it. Experience k

    1. trains the free entries; those that are owned take part in the pass but do not move;
    2. sorts, layer by layer, the entries just trained by their absolute value, claims the largest 1 - ``prune`` of them and sets the
       others to zero: they are free again;
    3. trains those just claimed for ``retrain_epochs`` more, in a phase ``"retrain"``.

    The task of experience k is evaluated with the entries that have 1 ≤ o ≤ k, the others at zero, so what is learnt later cannot change
    its outputs by a single bit. This needs a task, with a head, for each experience. Biases, and normalisation with its statistics, are
    trained in the first experience and frozen from then on. An experience without ``train`` rows claims nothing, and moves nothing of the
    encoder.

    The masks are those of this plugin and not of the model: evaluations of the engine use them (``provide_predictions``), and
    ``model(x, task)`` does not. Take `weights_for` to run the model by hand:

    ``torch.func.functional_call(model, packnet.weights_for(task, dict(model.named_parameters())), (x, task))``

    Args:
        prune: the part of the weights just trained that is freed again, in [0, 1). The paper takes 0.5 to 0.75. At 0 the first experience
            claims everything, and later ones train their heads alone.
        retrain_epochs: passes over the data after pruning, at least 0. The paper takes half as many as before, about.

    Raises:
        ConfigurationError: the model has no heads by task, an experience has no task of its own, or rows of another task are trained on
            (Replay, Joint): earlier tasks need other weights than the present one, and are not forgotten anyway.

    Cost: no additional pass; a copy of the encoder's weights per step. An evaluation makes one pass for each task on a row. Memory: 4 bytes
    for each weight of the encoder.

    Reference: Mallya & Lazebnik, PackNet: adding multiple tasks to a single network by iterative pruning, CVPR 2018, section 3. Deviations:
    the paper starts at a network trained on ImageNet, and retrains at a smaller learning rate; here the first experience starts at the
    model's weights, the optimiser stays the run's, and its momentum is kept.

    Example:
        >>> from streamlearn.plugins import PackNet
        >>> PackNet(prune=0.75, retrain_epochs=2)
        PackNet(prune=0.75, retrain_epochs=2)
    """

    info = PluginInfo(
        name="packnet",
        family="sharing",
        summary="Every task claims some weights of the encoder by pruning, and leaves the rest to later tasks.",
        reference="Mallya & Lazebnik 2018, CVPR, section 3",
        conflicts=frozenset({"replay", "joint", "gdumb", "ema"}),  # the last writes averages into weights that are owned
        after=frozenset({"multi_head", "sharing"}),
        memory="4 bytes for each weight of the encoder",
        streams=frozenset({"task_incremental"}),
    )

    class Config(PluginConfig):
        """Options of `PackNet`."""

        prune: Annotated[float, Tunable(0.25, 0.9)] = Field(0.5, ge=0, lt=1)
        retrain_epochs: int = Field(1, ge=0)

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._owner: dict[str, Tensor] = {}
        self._number: dict[str, int] = {}  # by task, the experience that brought it, counted from 1
        self._claimed = 0  # the last experience that has claimed its weights
        self._fixed: tuple[tuple[int, int], dict[str, Tensor | None]] | None = None

    # ------------------------------------------------------------------ what it asks for

    @hookimpl
    def transform_model(self, model: Model, run: Run) -> Model:
        """Refuse a model without heads by task."""
        if model.is_plain:
            raise ConfigurationError(
                f"plugin {self.name} needs a head for each task, but the model is a plain module, whose output all tasks share: "
                "use a model of streamlearn.models, or list MultiHead before it"
            )
        return model

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Refuse a stream in which an experience has no task of its own."""
        refuse_shared_tasks(self, run)

    # ------------------------------------------------------------------ an experience

    @hookimpl
    def before_experience(self, experience: Experience, run: Run) -> None:
        """Before the first, everything is free."""
        if not has_training_rows(experience):
            return
        self._number[experience.tasks[0].name] = run.clock.experience + 1
        if not self._owner:
            self._owner = {n: torch.zeros_like(p, dtype=torch.int32) for n, p in _weights(run.model).items() if p.requires_grad}

    @hookimpl
    def transform_phases(self, phases: tuple[Phase, ...], experience: Experience, run: Run) -> tuple[Phase, ...]:
        """After the phase "main", one that trains what has been claimed."""
        if not has_training_rows(experience):
            return phases
        found: list[Phase] = []
        for phase in phases:
            found.append(phase)
            if phase.name == "main":
                found.append(phase.replace(name="retrain", epochs=self.config.retrain_epochs))
        return tuple(found)

    @hookimpl
    def after_epoch(self, run: Run) -> None:
        """When the phase "main" ends: claim the largest of the weights just trained, and set the others to zero."""
        if run.phase is None or run.phase.name != "main" or not run.clock.is_last_epoch or not has_training_rows(run.experience):
            return
        self._claimed = run.clock.experience + 1
        prune = run.value(self, "prune")
        parameters = run.parameters()
        with torch.no_grad():
            for name, owner in self._owner.items():
                trained = owner == 0
                kept = keep_largest(parameters[name], trained, prune)
                owner[kept] = self._claimed
                parameters[name][trained & ~kept] = 0.0

    # ------------------------------------------------------------------ a step

    @hookimpl
    def before_step(self, step: Step) -> None:
        """Statistics of normalisation rest after the first experience; rows of other tasks are refused."""
        run = step.run
        number = run.clock.experience + 1
        refuse_rows_of_other_tasks(self, step, self._number)
        if number > 1:
            for module in run.model.encoder.modules():
                if next(module.buffers(recurse=False), None) is not None:
                    module.eval()

    @hookimpl
    def transform_gradients(self, gradients: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
        """No gradient for what is fixed now; a parameter that is fixed as a whole is left out."""
        found = dict(gradients)
        for name, fixed in self._fixed_now(step.run).items():
            if name in found and fixed is None:
                del found[name]
            elif name in found and fixed is not None:
                found[name] = found[name].masked_fill(fixed, 0.0)
        return found

    @hookimpl
    def around_update(self, update: Callable[[Mapping[str, Tensor]], None], gradients: Mapping[str, Tensor], step: Step) -> None:
        """Put back what is fixed: momentum and weight decay move it without a gradient, too."""
        parameters = step.run.parameters()
        before = {name: (fixed, parameters[name].detach().clone()) for name, fixed in self._fixed_now(step.run).items()}
        update(gradients)
        with torch.no_grad():
            for name, (fixed, old) in before.items():
                parameters[name].copy_(old if fixed is None else old.where(fixed, parameters[name]))

    def _fixed_now(self, run: Run) -> dict[str, Tensor | None]:
        """What must not move at present: entries by parameter name, ``None`` for all of them. A parameter that moves freely is absent."""
        place = (run.clock.experience + 1, self._claimed)
        if self._fixed is None or self._fixed[0] != place:
            self._fixed = (place, self._find_fixed(run, *place))
        return self._fixed[1]

    def _find_fixed(self, run: Run, number: int, claimed: int) -> dict[str, Tensor | None]:
        fixed: dict[str, Tensor | None] = {}
        if not has_training_rows(run.experience):
            fixed |= dict.fromkeys(run.model.shared_names())
        for name, owner in self._owner.items():
            held = owner != (number if claimed == number else 0)
            if bool(held.any()) and name not in fixed:
                fixed[name] = None if bool(held.all()) else held
        if number > 1:
            fixed |= dict.fromkeys(run.model.shared_names() - set(self._owner))
        earlier = {task for task, when in self._number.items() if when < number}
        return fixed | dict.fromkeys(_names_of_tasks(run.model, earlier))

    # ------------------------------------------------------------------ evaluation

    @hookimpl
    def provide_predictions(self, batch: Batch, evaluation: Evaluation) -> dict[str, Tensor]:
        """Each task at the weights that it knows."""
        run = evaluation.run
        parameters = run.parameters()
        made: dict[int, Forward] = {}
        found: dict[str, Tensor] = {}
        for task in batch.tasks:
            if run.model.heads.has(task):
                number = self._sees(task)
                if number not in made:
                    made[number] = evaluation.at(self.weights_for(task, parameters), batch)
                found[task] = made[number][task]
        return found

    def weights_for(self, task: str, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``parameters`` (by name) as ``task`` knows them: without what later experiences have added.

        A task that has claimed nothing yet, because it is being trained or has not come, knows them all.
        """
        number = self._sees(task)
        masked = {} if number == 0 else {name: owned_until(parameters[name], owner, number) for name, owner in self._owner.items()}
        return {**parameters, **masked}

    def _sees(self, task: str) -> int:
        """The experience up to which ``task`` knows weights, counted from 1; 0: all of them."""
        number = self._number.get(task, 0)
        return number if number <= self._claimed else 0

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Owners by parameter, and which experience brought which task."""
        return {"owner": dict(self._owner), "number": dict(self._number), "claimed": self._claimed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._owner, self._number = dict(state["owner"]), {task: int(number) for task, number in state["number"].items()}
        self._claimed, self._fixed = int(state["claimed"]), None


def _weights(model: Model) -> dict[str, nn.Parameter]:
    """Matrices and kernels of the encoder, by name; scales and shifts of normalisation are none, whatever their shape."""
    shared = model.shared_names()
    return {
        name: parameter
        for path, module in model.named_modules()
        if not isinstance(module, _NORMALIZATION)
        for key, parameter in module.named_parameters(recurse=False)
        if (name := f"{path}.{key}" if path else key) in shared and parameter.ndim >= 2
    }


def _names_of_tasks(model: Model, tasks: set[str]) -> set[str]:
    """The parameters of the heads, and of whatever else the heads keep by task (gates), that belong to ``tasks``."""
    keys = {task.replace(".", "\N{ONE DOT LEADER}") for task in tasks}
    return {
        f"heads.{path}.{key}.{name}" if path else f"heads.{key}.{name}"
        for path, by_task in model.heads.named_modules()
        if isinstance(by_task, nn.ModuleDict)
        for key in keys & set(by_task)
        for name, _ in by_task[key].named_parameters()
    }
