from __future__ import annotations

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamlearn.errors import DataError
from streamlearn.streams import Data, Source, Task, TensorSource
from streamlearn.streams.data import JoinedData, Target, join

TASK = Task("t", size=3)


def data(source: TensorSource, *indices: int, **options: object) -> Data:
    return Data(source, torch.tensor(indices, dtype=torch.int64), (TASK,), {"t": Target("y")}, **options)  # type: ignore[arg-type]


def test_batch_gathers_transforms_and_names_rows(toy) -> None:
    batch = data(toy(), 5, 7, 9, transform=lambda x: x * 10, domain="d").batch(torch.tensor([2, 0]), "memory")
    assert batch.x[:, 0].tolist() == [90.0, 50.0]
    assert batch.targets["t"].tolist() == [0, 2]
    assert batch.index.tolist() == [9, 5]
    assert batch.segments[0] == ("memory", 0, 2, ("t",), "d", "toy")
    assert batch.is_uniform


def test_relabelling_maps_the_sources_numbers(toy) -> None:
    relabelled = Data(toy(), torch.tensor([1, 2]), (TASK,), {"t": Target("y", torch.tensor([-1, 1, 0]))})
    assert relabelled.batch(torch.tensor([0, 1])).targets["t"].tolist() == [1, 0]


def test_sparse_labels_follow_their_rows(toy) -> None:
    sparse = data(toy(), 0, 1, 2, labelled={"t": torch.tensor([True, False, True])})
    assert sparse.batch(torch.tensor([2, 1])).labelled_rows("t").tolist() == [True, False]
    assert sparse.subset(torch.tensor([1])).labelled["t"].tolist() == [False]


def test_without_labels_leaves_no_target(toy) -> None:
    batch = data(toy(), 0, 1).without_labels().batch(torch.tensor([0]))
    assert batch.targets == {}
    assert batch.tasks == ("t",)


def test_a_tensor_source_is_a_source(toy) -> None:
    assert isinstance(toy(), Source)
    assert not isinstance(torch.zeros(3), Source)


def test_join_melts_pieces_that_differ_in_rows_only(toy) -> None:
    source = toy()
    melted = join([data(source, 0, 1), data(source, 2, labelled={"t": torch.tensor([False])})])
    assert isinstance(melted, Data)
    assert melted.indices.tolist() == [0, 1, 2]
    assert melted.labelled["t"].tolist() == [True, True, False]


@pytest.mark.parametrize("other", [{"domain": "d"}, {"transform": abs}])
def test_join_keeps_what_differs_apart(toy, other: dict[str, object]) -> None:
    source = toy()
    joined = join([data(source, 0), data(source, 1, **other), data(source, 2)])
    assert isinstance(joined, JoinedData)
    assert [len(part) for part in joined.parts()] == [2, 1]
    assert len(join([data(source, 0), data(toy(), 0)]).parts()) == 2


def test_join_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="there is no data to join: give at least one piece"):
        join([])


def test_empty_selections_are_empty_batches(toy) -> None:
    joined = JoinedData([data(toy(), 0, 1), data(toy(name="b"), 2)])
    nothing = torch.tensor([], dtype=torch.int64)
    assert len(joined.batch(nothing)) == 0
    assert len(joined.subset(nothing)) == 0


@given(st.data())
def test_joined_data_answers_with_the_rows_asked_for(draw: st.DataObject) -> None:
    sizes = draw.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any))
    parts = []
    for number, size in enumerate(sizes):
        source = TensorSource(torch.full((5, 1), float(number)), {"y": torch.arange(5) % 3}, f"s{number}")
        parts.append(Data(source, torch.arange(size), (TASK,), {"t": Target("y")}))
    joined = JoinedData(parts)
    everything = [(f"s{number}", row) for number, size in enumerate(sizes) for row in range(size)]
    positions = draw.draw(st.lists(st.integers(0, len(joined) - 1), min_size=1, max_size=12))
    batch = joined.batch(torch.tensor(positions))
    found = [(segment.source, int(row)) for segment in batch.segments for row in batch.index[segment.rows]]
    assert sorted(found) == sorted(everything[position] for position in positions)
    assert sorted(len(part) for part in joined.subset(torch.tensor(positions)).parts()) == sorted(s.stop - s.start for s in batch.segments)


@pytest.mark.parametrize(("width", "divide_by"), [(16, None), (3, None), (16, 255)])
@pytest.mark.parametrize("batch_size", [4, 7])
def test_batches_cut_from_one_gather_are_those_gathered_one_by_one(width: int, divide_by: float | None, batch_size: int) -> None:
    values = torch.arange(50 * width).reshape(50, width) % 251
    x = values.float() if divide_by is None else values.to(torch.uint8)
    source = TensorSource(x, {"y": torch.arange(50) % 3}, "many", divide_by=divide_by)
    some = {"t": torch.arange(45) % 2 == 0}
    rows = Data(source, torch.arange(5, 50), (TASK,), {"t": Target("y", torch.tensor([2, 1, 0]))}, labelled=some)
    order = torch.randperm(45, generator=torch.Generator().manual_seed(0))
    together = list(rows.in_order(order, batch_size))
    for batch, positions in zip(together, order.split(batch_size), strict=True):
        alone = rows.batch(positions)
        assert torch.equal(batch.x, alone.x)
        assert torch.equal(batch.index, alone.index)
        assert torch.equal(batch.targets["t"], alone.targets["t"])
        assert torch.equal(batch.labelled_rows("t"), alone.labelled_rows("t"))
        assert batch.segments == alone.segments
        assert batch.x.data_ptr() % 64 == 0, "a resumed run, which cuts elsewhere, would compute other bits"


@pytest.mark.parametrize(("width", "expected"), [(16, [64]), (65536, [8] * 8)])
def test_small_batches_are_gathered_together_and_large_ones_let_go_of(width: int, expected: list[int]) -> None:
    class Counting(TensorSource):
        def take(self, index: torch.Tensor):  # type: ignore[no-untyped-def]
            asked.append(len(index))
            return super().take(index)

    asked: list[int] = []
    source = Counting(torch.zeros(64, width), {"y": torch.zeros(64, dtype=torch.int64)}, "counting")
    for batch in Data(source, torch.arange(64), (TASK,), {"t": Target("y")}).in_order(slice(None), 8):
        x = weakref.ref(batch.x)
        del batch
        assert len(expected) == 1 or x() is None, "held on to while the next one is gathered"
    assert asked == expected
