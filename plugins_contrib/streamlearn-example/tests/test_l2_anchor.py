"""The numbers of l2 anchor, by hand, and a run beside built-in methods."""

from __future__ import annotations

import pytest
import torch
from streamlearn import Engine, models, streams
from streamlearn.plugins import EWC, Replay

from streamlearn_example import L2Anchor
from streamlearn_example.l2_anchor import squared_distance


def test_it_is_the_squared_distance() -> None:
    here, there = {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.0])}, {"w": torch.tensor([3.0, 2.0]), "b": torch.tensor([1.0])}
    assert squared_distance(here, there).item() == pytest.approx(5.0)


def test_a_parameter_that_has_grown_is_held_on_what_it_had() -> None:
    grown = torch.tensor([[1.0, 9.0], [9.0, 9.0]], requires_grad=True)
    squared_distance({"w": grown}, {"w": torch.zeros(1, 1), "gone": torch.ones(3)}).backward()
    assert grown.grad is not None
    assert grown.grad.tolist() == [[2.0, 0.0], [0.0, 0.0]]


def test_it_trains_beside_built_in_methods() -> None:
    stream = streams.class_incremental("digits", experiences=2)
    plugins = [L2Anchor(), EWC(strength=1.0), Replay(capacity=100)]
    result = Engine(models.mlp(stream, (16,)), lambda p: torch.optim.SGD(p, lr=0.1), plugins, batch_size=32, epochs=3).run(stream)
    assert float(result.matrix()[-1].mean()) > 0.4
