from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, Plugin, streams
from streamlearn.core.priors.prior import Prior
from streamlearn.errors import CompositionError, ConfigurationError
from streamlearn.models import Model
from streamlearn.plugins import EWC, MMoE, MultiHead, Replay
from streamlearn.plugins.meta.anml import ANML, HEAD, NETWORK, GatedEncoder
from streamlearn.plugins.meta.from_prior import FromPrior
from streamlearn.streams import Batch, Stream
from tests.core.support import blobs, class_stream, final, growing_stream, net, probe, same, sgd, smooth, stopped_or_straight
from tests.plugins.meta.characters import accuracy, trained, trajectories

SGD = sgd(lr=0.05, momentum=0.0, weight_decay=0.0)
TASK = "blobs/3-way"
PARTS = ("encoder.prediction.", "encoder.modulation.", "encoder.gate.", "heads.")


def episodes(count: int = 6) -> Stream:
    source = blobs(120, 12, dtype=torch.float64)
    return streams.episodes(source, ways=3, shots=2, queries=2, train_episodes=count, test_episodes=2, held_out=0.4)


def outputs(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The whole network written out."""

    def linear(inputs: Tensor, name: str) -> Tensor:
        return inputs @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    gates = 1 / (1 + torch.exp(-linear(linear(x, "encoder.modulation.0").tanh(), "encoder.gate")))
    return linear(linear(x, "encoder.prediction.0").tanh() * gates, f"heads.by_task.{TASK}")


def outer(theta: Mapping[str, Tensor], batch: Batch, *, plastic: tuple[str, ...] = NETWORK, order: int = 2, rate: float = 0.4) -> Tensor:
    """The outer loss of one episode of six support and six query rows, as a plain loop."""
    target, patterns = batch.targets[TASK], tuple(pattern.rstrip("*") for pattern in plastic)
    moving = {name: value for name, value in theta.items() if name.startswith(patterns)}
    for row in range(6):
        loss = nn.functional.cross_entropy(outputs({**theta, **moving}, batch.x[row : row + 1]), target[row : row + 1])
        slopes = torch.autograd.grad(loss, list(moving.values()), create_graph=order == 2)
        moving = {name: value - rate * slope for (name, value), slope in zip(moving.items(), slopes, strict=True)}
    return nn.functional.cross_entropy(outputs({**theta, **moving}, batch.x), target)


def steps_of(*plugins: Plugin, stream: Stream, batch_size: int = 2) -> list[tuple[Batch, dict[str, Tensor], dict[str, Tensor]]]:
    """Batch, weights and gradients of each step."""
    found: list[Any] = []

    def look(gradients: Any, step: Any) -> Any:
        theta = {name: p.detach().clone().requires_grad_() for name, p in step.run.model.named_parameters()}
        found.append((step.batch, theta, {name: g.clone() for name, g in gradients.items()}))
        return gradients

    watch = probe("watch", transform_gradients=look)
    Engine(smooth(stream.tasks), SGD, [*plugins, watch], batch_size=batch_size, seed=4, evaluate="never").run(stream)
    return found


# ------------------------------------------------------------------------------------------------ the network


def test_the_features_are_gated_by_a_second_network() -> None:
    stream = episodes()
    model = Engine(smooth(stream.tasks), SGD, [ANML(steps=0)], iterations=1, evaluate="never").run(stream).model
    assert isinstance(model, Model)
    assert isinstance(model.encoder, GatedEncoder)
    x = torch.randn(7, 6, dtype=torch.float64)
    torch.testing.assert_close(model(x), outputs(dict(model.named_parameters()), x), rtol=1e-12, atol=1e-12)
    gates = model.encoder.gates(x)
    assert gates.shape == (7, 5)
    assert 0 < float(gates.min().detach()) < float(gates.max().detach()) < 1

    begun = steps_of(ANML(), stream=stream)[0][1]
    given = dict(smooth(stream.tasks).named_parameters())
    assert torch.equal(begun["encoder.prediction.0.weight"], given["encoder.0.weight"]), "the encoder that was given"
    assert not torch.equal(begun["encoder.modulation.0.weight"], given["encoder.0.weight"]), "drawn anew"


def test_what_is_gated_away_neither_acts_nor_learns() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = GatedEncoder(nn.Linear(3, 4), nn.Linear(3, 4), 4)
        head, x = nn.Linear(4, 2), torch.randn(5, 3)
    with torch.no_grad():
        encoder.gate.weight.zero_()
        encoder.gate.bias.copy_(torch.tensor([200.0, -200.0, 0.0, -200.0]))
    features = encoder(x)
    torch.testing.assert_close(features, encoder.prediction(x) * torch.tensor([1.0, 0.0, 0.5, 0.0]))
    head(features).square().sum().backward()
    for column in (1, 3):
        assert float(head.weight.grad[:, column].abs().max()) == 0  # type: ignore[index]
        assert float(encoder.prediction.weight.grad[column].abs().max()) == 0  # type: ignore[index, union-attr]
    assert float(head.weight.grad[:, 0].abs().min()) > 0  # type: ignore[index]


# ------------------------------------------------------------------------------------------------ the gradient


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("plastic", [NETWORK, HEAD])
def test_it_equals_a_loop_by_hand(plastic: tuple[str, ...], order: Any) -> None:
    found = steps_of(ANML(rate=0.4, plastic=plastic, order=order), stream=episodes())
    assert len(found) == 3
    for batch, theta, gradients in found:
        losses = [outer(theta, episode, plastic=plastic, order=order) for episode in batch.by_domain().values()]
        wanted = torch.autograd.grad(torch.stack(losses).mean(), list(theta.values()))
        assert gradients.keys() == theta.keys(), "the outer step moves both networks"
        for name, value in zip(theta, wanted, strict=True):
            torch.testing.assert_close(gradients[name], value, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("plastic", [NETWORK, HEAD])
def test_it_equals_finite_differences(plastic: tuple[str, ...]) -> None:
    """Of the whole outer loss with respect to both networks and the heads; the authors' code is first-order, and differs."""
    (batch, theta, exact), *_ = steps_of(ANML(rate=0.4, plastic=plastic), stream=episodes(1))
    first = steps_of(ANML(rate=0.4, plastic=plastic, order=1), stream=episodes(1))[0][2]
    for part in PARTS:
        wanted, mine, other = [], [], []
        for name in (name for name in theta if name.startswith(part)):
            slope = torch.zeros_like(theta[name])
            for place in range(slope.numel()):
                ends = []
                for sign in (1, -1):
                    moved = theta[name].detach().clone()
                    moved.view(-1)[place] += sign * 1e-5
                    ends.append(outer({**theta, name: moved.requires_grad_()}, batch, plastic=plastic).detach())
                slope.view(-1)[place] = (ends[0] - ends[1]) / 2e-5
            wanted.append(slope.flatten())
            mine.append(exact[name].flatten())
            other.append(first[name].flatten())
        size = torch.cat(wanted).norm()
        assert float((torch.cat(mine) - torch.cat(wanted)).norm() / size) < 1e-6
        assert float((torch.cat(other) - torch.cat(wanted)).norm() / size) > 0.1


def test_at_once_and_one_by_one_and_computed_anew_agree() -> None:
    ways: list[dict[str, Any]] = [{"executor": "loop"}, {"executor": "vmap"}, {"executor": "vmap", "chunk": 2}, {"recompute": True}]
    runs = [steps_of(ANML(rate=0.4, rows=2, **how), stream=episodes(), batch_size=3) for how in ways]
    for other in runs[1:]:
        for (_, _, one), (_, _, two) in zip(runs[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-13)


# ------------------------------------------------------------------------------------------------ beside others


def test_heads_grow_and_others_act() -> None:
    stream = growing_stream()

    def run(*plugins: Plugin) -> dict[str, Tensor]:
        return final(Engine(smooth(stream.tasks, torch.float32), SGD, [ANML(rate=0.1, rows=5), *plugins], batch_size=10), stream)[0]

    alone = run()
    assert alone["heads.by_task.t.weight"].shape == (6, 5)
    for plugin in (EWC(strength=100.0), Replay(capacity=12)):
        found = run(plugin)
        assert not same(found, alone)
        assert all(bool(value.isfinite().all()) for value in found.values())


def test_it_says_what_it_cannot_do() -> None:
    stream = class_stream()
    with pytest.raises(ConfigurationError, match="anml needs a Model with a linear head for each task"):
        Engine(net(), SGD, [ANML()]).run(stream)
    Engine(net(dropout=0.0), SGD, [ANML(rows=8), MultiHead()], batch_size=8, iterations=1).run(stream[:1])
    with pytest.raises(CompositionError, match="sharing"):
        Engine(smooth(stream.tasks, torch.float32), SGD, [ANML(), MMoE()])
    with pytest.raises(ConfigurationError, match="no parameter matches plastic"):
        Engine(smooth(stream.tasks, torch.float32), SGD, [ANML(plastic=("encoder.0.*",))]).run(stream)


def test_a_resumed_run_ends_as_one_that_was_not_stopped(tmp_path: Path) -> None:
    def engine(**options: Any) -> Engine:
        plugins = [ANML(rate=0.1, rows=4, support="train"), Replay(capacity=12)]
        return Engine(lambda: smooth(class_stream().tasks, torch.float32), sgd(), plugins, batch_size=8, checkpoint_every=1, **options)

    straight = stopped_or_straight(engine, class_stream, tmp_path / "straight")
    assert same(straight, stopped_or_straight(engine, class_stream, tmp_path / "stopped", 5))


# ------------------------------------------------------------------------------------------------ what it is for


def test_a_prior_that_it_has_learnt_forgets_less() -> None:
    learner = ANML(rate=0.1)
    prior = Prior.of(trained(trajectories(), learner, batch_size=8), learner)
    rates = (0.01, 0.03, 0.1)
    assert accuracy(rates, ANML(steps=0), FromPrior(prior=prior)) > accuracy(rates, ANML(steps=0)) + 0.2
