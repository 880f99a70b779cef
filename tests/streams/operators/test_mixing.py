from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from itertools import combinations, pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamlearn import Engine, models
from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams import (
    Experience,
    Stream,
    Task,
    adaptation,
    blurry,
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
    task_incremental,
    validation,
)
from streamlearn.streams.operators.drift import NoisyOrder, even_exchange
from tests.core.support import sgd

real_data = pytest.mark.skipif("STREAMLEARN_DATA" not in os.environ, reason="STREAMLEARN_DATA is not set: it names the folder of real data")


def arrays(counts: list[int]) -> tuple[Tensor, Tensor]:
    """Rows that carry their own number, ``counts[c]`` of class c, in mixed order."""
    y = torch.cat([torch.full((count,), number) for number, count in enumerate(counts)])
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    return torch.arange(len(y), dtype=torch.float32).reshape(-1, 1), y


def rows(experience: Experience, role: str = "train") -> list[tuple[str, int]]:
    """Domain and number of each row of an experience."""
    return [(part.domain, row) for part in experience.data[role].parts() for row in part.indices.tolist()]


def numbers(experience: Experience) -> list[int]:
    return [row for _, row in rows(experience)]


def homes(base: Stream, stream: Stream) -> list[Counter[int]]:
    """From how many rows of which experience of ``base`` each experience is made."""
    of = {row: i for i, experience in enumerate(base) for row in rows(experience)}
    return [Counter(of[row] for row in rows(experience)) for experience in stream]


OPERATORS: list[Callable[..., Stream]] = [
    lambda s, seed=0: blurry(s, 0.4, disjoint=0.3, seed=seed),
    lambda s, seed=0: gradual(s, seed=seed),
]
COUNTS = st.lists(st.integers(4, 20), min_size=4, max_size=6)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([0, 1]), COUNTS, st.integers(2, 4), st.integers(0, 5))
def test_every_row_once_and_none_that_is_evaluated(operator: int, counts: list[int], experiences: int, seed: int) -> None:
    x, y = arrays(counts)
    base = class_incremental((x, y), experiences, seed=seed)
    stream = OPERATORS[operator](base, seed=seed)
    trained = sorted(row for e in stream for row in rows(e))
    assert trained == sorted(row for e in base for row in rows(e))
    assert not set(trained) & {("", row) for k in range(len(stream.sets)) for row in stream.evaluation_set(k).data.indices.tolist()}
    for experience in stream:
        assert experience.classes["class"] == tuple(sorted(set(y[numbers(experience)].tolist())))
    assert {k for i in range(len(stream)) for k in stream.sets_of(i)} == set(range(experiences))
    assert [rows(e) for e in OPERATORS[operator](base, seed=seed)] == [rows(e) for e in stream]


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([0, 1]), st.slices(4), st.integers(0, 3))
def test_slicing_and_iterating_agree(operator: int, part: slice, seed: int) -> None:
    stream = OPERATORS[operator](class_incremental(arrays([9] * 5), 4), seed=seed)
    expected = [(e.name, rows(e)) for e in stream][part]
    if expected:
        assert [(e.name, rows(e)) for e in stream[part]] == expected
        assert [rows(stream[part][i]) for i in reversed(range(len(expected)))] == [found for _, found in reversed(expected)]


@pytest.mark.parametrize("operator", OPERATORS)
def test_another_seed_gives_another_stream(operator: Callable[..., Stream]) -> None:
    base = class_incremental(arrays([20] * 6), 3)
    streams = [operator(base, seed=seed) for seed in range(3)]
    assert len({str([rows(e) for e in stream]) for stream in streams}) == len({stream.hash for stream in streams}) == 3


@pytest.mark.parametrize(
    "text",
    [
        "class_incremental:source=digits | blurry:fraction=0.3,disjoint=0.5,seed=4",
        "task_incremental:source=digits | blurry",
        "class_incremental:source=digits | gradual",
        "domain_incremental:source=digits | gradual:width=1,shape=sigmoid,experiences=7,seed=2",
        "class_incremental:source=digits | gradual:experiences=30 | blurry | online:rows=50",
    ],
)
def test_what_is_described_is_built_again(text: str) -> None:
    stream = build_chain(text)
    again = rebuild(json.loads(json.dumps(stream.description)))
    assert again.hash == stream.hash
    assert [rows(e) for e in again] == [rows(e) for e in stream]
    assert [again.sets_of(i) for i in range(len(again))] == [stream.sets_of(i) for i in range(len(stream))]


@pytest.mark.parametrize("operator", OPERATORS)
def test_building_reads_no_inputs(operator: Callable[..., Stream], toy: Any, counting: Any) -> None:
    source, test = toy(60, 6, kind=counting), toy(12, 6, name="toy/test", kind=counting)
    stream = operator(class_incremental(source, 3, test=test))
    assert len(stream[1].data["train"]) > 0
    assert source.rows_taken == test.rows_taken == 0
    assert stream[1].data["train"].source is source


# ---------------------------------------------------------------------- blurry


@settings(deadline=None, max_examples=30)
@given(COUNTS, st.integers(2, 4), st.floats(0, 0.99), st.integers(0, 5))
def test_blurry_gives_the_fraction_evenly(counts: list[int], experiences: int, fraction: float, seed: int) -> None:
    base = class_incremental(arrays(counts), experiences, seed=seed)
    found = homes(base, blurry(base, fraction, seed=seed))
    for i, experience in enumerate(base):
        size = len(experience.data["train"])
        given_to = [found[j][i] for j in range(experiences) if j != i]
        assert sum(given_to) == min(round(fraction * size), size - 1)
        assert max(given_to) - min(given_to) <= 1
        assert found[i][i] == size - sum(given_to) > 0


@settings(deadline=None)
@given(st.integers(2, 12), st.integers(0, 40))
def test_equal_gifts_change_no_size(experiences: int, count: int) -> None:
    shares = [row.tolist() for row in even_exchange([count] * experiences)]
    assert [sum(row) for row in shares] == [count] * experiences
    assert [sum(column) for column in zip(*shares, strict=True)] == [count] * experiences
    assert all(shares[i][i] == 0 for i in range(experiences))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 7), min_size=3, max_size=4))
def test_sizes_change_as_little_as_even_exchanges_allow(counts: list[int]) -> None:
    others, size = len(counts) - 1, len(counts)
    base = [[0 if j == i else c // others for j in range(size)] for i, c in enumerate(counts)]
    choices = [list(combinations([j for j in range(size) if j != i], c % others)) for i, c in enumerate(counts)]

    def change(more: Any) -> int:
        return sum(abs(counts[j] - sum(row[j] for row in base) - sum(j in row for row in more)) for j in range(size))

    found = [row.tolist() for row in even_exchange(counts)]
    mine = sum(abs(counts[j] - sum(row[j] for row in found)) for j in range(size))
    assert mine == min(change(more) for more in product(*choices))


@settings(deadline=None, max_examples=20)
@given(st.floats(0, 0.9), st.integers(0, 5))
def test_disjoint_classes_never_leave(disjoint: float, seed: int) -> None:
    x, y = arrays([20] * 10)
    base = class_incremental((x, y), 5, seed=seed)
    stream = blurry(base, 0.5, disjoint=disjoint, seed=seed)
    home = {c: i for i, e in enumerate(base) for c in e.classes["class"]}
    moved = {c for i, e in enumerate(stream) for c in e.classes["class"] if home[c] != i}
    assert len(moved) == 10 - round(disjoint * 10)


def test_thousands_of_small_experiences_are_blurred_at_once() -> None:
    base = online(class_incremental((torch.arange(7500.0).view(-1, 1), torch.arange(7500) % 10), 5), rows=2)
    stream = blurry(base, 0.5)
    started = time.monotonic()
    rows = [part.indices for i in (0, 1500, 2999) for part in stream[i].data["train"].parts()]
    assert time.monotonic() - started < 20, "nothing grows with the square of their number but one vector operation each"
    assert len(base) == 3000
    assert torch.cat(rows).unique().numel() == 6


def test_blurry_tasks_are_those_of_the_rows() -> None:
    base = task_incremental("digits", 3)
    stream = blurry(base, 0.2)
    for i, experience in enumerate(stream):
        assert {task.name for task in experience.tasks} == {"digits/0", "digits/1", "digits/2"}
        assert experience.tasks[0].name == f"digits/{i}"
        assert set(experience.classes) == {"digits/0", "digits/1", "digits/2"}
        batch = experience.data["train"].batch(torch.arange(len(experience.data["train"])))
        assert set(batch.tasks) == {"digits/0", "digits/1", "digits/2"}
    assert [stream.evaluation(i).tasks for i in range(3)] == [base.evaluation(i).tasks for i in range(3)]


def test_blurry_domains_stay_with_their_rows() -> None:
    base = domain_incremental("digits", 3)
    stream = blurry(base, 0.1, disjoint=0.2)
    assert [{domain for domain, _ in rows(e)} for e in stream] == [{f"permutation/{i}" for i in range(3)}] * 3
    assert sum(homes(base, stream), Counter()) == Counter(dict.fromkeys(range(3), 1438))


def test_blurry_treats_episodes_as_units_and_leaves_other_roles_alone() -> None:
    stream = blurry(episodes("sinusoids", 3, train_episodes=10, test_episodes=2), 0.4)
    assert [len(e.data["train"]) for e in stream] == [10] * 3
    names = [name for e in stream for name in e.data["train"].batch(torch.arange(10)).domains]
    assert sorted(names) == sorted(f"train/{i}" for i in range(30))
    base = validation(class_incremental("digits", 3))
    assert [rows(e, "validation") for e in blurry(base)] == [rows(e, "validation") for e in base]


# ---------------------------------------------------------------------- gradual


@pytest.mark.parametrize(("shape", "width"), [("linear", 0.5), ("linear", 1.0), ("sigmoid", 0.4)])
def test_the_share_of_the_next_experience_follows_the_formula(shape: str, width: float) -> None:
    order = NoisyOrder([20_000, 20_000], width=width, shape=shape, seed=1, purpose="test")
    runs, _ = order.between(0, 40_000)
    place = (torch.arange(40_000) + 0.5) / 20_000 - 1  # of the boundary: densities on both sides are 1 there
    for start in torch.linspace(-0.45, 0.4, 12).tolist():
        window = (place >= start) & (place < start + 0.05)
        middle = torch.tensor(start + 0.025)
        share = (0.5 + middle / width).clamp(0, 1) if shape == "linear" else torch.sigmoid(8 * middle / width)
        assert float(runs[window].double().mean()) == pytest.approx(float(share), abs=0.05)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.floats(0.01, 5), st.sampled_from(["linear", "sigmoid"]), st.integers(0, 3))
def test_an_order_read_piece_by_piece_is_the_order_of_all_times(sizes: list[int], width: float, shape: str, seed: int) -> None:
    order = NoisyOrder(sizes, width=width, shape=shape, seed=seed, purpose="test")
    times = torch.cat([order._draw(run)[0] for run in range(len(sizes))])
    where = [(run, row) for run, size in enumerate(sizes) for row in range(size)]
    expected = [where[place] for place in times.argsort(stable=True).tolist()]
    total, step = sum(sizes), 1 + seed
    found = [order.between(start, min(start + step, total)) for start in range(0, total, step)]
    assert [pair for runs, row in found for pair in zip(runs.tolist(), row.tolist(), strict=True)] == expected


@settings(deadline=None, max_examples=25)
@given(COUNTS, st.integers(2, 4), st.integers(1, 12), st.sampled_from(["linear", "sigmoid"]), st.floats(0.05, 3))
def test_gradual_sizes_and_sets(counts: list[int], experiences: int, chunks: int, shape: str, width: float) -> None:
    base = class_incremental(arrays(counts), experiences)
    assert [len(e.data["train"]) for e in gradual(base, width, shape=shape)] == [len(e.data["train"]) for e in base]
    stream = gradual(base, width, shape=shape, experiences=chunks)
    sizes = [len(e.data["train"]) for e in stream]
    assert len(sizes) == chunks
    assert max(sizes) - min(sizes) <= 1
    found = homes(base, stream)
    sets = [tuple(stream.sets[k] for k in stream.sets_of(i)) for i in range(chunks)]
    first = [min(of, key=lambda home: (-of[home], home)) for of in found]
    assert [several[0] for several in sets] == first
    for k in range(experiences):
        owners = [i for i in range(chunks) if k in sets[i]]
        if k not in first:
            assert owners == [max(range(chunks), key=lambda i: found[i][k])]
        assert owners, "every set is taught"


def test_gradual_mixes_neighbours_only_and_more_where_wider() -> None:
    base = class_incremental("digits", 5, shuffle=False)
    narrow, wide = (homes(base, gradual(base, width)) for width in (0.2, 1.0))
    assert all(abs(home - i) <= 1 for found in (narrow, wide) for i, of in enumerate(found) for home in of)
    moved = [sum(count for i, of in enumerate(found) for home, count in of.items() if home != i) for found in (narrow, wide)]
    assert moved[0] * 4 < moved[1]
    # on each of 4 boundaries: the integral of the share 1/2 - s/width over half the width, from both sides
    assert moved[1] == pytest.approx(4 * 2 * 288 * 1.0 / 8, rel=0.1)
    assert gradual(base, 1.0)[1].name == "classes 0, 1 to classes 4, 5"
    assert gradual(base, 0.1, experiences=50)[4].name == "classes 0, 1"


def test_gradual_rows_of_one_kind_keep_the_order_of_their_times() -> None:
    stream = gradual(data_incremental(arrays([60, 60]), 2, shuffle=False), 0.5, experiences=3)
    order = NoisyOrder([48, 48], width=0.5, shape="linear", seed=0, purpose="gradual train")
    runs, places = order.between(32, 64)
    base = data_incremental(arrays([60, 60]), 2, shuffle=False)
    assert 0 < int(runs.sum()) < 32
    assert numbers(stream[1]) == [numbers(base[run])[place] for run, place in zip(runs.tolist(), places.tolist(), strict=True)]


def test_gradual_of_domains_and_tasks_is_joined() -> None:
    stream = gradual(domain_incremental("digits", 3, transform="rotation"), 1.0)
    assert [len(e.data["train"].parts()) for e in stream] == [2, 3, 2]
    assert {part.domain for part in stream[1].data["train"].parts()} == {"rotation/0", "rotation/60", "rotation/120"}
    tasks = gradual(task_incremental("digits", 3), 1.0)
    assert [task.name for task in tasks[0].tasks] == ["digits/0", "digits/1"]
    assert set(tasks[1].classes) == {"digits/0", "digits/1", "digits/2"}


def test_gradual_after_task_free_keeps_rows_apart() -> None:
    stream = gradual(task_free(domain_incremental("digits", 2)), 1.0)
    assert [part.source.name for part in stream[0].data["train"].parts()] == ["digits", "digits#2"]


def test_gradual_mixes_each_role_by_itself() -> None:
    base = validation(class_incremental("digits", 4), 0.2)
    stream = gradual(base, 1.0)
    for role in ("train", "validation"):
        assert [len(e.data[role]) for e in stream] == [len(e.data[role]) for e in base]
        assert sorted(row for e in stream for row in rows(e, role)) == sorted(row for e in base for row in rows(e, role))
    many = gradual(base, experiences=1000)
    assert sum("validation" in e.data for e in many) == sum(len(e.data["validation"]) for e in base)


def test_gradual_takes_episodes_whole() -> None:
    stream = gradual(episodes("sinusoids", 2, train_episodes=20, test_episodes=2), 1.0)
    names = [name for e in stream for name in e.data["train"].batch(torch.arange(20)).domains]
    assert sorted(names) == sorted(f"train/{i}" for i in range(40))
    assert set(names[:20]) != {f"train/{i}" for i in range(20)}


def targets_only(experiences: int = 3) -> Stream:
    """Unlabelled rows, which are scored on the truth of their experience."""
    base = domain_incremental("digits", experiences)
    return Stream(
        "targets", experiences,
        lambda i: Experience(i, base.tasks, {"target": base[i].data["train"].without_labels()}, f"e{i}"),
        base.evaluation_set, tasks=base.tasks, input_shape=base.input_shape, description={}, truth=lambda i: base[i].data["train"],
    )  # fmt: skip


def test_gradual_truth_holds_the_rows_of_the_chunk() -> None:
    stream = gradual(targets_only(), 0.5)
    for experience in stream:
        truth = stream.truth(experience.index)
        assert truth is not None
        known = {(part.domain, row) for part in truth.parts() for row in part.indices.tolist()}
        assert set(rows(experience, "target")) <= known
        assert all(part.targets == {} for part in experience.data["target"].parts())
        assert {domain for domain, _ in known} == {domain for domain, _ in rows(experience, "target")}
    assert gradual(class_incremental("digits")).truth(0) is None


def test_a_thousand_domains_keep_no_more_than_the_rows_near_a_boundary() -> None:
    stream = gradual(domain_incremental((torch.rand(50, 4), torch.arange(50) % 5), 1000), 0.5)
    assert {domain for domain, _ in rows(stream[700])} == {f"permutation/{i}" for i in (699, 700, 701)}
    assert len(stream.sets) == 1000


@pytest.mark.parametrize("text", ["blurry:fraction=0.3", "gradual:width=1,experiences=9", "blurry | task_free", "gradual | task_free"])
def test_an_engine_trains_on_it(text: str) -> None:
    stream = build_chain(f"domain_incremental:source=digits,experiences=3 | {text}")
    result = Engine(models.mlp(stream, hidden=(8,)), sgd()).run(stream)
    assert result.accuracy_matrix.shape == (len(stream) + 1, 3)


# ---------------------------------------------------------------------- what is refused

REFUSED: list[tuple[Callable[[Stream], Stream], str]] = [
    (lambda s: blurry("digits"), "blurry changes a stream, and a str is none: build one first, blurry(stream, ...)"),
    (lambda s: blurry(s, 1), "fraction is 1: give a number in [0, 1)"),
    (lambda s: blurry(s, "much"), "fraction is 'much': give a number in [0, 1)"),
    (lambda s: blurry(s, disjoint=1.0), "disjoint is 1.0: give a number in [0, 1)"),
    (lambda s: blurry(s, seed=0.5), "seed is 0.5: give a whole number of at least 0"),
    (lambda s: blurry(joint(s)), "blurry mixes experiences, and stream 'digits/class_incremental/joint' has only one: cut it into more"),
    (
        lambda s: blurry(adaptation("moons", source_free=True)),
        "blurry exchanges training rows, and experience 1 of stream 'moons/adaptation' has none: leave it out",
    ),
    (
        lambda s: blurry(data_incremental((torch.zeros(20, 1), torch.rand(20))), disjoint=0.5),
        "disjoint is 0.5, but no training row of stream 'class/data_incremental' has a class: leave it at 0",
    ),
    (
        lambda s: blurry(episodes("digits", 2, ways=2, shots=1, queries=1, train_episodes=4, test_episodes=2), disjoint=0.5),
        "disjoint is 0.5, but no training row of stream 'digits/episodes' has a class: leave it at 0",
    ),
    (lambda s: gradual([s]), "gradual changes a stream, and a list is none: build one first, gradual(stream, ...)"),
    (lambda s: gradual(s, 0), "width is 0: give a number above 0, of experiences"),
    (lambda s: gradual(s, "wide"), "width is 'wide': give a number above 0, of experiences"),
    (lambda s: gradual(s, float("nan")), "width is nan: give a number above 0, of experiences"),
    (lambda s: gradual(s, seed=-1), "seed is -1: give a whole number of at least 0"),
    (lambda s: gradual(s, experiences=0), "the number of experiences is 0: give a whole number of at least 1"),
    (
        lambda s: gradual(s, experiences=1439),
        "the number of experiences is 1439, but there are only 1438 rows of role 'train': ask for fewer",
    ),
    (
        lambda s: gradual(adaptation("moons", source_free=True)),
        "gradual mixes rows of one role, but experience 0 of stream 'moons/adaptation' is about 'train' and experience 1 about "
        "'target': take a part whose experiences are alike",
    ),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_what_cannot_be_is_refused_with_a_reason(build: Callable[[Stream], Stream], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        build(class_incremental("digits", 5))


def test_endless_streams_and_unknown_shapes_are_refused() -> None:
    endless = build_chain("class_incremental:source=digits | recurring:times=endless")
    for operator in (blurry, gradual):
        with pytest.raises(DataError, match=r"must know every experience, and stream '.*' is endless: take a part, such as stream\[:100\]"):
            operator(endless)
    assert len(gradual(endless[:7])) == 7
    with pytest.raises(UnknownNameError, match="unknown shape 'linea': did you mean 'linear'"):
        gradual(class_incremental("digits"), shape="linea")


@pytest.mark.data
@real_data
def test_blurry_split_mnist() -> None:
    base = class_incremental("mnist", 5, shuffle=False)
    stream = blurry(base, 0.1)
    sizes = [len(e.data["train"]) for e in stream]
    assert sum(sizes) == 60_000
    assert max(abs(a - len(b.data["train"])) for a, b in zip(sizes, base, strict=True)) < 120
    assert all(a != b for a, b in pairwise(sizes))
    assert stream.tasks == (Task("mnist", size=10, classes=base.tasks[0].classes),)
