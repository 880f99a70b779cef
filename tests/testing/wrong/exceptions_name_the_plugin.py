"""Wrong in how they fail."""

from __future__ import annotations

from torch import Tensor

from streamlearn import hookimpl
from streamlearn.core.view import Step
from tests.testing.wrong.control import Control


class Swallows(Control):
    """Swallows whatever goes wrong in it, and trains on without its term: a silent failure is a wrong experiment."""

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """The pull, or nothing."""
        try:
            return super().collect_terms(step)
        except Exception:  # noqa: BLE001 - this is what is wrong
            return None
