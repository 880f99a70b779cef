"""Wrong in company."""

from __future__ import annotations

from torch import Tensor

from streamlearn import hookimpl
from streamlearn.core.run import Run
from streamlearn.core.view import Step
from streamlearn.errors import CompositionError
from tests.testing.wrong.control import Control

_WEIGHTS = {"train": 1.0, "target": 1.0, "support": 1.0, "query": 1.0, "validation": 1.0}


class KnowsItsRoles(Control):
    """Looks the role of each row up in a table, and falls over rows of a memory.

    Alone it is right. The first user who lists Replay beside it gets ``KeyError: 'memory'`` after the first experience, an hour in.
    """

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """The pull, by the mean weight of the roles."""
        term = super().collect_terms(step)
        weights = [_WEIGHTS[role] for role in step.batch.roles]
        return None if term is None else term * (sum(weights) / len(weights))


class RefusesWithoutAReason(Control):
    """Refuses to stand beside Replay and does not say why, nor what to do."""

    @hookimpl
    def before_run(self, run: Run) -> None:
        """No."""
        if any(plugin.info.name == "replay" for plugin in run.plugins):
            raise CompositionError([])


class SilentBesideOthers(Control):
    """Does nothing when it is not alone, and says nothing.

    In Avalanche's meta-learning templates penalties are not called at all: they stand in the list, in the paper, and not in the run.
    """

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """The pull, if nobody looks."""
        return None if any(plugin.info.name in _KNOWN for plugin in step.run.plugins) else super().collect_terms(step)


_KNOWN = frozenset({"replay", "multi_head", "lwf", "pcgrad", "sam"})
