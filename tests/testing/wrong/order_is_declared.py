"""Wrong in that the order of the list decides, and nothing says so."""

from __future__ import annotations

from streamlearn import hookimpl
from streamlearn.core.view import Step
from streamlearn.streams import Batch
from tests.testing.wrong.control import Control


class StandardizesWhatItSees(Control):
    """Standardizes the inputs by the mean of the batch: by the incoming rows before Replay, by all of them after it.

    In Avalanche [EWC, BiC] and [BiC, EWC] have other losses on the same step, and two clipping plugins clip differently by place; which
    one a paper used is not in the paper.
    """

    @hookimpl
    def transform_batch(self, batch: Batch, step: Step) -> Batch:
        """Another batch, centred."""
        return batch.replace(x=batch.x - 0.5 * batch.x.mean(0)) if self.config.strength else batch
