"""One streamlearn plugin that holds a list of Avalanche's plugins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_serializer
from torch import Tensor, nn

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, State, hookimpl
from streamlearn.core.randomness import subseed
from streamlearn.errors import CheckpointError, ConfigurationError
from streamlearn_avalanche.declaration import ALWAYS_REFUSED, checked, declared, describe, refuse_others, refuse_strange_models
from streamlearn_avalanche.effects import changes_predictions

if TYPE_CHECKING:
    import torch

    from streamlearn.core.evaluation import Evaluation
    from streamlearn.core.objective import Objective
    from streamlearn.core.phases import Phase
    from streamlearn.core.run import Run
    from streamlearn.core.view import Step
    from streamlearn.streams import Batch, Experience
    from streamlearn_avalanche.loop import Loop

__all__ = ["AvalanchePlugin"]

Gradients = Mapping[str, Tensor]
Makes = Callable[[nn.Module, "torch.optim.Optimizer"], Sequence[Any]]


class AvalanchePlugin(Plugin):
    """Avalanche's plugins, unmodified and in Avalanche's order, as one plugin.

    Protocol: each experience is one call of Avalanche's ``strategy.train(experience)``. Its data loader draws the batches, its events
    fire where its own loop fires them, and the loss that its plugins build is the one that is minimised,

        L = criterion + what they add,   minimised together with the terms of other plugins,

    so that without others the weights equal those of Avalanche's ``Naive`` with the same list, bit for bit. Evaluation stays the
    engine's: of the events of Avalanche's evaluation loop only those fire by which a listed plugin changes predictions, as CoPE does.

    Args:
        plugins: Avalanche's plugins, or a function that makes them from the network and the optimiser, for those that want one in
            their constructor (``lambda network, optimizer: [CWRStarPlugin(network)]``). A function is called anew in every run; of a
            list every run but the first takes copies.
        seed: of Avalanche's own random stream, at least 0: what would be given to ``torch.manual_seed``, ``random.seed`` and
            ``numpy.random.seed``; default one derived from the seed of the run.
        task_labels: whether experiences are task-aware, all with label 0, as in Avalanche's classic benchmarks; it decides which loader
            Avalanche takes.

    Raises:
        ConfigurationError: something in the list is no Avalanche plugin, two of them each say what is trained on, or the run has
            what they know nothing of: several tasks, rows without labels, multi-task modules, micro-batches.

    What it may change is read from the source of the listed plugins, see `changes`; plugins that stand against it are refused.

    Cost: Avalanche's loader, row by row, and what its plugins do; no additional pass of the engine's. Memory: what its plugins keep.

    A run cannot be resumed once it has trained: Avalanche's plugins keep loaders, buffers and copies of models that no state of plain
    tensors could hold.

    Reference: Carta et al. 2023, Avalanche: a PyTorch library for deep continual learning, JMLR 24.

    Example:
        >>> from avalanche.training.plugins import EWCPlugin, ReplayPlugin
        >>> AvalanchePlugin([EWCPlugin(ewc_lambda=1.0), ReplayPlugin(mem_size=100)])
        AvalanchePlugin([EWCPlugin, ReplayPlugin])
    """

    info = PluginInfo(
        name="avalanche",
        family="avalanche",
        summary="Avalanche's plugins, unmodified, in Avalanche's order.",
        reference="Carta et al. 2023, Avalanche: a PyTorch library for deep continual learning, JMLR 24",
        provides=frozenset({"avalanche!"}),
        conflicts=ALWAYS_REFUSED,
        memory="what Avalanche's plugins keep",
        streams=frozenset({"class_incremental", "domain_incremental"}),
    )

    class Config(PluginConfig):
        """Options of `AvalanchePlugin`."""

        plugins: Any = ()
        seed: int | None = Field(None, ge=0)
        task_labels: bool = True

        @field_serializer("plugins", when_used="json")
        def _told(self, plugins: Any) -> Any:
            return describe(plugins)

    def __new__(cls, plugins: Sequence[Any] | Makes = (), **_: Any) -> AvalanchePlugin:
        """Only those that have a part in predictions claim them, because one plugin alone may."""
        predicts = isinstance(plugins, Sequence) and any(changes_predictions(plugin) for plugin in plugins)
        return super().__new__(_Predicting if predicts and cls is AvalanchePlugin else cls)

    def __init__(
        self, plugins: Sequence[Any] | Makes = (), *, seed: int | None = None, task_labels: bool = True, name: str | None = None
    ) -> None:
        listed = plugins if callable(plugins) else checked(plugins)
        super().__init__(name=name, plugins=listed, seed=seed, task_labels=task_labels)
        vars(self)["info"] = declared(self.info, listed)  # of this list, not of the class
        self._loop: Loop | None = None

    def __repr__(self) -> str:
        if callable(self.config.plugins):
            return f"AvalanchePlugin({getattr(self.config.plugins, '__name__', 'a function')})"
        return f"AvalanchePlugin([{', '.join(type(plugin).__name__ for plugin in self.config.plugins)}])"

    def _begin(self, run: Run) -> Loop:
        from streamlearn_avalanche.loop import Loop

        refuse_others(run)
        network, plugins = run.model.encoder if run.model.is_plain else run.model, self.config.plugins
        listed = checked(plugins(network, run.optimization.main)) if callable(plugins) else plugins
        refuse_strange_models(listed, network)
        seed = subseed(run.seed, "avalanche", self.name) if self.config.seed is None else self.config.seed
        return Loop(run, listed, seed, self.config.task_labels)

    def _in(self, run: Run) -> Loop | None:
        """The loop, in the phase in which Avalanche trains."""
        return self._loop if self._loop is not None and self._loop.is_in(run.phase) else None

    # ------------------------------------------------------------------ experience and epoch

    @hookimpl
    def before_experience(self, experience: Experience, run: Run) -> None:
        """What ``strategy.train(experience)`` does before its first epoch."""
        if self._loop is None:
            self._loop = self._begin(run)
        self._loop.begin_experience(experience)

    @hookimpl
    def transform_phases(self, phases: tuple[Phase, ...], experience: Experience) -> tuple[Phase, ...]:
        """Let Avalanche's loader draw the batches of the main phase."""
        assert self._loop is not None
        for phase in phases:
            if phase.name == "main" and phase.data is not experience.data["train"]:
                raise ConfigurationError(
                    "another plugin exchanged the data of the main phase, whose batches Avalanche's loader draws: remove one of the two"
                )
        return tuple(self._loop.take_over(phase) if phase.name == "main" else phase for phase in phases)

    @hookimpl
    def before_epoch(self, run: Run) -> None:
        """``before_training_epoch``."""
        if (loop := self._in(run)) is not None:
            loop.begin_epoch()

    @hookimpl
    def after_epoch(self, run: Run) -> None:
        """``after_training_epoch``; after the last also ``after_training_exp``, in which weights are written: here they may be."""
        if (loop := self._in(run)) is not None:
            loop.end_epoch(run.clock.is_last_epoch)

    @hookimpl
    def after_experience(self, experience: Experience) -> None:
        """Nothing is left to do, unless nothing has been done."""
        if self._loop is not None and self._loop.is_open:
            raise ConfigurationError(
                f"no epoch of experience {experience.index} was trained on the batches of Avalanche's loader, because another plugin "
                "exchanged the main phase: remove one of the two"
            )

    # ------------------------------------------------------------------ step

    @hookimpl
    def transform_batch(self, batch: Batch, step: Step) -> Batch:
        """``before_training_iteration``, in which the mini-batch may be exchanged."""
        loop = self._in(step.run)
        return batch if loop is None else loop.begin_step(batch)

    @hookimpl
    def around_objective(self, objective: Callable[[Step], Objective], step: Step) -> Objective:
        """``before_forward``, ``after_forward``, ``before_backward``: the loss that Avalanche's plugins build."""
        loop = self._in(step.run)
        if loop is None:
            return objective(step)
        if step.parameters is not step.run.parameters():
            raise ConfigurationError(
                "Avalanche's plugins build their loss at the model's own weights, but another plugin looks ahead: remove one of the two"
            )
        return loop.objective(objective, step)

    @hookimpl
    def transform_gradients(self, gradients: Gradients, step: Step) -> Gradients:
        """``after_backward``."""
        loop = self._in(step.run)
        return gradients if loop is None else loop.end_backward(gradients)

    @hookimpl
    def around_update(self, update: Callable[[Gradients], None], gradients: Gradients, step: Step) -> None:
        """``before_update``, the update, ``after_update``."""
        loop = self._in(step.run)
        if loop is None:
            update(gradients)
        else:
            loop.update(update, gradients)

    @hookimpl
    def after_step(self, step: Step) -> None:
        """``after_training_iteration``."""
        if (loop := self._in(step.run)) is not None:
            loop.end_step()

    # ------------------------------------------------------------------ state

    def state_dict(self) -> State:
        """How many experiences Avalanche's plugins have met: nothing more of them could be kept."""
        loop = self._loop
        return {"experiences": 0 if loop is None else int(loop.strategy.clock.train_exp_counter) + int(loop.is_open)}

    def load_state_dict(self, state: State) -> None:
        """Refuse to go on where Avalanche's plugins have been trained.

        Raises:
            CheckpointError: they have.
        """
        if state["experiences"]:
            raise CheckpointError(
                f"plugin {self.name} cannot be resumed after it has trained, because Avalanche's plugins keep loaders, buffers and copies "
                "of models that no plain state can hold: start the run again in another folder"
            )


class _Predicting(AvalanchePlugin):
    """An `AvalanchePlugin` whose list has a part in predictions."""

    @hookimpl
    def provide_predictions(self, batch: Batch, evaluation: Evaluation) -> Mapping[str, Tensor]:
        """``after_eval_forward`` and ``after_eval_iteration``."""
        from streamlearn.core.forward import Forward

        model = evaluation.run.model
        outputs = Forward(model, batch.x)
        if self._loop is None:
            return outputs
        task = self._loop.task
        return {task: self._loop.predict(batch.x, outputs.features if model.is_plain else outputs[task])}
