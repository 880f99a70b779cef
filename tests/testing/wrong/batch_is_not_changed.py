"""Wrong in that others find what they read changed under their hands."""

from __future__ import annotations

from streamlearn import hookimpl
from streamlearn.core.view import Step
from streamlearn.streams import Batch
from tests.testing.wrong.control import Control


class ChangesRowsInPlace(Control):
    """Scales the inputs in place, where a new batch is asked.

    Whoever holds the rows (a memory, a teacher, the data set itself) holds others from then on; Avalanche's BiC took rows
    out of the benchmark that way.
    """

    @hookimpl
    def transform_batch(self, batch: Batch, step: Step) -> Batch:
        """The same object with other numbers in it."""
        if self.config.strength:
            batch.x[batch.rows("train")].mul_(0.9)
        return batch


class ChangesLabelsInPlace(Control):
    """Writes a label, in a hook that is there to read.

    With hidden labels in the batch this is how a method learns from the test set, or forgets what it was taught.
    """

    @hookimpl
    def before_step(self, step: Step) -> None:
        """The first row has the class of the last."""
        for target in step.batch.targets.values() if self.config.strength else ():
            target[0] = target[-1]


class WritesToTheStep(Control):
    """Sets an attribute of the step, which everybody reads: Avalanche's plugins add to ``strategy.loss``, and none knows to what."""

    @hookimpl
    def after_step(self, step: Step) -> None:
        """Whoever reads gradients after this finds none."""
        step.gradients = {}
