from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamlearn.errors import DataError
from streamlearn.streams import Data, EvaluationSet, Experience, Stream, Task, TensorSource
from streamlearn.streams.data import Target

TASK = Task("t", size=2)
SOURCE = TensorSource(torch.arange(20.0).reshape(-1, 1), {"y": torch.arange(20) % 2}, "s")


def stream(length: int = 5, empty: int = -1, name: str = "letters") -> Stream:
    def data(i: int) -> Data:
        return Data(SOURCE, torch.arange(0 if i == empty else 2) + i, (TASK,), {"t": Target("y")})

    return Stream(
        name,
        length,
        lambda i: Experience(i, (TASK,), {"train": data(i)}, f"e{i}"),
        lambda i: EvaluationSet(i, data(i), f"v{i}"),
        tasks=(TASK,),
        input_shape=(1,),
        description={"builder": "letters"},
        fingerprints=lambda: [SOURCE.fingerprint()],
    )


def test_experiences_are_numbered_by_their_place() -> None:
    part = stream()[1:4]
    assert [(e.index, e.name) for e in part] == [(0, "e1"), (1, "e2"), (2, "e3")]
    assert (part.evaluation(-1).index, part.evaluation(-1).name) == (2, "v3")
    assert part.evaluation(0).tasks == (TASK,)


@given(st.integers(1, 8), st.slices(8))
def test_slicing_and_iterating_agree(length: int, part: slice) -> None:
    whole = stream(length)
    names = [e.name for e in whole][part]
    if not names:
        with pytest.raises(DataError, match="this part of stream 'letters' holds no experience: choose a slice that is not empty"):
            whole[part]
        return
    assert [e.name for e in whole[part]] == names
    assert [whole[part][i].name for i in range(len(names))] == names
    assert [whole[part].evaluation(i).name for i in range(len(names))] == [name.replace("e", "v") for name in names]


def test_places_outside_are_refused() -> None:
    for ask in (stream().__getitem__, stream().evaluation):
        with pytest.raises(IndexError, match="stream 'letters' has 5 experiences; there is none at 5"):
            ask(5)


def test_impossible_streams_are_refused() -> None:
    with pytest.raises(DataError, match="stream 'letters' has no experience: build it with at least one"):
        stream(0)
    with pytest.raises(DataError, match="experience 2 of stream 'letters' is empty: remove it from the stream or give it rows"):
        stream(empty=2)[2]
    with pytest.raises(DataError, match="stream 'letters' has no experience 7: choose numbers from 0 to 4"):
        stream().reordered([0, 7])


def test_a_part_says_which_part_it_is() -> None:
    whole = stream()
    assert whole.describe()["part"] is None
    assert whole[:3].describe()["part"] == [0, 1, 2]
    assert whole[::-1][:2].describe()["part"] == [4, 3]
    assert whole.reordered([2, 2])[1].name == "e2"
    json.dumps(whole.describe())


def test_hash_tells_content_and_part() -> None:
    whole = stream()
    assert whole.hash == stream().hash
    assert len({whole.hash, whole[:3].hash, stream(name="other").hash}) == 3
    assert whole.fingerprints == (SOURCE.fingerprint(),)
    assert repr(whole) == "Stream('letters', 5 experiences, tasks t)"


def test_fingerprints_are_not_computed_before_they_are_asked_for() -> None:
    def never() -> list[str]:
        raise AssertionError

    whole = stream()
    lazy = Stream("l", 1, whole._experience, whole._evaluation, tasks=(TASK,), input_shape=(1,), description={}, fingerprints=never)
    assert len(lazy[0].data["train"]) == 2
    with pytest.raises(AssertionError):
        _ = lazy.hash
