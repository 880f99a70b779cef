from __future__ import annotations

import pytest
import torch
from torchjd.aggregation import MGDAWeighting

from streamlearn.core.solvers import dual_cone_weights, min_norm_weights, preference_weights, short_rows
from streamlearn.errors import ConfigurationError, TrainingError


@pytest.mark.parametrize("rows", [1, 2, 5, 12])
def test_the_shortest_combination_is_a_minimum(rows: int) -> None:
    """At the minimum every row has a product with it that is no smaller than its square, and equal where the weight is not 0."""
    for seed in range(10):
        matrix = torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.3
        weights = min_norm_weights(matrix @ matrix.T)
        assert bool((weights >= 0).all())
        assert float(weights.sum()) == pytest.approx(1)
        shortest = weights @ matrix
        excess = matrix @ shortest - shortest.square().sum()
        assert float(excess.min()) > -1e-7
        assert float((weights * excess).abs().max()) < 1e-7
        others = MGDAWeighting(epsilon=1e-5, max_iters=250)(matrix @ matrix.T) @ matrix
        assert float(shortest.norm()) <= float(others.norm()) + 1e-7


def test_rows_of_very_different_lengths_keep_their_digits() -> None:
    matrix = torch.tensor([[1e-9, 0.0], [0.0, 1e6]], dtype=torch.float64)
    rows = short_rows(matrix @ matrix.T)
    torch.testing.assert_close(rows.norm(dim=1), matrix.norm(dim=1), rtol=1e-12, atol=0)
    assert min_norm_weights(matrix @ matrix.T).tolist() == pytest.approx([1.0, 1e-30], rel=1e-6, abs=1e-20)


def test_what_lies_in_the_cone_is_left_alone() -> None:
    rows = torch.eye(3, dtype=torch.float64)
    assert dual_cone_weights(rows, torch.tensor([1.0, 0.0, 2.0])).tolist() == [1.0, 0.0, 2.0]
    assert dual_cone_weights(torch.zeros(2, 3, dtype=torch.float64), torch.ones(2)).tolist() == [1.0, 1.0]


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(TrainingError, match="the weights of 2 gradients could not be found"):
        dual_cone_weights(torch.tensor([[1.0, 0.0], [float("inf"), 1.0]], dtype=torch.float64), torch.tensor([1.0, 0.0]))


def test_preferences_are_relative_to_those_present() -> None:
    assert preference_weights(["a", "b", "c"], {"a": 2.0, "x": 5.0}).tolist() == [0.5, 0.25, 0.25]
    with pytest.raises(ConfigurationError, match=r"gives 0 to every row of a batch \(a\)"):
        preference_weights(["a"], {"a": 0.0})
