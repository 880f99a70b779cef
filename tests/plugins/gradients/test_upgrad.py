from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torchjd.aggregation import PCGradWeighting, UPGradWeighting
from torchjd.linalg import QuadprogProjector

from streamlearn import Engine, models
from streamlearn.errors import ConfigurationError
from streamlearn.plugins.gradients.upgrad import UPGrad, unconflicting_weights
from tests.core.support import final, probe, sgd, two_task_stream


def jacobian(rows: int, seed: int, columns: int = 8) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randn(rows, 1, generator=draw, dtype=torch.float64).exp()
    return lengths * torch.randn(rows, columns, generator=draw, dtype=torch.float64)


def projected(x: Tensor, matrix: Tensor) -> Tensor:
    """What is nearest to x among all that conflicts with no row, by scipy."""
    rows = matrix.numpy()
    found = minimize(
        lambda y: 0.5 * ((y - x.numpy()) ** 2).sum(), x.numpy(), jac=lambda y: y - x.numpy(), method="SLSQP",
        constraints={"type": "ineq", "fun": lambda y: rows @ y, "jac": lambda y: rows}, options={"ftol": 1e-15, "maxiter": 500},
    )  # fmt: skip
    return torch.from_numpy(found.x)


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_it_is_the_mean_of_the_projections(rows: int) -> None:
    for seed in range(5):
        matrix = jacobian(rows, seed)
        equal = torch.full((rows,), 1 / rows, dtype=torch.float64)
        found = unconflicting_weights(matrix @ matrix.T, equal) @ matrix
        expected = torch.stack([projected(row, matrix) for row in matrix]).mean(0)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(matrix.norm()))
        assert float((matrix @ found / matrix.norm(dim=1)).min()) > -1e-10


def test_it_is_torchjds_without_what_that_adds_to_the_diagonal() -> None:
    far = 0.0
    for seed in range(10):
        matrix = jacobian(4, seed)
        found = unconflicting_weights(matrix @ matrix.T, torch.full((4,), 0.25)) @ matrix
        exact = UPGradWeighting(projector=QuadprogProjector(norm_eps=0.0, reg_eps=1e-13))(matrix @ matrix.T) @ matrix
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)
        usual = UPGradWeighting()(matrix @ matrix.T) @ matrix
        far = max(far, float((found - usual).norm() / found.norm()))
    assert far > 1e-3


def test_for_two_rows_it_is_half_of_pcgrad() -> None:
    for seed in range(10):
        matrix = jacobian(2, seed)
        found = unconflicting_weights(matrix @ matrix.T, torch.ones(2))
        torch.testing.assert_close(found, PCGradWeighting()(matrix @ matrix.T))


def test_it_keeps_the_promise_that_pcgrad_does_not() -> None:
    broken = 0
    for seed in range(30):
        matrix = jacobian(4, seed, columns=5)
        torch.manual_seed(seed)
        broken += bool((matrix @ (PCGradWeighting()(matrix @ matrix.T) @ matrix) < -1e-6).any())
        assert bool((matrix @ (unconflicting_weights(matrix @ matrix.T, torch.ones(4)) @ matrix) > -1e-8).all())
    assert broken > 0


def test_opposite_equal_and_zero_rows() -> None:
    a, b = jacobian(2, 3)
    opposite = torch.stack([a, -2 * a])
    assert float((unconflicting_weights(opposite @ opposite.T, torch.ones(2)) @ opposite).norm()) < 1e-9
    zero = torch.stack([a, 0 * a, b])
    without = torch.stack([a, b])
    torch.testing.assert_close(
        unconflicting_weights(zero @ zero.T, torch.ones(3)) @ zero, unconflicting_weights(without @ without.T, torch.ones(2)) @ without
    )


@pytest.mark.parametrize(("preference", "share"), [({}, 0.5), ({"a": 3.0}, 0.75), ({"a": 0.0, "gone": 5.0}, 0.0)])
def test_in_a_run_with_preferences(preference: dict[str, float], share: float) -> None:
    checked: list[float] = []

    def look(gradients: Any, step: Any) -> Any:
        shared = {n: p for n, p in step.parameters.items() if n.startswith("encoder.")}
        losses = step.at().losses
        a, b = (
            torch.cat([g.flatten() for g in torch.autograd.grad(f * losses[t], list(shared.values()), retain_graph=True)])
            for t, f in (("a", 2.0), ("b", -1.5))
        )
        product = a @ b
        checked.append(float(product))
        if product < 0:
            a, b = a - product / (b @ b) * b, b - product / (a @ a) * a
        found = torch.cat([gradients[n].flatten() for n in shared])
        torch.testing.assert_close(found, share * a + (1 - share) * b, rtol=1e-3, atol=1e-5)
        return gradients

    weigh = probe("weigh", provide_weighting=lambda losses: 2.0 * losses["a"] - 1.5 * losses["b"])
    stream = two_task_stream()
    plugins = [UPGrad(preference=preference), weigh, probe("look", transform_gradients=look)]
    final(Engine(models.mlp(stream, (8,)), sgd(), plugins, batch_size=6), stream)
    assert min(checked) < 0, "there was a conflict"


def test_bad_options() -> None:
    with pytest.raises(ConfigurationError, match="option 'preference"):
        UPGrad(preference={"a": -1.0})
