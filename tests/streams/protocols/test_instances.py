from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.errors import DataError
from streamlearn.streams import Stream, TensorSource, data_incremental, rebuild


def recorded(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that carry their own number, two classes in turn."""
    return torch.arange(rows, dtype=torch.float32).unsqueeze(1), torch.arange(rows) % 2


def trained(stream: Stream) -> list[list[int]]:
    return [experience.data["train"].indices.tolist() for experience in stream]


@settings(deadline=None, max_examples=40)
@given(st.integers(10, 60), st.integers(1, 12), st.booleans(), st.integers(0, 5))
def test_chunks_of_a_size_hold_every_row_once(rows: int, size: int, shuffle: bool, seed: int) -> None:
    stream = data_incremental(recorded(rows), rows=size, shuffle=shuffle, seed=seed)
    found = trained(stream)
    assert {len(part) for part in found[:-1]} <= {size}
    assert 1 <= len(found[-1]) <= size
    tested = stream.evaluation_set(0).data.indices.tolist() if shuffle else []
    for k in range(len(stream.sets) if not shuffle else 0):
        tested += stream.evaluation_set(k).data.indices.tolist()
    assert sorted(row for part in [*found, tested] for row in part) == list(range(rows))
    if not shuffle:
        assert [row for part in found for row in part] == sorted(row for part in found for row in part)


@settings(deadline=None, max_examples=25)
@given(st.integers(20, 80), st.integers(2, 9), st.integers(0, 3))
def test_in_the_order_of_time_an_experience_is_tested_on_its_own_span(rows: int, count: int, seed: int) -> None:
    stream = data_incremental(recorded(rows), count, shuffle=False, seed=seed)
    starts = [part[0] for part in trained(stream)]
    own = [k for k in range(len(stream)) if (k,) == stream.reordered(range(len(stream)))._numbers(k)]
    for k in own:
        low, high = (0 if k == 0 else starts[k]), (starts[k + 1] if k + 1 < len(starts) else rows)
        assert all(low <= row < high for row in stream.evaluation(k).data.indices.tolist())
    assert all(len(stream.evaluation(i).data) for i in range(len(stream))), "no experience is left without test rows"


def test_all_chunks_share_one_evaluation_set() -> None:
    stream = data_incremental("digits", 4)
    assert stream.sets == (0,)
    assert stream.learnt_after == (4,)
    assert stream.describe()["learnt_after"] == [4]
    assert {len(stream.evaluation(i).data) for i in range(4)} == {359}


def test_values_make_a_regression_task() -> None:
    x = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    stream = data_incremental((x, x.sum(1)), 2, shuffle=False)
    (task,) = stream.tasks
    assert (task.kind, task.size) == ("regression", 1)
    data = stream[0].data["train"]
    batch = data.batch(torch.arange(len(data)))
    assert torch.equal(batch.targets[task.name], x[data.indices].sum(1, keepdim=True))
    assert stream[0].classes == {}
    wide = data_incremental((x, torch.stack([x.sum(1), x[:, 0]], 1)), 2)
    assert wide.tasks[0].size == 2
    test = TensorSource(x[:4], {"y": x[:4].sum(1) + 0.1}, "held out")
    assert len(data_incremental((x, x.sum(1)), 2, test=test).evaluation(0).data) == 4


def test_whole_floats_are_classes_in_the_wrong_type() -> None:
    with pytest.raises(
        DataError, match=r"are float32 of shape \(10,\): class numbers are integers of shape \(10,\), convert them with \.long"
    ):
        data_incremental((torch.zeros(10, 1), torch.arange(10.0) % 2), 2)


def test_targets_of_held_out_rows_are_out_of_reach() -> None:
    x, y = torch.zeros(40, 1), torch.arange(40) % 2 + 0
    stream = data_incremental((x, y), 2)
    source = stream[0].data["train"].source
    held_out = stream.evaluation_set(0).data.indices
    assert int(source.take(held_out).targets["y"].sum()) == 0
    assert int(source.targets["y"][held_out].sum()) == 0  # type: ignore[attr-defined]
    assert int(stream.evaluation_set(0).data.batch(torch.arange(len(held_out))).targets["class"].sum()) == len(held_out) // 2


def test_rebuilt_and_refused() -> None:
    for stream in (data_incremental("digits", rows=100, shuffle=False, seed=3), data_incremental("digits", 3)[1:]):
        again = rebuild(json.loads(json.dumps(stream.description)))
        assert again.hash == stream.hash
        assert trained(again) == trained(stream)
    with pytest.raises(DataError, match="experiences is 3 and rows is 5: the one follows from the other, give one of them"):
        data_incremental("digits", 3, rows=5)
    with pytest.raises(DataError, match="rows is 0: give a whole number of at least 1"):
        data_incremental("digits", rows=0)
    with pytest.raises(DataError, match="is 'endless', but this protocol ends with its rows or classes: give a number"):
        data_incremental("digits", "endless")  # type: ignore[arg-type]
