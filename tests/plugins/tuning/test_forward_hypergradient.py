from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, Plugin, models, streams
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import EWC, MAML, SAM, Clipping, L2Anchor, LwF, PCGrad, Replay, UncertaintyWeighting
from streamlearn.plugins.tuning.forward_hypergradient import ForwardHypergradient
from streamlearn.plugins.tuning.hypergradient import Hypergradient
from streamlearn.streams import Stream
from tests.core.support import class_stream, final, growing_stream, net, probe, same, sgd, smooth, stopped_or_straight, two_task_stream

DOUBLE = torch.float64


def held_out_stream(experiences: int = 2) -> Stream:
    return streams.validation(two_task_stream(DOUBLE, experiences=experiences), 0.25)


def tuned(events: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [event["values"] for event in events if event["event"] == "tuning"]


def loss_at(model: Any, parameters: dict[str, Tensor], batch: Any) -> Tensor:
    outputs = {task: torch.func.functional_call(model, parameters, (batch.x, task)) for task in batch.targets}
    losses = [nn.functional.cross_entropy(outputs[task], target) for task, target in batch.targets.items()]
    return sum(losses[1:], losses[0])


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.0, "weight_decay": 0.0},
    "decay": {"momentum": 0.0, "weight_decay": 0.05},
    "momentum": {"momentum": 0.9, "weight_decay": 0.05},
    "nesterov": {"momentum": 0.9, "weight_decay": 0.05, "nesterov": True},
}


@pytest.mark.parametrize("name", ["l2.strength", "weight_decay", "learning_rate"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_it_is_the_gradient_through_all_steps_unrolled(kind: str, name: str) -> None:
    """The steps of the second experience made again with a graph, from where it began; the loss on held-out rows after the last."""
    settings, beta = {"lr": 0.1} | OPTIMIZERS[kind], 1.0
    if name == "weight_decay" and settings["weight_decay"] == 0.0:
        settings["weight_decay"] = 0.01
    kept: dict[str, Any] = {"batches": []}

    def before(experience: Any, run: Any) -> None:
        kept.update(start=run.snapshot(), batches=[], run=run)
        buffers = run.optimization.main.state
        kept["velocity"] = {key: buffers.get(p, {}).get("momentum_buffer") for key, p in run.parameters().items()}
        kept["velocity"] = {key: None if v is None else v.clone() for key, v in kept["velocity"].items()}

    plugins = [
        ForwardHypergradient(tune=(name,), rate=beta, every=6),
        L2Anchor(strength=0.5),
        probe("look", before_experience=before, before_step=lambda step: kept["batches"].append(step.batch)),
    ]
    stream = held_out_stream()
    model = smooth(stream.tasks)
    engine = Engine(model, lambda p: torch.optim.SGD(p, **settings), plugins, batch_size=6, epochs=2, seed=3)
    values = tuned(engine.run(stream).events)
    assert len(kept["batches"]) == 6

    first = values[1][name]  # what the second experience began with
    h = torch.tensor(first, dtype=DOUBLE, requires_grad=True)
    lr = h if name == "learning_rate" else settings["lr"]
    decay = h if name == "weight_decay" else settings["weight_decay"]
    strength = h if name == "l2.strength" else 0.5
    theta, anchor, velocity = dict(kept["start"]), kept["start"], kept["velocity"]
    theta = {key: value.clone().requires_grad_() for key, value in theta.items()}
    for batch in kept["batches"]:
        penalty = sum(0.5 * (theta[key] - anchor[key]).square().sum() for key in theta)
        total = loss_at(model, theta, batch) + strength * penalty
        gradients = dict(zip(theta, torch.autograd.grad(total, list(theta.values()), create_graph=True), strict=True))
        for key, gradient in gradients.items():
            direction = gradient + decay * theta[key]
            if settings["momentum"]:
                velocity[key] = direction if velocity[key] is None else settings["momentum"] * velocity[key] + direction
                direction = direction + settings["momentum"] * velocity[key] if settings.get("nesterov") else velocity[key]
            theta[key] = theta[key] - lr * direction
    held = kept["run"].stream[1].data["validation"]
    rows = held.batch(torch.arange(len(held)), "validation")
    slope = float(torch.autograd.grad(loss_at(model, theta, rows), h)[0])
    assert abs(slope * first) > 1e-4
    assert values[3][name] == pytest.approx(first * math.exp(-beta * first * slope), rel=1e-9)


def test_after_one_step_it_is_the_hypergradient_of_that_step() -> None:
    stream = held_out_stream()

    def values(plugin: Plugin) -> list[dict[str, float]]:
        engine = Engine(smooth(stream.tasks), sgd(momentum=0.0), [plugin, EWC(strength=20.0)], batch_size=100, seed=1)
        return tuned(engine.run(stream).events)

    names = ("ewc.strength", "weight_decay", "learning_rate")
    found = values(ForwardHypergradient(tune=names, rate=2.0, every=1, name="tuner"))
    expected = values(Hypergradient(mode="t1_t2", tune=names, rate=2.0, name="tuner"))
    for a, b in zip(found, expected, strict=True):
        assert a == pytest.approx(b, rel=1e-12)
    assert len({str(value) for value in found}) == 2


def test_it_goes_on_in_real_time_and_starts_anew_with_an_experience() -> None:
    """Between two moves the derivative is kept; nothing of the experience before is in it."""
    seen: list[tuple[int, int]] = []
    plugin = ForwardHypergradient(tune=("weight_decay",), every=2)
    watch = probe("watch", after_step=lambda step: seen.append((step.run.clock.experience, plugin._steps)))
    Engine(smooth(held_out_stream().tasks), sgd(), [plugin, watch], batch_size=6).run(held_out_stream())
    assert seen == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)]


def test_a_longer_horizon_sees_what_one_step_does_not() -> None:
    """Ill-conditioned least squares, where a gradient through one step is biased towards small rates (Wu et al. 2018)."""
    from streamlearn.streams import Task
    from streamlearn.streams.data import Data, Target
    from streamlearn.streams.sources import TensorSource
    from tests.core.support import stream_of

    draw = torch.Generator().manual_seed(1)
    x = torch.randn(200, 6, generator=draw, dtype=DOUBLE) * torch.tensor([1.0, 0.5, 0.2, 0.1, 0.1, 0.1], dtype=DOUBLE)
    y = x @ torch.tensor([1.0, 1.0, 2.0, 4.0, 4.0, 4.0], dtype=DOUBLE)[:, None]
    task = Task("r", size=1, kind="regression")
    data = Data(TensorSource(x, {"y": y}, "slopes"), torch.arange(200), (task,), {"r": Target("y")})
    stream = streams.validation(stream_of([(data, (task,))], (task,)), 0.25)

    def end(*plugins: Plugin) -> float:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = models.Model(nn.Identity(), models.Heads(6, stream.tasks)).to(DOUBLE)
        engine = Engine(model, lambda p: torch.optim.SGD(p, lr=0.02), list(plugins), batch_size=200, epochs=100, evaluate="never")
        return [event for event in engine.run(stream).events if event["event"] == "epoch"][-1]["losses"]["r"]

    fixed, forward = end(), end(ForwardHypergradient(tune=("learning_rate",), rate=0.2, every=5))
    one_step = end(Hypergradient(mode="t1_t2", tune=("learning_rate",), rate=0.2))  # five times as many moves
    assert forward < 0.9 * one_step < 0.9 * fixed


# ---------------------------------------------------------------------------------------------------- composition, state, errors


def test_it_resumes_bit_for_bit(tmp_path: Path) -> None:
    def engine(**options: Any) -> Engine:
        tuner = ForwardHypergradient(tune=("ewc.strength", "lwf.strength", "learning_rate"), every=2, rows=5)
        plugins = [tuner, EWC(strength=3), LwF(), Replay(batch_size=4, capacity=20)]
        return Engine(net(), sgd(), plugins, batch_size=4, drop_last=True, checkpoint_every=1, **options)

    straight, log = stopped_or_straight(engine, class_stream, tmp_path / "straight")
    assert len({str(values) for values in tuned([json.loads(line) for line in log.splitlines()])}) == 3
    for update in (5, 7):
        stopped, again = stopped_or_straight(engine, class_stream, tmp_path / f"stopped{update}", update)
        assert again == log
        assert same(stopped, straight)


@pytest.mark.parametrize("others", [[UncertaintyWeighting()], [SAM()], [LwF(), Replay(batch_size=4, capacity=20)]])
def test_beside_others_on_growing_heads(others: list[Plugin]) -> None:
    stream = growing_stream()
    model = models.Model(nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.2)), models.Heads(12, ()))
    plugin = ForwardHypergradient(tune=("ewc.strength", "weight_decay"), every=2)
    events = Engine(model, sgd(), [plugin, *others, EWC(strength=3)], batch_size=6, epochs=2).run(stream).events
    values = tuned(events)
    assert all(math.isfinite(value) for found in values for value in found.values())
    assert values[-1]["ewc.strength"] != 3.0
    assert values[-1]["weight_decay"] != 0.01


def test_under_a_look_ahead_and_where_torch_gives_up() -> None:
    stream = held_out_stream()
    plugins = [ForwardHypergradient(tune=("maml.rate",), every=2, rate=10.0), MAML(rate=0.1, support="train", query="*")]
    assert tuned(Engine(smooth(stream.tasks), sgd(), plugins, batch_size=6).run(stream).events)[-1]["maml.rate"] != 0.1
    with pytest.raises(ConfigurationError, match="torch cannot differentiate the gradient of this objective once more"):
        Engine(net(outputs=6), sgd(), plugins, batch_size=6, drop_last=True).run(class_stream())


def test_weights_and_buffers_are_those_of_a_run_without_it() -> None:
    def end(*plugins: Plugin) -> dict[str, Tensor]:
        others = [EWC(strength=3), Replay(batch_size=4, capacity=20)]
        return final(Engine(net(), sgd(), [*plugins, *others], batch_size=4), streams.validation(class_stream(), 0.25))[0]

    expected, found = end(), end(ForwardHypergradient(tune=("ewc.strength",), rate=1e-300, every=1))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(
    ("plugins", "optimizer", "message"),
    [
        ([], lambda p: torch.optim.Adam(p, weight_decay=0.1), "steps of Adam are not differentiated: take SGD"),
        ([], lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, dampening=0.1, weight_decay=0.1), "take SGD, without dampening"),
        ([PCGrad()], sgd(), "pcgrad acts on gradients or updates: leave it out, or take hypergradient"),
        ([Clipping()], sgd(), "clipping acts on gradients or updates"),
        ([Hypergradient(mode="t1_t2", tune=("weight_decay",))], sgd(), "both move weight_decay"),
    ],
    ids=["adam", "dampening", "combiner", "projection", "two tuners"],
)
def test_what_cannot_be_right_is_refused(plugins: list[Plugin], optimizer: Callable[..., Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Engine(net(), optimizer, [ForwardHypergradient(tune=("weight_decay",)), *plugins]).run(class_stream())
    with pytest.raises(ConfigurationError, match="name each number once"):
        ForwardHypergradient(tune=("a.b", "a.b"))
