from __future__ import annotations

import copy
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamlearn import Engine, models, streams
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import ERACE, EWC, ICaRLLoss, LwF, Replay
from streamlearn.plugins.replay.mir import MIR, most_interfered, rows_of
from streamlearn.streams import Batch, Task
from streamlearn.streams.batch import EVERY_ROW, Segment
from streamlearn.streams.data import Data, Target
from tests.core.support import (
    Spy,
    Stop,
    blobs,
    class_stream,
    final,
    growing_stream,
    net,
    probe,
    same,
    separate_task_stream,
    sgd,
    stop_at,
    stream_of,
    two_task_stream,
)  # fmt: skip
from tests.integration.conftest import no_drawing  # noqa: F401 - nobody looks at the figures of a run that is stopped and resumed

RATE = 0.1


def network(dtype: Any = torch.float32) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)).to(dtype)


def plain_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=RATE)


def increases(model: nn.Module, batch: Batch, candidates: Batch, rate: float) -> Tensor:
    """s_MI-1 of each candidate, on copies and by hand; one task."""
    ((task, target),) = batch.targets.items()
    model = copy.deepcopy(model).double()
    loss = F.cross_entropy(model(batch.x.double(), task), target)
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        before = F.cross_entropy(model(candidates.x.double(), task), candidates.targets[task], reduction="none")
        for parameter, g in zip(model.parameters(), gradient, strict=True):
            parameter.sub_(rate * g)
        return F.cross_entropy(model(candidates.x.double(), task), candidates.targets[task], reduction="none") - before


def watched(mir: MIR, *plugins: Any, stream: Any = None, model: Any = None, optimizer: Any = plain_sgd, **options: Any) -> list[Any]:
    """(experience, batch, candidates, model) of every step in which there were candidates, and the run."""
    seen: list[Any] = []

    def look(step: Any) -> None:
        drawn = step.draw("main", mir.config.candidates, purpose="mir/candidates")
        if drawn is not None:
            seen.append((step.run.clock.experience, step.batch, drawn, copy.deepcopy(step.run.model)))

    spy = Spy()
    engine = Engine(model or network(), optimizer, [mir, *plugins, spy, probe("eye", before_step=look)], **({"batch_size": 10} | options))
    engine.run(stream or class_stream())
    return [*seen, spy.run]


def test_the_largest_increases_are_chosen() -> None:
    draw = torch.Generator().manual_seed(0)
    before, after = torch.randn(2, 30, generator=draw, dtype=torch.float64)
    chosen = most_interfered(before, after, 7)
    assert chosen.tolist() == sorted(sorted(range(30), key=lambda i: float(before[i] - after[i]))[:7])
    assert most_interfered(before, after, 40).tolist() == list(range(30))
    assert most_interfered(torch.zeros(4), torch.zeros(4), 2).tolist() == [0, 1], "of equals, the first"


def test_rows_of_keeps_what_the_rows_share() -> None:
    segments = (Segment("memory", 0, 2, ("a",), "day", "s"), Segment("memory", 2, 5, ("b",), "night", "s"), Segment("memory", 5, 6, ("a",)))
    half = torch.tensor([True, False, True, True, False, True])
    targets = {"a": torch.arange(6), "b": torch.arange(6) * 10, "c": torch.arange(6)}
    batch = Batch(torch.arange(12.0).view(6, 2), targets, {"a": half, "b": slice(2, 5), "c": EVERY_ROW}, segments, torch.arange(6) + 100)
    found = rows_of(batch, torch.tensor([1, 3, 4]))
    assert found.index.tolist() == [101, 103, 104]
    assert found.x.tolist() == [[2.0, 3.0], [6.0, 7.0], [8.0, 9.0]]
    assert found.targets["b"].tolist() == [10, 30, 40]
    assert (found.labelled_rows("a").tolist(), found.labelled_rows("b").tolist()) == ([False, True, False], [False, True, True])
    assert found.labelled["c"] == EVERY_ROW
    assert found.segments == (Segment("memory", 0, 1, ("a",), "day", "s"), Segment("memory", 1, 3, ("b",), "night", "s"))


@pytest.mark.parametrize(("rate", "fill"), [(None, "experience"), (None, "step"), (0.7, "experience")])
def test_rows_are_those_of_the_papers_criterion(rate: float | None, fill: Any) -> None:
    *steps, _ = watched(MIR(candidates=20, batch_size=6, capacity=40, learning_rate=rate, fill=fill))
    compared = 0
    for _, batch, candidates, model in steps:
        rows = batch.rows("memory")
        if len(candidates) <= 6:
            assert sorted(batch.index[rows].tolist()) == sorted(candidates.index.tolist())
            continue
        found = increases(model, batch.select("train"), candidates, rate or RATE)
        expected = found.argsort(descending=True)[:6]
        assert set(batch.index[rows].tolist()) == set(candidates.index[expected].tolist())
        assert torch.equal(batch.targets["blobs"][rows], batch.index[rows] % 6)
        compared += 1
    assert compared == (4 if fill == "experience" else 5)


def test_avalanche_chooses_the_same_rows() -> None:
    """Its plugin adds the loss of the chosen rows to that of the batch; ours takes the mean over all."""
    with warnings.catch_warnings(record=True):  # recorded, because Avalanche forces some through every filter
        warnings.simplefilter("ignore")
        plugin = pytest.importorskip("avalanche.training.plugins").MIRPlugin
    *steps, _ = watched(MIR(candidates=20, batch_size=6, capacity=40))
    assert len(steps) == 4
    for _, batch, candidates, model in steps:
        now, rows = batch.select("train"), batch.rows("memory")
        theirs = plugin(batch_size_mem=6, mem_size=40, subsample=20)
        theirs.replay_loader = iter([(candidates.x, candidates.targets["blobs"], torch.zeros(20, dtype=torch.int64))])

        class Flat(nn.Module):
            def __init__(self, inner: Any) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, x: Tensor) -> Tensor:
                return self.inner(x, "blobs")

        flat = Flat(copy.deepcopy(model))
        strategy = SimpleNamespace(
            model=flat, device=torch.device("cpu"), _criterion=nn.CrossEntropyLoss(), optimizer=plain_sgd(flat.parameters()),
            loss=F.cross_entropy(flat(now.x), now.targets["blobs"]),
        )  # fmt: skip
        alone = float(strategy.loss.detach())
        theirs.before_backward(strategy)
        mine = F.cross_entropy(model(batch.x[rows], "blobs"), batch.targets["blobs"][rows]).detach()
        assert float(strategy.loss.detach()) - alone == pytest.approx(float(mine), abs=1e-5)
        everything = F.cross_entropy(model(candidates.x, "blobs"), candidates.targets["blobs"]).detach()
        assert abs(float(everything - mine)) > 1e-3, "another choice would have shown"


def test_buffers_and_random_state_are_left_alone() -> None:
    buffers: list[Any] = []

    def before(step: Any) -> None:
        buffers.append(({n: b.clone() for n, b in step.run.model.named_buffers()}, torch.random.get_rng_state()))

    def early(batch: Any, step: Any) -> Any:
        before(step)
        return batch

    first = probe("first", transform_batch=early)
    Engine(net(), sgd(), [first, MIR(capacity=30, candidates=20, batch_size=5), probe("last", before_step=before)], batch_size=10).run(
        class_stream()
    )
    for early_state, late_state in zip(buffers[::2], buffers[1::2], strict=True):
        assert same(early_state[0], late_state[0])
        assert torch.equal(early_state[1], late_state[1])


def test_the_statistics_of_batchnorm_come_from_the_whole_batch() -> None:
    seen: list[Any] = []
    watch = probe("eye", before_step=lambda step: seen.append((step.batch.x.clone(), copy.deepcopy(step.run.model))))
    result = Engine(net(), sgd(), [MIR(capacity=30, candidates=20, batch_size=5), watch], batch_size=20).run(class_stream())
    x, model = seen[-1]
    assert len(x) == 25
    model.train()
    model(x, "blobs")
    for (name, mine), (_, expected) in zip(result.model.named_buffers(), model.named_buffers(), strict=True):
        torch.testing.assert_close(mine, expected, msg=name)


@pytest.mark.parametrize("fill", ["step", "experience"])
def test_it_remembers_digits(fill: Any) -> None:
    def accuracy(*plugins: Any) -> float:
        stream = streams.class_incremental("digits", 5)
        engine = Engine(models.mlp(stream, (64,)), plain_sgd, list(plugins), batch_size=10, seed=1, evaluate="end")
        return float(engine.run(stream).metrics["average_accuracy"])

    assert accuracy(MIR(capacity=200, candidates=20, fill=fill)) > accuracy() + 0.2


def test_several_tasks_growing_heads_and_other_plugins() -> None:
    for stream in (growing_stream(), two_task_stream(experiences=2), separate_task_stream(experiences=2)):
        mir = MIR(candidates=15, batch_size=4, capacity=30)
        *steps, run = watched(mir, EWC(strength=1.0), LwF(), stream=stream, model=models.mlp(stream, (8,)), epochs=2)
        assert steps
        assert all(len(batch.select("memory")) == 4 for _, batch, candidates, _ in steps if len(candidates) > 4)
        assert run.memories.find("main").owner == "mir"
    for other in (ERACE(), ICaRLLoss()):
        *steps, _ = watched(MIR(candidates=15, batch_size=4, capacity=30), other)
        assert len(steps) == 4


def test_the_loss_of_a_row_is_the_strategys() -> None:
    """With iCaRL's loss the choice is by binary cross-entropy."""
    *steps, _ = watched(MIR(candidates=20, batch_size=6, capacity=20), ICaRLLoss(), stream=class_stream()[:2], batch_size=20)
    ((_, batch, candidates, model),) = steps

    def loss(outputs: Tensor, told: Tensor, target: Tensor) -> Tensor:
        labels = F.one_hot(target, 6).to(outputs)
        labels[:, :2] = torch.sigmoid(told[:, :2])
        return F.binary_cross_entropy_with_logits(outputs, labels, reduction="none").sum(1)

    now, old, ahead = batch.select("train"), copy.deepcopy(model), copy.deepcopy(model)
    mean = loss(ahead(now.x, "blobs"), old(now.x, "blobs").detach(), now.targets["blobs"]).mean()
    gradient = torch.autograd.grad(mean, list(ahead.parameters()))
    with torch.no_grad():
        for parameter, g in zip(ahead.parameters(), gradient, strict=True):
            parameter.sub_(RATE * g)
        told, target = old(candidates.x, "blobs"), candidates.targets["blobs"]
        found = loss(ahead(candidates.x, "blobs"), told, target) - loss(old(candidates.x, "blobs"), told, target)
    expected = candidates.index[found.argsort(descending=True)[:6]].tolist()
    assert set(batch.index[batch.rows("memory")].tolist()) == set(expected)


def test_beside_replay_only_incoming_rows_make_the_virtual_step() -> None:
    mir = MIR(candidates=20, batch_size=6, capacity=40)
    seen: list[Any] = []

    def look(step: Any) -> None:
        drawn = step.draw("main", 20, purpose="mir/candidates")
        if drawn is not None:
            seen.append((step.batch, drawn, copy.deepcopy(step.run.model)))

    plugins = [Replay(capacity=40, batch_size=8), mir, probe("eye", before_step=look)]
    Engine(network(), plain_sgd, plugins, batch_size=10).run(class_stream())
    assert seen
    for batch, candidates, model in seen:
        assert len(batch) == 24
        expected = increases(model, batch.select("train"), candidates, RATE).argsort(descending=True)[:6]
        assert set(batch.index[18:].tolist()) == set(candidates.index[expected].tolist())


def test_regression_and_rows_without_a_label() -> None:
    source, task, digit = blobs(40, 6), Task("r", "regression", size=2), Task("t", size=6)
    source.targets["r"] = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    for name, target, kind in (("r", Target("r"), task), ("t", Target("y"), digit)):
        pieces = []
        for i in range(2):
            labelled = {} if name == "r" else {"t": torch.arange(20) % 2 == 0}
            pieces.append((Data(source, torch.arange(20 * i, 20 * i + 20), (kind,), {name: target}, labelled=labelled), (kind,)))
        stream = stream_of(pieces, (kind,))
        *steps, _ = watched(MIR(candidates=15, batch_size=4, capacity=20), stream=stream, model=models.mlp(stream, (8,)))
        assert [len(batch) for _, batch, _, _ in steps] == [14, 14]


def test_costs_are_declared() -> None:
    passes = Engine(network(), plain_sgd, [MIR()]).composition.passes
    assert (passes.forward, passes.backward) == (3, 1)
    calls = {"forward": 0}
    model = network()
    model.register_forward_hook(lambda *_: calls.update(forward=calls["forward"] + 1))
    Engine(model, plain_sgd, [MIR(candidates=20, batch_size=6)], batch_size=20, evaluate="never").run(class_stream()[:2])
    assert calls["forward"] == 5, "one step without a memory, and one with three passes more"


def test_episodes_are_refused() -> None:
    stream = streams.episodes("digits", ways=2, shots=1, queries=1, train_episodes=5, test_episodes=1)
    for fill in ("step", "experience"):
        with pytest.raises(ConfigurationError, match="memory 'main' keeps rows, but experience 0 has episodes"):
            Engine(models.mlp(stream, (8,)), sgd(), [MIR(fill=fill)]).run(stream)


@pytest.mark.parametrize(("stop", "fill"), [(3, "step"), (7, "step"), (7, "experience")])
def test_stopped_and_resumed_equals_the_straight_run(fill: Any, stop: int, tmp_path: Path, no_drawing: None) -> None:  # noqa: F811
    stream = growing_stream()

    def engine(**options: Any) -> Engine:
        plugins = [EWC(strength=1.0), MIR(candidates=12, batch_size=4, capacity=15, fill=fill)]
        return Engine(models.mlp(stream, (8,)), sgd(), plugins, batch_size=6, epochs=2, checkpoint_every=1, **options)

    expected = final(engine(), stream)
    with pytest.raises(Stop):
        engine(progress=stop_at(stop)).run(stream, output=tmp_path)
    result = engine().resume(tmp_path, stream)
    assert same(dict(result.model.state_dict()), expected[0])
    assert same(result.events, expected[1])
