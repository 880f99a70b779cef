from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from streamlearn.core.memory import Memories, ReplayMemory, quotas
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
