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
from streamlearn.streams.data import Data, JoinedData, Target
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


def one_by_one(memory: ReplayMemory, rows: Data, batch: int = 8, **stored: torch.Tensor) -> None:
    """Offer ``rows`` as they come, with columns of which each row has its own line."""
    for start in range(0, len(rows), batch):
        index = rows.indices[start : start + batch]
        memory.insert(rows, (0, "train", 0), index, stored={name: column[index] for name, column in stored.items()})


@pytest.mark.parametrize("budget", ["total", "per_group"])
def test_a_ring_keeps_the_latest_of_each_class(budget: Any) -> None:
    memory = ReplayMemory("m", 18 if budget == "total" else 3, "ring", 0, budget)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    one_by_one(memory, Data(blobs(40, 6), order, (TASK,), {"t": Target("y")}))
    assert memory.groups() == dict.fromkeys(range(6), 3)
    for c in range(6):
        came = [i for i in order.tolist() if i % 6 == c]
        assert sorted(memory.rows_of(c).index.tolist()) == sorted(came[-3:])


def test_a_ring_forgets_what_came_first_when_classes_arrive() -> None:
    memory, source = ReplayMemory("m", 12, "ring", 0), blobs(60, 6)
    for c in range(6):
        rows = (source.targets["y"] == c).nonzero().flatten()
        memory.offer(Data(source, rows, (TASK,), {"t": Target("y")}), c, "train")
    assert sorted(memory.all_rows().index.tolist()) == list(range(48, 60))


def test_a_budget_for_each_group() -> None:
    for policy, groups in (("class_balanced", 6), ("experience_balanced", 2)):
        memory = ReplayMemory("m", 4, policy, 0, "per_group")
        for experience in range(2):
            memory.offer(data(), experience, "train", torch.arange(20 * experience, 20 * experience + 20))
        assert memory.groups() == dict.fromkeys(range(groups), 4)
    memory = ReplayMemory("m", 7, "class_balanced", 0, "per_group")
    memory.offer(data(), 0, "train")
    assert memory.groups() == {0: 7, 1: 7, 2: 7, 3: 7, 4: 6, 5: 6}, "a group that is smaller gives nothing to the others"


def test_herding_keeps_the_given_order_and_shrinks_from_its_end() -> None:
    memory, source = ReplayMemory("m", 12, "herding", 0), blobs(60, 6)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1)).double()
    for c, kept in zip(range(6), (10, 6, 4, 3, None, 2), strict=True):
        rows = (source.targets["y"] == c).nonzero().flatten()
        memory.offer(Data(source, rows, (TASK,), {"t": Target("y")}), c, "train", order=order[rows])
        for known in range(c + 1) if kept is not None else ():
            every = sorted(range(known, 60, 6), key=lambda i: float(order[i]))
            assert sorted(memory.rows_of(known).index.tolist()) == sorted(every[:kept])
    with pytest.raises(ConfigurationError, match=r"memory 'n' keeps rows by herding.*: use fill='experience', or another policy"):
        ReplayMemory("n", 5, "herding", 0).offer(data(), 0, "train")
    with pytest.raises(ConfigurationError, match="memory 'n' is herded by class, but rows of 'blobs' have no labels"):
        ReplayMemory("n", 5, "herding", 0).offer(data().without_labels(), 0, "train", order=torch.zeros(40))


def test_an_order_is_that_of_the_whole_data_also_over_several_pieces() -> None:
    pieces = [Data(blobs(60, 6), torch.arange(30 * i, 30 * i + 30), (TASK,), {"t": Target("y")}, domain=f"d{i}") for i in range(2)]
    memory = ReplayMemory("m", 2, "herding", 0, "per_group")
    memory.offer(JoinedData(pieces), 0, "train", torch.arange(6, 60), order=-torch.arange(60.0))
    assert sorted(memory.all_rows().index.tolist()) == list(range(48, 60))


@pytest.mark.parametrize("policy", ["reservoir", "class_balanced", "ring"])
def test_stored_columns_follow_their_rows(policy: Any) -> None:
    column = torch.arange(60.0).unsqueeze(1) * torch.tensor([1.0, 10.0])
    memory = ReplayMemory("m", 12, policy, 3)
    one_by_one(memory, data(60), own=column, other=-column[:, :1])
    assert (len(memory), memory.offered) == (12, 60)
    for batch in (memory.all_rows(), memory.draw(5, 1), memory.rows_at(np.array([7, 2])), memory.rows_of(next(iter(memory.groups())))):
        assert batch.stored["own"].rows == slice(0, len(batch))
        assert torch.equal(batch.stored["own"].values, column[batch.index])
        assert torch.equal(batch.stored["other"].values, -column[batch.index, :1])
    places = np.array([7, 2, 2, 0])
    assert torch.equal(memory.rows_at(places).index, memory.all_rows().index[torch.from_numpy(places)])


def test_stored_columns_are_nan_where_nothing_was_stored_and_may_widen() -> None:
    memory, rows = ReplayMemory("m", 60, "reservoir", 0), data(60)
    memory.insert(rows, (0, "train", 0), torch.arange(10))
    assert memory.lacking("own").tolist() == list(range(10)), "there is no column yet"
    memory.insert(rows, (0, "train", 0), torch.arange(10, 20), stored={"own": torch.full((10, 2), 1.0)})
    memory.insert(rows, (0, "train", 0), torch.arange(20, 30), stored={"own": torch.full((10, 4), 2.0)})
    memory.insert(rows, (0, "train", 0), torch.arange(30, 40), stored={"own": torch.full((10, 3), 3.0), "late": torch.ones(10, 1)})
    memory.insert(rows, (0, "train", 0), torch.arange(40, 45))
    kept = memory.all_rows()
    known = (~kept.stored["own"].values.isnan()).sum(1)
    assert known.tolist() == [0] * 10 + [2] * 10 + [4] * 10 + [3] * 10 + [0] * 5
    assert torch.equal(
        kept.stored["own"].values[:, 0].nan_to_num(0.0), torch.arange(45).div(10, rounding_mode="floor") * (torch.arange(45) < 40)
    )
    assert memory.lacking("own").tolist() == [*range(10), *range(40, 45)]
    assert memory.lacking("late").tolist() == [*range(30), *range(40, 45)]
    memory.store("own", memory.lacking("own"), torch.full((15, 5), 9.0))
    assert len(memory.lacking("own")) == 0
    kept = memory.all_rows().stored["own"].values
    assert kept.shape == (45, 5)
    assert (~kept.isnan()).sum(1).tolist() == [5] * 10 + [2] * 10 + [4] * 10 + [3] * 10 + [5] * 5
    memory.store("new", np.array([3]), torch.tensor([[7.0]]))
    assert memory.lacking("new").tolist() == [i for i in range(45) if i != 3]


def test_stored_columns_of_rows_of_several_kinds() -> None:
    column = torch.arange(40.0).unsqueeze(1)
    night = Data(blobs(40, 6, name="second"), torch.arange(40), (TASK,), {"t": Target("y")}, domain="night")
    pieces = {0: data(), 1: night}
    memory = ReplayMemory("m", 30, "reservoir", 0)
    for start in range(0, 40, 5):  # by turns, so that rows of both kinds lie between each other
        index = torch.arange(start, start + 5)
        for number, piece in pieces.items():
            memory.insert(piece, (number, "train", 0), index, stored={"own": column[index] + 100 * number})
    for batch in (memory.all_rows(), memory.draw(9, 4)):
        assert len(batch.segments) == 2
        expected = batch.index + 100 * torch.tensor([batch.domains[d] == "night" for d in batch.domain.tolist()])
        assert torch.equal(batch.stored["own"].values[:, 0], expected.float())
    every = memory.all_rows()
    places = np.random.default_rng(0).permutation(30)[:11]
    batch = memory.rows_at(places)
    assert len(batch) == 11
    values = memory._stored["own"][torch.from_numpy(places), 0]
    found = batch.index + 100 * torch.tensor([batch.domains[d] == "night" for d in batch.domain.tolist()])
    assert torch.equal(found.float(), values), "each at its own place"
    assert len(every) == 30


def test_stored_columns_and_the_ring_come_back() -> None:
    column = torch.arange(60.0).unsqueeze(1)
    for policy, budget in (("reservoir", "total"), ("ring", "total"), ("class_balanced", "per_group")):
        memory = ReplayMemory("m", 12, policy, 0, budget)
        one_by_one(memory, data(60).subset(torch.arange(40)), own=column)
        other = ReplayMemory("m", 12, policy, 0, budget)
        other.load_state_dict(memory.state_dict(), lambda experience, role, number: data(60))
        for each in (memory, other):
            one_by_one(each, data(60).subset(torch.arange(40, 60)), own=column)
        a, b = memory.all_rows(), other.all_rows()
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.stored["own"].values, b.stored["own"].values)
        assert torch.equal(a.stored["own"].values, column[a.index])


def test_a_state_is_not_changed_by_what_comes_later() -> None:
    memory = ReplayMemory("m", 12, "reservoir", 0)
    one_by_one(memory, data(), own=torch.zeros(40, 1))
    state = memory.state_dict()
    memory.store("own", np.arange(12), torch.ones(12, 1))
    assert not bool(state["stored"]["own"].any())
    other = ReplayMemory("m", 12, "reservoir", 0)
    other.load_state_dict(state, lambda experience, role, number: data())
    other.store("own", np.arange(12), torch.ones(12, 1))
    assert not bool(state["stored"]["own"].any())


def test_draws_hide_what_is_stored_unless_asked() -> None:
    memory = ReplayMemory("m", 12, "reservoir", 0)
    assert memory.rows_of(0) is None
    one_by_one(memory, data(), own=torch.zeros(40, 1))
    assert memory.rows_of(5) is None
    assert memory.draw(3, 0).stored.keys() == {"own"}
    memories = Memories(0)
    memories.open("m", 3, "ring", "per_group")
    with pytest.raises(ConfigurationError, match="but want capacity 3, ring, per_group and 3, ring, total: make them agree"):
        memories.open("m", 3, "ring")
