from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from streamlearn import Engine, streams
from streamlearn.core.checkpoint import latest_checkpoint, read_checkpoint
from streamlearn.errors import CompositionError
from streamlearn.models import Heads, Model, mlp
from streamlearn.plugins import EWC, GDumb, Joint, PackNet, Replay
from streamlearn.plugins.replay.from_scratch import FromScratch
from streamlearn.streams import Task
from tests.core.support import Stop, adam, class_stream, final, growing_stream, net, probe, same, sgd, stop_at, two_task_stream
from tests.plugins.distillation.oracle import body, distance, library, trained_by_avalanche


def alone(number: int) -> Any:
    """Trains experience ``number`` and no other; the order of its rows is that of the whole run."""
    return probe("alone", transform_phases=lambda phases, run: [p.replace(epochs=2 * (run.clock.experience == number)) for p in phases])


@pytest.mark.parametrize("optimizer", [sgd(), adam], ids=["momentum", "adam"])
def test_each_experience_is_as_if_it_were_trained_alone(optimizer: Any) -> None:
    """Weights and statistics bit for bit, under optimisers with a memory: the model has BatchNorm."""
    ends: list[Any] = []
    keep = probe("keep", after_experience=lambda run: ends.append({n: t.clone() for n, t in run.model.state_dict().items()}))
    Engine(net(dropout=0.0), optimizer, [FromScratch(), keep], batch_size=7, epochs=2).run(class_stream())
    for number, found in enumerate(ends):
        expected, _ = final(Engine(net(dropout=0.0), optimizer, [alone(number)], batch_size=7, epochs=2), class_stream()[: number + 1])
        assert same(found, expected)
    assert not same(ends[0], ends[1])


def test_it_is_joint_with_restart_where_the_past_is_empty() -> None:
    """They differ in their rows alone: on the first two experiences, with the rows of the first taken away."""
    stream = class_stream()
    mine, _ = final(Engine(net(), sgd(), [FromScratch()], batch_size=7), stream[:2])
    only = probe("only", transform_phases=lambda phases, run: [p.replace(data=run.data()) for p in phases])
    theirs, _ = final(Engine(net(), sgd(), [Joint(restart=True), only], batch_size=7), stream[:2])
    assert same(mine, theirs)


def test_a_stream_of_two_tasks_starts_again_too() -> None:
    stream, starts = two_task_stream(experiences=3), []
    look = probe("look", transform_phases=lambda phases, run: starts.append((run.snapshot(), len(run.optimization.main.state))) or phases)
    Engine(mlp(stream, (7,)), sgd(), [FromScratch(), look], batch_size=8).run(stream)
    assert [held for _, held in starts] == [0, 0, 0]
    assert same(starts[0][0], starts[1][0])
    assert same(starts[0][0], starts[2][0])


def test_what_a_head_has_grown_by_is_drawn_anew() -> None:
    stream, starts = growing_stream(), []
    look = probe("look", transform_phases=lambda phases, run: starts.append(run.snapshot()) or phases)
    Engine(mlp(stream, (7,)), sgd(), [FromScratch(), look], batch_size=8, epochs=3).run(stream)
    weight = "heads.by_task.t.weight"
    assert [len(start[weight]) for start in starts] == [2, 4, 6, 6]
    assert all(torch.equal(start[weight][:2], starts[0][weight]) for start in starts)
    assert not torch.equal(starts[2][weight][2:4], starts[1][weight][2:4])
    assert torch.equal(starts[3]["encoder.0.weight"], starts[0]["encoder.0.weight"])


def test_it_agrees_with_avalanche() -> None:
    plugin = library("training.plugins").FromScratchTrainingPlugin
    theirs = trained_by_avalanche(class_stream(), body(), lambda: [plugin()], epochs=6)
    engine = Engine(body(), lambda p: torch.optim.SGD(p, lr=0.1), [FromScratch()], batch_size=1000, epochs=6)
    assert distance(engine.run(class_stream()).model, theirs) < 1e-6
    assert (
        distance(Engine(body(), lambda p: torch.optim.SGD(p, lr=0.1), [], batch_size=1000, epochs=6).run(class_stream()).model, theirs)
        > 0.01
    )


def test_avalanche_keeps_statistics_and_heads_that_have_grown() -> None:
    """Where the two differ: there only parameters that have their old shape start again."""
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    theirs = library("training.plugins").FromScratchTrainingPlugin(reset_optimizer=False)
    strategy = SimpleNamespace(model=module, optimizer=None)
    theirs.before_training(strategy)
    theirs.before_training_exp(strategy)
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module(torch.ones(5, 3) * torch.arange(5.0)[:, None])
    with torch.no_grad():
        module[0].weight.fill_(9.0)
        module[2].weight = nn.Parameter(torch.full((3, 4), 9.0))
    theirs.before_training_exp(strategy)
    assert torch.equal(module[0].weight, start["0.weight"])
    assert not torch.equal(module[1].running_mean, start["1.running_mean"])  # type: ignore[arg-type]
    assert bool((module[2].weight == 9.0).all())

    stream, found = growing_stream(), []
    encoder = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    look = probe("look", transform_phases=lambda phases, run: found.append(run.model.encoder[1].running_mean.clone()) or phases)
    Engine(Model(encoder, Heads(4, [Task("t", size=2)])), sgd(), [FromScratch(), look], batch_size=8).run(stream)
    assert all(torch.equal(mean, torch.zeros(4)) for mean in found)


def test_nothing_is_kept_of_the_past_and_the_present_is_learnt() -> None:
    stream = streams.class_incremental("digits", 5)[:3]
    engine = Engine(mlp(stream, (50,)), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), [FromScratch()], batch_size=32, epochs=2)
    matrix = engine.run(stream).accuracy_matrix
    assert all(float(matrix[i + 1, i]) > 0.95 for i in range(3))
    assert all(float(matrix[i + 1, j]) == 0.0 for i in range(3) for j in range(i))


@pytest.mark.parametrize("update", [3, 5, 8])
def test_stopped_and_resumed_equals_the_straight_run(update: int, tmp_path: Path) -> None:
    """In the first experience, right behind its end, and in the second; beside a memory and a penalty."""

    def engine(**options: Any) -> Engine:
        plugins = [FromScratch(), Replay(capacity=9), EWC(strength=2.0)]
        return Engine(net(), sgd(), plugins, batch_size=8, epochs=2, checkpoint_every=1, **options)

    engine().run(growing_stream(known=True), output=tmp_path / "straight")
    with pytest.raises(Stop):
        engine(progress=stop_at(update)).run(growing_stream(known=True), output=tmp_path / "broken")
    engine().resume(tmp_path / "broken", growing_stream(known=True))
    straight, broken = (read_checkpoint(latest_checkpoint(tmp_path / name / "checkpoints")[0]) for name in ("straight", "broken"))
    assert same(straight["model"], broken["model"])
    assert same(straight["optimization"], broken["optimization"])


def test_a_replay_memory_survives() -> None:
    rows: dict[int, int] = {}
    count = probe("count", before_step=lambda step: rows.update({step.run.clock.experience: len(step.batch.x)}))
    Engine(net(), sgd(), [FromScratch(), Replay(capacity=9, batch_size=4), count], batch_size=20).run(class_stream())
    assert rows == {0: 20, 1: 24, 2: 24}
    Engine(net(), sgd(), [FromScratch(), GDumb(capacity=9)]).run(class_stream())
    with pytest.raises(CompositionError, match="packnet"):
        Engine(net(), sgd(), [FromScratch(), PackNet()])
