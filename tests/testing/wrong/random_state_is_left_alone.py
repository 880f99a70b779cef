"""Wrong in that whoever draws after them draws something else."""

from __future__ import annotations

import random

import numpy as np
import torch

from streamlearn import hookimpl
from streamlearn.core.run import Run
from tests.testing.wrong.control import Control


class SeedsEverything(Control):
    """Seeds Python's generator at every epoch "for reproducibility", so that every epoch of the user's own sampler is the same."""

    @hookimpl
    def before_epoch(self, run: Run) -> None:
        """As many scripts do."""
        random.seed(0)


class SeedsTorch(Control):
    """Seeds torch when an experience ends."""

    @hookimpl
    def after_experience(self, run: Run) -> None:
        """Hold the weights as they are now, and begin to draw from the start."""
        super().after_experience(run)
        torch.manual_seed(0)


class DrawsFromTorch(Control):
    """Draws a row to look at from the generator of all, where `Run.generator` gives it one of its own.

    In Avalanche an evaluation draws from it, so that whoever evaluates more often trains another model.
    """

    @hookimpl
    def after_experience(self, run: Run) -> None:
        """Hold the weights as they are now, and look at a row."""
        super().after_experience(run)
        torch.randint(10, ())


class DrawsFromNumpy(Control):
    """Draws from numpy's generator of all, and uses the number for nothing that is seen."""

    @hookimpl
    def before_epoch(self, run: Run) -> None:
        """A draw that nobody can repeat."""
        np.random.rand()  # noqa: NPY002 - this is what is wrong
