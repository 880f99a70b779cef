from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from streamlearn import Engine, models, streams
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import DANN, Replay
from streamlearn.plugins.adaptation.dann import domain_loss, ramp_up, reverse_gradient
from tests.core.support import Stop, class_stream, final, net, probe, same, sgd, stop_at
from tests.integration.test_resume import everything

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def test_reversal_changes_the_sign_of_gradients_to_any_order() -> None:
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.equal(reverse_gradient(x, 0.3), x)
    (first,) = torch.autograd.grad((reverse_gradient(x, 0.3) ** 3).sum(), x, create_graph=True)
    torch.testing.assert_close(first, -0.3 * 3 * x**2)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert bool(second.abs().gt(0).all())


def test_the_ramp_and_the_loss_by_hand() -> None:
    assert ramp_up(0.25, 10.0) == pytest.approx(2 / (1 + math.exp(-2.5)) - 1)
    source, target = torch.randn(6, 1), torch.randn(6, 1)
    joint, labels = torch.cat([source, target]), torch.cat([torch.zeros(6, 1), torch.ones(6, 1)])
    torch.testing.assert_close(domain_loss(source, target), F.binary_cross_entropy_with_logits(joint, labels))


def moons() -> streams.Stream:
    return streams.adaptation("moons", rows=40)


def model() -> models.Model:
    torch.manual_seed(3)
    return models.Model(nn.Sequential(nn.Linear(2, 6), nn.Sigmoid()), models.Heads(6, moons().tasks))


@pytest.mark.parametrize("ramped", ["both", "features"])
def test_a_run_equals_a_plain_loop(ramped: str) -> None:
    """Features, head and discriminator after each update, by a loop written out, with the rows of the run."""
    plugin = DANN(hidden=(5,), strength=0.7, ramped=ramped)
    batches: list[Any] = []
    start: dict[str, torch.Tensor] = {}

    def before(step: Any) -> None:
        batches.append((step.batch, step.run.clock.progress))
        if not start:
            start.update({name: p.detach().clone() for name, p in step.run.parameters().items()})

    watch = probe("watch", before_step=before)
    result = Engine(model, lambda p: torch.optim.SGD(p, lr=0.1), [plugin, watch], epochs=2, batch_size=10).run(moons())

    names = list(start)
    w = {name: value.clone().requires_grad_() for name, value in start.items()}
    encoder, head, d = names[:2], names[2:4], names[4:]
    for batch, progress in batches:
        features = torch.sigmoid(F.linear(batch.x, w[encoder[0]], w[encoder[1]]))
        train, target = batch.rows("train"), batch.rows("target")
        task = next(iter(batch.targets))
        classified = F.cross_entropy(F.linear(features[train], w[head[0]], w[head[1]]), batch.targets[task][train])
        hidden = F.relu(F.linear(torch.cat([features[train], features[target]]), w[d[0]], w[d[1]]))
        domains = torch.cat([torch.zeros(10, 1), torch.ones(10, 1)])
        domain = F.binary_cross_entropy_with_logits(F.linear(hidden, w[d[2]], w[d[3]]), domains)
        factor = 0.7 * ramp_up(progress, 10.0)
        shared = [w[name] for name in encoder + head]
        plain = torch.autograd.grad(classified - factor * domain, shared, retain_graph=True)
        own = torch.autograd.grad(domain * (factor if ramped == "both" else 1.0), [w[name] for name in d])
        with torch.no_grad():
            for value, gradient in zip([*shared, *(w[name] for name in d)], [*plain, *own], strict=True):
                value.sub_(0.1 * gradient)
    trained = dict(result.model.named_parameters())  # type: ignore[attr-defined]
    for name in encoder + head:
        torch.testing.assert_close(trained[name].detach(), w[name].detach(), rtol=1e-4, atol=1e-6)


def test_memory_rows_stay_out_and_without_target_rows_nothing_happens() -> None:
    plain, _ = final(Engine(net(), sgd(), [Replay(capacity=9)], batch_size=10), class_stream())
    assert same(plain, final(Engine(net(), sgd(), [Replay(capacity=9), DANN()], batch_size=10), class_stream())[0])
    off, _ = final(Engine(model, sgd(), batch_size=10), moons())
    assert same(off, final(Engine(model, sgd(), [DANN(strength=0.0)], batch_size=10), moons())[0])


@pytest.mark.parametrize("place", [1, 5])
def test_stopped_and_resumed_equals_the_straight_run(tmp_path: Path, place: int) -> None:
    def engine(**options: Any) -> Engine:
        return Engine(model, sgd(), [DANN(tap="encoder.0")], epochs=2, batch_size=10, checkpoint_every=1, **options)

    engine().run(moons(), output=tmp_path / "straight")
    with pytest.raises(Stop):
        engine(progress=stop_at(place)).run(moons(), output=tmp_path / "broken")
    engine().resume(tmp_path / "broken", moons())
    assert same(everything(tmp_path / "straight"), everything(tmp_path / "broken"))


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="plugin dann: option 'strength'"):
        DANN(strength=-1.0)
    with pytest.raises(ConfigurationError, match=r"'encoder\.9', which the model does not have"):
        Engine(model, sgd(), [DANN(tap="encoder.9")]).run(moons())


def test_on_two_moons_it_finds_the_target_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's recipe on seeds of its own, for a third of the epochs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("dann_benchmark", BENCHMARKS / "dann.py")
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "dann_benchmark", benchmark)
    spec.loader.exec_module(benchmark)
    monkeypatch.setitem(benchmark.SETTINGS, "epochs", 170)
    adapted = [benchmark.one([DANN()], seed)["accuracy"] for seed in (31, 32)]
    plain = [benchmark.one([], seed)["accuracy"] for seed in (31, 32)]
    assert sum(adapted) > sum(plain) + 0.1
