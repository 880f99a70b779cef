from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamlearn import Engine, models
from streamlearn.errors import ConfigurationError, DataError, UnknownNameError
from streamlearn.streams import (
    Experience,
    Stream,
    TensorSource,
    adaptation,
    blurry,
    build_chain,
    class_incremental,
    concatenated,
    data_incremental,
    domain_incremental,
    episodes,
    joint,
    online,
    rebuild,
    recurring,
    task_incremental,
    validation,
)
from tests.core.support import sgd

real_data = pytest.mark.skipif("STREAMLEARN_DATA" not in os.environ, reason="STREAMLEARN_DATA is not set: it names the folder of real data")


def arrays(rows: int, classes: int, start: float = 0.0) -> tuple[Tensor, Tensor]:
    """Rows that carry their own number."""
    return torch.arange(rows, dtype=torch.float32).reshape(-1, 1) + start, torch.arange(rows) % classes


def rows(experience: Experience, role: str = "train") -> list[int]:
    return [row for part in experience.data[role].parts() for row in part.indices.tolist()]


@pytest.mark.parametrize("order", [np.array([0, 1, 0]), torch.tensor([0, 1, 0]), (0, 1, 0)])
def test_an_order_may_be_an_array(order: Any) -> None:
    stream = recurring(class_incremental("digits", 5), np.int64(2), order=order, split=True, seed=np.int64(3))
    usual = recurring(class_incremental("digits", 5), 2, order=[0, 1, 0], split=True, seed=3)
    assert json.dumps(stream.description) == json.dumps(usual.description)
    assert [experience.name[-7:] for experience in stream] == [f"visit {n}" for n in (1, 1, 2, 3, 2, 4)]


# ---------------------------------------------------------------------- recurring


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.lists(st.integers(0, 3), min_size=1, max_size=6), st.booleans(), st.integers(0, 5))
def test_every_visit_has_all_rows_or_its_share(times: int, order: list[int], split: bool, seed: int) -> None:
    base = class_incremental(arrays(200, 8), 4, seed=seed)
    stream = recurring(base, times, order=order, split=split, seed=seed)
    visited = order * times
    assert len(stream) == len(visited)
    for home in set(visited):
        visits = [i for i, number in enumerate(visited) if number == home]
        found = [rows(stream[i]) for i in visits]
        assert [stream[i].name for i in visits] == [f"{base[home].name}, visit {k + 1}" for k in range(len(visits))]
        if split:
            assert sorted(row for part in found for row in part) == rows(base[home]), "every row in exactly one visit"
            assert max(map(len, found)) - min(map(len, found)) <= 1
        else:
            assert found == [rows(base[home])] * len(visits)
        for i in visits:
            assert stream[i].classes["class"] == tuple(sorted({row % 8 for row in rows(stream[i])}))
            assert stream.evaluation(i).data.indices.tolist() == base.evaluation(home).data.indices.tolist()
    assert set(stream.sets) == set(order)


@settings(deadline=None, max_examples=20)
@given(st.slices(9), st.booleans())
def test_slicing_and_iterating_agree(part: slice, split: bool) -> None:
    stream = recurring(class_incremental(arrays(90, 6), 3), 3, split=split)
    expected = [(e.name, rows(e)) for e in stream][part]
    if expected:
        assert [(e.name, rows(e)) for e in stream[part]] == expected


def test_the_seed_draws_the_shares() -> None:
    base = data_incremental(arrays(60, 3), 2)
    streams = [recurring(base, 2, split=True, seed=seed) for seed in (0, 1, 0)]
    found = [[rows(e) for e in stream] for stream in streams]
    assert found[0] == found[2] != found[1]
    assert streams[0].hash == streams[2].hash != streams[1].hash


def test_sets_are_learnt_after_their_first_visit() -> None:
    stream = recurring(class_incremental("digits", 5), 2, order=[2, 0, 0, 1])
    assert stream.sets == (2, 0, 1)
    assert stream.learnt_after == (1, 3, 4)
    assert stream[3:].sets == (1, 2, 0)


def test_every_role_is_shared_and_hidden_labels_stay_hidden() -> None:
    base = adaptation("moons", rows=10, source_free=True)
    stream = recurring(base, 3, split=True)
    assert [{role: len(data) for role, data in e.data.items()} for e in stream] == [{"train": 4}, {"target": 4}] + [
        {"train": 3}, {"target": 3},
    ] * 2  # fmt: skip
    assert all(part.targets == {} for e in stream if "target" in e.data for part in e.data["target"].parts())
    assert [None if (truth := stream.truth(i)) is None else len(truth) for i in range(6)] == [None, 10] * 3
    few = recurring(validation(class_incremental(arrays(60, 6), 3)), 3, split=True)
    assert sum("validation" in e.data for e in few) == sum(
        len(e.data["validation"]) for e in validation(class_incremental(arrays(60, 6), 3))
    )


def test_without_an_end() -> None:
    stream = recurring(class_incremental("digits", 3), "endless", order=[0, 1, 0, 2])
    assert stream.endless
    assert [e.name.split(", ")[-1] for e in itertools.islice(stream, 6)] == [f"visit {k}" for k in (1, 1, 2, 1, 3, 2)]
    assert stream[10**6].name.endswith("visit 500001")
    part = stream[:9]
    assert (part.sets, part.learnt_after) == ((0, 1, 2), (1, 2, 4))
    again = rebuild(json.loads(json.dumps(part.description)))
    assert again.hash == part.hash
    assert [rows(e) for e in again] == [rows(e) for e in part]


def test_recurring_works_on_what_other_operators_make() -> None:
    shares = recurring(blurry(domain_incremental("digits", 3)), 2, split=True)
    assert sorted(len(e.data["train"]) for e in shares) == [719] * 6
    whole = recurring(episodes("sinusoids", 2, train_episodes=5, test_episodes=2), 2, split=True)
    names = [name for e in whole for name in e.data["train"].batch(torch.arange(len(e.data["train"]))).domains]
    assert sorted(names) == [f"train/{i}" for i in range(10)]
    pieces = online(recurring(class_incremental("digits", 2), 2), rows=100)
    assert len(pieces.sets) == 2


# ---------------------------------------------------------------------- concatenated


def five() -> list[Stream]:
    return [class_incremental("digits", 2), task_incremental("digits", 3), joint(domain_incremental("digits", 2))]


def test_concatenated_is_one_stream_after_another() -> None:
    parts = five()
    stream = concatenated(parts)
    expected = [(e.name, [t.name for t in e.tasks], e.classes, rows(e)) for part in parts for e in part]
    assert [(e.name, [t.name for t in e.tasks], e.classes, rows(e)) for e in stream] == expected
    assert [e.index for e in stream] == list(range(6))
    assert [stream.sets_of(i) for i in range(6)] == [(0,), (1,), (2,), (3,), (4,), (5, 6)]
    wanted = [part.evaluation_set(k).data.indices.tolist() for part in parts for k in range(len(part.sets))]
    assert [stream.evaluation_set(k).data.indices.tolist() for k in range(7)] == wanted
    assert [stream.evaluation_set(k).index for k in range(7)] == list(range(7))
    assert [task.name for task in stream.tasks] == ["digits", "digits/0", "digits/1", "digits/2"]
    assert stream[5].data["train"].parts()[0].source is parts[2][0].data["train"].parts()[0].source, "nothing is copied"


@settings(deadline=None, max_examples=20)
@given(st.slices(6))
def test_concatenated_slicing_and_iterating_agree(part: slice) -> None:
    stream = concatenated(five())
    expected = [(e.name, rows(e)) for e in stream][part]
    if expected:
        assert [(e.name, rows(e)) for e in stream[part]] == expected
        assert [stream[part].evaluation(i).name for i in range(len(expected))] == [stream.evaluation(i).name for i in range(6)][part]


def test_streams_are_given_as_text_too_and_built_again() -> None:
    texts = ["class_incremental:source=digits,experiences=2 | online:rows=300", "joint:source=digits"]
    stream = concatenated([texts[0], build_chain(texts[1])])
    shown = build_chain(f"concatenated:streams={json.dumps(texts)} | recurring")
    assert len(shown) == 2 * len(stream) == 14
    assert rebuild(json.loads(json.dumps(stream.description))).hash == stream.hash
    assert rebuild(json.loads(json.dumps(shown[3:5].description))).hash == shown[3:5].hash
    given = concatenated([class_incremental(arrays(40, 4), 2), build_chain(texts[1])[:1]][:1])
    with pytest.raises(ConfigurationError, match="this stream was built from objects given by the user"):
        rebuild(json.loads(json.dumps(given.description)))


def test_truth_and_roles_come_along() -> None:
    stream = concatenated([adaptation("moons", rows=20, source_free=True), adaptation("moons", rows=20, source_free=True, degrees=80)])
    assert [sorted(e.data) for e in stream] == [["train"], ["target"]] * 2
    for i in (1, 3):
        truth = stream.truth(i)
        assert truth is not None
        (target,) = stream[i].data["target"].parts()
        assert [(part.source.name, part.domain) for part in truth.parts()] == [(target.source.name, target.domain)]
    names = [e.data[e.main_role].parts()[0].source.name for e in stream]
    assert names == ["moons/source", "moons/target", "moons/source", "moons/target#2"], "the same source rows, but others as the target"


def test_sources_of_one_name_and_other_rows_are_told_apart() -> None:
    stream = concatenated([class_incremental(arrays(40, 4), 2), class_incremental(arrays(40, 4, start=0.5), 2)])
    assert [e.data["train"].source.name for e in stream] == ["data", "data", "data#2", "data#2"]
    assert [stream.evaluation(i).data.source.name for i in range(4)] == ["data", "data", "data#2", "data#2"]
    assert stream[2].data["train"].source is stream[3].data["train"].source
    assert float(stream[2].data["train"].batch(torch.tensor([0])).x % 1) == 0.5
    parts = joint(stream)[0].data["train"].parts()
    assert [len(part) for part in parts] == [32, 32]


def test_rows_that_one_stream_asks_for_are_not_told_by_another() -> None:
    x, y = arrays(40, 4)
    same = concatenated([class_incremental((x, y), 2), data_incremental((x, y), 2)])
    assert [e.data["train"].source.name for e in same] == ["data"] * 4
    with pytest.raises(
        DataError, match=r"\d+ rows of source 'data', such as row \d+, are trained on in stream 0 of those to be concatenated"
    ):
        concatenated([class_incremental((x, y), 2), class_incremental((x, y), 2, seed=1)])
    source = TensorSource(x, {"y": y}, "train")
    with pytest.raises(
        DataError, match="are trained on in stream 1 of those to be concatenated and evaluated in stream 0: split them with"
    ):
        concatenated([class_incremental((x[:8] + 1, y[:8]), 2, test=source), class_incremental(source, 2, test=(x[:8] + 2, y[:8]))])


def test_concatenated_regression_and_classification() -> None:
    x = torch.rand(30, 1)
    stream = concatenated([data_incremental((x, torch.rand(30)), 2), joint((x + 1, torch.rand(30)))])
    assert [task.kind for task in stream.tasks] == ["regression"]
    assert len(stream) == 3


@pytest.mark.parametrize(
    "text",
    [
        'concatenated:streams=["task_incremental:source=digits,experiences=2","joint:source=digits"]',
        "class_incremental:source=digits | recurring:times=2,split=true",
        "domain_incremental:source=digits,experiences=2 | recurring:order=[0,1,0]",
    ],
)
def test_an_engine_trains_on_it(text: str) -> None:
    stream = build_chain(text)
    result = Engine(models.mlp(stream, hidden=(8,)), sgd()).run(stream)
    assert result.accuracy_matrix.shape == (len(stream) + 1, len(stream.sets))


# ---------------------------------------------------------------------- what is refused

REFUSED: list[tuple[Callable[[Stream], Any], str]] = [
    (lambda s: recurring("digits"), "recurring changes a stream, and a str is none: build one first, recurring(stream, ...)"),
    (lambda s: recurring(s, 0), "times is 0: give a whole number of at least 1"),
    (lambda s: recurring(s, "often"), "times is 'often': give a whole number of at least 1"),
    (lambda s: recurring(s, order=[]), "order is []: give a list of numbers of experiences, such as [0, 1, 0]"),
    (lambda s: recurring(s, order="01"), "order is '01': give a list of numbers of experiences, such as [0, 1, 0]"),
    (lambda s: recurring(s, order=[0, 5]), "order names the experience 5, but there are 5: give numbers from 0 to 4"),
    (lambda s: recurring(s, order=[0, -1]), "number 1 of order is -1: give a whole number of at least 0"),
    (lambda s: recurring(s, seed=-1), "seed is -1: give a whole number of at least 0"),
    (
        lambda s: recurring(s, "endless", split=True),
        "times is 'endless', but split shares the rows of an experience among its visits: give a number of times",
    ),
    (
        lambda s: recurring(data_incremental(arrays(20, 2), 4), 5, split=True),
        "experience 0 of stream 'class/data_incremental' has 4 rows, fewer than the 5 visits that share them: ask for fewer",
    ),
    (
        lambda s: recurring(recurring(s, "endless")),
        "recurring must know every experience, and stream 'digits/class_incremental/recurring' is",
    ),
    (concatenated, "streams is Stream('digits/class_incremental', 5 experiences, tasks digits): give a list of streams"),
    (lambda s: concatenated([]), "streams is []: give a list of streams, such as [joint('mnist'), joint('fashion-mnist')]"),
    (lambda s: concatenated("joint:source=digits"), "streams is 'joint:source=digits': give a list of streams, such as"),
    (lambda s: concatenated([s, 3]), "concatenated changes a stream, and a int is none: build one first"),
    (lambda s: concatenated([recurring(s, "endless"), s]), "concatenated must know every experience, and stream"),
    (
        lambda s: concatenated([s, class_incremental(arrays(40, 4), 2)]),
        "inputs of stream 'digits/class_incremental' have shape (1, 8, 8), those of 'class/class_incremental' (1,): bring them",
    ),
    (
        lambda s: concatenated([class_incremental(arrays(40, 4), 2), class_incremental(arrays(40, 5), 2)]),
        "streams 'class/class_incremental' and 'class/class_incremental' both have a task 'class', but not the same: classification of",
    ),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_what_cannot_be_is_refused_with_a_reason(build: Callable[[Stream], Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        build(class_incremental("digits", 5))


def test_text_that_names_no_stream_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown stream builder 'jiont': did you mean 'joint'"):
        concatenated(["jiont:source=digits"])


@pytest.mark.data
@real_data
def test_mnist_and_then_fashion() -> None:
    stream = concatenated(["joint:source=mnist", "joint:source=fashion-mnist"])
    assert [len(e.data["train"]) for e in stream] == [60_000, 60_000]
    assert [len(stream.evaluation_set(k).data) for k in range(2)] == [10_000, 10_000]
    assert [task.name for task in stream.tasks] == ["mnist", "fashion-mnist"]
