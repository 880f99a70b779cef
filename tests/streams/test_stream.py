from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamlearn import Engine, models
from streamlearn.errors import ConfigurationError, DataError
from streamlearn.streams import Data, EvaluationSet, Experience, Stream, Task, TensorSource
from streamlearn.streams.data import Target
from tests.core.support import sgd

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


# ---------------------------------------------------------------------- without an end


def endless() -> Stream:
    whole = stream()
    return Stream(
        "numbers",
        None,
        lambda i: Experience(i, (TASK,), {"train": Data(SOURCE, torch.tensor([i % 20]), (TASK,), {"t": Target("y")})}, f"e{i}"),
        whole._evaluation,
        tasks=(TASK,),
        input_shape=(1,),
        description={"builder": "numbers"},
    )


def test_a_stream_without_end_is_walked_and_cut_but_not_counted() -> None:
    whole = endless()
    assert whole.endless
    assert whole
    assert whole[123_456].name == "e123456"
    assert [e.name for e in itertools.islice(whole, 2)] == ["e0", "e1"]
    part = whole[10:30:10]
    assert not part.endless
    assert [e.name for e in part] == ["e10", "e20"]
    assert part.sets == (10, 20)
    assert whole.describe()["experiences"] == "endless"
    assert whole.hash != part.hash
    assert "endless" in repr(whole)


@pytest.mark.parametrize(
    "ask", [len, list, lambda s: s[5:], lambda s: s[-3:], lambda s: s[:-1], lambda s: s[::-1], lambda s: s.sets, lambda s: s.learnt_after]
)
def test_what_needs_an_end_is_refused(ask: Callable[[Stream], object]) -> None:
    with pytest.raises(DataError, match=r"stream 'numbers' is endless.*such as stream\[:100\]"):
        ask(endless())
    with pytest.raises(IndexError, match="stream 'numbers' has no last experiences; there is none at -1"):
        endless()[-1]


def test_an_engine_asks_for_a_part() -> None:
    with pytest.raises(ConfigurationError, match=r"stream 'numbers' is endless: train on a part of it, such as stream\[:100\]"):
        Engine(models.mlp(stream(), hidden=(4,)), sgd()).run(endless())
    assert Engine(models.mlp(stream(), hidden=(4,)), sgd()).run(endless()[:3]).accuracy_matrix.shape == (4, 3)


# ---------------------------------------------------------------------- evaluation sets that are shared


def shared(of: dict[int, tuple[int, ...]]) -> Stream:
    whole = stream(len(of))
    return Stream(
        "shared", len(of), whole._experience, whole._evaluation, tasks=(TASK,), input_shape=(1,), description={}, sets=of.__getitem__
    )


def test_sets_are_those_that_are_taught_in_the_order_in_which_they_first_are() -> None:
    whole = shared({0: (2,), 1: (2,), 2: (0,), 3: (0, 1), 4: (2,)})
    assert whole.sets == (2, 0, 1)
    assert whole.learnt_after == (2, 4, 4)
    assert [whole.sets_of(i) for i in range(5)] == [(0,), (0,), (1,), (1, 2), (0,)]
    assert [whole.evaluation(i).name for i in range(5)] == ["v2", "v2", "v0", "v0, v1", "v2"]
    assert [whole.evaluation_set(k).name for k in range(3)] == ["v2", "v0", "v1"]
    assert [whole.evaluation_set(k).index for k in range(3)] == [0, 1, 2]
    part = whole[2:4]
    assert part.sets == (0, 1)
    assert part.learnt_after == (2, 2)
    assert part.describe()["learnt_after"] == [2, 2]
    assert "learnt_after" not in stream().describe()


def test_training_finds_no_way_to_what_is_hidden() -> None:
    whole = stream()
    seen = whole.for_training()
    assert seen[2].name == "e2"
    assert seen[1:3].for_training()[0].name == "e1"
    with pytest.raises(DataError, match="out of reach of training"):
        seen.evaluation(0)
    with pytest.raises(TypeError, match=r"holds functions and is not pickled: pickle stream\.description"):
        pickle.dumps(seen)


def test_operators_keep_the_sets_of_a_stream_without_end() -> None:
    from streamlearn.streams import build_chain

    whole = build_chain("class_incremental:source=digits,experiences=3 | recurring:times=endless | task_free")
    assert whole[:7].sets == (0, 1, 2)
    assert [whole[:7].evaluation(i).index for i in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert whole.evaluation_set(2).index == 2
