from __future__ import annotations

from typing import Any

import pytest
import torch

from streamlearn import Engine, models
from streamlearn.core.phases import Phase
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import Replay
from streamlearn.streams import Task
from streamlearn.streams.data import Data, Target
from tests.core.support import Spy, blobs, class_stream, growing_stream, net, probe, sgd, stream_of


def run_with(*plugins: Any, stream: Any = None, **options: Any) -> tuple[Any, list[Any]]:
    spy, batches = Spy(), []
    watch = probe("watch", before_step=lambda step: batches.append((step.run.clock.experience, step.batch)))
    Engine(net(), sgd(), [*plugins, spy, watch], **({"batch_size": 10} | options)).run(stream or class_stream())
    return spy.run, batches


def test_memory_rows_join_batches_from_the_second_experience_on() -> None:
    run, batches = run_with(Replay(capacity=12))
    assert [b.roles for e, b in batches if e == 0] == [("train",)] * 2
    later = [(e, b) for e, b in batches if e]
    assert all(b.roles == ("train", "memory") and len(b) == 20 for _, b in later)
    for e, b in later:
        assert set(b.targets["blobs"][b.rows("memory")].tolist()) <= set(range(2 * e)), "only classes of the past"
        assert len(set(b.index[b.rows("memory")].tolist())) == 10, "without replacement"
    memory = run.memories.open("main", 12, "reservoir")
    assert (len(memory), memory.offered) == (12, 60)


def test_batch_size_and_a_memory_smaller_than_it() -> None:
    _, batches = run_with(Replay(capacity=3, batch_size=7))
    assert [len(b) - len(b.index[b.rows("train")]) for e, b in batches if e == 1] == [3, 3]
    _, batches = run_with(Replay(capacity=30, batch_size=4))
    assert [len(b) for e, b in batches if e == 1] == [14, 14]


@pytest.mark.parametrize("epochs", [1, 3])
def test_each_row_is_offered_once_by_step(epochs: int) -> None:
    run, batches = run_with(Replay(capacity=60, fill="step"), epochs=epochs)
    memory = run.memories.open("main", 60, "reservoir")
    assert memory.offered == 60
    assert sorted(memory.all_rows().index.tolist()) == list(range(60))
    assert batches[1][1].roles == ("train", "memory"), "the first batch is replayed in the second"


def test_each_row_is_offered_once_when_a_batch_makes_several_updates() -> None:
    several = probe("several", transform_phases=lambda experience: (Phase("main", experience.data["train"], 1, updates=(("*",), ("*",))),))
    run, _ = run_with(several, Replay(capacity=60, fill="step"))
    assert run.memories.open("main", 60, "reservoir").offered == 60


def test_two_plugins_share_a_memory_and_its_draws() -> None:
    run, batches = run_with(Replay(capacity=12), Replay(capacity=12, name="second"))
    memory = run.memories.open("main", 12, "reservoir")
    assert (memory.offered, memory.owner) == (60, "second"), "after_experience runs in reverse: one of the two owns it"
    for e, b in batches:
        if e:
            rows = b.index[b.rows("memory")].tolist()
            assert len(rows) == 20
            assert rows[:10] == rows[10:]


def test_plugins_that_disagree_on_a_memory_are_refused() -> None:
    with pytest.raises(
        ConfigurationError, match="share the replay memory 'main' but want capacity 12, reservoir and 13, reservoir: make them agree"
    ):
        run_with(Replay(capacity=12), Replay(capacity=13, name="second"))


def test_two_memories_draw_as_many_rows_as_the_batch_brings() -> None:
    _, batches = run_with(Replay(capacity=30), Replay(capacity=30, name="second", memory="other"))
    assert [len(b) for e, b in batches if e == 2] == [30, 30]


@pytest.mark.parametrize("policy", ["class_balanced", "experience_balanced"])
def test_quotas(policy: Any) -> None:
    run, _ = run_with(Replay(capacity=13, policy=policy))
    groups = run.memories.open("main", 13, policy).groups()
    expected = {"class_balanced": [2, 2, 2, 2, 2, 3], "experience_balanced": [4, 4, 5]}[policy]
    assert sorted(groups.values()) == expected
    assert list(groups) == list(range(len(expected)))


def test_rows_without_a_label_are_replayed_without_one() -> None:
    source, task = blobs(40, 6), Task("t", size=6)
    labelled = torch.arange(20) < 5
    shuffled = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    one = Data(source, shuffled, (task,), {"t": Target("y")}, labelled={"t": labelled})
    two = Data(source, torch.arange(20, 40), (task,), {"t": Target("y")})
    _, batches = run_with(Replay(capacity=20), stream=stream_of([(one, (task,)), (two, (task,))], (task,)), batch_size=20)
    batch = batches[-1][1]
    told = batch.index[batch.labelled_rows("t")][20:]
    assert sorted(told.tolist()) == sorted(shuffled[:5].tolist())


def test_equal_relabellings_of_one_task_in_two_experiences() -> None:
    source, task = blobs(40, 6), Task("t", size=6)
    pieces = []
    for i in range(3):
        relabel = torch.arange(6).flip(0)  # made anew each time, as a lazy stream does
        pieces.append((Data(source, torch.arange(i * 10, i * 10 + 10), (task,), {"t": Target("y", relabel)}), (task,)))
    _, batches = run_with(Replay(capacity=20), stream=stream_of(pieces, (task,)))
    batch = batches[-1][1]
    assert torch.equal(batch.targets["t"], 5 - source.targets["y"][batch.index])


def test_replay_across_growth_serves_every_task() -> None:
    stream, rows = growing_stream(), []
    watch = probe("watch", before_step=lambda step: rows.append(step.batch.tasks))
    result = Engine(
        models.mlp(stream, (16,)), sgd(lr=0.1), [Replay(capacity=30, policy="class_balanced"), watch], batch_size=20, epochs=8
    ).run(stream)
    assert rows[-1] == ("other", "t")
    assert float(result.matrix("t")[-1, 0]) > 0.8
