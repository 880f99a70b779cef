from __future__ import annotations

import itertools
import json
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
from streamlearn.core.memory import ReplayMemory
from streamlearn.errors import DataError
from streamlearn.streams import (
    Data,
    EvaluationSet,
    Experience,
    Stream,
    Task,
    TensorSource,
    adaptation,
    build_chain,
    class_incremental,
    data_incremental,
    domain_incremental,
    episodes,
    gradual,
    joint,
    online,
    rebuild,
    task_free,
    validation,
)
from streamlearn.streams.data import Target, join
from streamlearn.streams.partition import permutation
from streamlearn.streams.protocols.episodes import Episodes
from tests.core.support import sgd


def test_an_experience_is_shuffled_once_for_all_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def counted(size: int, *, seed: int, purpose: str, number: int = 0) -> Tensor:
        drawn.append(number)
        return permutation(size, seed=seed, purpose=purpose, number=number)

    monkeypatch.setattr("streamlearn.streams.operators.cutting.permutation", counted)
    stream = online(class_incremental("digits", 5), np.int64(10), seed=np.int64(1))
    assert [len(experience.data["train"]) for experience in stream][:2] == [10, 10]
    assert drawn == [0, 1, 2, 3, 4]
    assert (json.dumps(stream.description), stream.hash) == (
        json.dumps((usual := online(class_incremental("digits", 5), 10, seed=1)).description), usual.hash,
    )  # fmt: skip


def arrays(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    """Rows that carry their own number."""
    return torch.arange(rows, dtype=torch.float32).reshape(-1, 1), torch.arange(rows) % classes


def indices(experience: Experience, role: str = "train") -> list[int]:
    return [row for part in experience.data[role].parts() for row in part.indices.tolist()]


# ---------------------------------------------------------------------- online


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(1, 40), st.booleans(), st.integers(0, 5))
def test_online_gives_every_row_once_in_pieces_of_the_size(experiences: int, rows: int, shuffle: bool, seed: int) -> None:
    base = class_incremental(arrays(60, 5), experiences, seed=seed)
    stream = online(base, rows, seed=seed, shuffle=shuffle)
    place = 0
    for home, experience in enumerate(base):
        pieces = -(-len(experience.data["train"]) // rows)
        mine = [stream[i] for i in range(place, place + pieces)]
        trained = [row for piece in mine for row in indices(piece)]
        assert sorted(trained) == indices(experience)
        assert shuffle or trained == indices(experience)
        assert all(len(piece.data["train"]) == rows for piece in mine[:-1])
        assert [piece.origin for piece in mine] == [home] * pieces
        assert [piece.classes["class"] for piece in mine] == [tuple(sorted({row % 5 for row in indices(piece)})) for piece in mine]
        assert [stream.sets_of(i) for i in range(place, place + pieces)] == [base.sets_of(home)] * pieces
        place += pieces
    assert len(stream) == place
    again = rebuilt(lambda: online(class_incremental("digits", experiences, seed=seed), rows, seed=seed, shuffle=shuffle))
    assert [indices(e) for e in again[0][:3]] == [indices(e) for e in again[1][:3]]


def rebuilt(make: Callable[[], Stream]) -> tuple[Stream, Stream]:
    stream = make()
    other = rebuild(json.loads(json.dumps(stream.description)))
    assert other.hash == stream.hash
    return stream, other


@settings(deadline=None, max_examples=20)
@given(st.slices(12))
def test_online_slicing_and_iterating_agree(part: slice) -> None:
    stream = online(class_incremental(arrays(60, 5), 3, test_fraction=0.2), 4)
    expected = [(e.origin, indices(e)) for e in stream][part]
    if expected:
        assert [(e.origin, indices(e)) for e in stream[part]] == expected


def test_online_draws_another_order_for_another_seed_and_each_experience() -> None:
    base = data_incremental(arrays(60, 2), 2)
    orders = [[indices(e) for e in online(base, 50, seed=seed)] for seed in range(3)]
    assert len({str(order) for order in orders}) == 3
    first, second = orders[0]
    ranks = [sorted(range(len(rows)), key=rows.__getitem__) for rows in (first, second)]
    assert ranks[0] != ranks[1]


def test_online_evaluates_as_its_base() -> None:
    stream = online(class_incremental("digits", 5), rows=10)
    assert (len(stream), len(stream.sets)) == (146, 5)
    assert stream.learnt_after == (29, 58, 87, 117, 146)
    assert stream.evaluation(28).data.indices.tolist() == stream.evaluation_set(0).data.indices.tolist()
    assert stream[100:].sets == (3, 4)


def test_online_with_rows_beyond_an_experience_leaves_it_whole() -> None:
    base = class_incremental(arrays(60, 5), 3)
    stream = online(base, 1000)
    assert [sorted(indices(e)) for e in stream] == [indices(e) for e in base]
    assert [e.origin for e in online(base, 1000, boundaries=False)] == [None] * 3


def test_online_cuts_every_role() -> None:
    stream = online(adaptation("moons", rows=25), rows=10)
    assert [{role: len(data) for role, data in e.data.items()} for e in stream] == [
        {"train": 10, "target": 8}, {"train": 10, "target": 8}, {"train": 5, "target": 9},
    ]  # fmt: skip
    for role in ("train", "target"):
        assert sorted(row for e in stream for row in indices(e, role)) == list(range(25))
    assert all(part.targets == {} for e in stream for part in e.data["target"].parts())
    few = online(validation(class_incremental(arrays(60, 2), 1, test_fraction=0.5), 0.1), rows=2)
    assert sum(len(e.data["validation"]) for e in few if "validation" in e.data) == 4
    assert sum("validation" not in e.data for e in few) == 9, "a role without rows is left out"


def test_online_keeps_episodes_whole() -> None:
    stream = online(episodes("sinusoids", train_episodes=7, test_episodes=2), rows=3)
    data = [e.data["train"] for e in stream]
    assert [len(part) for part in data] == [3, 3, 1]
    assert sorted(name for part in data for name in part.batch(torch.arange(len(part))).domains) == [f"train/{i}" for i in range(7)]


def test_a_matrix_of_146_pieces_has_5_columns() -> None:
    stream = online(class_incremental("digits", 5), rows=10)
    result = Engine(models.mlp(stream, hidden=(8,)), sgd()).run(stream)
    assert result.accuracy_matrix.shape == (147, 5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda s: online("digits"), "online changes a stream, and a str is none: build one first, online(stream, ...)"),
        (lambda s: online(s, 0), "rows is 0: give a whole number of at least 1"),
        (lambda s: online(s, seed=-1), "seed is -1: give a whole number of at least 0"),
        (lambda s: task_free(7), "task_free changes a stream, and a int is none: build one first, task_free(stream, ...)"),
    ],
)
def test_cutting_refuses_what_cannot_be(build: Callable[[Any], Stream], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        build(class_incremental("digits", 5))


# ---------------------------------------------------------------------- task-free


def test_task_free_hides_boundaries_and_nothing_else() -> None:
    base = online(domain_incremental("digits", 3, transform="rotation"), rows=500)
    stream = task_free(base)
    for told, known in zip(stream, base, strict=True):
        assert (told.name, told.origin) == ("", None)
        assert told.data["train"].domain == ""
        assert (told.tasks, told.classes, told.index) == (known.tasks, known.classes, known.index)
        assert indices(told) == indices(known)
        at = torch.arange(5)
        assert torch.equal(told.data["train"].batch(at).x, known.data["train"].batch(at).x)
    assert stream.sets == base.sets
    assert stream.evaluation(4).data.domain == base.evaluation(4).data.domain == "rotation/60"
    rebuilt(lambda: build_chain("domain_incremental:source=digits | online:rows=500 | task_free"))


def test_task_free_keeps_tasks_so_that_heads_are_found() -> None:
    stream = build_chain("task_incremental:source=digits | task_free")
    assert [e.tasks[0].name for e in stream] == [f"digits/{i}" for i in range(5)]


def mixed() -> Stream:
    """Rows of two rotations in one experience: the same row of the source may come in both."""
    return joint(domain_incremental("digits", 2, transform="rotation", degrees=180))


@pytest.mark.parametrize("build", [lambda: task_free(mixed()), lambda: task_free(gradual(domain_incremental("digits", 3), 1.0))])
def test_what_task_free_mixes_can_still_be_told_apart(build: Callable[[], Stream]) -> None:
    stream = build()
    data = stream[0].data["train"]
    assert [part.domain for part in data.parts()] == [""] * len(data.parts())
    assert len({part.source.name for part in data.parts()}) == len(data.parts()) > 1
    for part in data.parts():
        assert stream[0].data["train"].parts()[data.parts().index(part)].source is part.source, "the same object each time"


def test_a_memory_finds_the_rows_that_it_was_given() -> None:
    stream = task_free(mixed())
    train = stream[0].data["train"]
    known = {tuple(row.tolist()) for row in train.batch(torch.arange(len(train))).x.flatten(1)}
    names = {part.source.name for part in train.parts()}
    assert names == {"digits", "digits#2"}
    memory = ReplayMemory("m", 4000, "reservoir", 0)
    batch = train.batch(torch.arange(0, len(train), 7))
    for segment in batch.segments:
        for number, part in enumerate(train.parts()):
            if part.source.name == segment.source:
                memory.insert(part, (0, "train", number), batch.index[segment.rows])
    found = memory.all_rows()
    assert found is not None
    assert {tuple(row.tolist()) for row in found.x.flatten(1)} == {tuple(row.tolist()) for row in batch.x.flatten(1)} <= known


def test_pieces_that_differ_in_the_name_of_their_domain_only_become_one() -> None:
    x, y = arrays(40, 2)
    base = joint(domain_incremental((x, y), transform=[torch.neg, torch.neg]))
    assert len(base[0].data["train"].parts()) == 2
    (part,) = task_free(base)[0].data["train"].parts()
    assert part.source.name == "data"
    assert len(part) == 64


def test_sources_of_another_name_keep_what_they_are() -> None:
    second = task_free(mixed())[0].data["train"].parts()[1]
    plain = mixed()[0].data["train"].parts()[1]
    assert (len(second.source), second.source.input_shape) == (len(plain.source), plain.source.input_shape)
    assert second.source.fingerprint() == plain.source.fingerprint()
    assert torch.equal(second.column("digits"), plain.column("digits"))
    hidden = second.without_labels()
    assert (hidden.targets, hidden.source.name) == ({}, "digits#2")
    assert hidden.batch(torch.tensor([0])).targets == {}
    other = second.source.with_targets({"z": torch.zeros(len(second.source))})
    assert (other.name, list(other.targets)) == ("digits#2", ["z"])


def test_task_free_numbers_episodes_within_an_experience() -> None:
    stream = task_free(episodes("sinusoids", 2, train_episodes=3, test_episodes=2))
    for experience in stream:
        data = experience.data["train"]
        assert isinstance(data, Episodes)
        assert data.batch(torch.arange(3)).domains == ("0", "1", "2")
    both = task_free(joint(episodes("sinusoids", 2, train_episodes=3, test_episodes=2)))[0].data["train"]
    assert sorted(both.batch(torch.arange(6)).domains) == ["0", "1", "2", "3", "4", "5"]


def adapting(domains: int = 2) -> Stream:
    """One experience of unlabelled rows from several domains of one source, which are scored as they come."""
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    source, task = TensorSource(x, {"y": (x[:, 0] > 0).long()}, "s"), Task("t", size=2)
    changes = [None, torch.neg][:domains]
    known = [Data(source, torch.arange(40), (task,), {"t": Target("y")}, change, f"d{k}") for k, change in enumerate(changes)]
    return Stream(
        "adapting", 2,
        lambda i: Experience(i, (task,), {"target": join([part.without_labels() for part in known])} if i else {"train": known[0]}, "e"),
        lambda i: EvaluationSet(i, join(known)),
        tasks=(task,), input_shape=(3,), description={}, truth=lambda i: join(known) if i else None,
    )  # fmt: skip


@pytest.mark.parametrize("domains", [1, 2])
def test_prequential_scores_are_those_of_the_base(domains: int) -> None:
    def scored(stream: Stream) -> list[tuple[float, int]]:
        torch.manual_seed(0)
        result = Engine(models.mlp(stream, hidden=(4,)), sgd()).run(stream)
        return [(line["value"], line["count"]) for line in result.record.events if line["event"] == "prequential"]

    base = adapting(domains)
    expected = scored(base)
    assert expected[0][1] == 40 * domains
    assert scored(task_free(base)) == expected


def test_the_truth_of_rows_that_never_come_is_left_out() -> None:
    base = adapting(2)
    first = Stream(
        "part", 2,
        lambda i: Experience(i, base.tasks, {"target": base[1].data["target"].parts()[i]}),
        base.evaluation_set,
        tasks=base.tasks, input_shape=(3,), description={}, truth=lambda i: base.truth(1),
    )  # fmt: skip
    for i in range(2):
        (truth,) = task_free(first).truth(i).parts()
        assert truth.transform == base.truth(1).parts()[i].transform
        assert (truth.domain, truth.source.name) == ("", "s")
    assert task_free(class_incremental("digits")).truth(0) is None


def test_task_free_works_without_an_end() -> None:
    whole = class_incremental("digits", 5)
    base = Stream(
        "endless", None, lambda i: whole[i % 5], lambda j: whole.evaluation_set(j % 5), tasks=whole.tasks,
        input_shape=whole.input_shape, description={"builder": "endless"},
    )  # fmt: skip
    stream = task_free(base)
    assert stream.endless
    assert [len(e.data["train"]) for e in itertools.islice(stream, 7)][5:] == [len(whole[i].data["train"]) for i in range(2)]
    assert stream[10:12].sets == (10, 11)
