"""GradVac: gradients that agree less than usual are turned towards each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.gradients import TaskRows
    from streamlearn.core.step import Step

__all__ = ["GradVac", "vaccinated_weights"]

_LARGEST = 1 - 1e-8


def vaccinated_weights(gramian: Tensor, targets: Tensor, random: torch.Generator, decay: float) -> tuple[Tensor, Tensor]:
    """The weights w such that Σ_k w_k g_k is the sum of the corrected gradients, and the targets after the step.

    Everything that is done to a gradient keeps it a combination of the rows, so that their inner products suffice.

    Args:
        gramian: G with G_ij = g_i · g_j, ``(rows, rows)``.
        targets: φ̂_ij, ``(rows, rows)``.
        random: draws the orders in which a gradient meets the others; a row of zeros meets none.
        decay: β.

    Example:
        >>> weights, targets = vaccinated_weights(torch.tensor([[1.0, -1.0], [-1.0, 4.0]]), torch.zeros(2, 2), torch.Generator(), 0.5)
        >>> weights.tolist(), targets.tolist()
        ([2.0, 1.25], [[0.0, -0.25], [-0.25, 0.0]])
    """
    products, goals = gramian.detach().double().cpu(), targets.detach().double().clone()
    count = len(products)
    total = torch.zeros(count, dtype=torch.float64)
    lengths = products.diagonal().clamp(min=0).sqrt()
    for i in range(count):
        weights = torch.zeros_like(total)
        weights[i] = 1.0
        for j in torch.randperm(count, generator=random).tolist():
            mine = products @ weights
            length = (mine @ weights).clamp(min=0).sqrt()
            if j == i or not float(length * lengths[j]):
                continue
            cosine = (mine[j] / (length * lengths[j])).clamp(-1, 1)
            goal = goals[i, j].clamp(-_LARGEST, _LARGEST)
            if cosine < goal:
                sine, wanted = (1 - cosine.square()).sqrt(), (1 - goal.square()).sqrt()
                weights[j] += length * (goal * sine - cosine * wanted) / (lengths[j] * wanted)
            goals[i, j] = (1 - decay) * goals[i, j] + decay * cosine
        total += weights
    return total, goals


class GradVac(Plugin):
    r"""Gradient vaccine.

    .. math:: g = \sum_i g_i', \qquad g_i' \leftarrow g_i' +
        \frac{\|g_i'\| \big(\hatφ_{ij} \sqrt{1 - φ_{ij}^2} - φ_{ij} \sqrt{1 - \hatφ_{ij}^2}\big)}{\|g_j\| \sqrt{1 - \hatφ_{ij}^2}}\, g_j
        \quad\text{if } φ_{ij} < \hatφ_{ij}

    for every other row j, in an order that is drawn anew for each i and step, with φ_ij the cosine of g_i' and g_j (Wang et al. 2021,
    algorithm 1): afterwards the two have the cosine φ̂_ij, a moving average of what it has been, φ̂_ij ← (1 - β) φ̂_ij + β φ_ij. The
    rows g_i are those of the weighting, ∂s/∂L_i · ∇L_i, over the parameters that tasks share. With φ̂ = 0 it is PCGrad.

    φ̂ is kept by the names of the two rows and starts at 0. A pair that does not meet in a batch keeps its own; a new task never gets
    that of another, whatever its place. Doubling all losses doubles g and leaves φ̂ as it is.

    Args:
        decay: β, in [0, 1]. The paper uses 0.01; LibMTL and TorchJD take 0.5.

    Cost: one backward pass for each row through what the rows share, in place of one for all; the orders cost O(rows³).
    Memory: one gradient for each row while a step lasts; 2 numbers for each pair of rows.

    Reference: Wang, Tsvetkov, Firat & Cao, Gradient vaccine: investigating and improving multi-task optimization in massively
    multilingual models, ICLR 2021, algorithm 1. Deviations: all shared parameters are one group (the paper's "whole model"; its best
    results compare layer by layer), and |φ̂| counts as 1 - 1e-8 at most, for which the formula has no finite weight. The average moves
    at every meeting, as the paper and TorchJD have it. LibMTL moves it only where φ < φ̂: started at 0 it can then never rise above 0.

    Example:
        >>> from streamlearn.plugins import GradVac
        >>> GradVac(decay=0.1)
        GradVac(decay=0.1)
    """

    info = PluginInfo(
        name="gradvac",
        family="gradients",
        summary="Turns the gradients of two tasks towards each other when they agree less than they usually do.",
        reference="Wang et al. 2021, ICLR, algorithm 1",
        needs=frozenset({"task_gradients"}),
        memory="2 numbers for each pair of rows; 1 gradient for each row, within a step",
    )

    class Config(PluginConfig):
        """Options of `GradVac`."""

        decay: Annotated[float, Tunable(1e-3, 1.0, log=True)] = Field(0.01, ge=0, le=1)

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._targets: dict[str, dict[str, float]] = {}

    @hookimpl
    def provide_gradient_combination(self, rows: TaskRows, step: Step) -> dict[str, float]:
        """The weight of each row in the sum of corrected gradients; the targets move."""
        names = rows.names
        known: list[Mapping[str, float]] = [self._targets.get(a, {}) for a in names]
        targets = torch.tensor([[of.get(b, 0.0) for b in names] for of in known], dtype=torch.float64)
        decay = step.run.value(self, "decay")
        weights, targets = vaccinated_weights(rows.gramian, targets, step.run.generator(self, "order"), decay)
        for a, of in zip(names, targets.tolist(), strict=True):
            self._targets.setdefault(a, {}).update({b: value for b, value in zip(names, of, strict=True) if b != a})
        return dict(zip(names, weights.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """φ̂ by pair of names."""
        return {"targets": {a: dict(of) for a, of in self._targets.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._targets = {a: dict(of) for a, of in state["targets"].items()}
