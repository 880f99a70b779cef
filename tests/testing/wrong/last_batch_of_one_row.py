"""Wrong on a batch of one row: the last one of an epoch, as soon as a data set has one row more (Avalanche #821)."""

from __future__ import annotations

from torch import Tensor

from streamlearn import hookimpl
from streamlearn.core.view import Step
from tests.testing.wrong.control import Control


class SqueezesOneRow(Control):
    """Squeezes the inputs: one row then has no dimension of rows."""

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """The pull, stronger where the inputs are large."""
        term = super().collect_terms(step)
        size = step.batch.x.flatten(1).squeeze().norm(dim=1).mean()
        return None if term is None else term * (1.0 + 1e-3 * size)


class NeedsTwoRows(Control):
    """Divides by the number of rows less one."""

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """The pull, by an unbiased estimate of nothing in particular."""
        term = super().collect_terms(step)
        return None if term is None else term * (1.0 + 1.0 / (len(step.batch) - 1))
