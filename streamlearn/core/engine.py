"""The engine: it walks a stream, fires hooks, and contains no method."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from streamlearn.core.checkpoint import Packed, write_checkpoint
from streamlearn.core.composition import compose
from streamlearn.core.description import describe
from streamlearn.core.evaluation import Evaluator
from streamlearn.core.optimization import Optimization, OptimizerFactory
from streamlearn.core.options import Options
from streamlearn.core.plugin import Plugin
from streamlearn.core.randomness import forked, subseed
from streamlearn.core.run import Run
from streamlearn.core.session import Session, check_same, claim_folder, locked, never_saved, restore
from streamlearn.core.training import Walk
from streamlearn.errors import ConfigurationError, RunInterrupted
from streamlearn.models import Model
from streamlearn.models.initialization import is_untouched, reinitialize
from streamlearn.results import Record, Result
from streamlearn.results.files import disk_errors
from streamlearn.results.folder import read_description
from streamlearn.streams import Stream, rebuild

__all__ = ["Engine", "Options", "Progress"]

Progress = Callable[[str, Run], None]
"""Called with ``"start"``, ``"step"`` or ``"experience"`` and the run, after each."""


class Engine:
    """Trains a model on a stream of tasks with any composition of plugins.

    Args:
        model: a module, trained in place, or a function without arguments that builds one. A module from
            `streamlearn.models` whose weights nobody has set is drawn anew from ``seed``; any other keeps its weights. A function is
            called under ``seed``. Each `run` starts from the weights at the moment the engine was made: set them before.
        optimizer: a function from parameters to a torch optimiser.
        plugins: what acts, in the order in which it should act.
        epochs: passes over the data of each experience, at least 1.
        iterations: batches of each experience, at least 1, in place of ``epochs``: the last pass over the data is cut short.
        batch_size: rows of each experience per batch, at least 1; plugins may add more.
        seed: of everything random in the run.
        device: where the model and the batches live, such as ``"cuda"``.
        drop_last: leave out a last batch that is not full.
        evaluate: after every ``"experience"`` (and before the first), at the ``"end"``, or ``"never"``.
        evaluate_every: evaluate also after every so many updates.
        evaluation_batch_size: rows per pass in evaluations.
        checkpoint_every: save also after every so many updates; a run with an output folder is always saved at its start and
            after each experience.
        microbatches: parts into which the rows of each batch are split, each with a pass of its own, at least 1; gradients are
            averaged before a combiner sees them, and a batch of fewer rows stays whole. Less memory for the same update: equal but for
            the last bits where losses are means over rows and enter their weighting linearly, each row with as many labels as any
            other. What mixes rows (BatchNorm, which moves its statistics once for each part, contrasts, alignment), row weights and
            other weightings are taken part by part. Dropout draws other masks. Episodes are not split.
        compile: compile the encoder with ``torch.compile``: ``True``, or the name of a backend. Passes that tap activations or run at
            other parameters are not compiled.
        progress: told after every step and experience.

    Raises:
        ConfigurationError: an option has a value that is not allowed.
        CompositionError: the plugins cannot stand together; every reason is told.

    Example:
        >>> import torch
        >>> from streamlearn import Engine, models, streams
        >>> stream = streams.class_incremental("digits", experiences=5)
        >>> engine = Engine(models.mlp(stream), lambda p: torch.optim.SGD(p, lr=0.05), seed=1)
        >>> engine.run(stream).accuracy_matrix.shape
        (6, 5)
    """

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        optimizer: OptimizerFactory,
        plugins: Sequence[Plugin] = (),
        *,
        epochs: int = 1,
        batch_size: int = 32,
        seed: int = 0,
        device: str = "cpu",
        drop_last: bool = False,
        evaluate: Literal["experience", "end", "never"] = "experience",
        evaluate_every: int | None = None,
        evaluation_batch_size: int = 1024,
        checkpoint_every: int | None = None,
        microbatches: int = 1,
        compile: bool | str = False,
        iterations: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.options = Options(
            epochs, batch_size, seed, str(device), drop_last, evaluate, evaluate_every, evaluation_batch_size, checkpoint_every,
            microbatches, compile, iterations,
        )  # fmt: skip
        if not callable(model) or not callable(optimizer):
            raise ConfigurationError(
                "Engine: model must be a torch module or a function that builds one, optimizer a function of the parameters"
            )
        if isinstance(plugins, Plugin):
            raise ConfigurationError(f"Engine: plugins is {plugins!r}, but it must be a list: write plugins=[{plugins!r}]")
        for plugin in plugins:
            if not isinstance(plugin, Plugin):
                raise ConfigurationError(f"Engine: {plugin!r} is not a plugin: list instances, as in plugins=[EWC(strength=1.0)]")
        self.composition = compose(plugins)
        self._model = model
        self._optimizer = optimizer
        self._progress = progress
        self._redraw = isinstance(model, nn.Module) and is_untouched(model)
        self._pristine = copy.deepcopy(model) if isinstance(model, nn.Module) else None
        self._runs = 0

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        """The plugins in resolved order."""
        return self.composition.plugins

    def explain(self) -> str:
        """What acts in which order, hook by hook, and why."""
        return self.composition.explain()

    # ------------------------------------------------------------------ running

    def run(self, stream: Stream, output: str | Path | None = None, origin: Mapping[str, Any] | None = None) -> Result:
        """Train on ``stream`` and measure; the full record comes back as a `Result`.

        Args:
            stream: what arrives.
            output: folder in which the run is recorded and saved as it goes, so that it can be resumed.
            origin: written into the folder for whoever resumes it (the command line does).

        Raises:
            RunFolderError: the folder holds another run.
            TrainingError: a plugin or the numbers failed; the run can be resumed.
            RunInterrupted: the run was asked to stop, and saved itself.
        """
        return self._go(stream, None if output is None else Path(output), resume=False, origin=origin)

    def resume(self, folder: str | Path, stream: Stream | None = None) -> Result:
        """Continue a run that was stopped or killed, from its newest whole checkpoint, to the same end bit for bit.

        Args:
            folder: what was given as ``output``.
            stream: the same stream; may be left out when it came from a named builder over a named source.

        Raises:
            CheckpointError: no checkpoint is usable, or the folder holds a run of another strategy, stream or seed.
        """
        folder = Path(folder)
        if stream is None:
            stream = rebuild(read_description(folder)["stream"]["description"])
        return self._go(stream, folder, resume=True, origin=None)

    def _go(self, stream: Stream, folder: Path | None, resume: bool, origin: Mapping[str, Any] | None) -> Result:
        if folder is not None and folder.exists() and not folder.is_dir():
            raise ConfigurationError(f"{folder} is a file: give a folder for the output")
        if folder is not None and not resume:
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
        self._fresh_plugins()
        with locked(folder if folder is not None and folder.exists() else None):
            model = self._fresh_model()
            run = Run(self.options, self.composition, stream, Record(), Record())
            evaluator = self._attach(run, model)
            description = describe(run, stream, origin)
            if folder is not None:
                if resume:
                    check_same(folder, description)
                else:
                    claim_folder(folder, description)
                run.record, run.times = Record(folder / "events.jsonl"), Record(folder / "times.jsonl")
            return self._walk(run, evaluator, folder, resume, description)

    def _walk(self, run: Run, evaluator: Evaluator, folder: Path | None, resume: bool, description: Mapping[str, Any]) -> Result:
        session = Session(run, folder, self._progress)
        begun = resume and folder is not None and not never_saved(run, folder)
        restored = restore(run, folder) if begun and folder is not None else None
        session.walk = Walk(run, evaluator, session.between_steps, restored)
        try:
            with session.interruptible():
                if not begun and run.hooks.before_run is not None:
                    run.hooks.before_run(run)
                session.walk.go()
        except BaseException as error:
            run.error = error
            if folder is not None and not isinstance(error, RunInterrupted):
                error.add_note(f"what was measured is kept; resume from the last checkpoint with engine.resume({str(folder)!r})")
            raise
        finally:
            run.optimization.clear()
            if run.hooks.after_run is not None:
                run.hooks.after_run(run)
        update, packed = run.clock.update, Packed.of({**run.state_dict(), "walk": {}})  # kept as it is now: this engine may run again
        result = Result(description, run.record, run.times, run.model, lambda path: _write_packed(path, update, packed))
        if folder is not None:
            result.save(folder)
        return result

    # ------------------------------------------------------------------ fresh starts

    def _fresh_plugins(self) -> None:
        """Every run starts with plugins as they were listed, whatever an earlier run, also of another engine, left in them."""
        for plugin in self.composition.plugins:
            state = vars(plugin).pop("_as_listed", None)
            if state is None:
                state = _copied(plugin)
            else:
                vars(plugin).clear()
                vars(plugin).update(copy.deepcopy(state))
            vars(plugin)["_as_listed"] = state

    def _fresh_model(self) -> Model:
        with forked(torch.device(self.options.device)):
            seed = subseed(self.options.seed, "model")
            if not isinstance(self._model, nn.Module):
                torch.default_generator.manual_seed(seed)
                built = self._model()
                if not isinstance(built, nn.Module):
                    raise ConfigurationError(
                        f"Engine: the function given as model returned {type(built).__name__}: it must return a torch module"
                    )
                return Model.of(built)
            if self._runs and self._pristine is not None:
                # in place, because the user holds this very object
                fresh = copy.deepcopy(self._pristine)
                for name in ("_parameters", "_buffers", "_modules"):
                    setattr(self._model, name, getattr(fresh, name))
            if self._redraw:
                reinitialize(self._model, seed)
        return Model.of(self._model)

    def _attach(self, run: Run, model: Model) -> Evaluator:
        self._runs += 1
        hooks = run.hooks
        run.model = model
        run.stream = run.stream.for_training()  # from here on nobody who acts on the run reaches what is hidden
        if hooks.transform_stream is not None:
            run.stream = hooks.transform_stream(run.stream, run).for_training()  # the new one's closures hold what it was made of
        if run.stream.endless:
            raise ConfigurationError(f"stream {run.stream.name!r} is endless: train on a part of it, such as stream[:100]")
        evaluator = Evaluator(run.stream, self.options.evaluation_batch_size)
        with forked(run.device):
            torch.default_generator.manual_seed(subseed(self.options.seed, "transform_model"))
            model.grow(run.stream.tasks)
            if hooks.transform_model is not None:
                model = hooks.transform_model(model, run)
        model.to(run.device)
        run.attach(model, Optimization(self._optimizer, model), copy.deepcopy(model))
        run.keeps_initial = isinstance(self._model, nn.Module) and not self._redraw
        if self.options.compile:
            run.encode = _compiled(model, self.options.compile)
        if run.rows_at_features and self.options.microbatches > 1:
            raise ConfigurationError(
                f"{', '.join(run.implementers('provide_gradient_combination'))} combines at the features, which microbatches="
                f"{self.options.microbatches} splits: leave microbatches at 1, or take a combiner at the parameters"
            )
        return evaluator


def _compiled(model: Model, choice: bool | str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The encoder, compiled when it is first called."""
    backend = choice if isinstance(choice, str) else "inductor"
    try:
        return torch.compile(model.encode, backend=backend)
    except RuntimeError as error:
        if "backend" not in str(error).lower():
            raise
        raise ConfigurationError(
            f"Engine: compile is {choice!r}, which torch does not know as a backend: see torch.compiler.list_backends()"
        ) from error


def _copied(plugin: Plugin) -> dict[str, Any]:
    """A copy of what a plugin holds.

    Raises:
        ConfigurationError: something in it cannot be copied, such as an open file.
    """
    try:
        return copy.deepcopy(vars(plugin))
    except TypeError as error:
        raise ConfigurationError(
            f"plugin {plugin.name} holds something that cannot be copied ({error}), but every run starts from a copy of it: open files, "
            "connections and locks in before_run, and close them in after_run"
        ) from error


def _write_packed(folder: Path, update: int, packed: Packed) -> None:
    write_checkpoint(folder, update, packed)
