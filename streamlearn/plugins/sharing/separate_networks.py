"""Separate networks: every task has an encoder of its own, so that nothing is shared and nothing forgotten."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from streamlearn.core.importance import evaluating
from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.randomness import subseed
from streamlearn.errors import ConfigurationError
from streamlearn.models import Heads, Model
from streamlearn.models.initialization import reinitialize

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Experience, Task

__all__ = ["SeparateNetworks"]

Start = Literal["fresh", "given", "previous"]


class SeparateNetworks(Plugin):
    """Separate networks: an encoder and a head for each task, and nothing in common.

    The baseline of task-incremental learning in which nothing can be forgotten and nothing is passed on, and of multi-task learning, where
    it is called single-task learning. The first task has the model's own encoder; every other task has another of the same structure.
    The model must have heads by task (all of `streamlearn.models`, or `MultiHead`).

    There are two published settings. In both the weights and statistics of a task rest, whatever stands beside, while a batch has no
    rows of it: neither momentum nor weight decay, nor a penalty on all weights, moves them.

    * ``start="fresh"``: independent networks, each with initial weights of its own (van de Ven et al. 2022);
    * ``start="previous"``: each starts as a clone of the network of the task before it (one of the two in Lopez-Paz & Ranzato 2017).

    For a fair comparison those papers make the networks narrower, so that all of them together are as large as the one of other methods;
    give the model smaller widths for that.

    The model hands its input to the heads, and networks run there. So ``"features"`` are the inputs; methods that read or compare features
    are refused. No parameter is shared: combiners of task gradients have nothing to combine.

    Args:
        start: ``"fresh"`` draws the encoders of all tasks but the first anew, from the run's seed and the name of the task; ``"given"``
            starts all of them at the given encoder's weights, for one that was trained before; ``"previous"`` starts at the encoder of the
            task trained last, when the first experience with that task begins. Heads start as the model made them.

    Raises:
        ConfigurationError: the model has no heads by task, or another plugin or a subclass has changed how it makes its outputs; with
            ``start="fresh"``, a layer cannot be drawn anew; or all experiences have the same one task, so that there is one network.

    Cost: none; a row passes through the network of each task that it is asked on. Memory: one encoder for each task, and one more.

    Reference: van de Ven, Tuytelaars & Tolias, Three types of incremental learning, Nature Machine Intelligence 4, 2022, "separate
    networks"; Lopez-Paz & Ranzato, Gradient episodic memory for continual learning, NeurIPS 2017, section 5, "independent".

    Example:
        >>> from streamlearn.plugins import SeparateNetworks
        >>> SeparateNetworks(start="previous")
        SeparateNetworks(start='previous')
    """

    info = PluginInfo(
        name="separate_networks",
        family="sharing",
        summary="Gives every task a network of its own: nothing is shared, and nothing forgotten.",
        reference="van de Ven et al. 2022, Nature Machine Intelligence 4:1185, 'separate networks'; Lopez-Paz & Ranzato 2017, NeurIPS",
        provides=frozenset({"sharing!"}),
        conflicts=frozenset(  # they read features, or act on the one encoder
            {
                "nearest_class_mean",
                "slda",
                "ranpac",
                "feature_distillation",
                "dann",
                "coral",
                "mgda_ub",
                "graddrop",
                "packnet",
                "frozen_backbone",
            }
        ),
        after=frozenset({"multi_head"}),
        before=frozenset({"bic", "clipping"}),
        memory="one encoder for each task",
        ranks="local",
        streams=frozenset({"task_incremental", "multitask"}),
    )

    class Config(PluginConfig):
        """Options of `SeparateNetworks`."""

        start: Start = Field("fresh")

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._trained: list[str] = []  # the tasks whose training has begun, in that order

    @hookimpl
    def transform_model(self, model: Model, run: Run) -> Model:
        """Move the encoder behind the point where tasks part."""
        if type(model) is not Model or type(model.heads) is not Heads:
            what = "a plain module" if model.is_plain else f"{type(model).__name__} with {type(model.heads).__name__}"
            raise ConfigurationError(
                f"{self.name} needs a Model with a linear head for each task, but the model is {what}: take one of streamlearn.models, "
                "or list MultiHead() before it"
            )
        return Model(nn.Identity(), _Networks(model.heads, model.encoder, run.seed if self.config.start == "fresh" else None))

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Refuse a stream that would have one network."""
        asked = [{task.name for task in experience.tasks} for experience in run.stream]
        if len(asked) > 1 and len(set().union(*asked)) == 1:
            raise ConfigurationError(
                f"plugin {self.name} has a network for each task, but all {len(asked)} experiences have the task {next(iter(asked[0]))!r}: "
                "use a task-incremental stream, such as streams.task_incremental(...)"
            )

    @hookimpl
    def before_experience(self, experience: Experience, run: Run) -> None:
        """Tasks that come up for the first time start where they should."""
        networks = _networks(run.model)
        before = self._trained[-1:]
        for task in (task.name for task in experience.tasks if task.name not in self._trained):
            # the networks that are here may have been copied from one that was trained meanwhile
            if self.config.start == "given":
                networks.of(task).load_state_dict(_networks(run.initial).first.state_dict())
            elif self.config.start == "previous" and before:
                networks.of(task).load_state_dict(networks.of(before[0]).state_dict())
            self._trained.append(task)

    @hookimpl
    def before_step(self, step: Step) -> None:
        """The statistics of a task without rows in the batch rest, too, when its outputs on these rows are read (LwF)."""
        networks = _networks(step.run.model)
        for task in networks.sizes():
            for module in networks.of(task).modules():
                if next(module.buffers(recurse=False), None) is not None:
                    module.training = task in step.batch.tasks

    @hookimpl
    def transform_gradients(self, gradients: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
        """A task without rows in the batch rests, whatever terms say of its weights."""
        networks, parameters = _networks(step.run.model), step.run.parameters()
        resting = {id(p) for task in networks.sizes() if task not in step.batch.tasks for p in networks.parameters_of(task)}
        return {name: gradient for name, gradient in gradients.items() if id(parameters[name]) not in resting}

    def state_dict(self) -> dict[str, Any]:
        """The tasks whose training has begun."""
        return {"trained": list(self._trained)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._trained = list(state["trained"])


class _Networks(Heads):
    """An encoder and a head for each task.

    Args:
        heads: the heads; the first task gets the given encoder.
        encoder: what the encoders of other tasks look like.
        seed: draws them; ``None`` leaves them as they were given.
    """

    def __init__(self, heads: Heads, encoder: nn.Module, seed: int | None) -> None:
        super().__init__(heads.features)
        self.by_task = heads.by_task
        self.networks = nn.ModuleDict()
        self._seed = seed
        self._given = (copy.deepcopy(encoder),)  # in a tuple: it is no part of the model
        self._keys: dict[str, str] = {}
        self._complete(encoder)

    def _complete(self, encoder: nn.Module | None = None) -> None:
        for (task, key), head in zip(zip(self.sizes(), self.by_task, strict=True), self.by_task.values(), strict=True):
            self._keys[task] = key
            if key in self.networks:
                continue
            network = encoder if encoder is not None and not self.networks else copy.deepcopy(self._given[0])
            if self._seed is not None and self.networks:
                reinitialize(network, subseed(self._seed, "network", task))
            self.networks[key] = network.to(next(head.parameters()).device)

    def grow(self, task: Task) -> bool:
        """Make room for ``task``; whether anything changed."""
        changed = super().grow(task)
        self._complete()
        return changed

    @property
    def first(self) -> nn.Module:
        """The network that has the model's own encoder."""
        return next(iter(self.networks.values()))

    def of(self, task: str) -> nn.Module:
        """The network of ``task``."""
        return self.networks[self._keys[task]]

    def parameters_of(self, task: str) -> list[nn.Parameter]:
        """All that belongs to ``task``."""
        return [*self.of(task).parameters(), *self.by_task[self._keys[task]].parameters()]

    def forward(self, features: Tensor, task: str) -> Tensor:
        """The outputs for ``task``, ``(rows, size)``; here ``features`` are inputs."""
        if task not in self._keys:
            return super().forward(features, task)  # where there is no such head, the heads say which tasks there are
        network = self.of(task)
        if len(features) != 1:
            return super().forward(network(features), task)
        with evaluating(network):  # BatchNorm cannot normalise a single row, such as a replayed one, by itself
            return super().forward(network(features), task)


def _networks(model: Model) -> _Networks:
    return next(module for module in model.modules() if isinstance(module, _Networks))
