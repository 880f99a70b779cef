"""Watching losses: nothing that is not finite gets into the weights, and the means of an epoch go into the record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from streamlearn.core.conflicts import Conflicts
from streamlearn.core.objective import Objective
from streamlearn.errors import DivergenceError

if TYPE_CHECKING:
    from streamlearn.core.run import Run

__all__ = ["Meter"]

_LOOK_EVERY = 50
"""On an accelerator, reading a number waits for the device; there the sums are looked at once in so many updates."""


class Meter:
    """Sums of losses and terms over an epoch, and the guard against NaN and infinity.

    Attributes:
        conflicts: how the gradients that a combiner was given stood to each other.
        updates: updates counted.
    """

    def __init__(self) -> None:
        self._losses: dict[str, list[Any]] = {}
        self._terms: dict[str, list[Any]] = {}
        self.conflicts = Conflicts()
        self.updates = 0

    def add_loss(self, row: str, loss: Tensor, run: Run) -> None:
        """Count the loss of a step that has but one row and no term; see `add`."""
        if not loss.is_cpu:
            self.add(Objective({row: loss}), loss, run)
            return
        self.updates += 1
        value = loss.item()
        if not isfinite(value):
            raise _divergence(Objective({row: loss}), value, run)
        _count(self._losses, row, value)

    def add(self, objective: Objective, total: Tensor, run: Run) -> None:
        """Count one objective.

        Raises:
            DivergenceError: the sum s + P is not finite; the message names the losses and terms that are not.
        """
        self.updates += 1
        if not total.is_cpu:
            self._add_later(objective, run)
            return
        value = self.guard(objective, total, run)
        for name, loss in objective.losses.items():
            _count(self._losses, name, value if loss is total else loss.item())
        if objective.terms:
            for name, term in objective.terms.items():
                _count(self._terms, name, term.item())

    def guard(self, objective: Objective, total: Tensor, run: Run) -> float:
        """Look at an objective without counting it: one on a part of a batch. On an accelerator that is left to `add`.

        Raises:
            DivergenceError: as `add`.
        """
        value = total.item() if total.is_cpu else 0.0
        if not isfinite(value):
            raise _divergence(objective, value, run)
        return value

    def _add_later(self, objective: Objective, run: Run) -> None:
        for sums, parts in ((self._losses, objective.losses), (self._terms, objective.terms)):
            for name, part in parts.items():
                _count(sums, name, part.detach())
        if self.updates % _LOOK_EVERY == 0:
            totals = [total for kept in (self._losses, self._terms) for total, _ in kept.values()]
            if not bool(torch.stack(totals).isfinite().all()):
                raise _divergence(objective, math.nan, run)

    def means(self) -> dict[str, dict[str, float]]:
        """Means over the updates in which each name occurred, for the record."""
        return {
            "losses": {name: float(total) / count for name, (total, count) in self._losses.items()},
            "terms": {name: float(total) / count for name, (total, count) in self._terms.items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """The sums."""
        plain = {
            kind: {n: [float(t), c] for n, (t, c) in sums.items()} for kind, sums in (("losses", self._losses), ("terms", self._terms))
        }
        return {**plain, "updates": self.updates, "conflicts": self.conflicts.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._losses = {name: list(pair) for name, pair in state["losses"].items()}
        self._terms = {name: list(pair) for name, pair in state["terms"].items()}
        self.updates = int(state["updates"])
        if "conflicts" in state:  # a checkpoint of a version that did not count them has none
            self.conflicts.load_state_dict(state["conflicts"])


def _count(sums: dict[str, list[Any]], name: str, value: Any) -> None:
    kept = sums.get(name)
    if kept is None:
        sums[name] = [value, 1]
    else:
        kept[0] = kept[0] + value
        kept[1] += 1


def _divergence(objective: Objective, value: float, run: Run) -> DivergenceError:
    named = {**{f"loss of row {n!r}": t for n, t in objective.losses.items()}, **{f"term {n!r}": t for n, t in objective.terms.items()}}
    guilty = [f"{name} is {float(part.detach())}" for name, part in named.items() if not math.isfinite(float(part.detach()))]
    told = "; ".join(guilty) if guilty else f"no single loss or term, but their weighted sum is {value}"
    return DivergenceError(
        f"training diverged at {run.clock}: {told}. The update was not made; start again, in another folder, "
        "with a lower learning rate or a lower strength of that plugin"
    )
