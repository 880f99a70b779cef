"""Wrong in that no two runs agree."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from streamlearn import hookimpl
from streamlearn.core.view import Step
from tests.testing.wrong.control import Control


class ReadsTheClock(Control):
    """Pulls more at some times of the day than at others.

    Results that differ by run cannot be told from results that differ by method (Avalanche #1038, #492).
    """

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """The pull, a little stronger for each millisecond that has passed in this second."""
        term = super().collect_terms(step)
        return None if term is None else term * (1.0 + 1e-3 * (time.perf_counter_ns() % 1_000_000) / 1_000_000)


class OrderOfASet(Control):
    """Sums over a set of names, whose order is another in each process.

    Within one process all is well. A resumed run is another process, and gets another last bit.
    """

    missed = "the kit compares runs within one process, where a set has one order; a process more would cost more than all checks"

    def distance(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Half the squared distance, summed in an order that depends on PYTHONHASHSEED."""
        total = torch.zeros(())
        for weight, name in enumerate({name for name in self._anchor if name in parameters}, 1):
            anchor = self._anchor[name]
            held = parameters[name][tuple(slice(0, size) for size in anchor.shape)]
            total = total + 0.5 * weight * (held - anchor).square().sum()
        return total
