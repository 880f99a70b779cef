from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from streamlearn import Engine, models
from streamlearn.core.solvers import min_norm_weights
from streamlearn.errors import ConfigurationError
from streamlearn.plugins.gradients.cagrad import CAGrad, conflict_averse_weights
from tests.core.support import final, probe, sgd, two_task_stream


def jacobian(rows: int, seed: int, columns: int = 8) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randn(rows, 1, generator=draw, dtype=torch.float64).exp()
    return lengths * torch.randn(rows, columns, generator=draw, dtype=torch.float64)


def dual_value(matrix: Tensor, weights: Tensor, radius: float) -> float:
    mean = matrix.mean(0)
    return float(weights @ matrix @ mean + radius * mean.norm() * (weights @ matrix).norm())


@pytest.mark.parametrize("radius", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("rows", [2, 3, 6])
def test_no_direction_in_the_ball_serves_the_worst_task_better(rows: int, radius: float) -> None:
    """The dual value bounds what any direction can do for the worst task; d attains it, and scipy finds no lower one."""
    for seed in range(15):
        matrix = jacobian(rows, seed)
        found = conflict_averse_weights(matrix @ matrix.T, radius)
        mean, direction = matrix.mean(0), found @ matrix
        assert float((direction - mean).norm()) <= radius * float(mean.norm()) * (1 + 1e-9)
        weights = (found - 1 / rows) / (found - 1 / rows).sum()
        assert bool((weights >= -1e-12).all())
        bound, scale = dual_value(matrix, weights, radius), float(mean.norm() * matrix.norm(dim=1).max())
        assert float((matrix @ direction).min()) == pytest.approx(bound, abs=1e-9 * scale)
        other = minimize(
            lambda w, m=matrix: dual_value(m, torch.from_numpy(w), radius), np.full(rows, 1 / rows), bounds=[(0, 1)] * rows,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, method="SLSQP", options={"ftol": 1e-12},
        )  # fmt: skip
        assert bound <= other.fun + 1e-7 * scale


def test_the_extremes_are_the_mean_and_mgda() -> None:
    matrix = jacobian(3, 3)
    torch.testing.assert_close(conflict_averse_weights(matrix @ matrix.T, 0.0) @ matrix, matrix.mean(0))
    far = conflict_averse_weights(matrix @ matrix.T, 1e6) @ matrix
    shortest = min_norm_weights(matrix @ matrix.T) @ matrix
    assert float(torch.cosine_similarity(far, shortest, dim=0)) > 1 - 1e-6


def test_a_row_of_zeros_leaves_the_nearest_that_conflicts_with_nothing() -> None:
    """By hand: (1, 0) and (-1, 2) have the mean (0, 1) with the zero, which conflicts with neither."""
    matrix = torch.tensor([[1.0, 0.0], [-1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    for radius in (0.5, 2.0):
        torch.testing.assert_close(conflict_averse_weights(matrix @ matrix.T, radius) @ matrix, matrix.mean(0))
    matrix = torch.tensor([[3.0, 0.0], [-1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)  # the mean conflicts with the second
    found = conflict_averse_weights(matrix @ matrix.T, 0.9) @ matrix
    assert float(matrix[1] @ found) == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(found, torch.full((2,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize(("rescale", "divisor"), [("none", 1.0), ("square", 1.16), ("linear", 1.4)])
def test_in_a_run_with_each_scale(rescale: Any, divisor: float) -> None:
    checked: list[float] = []

    def look(gradients: Any, step: Any) -> Any:
        shared = {n: p for n, p in step.parameters.items() if n.startswith("encoder.")}
        losses = step.at().losses
        rows = [torch.cat([g.flatten() for g in torch.autograd.grad(losses[t], list(shared.values()), retain_graph=True)]) for t in "ab"]
        a, b = (row.double() for row in rows)
        mean = (a + b) / 2
        grid = torch.linspace(0, 1, 20001, dtype=torch.float64).unsqueeze(1)
        points = grid * a + (1 - grid) * b
        best = points[(points @ mean + 0.4 * mean.norm() * points.norm(dim=1)).argmin()]
        expected = (mean + 0.4 * mean.norm() / best.norm() * best) / divisor
        found = torch.cat([gradients[n].flatten() for n in shared]).double()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.norm()))
        (head,) = torch.autograd.grad(losses["a"], [step.parameters["heads.by_task.a.weight"]])
        torch.testing.assert_close(gradients["heads.by_task.a.weight"], head)
        checked.append(float(a @ b))
        return gradients

    stream = two_task_stream()
    plugins = [CAGrad(radius=0.4, rescale=rescale), probe("look", transform_gradients=look)]
    final(Engine(models.mlp(stream, (8,)), sgd(), plugins, batch_size=6), stream)
    assert len(checked) == 4


@pytest.mark.parametrize("options", [{"radius": -0.1}, {"rescale": "1"}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"option '{next(iter(options))}'"):
        CAGrad(**options)
