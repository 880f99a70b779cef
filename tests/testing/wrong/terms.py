"""Wrong in what they add to the objective."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from streamlearn import hookimpl
from streamlearn.core.view import Step
from tests.testing.wrong.control import Control


class AlwaysZero(Control):
    """Compares the weights with themselves, so that the term is 0 for ever.

    Avalanche shipped an EWC whose penalty was always 0 (#1099): every test that only trains passes.
    """

    def distance(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Half the squared distance to the anchor, which is meant to be the old weights and is the present ones."""
        return 0.5 * torch.stack([(value - value.detach()).square().sum() for value in parameters.values()]).sum()


class OneForEachRow(Control):
    """Returns a number for each row where one is asked."""

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """The pull, once a row."""
        term = super().collect_terms(step)
        return None if term is None else term.expand(len(step.batch))


class NotANumber(Control):
    """Divides by a distance that is 0 at the first step after the anchor was set."""

    def distance(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Half the squared distance, over itself."""
        found = super().distance(parameters)
        return found * (found.detach() / found.detach())


class NoGradient(Control):
    """Adds a term that is right and moves nothing, because it was detached.

    The curve of the term looks well in the record; the weights never hear of it.
    """

    def distance(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Half the squared distance, as a number."""
        return super().distance(parameters).detach()


class ReadsTheLiveModel(Control):
    """Reads the weights of the run, not those of the step: at the fast weights of MAML or SAM its term is that of another place.

    In Avalanche's meta-learning templates any penalty is without effect, and nothing says so.
    """

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """The pull, where the run is and not where the step looks."""
        strength = step.run.value(self, "strength")
        return strength * self.distance(step.run.parameters()) if self._anchor and strength else None


class OneOfTwoIsZero(Control):
    """Has two terms of which one is 0 for ever: the method is half of what its paper says, and acts, so that nobody looks."""

    @hookimpl
    def collect_terms(self, step: Step) -> dict[str, Tensor]:  # type: ignore[override]
        """The pull, and a pull to where one is."""
        term = super().collect_terms(step)
        here = torch.stack([(value - value.detach()).square().sum() for value in step.parameters.values()]).sum()
        return {} if term is None else {"past": term, "present": here}


class WholeNumbers(Control):
    """Is computed in whole numbers: the term is rounded, and its type is no floating one."""

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """The pull, rounded."""
        term = super().collect_terms(step)
        return None if term is None else term.round().to(torch.int64)
