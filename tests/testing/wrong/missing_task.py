"""Wrong when a task is absent."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from streamlearn import hookimpl
from streamlearn.core.run import Run
from streamlearn.core.view import Step
from streamlearn.streams import Experience
from tests.testing.wrong.control import Control


class ExpectsEveryTask(Control):
    """Expects the tasks that it met together always to come together.

    A sensor that fails, a label that nobody bought: tasks go missing, and an experience without one is not an error.
    """

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._together: list[str] = []

    @hookimpl
    def before_experience(self, experience: Experience, run: Run) -> None:
        """Remember who came together."""
        if len(experience.tasks) > 1:
            self._together = [task.name for task in experience.tasks]

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """The pull, by the number of targets of all tasks that came together."""
        term = super().collect_terms(step)
        counts = [len(step.batch.targets[name]) for name in self._together]
        return None if term is None else term / max(1, len(counts))

    def state_dict(self) -> dict[str, Any]:
        """The anchor, and who came together."""
        return {**super().state_dict(), "together": list(self._together)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self._together = list(state["together"])
