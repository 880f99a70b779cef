"""What each task of a stream reaches when a model is trained for it alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from streamlearn.errors import ConfigurationError, UnknownNameError
from streamlearn.streams.operators.alone import single_task

if TYPE_CHECKING:
    from streamlearn.core.engine import Engine
    from streamlearn.results import Result
    from streamlearn.streams import Stream

__all__ = ["single_task_baselines"]


def single_task_baselines(
    make: Callable[[Stream], Engine], stream: Stream, *, tasks: Sequence[str] | None = None, output: str | Path | None = None
) -> dict[str, Result]:
    """Train one model for each task of ``stream`` by itself, and measure it: the baselines of
    `streamlearn.results.multitask_metrics.delta_m`.

    A baseline is only as good as it was trained: what ``make`` gives should be tuned for a single task, with as many epochs as it needs,
    and have an encoder as large as the one that the tasks share. Plugins that balance tasks have nothing to do here.

    Args:
        make: from a stream of one task (see `streamlearn.streams.operators.alone.single_task`) to the engine that is to train on it.
            It is called anew for each task.
        stream: a finite stream of several tasks; a task's model meets its rows of all experiences, one after another.
        tasks: names of those to train; ``None`` for all of them.
        output: a folder, in which the run of the task numbered i (in ``stream``, from 0) is recorded as ``i``. Runs that are whole there
            are read and not trained again, others are resumed.

    Returns:
        The result of each task by its name.

    Raises:
        UnknownNameError: the stream has no such task.
        ConfigurationError: ``make`` gives no engine.
        CheckpointError, RunFolderError: ``output`` holds runs of another stream, seed or strategy.

    Example:
        >>> import torch
        >>> from streamlearn import Engine, models, single_task_baselines, streams
        >>> from streamlearn.results import delta_m
        >>> def make(stream):
        ...     return Engine(models.mlp(stream, (16,)), lambda p: torch.optim.SGD(p, lr=0.1), evaluate="end")
        >>> stream = streams.multitask("digits")
        >>> alone = single_task_baselines(make, stream)
        >>> list(alone), delta_m(make(stream).run(stream), alone).unit
        (['left', 'right'], 'percent')
    """
    known = [task.name for task in stream.tasks]
    chosen = known if tasks is None else list(tasks)
    strange = next((name for name in chosen if name not in known), None)
    if strange is not None:
        raise UnknownNameError("task", str(strange), known)
    return {
        name: _run(make, single_task(stream, name), None if output is None else Path(output) / str(known.index(name))) for name in chosen
    }


def _run(make: Callable[[Stream], Engine], alone: Stream, folder: Path | None) -> Result:
    from streamlearn.core.engine import Engine

    engine = make(alone)
    if not isinstance(engine, Engine):
        raise ConfigurationError(
            f"make gives a {type(engine).__name__} for stream {alone.name!r}: give a function from a stream to an Engine for it"
        )
    if folder is not None and (folder / "run.json").exists():
        return engine.resume(folder, alone)
    return engine.run(alone, folder)
