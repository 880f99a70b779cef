from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
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
    build_chain,
    class_incremental,
    data_incremental,
    domain_incremental,
    episodes,
    imbalanced,
    joint,
    online,
    rebuild,
    task_incremental,
    validation,
)
from streamlearn.streams.data import Data, JoinedData
from streamlearn.streams.operators.deriving import derived, map_role
from streamlearn.streams.operators.thinning import NO_CLASS, rows_by_class
from tests.core.support import sgd


def arrays(counts: list[int]) -> tuple[Tensor, Tensor]:
    """Rows that carry their own number, ``counts[c]`` of class c, in mixed order."""
    y = torch.cat([torch.full((count,), number) for number, count in enumerate(counts)])
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    return torch.arange(len(y), dtype=torch.float32).reshape(-1, 1), y


def rows(experience: Experience, role: str = "train") -> list[tuple[str, int]]:
    return [(part.domain, row) for part in experience.data[role].parts() for row in part.indices.tolist()]


def per_class(stream: Stream) -> Counter[tuple[str, int]]:
    return sum((Counter({key: len(found) for key, found in rows_by_class(e.data["train"]).items()}) for e in stream), Counter())


def changed(stream: Stream, change: Callable[[Data], Data]) -> Stream:
    """``stream`` with something else for training rows."""

    def experience(i: int) -> Experience:
        known = stream[i]
        return Experience(i, known.tasks, {"train": map_role(known.data["train"], change)}, known.name, known.classes)

    return derived(stream, "changed", {}, experience=experience, length=len(stream))


def half_labelled(stream: Stream) -> Stream:
    def change(part: Data) -> Data:
        return replace(part, labelled={part.tasks[0].name: torch.arange(len(part)) % 2 == 0})

    return changed(stream, change)


COUNTS = st.lists(st.integers(5, 30), min_size=3, max_size=6)

# ---------------------------------------------------------------------- imbalanced


@settings(deadline=None, max_examples=40)
@given(COUNTS, st.integers(1, 3), st.floats(0.01, 1), st.sampled_from(["exponential", "step"]), st.booleans(), st.integers(0, 5))
def test_classes_keep_what_the_profile_says(
    counts: list[int], experiences: int, factor: float, shape: str, shuffled: bool, seed: int
) -> None:
    x, y = arrays(counts)
    base = class_incremental((x, y), experiences, seed=seed)
    order = "shuffled" if shuffled else "ordered"
    stream = imbalanced(base, factor, shape=shape, order=order, seed=seed)
    had, has = per_class(base), per_class(stream)
    largest, classes = max(had.values()), len(had)
    profile = [factor ** (k / (classes - 1)) if shape == "exponential" else (1.0 if k < classes / 2 else factor) for k in range(classes)]
    quotas = [max(1, int(largest * share + 1e-6)) for share in profile]
    arrived = [("class", c) for e in base for c in e.classes["class"]]
    if shuffled:
        assert any(
            all(has[key] == min(had[key], quota) for key, quota in zip(ranked, quotas, strict=True))
            for ranked in itertools.permutations(arrived)
        )
    else:
        assert [has[key] for key in arrived] == [min(had[key], quota) for key, quota in zip(arrived, quotas, strict=True)]
    for before, after in zip(base, stream, strict=True):
        assert set(rows(after)) <= set(rows(before))
        assert len(set(rows(after))) == len(rows(after))
        assert after.classes == before.classes
        assert after.index == before.index
    assert [stream.evaluation(i).data.indices.tolist() for i in range(len(base))] == [
        base.evaluation(i).data.indices.tolist() for i in range(len(base))
    ]
    assert [rows(e) for e in imbalanced(base, factor, shape=shape, order=order, seed=seed)] == [rows(e) for e in stream]


def test_the_sizes_of_long_tailed_cifar() -> None:
    y = torch.arange(50_000) % 10
    base = class_incremental((torch.zeros(50_000, 1), y), 5, test=(torch.zeros(10, 1), torch.arange(10)), shuffle=False)
    stream = imbalanced(base, 0.01, order="ordered")
    sizes = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]  # of CIFAR-10-LT with an imbalance of 100, as published
    assert [per_class(stream)["class", c] for c in range(10)] == sizes
    assert sum(len(e.data["train"]) for e in stream) == 12_406
    step = imbalanced(base, 0.1, shape="step", order="ordered")
    assert [len(e.data["train"]) for e in step] == [10_000, 10_000, 5500, 1000, 1000]


def test_rows_of_a_class_that_comes_again_are_thinned_alike() -> None:
    base = domain_incremental("digits", 4)
    stream = imbalanced(base, 0.1)
    for c in range(10):
        shares = [len(rows_by_class(e.data["train"])["digits", c]) for e in stream]
        assert max(shares) - min(shares) <= 1
    had, has = per_class(base), per_class(stream)
    assert min(has.values()) == int(max(had.values()) * 0.1)
    assert {domain for e in stream for domain, _ in rows(e)} == {f"permutation/{i}" for i in range(4)}


def test_classes_of_different_tasks_are_different_classes() -> None:
    stream = imbalanced(task_incremental("digits", 5, shuffle=False), 0.1, order="ordered")
    sizes = [len(found) for e in stream for found in rows_by_class(e.data["train"]).values()]
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (142, 14)


def test_ranks_and_rows_depend_on_the_seed() -> None:
    base = class_incremental("digits", 5)
    assert len({str(per_class(imbalanced(base, 0.1, seed=seed))) for seed in range(4)}) == 4
    ordered = [imbalanced(base, 0.1, order="ordered", seed=seed) for seed in range(2)]
    assert per_class(ordered[0]) == per_class(ordered[1])
    assert [rows(e) for e in ordered[0]] != [rows(e) for e in ordered[1]]
    assert ordered[0].hash != ordered[1].hash


def test_other_roles_and_experiences_without_training_rows_stay() -> None:
    base = validation(class_incremental("digits", 3))
    stream = imbalanced(base, 0.1)
    assert [rows(e, "validation") for e in stream] == [rows(e, "validation") for e in base]
    free = imbalanced(adaptation("moons", rows=40, source_free=True), 0.1, order="ordered")
    assert [{role: len(data) for role, data in e.data.items()} for e in free] == [{"train": 22}, {"target": 40}]
    assert len(free.truth(1)) == 40


# ---------------------------------------------------------------------- validation


@settings(deadline=None, max_examples=40)
@given(COUNTS, st.integers(1, 3), st.floats(0.01, 0.99), st.integers(0, 5))
def test_validation_takes_the_fraction_of_every_class(counts: list[int], experiences: int, fraction: float, seed: int) -> None:
    x, y = arrays(counts)
    base = class_incremental((x, y), experiences, seed=seed)
    stream = validation(base, fraction, seed=seed)
    for before, after in zip(base, stream, strict=True):
        train, kept = rows(after), rows(after, "validation") if "validation" in after.data else []
        assert sorted([*train, *kept]) == rows(before), "every row once"
        of = Counter(y[[row for _, row in kept]].tolist())
        total = Counter(y[[row for _, row in rows(before)]].tolist())
        assert {c: of[c] for c in total} == {c: min(round(fraction * n), n - 1) for c, n in total.items()}
        assert after.classes == before.classes
    assert [rows(e) for e in validation(base, fraction, seed=seed)] == [rows(e) for e in stream]
    assert [stream.sets_of(i) for i in range(len(base))] == [base.sets_of(i) for i in range(len(base))]


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([lambda s: imbalanced(s, 0.3), validation]), st.slices(4))
def test_slicing_and_iterating_agree(operator: Callable[[Stream], Stream], part: slice) -> None:
    stream = operator(class_incremental(arrays([12] * 6), 4))
    expected = [(e.name, rows(e)) for e in stream][part]
    if expected:
        assert [(e.name, rows(e)) for e in stream[part]] == expected


def test_validation_draws_other_rows_for_another_seed_and_in_each_experience() -> None:
    base = domain_incremental("digits", 2)
    first, second = (validation(base, seed=seed) for seed in range(2))
    kept = [{row for _, row in rows(e, "validation")} for stream in (first, second) for e in stream]
    assert all(a != b for a, b in itertools.combinations(kept, 2))
    assert first.hash != second.hash


def test_validation_leaves_out_what_it_cannot_take() -> None:
    free = validation(adaptation("moons", rows=40, source_free=True))
    assert [sorted(e.data) for e in free] == [["train", "validation"], ["target"]]
    assert free.truth(1) is not None
    few = validation(online(class_incremental("digits", 5), rows=4), 0.1)
    assert [sorted(e.data) for e in few[:3]] == [["train"]] * 3


def test_validation_of_regression_episodes_and_hidden_labels() -> None:
    values = validation(data_incremental((torch.zeros(50, 1), torch.rand(50)), 2), 0.25)
    assert [{role: len(data) for role, data in e.data.items()} for e in values] == [{"train": 15, "validation": 5}] * 2
    small = validation(episodes("digits", 1, ways=2, shots=1, queries=1, train_episodes=8, test_episodes=2), 0.25)[0]
    assert {role: len(data) for role, data in small.data.items()} == {"train": 6, "validation": 2}
    parts = [small.data[role] for role in ("train", "validation")]
    assert sorted(name for part in parts for name in part.batch(torch.arange(len(part))).domains) == [f"train/{i}" for i in range(8)]
    base = half_labelled(class_incremental(arrays([50, 50]), 1, test_fraction=0.2))
    data = validation(base, 0.25)[0].data
    (train,), (kept,) = data["train"].parts(), data["validation"].parts()
    assert len(kept) == 20
    assert int(kept.labelled["class"].sum()) == 10, "rows without a label are a class of their own"
    assert int(train.labelled["class"].sum()) == 30


def test_validation_works_without_an_end() -> None:
    whole = class_incremental("digits", 5)
    base = Stream(
        "endless", None, lambda i: whole[i % 5], lambda j: whole.evaluation_set(j % 5), tasks=whole.tasks,
        input_shape=whole.input_shape, description={"builder": "endless"},
    )  # fmt: skip
    stream = validation(base)
    assert stream.endless
    assert [sorted(e.data) for e in itertools.islice(stream, 7)] == [["train", "validation"]] * 7
    assert len(stream[100:103]) == 3


def test_several_pieces_are_split_as_one() -> None:
    stream = validation(joint(task_incremental("digits", 3)), 0.5)
    train, kept = (rows_by_class(stream[0].data[role]) for role in ("train", "validation"))
    assert len(train) == 10
    assert isinstance(stream[0].data["train"], JoinedData)
    assert all(len(train[key]) - len(kept[key]) in (-1, 0, 1) for key in train)


# ---------------------------------------------------------------------- both


@pytest.mark.parametrize("operator", [lambda s: imbalanced(s, 0.5), validation])
def test_building_reads_no_inputs(operator: Callable[[Stream], Stream], toy: Any, counting: Any) -> None:
    source, test = toy(60, 6, kind=counting), toy(12, 6, name="toy/test", kind=counting)
    stream = operator(class_incremental(source, 3, test=test))
    assert len(stream[1].data["train"]) > 0
    assert source.rows_taken == test.rows_taken == 0
    assert stream[1].data["train"].source is source


@pytest.mark.parametrize(
    "text",
    [
        "class_incremental:source=digits | imbalanced:factor=0.05",
        "class_incremental:source=digits,experiences=2 | imbalanced:factor=0.1,shape=step,order=ordered | validation:fraction=0.2,seed=5",
        "domain_incremental:source=digits,experiences=2 | validation | online:rows=200",
    ],
)
def test_what_is_described_is_built_again_and_trained_on(text: str) -> None:
    stream = build_chain(text)
    again = rebuild(json.loads(json.dumps(stream.description)))
    assert again.hash == stream.hash
    assert [rows(e) for e in again] == [rows(e) for e in stream]
    result = Engine(models.mlp(stream, hidden=(8,)), sgd()).run(stream)
    assert result.accuracy_matrix.shape == (len(stream) + 1, len(stream.sets))


def test_rows_by_class_skips_what_has_no_class() -> None:
    labelled = half_labelled(class_incremental(arrays([10, 20]), 1, test_fraction=0.2))[0].data["train"]
    found = rows_by_class(labelled)
    assert list(found) == [NO_CLASS, ("class", 0), ("class", 1)]
    assert sorted(torch.cat(list(found.values())).tolist()) == list(range(24))
    assert len(found[NO_CLASS]) == 12
    empty = labelled.subset(torch.zeros(0, dtype=torch.int64))
    assert rows_by_class(empty) == {}


# ---------------------------------------------------------------------- what is refused

REFUSED: list[tuple[Callable[[Stream], Any], str]] = [
    (lambda s: imbalanced("digits"), "imbalanced changes a stream, and a str is none: build one first, imbalanced(stream, ...)"),
    (lambda s: imbalanced(s, 0), "factor is 0: give a number in (0, 1]"),
    (lambda s: imbalanced(s, 100), "factor is 100: give a number in (0, 1]"),
    (lambda s: imbalanced(s, seed="x"), "seed is 'x': give a whole number of at least 0"),
    (
        lambda s: imbalanced(data_incremental((torch.zeros(20, 1), torch.rand(20)))),
        "4 training rows of experience 0 of stream 'class/data_incremental' have no class: imbalanced needs classification",
    ),
    (
        lambda s: imbalanced(episodes("digits", ways=2, shots=1, queries=1, train_episodes=8, test_episodes=2)),
        "8 training rows of experience 0 of stream 'digits/episodes' have no class: imbalanced needs classification without episodes",
    ),
    (lambda s: imbalanced(half_labelled(s)), "put it before what hides labels"),
    (
        lambda s: imbalanced(adaptation("moons", source_free=True)[1:]),
        "no experience of stream 'moons/adaptation' has rows of role 'train', and imbalanced takes away no others",
    ),
    (
        lambda s: imbalanced(online(s, rows=2, shuffle=False), 0.01),
        "factor is 0.01, which leaves experience",
    ),
    (lambda s: validation(3), "validation changes a stream, and a int is none: build one first, validation(stream, ...)"),
    (lambda s: validation(s, 0), "fraction is 0: give a number in (0, 1)"),
    (lambda s: validation(s, 1.0), "fraction is 1.0: give a number in (0, 1)"),
    (lambda s: validation(s, seed=-1), "seed is -1: give a whole number of at least 0"),
    (
        lambda s: validation(validation(s)),
        "experience 0 of stream 'digits/class_incremental/validation' has rows of role 'validation' already: leave validation out",
    ),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_what_cannot_be_is_refused_with_a_reason(build: Callable[[Stream], Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        build(class_incremental("digits", 5))


def test_rows_of_several_tasks_have_no_single_class() -> None:
    def change(part: Data) -> Data:
        return replace(part, tasks=(*part.tasks, Task("parity", size=2)))

    with pytest.raises(DataError, match=r"experience 0 of stream '.*' have several tasks \(digits, parity\): imbalanced needs one"):
        imbalanced(changed(class_incremental("digits"), change))


def test_unknown_shapes_orders_and_endless_streams_are_refused() -> None:
    base = class_incremental("digits")
    with pytest.raises(UnknownNameError, match=r"unknown shape 'steps': did you mean 'step'\?"):
        imbalanced(base, shape="steps")
    with pytest.raises(UnknownNameError, match="unknown order 'random'"):
        imbalanced(base, order="random")
    with pytest.raises(DataError, match=r"imbalanced must know every experience, and stream '.*' is endless"):
        imbalanced(build_chain("class_incremental:source=digits | recurring:times=endless"))
