from __future__ import annotations

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
from torch.utils.data import Dataset, TensorDataset

from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams import Stream, TensorSource, class_incremental, data_incremental, domain_incremental, rebuild, task_incremental

BUILDERS = [class_incremental, task_incremental, domain_incremental, data_incremental]
SPLITTING = [class_incremental, task_incremental, data_incremental]
real_data = pytest.mark.skipif("STREAMLEARN_DATA" not in os.environ, reason="STREAMLEARN_DATA is not set: it names the folder of real data")


def arrays(counts: list[int]) -> tuple[Tensor, Tensor]:
    """Rows that carry their own number, ``counts[c]`` of class c, in mixed order."""
    y = torch.cat([torch.full((count,), number) for number, count in enumerate(counts)])
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    return torch.arange(len(y), dtype=torch.float32).reshape(-1, 1), y


def rows(stream: Stream) -> list[list[int]]:
    return [experience.data["train"].indices.tolist() for experience in stream]


def evaluated(stream: Stream) -> list[list[int]]:
    return [stream.evaluation(i).data.indices.tolist() for i in range(len(stream))]


# ---------------------------------------------------------------------- properties


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(SPLITTING), st.lists(st.integers(2, 9), min_size=2, max_size=6), st.integers(0, 9), st.data())
def test_every_row_appears_exactly_once(builder: Callable[..., Stream], counts: list[int], seed: int, draw: st.DataObject) -> None:
    experiences = draw.draw(st.integers(1, len(counts)))
    x, y = arrays(counts)
    stream = builder((x, y), experiences, seed=seed, test_fraction=0.3)
    trained = [row for part in rows(stream) for row in part]
    tested = evaluated(stream)[0] if builder is data_incremental else [row for part in evaluated(stream) for row in part]
    assert len(set(trained)) == len(trained)
    assert not set(trained) & set(tested), "no evaluation row is trained on"
    assert sorted([*trained, *tested]) == list(range(len(y)))
    assert rows(builder((x, y), experiences, seed=seed, test_fraction=0.3)) == rows(stream), "same seed, same stream"


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(BUILDERS), st.integers(0, 5), st.slices(4))
def test_slicing_and_iterating_agree(builder: Callable[..., Stream], seed: int, part: slice) -> None:
    stream = builder(arrays([4] * 5), 4, seed=seed)
    expected = [(e.name, e.data["train"].indices.tolist()) for e in stream][part]
    if expected:
        assert [(e.name, e.data["train"].indices.tolist()) for e in stream[part]] == expected


@pytest.mark.parametrize("builder", SPLITTING)
def test_another_seed_gives_another_stream(builder: Callable[..., Stream]) -> None:
    test = TensorSource(torch.zeros(6, 1), {"y": torch.arange(6)}, "given")
    streams = [builder(arrays([8] * 6), 3, seed=seed, test=test) for seed in range(4)]
    assert len({str(rows(stream)) for stream in streams}) > 1
    assert len({stream.hash for stream in streams}) == 4


@pytest.mark.parametrize("builder", BUILDERS)
def test_labels_agree_with_the_source(builder: Callable[..., Stream]) -> None:
    x, y = arrays([6, 7, 8, 9])
    for experience in builder((x, y), 2, seed=1):
        data = experience.data["train"]
        (task,) = experience.tasks
        batch = data.batch(torch.arange(len(data)))
        target = batch.targets[task.name]
        original = torch.tensor([int(name) for name in task.classes])[target] if task.classes else target
        assert torch.equal(original, y[batch.index])
        assert experience.classes[task.name] == tuple(torch.unique(target).tolist())
        assert int(target.max()) < task.size


@pytest.mark.parametrize("builder", BUILDERS)
def test_building_reads_no_rows(builder: Callable[..., Stream], toy, counting) -> None:
    source, test = toy(60, 6, kind=counting), toy(12, 6, name="toy/test", kind=counting)
    stream = builder(source, 3, test=test)
    assert len(stream[1].data["train"]) > 0
    assert source.rows_taken == test.rows_taken == 0
    assert stream[1].data["train"].source is source


def test_a_thousand_permuted_experiences_share_one_source() -> None:
    x = torch.rand(500, 40)
    stream = domain_incremental(TensorSource(x, {"y": torch.arange(500) % 5}, "big"), 1000)
    experiences = list(stream)
    assert {id(e.data["train"].source) for e in experiences} == {id(stream[0].data["train"].source)}
    assert {e.data["train"].source._x.data_ptr() for e in experiences} == {x.data_ptr()}
    assert len({e.data["train"].indices.data_ptr() for e in experiences}) == 1
    assert len({e.data["train"].domain for e in experiences}) == 1000


# ---------------------------------------------------------------------- each protocol


def test_class_incremental_keeps_the_numbers_of_classes() -> None:
    stream = class_incremental("Digits", 5, seed=3)
    assert stream.name == "digits/class_incremental"
    assert [task.name for task in stream.tasks] == ["digits"]
    assert stream.tasks[0].size == 10
    assert sorted(c for e in stream for c in e.classes["digits"]) == list(range(10))
    for i, experience in enumerate(stream):
        data = stream.evaluation(i).data
        assert tuple(torch.unique(data.batch(torch.arange(len(data))).targets["digits"]).tolist()) == experience.classes["digits"]
        assert data.source.name == "digits/test"
    assert sum(len(e.data["train"]) for e in stream) == 1438
    assert [e.classes["digits"] for e in class_incremental("digits", 4, shuffle=False)] == [(0, 1, 2), (3, 4, 5), (6, 7), (8, 9)]
    assert len(class_incremental("digits")) == 5


def test_a_given_split_is_followed() -> None:
    stream = class_incremental("digits", classes=[[7, 1], [2]], seed=5)
    assert [e.classes["digits"] for e in stream] == [(1, 7), (2,)]
    assert [e.name for e in stream] == ["classes 1, 7", "classes 2"]
    assert stream.tasks[0].size == 10


def test_task_incremental_relabels_from_0() -> None:
    stream = task_incremental("digits", classes=[[7, 1], [2, 0, 4]])
    assert [(t.name, t.size, t.classes) for t in stream.tasks] == [("digits/0", 2, ("1", "7")), ("digits/1", 3, ("0", "2", "4"))]
    data = stream.evaluation(1).data
    batch = data.batch(torch.arange(len(data)))
    assert batch.tasks == ("digits/1",)
    assert torch.equal(torch.tensor([0, 2, 4])[batch.targets["digits/1"]], data.source.targets["y"][batch.index])


def test_names_of_classes_reach_the_task() -> None:
    source = TensorSource(torch.zeros(8, 1), {"y": torch.arange(8) % 4}, "pets", class_names=["cat", "dog", "eel", "fox"])
    assert class_incremental(source, 2).tasks[0].classes == ("cat", "dog", "eel", "fox")
    stream = task_incremental(source, 2, shuffle=False)
    assert [task.classes for task in stream.tasks] == [("cat", "dog"), ("eel", "fox")]
    assert [e.name for e in stream] == ["classes cat, dog", "classes eel, fox"]


def test_permuted_domains() -> None:
    stream = domain_incremental("digits", 3, seed=2)
    plain, first, second = (e.data["train"].batch(torch.arange(5)).x for e in stream)
    source = stream[0].data["train"].source
    assert torch.equal(plain, source.take(torch.arange(5)).x)
    assert not torch.equal(first, plain)
    assert not torch.equal(first, second)
    assert torch.equal(first.flatten(1).sort().values, plain.flatten(1).sort().values)
    evaluation = stream.evaluation(1).data
    assert evaluation.transform is stream[1].data["train"].transform
    assert (evaluation.domain, len(evaluation)) == ("permutation/1", 359)
    shuffled = domain_incremental("digits", 3, seed=2, first_identity=False)[0].data["train"].batch(torch.arange(5)).x
    assert not torch.equal(shuffled, plain)
    other = domain_incremental("digits", 3, seed=3)[1].data["train"].batch(torch.arange(5)).x
    assert not torch.equal(other, first)


def test_rotated_domains() -> None:
    stream = domain_incremental("digits", 4, transform="rotation", degrees=360)
    images = [e.data["train"].batch(torch.arange(3)).x for e in stream]
    for turns, image in enumerate(images):
        torch.testing.assert_close(image, torch.rot90(images[0], turns, (2, 3)), atol=1e-5, rtol=0)
    assert [e.data["train"].domain for e in stream] == ["rotation/0", "rotation/90", "rotation/180", "rotation/270"]


def test_users_transforms_give_the_input_shape() -> None:
    stream = domain_incremental("digits", transform=[lambda x: x.flatten(1), lambda x: 1 - x.flatten(1)])
    assert (len(stream), stream.input_shape) == (2, (64,))
    first, second = (e.data["train"].batch(torch.arange(2)).x for e in stream)
    assert torch.equal(second, 1 - first)
    assert [e.name for e in stream] == ["transform/0", "transform/1"]


def test_data_incremental_chunks_are_even_and_mixed() -> None:
    stream = data_incremental("digits", 7)
    sizes = [len(e.data["train"]) for e in stream]
    assert (sum(sizes), max(sizes) - min(sizes)) == (1438, 1)
    assert all(e.classes["digits"] == tuple(range(10)) for e in stream)
    assert {len(stream.evaluation(i).data) for i in range(7)} == {359}


# ---------------------------------------------------------------------- what may be given


class Pairs(Dataset):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.full((2,), float(i)), i % 4


@pytest.mark.parametrize(
    "source",
    [
        (np.arange(40.0).reshape(20, 2), np.arange(20) % 4),
        (torch.arange(40.0).reshape(20, 2), torch.arange(20) % 4),
        TensorDataset(torch.arange(40.0).reshape(20, 2), torch.arange(20) % 4),
        Pairs(),
    ],
)
def test_every_kind_of_source_gives_the_same_stream(source: object) -> None:
    stream = class_incremental(source, 2, test_fraction=0.4)
    assert [task.name for task in stream.tasks] == ["class"]
    assert stream.input_shape == (2,)
    assert rows(stream) == rows(class_incremental((torch.zeros(20, 2), torch.arange(20) % 4), 2, test_fraction=0.4))
    assert stream[0].data["train"].batch(torch.tensor([0])).x.dtype == torch.float32


def test_test_rows_may_be_given() -> None:
    stream = class_incremental((torch.zeros(8, 2), torch.arange(8) % 4), 2, test=(torch.ones(4, 2), [0, 1, 2, 3]))
    assert sum(len(e.data["train"]) for e in stream) == 8
    assert stream.evaluation(0).data.source.name == "data/test"
    assert len(stream.fingerprints) == 2
    own = class_incremental("digits", test=(torch.ones(10, 1, 8, 8), torch.arange(10)))
    assert [len(own.evaluation(i).data) for i in range(5)] == [2] * 5
    again = class_incremental((torch.zeros(20, 1, 8, 8), torch.arange(20) % 10), test="digits")
    assert sum(len(again.evaluation(i).data) for i in range(5)) == 359


@pytest.mark.parametrize("builder", BUILDERS)
def test_descriptions_are_json_and_say_what_was_given(builder: Callable[..., Stream]) -> None:
    named = builder("digits", 2, seed=np.int64(4))
    assert json.loads(json.dumps(named.description)) == named.description
    assert (named.description["builder"], named.description["source"]) == (builder.__name__, "digits")
    assert named.description["seed"] == 4
    user = builder((torch.zeros(8, 2), torch.arange(8) % 4), 2)
    assert user.description["source"] == {"given by the user": True, "name": "data", "rows": 8}
    assert json.loads(json.dumps(user.describe()))["hash"] == user.hash
    changed = builder((torch.ones(8, 2), torch.arange(8) % 4), 2)
    assert changed.hash != user.hash, "content is part of the hash"


# ---------------------------------------------------------------------- what is refused

X, Y = torch.zeros(8, 2), torch.arange(8) % 4
REFUSED: list[tuple[Callable[[], Stream], str]] = [
    (lambda: class_incremental("digits", 12), "source 'digits' has 10 classes, fewer than 12 experiences: ask for at most 10"),
    (lambda: task_incremental((X, Y), 5), "source 'class' has 4 classes, fewer than 5 experiences: ask for at most 4"),
    (
        lambda: class_incremental((X, Y * 2)),
        "no row of source 'data' has the class 1, though labels run to 6: number classes from 0 without gaps",
    ),
    (
        lambda: data_incremental((X, Y + 1)),
        "no row of source 'data' has the class 0, though labels run to 4: number classes from 0 without gaps",
    ),
    (
        lambda: class_incremental((X, Y + 2**40)),
        f"no row of source 'data' has the class 0, though labels run to {2**40 + 3}: number classes from 0 without gaps",
    ),
    (
        lambda: class_incremental((X, Y), 2, test=(X, Y + 1)),
        "label 4 in row 3 of 'data/test' is out of range: 'data' has the classes 0 to 3",
    ),
    (lambda: class_incremental((X, Y - 1)), "row 0 of source 'data' has the negative label -1 in 'y': number classes from 0"),
    (lambda: class_incremental((X, Y.float())), "convert them with .long()"),
    (
        lambda: class_incremental((X, Y / 3)),
        "are float32 values of shape (8,), and this protocol needs classes: give class numbers, or take",
    ),
    (
        lambda: class_incremental("diabetes"),
        "which are data_incremental, domain_incremental, gradual_adaptation, joint, multitask and from_",
    ),
    (lambda: class_incremental((X, Y), test=(X.double(), Y.flip(0))), "the 8 test rows of 'data/test' are the training rows of 'data'"),
    (lambda: class_incremental((X, Y.unsqueeze(1))), "convert them with .squeeze(1)"),
    (
        lambda: class_incremental((X, Y), classes=[[0, 1], [9]]),
        "group 1 of classes names the class 9: source 'class' has the classes 0 to 3",
    ),
    (
        lambda: class_incremental((X, Y), classes=[[0, 1], [2, 0]]),
        "classes names the class 0 twice, in groups 0 and 1: name each class at most once",
    ),
    (
        lambda: class_incremental((X, Y), classes=[[0], []]),
        "group 1 of classes is []: give groups of class numbers, for example [[0, 1], [2, 3]]",
    ),
    (
        lambda: class_incremental((X, Y), classes=[0, 1]),
        "group 0 of classes is 0: give groups of class numbers, for example [[0, 1], [2, 3]]",
    ),
    (lambda: class_incremental((X, Y), classes=[]), "classes is []: give groups of class numbers, for example [[0, 1], [2, 3]]"),
    (lambda: class_incremental((X, Y), classes="01"), "classes is '01': give groups of class numbers, for example [[0, 1], [2, 3]]"),
    (lambda: class_incremental((X, Y), classes=[["a"]]), "a class in group 0 of classes is 'a': give a whole number of at least 0"),
    (
        lambda: class_incremental((X, Y), 3, classes=[[0], [1]]),
        "classes has 2 groups but 3 experiences are asked for: leave experiences out",
    ),
    (
        lambda: class_incremental((X, Y), 2, shuffle=False, test=(X[:2], Y[:2])),
        "experience 1 has no test rows: 'data/test' holds none of the classes 2, 3; add some",
    ),
    (
        lambda: data_incremental((X, Y), 7, test_fraction=0.5),
        "source 'class' has 4 training rows, fewer than 7 experiences: ask for at most 4",
    ),
    (
        lambda: class_incremental((X, Y), 2, test=(X[:, :1], Y)),
        "test rows of 'data/test' have shape (1,) but training rows of 'data' have (2,): bring both to one shape",
    ),
    (
        lambda: class_incremental((X[:4], Y[:4]), 2),
        "class 0 of source 'data' has a single row, too few to train and to test: add rows or give test=",
    ),
    (
        lambda: class_incremental((X, Y, Y)),
        "a tuple of 3 is no source: give a name, a pair (x, y), a map-style torch data set, or a Source",
    ),
    (lambda: class_incremental(X), "a Tensor is no source: give a name, a pair (x, y), a map-style torch data set, or a Source"),
    (
        lambda: domain_incremental((X, Y), transform="rotation"),
        "rotation needs floating images of shape (channels, height, width), and source 'data'",
    ),
    (lambda: domain_incremental("digits", degrees=0), "degrees is 0: give a number above 0, at most 360"),
    (lambda: domain_incremental("digits", degrees="half"), "degrees is 'half': give a number above 0, at most 360"),
    (
        lambda: domain_incremental("digits", 3, transform=[abs, abs]),
        "transform lists 2 callables but 3 experiences are asked for: leave experiences out",
    ),
    (
        lambda: domain_incremental("digits", transform=[abs, "turn"]),
        "transform 1 is 'turn': give callables that map (rows, ...) to (rows, ...)",
    ),
    (
        lambda: domain_incremental("digits", transform=torch.flatten),
        "give 'permutation', 'rotation' or a list of callables, one for each experience",
    ),
    (lambda: domain_incremental("digits", transform=[]), "transform is []: give 'permutation', 'rotation' or a list of callables"),
    (
        lambda: domain_incremental("digits", transform=[abs, lambda x: x.flatten(1)]),
        "the transforms give inputs of different shapes, (1, 8, 8) (transform/0), (64,) (transform/1): let all give the same",
    ),
    (
        lambda: domain_incremental("digits", transform=[lambda x: x.reshape(7)]),
        "the transform 'transform/0' fails on inputs of shape (1, 8, 8): RuntimeError: ",
    ),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_what_cannot_be_is_refused_with_a_reason(build: Callable[[], Stream], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        build()
    assert "\n" not in str(caught.value) or "RuntimeError" in str(caught.value)


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("number", [0, -1, 1.5, True, "five"])
def test_experiences_and_seeds_must_be_whole_numbers(builder: Callable[..., Stream], number: object) -> None:
    with pytest.raises(DataError, match=re.escape(f"the number of experiences is {number!r}: give a whole number of at least 1")):
        builder("digits", number)
    if number != 0:
        with pytest.raises(DataError, match=re.escape(f"seed is {number!r}: give a whole number of at least 0")):
            builder("digits", seed=number)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, "half", float("nan")])
def test_test_fraction_is_a_fraction(fraction: object) -> None:
    with pytest.raises(DataError, match=re.escape(f"test_fraction is {fraction!r}: give a number between 0 and 1")):
        class_incremental((X, Y), 2, test_fraction=fraction)


def test_one_source_cannot_train_and_test() -> None:
    source = TensorSource(X, {"y": Y}, "toy")
    with pytest.raises(DataError, match="source 'toy' is given for training and for testing: give other rows as test"):
        class_incremental(source, 2, test=source)


def test_one_data_set_cannot_train_and_test() -> None:
    rows = TensorDataset(X, Y)
    with pytest.raises(DataError, match="the same object is given for training and for testing: give other rows as test, or leave it out"):
        class_incremental(rows, 2, test=rows)
    with pytest.raises(DataError, match="the 8 test rows of 'data/test' are the training rows of 'data'"):
        class_incremental(rows, 2, test=TensorDataset(X, Y))


@pytest.mark.parametrize("classes", [np.array([[0, 1], [2, 3]]), [{1, 0}, frozenset({2, 3})], [np.array([0, 1]), range(2, 4)]])
def test_arrays_and_sets_say_which_classes_come_together(classes: Any) -> None:
    usual = class_incremental((X, Y), classes=[[0, 1], [2, 3]], test_fraction=0.5, seed=1)
    same = class_incremental((X, Y), classes=classes, test_fraction=np.float64(0.5), seed=np.int64(1))
    assert json.dumps(same.description) == json.dumps(usual.description)
    assert same.hash == usual.hash


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown source 'digit': did you mean 'digits'"):
        class_incremental("digit")
    with pytest.raises(UnknownNameError, match=r"unknown transform 'rotate': did you mean 'rotation'\?"):
        domain_incremental("digits", transform="rotate")


# ---------------------------------------------------------------------- real data


@pytest.mark.data
@real_data
def test_split_mnist_has_the_published_sizes() -> None:
    stream = class_incremental("mnist", 5, shuffle=False)
    assert [len(e.data["train"]) for e in stream] == [12665, 12089, 11263, 12183, 11800]
    assert [len(stream.evaluation(i).data) for i in range(5)] == [2115, 2042, 1874, 1986, 1983]
    assert stream.input_shape == (1, 28, 28)


@pytest.mark.data
@real_data
def test_permuted_mnist_batches_are_permuted_images() -> None:
    stream = domain_incremental("mnist", 1000)
    batch = stream[999].data["train"].batch(torch.arange(64))
    plain = stream[0].data["train"].batch(torch.arange(64))
    assert batch.x.shape == (64, 1, 28, 28)
    assert torch.equal(batch.x.flatten(1).sort().values, plain.x.flatten(1).sort().values)
    assert not torch.equal(batch.x, plain.x)


# ---------------------------------------------------------------------- heads that grow, outputs that are shared


def test_a_growing_stream_numbers_classes_as_they_arrive() -> None:
    plain, growing = (class_incremental(arrays([3] * 6), 3, seed=4, grow=grow) for grow in (False, True))
    assert rows(growing) == rows(plain)
    assert evaluated(growing) == evaluated(plain)
    order = [number for experience in plain for number in experience.classes[plain.tasks[0].name]]
    assert growing.tasks[0].size == 2
    for number, (experience, usual) in enumerate(zip(growing, plain, strict=True)):
        (task,) = experience.tasks
        assert task.size == 2 * (number + 1)
        assert task.classes == tuple(map(str, order[: task.size]))
        assert experience.classes[task.name] == (2 * number, 2 * number + 1)
        everything = torch.arange(len(experience.data["train"]))
        found, known = experience.data["train"].batch(everything), usual.data["train"].batch(everything)
        assert [order[label] for label in found.targets[task.name].tolist()] == known.targets[task.name].tolist()


def test_a_growing_stream_is_built_again_from_its_description() -> None:
    stream = class_incremental("digits", 5, seed=3, grow=True)
    again = rebuild(json.loads(json.dumps(stream.describe()))["description"])
    assert again.hash == stream.hash
    assert "grow" not in json.dumps(class_incremental("digits", 5, seed=3).describe())  # runs from before the option can be resumed


def test_domains_of_classes_share_their_outputs() -> None:
    stream, known = domain_incremental("digits", 5, transform="classes", seed=3), task_incremental("digits", 5, seed=3)
    assert [task.size for task in stream.tasks] == [2]
    for i, (experience, other) in enumerate(zip(stream, known, strict=True)):
        everything = torch.arange(len(experience.data["train"]))
        found, told = (e.data["train"].batch(everything) for e in (experience, other))
        assert torch.equal(found.targets["digits"], told.targets[f"digits/{i}"])
        assert torch.equal(found.x, told.x)
    assert len({experience.data["train"].domain for experience in stream}) == 5
    assert rebuild(json.loads(json.dumps(stream.describe()))["description"]).hash == stream.hash


def test_domains_of_classes_need_classes_enough() -> None:
    with pytest.raises(DataError, match="10 classes, fewer than 11 experiences"):
        domain_incremental("digits", 11, transform="classes")
