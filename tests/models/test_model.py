from __future__ import annotations

import pytest
import torch
from torch import nn

from streamlearn import Engine
from streamlearn.errors import ConfigurationError, DataError
from streamlearn.models import Heads, Model
from streamlearn.streams import Task
from tests.core.support import final, growing_stream, probe, sgd


def test_a_head_grows_and_keeps_its_leading_slice_and_name() -> None:
    heads = Heads(3, [Task("t", size=2)])
    old = {name: p.detach().clone() for name, p in heads.named_parameters()}
    assert not heads.grow(Task("t", size=2))
    assert not heads.grow(Task("t", size=1))
    assert heads.grow(Task("t", size=4))
    assert heads.sizes() == {"t": 4}
    for name, p in heads.named_parameters():
        assert torch.equal(p[:2], old[name])


def test_a_frozen_head_stays_frozen_when_it_grows() -> None:
    heads = Heads(3, [Task("t", size=2)])
    heads.requires_grad_(False)
    heads.grow(Task("t", size=4))
    assert not any(p.requires_grad for p in heads.parameters())


def test_a_head_that_comes_later_is_of_the_type_of_the_others_and_where_they_are() -> None:
    heads = Heads(3, [Task("a", size=2)]).double()
    heads.grow(Task("b", size=4))
    assert {p.dtype for p in heads.parameters()} == {torch.float64}
    assert all(p.requires_grad for p in heads.parameters())
    assert heads(torch.zeros(1, 3, dtype=torch.float64), "b").shape == (1, 4)
    heads.to("meta").grow(Task("c", size=1))
    assert {p.device.type for p in heads.parameters()} == {"meta"}
    frozen = Heads(3, [Task("a", size=2)]).requires_grad_(False)
    frozen.grow(Task("b", size=2))
    assert [p.requires_grad for p in frozen.parameters()] == [False, False, True, True], "whether others are frozen says nothing"


def test_the_first_heads_are_of_the_type_of_the_encoder() -> None:
    model = Model(nn.Linear(3, 3).double(), Heads(3))
    assert model.grow([Task("a", size=2), Task("b", size=3)])
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model(torch.zeros(1, 3, dtype=torch.float64), "b").shape == (1, 3)
    model.heads.float()
    model.grow([Task("c", size=1)])
    assert {p.dtype for p in model.heads.parameters()} == {torch.float32}, "later ones follow the heads"


def test_a_model_in_double_precision_learns_a_task_that_nobody_announced() -> None:
    stream = growing_stream()
    model = Model(nn.Sequential(nn.Linear(6, 5), nn.Tanh()), Heads(5)).double()
    to_double = probe("to_double", transform_batch=lambda batch: batch.replace(x=batch.x.double()))
    found, _ = final(Engine(model, sgd(), [to_double], batch_size=10, evaluate="never"), stream)
    assert {name.split(".")[2] for name in found if name.startswith("heads.")} == {"t", "other"}
    assert {value.dtype for value in found.values()} == {torch.float64}


def test_every_task_grows_and_not_only_the_first_that_changes() -> None:
    model = Model(nn.Identity(), Heads(3))
    assert model.grow([Task("a", size=2), Task("b.c", size=3), Task("d", size=1)])
    assert model.heads.sizes() == {"a": 2, "b.c": 3, "d": 1}
    assert model(torch.zeros(4, 3), "b.c").shape == (4, 3)
    assert not model.grow([Task("a", size=2)])
    other = Model(nn.Identity(), Heads(3))
    other.restore_structure(model.structure())
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(torch.ones(1, 3), "b.c"), model(torch.ones(1, 3), "b.c"))


def test_a_plain_module_shares_its_output_and_a_task_reads_the_first() -> None:
    model = Model.of(nn.Linear(3, 5))
    assert Model.of(model) is model
    model.grow([Task("a", size=2), Task("b", size=5)])
    x = torch.ones(2, 3)
    assert torch.equal(model(x, "a"), model(x, "b")[:, :2])
    assert model.shared_names() == {"encoder.weight", "encoder.bias"}
    model.grow([Task("c", size=6)])
    with pytest.raises(DataError, match="task 'c' needs 6 outputs, the model gives 5: widen its last layer, or use MultiHead"):
        model(x, "c")


def test_which_task_must_be_said_when_there_are_several() -> None:
    model = Model(nn.Identity(), Heads(3, [Task("a", size=2), Task("b", size=2)]))
    with pytest.raises(ConfigurationError, match=r"serves the tasks a, b: say which, as in model\(x, 'a'\)"):
        model(torch.zeros(1, 3))
    with pytest.raises(DataError, match=r"no head for task 'z' \(it has: a, b\): train it first"):
        model(torch.zeros(1, 3), "z")


@pytest.mark.parametrize("name", ["train", "type", "keys", "a.train", "training"])
def test_a_task_may_be_called_like_a_method_of_a_module(name: str) -> None:
    heads = Heads(4, [Task(name, size=3), Task("other", size=2)])
    assert heads.sizes() == {name: 3, "other": 2}
    assert heads(torch.zeros(1, 4), name).shape == (1, 3)
    assert heads.has(name)
