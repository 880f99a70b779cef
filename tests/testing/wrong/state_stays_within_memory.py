"""Wrong in how much they keep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from streamlearn import hookimpl
from streamlearn.core.run import Run
from tests.testing.wrong.control import Control


class KeepsEveryAnchor(Control):
    """Keeps the weights of every experience, and says that it keeps one copy.

    Avalanche's EWC keeps parameters and importances for each experience; after a thousand the penalty costs more than the model.
    """

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._past: list[dict[str, Any]] = []

    @hookimpl
    def after_experience(self, run: Run) -> None:
        """Hold the weights as they are now, and remember those that were held."""
        super().after_experience(run)
        self._past.append(run.snapshot())

    def state_dict(self) -> dict[str, Any]:
        """The anchor, and all that were before."""
        return {**super().state_dict(), "past": list(self._past)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self._past = list(state["past"])


class SaysItKeepsNothing(Control):
    """Keeps a copy of the weights, and says that it keeps nothing: whoever plans a large model by this table runs out of memory."""

    info = replace(Control.info, name="says_it_keeps_nothing", memory="none")
