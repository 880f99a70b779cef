from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamlearn import Engine, models, streams
from streamlearn.plugins import EWC, MAML, SAM, Clipping, LwF, MultiHead, Replay
from streamlearn.plugins.regularization.si import SI
from tests.core.support import Stop, class_stream, final, growing_stream, net, probe, same, sgd, stop_at, two_task_stream
from tests.plugins.regularization.avalanche_oracle import avalanche_plugin, network, plain_sgd, trained, trained_by

Factory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
FACTORIES: dict[str, Factory] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov in place": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
}
RUN = {"batch_size": 12, "epochs": 4}


def recorded(batches: list[list[tuple[Tensor, Tensor]]]) -> Any:
    return probe(
        "watch",
        before_experience=lambda run: batches.append([]),
        before_step=lambda step: batches[-1].append((step.batch.x, step.batch.targets["blobs"])),
    )


def by_hand(
    batches: list[list[tuple[Tensor, Tensor]]], factory: Factory, c: float, xi: float, total: bool, clamp: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and Ω of the method, written as the equations read; the gradient of the task comes from a backward pass of its own."""
    model = network()
    named = dict(model.named_parameters())
    optimizer = factory(model.parameters())
    omega = {name: torch.zeros_like(p) for name, p in named.items()}
    anchor = {name: p.detach().clone() for name, p in named.items()}
    for steps in batches:
        path = {name: torch.zeros_like(p) for name, p in named.items()}
        for x, y in steps:
            loss = F.cross_entropy(model(x), y)
            task = torch.autograd.grad(loss, list(named.values()), retain_graph=True)
            everything = loss + c * sum((omega[n] * (p - anchor[n]) ** 2).sum() for n, p in named.items())
            optimizer.zero_grad()
            everything.backward()
            integrated = [p.grad.clone() for p in named.values() if p.grad is not None] if total else list(task)
            before = [p.detach().clone() for p in named.values()]
            optimizer.step()
            for (name, p), g, old in zip(named.items(), integrated, before, strict=True):
                path[name] -= g * (p.detach() - old)
        for name, p in named.items():
            omega[name] = omega[name] + path[name] / ((p.detach() - anchor[name]) ** 2 + xi)
            if clamp:
                omega[name] = torch.relu(omega[name])
            anchor[name] = p.detach().clone()
    return {name: p.detach().clone() for name, p in named.items()}, omega


@pytest.mark.parametrize("optimizer", list(FACTORIES))
@pytest.mark.parametrize(("gradient", "clamp"), [("task", True), ("task", False), ("total", False), ("total", True)])
def test_it_is_the_loop_written_by_hand(optimizer: str, gradient: str, clamp: bool) -> None:
    batches: list[list[tuple[Tensor, Tensor]]] = []
    plugin = SI(strength=2.0, damping=0.05, gradient=gradient, clamp=clamp)
    weights, _ = final(Engine(network(), FACTORIES[optimizer], [plugin, recorded(batches)], **RUN), class_stream())
    expected, omega = by_hand(batches, FACTORIES[optimizer], 2.0, 0.05, gradient == "total", clamp)
    for name, value in omega.items():
        torch.testing.assert_close(weights[f"encoder.{name}"], expected[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(plugin.state_dict()["importance"][f"encoder.{name}"], value, rtol=1e-3, atol=1e-4)


def test_what_overshoots_has_negative_importance_unless_it_is_clamped() -> None:
    def rough(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    lowest = {}
    for clamp in (False, True):
        batches: list[list[tuple[Tensor, Tensor]]] = []
        plugin = SI(strength=1e-3, damping=0.05, clamp=clamp)
        Engine(network(), rough, [plugin, recorded(batches)], batch_size=20, epochs=10).run(class_stream())
        _, omega = by_hand(batches, rough, 1e-3, 0.05, False, clamp)
        found = plugin.state_dict()["importance"]
        for name, value in omega.items():
            torch.testing.assert_close(found[f"encoder.{name}"], value, rtol=1e-3, atol=1e-4)
        lowest[clamp] = min(float(value.min()) for value in found.values())
    assert lowest[False] < -0.1
    assert lowest[True] == 0.0


def test_the_two_gradients_differ() -> None:
    found = [final(Engine(network(), plain_sgd, [SI(strength=5.0, gradient=g)], **RUN), class_stream())[0] for g in ("task", "total")]
    assert max(float((found[0][name] - value).abs().max()) for name, value in found[1].items()) > 1e-3


def test_avalanche_integrates_nothing_on_a_cpu() -> None:
    """Its copies of the weights are views of the weights themselves, so that no step has moved them; here Ω is not zero."""
    plugin = SI(strength=1.0)
    _, batches = trained(plugin)
    theirs = avalanche_plugin("SynapticIntelligencePlugin")(si_lambda=1.0)
    trained_by(theirs, batches)
    assert all(float(torch.as_tensor(value.data).abs().max()) == 0.0 for value in theirs.ewc_data[1].values())
    assert all(float(value.max()) > 0 for value in plugin.state_dict()["importance"].values())


@pytest.mark.parametrize("parts", [1, 3])
def test_the_gradient_is_from_before_clipping_and_the_way_from_after_it(parts: int) -> None:
    """Whatever the number of parts that a batch is worked on in; the clipped gradient would be a tenth as long."""
    expected: dict[str, Tensor] = {}
    lengths: list[tuple[float, float]] = []
    seen: list[dict[str, Tensor]] = []
    plugin = SI(strength=1.0)

    def around(update: Any, gradients: Any, step: Any) -> None:
        parameters = step.run.parameters()
        raw, old = {name: p.grad.clone() for name, p in parameters.items()}, step.run.snapshot()
        lengths.append(tuple(float(sum(g.square().sum() for g in found.values()).sqrt()) for found in (raw, gradients)))
        update(gradients)
        for name, g in raw.items():
            expected[name] = expected.get(name, 0.0) - g * (parameters[name].detach() - old[name])

    look = probe("look", around_update=around, after_epoch=lambda: seen.append(plugin.state_dict()["path"]))
    plugins = [Clipping(max_norm=0.05), plugin, look]
    Engine(network(), plain_sgd, plugins, batch_size=12, microbatches=parts).run(class_stream(1))
    assert all(clipped < 0.2 * raw for raw, clipped in lengths)
    assert seen[0].keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(seen[0][name], value, rtol=1e-5, atol=1e-9)


def test_it_forgets_less_on_digits() -> None:
    def accuracy(*plugins: Any) -> float:
        stream = streams.task_incremental("digits", 5)
        engine = Engine(models.mlp(stream, (32,)), sgd(lr=0.05, weight_decay=0.0), plugins, epochs=3, seed=1)
        return float(engine.run(stream).metrics["average_accuracy"])

    without = accuracy()
    assert accuracy(SI(strength=1.0, damping=0.01)) > without + 0.02
    assert accuracy(SI(strength=1.0, damping=0.01, gradient="total", clamp=False)) > without + 0.02


def test_absent_heads_are_not_held_and_those_that_grow_start_free() -> None:
    plugin = SI(strength=1.0)
    kept: list[dict[str, Any]] = []
    watch = probe("watch", after_epoch=lambda: kept.append(plugin.state_dict()))
    Engine(models.mlp(growing_stream(known=True), (8,)), sgd(), [plugin, watch], batch_size=10).run(growing_stream(known=True))
    assert all("heads.by_task.other.weight" not in state["importance"] for state in kept)
    grown: list[Tensor] = []
    plugin = SI(strength=1.0)
    watch = probe("watch", before_epoch=lambda: grown.append(plugin.state_dict()["importance"].get("heads.by_task.t.weight")))
    beside = [MultiHead(), plugin, watch, EWC(strength=1.0), LwF(), Replay(capacity=10)]
    weights, _ = final(Engine(models.mlp(growing_stream(), (8,)), sgd(), beside, batch_size=10), growing_stream())
    assert grown[0] is None
    assert [tuple(value.shape) for value in grown[1:]] == [(4, 8), (6, 8), (6, 8)]
    assert float(grown[1][:2].max()) > 0
    assert float(grown[1][2:].abs().max()) == 0.0
    assert all(bool(value.isfinite().all()) for value in weights.values())


@pytest.mark.parametrize("ahead", [SAM(), MAML()], ids=["sam", "maml"])
def test_beside_a_look_ahead_the_term_is_seen_there(ahead: Any) -> None:
    def run(*plugins: Any) -> dict[str, Tensor]:
        stream = two_task_stream(experiences=2)
        return final(Engine(models.mlp(stream, (8,)), sgd(), plugins, batch_size=8), stream)[0]

    held, free = run(SI(strength=20.0, damping=0.01), ahead), run(ahead)
    assert all(bool(value.isfinite().all()) for value in held.values())
    assert any(not torch.allclose(held[name], free[name], atol=1e-4) for name in held)


@pytest.mark.parametrize("update", [3, 7, 8, 10])
def test_a_run_resumed_in_mid_experience_is_the_uninterrupted_one(update: int, tmp_path: Path) -> None:
    def engine(plugin: SI, **options: Any) -> Engine:
        return Engine(net(), sgd(), [plugin], batch_size=10, epochs=2, **options)

    straight, resumed = SI(strength=1.0), SI(strength=1.0)
    expected, _ = final(engine(straight), class_stream())
    with pytest.raises(Stop):
        engine(SI(strength=1.0), progress=stop_at(update), checkpoint_every=1).run(class_stream(), output=tmp_path)
    result = engine(resumed, checkpoint_every=1).resume(tmp_path, class_stream())
    assert same(dict(result.model.state_dict()), expected)
    assert same(resumed.state_dict(), straight.state_dict())


def test_a_state_that_was_given_does_not_go_on_changing() -> None:
    plugin, other = SI(), SI()
    states: list[Any] = []
    watch = probe("watch", after_step=lambda: states.append(plugin.state_dict()))
    Engine(network(), plain_sgd, [plugin, watch], batch_size=10).run(class_stream(1))
    first, second = (state["path"]["encoder.0.weight"] for state in states[:2])
    assert not torch.equal(first, second)
    other.load_state_dict(states[0])
    other._path["encoder.0.weight"].add_(1)
    assert torch.equal(states[0]["path"]["encoder.0.weight"], first)
    assert not torch.equal(other.state_dict()["path"]["encoder.0.weight"], first)


def test_strength_zero_keeps_nothing() -> None:
    plugin = SI(strength=0)
    Engine(net(), sgd(), [plugin]).run(class_stream())
    assert plugin.state_dict() == {"path": {}, "importance": {}, "anchor": {}}
