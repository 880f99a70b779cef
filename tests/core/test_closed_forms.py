from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from streamlearn.core.closed_forms import has_closed_form, squared_gradients


def names(model: nn.Module) -> frozenset[str]:
    return frozenset(name for name, _ in model.named_parameters())


def test_a_linear_layer_by_hand() -> None:
    """Rows (1, 2) and (3, 0) with scores (1, -1) and (2, 0): Σ (g a)² = [[1 + 36, 4], [1, 4]]."""
    layer = nn.Linear(2, 2)
    x, score = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[1.0, -1.0], [2.0, 0.0]])
    found = squared_gradients(lambda: layer(x), layer, lambda outputs: [score], names(layer))
    assert found is not None
    assert found["weight"].tolist() == [[37.0, 4.0], [1.0, 4.0]]
    assert found["bias"].tolist() == [5.0, 1.0]
    twice = squared_gradients(lambda: layer(x), layer, lambda outputs: [score, score], frozenset({"bias"}))
    assert twice is not None
    assert {name: value.tolist() for name, value in twice.items()} == {"bias": [10.0, 2.0]}


def test_positions_are_added_before_they_are_squared() -> None:
    layer = nn.Linear(1, 1)
    x = torch.tensor([[[1.0], [2.0]]])  # one row of two positions
    found = squared_gradients(lambda: layer(x).sum(1), layer, lambda outputs: [torch.ones(1, 1)], names(layer))
    assert found is not None
    assert (found["weight"].item(), found["bias"].item()) == (9.0, 4.0)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(2, 2, 3, groups=2), nn.Conv1d(2, 2, 3, padding_mode="circular"), nn.BatchNorm1d(2, track_running_stats=False), nn.GRU(2, 2)],
)
def test_layers_without_a_closed_form_are_told_apart(layer: nn.Module) -> None:
    assert not has_closed_form(layer, names(layer))
    assert has_closed_form(layer, frozenset())


def test_a_pass_of_another_form_is_not_answered() -> None:
    layer, other = nn.Linear(2, 2), nn.Linear(2, 2)
    model, x = nn.ModuleList([layer, other]), torch.ones(3, 2)

    def answered(forward: object) -> bool:
        return squared_gradients(forward, model, lambda outputs: [torch.ones_like(outputs)], names(model)) is not None  # type: ignore[arg-type]

    def in_place() -> Tensor:
        return torch.relu_(layer(x))

    assert answered(lambda: other(torch.relu(layer(x))))
    assert not answered(lambda: layer(layer(x)))
    assert not answered(in_place)
    assert not answered(lambda: layer(x.repeat(2, 1)).view(3, 2, 2).sum(1))
    assert not answered(lambda: layer(x) @ other.weight)
