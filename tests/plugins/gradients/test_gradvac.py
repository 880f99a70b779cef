from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchjd.aggregation import GradVacWeighting

from streamlearn import Engine, models
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import PCGrad
from streamlearn.plugins.gradients.gradvac import GradVac, vaccinated_weights
from tests.core.support import final, probe, same, sgd, two_task_stream


def jacobian(rows: int, seed: int, columns: int = 4) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vaccine(matrix: Tensor, targets: Tensor, decay: float, random: torch.Generator) -> Tensor:
    """Algorithm 1 of the paper, on the gradients themselves; moves ``targets``."""
    total = torch.zeros_like(matrix[0])
    for i in range(len(matrix)):
        changed = matrix[i].clone()
        for j in torch.randperm(len(matrix), generator=random).tolist():
            if i == j:
                continue
            cosine = torch.cosine_similarity(changed, matrix[j], dim=0)
            goal = targets[i, j].clone()
            if cosine < goal:
                factor = changed.norm() * (goal * (1 - cosine**2).sqrt() - cosine * (1 - goal**2).sqrt())
                changed = changed + factor / (matrix[j].norm() * (1 - goal**2).sqrt()) * matrix[j]
                torch.testing.assert_close(torch.cosine_similarity(changed, matrix[j], dim=0), goal, rtol=1e-9, atol=1e-9)
            targets[i, j] = (1 - decay) * goal + decay * cosine
        total += changed
    return total


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("decay", [0.01, 0.5])
def test_it_is_algorithm_1_and_torchjds_step_after_step(rows: int, decay: float) -> None:
    """torchjd visits the others in an order of its own stream: with two rows there is but one."""
    targets, expected = torch.zeros(2, rows, rows, dtype=torch.float64)
    oracle = GradVacWeighting(beta=decay, eps=0.0)
    for seed in range(12):
        matrix = jacobian(rows, seed)
        weights, targets = vaccinated_weights(matrix @ matrix.T, targets, torch.Generator().manual_seed(seed), decay)
        by_hand = vaccine(matrix, expected, decay, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(weights @ matrix, by_hand, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(targets, expected)
        if rows < 3:
            torch.testing.assert_close(weights, oracle(matrix @ matrix.T), rtol=1e-7, atol=1e-9)


def test_targets_rise_above_zero_where_gradients_agree() -> None:
    """Not so in LibMTL, which moves an average only where the cosine is below it."""
    targets = torch.zeros(2, 2, dtype=torch.float64)
    agree = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    for _ in range(20):
        weights, targets = vaccinated_weights(agree, targets, torch.Generator(), 0.5)
        torch.testing.assert_close(weights, torch.ones(2, dtype=torch.float64))
    assert float(targets[0, 1]) == pytest.approx(0.5, abs=1e-5)
    orthogonal, _ = vaccinated_weights(torch.eye(2, dtype=torch.float64), targets, torch.Generator(), 0.5)
    assert float(orthogonal[0]) == pytest.approx(1 + 1 / 3**0.5, rel=1e-4), "they are turned towards each other"


def test_with_targets_of_zero_it_is_pcgrad() -> None:
    stream = two_task_stream()
    runs = [final(Engine(models.mlp(stream, (8,)), sgd(), [plugin], batch_size=6), stream)[0] for plugin in (GradVac(decay=0.0), PCGrad())]
    for key, value in runs[0].items():
        torch.testing.assert_close(value, runs[1][key], rtol=1e-4, atol=1e-6)


def test_parallel_rows_that_part_get_finite_weights() -> None:
    targets = torch.ones(2, 2, dtype=torch.float64)
    weights, _ = vaccinated_weights(torch.eye(2, dtype=torch.float64), targets, torch.Generator(), 1.0)
    assert bool(weights.isfinite().all())


def test_in_a_run_the_state_has_the_names_of_pairs_and_survives() -> None:
    plugin = GradVac(decay=0.3)
    cosines: list[float] = []

    def look(step: Any) -> None:
        losses = step.at().losses
        shared = [p for n, p in step.parameters.items() if n.startswith("encoder.")]
        a, b = (torch.cat([g.flatten() for g in torch.autograd.grad(losses[t], shared, retain_graph=True)]) for t in "ab")
        cosines.append(float(torch.cosine_similarity(a, b, dim=0)))

    stream = two_task_stream()
    Engine(models.mlp(stream, (8,)), sgd(), [plugin, probe("look", before_step=look)], batch_size=6).run(stream)
    expected = 0.0
    for cosine in cosines:
        expected = 0.7 * expected + 0.3 * cosine
    state = plugin.state_dict()
    assert state["targets"].keys() == {"a", "b"}
    assert state["targets"]["a"]["b"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    other = GradVac(decay=0.3)
    other.load_state_dict(state)
    assert same(other.state_dict(), state)


@pytest.mark.parametrize("decay", [-0.1, 1.5, "much"])
def test_bad_options(decay: Any) -> None:
    with pytest.raises(ConfigurationError, match="option 'decay'"):
        GradVac(decay=decay)
