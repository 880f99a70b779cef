"""What methods share that give every experience a part of the network: each must bring a task of its own, and train on that alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.core.plugin import Plugin
    from streamlearn.core.run import Run
    from streamlearn.core.view import Step
    from streamlearn.streams import Experience

__all__ = ["has_training_rows", "refuse_rows_of_other_tasks", "refuse_shared_tasks"]


def has_training_rows(experience: Experience | None) -> bool:
    """Whether there is an experience, with rows to train on."""
    return experience is not None and "train" in experience.data


def refuse_shared_tasks(plugin: Plugin, run: Run) -> None:
    """Refuse, for ``plugin``, a stream in which an experience has no task of its own.

    Raises:
        ConfigurationError: an experience has several tasks, or that of an earlier one.
    """
    first: dict[str, int] = {}
    for experience in run.stream:
        if not has_training_rows(experience):
            continue
        names = [task.name for task in experience.tasks]
        if len(names) != 1 or names[0] in first:
            what = f"has the tasks {', '.join(names)}" if len(names) != 1 else f"has task {names[0]!r}, as experience {first[names[0]]}"
            raise ConfigurationError(
                f"plugin {plugin.name} needs one task of its own in every experience, but experience {experience.index} {what}: "
                "use a task-incremental stream, such as streams.task_incremental(...)"
            )
        first[names[0]] = experience.index


def refuse_rows_of_other_tasks(plugin: Plugin, step: Step, numbers: Mapping[str, int]) -> None:
    """Refuse, for ``plugin``, rows of another task than that of the experience; ``numbers`` says which brought a task, counted from 1.

    Raises:
        ConfigurationError: the batch has some.
    """
    run = step.run
    others = [task for task in step.batch.tasks if numbers.get(task) != run.clock.experience + 1]
    if others and has_training_rows(run.experience):
        raise ConfigurationError(
            f"plugin {plugin.name} trains on the task of experience {run.clock.experience} alone, but a batch has rows of "
            f"{', '.join(others)}: leave out what adds them; earlier tasks are not forgotten anyway"
        )
