"""Nash-MTL: the tasks bargain for a direction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from streamlearn.errors import TrainingError

if TYPE_CHECKING:
    from streamlearn.core.gradients import TaskRows
    from streamlearn.core.step import Step

__all__ = ["NashMTL", "bargaining_weights"]


def bargaining_weights(gramian: Tensor) -> Tensor:
    """The α > 0 with Gα = 1/α, ``(rows,)`` in float64 on the CPU; see `NashMTL`.

    They minimise ½ αᵀGα - Σ log α_k, which is convex and self-concordant: Newton's method, damped by its own decrement, cannot leave
    α > 0 and ends at the minimum. It runs on rows of length 1.

    Args:
        gramian: G with G_ij = g_i · g_j, ``(rows, rows)``.

    Returns:
        α; 0 for a row of zeros, and for all rows where a convex combination of their directions is zero, to the precision of G: no
        direction serves all tasks then, and Gα = 1/α has no solution.

    Raises:
        TrainingError: the solver did not end.

    Example:
        >>> bargaining_weights(torch.tensor([[1.0, 0.0], [0.0, 16.0]]))
        tensor([1.0000, 0.2500], dtype=torch.float64)
    """
    products = gramian.detach().double().cpu()
    lengths = products.diagonal().clamp(min=0).sqrt()
    real = lengths > 0
    alpha = torch.zeros_like(lengths)
    if bool(real.any()):
        scale = lengths[real]
        cosines = products[real][:, real] / scale / scale.unsqueeze(1)
        alpha[real] = _equilibrium(cosines, max(10 * len(scale) * torch.finfo(gramian.dtype).eps, 1e-12)) / scale
    return alpha


def _equilibrium(cosines: Tensor, zero: float) -> Tensor:
    """β > 0 with Cβ = 1/β; zeros where a convex combination of the directions is shorter than √``zero``."""
    count = len(cosines)
    beta = torch.ones(count, dtype=torch.float64)
    for _ in range(200):
        pull = cosines @ beta
        if float(beta @ pull) <= zero * float(beta.sum()) ** 2:
            return torch.zeros_like(beta)
        slope = pull - 1 / beta
        move = -torch.linalg.solve(cosines + beta.pow(-2).diag(), slope)
        decrement = float((-slope @ move).clamp(min=0).sqrt())
        beta += move / (1.0 if decrement < 0.25 else 1.0 + decrement)
        if decrement < 1e-9 + 8 * count * torch.finfo(torch.float64).eps * float(beta.square().max()):
            if float((beta * (cosines @ beta) - 1).abs().max()) < 1e-3:
                return beta
            break
    raise TrainingError(
        f"nash_mtl found no equilibrium of {count} gradients with the cosines {[[round(c, 4) for c in row] for row in cosines.tolist()]}: "
        "they are too near to dependent for their precision; take another combiner, or fewer tasks"
    )


class NashMTL(Plugin):
    r"""Nash-MTL: multi-task learning as a bargaining game.

    .. math:: g = \sum_k α_k g_k \quad\text{with } α > 0 \text{ and } G α = 1 / α, \qquad G_{ij} = g_i \cdot g_j

    The Nash bargaining solution: of all g in a ball the one with the largest Σ_k log(g · g_k) (Navon et al. 2022, section 3, alg. 1).
    The rows g_k are those of the weighting, ∂s/∂L_k · ∇L_k, over the parameters that tasks share. For two rows
    α_k = 1 / (‖g_k‖ √(1 + cos)), so that g halves the angle between them.

    - g descends on every loss, and α_k g·g_k = 1 for each. It depends on the *directions* of the rows alone: no factor of a loss, and
      therefore no weighting, changes it. Its length is √rows, before it is cut to ``max_norm``: it does not shrink with the
      gradients. A penalty beside it is relatively weaker early and stronger late than beside a sum, and a learning rate must decay.
    - A row of zeros has weight 0 and the others bargain without it. Where no direction serves all tasks g is zero, and shared parameters
      move by penalties alone. Nothing is ever replaced by equal weights: a solver that fails stops the run.

    Args:
        every: steps for which weights are used before they are found anew, at least 1. Weights belong to the rows they were found
            for: where other rows meet, they are found anew.
        max_norm: g is made no longer than this, above 0; ``None`` leaves its length at √rows.

    Cost: one backward pass for each row through what the rows share, in place of one for all, also in steps that use old weights.
    Memory: one gradient for each row while a step lasts.

    Reference: Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik & Fetaya, Multi-task learning as a bargaining game, ICML 2022,
    algorithm 1; ``max_norm`` is that of the authors' code. Deviations: the equation is solved by Newton's method to rounding, where
    the paper and the codes that follow it iterate a convex-concave procedure at most 20 times; task-specific parameters get their
    plain gradient, in that code α_k times it. Where its solver fails, LibMTL silently keeps weights of 1 or those of before.

    Example:
        >>> from streamlearn.plugins import NashMTL
        >>> NashMTL(every=10)
        NashMTL(every=10)
    """

    info = PluginInfo(
        name="nash_mtl",
        family="gradients",
        summary="Takes the direction on which the tasks agree in a Nash bargain: a fair share for each, whatever the scale of its loss.",
        reference="Navon et al. 2022, ICML, algorithm 1",
        needs=frozenset({"task_gradients"}),
        memory="1 number for each row; 1 gradient for each row, within a step",
    )

    class Config(PluginConfig):
        """Options of `NashMTL`."""

        every: int = Field(1, ge=1)
        max_norm: Annotated[float, Tunable(0.1, 10.0, log=True)] | None = Field(1.0, gt=0)

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._weights: dict[str, float] = {}
        self._used = 0

    @hookimpl
    def provide_gradient_combination(self, rows: TaskRows, step: Step) -> dict[str, float]:
        """α by row, cut to ``max_norm``."""
        gramian = rows.gramian.detach().double().cpu()
        if self._weights.keys() != set(rows.names) or self._used >= self.config.every:
            self._weights = dict(zip(rows.names, bargaining_weights(rows.gramian).tolist(), strict=True))
            self._used = 0
        self._used += 1
        weights = torch.tensor([self._weights[name] for name in rows.names], dtype=torch.float64)
        bound = self.config.max_norm
        if bound is not None:
            norm = float((weights @ gramian @ weights).clamp(min=0).sqrt())
            weights = weights * min(1.0, bound / norm) if norm else weights
        return dict(zip(rows.names, weights.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The weights in use, and how often they have been used."""
        return {"weights": dict(self._weights), "used": self._used}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._weights, self._used = dict(state["weights"]), int(state["used"])
