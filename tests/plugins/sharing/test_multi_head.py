from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from streamlearn import Engine, models, streams
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import MultiHead
from tests.core.support import class_stream, growing_stream, net, separate_task_stream, sgd, two_task_stream


def test_a_plain_module_is_split_into_trunk_and_heads() -> None:
    stream, module = separate_task_stream(1), net()
    model: Any = Engine(module, sgd(), [MultiHead()]).run(stream).model
    assert not model.is_plain
    assert isinstance(module.out, nn.Identity)
    assert model.heads.sizes() == {"a": 6, "b": 6}
    assert model.heads.by_task["a"].in_features == 12
    assert model.shared_names() == {f"encoder.{n}" for n, _ in module.named_parameters()}


def test_the_layer_can_be_named_and_must_exist() -> None:
    model: Any = Engine(nn.Linear(6, 6), sgd(), [MultiHead()]).run(class_stream()).model
    assert isinstance(model.encoder, nn.Identity)
    with pytest.raises(ConfigurationError, match=r"no linear layer 'classifier' \(it has: body.0, out\): name its output layer"):
        Engine(net(), sgd(), [MultiHead(layer="classifier")]).run(class_stream())
    with pytest.raises(ConfigurationError, match="the model has no linear layer"):
        Engine(nn.Flatten(), sgd(), [MultiHead()]).run(class_stream())


def test_heads_are_of_the_type_of_the_layer_that_they_replace() -> None:
    model: Any = Engine(net().double(), sgd(), [MultiHead()]).run(two_task_stream(torch.float64)).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


def test_heads_arrive_with_their_tasks_and_models_with_heads_are_left_alone() -> None:
    model: Any = Engine(net(), sgd(), [MultiHead()]).run(growing_stream()).model
    assert model.heads.sizes() == {"t": 6, "other": 3}
    made = models.mlp(growing_stream(), (8,))
    assert Engine(made, sgd(), [MultiHead()]).run(growing_stream()).model is made


def test_task_incremental_digits() -> None:
    stream = streams.task_incremental("digits", classes=[[0, 1], [2, 3]])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2))
    result = Engine(module, sgd(), [MultiHead()], epochs=2).run(stream)
    assert result.accuracy_matrix[1, 0] > 0.95
    assert result.accuracy_matrix[2, 1] > 0.95
