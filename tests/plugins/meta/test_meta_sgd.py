"""Meta-SGD against a loop by hand; what its rates are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from streamlearn import Engine, streams
from streamlearn.core.rates import rate_key
from streamlearn.models import Heads, Model
from streamlearn.plugins import EWC, MAML, LwF, MetaSGD, PCGrad, UncertaintyWeighting
from streamlearn.results import final_values
from streamlearn.streams import Stream
from tests.core.support import growing_stream, probe, same, sgd, stopped_or_straight, two_task_stream

SUPPORT, QUERY, BATCH = 5, 4, 3


def sinusoids(episodes: int = 12) -> Stream:
    return streams.episodes("sinusoids", shots=SUPPORT, queries=QUERY, train_episodes=episodes, test_episodes=7)


def tanh_net(stream: Stream) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(nn.Sequential(nn.Linear(1, 8), nn.Tanh()), Heads(8, stream.tasks))


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.02)


def by_hand(steps: int, per: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """θ and α after one epoch in plain torch."""
    stream = sinusoids()
    model = tanh_net(stream)
    weights = dict(model.named_parameters())
    size = (lambda p: p.detach()) if per == "entry" else (lambda p: p.detach().sum())
    rates = {name: torch.full_like(size(p), 0.1).requires_grad_() for name, p in weights.items()}
    optimizer = adam([*weights.values(), *rates.values()])
    seen: list[Any] = []
    look = probe("look", after_step=lambda step: seen.append(step.batch))
    Engine(tanh_net(stream), sgd(lr=0.0), [look], batch_size=BATCH, seed=4).run(stream)  # the same batches
    for batch in seen:
        x, y, total = batch.x, batch.targets["sinusoids"], 0.0
        for e in range(BATCH):
            inner, outer = slice(e * SUPPORT, (e + 1) * SUPPORT), slice(BATCH * SUPPORT + e * QUERY, BATCH * SUPPORT + (e + 1) * QUERY)
            fast: dict[str, Tensor] = dict(weights)
            error = lambda w, rows: (functional_call(model, w, (x[rows], "sinusoids")) - y[rows]).square().mean()  # noqa: B023, E731
            for _ in range(steps):
                found = torch.autograd.grad(error(fast, inner), list(fast.values()), create_graph=True)
                fast = {name: fast[name] - rates[name] * gradient for name, gradient in zip(fast, found, strict=True)}
            total = total + error(fast, outer) / BATCH
        optimizer.zero_grad()
        total.backward()  # type: ignore[attr-defined]
        optimizer.step()
    return {name: p.detach() for name, p in weights.items()}, {name: p.detach() for name, p in rates.items()}


@pytest.mark.parametrize("how", [{"executor": "loop"}, {"executor": "vmap"}, {"recompute": True}], ids=["loop", "vmap", "adjoint"])
@pytest.mark.parametrize("per", ["entry", "parameter"])
def test_it_equals_a_loop_by_hand(per: Any, how: dict[str, Any]) -> None:
    weights, rates = by_hand(2, per)
    learned: dict[str, Tensor] = {}

    def keep(run: Any) -> None:
        learned.update({name: run.modules[f"meta_sgd/{rate_key(name)}"].value.detach().clone() for name in rates})

    stream = sinusoids()
    plugins = [MetaSGD(steps=2, rate=0.1, per=per, **how), probe("keep", after_run=keep)]
    model = Engine(tanh_net(stream), adam, plugins, batch_size=BATCH, seed=4).run(stream).model
    assert model is not None
    for name, value in weights.items():
        torch.testing.assert_close(model.get_parameter(name).detach(), value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(learned[name], rates[name], rtol=1e-4, atol=1e-5)
    assert any(float((rate - 0.1).abs().max()) > 0.01 for rate in rates.values()), "the rates have learnt something"


def test_one_step_at_learnt_rates_is_better_than_at_a_given_one() -> None:
    """With the error of test episodes after the same single step."""
    stream = streams.episodes("sinusoids", shots=10, queries=10, train_episodes=2000, test_episodes=100, seed=2)

    def error(plugin: Any) -> float:
        engine = Engine(tanh_net(stream), lambda p: torch.optim.Adam(p, lr=5e-3), [plugin], batch_size=20, epochs=4, evaluate="end", seed=1)
        return final_values(engine.run(stream))["sinusoids"]["mean_squared_error"]

    assert error(MetaSGD(rate=0.01)) < 0.97 * error(MAML(rate=0.01))


def test_more_steps_than_the_rates_are_learnt_for_warn() -> None:
    stream = sinusoids(3)
    with pytest.warns(UserWarning, match="evaluation_steps=5 is more than the 1 inner steps for which the rates are learnt"):
        Engine(tanh_net(stream), sgd(), [MetaSGD(evaluation_steps=5)]).run(stream)


def test_beside_others_with_heads_that_grow() -> None:
    stream = growing_stream()
    plugins = [MetaSGD(rate=0.05), EWC(strength=2.0), LwF(), UncertaintyWeighting()]
    model = Engine(Model(nn.Linear(6, 5), Heads(5, [])), sgd(), plugins, batch_size=8).run(stream).model
    assert model is not None
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    Engine(Model(nn.Linear(6, 5), Heads(5, [])), sgd(), [MetaSGD(), PCGrad()], batch_size=8).run(two_task_stream())


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def engine(**options: Any) -> Engine:
        return Engine(tanh_net(sinusoids()), adam, [MetaSGD(steps=2, rate=0.1)], batch_size=BATCH, epochs=2, **options)

    straight = stopped_or_straight(engine, sinusoids, tmp_path / "straight")
    stopped = stopped_or_straight(engine, sinusoids, tmp_path / "stopped", stop=3)
    assert same(straight[0], stopped[0])
    assert straight[1] == stopped[1]
