"""Round robin: the tasks in turn, one after another, each for a whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.scheduling import drawable_tasks, refuse_unknown_tasks
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step

__all__ = ["RoundRobin", "next_task"]


def next_task(tasks: Sequence[str], last: str | None, done: int, turn: int) -> str:
    """Whose batch comes next.

    Args:
        tasks: in their order, at least one.
        last: whose batch was the last one, ``None`` before the first.
        done: how many batches in a row were its.
        turn: how many it gets in a row.

    Example:
        >>> next_task(["a", "b"], None, 0, 1), next_task(["a", "b"], "a", 1, 2), next_task(["a", "b"], "b", 1, 1)
        ('a', 'a', 'a')
    """
    if last is None or last not in tasks:
        return tasks[0]
    return last if done < turn else tasks[(tasks.index(last) + 1) % len(tasks)]


class RoundRobin(Plugin):
    """Tasks in turn: each batch has rows of one task, and the next batch those of the next task.

    The order is that of the data, or ``order``. A task that is absent from the data of a phase is passed over, and so is one without a
    labelled row while others have some. The turn goes on across epochs, phases and experiences, so that short ones do not always begin
    with the same task. Every task gets as many batches as any other, whatever its size, unless ``turns`` says otherwise; within a task
    each row is drawn once before any comes again. An epoch stays as many batches as the data fills.

    Since a batch has rows of one task, methods that compare the tasks of a batch (combiners of gradients, weightings) meet one task
    at a time and have nothing to compare; `TemperatureSampling` mixes tasks within a batch.

    A row that carries several tasks trains all of them, whichever it was drawn for: where every row carries every task, as in
    `streamlearn.streams.multitask` of one source, taking turns favours none.

    Args:
        order: names of the tasks, each once; all that occur must be named.
        turns: how many batches a task gets in a row, at least 1: one number for all, or by task (1 for who is not named).

    Raises:
        UnknownNameError: ``order`` or ``turns`` names a task that the stream never has.
        ConfigurationError: a task occurs that ``order`` does not name.

    Cost: none. Memory: the name of a task.

    Reference: McCann, Keskar, Xiong & Socher, The natural language decathlon: multitask learning as question answering,
    arXiv 1806.08730, 2018 (a fixed order, one batch of each task); Dong, Wu, He, Yu & Wang, Multi-task learning for multiple language
    translation, ACL 2015 (several batches of a task before the next).

    Example:
        >>> from streamlearn.plugins import RoundRobin
        >>> RoundRobin(turns={"left": 2})
        RoundRobin(turns={'left': 2})
    """

    info = PluginInfo(
        name="round_robin",
        family="scheduling",
        summary="Takes the tasks in turn, a batch for each.",
        reference="McCann et al. 2018, arXiv 1806.08730; Dong et al. 2015, ACL",
        memory="the name of a task",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `RoundRobin`."""

        order: tuple[str, ...] | None = Field(None, min_length=1)
        turns: int | dict[str, int] = 1

        @field_validator("order")
        @classmethod
        def _once(cls, order: tuple[str, ...] | None) -> tuple[str, ...] | None:
            if order is not None and len(set(order)) < len(order):
                raise ValueError("it names a task twice: name each once, and give more batches by turns")
            return order

        @field_validator("turns")
        @classmethod
        def _possible(cls, turns: int | dict[str, int]) -> int | dict[str, int]:
            if any(turn < 1 for turn in (turns.values() if isinstance(turns, dict) else [turns])):
                raise ValueError("every task gets at least 1 batch in a row")
            return turns

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._last: str | None = None
        self._done = 0  # batches in a row that were its
        self._update = -1  # the update for which it was chosen

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Refuse the name of a task that never comes."""
        refuse_unknown_tasks(self.config.order or (), f"order of plugin {self.name}", run)
        refuse_unknown_tasks(self.config.turns if isinstance(self.config.turns, dict) else (), f"turns of plugin {self.name}", run)

    @hookimpl
    def provide_task_probabilities(self, step: Step) -> dict[str, float]:
        """All for the task whose turn it is. Asked twice for one batch, it answers the same."""
        run = step.run
        if self._last is None or run.clock.update != self._update:
            task = next_task(self._present(run), self._last, self._done, self._turn(self._last))
            self._done = self._done + 1 if task == self._last and self._done < self._turn(task) else 1
            self._last, self._update = task, run.clock.update
        return {self._last: 1.0}

    def _turn(self, task: str | None) -> int:
        turns = self.config.turns
        return turns.get(task, 1) if isinstance(turns, dict) else int(turns)

    def _present(self, run: Run) -> list[str]:
        assert run.phase is not None
        found, order = drawable_tasks(run.phase.data), self.config.order
        if order is None:
            return found
        missing = [task for task in found if task not in order]
        if missing:
            raise ConfigurationError(
                f"plugin {self.name}, experience {run.clock.experience}: order does not name {', '.join(map(repr, missing))} "
                f"(it names: {', '.join(order)}): add it, or leave order out"
            )
        return [task for task in order if task in found]

    def state_dict(self) -> dict[str, Any]:
        """Whose turn it was."""
        return {"last": self._last, "done": self._done, "update": self._update}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._last, self._done, self._update = state["last"], int(state["done"]), int(state["update"])
