"""CAGrad: near the average gradient, the direction in which the worst task gains most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from scipy.optimize import brentq
from torch import Tensor

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from streamlearn.core.solvers import dual_cone_weights, short_rows, shortest_combination

if TYPE_CHECKING:
    from streamlearn.core.gradients import TaskRows
    from streamlearn.core.step import Step

__all__ = ["CAGrad", "conflict_averse_weights"]

Rescale = Literal["none", "square", "linear"]
_SHORTEST = 1e-7


def conflict_averse_weights(gramian: Tensor, radius: float) -> Tensor:
    """The weights of d = g_0 + (c‖g_0‖ / ‖g_w‖) g_w in the rows, ``(rows,)`` in float64 on the CPU; see `CAGrad`.

    With the length t of g_w given, w is the shortest combination of g_k + (t / c‖g_0‖) g_0, which is found exactly, and ‖g_w‖ - t
    falls with t: its root is the solution. Where g_w is zero there, d is the nearest to g_0 that conflicts with no row, another
    solution of the same problem.

    Args:
        gramian: G with G_ij = g_i · g_j, ``(rows, rows)``.
        radius: c, at least 0.

    Example:
        >>> conflict_averse_weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]]), 0.0)
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    rows = short_rows(gramian)
    largest = float(rows.norm(dim=1).max())
    equal = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
    average = equal @ rows
    ball = radius * float(average.norm())
    if not ball:
        return equal

    def best(length: float) -> Tensor:
        return shortest_combination(rows + length / ball * average)

    def excess(length: float) -> float:
        return float((best(length) @ rows).norm()) - length

    if excess(_SHORTEST * largest) <= 0:
        return dual_cone_weights(rows, equal)
    weights = best(brentq(excess, _SHORTEST * largest, 2 * largest, xtol=1e-14 * largest, rtol=1e-13))
    return equal + weights * ball / float((weights @ rows).norm())


class CAGrad(Plugin):
    r"""Conflict-averse gradient descent.

    .. math:: g = g_0 + \frac{c \|g_0\|}{\|g_w\|}\, g_w, \qquad g_w = \sum_k w_k g_k, \qquad
        w = \arg\min_{w \ge 0,\, \sum_k w_k = 1} g_w^\top g_0 + c\, \|g_0\|\, \|g_w\|

    with g_0 the mean of the rows: the dual form of making min_k d · g_k as large as ‖d - g_0‖ ≤ c‖g_0‖ allows (Liu et al. 2021, alg. 1).
    The rows g_k are those of the weighting, ∂s/∂L_k · ∇L_k, over the parameters that tasks share. With c = 0 it is the mean of the
    rows; the larger c, the nearer to MGDA. For c < 1 it comes to rest where the mean loss does, for c ≥ 1 on the Pareto front.

    A row whose gradient is zero gains nothing in any direction; g is then the nearest to g_0 that conflicts with no row, where TorchJD
    returns zero and training stops. Rows that conflict may go on doing so in g when c is small. Doubling all losses doubles g.

    Args:
        radius: c, at least 0.
        rescale: ``"none"``: g as above, the paper's algorithm and TorchJD's; ``"square"``: divided by 1 + c², as the authors' code and
            LibMTL do unless told otherwise; ``"linear"``: divided by 1 + c.

    Cost: one backward pass for each row through what the rows share, in place of one for all. Memory: one gradient for each row while
    a step lasts.

    Reference: Liu, Liu, Jin, Stone & Liu, Conflict-averse gradient descent for multi-task learning, NeurIPS 2021, algorithm 1.
    Deviation: w is exact (a root in one number, each value a problem of least squares), where the authors' code and LibMTL stop at
    scipy's tolerances and TorchJD needs a cone solver. Task-specific parameters get their plain gradient.

    Example:
        >>> from streamlearn.plugins import CAGrad
        >>> CAGrad(radius=0.4, rescale="square")
        CAGrad(radius=0.4, rescale='square')
    """

    info = PluginInfo(
        name="cagrad",
        family="gradients",
        summary="Takes the direction near the mean gradient in which the task that gains least gains most.",
        reference="Liu et al. 2021, NeurIPS, algorithm 1",
        needs=frozenset({"task_gradients"}),
        memory="1 gradient for each row, within a step",
    )

    class Config(PluginConfig):
        """Options of `CAGrad`."""

        radius: Annotated[float, Tunable(0.1, 0.9)] = Field(0.5, ge=0)
        rescale: Rescale = "none"

    @hookimpl
    def provide_gradient_combination(self, rows: TaskRows, step: Step) -> dict[str, float]:
        """The weight of each row in g."""
        radius = step.run.value(self, "radius")
        divisor = {"none": 1.0, "square": 1 + radius**2, "linear": 1 + radius}[self.config.rescale]
        weights = conflict_averse_weights(rows.gramian, radius) / divisor
        return dict(zip(rows.names, weights.tolist(), strict=True))
