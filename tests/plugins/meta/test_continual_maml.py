from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from streamlearn import Engine, Plugin, streams
from streamlearn.errors import CompositionError, ConfigurationError
from streamlearn.models import Heads, Model
from streamlearn.plugins import AGEM, EWC, MAML, LwF, Replay, UncertaintyWeighting
from streamlearn.plugins.meta.continual_maml import ContinualMAML, modulated
from streamlearn.streams import Batch, Stream, Task
from streamlearn.streams.data import Data, Target
from tests.core.support import (
    blobs,
    class_stream,
    final,
    growing_stream,
    net,
    probe,
    same,
    sgd,
    smooth,
    stopped_or_straight,
    stream_of,
    two_task_stream,
)

CLASSES = 4


def switching_stream(pieces: int = 4, rows: int = 24, dtype: Any = torch.float64, orders: int = 4) -> Stream:
    """The same inputs throughout, but their classes change places from experience to experience; ``orders`` of them come in turn."""
    source, task = blobs(rows * pieces, CLASSES, dtype=dtype), Task("blobs", size=CLASSES)
    draw = torch.Generator().manual_seed(7)
    relabelled = [torch.randperm(CLASSES, generator=draw) for _ in range(orders)]
    parts = [
        (Data(source, torch.arange(i * rows, (i + 1) * rows), (task,), {"blobs": Target("y", relabelled[i % orders])}), (task,))
        for i in range(pieces)
    ]
    return stream_of(parts, (task,))


class Watched:
    """Rows of each step, the weights after it, and whether anything was handed to the optimiser."""

    def __init__(self, plugin: ContinualMAML, *others: Plugin, rate: float = 0.5, batch_size: int = 6, stream: Any = None) -> None:
        self.rows: list[Batch] = []
        self.after: list[dict[str, Tensor]] = []
        self.moved: list[bool] = []
        self.losses: list[float] = []
        stream = stream or switching_stream()

        def update(update: Any, gradients: Any, step: Any) -> None:
            self.moved.append(bool(gradients))
            self.losses.append(float(step.losses["blobs"].detach()))
            update(gradients)

        def after(step: Any) -> None:
            self.rows.append(step.batch)
            self.after.append({name: p.detach().clone() for name, p in step.run.model.named_parameters()})

        watch = probe("watch", around_update=update, after_step=after)
        optimizer = sgd(lr=rate, momentum=0.0, weight_decay=0.0)
        self.model = smooth(stream.tasks, width=8)
        Engine(self.model, optimizer, [plugin, *others, watch], batch_size=batch_size, evaluate="never").run(stream)


class Published:
    """The method as a plain loop in torch, and none of the library's code."""

    def __init__(self, *, rate: float, eta: float, steps: int = 1, order: int = 2, threshold: Any = None, **options: Any) -> None:
        self.model = smooth(switching_stream().tasks, width=8)
        self.theta = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.rate, self.eta, self.steps, self.order, self.threshold = rate, eta, steps, order, threshold
        self.modulation, self.novelty = options.get("modulation", "none"), options.get("novelty", 1.0)
        self.prolonged, self.longest = options.get("prolonged", False), options.get("longest", 20)
        self.buffer: list[tuple[Tensor, Tensor]] = []
        self.fast: dict[str, Tensor] | None = None
        self.changes: list[bool] = []

    def loss(self, weights: dict[str, Tensor], rows: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(functional_call(self.model, weights, (rows[0], "blobs")), rows[1])

    def adapt(self, start: dict[str, Tensor], rows: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        weights = start
        for _ in range(self.steps):
            slopes = torch.autograd.grad(self.loss(weights, rows), list(weights.values()), create_graph=self.order == 2)
            weights = {name: value - self.rate * slope for (name, value), slope in zip(weights.items(), slopes, strict=True)}
        return weights

    def leaves(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.detach().clone().requires_grad_() for name, value in weights.items()}

    def learn(self, learnt: tuple[Tensor, Tensor], asked: tuple[Tensor, Tensor]) -> None:
        theta = self.leaves(self.theta)
        loss = self.loss(self.adapt(theta, learnt), asked)
        value = float(loss.detach())
        weight = {"none": 1.0, "step": float(value > self.novelty), "smooth": 1 - math.exp(-self.novelty * value)}[self.modulation]
        slopes = torch.autograd.grad(loss, list(theta.values()))
        self.theta = {n: p.detach() - self.eta * weight * slope for (n, p), slope in zip(theta.items(), slopes, strict=True)}

    def observe(self, rows: tuple[Tensor, Tensor]) -> None:
        if not self.buffer and self.fast is None:
            self.buffer = [rows]
            self.fast = self.adapt(self.leaves(self.theta), rows)
            self.changes.append(True)
            return
        if self.prolonged:
            assert self.fast is not None
            fast = self.leaves(self.fast)
        else:
            fast = self.adapt(self.leaves(self.theta), self.buffer[0])
        after = self.adapt(fast if self.prolonged else self.leaves(self.theta), rows)
        gain = float(self.loss(fast, rows).detach() - self.loss(after, rows).detach())
        changed = self.threshold is not None and gain >= self.threshold
        self.changes.append(changed)
        if not self.prolonged:
            if not changed:
                self.learn(self.buffer[0], rows)
            self.buffer = [rows]
            return
        learns = bool(self.buffer) and (changed or len(self.buffer) >= self.longest)
        if learns:
            middle = math.ceil(len(self.buffer) / 2)
            first, second = self.buffer[:middle], self.buffer[middle:] or self.buffer
            self.learn(*((torch.cat([x for x, _ in half]), torch.cat([y for _, y in half])) for half in (first, second)))
        self.buffer = [rows] if changed else [] if learns else [*self.buffer, rows]
        self.fast = self.adapt(self.leaves(self.theta), rows) if changed else after


# ------------------------------------------------------------------------------------------------ the step


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": None},
        {"threshold": 0.4},
        {"threshold": 0.4, "steps": 2},
        {"threshold": 0.4, "order": 1},
        {"threshold": 0.4, "modulation": "smooth", "novelty": 0.7},
        {"threshold": 0.4, "modulation": "step", "novelty": 1.0},
        {"threshold": 0.4, "prolonged": True},
        {"threshold": 0.4, "prolonged": True, "longest": 2, "modulation": "smooth", "novelty": 0.7},
        {"threshold": 0.4, "prolonged": True, "modulation": "step", "novelty": 0.4, "order": 1, "steps": 2},
        {"prolonged": True, "longest": 3},
        {"prolonged": True, "longest": 1},
    ],
)
def test_it_equals_a_loop_by_hand(options: dict[str, Any]) -> None:
    seen, loop = Watched(ContinualMAML(rate=0.3, **options)), Published(rate=0.3, eta=0.5, **options)
    assert len(seen.rows) == 16
    moved = []
    for rows, after in zip(seen.rows, seen.after, strict=True):
        before = loop.theta
        loop.observe((rows.x, rows.targets["blobs"]))
        moved.append(loop.theta is not before and any(not torch.equal(loop.theta[name], before[name]) for name in before))
        for name, value in loop.theta.items():
            torch.testing.assert_close(after[name], value, rtol=1e-10, atol=1e-13)
    assert moved == seen.moved
    assert not moved[0]
    assert any(moved)
    assert any(loop.changes[1:]) == ("threshold" in options and options["threshold"] is not None)
    assert not all(loop.changes)


def test_the_modulation_by_hand() -> None:
    assert modulated(0.3, "none", 9.0) == 1.0
    assert [modulated(loss, "step", 0.5) for loss in (0.4, 0.5, 0.6)] == [0.0, 0.0, 1.0]
    assert modulated(2.0, "smooth", 0.5) == pytest.approx(1 - math.exp(-1), rel=1e-12)
    assert modulated(2.0, "smooth", 0.0) == 0.0


def test_the_loss_on_the_record_is_that_before_learning() -> None:
    """On the rows of the step, at weights adapted to the rows before."""
    seen, loop = Watched(ContinualMAML(rate=0.3)), Published(rate=0.3, eta=0.5)
    for rows, loss in zip(seen.rows, seen.losses, strict=True):
        now = (rows.x, rows.targets["blobs"])
        weights = loop.adapt(loop.leaves(loop.theta), loop.buffer[0]) if loop.buffer else loop.theta
        assert loss == pytest.approx(float(loop.loss(weights, now).detach()), rel=1e-9)
        loop.observe(now)


def test_without_modulation_a_stream_of_one_task_is_maml_on_pairs_of_batches() -> None:
    """λ = 0 of the step: every loss is above it."""
    stream = switching_stream(pieces=1)
    ways = [Watched(ContinualMAML(rate=0.3, **how), stream=stream) for how in ({}, {"modulation": "step", "novelty": 0.0})]
    assert same(ways[0].after[-1], ways[1].after[-1])
    assert ways[0].moved == [False, True, True, True]


# ------------------------------------------------------------------------------------------------ what it is for


@pytest.mark.parametrize("prolonged", [False, True])
def test_it_finds_the_changes_that_nobody_tells_it(prolonged: bool) -> None:
    stream = switching_stream(pieces=12, rows=48, orders=3)
    plugin = ContinualMAML(rate=0.5, steps=3, threshold=0.7, prolonged=prolonged)
    changed: list[bool] = []
    look = probe("look", before_step=lambda step: changed.append(plugin._plan.changed))
    Watched(plugin, look, rate=0.3, batch_size=8, stream=stream)
    truth = [number % 6 == 0 for number in range(12 * 6)]
    found = sum(one and other for one, other in zip(truth, changed, strict=True))
    assert found >= 10
    assert sum(changed) - found <= 2, "false alarms"


def test_it_predicts_what_comes_better_than_sgd() -> None:
    """Prequentially, in a stream in which three tasks take turns; SGD at its best rate."""
    stream = switching_stream(pieces=18, rows=48, orders=3)

    def accuracy(optimizer: Any, plugin: ContinualMAML | None = None) -> float:
        """In the second half of the stream, of predictions for the rows of a step before anything learns from them."""
        right: list[Tensor] = []
        before: list[Batch] = []

        def look(step: Any) -> None:
            weights = {name: p.detach() for name, p in step.run.model.named_parameters()}
            if plugin is not None and plugin.config.prolonged:
                weights |= plugin._fast
            elif plugin is not None and before:
                weights = adapted(step.run.model, weights, before[-1], plugin.config.rate, plugin.config.steps)
            found = functional_call(step.run.model, weights, (step.batch.x, "blobs")).argmax(1)
            right.append((found == step.batch.targets["blobs"]).double().mean())
            before.append(step.batch)

        plugins = [probe("look", before_step=look), *([plugin] if plugin else [])]
        Engine(smooth(stream.tasks, width=8), optimizer, plugins, batch_size=8, evaluate="never").run(stream)
        return float(torch.stack(right[len(right) // 2 :]).mean())

    ways = [sgd(lr=rate, momentum=0.0, weight_decay=0.0) for rate in (0.03, 0.1, 0.3, 1.0, 3.0)]
    plain = max(accuracy(way) for way in ways)
    shared: dict[str, Any] = {"rate": 0.5, "steps": 3, "threshold": 0.7}
    for prolonged, way in ((False, ways[1]), (True, ways[-1])):  # the second learns once a task
        own = accuracy(way, ContinualMAML(**shared, prolonged=prolonged))
        still = accuracy(way, ContinualMAML(**shared, prolonged=prolonged, modulation="step", novelty=100.0))
        assert own > plain + 0.02
        assert own > still + 0.02, "than fast weights alone, from slow ones that never learn"


def adapted(model: nn.Module, weights: dict[str, Tensor], rows: Batch, rate: float, steps: int) -> dict[str, Tensor]:
    """Plain gradient descent on some rows."""
    for _ in range(steps):
        weights = {name: value.detach().requires_grad_() for name, value in weights.items()}
        loss = nn.functional.cross_entropy(functional_call(model, weights, (rows.x, "blobs")), rows.targets["blobs"])
        slopes = torch.autograd.grad(loss, list(weights.values()))
        weights = {name: (value - rate * slope).detach() for (name, value), slope in zip(weights.items(), slopes, strict=True)}
    return weights


# ------------------------------------------------------------------------------------------------ beside others


@pytest.mark.parametrize("prolonged", [False, True])
@pytest.mark.parametrize("method", ["ewc", "lwf", "replay", "agem"])
def test_methods_change_the_update(method: str, prolonged: bool) -> None:
    others = {"ewc": lambda: EWC(strength=50.0), "lwf": lambda: LwF(strength=5.0), "replay": Replay, "agem": lambda: AGEM(rows=20)}
    plugin = {"rate": 0.3, "prolonged": prolonged, "longest": 1}
    with_it, without = (Watched(ContinualMAML(**plugin), *more).after[-1] for more in ([others[method]()], []))
    assert float((with_it["encoder.0.weight"] - without["encoder.0.weight"]).abs().max()) > 1e-3


def test_a_learned_weighting_learns_with_the_slow_weights() -> None:
    stream = two_task_stream(dtype=torch.float64, rows=24)
    found: list[dict[str, Tensor]] = []
    watch = probe("watch", after_step=lambda step: found.append(step.run.snapshot()))
    plugins = [ContinualMAML(rate=0.1), UncertaintyWeighting(), watch]
    Engine(smooth(stream.tasks, width=8), sgd(), plugins, batch_size=6, evaluate="never").run(stream)
    values = [float(weights["uncertainty_weighting/a.value"]) for weights in found]
    assert values[0] == 0.0
    assert len(set(values)) == 4


def test_a_step_without_an_update_leaves_momentum_alone() -> None:
    stream = switching_stream(pieces=2)
    model = smooth(stream.tasks, width=8)
    start = copy.deepcopy(model.state_dict())
    plugin = ContinualMAML(modulation="step", novelty=100.0)
    Engine(model, sgd(), [plugin], batch_size=6, evaluate="never").run(stream)
    assert same(dict(model.state_dict()), dict(start))


@pytest.mark.parametrize("options", [{"threshold": 0.3}, {"prolonged": True, "longest": 100}])
def test_batchnorm_moves_once_a_step_at_the_fast_weights(options: dict[str, Any]) -> None:
    expected: list[Tensor] = []

    def look(objective: Any, step: Any) -> Any:
        if step.batch is expecting[-1]:
            layer = step.run.model.encoder.body[1]
            weight, bias = (step.parameters[f"encoder.body.0.{name}"].detach() for name in ("weight", "bias"))
            expected.append(0.9 * layer.running_mean + 0.1 * nn.functional.linear(step.batch.x, weight, bias).mean(0))
        return objective(step)

    def after(step: Any) -> None:
        torch.testing.assert_close(step.run.model.encoder.body[1].running_mean, expected[-1])
        assert len(expected) == len(expecting)

    expecting: list[Batch] = []
    watch = probe("watch", before_step=lambda step: expecting.append(step.batch), around_objective=look, after_step=after)
    plugins = [ContinualMAML(**options), watch]
    found, _ = final(Engine(net(), sgd(), plugins, batch_size=10, evaluate="never"), class_stream())
    assert int(found["encoder.body.1.num_batches_tracked"]) == len(expected) == 6


@pytest.mark.parametrize("options", [{"threshold": 0.4, "modulation": "smooth"}, {"threshold": 0.4, "prolonged": True, "longest": 2}])
def test_the_parts_of_a_step_add_up(options: dict[str, Any]) -> None:
    """The task has changed for all of them or for none, and the rows are kept once."""
    stream, found = switching_stream(), []
    for parts in (1, 3):
        model = smooth(stream.tasks, width=8)
        engine = Engine(model, sgd(), [ContinualMAML(rate=0.3, **options)], batch_size=6, evaluate="never", microbatches=parts)
        engine.run(stream)
        found.append(model.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"threshold": 0.2}, {"threshold": 0.2, "prolonged": True, "longest": 3}])
def test_it_resumes_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    """Across growth, in the middle of an experience, with rows of the experience before."""
    stream = growing_stream()

    def engine(**more: Any) -> Engine:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Model(nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.2)), Heads(5, stream[0].tasks))
        plugins = [ContinualMAML(**options), Replay(capacity=9), EWC(strength=3)]
        return Engine(model, sgd(), plugins, batch_size=8, seed=3, checkpoint_every=1, **more)

    straight = stopped_or_straight(engine, growing_stream, tmp_path / "straight")
    for stop in (4, 7):
        assert same(straight, stopped_or_straight(engine, growing_stream, tmp_path / f"stopped at {stop}", stop))


def test_what_cannot_be_right_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="option 'threshold' is 0"):
        ContinualMAML(threshold=0)
    with pytest.raises(ConfigurationError, match="option 'steps' is 0"):
        ContinualMAML(steps=0)
    with pytest.raises(CompositionError, match="2 plugins bring 'inner-loop'"):
        Engine(net(), sgd(), [ContinualMAML(), MAML()])
    stream = streams.episodes("sinusoids", shots=2, queries=2, train_episodes=2, test_episodes=1)
    with pytest.raises(ConfigurationError, match="follows a stream of rows, but experience 0 has episodes: take MAML"):
        Engine(Model(nn.Linear(1, 4), Heads(4, stream.tasks)), sgd(), [ContinualMAML()], batch_size=1).run(stream)
    assert [ContinualMAML(steps=2, **how).passes.look_ahead for how in ({}, {"threshold": 1.0}, {"prolonged": True})] == [2, 6, 6]
