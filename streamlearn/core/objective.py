"""What is to be minimised: losses by row and named terms, and how rows become one scalar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from streamlearn.core.view import Step

__all__ = ["Objective", "evaluate", "minimised", "weigh", "with_terms"]


@dataclass(slots=True)
class Objective:
    """What is to be minimised: losses by row, and named terms.

    Attributes:
        losses: L_k by row name.
        terms: P_n by term name.
        shares: share_k by row name, for the default weighting; a row without one counts fully.
    """

    losses: Mapping[str, Tensor]
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    shares: Mapping[str, float | Tensor] = field(default_factory=dict)

    def detached(self) -> Objective:
        """The same numbers without a graph."""
        losses, terms = ({name: value.detach() for name, value in found.items()} for found in (self.losses, self.terms))
        return Objective(losses, terms, {n: s.detach() if isinstance(s, Tensor) else s for n, s in self.shares.items()})

    @classmethod
    def average(cls, parts: Sequence[tuple[Objective, float]]) -> Objective:
        """The objective on a batch, from those on its parts and the share of each in the labelled rows.

        L_k is weighted by the weight that row k has in each part, share · share_k; terms and shares add up.
        """
        losses: dict[str, Any] = {}
        weights: dict[str, Any] = {}
        terms: dict[str, Any] = {}
        for objective, share in parts:
            for name, loss in objective.losses.items():
                weight = share * objective.shares.get(name, 1.0)
                losses[name] = losses.get(name, 0.0) + weight * loss
                weights[name] = weights.get(name, 0.0) + weight
            for name, term in objective.terms.items():
                terms[name] = terms.get(name, 0.0) + share * term
        return cls({name: loss / _nonzero(weights[name]) for name, loss in losses.items()}, terms, weights)

    @classmethod
    def merge(cls, objectives: Sequence[Objective]) -> Objective:
        """The mean of several objectives, row by row and term by term (over the episodes in which each occurs)."""

        def mean(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
            names = dict.fromkeys(name for part in parts for name in part)
            found = {name: [part[name] for part in parts if name in part] for name in names}
            return {name: sum(values[1:], values[0]) / len(values) for name, values in found.items()}

        return cls(mean([o.losses for o in objectives]), mean([o.terms for o in objectives]), mean([o.shares for o in objectives]))


def _nonzero(weight: float | Tensor) -> float | Tensor:
    return torch.where(weight == 0, torch.ones_like(weight), weight) if isinstance(weight, Tensor) else weight or 1.0


def evaluate(view: Step) -> Objective:
    """The objective at ``view``: its row losses and its terms."""
    rows = view.rows
    return Objective(rows.losses, view.terms, rows.shares)


def weigh(objective: Objective, step: Step) -> Tensor | None:
    """s(L), by the active weighting or Σ share_k L_k; ``None`` when there is no row."""
    losses = objective.losses
    if not losses:
        return None
    provide = step.run.hooks.provide_weighting
    if provide is not None:
        return provide(losses, step)  # type: ignore[no-any-return]
    total: Tensor | None = None
    for name, loss in losses.items():
        share = objective.shares.get(name, 1.0)
        part = loss if isinstance(share, float) and share == 1.0 else loss * share
        total = part if total is None else total + part
    return total


def with_terms(weighted: Tensor | None, objective: Objective) -> Tensor | None:
    """s + P, from s = ``weighted``; ``None`` when there is neither row nor term."""
    total = weighted
    for term in objective.terms.values():
        total = term if total is None else total + term
    return total


def minimised(objective: Objective, step: Step) -> Tensor | None:
    """The scalar that is minimised, s(L) + P; ``None`` when there is neither row nor term."""
    return with_terms(weigh(objective, step), objective)
