from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamlearn.errors import DataError
from streamlearn.streams.batch import EVERY_ROW, Batch, Segment, StoredColumn, concatenate


def rows(task: str, *values: int, role: str = "train", domain: str = "") -> Batch:
    x = torch.tensor(values, dtype=torch.float32).reshape(-1, 1)
    segment = Segment(role, 0, len(values), (task,), domain, "source")
    return Batch(x, {task: torch.tensor(values)}, {task: EVERY_ROW}, (segment,), torch.tensor(values))


def test_uniform_batch_knows_that_nothing_needs_masking() -> None:
    batch = Batch.uniform(torch.zeros(3, 2), "t", torch.tensor([0, 1, 0]), torch.arange(3), source="s")
    assert batch.is_uniform
    assert batch.labelled_rows("t").all()
    assert not batch.labelled_rows("other").any()
    assert batch.segments == (Segment("train", 0, 3, ("t",), "", "s"),)


def test_neighbouring_segments_of_one_kind_melt() -> None:
    joined = concatenate([rows("a", 1, 2), rows("a", 3)])
    assert joined.is_uniform
    assert joined.segments[0].rows == slice(0, 3)


def test_rows_of_two_tasks_are_labelled_on_their_own_only() -> None:
    joined = concatenate([rows("a", 1, 2), rows("b", 3)])
    assert not joined.is_uniform
    assert joined.labelled == {"a": slice(0, 2), "b": slice(2, 3)}
    assert joined.labelled_rows("b").tolist() == [False, False, True]
    assert joined.targets["b"].tolist() == [0, 0, 3]
    assert joined.tasks == ("a", "b")
    assert joined.task.tolist() == [0, 0, 1]


def test_labels_that_are_not_contiguous_become_a_column() -> None:
    joined = concatenate([rows("a", 1), rows("b", 2), rows("a", 3)])
    assert joined.labelled_rows("a").tolist() == [True, False, True]
    assert joined.labelled["b"] == slice(1, 2)


def test_a_bool_column_survives_joining() -> None:
    sparse = rows("a", 1, 2).replace(labelled={"a": torch.tensor([True, False])})
    assert concatenate([sparse, rows("a", 3)]).labelled_rows("a").tolist() == [True, False, True]


def test_roles_and_domains_are_slices() -> None:
    joined = concatenate([rows("a", 1, 2, domain="photo"), rows("a", 3, role="target", domain="sketch")])
    assert joined.roles == ("train", "target")
    assert joined.rows("target") == slice(2, 3)
    assert joined.rows("memory") == slice(0, 0)
    assert joined.domains == ("photo", "sketch")
    assert joined.domain.tolist() == [0, 0, 1]
    assert repr(joined) == "Batch(train[2] of a in photo, target[1] of a in sketch; x (3, 1))"


def test_a_scattered_role_is_refused() -> None:
    joined = concatenate([rows("a", 1), rows("a", 2, role="target"), rows("a", 3)])
    with pytest.raises(DataError, match="the rows of role 'train' do not lie side by side"):
        joined.rows("train")


def test_with_rows_and_select_are_inverse() -> None:
    memory = rows("b", 8, 9).replace(stored={"logits": StoredColumn(slice(0, 2), torch.tensor([[1.0], [2.0]]))})
    both = rows("a", 1, 2, 3).with_rows("memory", memory)
    again = both.select("memory")
    assert both.stored["logits"].rows == slice(3, 5)
    assert again.stored["logits"].rows == slice(0, 2)
    assert again.targets["b"].tolist() == [8, 9]
    assert again.labelled["b"] is EVERY_ROW
    assert again.labelled_rows("a").tolist() == [False, False]
    assert again.segments == (Segment("memory", 0, 2, ("b",), "", "source"),)
    assert not both.select("train").stored


def test_one_stored_name_cannot_be_drawn_twice() -> None:
    stored = rows("a", 1).replace(stored={"logits": StoredColumn(slice(0, 1), torch.zeros(1, 1))})
    with pytest.raises(DataError, match="two groups of rows both store a column 'logits': draw them under different names"):
        concatenate([stored, stored])


def test_to_keeps_the_index_on_the_cpu() -> None:
    batch = rows("a", 1, 2).replace(labelled={"a": torch.tensor([True, False])})
    moved = batch.to(torch.device("meta"))
    assert moved.x.is_meta
    assert moved.targets["a"].is_meta
    assert moved.index.device.type == "cpu"
    assert batch.to(torch.device("cpu")) is batch


def test_tensors_yields_all() -> None:
    batch = rows("a", 1).replace(stored={"s": StoredColumn(slice(0, 1), torch.zeros(1))}, labelled={"a": torch.tensor([True])})
    assert len(list(batch.tensors())) == 5


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["train", "memory"]), st.integers(1, 4)), min_size=1, max_size=6))
def test_concatenation_keeps_every_row_and_its_label(pieces: list[tuple[str, str, int]]) -> None:
    numbers = iter(range(100))
    batches = [rows(task, *[next(numbers) for _ in range(count)], role=role) for task, role, count in pieces]
    joined = concatenate(batches)
    assert joined.index.tolist() == list(range(len(joined)))
    assert [s.start for s in joined.segments] == [0, *[s.stop for s in joined.segments[:-1]]]
    assert joined.segments[-1].stop == len(joined)
    for task in joined.targets:
        labelled = joined.labelled_rows(task)
        asked = torch.zeros(len(joined), dtype=torch.bool)
        for segment in joined.segments:
            asked[segment.rows] = task in segment.tasks
        assert torch.equal(labelled, asked)
        assert torch.equal(joined.targets[task][labelled], joined.index[labelled])
