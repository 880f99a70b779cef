from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from streamlearn import Engine, streams
from streamlearn.errors import ConfigurationError, DataError, UnknownNameError
from streamlearn.streams import EvaluationSet, Experience, Stream, Task, TensorSource, label_policy
from streamlearn.streams.data import Data, Target, join
from tests.core.support import blobs, sgd

Rows = dict[int, int | None]


def arrays(counts: list[int]) -> tuple[Tensor, Tensor]:
    """Rows that carry their own number, ``counts[c]`` of class c, in mixed order."""
    y = torch.cat([torch.full((count,), number) for number, count in enumerate(counts)])
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    return torch.arange(len(y), dtype=torch.float32).reshape(-1, 1), y


def rows(experience: Experience, role: str, task: str | None = None) -> Rows:
    """The rows of a role, and the label of each, ``None`` where it has none."""
    if role not in experience.data:
        return {}
    data = experience.data[role]
    batch = data.batch(torch.arange(len(data)), role)
    task = task or batch.tasks[0]
    known = batch.labelled_rows(task).tolist() if task in batch.targets else [False] * len(batch)
    labels = batch.targets[task].tolist() if task in batch.targets else [None] * len(batch)
    return {row: label if has else None for row, label, has in zip(batch.index.tolist(), labels, known, strict=True)}


def told(stream: Stream) -> list[dict[str, Any]]:
    """All that the experiences of a stream hold."""
    return [
        {"classes": dict(e.classes), "name": e.name, "tasks": [t.name for t in e.tasks], **{role: rows(e, role) for role in e.data}}
        for e in stream
    ]


def counted(labels: Rows) -> dict[int, int]:
    found: dict[int, int] = {}
    for label in labels.values():
        if label is not None:
            found[label] = found.get(label, 0) + 1
    return found


BUILDERS = [streams.class_incremental, streams.task_incremental, streams.data_incremental, streams.domain_incremental]
POLICIES: list[dict[str, Any]] = [
    {"policy": "full"}, {"policy": "sparse", "per_class": 2}, {"policy": "sparse", "fraction": 0.3}, {"policy": "delayed", "steps": 1},
    {"policy": "delayed", "steps": 2}, {"policy": "never"},
]  # fmt: skip

# ---------------------------------------------------------------------- properties


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(BUILDERS), st.lists(st.integers(4, 9), min_size=3, max_size=6), st.integers(0, 9), st.integers(1, 5), st.booleans())
def test_a_sparse_stream_labels_exactly_as_many(
    builder: Callable[..., Stream], counts: list[int], seed: int, number: int, exact: bool
) -> None:
    base = builder(arrays(counts), 3, seed=1, test_fraction=0.3)
    amount: dict[str, Any] = {"per_class": number} if exact else {"fraction": number / 5}
    for experience, whole in zip(label_policy(base, "sparse", **amount, seed=seed), base, strict=True):
        found, all_labels = rows(experience, "train"), rows(whole, "train")
        assert found.keys() == all_labels.keys(), "all rows are still there"
        assert all(label in (None, all_labels[row]) for row, label in found.items())
        present = counted(all_labels)
        wanted = {c: min(number, n) if exact else max(1, round(number / 5 * n)) for c, n in present.items()}
        assert counted(found) == wanted
        assert dict(experience.classes) == dict(whole.classes)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(BUILDERS), st.integers(1, 4), st.integers(2, 5))
def test_delayed_labels_arrive_exactly_so_much_later(builder: Callable[..., Stream], steps: int, experiences: int) -> None:
    base = builder(arrays([6] * 5), experiences, seed=2)
    stream = label_policy(base, "delayed", steps=steps)
    assert len(stream) == len(base)
    for i, experience in enumerate(stream):
        assert rows(experience, "target") == dict.fromkeys(rows(base[i], "train"))
        assert experience.data["target"].parts()[0].targets == {}
        assert ("train" in experience.data) == (i >= steps)
        truth = stream.truth(i)
        assert truth is not None
        assert rows(Experience(0, (), {"train": truth}), "train") == rows(base[i], "train")
        if i >= steps:
            assert rows(experience, "train") == rows(base[i - steps], "train")
            assert dict(experience.classes) == dict(base[i - steps].classes)
            assert {task.name for task in experience.tasks} == {t.name for j in (i, i - steps) for t in base[j].tasks}
        else:
            assert dict(experience.classes) == {}


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(BUILDERS), st.sampled_from(POLICIES), st.integers(0, 5), st.slices(4))
def test_slicing_iterating_and_asking_again_agree(builder: Callable[..., Stream], policy: dict[str, Any], seed: int, part: slice) -> None:
    stream = label_policy(builder(arrays([6] * 5), 4, seed=seed), **policy, seed=seed)
    everything = told(stream)
    assert told(stream) == everything
    assert told(label_policy(builder(arrays([6] * 5), 4, seed=seed), **policy, seed=seed)) == everything
    backwards = [told(stream[i : i + 1])[0] for i in (3, 1, 2, 0)]
    assert [everything[i] for i in (3, 1, 2, 0)] == backwards
    if everything[part]:
        assert told(stream[part]) == everything[part]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("chain", ["class_incremental:source=digits", "domain_incremental:source=digits,experiences=3 | validation"])
def test_a_stream_comes_back_from_its_description(chain: str, policy: dict[str, Any]) -> None:
    stream = label_policy(streams.build_chain(chain), **policy)
    again = streams.rebuild(json.loads(json.dumps(stream.description)))
    assert again.hash == stream.hash
    assert told(again) == told(stream)


def test_another_seed_labels_other_rows() -> None:
    base = streams.data_incremental("digits", 2)
    found = [label_policy(base, "sparse", per_class=2, seed=seed) for seed in range(4)]
    assert len({str(told(stream)) for stream in found}) == 4
    assert len({stream.hash for stream in found}) == 4


@pytest.mark.parametrize("policy", POLICIES)
def test_evaluation_has_everything(policy: dict[str, Any]) -> None:
    base = streams.class_incremental("digits", 5)
    stream = label_policy(base, **policy)
    assert stream.sets == base.sets
    for i in range(5):
        known, found = base.evaluation(i), stream.evaluation(i)
        assert (known.name, known.index) == (found.name, found.index)
        batches = [e.data.batch(torch.arange(len(e.data))) for e in (known, found)]
        assert torch.equal(batches[0].index, batches[1].index)
        assert torch.equal(batches[0].targets["digits"], batches[1].targets["digits"])
        assert batches[1].is_uniform


# ---------------------------------------------------------------------- which rows


def test_a_row_that_comes_in_several_domains_is_labelled_in_all_or_in_none() -> None:
    stream = label_policy(streams.domain_incremental("digits", 4), "sparse", per_class=3)
    first, *others = [rows(experience, "train") for experience in stream]
    assert all(found == first for found in others)
    pieces = [experience.data["train"].parts()[0] for experience in stream]
    assert len({id(piece.source) for piece in pieces}) == 1, "and all share one source"
    assert len({piece.labelled["digits"].data_ptr() for piece in pieces}) == 1


def test_more_labels_keep_those_that_were_there() -> None:
    base = streams.class_incremental("digits", 2)
    shown = [
        {row for e in label_policy(base, "sparse", per_class=n) for row, label in rows(e, "train").items() if label is not None}
        for n in (1, 4, 20)
    ]
    assert shown[0] < shown[1] < shown[2]


def test_a_thousand_experiences_cost_no_more_than_what_they_show() -> None:
    source = TensorSource(torch.zeros(4000, 1), {"y": torch.arange(4000) % 2}, "big")
    base = streams.data_incremental(source, 1000, test=(torch.zeros(2, 1), [0, 1]))
    pieces = [experience.data["train"].parts()[0] for experience in label_policy(base, "sparse", per_class=1)]
    kept = sum(t.numel() for piece in pieces for pair in piece.source._shown.values() for t in pair)  # type: ignore[attr-defined]
    assert kept <= 2 * 2 * 1000
    assert len({id(piece.source.without_targets()) for piece in pieces}) == 1  # type: ignore[attr-defined]


def test_building_reads_no_inputs(counting: Any) -> None:
    source = counting(torch.zeros(60, 1), {"y": torch.arange(60) % 3}, "counted")
    base = streams.data_incremental(source, 3, test=(torch.zeros(3, 1), [0, 1, 2]))
    for policy in POLICIES:
        list(label_policy(base, **policy))
    assert source.rows_taken == 0


def by_hand(*parts: Data, role: str = "train") -> Stream:
    data = join(list(parts))
    return Stream(
        "hand", 1, lambda i: Experience(0, data.tasks, {role: data}), lambda i: EvaluationSet(0, data), tasks=data.tasks,
        input_shape=(6,), description={"by": "hand"},
    )  # fmt: skip


A, B = Task("a", size=6), Task("b", size=2)


def test_each_task_of_a_row_draws_its_own_labels() -> None:
    y = torch.arange(60)
    source = TensorSource(torch.zeros(60, 6), {"one": y % 6, "two": y % 2}, "two columns")
    data = Data(source, torch.arange(60), (A, B), {"a": Target("one"), "b": Target("two")})
    (experience,) = label_policy(by_hand(data), "sparse", per_class=3)
    assert counted(rows(experience, "train", "a")) == dict.fromkeys(range(6), 3)
    assert counted(rows(experience, "train", "b")) == dict.fromkeys(range(2), 3)


def test_tasks_that_read_one_column_share_their_labels() -> None:
    parity = torch.arange(6) % 2
    data = Data(blobs(60), torch.arange(60), (A, B), {"a": Target("y"), "b": Target("y", parity)})
    (experience,) = label_policy(by_hand(data), "sparse", per_class=2)
    a, b = rows(experience, "train", "a"), rows(experience, "train", "b")
    assert {row for row, label in a.items() if label is not None} == {row for row, label in b.items() if label is not None}
    assert counted(a) == dict.fromkeys(range(6), 2)
    alone = Data(blobs(60), torch.arange(60), (B,), {"b": Target("y", parity)})
    (experience,) = label_policy(by_hand(alone), "sparse", per_class=2)
    assert counted(rows(experience, "train")) == {0: 2, 1: 2}, "of a task by itself its own classes count"


def test_pieces_of_several_sources_and_domains_are_counted_together() -> None:
    first, second = blobs(30), blobs(60, name="other")
    parts = [
        Data(source, torch.arange(len(source)), (A,), {"a": Target("y")}, domain=domain)
        for source, domain in ((first, ""), (second, ""), (second, "again"))
    ]
    (experience,) = label_policy(by_hand(*parts), "sparse", fraction=0.2)
    shown = set()
    for part in experience.data["train"].parts():
        mask = part.labelled["a"]
        shown |= {(part.source.name, int(row), int(row) % 6) for row in part.indices[mask]}
    assert [sum(c == label for _, _, c in shown) for label in range(6)] == [3] * 6, (
        "a fifth of the 15 rows of each class, each counted once"
    )
    _, plain, again = experience.data["train"].parts()
    assert torch.equal(plain.labelled["a"], again.labelled["a"])
    assert plain.source is again.source


def test_labels_that_were_hidden_before_stay_hidden() -> None:
    twice = label_policy(label_policy(streams.data_incremental("digits", 2), "sparse", per_class=5), "sparse", fraction=0.4, seed=3)
    once = label_policy(streams.data_incremental("digits", 2), "sparse", per_class=5)
    for late, early in zip(twice, once, strict=True):
        assert counted(rows(late, "train")) == dict.fromkeys(range(10), 2)
        assert all(rows(early, "train")[row] == label for row, label in rows(late, "train").items() if label is not None)


def test_regression_has_one_class() -> None:
    task, x = Task("r", "regression", 2), torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    data = Data(TensorSource(x, {"y": x[:, :2] + 1}, "values"), torch.arange(40), (task,), {"r": Target("y")})
    (experience,) = label_policy(by_hand(data), "sparse", fraction=0.25)
    piece = experience.data["train"].parts()[0]
    batch = piece.batch(torch.arange(40))
    known = batch.labelled_rows("r")
    assert int(known.sum()) == 10
    assert torch.equal(batch.targets["r"][known], x[known, :2] + 1)
    assert not batch.targets["r"][~known].any()
    with pytest.raises(DataError, match="task 'r' is a regression, without classes of which per_class could keep labels: give fraction"):
        label_policy(by_hand(data), "sparse", per_class=2)


def test_all_labels_of_few_rows_leave_batches_uniform() -> None:
    stream = label_policy(streams.class_incremental("digits", 5), "sparse", fraction=1.0)
    data = stream[0].data["train"]
    assert data.batch(torch.arange(8)).is_uniform


# ---------------------------------------------------------------------- roles


def test_validation_rows_come_with_their_training_rows() -> None:
    base = streams.validation(streams.class_incremental("digits", 3), 0.2)
    sparse, late, never = (label_policy(base, **policy) for policy in (POLICIES[1], POLICIES[3], POLICIES[5]))
    assert rows(sparse[1], "validation") == rows(base[1], "validation")
    assert [sorted(e.data) for e in late] == [["target"], ["target", "train", "validation"], ["target", "train", "validation"]]
    assert rows(late[1], "validation") == rows(base[0], "validation")
    assert {role for e in never for role in e.data} == {"target"}


def test_target_rows_of_the_stream_stay_targets() -> None:
    base = streams.adaptation("moons", rows=20)
    (experience,) = label_policy(base, "never")
    assert {part.domain: len(part) for part in experience.data["target"].parts()} == {"source": 20, "target": 20}
    second = label_policy(streams.adaptation("moons", rows=20, source_free=True), "never")
    assert [sorted(e.data) for e in second] == [["target"], ["target"]]
    assert [len(truth) for i in range(2) if (truth := second.truth(i)) is not None] == [20, 20]


def test_names_of_experiences_do_not_tell_hidden_classes() -> None:
    base = streams.class_incremental("digits", 5)
    assert [e.name for e in label_policy(base, "never")] == [f"experience {i}" for i in range(5)]
    assert [e.name for e in label_policy(base, "sparse", per_class=1)] == [e.name for e in base]


def test_predicted_rows_are_not_augmented() -> None:
    base = streams.augmented(streams.class_incremental("digits", 3), crop=1)
    stream = label_policy(base, "delayed", steps=1)
    assert stream[1].data["train"].parts()[0].augment is not None
    assert stream[1].data["target"].parts()[0].augment is None
    truth = stream.truth(1)
    assert truth is not None
    assert truth.parts()[0].augment is None


def test_on_an_online_stream_a_step_is_a_delay() -> None:
    stream = streams.build_chain("class_incremental:source=digits | online:rows=50 | label_policy:policy=delayed,steps=3")
    plain = streams.build_chain("class_incremental:source=digits | online:rows=50")
    assert rows(stream[7], "train") == rows(plain[4], "train")
    assert rows(stream[7], "target") == dict.fromkeys(rows(plain[7], "train"))


def test_an_endless_stream_stays_endless() -> None:
    base = streams.domain_incremental("digits", "endless")
    stream = label_policy(base, "delayed", steps=2)
    assert stream.endless
    assert rows(stream[100], "train") == rows(base[98], "train")


# ---------------------------------------------------------------------- scores


@pytest.mark.parametrize("batch_size", [2, 5, 32])
def test_every_row_of_a_delayed_stream_is_predicted_once(batch_size: int) -> None:
    sizes = [3, 9, 1, 12]
    source, starts = blobs(25, features=6), [0, 3, 12, 13]
    parts = [Data(source, torch.arange(s, s + n), (A,), {"a": Target("y")}) for s, n in zip(starts, sizes, strict=True)]
    base = Stream(
        "uneven", 4, lambda i: Experience(i, (A,), {"train": parts[i]}), lambda i: EvaluationSet(i, parts[i]), tasks=(A,),
        input_shape=(6,), description={"by": "hand"},
    )  # fmt: skip
    engine = Engine(lambda: nn.Linear(6, 6), sgd(), batch_size=batch_size)
    events = engine.run(label_policy(base, "delayed", steps=1)).events
    assert [event["count"] for event in events if event["event"] == "prequential"] == sizes


def test_tasks_without_rows_to_predict_have_no_score() -> None:
    stream = label_policy(streams.task_incremental("digits", 3), "delayed", steps=1)
    from streamlearn import models

    events = Engine(models.mlp(stream), sgd()).run(stream).events
    assert [event["task"] for event in events if event["event"] == "prequential"] == ["digits/0", "digits/1", "digits/2"]


# ---------------------------------------------------------------------- what is refused

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"policy": "sparse"}, "the policy 'sparse' takes either per_class or fraction, and neither is given: give one of them"),
    ({"policy": "sparse", "per_class": 1, "fraction": 0.5}, "takes either per_class or fraction, and both are given: give one of them"),
    ({"policy": "sparse", "per_class": 0}, "per_class is 0: give a whole number of at least 1"),
    ({"policy": "sparse", "per_class": 1.5}, "per_class is 1.5: give a whole number of at least 1"),
    ({"policy": "sparse", "fraction": 0}, "fraction is 0: give a number in (0, 1]"),
    ({"policy": "sparse", "fraction": 1.1}, "fraction is 1.1: give a number in (0, 1]"),
    ({"policy": "sparse", "fraction": "half"}, "fraction is 'half': give a number in (0, 1]"),
    ({"policy": "delayed"}, "the policy 'delayed' needs steps, after which labels arrive: give steps=1 or more"),
    ({"policy": "delayed", "steps": 0}, "steps is 0: give a whole number of at least 1"),
    ({"policy": "never", "steps": 1}, "steps is 1, but the policy is 'never': leave it out, or take 'delayed'"),
    ({"policy": "delayed", "steps": 1, "fraction": 0.5}, "fraction is 0.5, but the policy is 'delayed': leave it out, or take 'sparse'"),
    ({"policy": "never", "seed": -1}, "seed is -1: give a whole number of at least 0"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_cannot_be_is_refused_with_a_reason(options: dict[str, Any], message: str) -> None:
    base = streams.class_incremental(arrays([4, 4]), 2)
    with pytest.raises(DataError, match=re.escape(message)):
        label_policy(base, **options)


def test_strange_things_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown label policy 'spars': did you mean 'sparse'"):
        label_policy(streams.class_incremental("digits"), "spars", per_class=1)
    with pytest.raises(DataError, match="label_policy changes a stream, and a list is none"):
        label_policy([], "never")  # type: ignore[arg-type]
    few = streams.episodes("digits", ways=2, shots=1, queries=1, train_episodes=2, test_episodes=1)
    with pytest.raises(DataError, match=r"data of source 'digits' are episodes, .*: label_policy is for streams of rows"):
        label_policy(few, "sparse", per_class=1)
    given = label_policy(streams.class_incremental(arrays([4, 4]), 2), "never")
    with pytest.raises(ConfigurationError, match="was built from objects given by the user"):
        streams.rebuild(given.description)
