from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from streamlearn import Engine, models
from streamlearn.core.optimization import Optimization, Trainable
from streamlearn.errors import ConfigurationError
from streamlearn.models import Heads, Model
from streamlearn.streams import Task
from tests.core.support import adam, growing_stream, net, probe, same, sgd


@pytest.mark.parametrize("factory", [sgd(), adam])
def test_growth_keeps_leading_slices_of_weights_and_of_optimiser_state(factory: Any) -> None:
    before: dict[str, Any] = {}
    checked: list[str] = []

    def keep(run: Any) -> None:
        before.update({n: (p.detach().clone(), copy.deepcopy(dict(run.optimization.main.state[p]))) for n, p in run.parameters().items()})

    def compare(run: Any) -> None:
        for name, (weight, state) in before.items():
            now = run.parameters()[name]
            part = tuple(slice(0, size) for size in weight.shape)
            assert torch.equal(now[part], weight)
            for key, value in state.items():
                kept = run.optimization.main.state[now][key]
                if value.ndim:
                    assert kept.shape == now.shape
                    assert torch.equal(kept[part], value)
                    assert float(kept.sum()) == pytest.approx(float(value.sum()), rel=1e-4, abs=1e-5), "the rest starts at zero"
                else:
                    assert torch.equal(kept, value)
                checked.append(name)
        grouped = {id(p) for group in run.optimization.main.param_groups for p in group["params"]}
        assert grouped == {id(p) for p in run.parameters().values()}

    stream = growing_stream()
    watch = probe("watch", before_experience=compare, after_experience=keep)
    result = Engine(models.mlp(stream, (8,)), factory, [watch], batch_size=10).run(stream)
    assert "heads.by_task.t.weight" in checked
    model: Any = result.model
    assert model.heads.sizes() == {"t": 6, "other": 3}


def small() -> Model:
    return Model(nn.Linear(2, 2), Heads(2, [Task("t", size=2)]))


def test_a_helper_gets_a_group_without_decay_or_an_optimiser_of_its_own() -> None:
    optimization = Optimization(sgd(), small())
    shared, own = nn.Linear(1, 1), nn.Linear(1, 1)
    optimization.add("p/shared", Trainable(shared, learning_rate=0.5))
    optimization.add("p/own", Trainable(own, optimizer=adam))
    optimization.add("p/own", Trainable(nn.Linear(1, 1)))
    groups = optimization.main.param_groups
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert groups[1]["lr"] == 0.5
    assert set(optimization.parameters()) >= {"p/shared.weight", "p/own.bias"}
    start = own.weight.detach().clone()
    optimization.update({"p/own.weight": torch.ones(1, 1)})
    assert not torch.equal(own.weight, start)


def test_a_phase_with_an_optimiser_of_its_own_leaves_modules_that_have_one_to_it() -> None:
    optimization, own = Optimization(sgd(), small()), nn.Linear(1, 1)
    optimization.add("p/own", Trainable(own, optimizer=lambda p: torch.optim.SGD(p, lr=0.5)))
    optimization.begin_phase(lambda p: torch.optim.SGD(p, lr=3.0), frozenset(optimization.parameters()))
    start, model_start = own.weight.detach().clone(), dict(optimization.parameters())["encoder.weight"].detach().clone()
    optimization.update({"p/own.weight": torch.ones(1, 1), "encoder.weight": torch.ones(2, 2)})
    torch.testing.assert_close(own.weight.detach(), start - 0.5)
    torch.testing.assert_close(dict(optimization.parameters())["encoder.weight"].detach(), model_start - 3.0)


def test_an_absent_gradient_moves_nothing_though_there_is_momentum() -> None:
    model = small()
    optimization = Optimization(sgd(), model)
    optimization.update({n: torch.ones_like(p) for n, p in model.named_parameters()})
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimization.update({"encoder.weight": torch.zeros(2, 2)})
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, start[n])}
    assert moved == {"encoder.weight"}, "a zero gradient moves by momentum, an absent one does not"


@pytest.mark.parametrize("factory", [sgd(), adam])
def test_state_by_name_comes_back(factory: Any) -> None:
    def made() -> tuple[Model, Optimization]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = small()
        return model, Optimization(factory, model)

    (one, first), (two, second) = made(), made()
    first.update({n: torch.ones_like(p) for n, p in one.named_parameters()})
    first.main.param_groups[0]["lr"] = 0.3
    two.load_state_dict(one.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # a checkpoint holds copies
    assert same(first.state_dict(), second.state_dict())
    for each, model in ((first, one), (second, two)):
        each.update({n: 0.5 * torch.ones_like(p) for n, p in model.named_parameters()})
    assert same(dict(one.state_dict()), dict(two.state_dict()))
    with pytest.raises(ConfigurationError, match="state of optimizer 'own:p/x', which this strategy does not have"):
        second.load_state_dict({"own:p/x": {"state": {}, "groups": []}})


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        (
            lambda p: torch.optim.SGD(p, lr=-1.0),
            "the optimizer could not be built: Invalid learning rate: -1.0; give a function of the parameters",
        ),
        (lambda p: None, "must return a torch optimizer, it returned NoneType"),
        (lambda: None, "the optimizer could not be built"),
    ],
)
def test_what_is_no_optimizer_is_refused(factory: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        Engine(net(), factory).run(growing_stream(known=True))


def test_state_that_cannot_be_grown_is_dropped() -> None:
    """Adafactor keeps rows and columns of a matrix, which have other shapes than it."""
    stream = growing_stream()
    result = Engine(models.mlp(stream, (8,)), lambda p: torch.optim.Adafactor(p, lr=0.01), batch_size=20).run(stream)
    assert result.is_complete
