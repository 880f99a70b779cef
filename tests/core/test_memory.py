from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from streamlearn.core.memories import Memories
from streamlearn.core.memory import ReplayMemory, quotas
from streamlearn.errors import ConfigurationError
from streamlearn.streams import Task
from streamlearn.streams.data import Data, Target
from tests.core.support import blobs

TASK = Task("t", size=6)


def data(rows: int = 40) -> Data:
    return Data(blobs(rows, 6), torch.arange(rows), (TASK,), {"t": Target("y")})


def test_a_reservoir_keeps_every_row_equally_often() -> None:
    counts = np.zeros(40)
    for seed in range(400):
        memory = ReplayMemory("m", 10, "reservoir", seed)
        for start in range(0, 40, 8):  # in pieces, as they come
            memory.offer(data(), 0, "train", torch.arange(start, start + 8))
        counts[memory.all_rows().index.numpy()] += 1
    assert counts.sum() == 4000
    assert stats.chisquare(counts).pvalue > 0.01


def test_draws_are_uniform_without_replacement_and_pure() -> None:
    memory = ReplayMemory("m", 40, "reservoir", 1)
    assert memory.draw(4, 0) is None
    memory.offer(data(), 0, "train")
    counts = np.zeros(40)
    for seed in range(800):
        index = memory.draw(5, seed).index
        assert len(set(index.tolist())) == 5
        counts[index.numpy()] += 1
    assert stats.chisquare(counts).pvalue > 0.01
    assert torch.equal(memory.draw(5, 3).index, memory.draw(5, 3).index)
    assert len(memory.draw(100, 0)) == 40


def test_a_balanced_memory_is_uniform_within_a_class() -> None:
    counts = np.zeros(60)
    for seed in range(300):
        memory = ReplayMemory("m", 12, "class_balanced", seed)
        for start in range(0, 60, 12):
            memory.offer(data(60), 0, "train", torch.arange(start, start + 12))
        assert memory.groups() == dict.fromkeys(range(6), 2)
        counts[memory.all_rows().index.numpy()] += 1
    assert stats.chisquare(counts).pvalue > 0.01


def test_quotas_give_what_one_group_cannot_use_to_the_others() -> None:
    assert quotas(np.array([1, 50, 50]), 21).tolist() == [1, 10, 10]
    assert quotas(np.array([3, 3]), 10).tolist() == [3, 3]
    assert quotas(np.array([5, 5, 5]), 2).tolist() == [1, 1, 0]
    for capacity in range(1, 30):
        given = quotas(np.array([2, 9, 4, 30]), capacity)
        assert given.sum() == capacity
        assert (given <= [2, 9, 4, 30]).all()


def test_draws_of_a_step_are_shared() -> None:
    memories = Memories(0)
    memory = memories.open("m", 20, "reservoir")
    memory.offer(data(), 0, "train")
    first = memories.draw("m", 5, 3, "")
    assert memories.draw("m", 5, 3, "") is first
    assert memories.draw("m", 5, 3, "other") is not first
    assert not torch.equal(memories.draw("m", 5, 4, "").index, first.index)
    assert torch.equal(memories.draw("m", 5, 3, "").index, first.index)
    with pytest.raises(ConfigurationError, match="there is no replay memory 'n' \\(there are: m\\): list a replay plugin"):
        memories.draw("n", 5, 3, "")
    with pytest.raises(ConfigurationError, match="capacity 0: give at least 1 row"):
        ReplayMemory("m", 0, "reservoir", 0)


def test_state_comes_back() -> None:
    memory = ReplayMemory("m", 10, "class_balanced", 0)
    memory.offer(data(), 2, "train")
    other = ReplayMemory("m", 10, "class_balanced", 0)
    other.load_state_dict(memory.state_dict(), lambda experience, role, number: data())
    assert torch.equal(other.draw(6, 1).index, memory.draw(6, 1).index)
    for each in (memory, other):
        each.offer(data(), 3, "train")
    assert torch.equal(other.all_rows().index, memory.all_rows().index)


def test_a_balanced_memory_needs_labels() -> None:
    with pytest.raises(ConfigurationError, match="is class-balanced, but rows of 'blobs' have no labels: use 'reservoir'"):
        ReplayMemory("m", 5, "class_balanced", 0).offer(data().without_labels(), 0, "train")


@pytest.mark.parametrize("policy", ["reservoir", "class_balanced", "experience_balanced"])
def test_data_is_everything_kept_to_be_trained_on(policy: str) -> None:
    memory, rows = ReplayMemory("m", 12, policy, 0), data()
    assert memory.data() is None
    for experience in range(3):
        memory.offer(rows, experience, "train", torch.arange(10 * experience, 10 * experience + 10))
    kept = memory.data()
    assert type(kept) is Data, "three parts of one kind are one piece"
    assert len(kept) == len(memory) == 12
    assert torch.equal(kept.indices, memory.all_rows().index)
    batch = kept.batch(torch.arange(12), "anything")
    assert batch.is_uniform
    assert batch.roles == ("anything",)
    assert torch.equal(batch.targets["t"], batch.index % 6)
    assert torch.equal(batch.x, rows.source.take(kept.indices).x)


def test_data_of_several_kinds_and_of_rows_without_labels() -> None:
    other = Task("other", size=3)
    labelled = torch.arange(40) % 2 == 0
    partly = Data(blobs(40, 6, name="partly"), torch.arange(40).flip(0), (TASK,), {"t": Target("y")}, labelled={"t": labelled})
    second = Data(blobs(40, 6, name="second"), torch.arange(40), (other,), {"other": Target("y", torch.arange(6) % 3)}, domain="night")
    memory = ReplayMemory("m", 20, "reservoir", 0)
    memory.offer(partly, 0, "train")
    memory.offer(second, 1, "train")
    kept = memory.data()
    assert len(kept) == 20
    assert {part.source.name for part in kept.parts()} == {"partly", "second"}
    assert tuple(task.name for task in kept.tasks) == ("t", "other")
    batch = kept.batch(torch.arange(20))
    assert sorted(batch.index.tolist()) == sorted(memory.all_rows().index.tolist())
    first = batch.segments[0].rows
    assert batch.segments[1].domain == "night"
    known = batch.labelled_rows("t")
    assert torch.equal(known[first], batch.index[first] % 2 == 1), "row i came at position 39 - i, and even positions have labels"
    assert 0 < int(known.sum()) < len(known[first])
    assert torch.equal(batch.targets["t"][known], batch.index[known] % 6)
    assert not bool(batch.targets["t"][first][~known[first]].any()), "what had no label gets none back"
    again = ReplayMemory("m", 20, "reservoir", 0)
    again.load_state_dict(memory.state_dict(), lambda experience, role, number: (partly, second)[experience])
    restored = again.data().batch(torch.arange(20))
    assert torch.equal(restored.index, batch.index)
    assert torch.equal(restored.labelled_rows("t"), known)


def test_episodes_do_not_fit_into_a_memory_of_rows() -> None:
    from streamlearn.streams import episodes

    stream = episodes("digits", ways=2, shots=1, queries=1, train_episodes=5, test_episodes=1)
    with pytest.raises(ConfigurationError, match="memory 'm' keeps rows, but experience 0 has episodes, where alone rows have labels"):
        ReplayMemory("m", 5, "reservoir", 0).offer(stream[0].data["train"], 0, "train")


@pytest.mark.parametrize("policy", ["class_balanced", "experience_balanced"])
def test_with_more_groups_than_places_the_oldest_have_no_advantage(policy: Any) -> None:
    task = Task("t", size=12)
    kept = np.zeros(12)
    for seed in range(60):
        memory = ReplayMemory("m", 4, policy, seed)
        source = blobs(36, 12)
        for group in range(12):
            rows = (source.targets["y"] == group).nonzero().flatten()
            memory.offer(Data(source, rows, (task,), {"t": Target("y")}), group, "train")
        assert len(memory.groups()) == 4
        kept[list(memory.groups())] += 1
    assert stats.chisquare(kept).pvalue > 0.01


def test_hidden_labels_do_not_steer_a_balanced_memory() -> None:
    memory = ReplayMemory("m", 20, "class_balanced", 0)
    shown = torch.arange(40) % 6 == 0
    memory.offer(Data(blobs(40, 6), torch.arange(40), (TASK,), {"t": Target("y")}, labelled={"t": shown}), 0, "train")
    assert memory.groups().keys() == {0, -1}
