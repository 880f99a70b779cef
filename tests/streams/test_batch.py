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


# ---------------------------------------------------------------------------------------------------- taking rows apart

PIECES = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["train", "memory"]), st.sampled_from(["", "photo"]), st.integers(1, 5)),
    min_size=1,
    max_size=6,
)


def mixed(pieces: list[tuple[str, str, str, int]], stored: tuple[int, int] | None = None) -> Batch:
    numbers = iter(range(100))
    batch = concatenate([rows(task, *[next(numbers) for _ in range(n)], role=role, domain=domain) for task, role, domain, n in pieces])
    if stored is None:
        return batch
    start, stop = min(stored[0], len(batch) - 1), max(min(stored[1], len(batch)), min(stored[0], len(batch) - 1) + 1)
    return batch.replace(stored={"logits": StoredColumn(slice(start, stop), 10.0 * batch.index[start:stop])})


def check_rows(batch: Batch, whole: Batch) -> None:
    """Every row of ``batch`` has the inputs, targets, labels, segment and stored values that it has in ``whole``."""
    assert [s.start for s in batch.segments] == [0, *[s.stop for s in batch.segments[:-1]]]
    assert batch.segments[-1].stop == len(batch)
    assert batch.x.flatten().tolist() == [float(i) for i in batch.index.tolist()]
    kind = {row: s.kind for s in whole.segments for row in range(s.start, s.stop)}
    for segment in batch.segments:
        assert {kind[row] for row in batch.index[segment.rows].tolist()} == {segment.kind}
    for task in whole.targets:
        assert torch.equal(batch.labelled_rows(task), whole.labelled_rows(task)[batch.index])
        assert torch.equal(batch.targets[task], whole.targets[task][batch.index])
    if "logits" in whole.stored:
        kept = whole.stored["logits"].rows
        inside = [row for row in batch.index.tolist() if kept.start <= row < kept.stop]
        found = batch.stored.get("logits")
        assert (found is not None) == bool(inside)
        if found is not None:
            assert batch.index[found.rows].tolist() == inside
            assert found.values.tolist() == [10.0 * row for row in inside]


@given(PIECES, st.integers(1, 7), st.tuples(st.integers(0, 20), st.integers(1, 25)))
def test_split_keeps_every_row_once_and_whole_in_parts_of_nearly_one_size(
    pieces: list[tuple[str, str, str, int]], count: int, stored: tuple[int, int]
) -> None:
    whole = mixed(pieces, stored)
    parts = whole.split(count)
    assert sorted(row for part in parts for row in part.index.tolist()) == list(range(len(whole)))
    assert len(parts) == min(count, len(whole))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for part in parts:
        check_rows(part, whole)
        assert part.index.tolist() == sorted(part.index.tolist()), "in their order"
    for segment in whole.segments:
        sizes = [sum(s.stop - s.start for s in part.segments if s.kind == segment.kind) for part in parts]
        alike = [s for s in whole.segments if s.kind == segment.kind]
        assert max(sizes) - min(sizes) <= len(alike), "each segment is spread over all parts"


@given(PIECES, st.tuples(st.integers(0, 20), st.integers(1, 25)))
def test_by_domain_is_the_rows_of_each_domain(pieces: list[tuple[str, str, str, int]], stored: tuple[int, int]) -> None:
    whole = mixed(pieces, stored)
    found = whole.by_domain()
    assert tuple(found) == whole.domains
    assert sum(map(len, found.values())) == len(whole)
    for domain, part in found.items():
        assert part.domains == (domain,)
        check_rows(part, whole)


def test_take_cuts_labels_and_stored_columns_at_the_window() -> None:
    whole = mixed([("a", "train", "", 4), ("b", "train", "", 4)], (2, 7))
    a, b = whole.segments
    part = whole.take([(a, slice(3, 4)), (b, slice(5, 8))])
    assert part.index.tolist() == [3, 5, 6, 7]
    assert part.segments == (Segment("train", 0, 1, ("a",), "", "source"), Segment("train", 1, 4, ("b",), "", "source"))
    assert part.labelled == {"a": slice(0, 1), "b": slice(1, 4)}
    assert part.stored["logits"].rows == slice(0, 3)
    assert part.stored["logits"].values.tolist() == [30.0, 50.0, 60.0]
    only = whole.take([(a, slice(1, 3))])
    assert only.labelled["a"] is EVERY_ROW
    assert only.is_uniform is False, "task b has a column, though no label here"
    sparse = rows("a", 1, 2, 3).replace(labelled={"a": torch.tensor([True, False, True])})
    assert sparse.take([(sparse.segments[0], slice(1, 3))]).labelled_rows("a").tolist() == [False, True]
    opened = rows("a", 1, 2, 3).replace(labelled={"a": slice(None, 2)})
    assert opened.take([(opened.segments[0], slice(1, 3))]).labelled_rows("a").tolist() == [True, False]


def test_many_short_segments_are_spread_over_all_parts() -> None:
    whole = concatenate([rows("a", n, domain=f"d{n}") for n in range(12)])
    assert [len(part) for part in whole.split(4)] == [3, 3, 3, 3]


def test_episodes_are_not_split() -> None:
    def part(role: str, episode: int, *values: int) -> Batch:
        return rows("a", *values, role=role, domain=f"e{episode}")

    whole = concatenate([*[part("support", e, e, e) for e in range(3)], *[part("query", e, 10 + e) for e in range(3)]])
    halves = whole.split(2)
    assert [half.index.tolist() for half in halves] == [[0, 0, 1, 1, 10, 11], [2, 2, 12]]
    assert [half.roles for half in halves] == [("support", "query")] * 2
    assert len(whole.split(7)) == 3


def test_count_labelled_counts_rows_that_carry_any_label() -> None:
    assert rows("a", 1, 2).count_labelled() == 2
    assert concatenate([rows("a", 1, 2), rows("b", 3)]).count_labelled() == 3
    bare = rows("a", 5, 6, role="target").replace(targets={}, labelled={})
    assert bare.count_labelled() == 0
    assert concatenate([rows("a", 1, 2), bare]).count_labelled() == 2
    assert concatenate([rows("a", 1, 2), bare]).labelled == {"a": slice(0, 2)}
    sparse = rows("a", 1, 2, 3).replace(labelled={"a": torch.tensor([True, False, False])})
    both = sparse.replace(
        targets={**sparse.targets, "b": torch.zeros(3)}, labelled={**sparse.labelled, "b": torch.tensor([True, True, False])}
    )
    assert both.count_labelled() == 2
