"""Wrong after a restart. Composer marks the resumption of SAM, StochasticDepth and LayerFreezing as expected to fail."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from streamlearn import hookimpl
from streamlearn.core.view import Step
from tests.testing.wrong.control import Control


class SavesNothing(Control):
    """Saves no state: after a restart nothing is held any more.

    The run goes on without an error, as plain training, under the method's name (Avalanche #1268, #1286).
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing, though there is an anchor."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing was kept."""


class SavesWithoutTheCount(Control):
    """Saves its anchor, but not how often it has pulled, on which the pull depends.

    At the border of two experiences all is well; only a run that was stopped between two steps is another one.
    """

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._pulls = 0

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """The pull, weaker with each time."""
        term = super().collect_terms(step)
        if term is None:
            return None
        self._pulls += 1
        return term / self._pulls


class LoadsWithoutTheSwitch(Control):
    """Loads its anchor, but does not notice that from now on there is something to hold.

    What is saved and what is loaded are equal; what was derived from it is not.
    """

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._holds = False

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """The pull, if it is switched on."""
        return super().collect_terms(step) if self._holds else None

    @hookimpl
    def after_experience(self, run: Any) -> None:
        """Hold the weights as they are now, and switch on."""
        super().after_experience(run)
        self._holds = True
