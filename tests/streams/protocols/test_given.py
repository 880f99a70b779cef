"""The user's own experiences."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from streamlearn import Engine, models
from streamlearn.core.registry import create
from streamlearn.errors import ConfigurationError, DataError, UnknownNameError
from streamlearn.streams import Batch, Stream, TensorSource, build, from_datasets, rebuild
from tests.core.support import sgd

real_data = pytest.mark.skipif("STREAMLEARN_DATA" not in os.environ, reason="STREAMLEARN_DATA is not set: it names the folder of real data")
NAN = float("nan")


def numbered(rows: int, features: int = 2) -> Tensor:
    return torch.arange(rows, dtype=torch.float32).reshape(-1, 1).repeat(1, features)


def parts(number: int = 3, rows: int = 12) -> list[tuple[Tensor, Tensor]]:
    """Experience i has the classes 2i and 2i + 1, and inputs that tell it."""
    return [(numbered(rows) + 1000 * i, torch.arange(rows) % 2 + 2 * i) for i in range(number)]


def values(number: int = 2, rows: int = 10) -> list[tuple[Tensor, Tensor]]:
    return [(numbered(rows) + 1000 * i, torch.arange(rows) + 0.5) for i in range(number)]


def everything(data: Any) -> Batch:
    batch: Batch = data.batch(torch.arange(len(data)))
    return batch


def rows(stream: Stream) -> list[tuple[str, list[int], list[int]]]:
    return [(e.name, e.data["train"].indices.tolist(), stream.evaluation(i).data.indices.tolist()) for i, e in enumerate(stream)]


class Pairs(Dataset[Any]):
    """A map-style data set that keeps no targets beside its rows."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._x, self._y = x, y

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, i: int) -> Any:
        return self._x[i], int(self._y[i])


# ---------------------------------------------------------------------- properties


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=5), st.sampled_from(["shared", "own"]), st.booleans(), st.integers(0, 9))
def test_every_row_comes_once_and_none_is_trained_and_tested(counts: list[int], tasks: str, regression: bool, seed: int) -> None:
    """Experience i has the classes i and i + 1, ``counts[i]`` rows of each."""
    made = [torch.arange(2 * n) + 0.5 if regression else torch.arange(2 * n) % 2 + i for i, n in enumerate(counts)]
    own = [(numbered(len(y)) + 1000 * i, y) for i, y in enumerate(made)]
    stream = from_datasets(own, tasks=tasks, seed=seed, test_fraction=0.3)
    assert len(stream) == len(stream.sets) == len(counts)
    for i, (name, trained, tested) in enumerate(rows(stream)):
        assert sorted(trained + tested) == list(range(len(made[i])))
        assert tested
        assert name == f"data/{i}"
        experience = stream[i]
        (task,) = experience.tasks
        for data in (experience.data["train"], stream.evaluation(i).data):
            batch = everything(data)
            assert data.parts()[0].domain == name
            assert torch.equal(batch.x[:, 0].long() - 1000 * i, batch.index)
            expected = made[i][batch.index] - (0 if regression or tasks == "shared" else i)
            assert torch.equal(batch.targets[task.name].flatten().float(), expected.float())
        assert experience.classes == ({} if regression else {task.name: (i, i + 1) if tasks == "shared" else (0, 1)})
        assert task.size == (1 if regression else len(counts) + 1 if tasks == "shared" else 2)
    again = from_datasets(own, tasks=tasks, seed=seed, test_fraction=0.3)
    assert (rows(again), again.hash) == (rows(stream), stream.hash)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 5), st.slices(4))
def test_slicing_and_iterating_agree(seed: int, part: slice) -> None:
    stream = from_datasets(parts(4), seed=seed)
    expected = rows(stream)[part]
    if expected:
        assert rows(stream[part]) == expected


def test_another_seed_splits_otherwise() -> None:
    assert rows(from_datasets(parts(), seed=1)) != rows(from_datasets(parts(), seed=2))
    assert from_datasets(parts(), seed=1).hash != from_datasets(parts(), seed=2).hash
    assert from_datasets(values(), seed=1).hash != from_datasets(values(1), seed=1).hash


def test_named_sources_are_built_again_and_objects_are_not() -> None:
    stream = from_datasets(["digits", "Digits"], names=["first", "second"], tasks="own", seed=3)
    again = rebuild(json.loads(json.dumps(stream[1:].description)))
    assert again.hash == stream[1:].hash
    assert rows(again) == rows(stream)[1:]
    assert {e.data["train"].parts()[0].source.name for e in stream} == {"digits"}
    assert len(stream.evaluation(0).data) == 359, "the test rows that the source has"
    iris = from_datasets(["iris"], seed=3)
    assert rows(rebuild(json.loads(json.dumps(iris.description)))) == rows(iris)
    for test in (None, [(x + 0.5, y) for x, y in parts(3)], (numbered(4) - 9, torch.arange(4))):
        own = from_datasets(parts(), test)
        json.dumps(own.description)
        with pytest.raises(ConfigurationError, match="objects given by the user"):
            rebuild(own.description)


def test_from_text() -> None:
    assert [t.name for t in build("from_datasets", train=["digits"], tasks="own").tasks] == ["digits"]
    shared = build("from_datasets", train=["digits"], test="digits")
    assert shared.sets == (0,)
    assert rebuild(json.loads(json.dumps(shared.description))).hash == shared.hash


# ---------------------------------------------------------------------- what is given


def test_all_kinds_of_data_sets() -> None:
    pandas = pytest.importorskip("pandas")
    x, y = numbered(8), torch.arange(8) % 2
    frame = pandas.DataFrame({"a": range(8), "b": [0.5] * 8})
    given_sets = [
        (x, y),
        (x.numpy(), y.tolist()),
        TensorDataset(x, y),
        Pairs(x, y),
        TensorSource(x, {"label": y}, "own"),
        (frame, pandas.Series(y.numpy())),
        (frame.assign(label=y.numpy()), "label"),
        (frame[["a"]].assign(c=range(8)), y.numpy()),
    ]
    stream = from_datasets(given_sets)
    assert [e.name for e in stream] == ["data/0", "data/1", "data/2", "data/3", "own", "data/5", "data/6", "data/7"]
    assert len({tuple(part) for _, part, _ in rows(stream)}) == 1
    assert all(everything(e.data["train"]).x.dtype == torch.float32 for e in stream)
    assert Engine(models.mlp(stream, (4,)), sgd(), batch_size=4).run(stream).accuracy_matrix.shape == (9, 8)
    with pytest.raises(DataError, match="experience 0: the table has no column 'lable': it has a, b"):
        from_datasets([(frame, "lable")])


def test_shared_and_own_tasks() -> None:
    shared = from_datasets(parts())
    assert [(t.name, t.size) for t in shared.tasks] == [("class", 6)]
    assert [e.classes["class"] for e in shared] == [(0, 1), (2, 3), (4, 5)]
    own = from_datasets(parts(), tasks="own", names=["a", "b", "c"])
    assert [(t.name, t.size, t.classes) for t in own.tasks] == [("a", 2, ()), ("b", 2, ("2", "3")), ("c", 2, ("4", "5"))]
    assert [e.classes for e in own] == [{"a": (0, 1)}, {"b": (0, 1)}, {"c": (0, 1)}]
    mixed = from_datasets([parts(1)[0], values(1)[0]], tasks="own")
    assert [(t.name, t.kind) for t in mixed.tasks] == [("data/0", "classification"), ("data/1", "regression")]
    pets = TensorSource(numbered(8), {"y": torch.arange(8) % 2}, "pets", class_names=["cat", "dog"])
    assert from_datasets([pets]).tasks[0].classes == ("cat", "dog")
    assert from_datasets([pets], tasks="own").tasks[0].classes == ("cat", "dog")


def test_regression() -> None:
    stream = from_datasets([values(1)[0], (numbered(6), torch.zeros(6, 1))])
    assert [(t.name, t.kind, t.size) for t in stream.tasks] == [("value", "regression", 1)]
    assert everything(stream[0].data["train"]).targets["value"].shape == (8, 1)
    assert stream[0].classes == {}
    wide = from_datasets([(numbered(6), torch.rand(6, 3))] * 2, names=["a", "b"])
    assert wide.tasks[0].size == 3
    events = Engine(models.mlp(wide, (4,)), sgd(), batch_size=4).run(wide).events
    assert {e["metric"] for e in events if e["event"] == "evaluation"} == {"mean_squared_error"}


def test_test_rows() -> None:
    own = from_datasets(parts(), parts(3, 4))
    assert [(len(trained), len(tested)) for _, trained, tested in rows(own)] == [(12, 4)] * 3
    assert [d.parts()[0].source.name for d in (own.evaluation(i).data for i in range(3))] == [f"data/{i}/test" for i in range(3)]
    some = from_datasets(parts(), [None, parts(3, 4)[1], None])
    assert [(len(trained), len(tested)) for _, trained, tested in rows(some)] == [(10, 2), (12, 4), (10, 2)]
    together = from_datasets(parts(), (numbered(7) - 50, torch.arange(7) % 6))
    assert together.sets == (0,)
    assert together.learnt_after == (3,)
    assert [len(together.evaluation(i).data) for i in range(3)] == [7, 7, 7]
    assert together.evaluation_set(0).name == "all test rows"
    fits = from_datasets(parts(), tasks="own", test=parts(3, 4))
    assert torch.equal(everything(fits.evaluation(2).data).targets["data/2"], torch.arange(4) % 2)


def test_labels_of_test_rows_are_out_of_reach_of_training() -> None:
    stream = from_datasets([(numbered(12), torch.arange(12) % 2 + 1), (numbered(12), torch.arange(12) % 3)])
    held_out = stream.evaluation(0).data.parts()[0].indices
    assert not bool(stream[0].data["train"].parts()[0].source.take(held_out).targets["y"].any())
    assert bool(everything(stream.evaluation(0).data).targets["class"].all())


@pytest.mark.parametrize("tasks", ["shared", "own"])
def test_an_engine_trains_on_them_and_replays(tasks: str) -> None:
    """Rows of different data sets are told apart in a memory, though their sources are called alike."""
    own = [TensorSource(x / 2000, {"y": y}, "same") for x, y in parts()]
    stream = from_datasets(own, tasks=tasks, names=["a", "b", "c"])
    result = Engine(models.mlp(stream, (8,)), sgd(), [create("replay", {"capacity": 12})], batch_size=6, epochs=2).run(stream)
    assert result.accuracy_matrix.shape == (4, 3)


# ---------------------------------------------------------------------- errors

BAD_ROW = numbered(12)
BAD_ROW[3, 1] = NAN


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ((torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)), "experience 1: source 'data/1' has no rows"),
        ((numbered(12, 3), torch.arange(12) % 2), r"experience 1: its inputs have shape \(3,\), those of experience 0 \(2,\): bring"),
        ((numbered(12).double(), torch.arange(12) % 2), "experience 1: its inputs are float64, those of experience 0 float32"),
        ((torch.arange(24).view(12, 2), torch.arange(12) % 2), "experience 1: its inputs are int64, those of experience 0 float32"),
        ((numbered(12), torch.arange(12) % 2 * 1.0), r"experience 1: the labels 'y' .* are float32 .*convert them with .long\(\)"),
        ((numbered(12), torch.zeros(12, 1, dtype=torch.int64)), r"experience 1: .* of shape \(12, 1\).* with .squeeze\(1\)"),
        ((numbered(12), torch.zeros(12, 4, dtype=torch.int64)), r"experience 1: .* with .argmax\(1\)"),
        ((numbered(12), torch.arange(12) - 1), "experience 1: row 0 of source 'data/1' has the negative label -1"),
        ((BAD_ROW, torch.arange(12) % 2), "experience 1: row 3 of x of source 'data/1' holds NaN"),
        ((numbered(12), torch.arange(11) % 2), "experience 1: source 'data/1' has 12 rows of x but 11 of 'y'"),
        ((numbered(12), torch.arange(12) + 0.5), "experience 1 has values to regress and experience 0 has class numbers: give all of"),
        ((numbered(12), torch.arange(12) % 2 * 3), "no experience has a row of class 2, though labels run to 3: number the classes of all"),
        (17, "experience 1: a int is no source"),
        ("nothing", "unknown source 'nothing'"),
        (TensorSource(numbered(4), {"a": torch.arange(4), "b": torch.arange(4)}, "two"), "experience 1: .* the target columns a, b"),
        ((numbered(3), torch.tensor([0, 0, 1])), "experience 1: class 1 of source 'data/1' has a single row"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_experience_is_said(second: Any, message: str) -> None:
    with pytest.raises((DataError, UnknownNameError), match=message):
        from_datasets([(numbered(12), torch.arange(12) % 2), second])


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        ([], {}, "train is an empty list: give a list of data sets"),
        ("digits", {}, "train is 'digits': give a list of data sets"),
        (numbered(3), {}, "train is a Tensor: give a list of data sets"),
        (parts(), {"test": parts(2)}, "test lists 2 sources for 3 experiences: give one for each, or a single one that all share"),
        (parts(), {"test": [*parts(2), 5]}, "test rows of experience 2: a int is no source"),
        (parts(), {"test": 5}, "test rows: a int is no source"),
        (parts(), {"test": [None, (numbered(4, 3), torch.arange(4)), None]}, r"test rows of experience 1: its inputs have shape \(3,\)"),
        (parts(), {"test": (numbered(9), torch.arange(9))}, "test rows: label 6 in row 6 of 'data/test' is none of the classes 0 to 5"),
        (
            parts(),
            {"test": parts(4, 4)[1:], "tasks": "own"},
            "test rows of experience 0: label 2 in row 0 .* classes 0 to 1 of the training",
        ),
        (
            parts(),
            {"test": [None, parts(1)[0], None], "tasks": "own"},
            "test rows of experience 1: label 0 in row 0 .* classes 2, 3 of the",
        ),
        (parts(), {"test": parts(1)[0], "tasks": "own"}, "test is one source and tasks is 'own': give a list of test rows"),
        (parts(), {"names": ["a", "b"]}, "names lists 2 names for 3: give one for each experience"),
        (parts(), {"names": ["a", "b", "a"]}, r"experiences 0 and 2 are both called 'a': give each a name of its own with names=\[...\]"),
        (["digits", "digits"], {}, "experiences 0 and 1 are both called 'digits'"),
        (parts(), {"names": "abc"}, "names is 'abc': give a list of names"),
        (parts(), {"seed": -1}, "seed is -1"),
        (parts(), {"test_fraction": 1}, "test_fraction is 1: give a number between 0 and 1"),
        (values(), {"test": parts(2)}, "test rows of experience 0: the targets of source 'data/0/test' are class numbers"),
        (values(), {"test": [(numbered(5), torch.rand(5, 2))] * 2}, r"have shape \(5, 2\), and the task 1 values: give shape \(rows, 1\)"),
        ([(numbered(1), torch.rand(1))], {}, "experience 0: source 'data/0' has a single row, too few to train and to test"),
        ([(numbered(2), torch.tensor([0, 10**12]))], {"tasks": "own"}, "experience 0: labels run to 1000000000000: number classes from 0"),
    ],
)
def test_what_does_not_fit_is_refused(train: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_datasets(train, **options)


def test_training_rows_are_no_test_rows_and_a_kind_of_tasks_is_known() -> None:
    source = TensorSource(numbered(8), {"y": torch.arange(8) % 2}, "own")
    with pytest.raises(DataError, match="test rows: source 'own' is also trained on: give other rows, or test_fraction"):
        from_datasets([source], source)
    first, second, third = parts()
    for test in ([None, None, first], [second, None, None], (third[0].double().float(), third[1].flip(0))):
        with pytest.raises(DataError, match=r"test rows.*: these are the rows that experience \d trains on: give other rows"):
            from_datasets([first, second, third], test)
    nearly = third[0].clone()
    nearly[-2] += 1
    assert len(from_datasets([first, second, third], (nearly, third[1])).sets) == 1, "one other row makes other rows"
    with pytest.raises(UnknownNameError, match="unknown kind of tasks 'share': did you mean 'shared'"):
        from_datasets([source], tasks="share")


@real_data
def test_real_data_sets_one_after_another() -> None:
    stream = from_datasets(["mnist", "fashion-mnist"], tasks="own")
    assert [(len(e.data["train"]), len(stream.evaluation(i).data)) for i, e in enumerate(stream)] == [(60000, 10000)] * 2
    assert np.prod(stream.input_shape) == 784
