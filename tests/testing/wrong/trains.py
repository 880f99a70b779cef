"""Wrong on some kind of stream that they do not exclude."""

from __future__ import annotations

from torch import Tensor

from streamlearn import hookimpl
from streamlearn.core.view import Step
from tests.testing.wrong.control import Control


class ReadsTheNameOfADomain(Control):
    """Reads a number in the name of a domain, because in its author's data the domains were called by their angles.

    Names are for people. Half of Avalanche's plugins fail on some kind of stream that the library itself offers.
    """

    fails = "trains[domain_incremental]"

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """The pull, weaker far from the upright."""
        term = super().collect_terms(step)
        angles = [float(domain or 0) for domain in step.batch.domains]
        return None if term is None else term / (1.0 + max(angles))
