"""Wrong at strength 0, which must be the same as not being there."""

from __future__ import annotations

from torch import Tensor

from streamlearn import hookimpl
from streamlearn.core.view import Step
from tests.testing.wrong.control import Control


class NeverQuiteZero(Control):
    """Adds a small number to its strength "for stability".

    The baseline of every table is the method at strength 0; here it is the method at a strength that no table names.
    """

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """The pull, a little stronger than asked."""
        return (self.config.strength + 1e-6) * self.distance(step.parameters) if self._anchor else None


class ZeroTimesSomething(Control):
    """Adds a term of weight 0 at strength 0.

    It costs what the method costs, stands in the record, and turns a diverging distance into NaN, because 0 x inf is not 0.
    """

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """The pull, whatever the strength."""
        return self.config.strength * self.distance(step.parameters) if self._anchor else None
