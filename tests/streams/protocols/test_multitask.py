"""Several tasks at once: target columns of one source, and several sources. Overlays have a file of their own."""

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
from torch.utils.data import TensorDataset

from streamlearn import Engine, models
from streamlearn.core.registry import create
from streamlearn.errors import ConfigurationError, DataError, UnknownNameError
from streamlearn.streams import Batch, Data, Stream, TensorSource, build, class_incremental, multitask, rebuild
from streamlearn.streams.data import Columns
from tests.core.support import sgd

real_data = pytest.mark.skipif("STREAMLEARN_DATA" not in os.environ, reason="STREAMLEARN_DATA is not set: it names the folder of real data")
NAN = float("nan")


def numbered(rows: int, features: int = 2) -> Tensor:
    return torch.arange(rows, dtype=torch.float32).reshape(-1, 1).repeat(1, features)


GOOD = (numbered(6), torch.arange(6) % 2)


def columns(rows: int = 24) -> tuple[Tensor, dict[str, Tensor]]:
    """A class with some labels missing, one value, two values with some missing; each tells the row."""
    kind = torch.arange(rows) % 3
    pair = torch.stack([torch.arange(rows) + 0.25, torch.arange(rows) + 0.5], 1)
    kind[::4] = -1
    pair[1::4, 1] = NAN
    return numbered(rows), {"kind": kind, "value": torch.arange(rows) + 0.75, "pair": pair}


def sources(sizes: list[int], classes: int = 2) -> list[Any]:
    made: list[Any] = []
    for number, size in enumerate(sizes):
        x = numbered(size) + 1000 * number
        made.append((x, torch.arange(size) % classes if number % 2 == 0 else torch.arange(size) + 0.5))
    return made


def indices(data: Any) -> dict[str, list[int]]:
    """The rows of each source, by its name."""
    found: dict[str, list[int]] = {}
    for part in data.parts():
        found.setdefault(part.source.name, []).extend(part.indices.tolist())
    return found


def merged(parts: list[dict[str, list[int]]]) -> dict[str, list[int]]:
    return {name: [row for part in parts for row in part.get(name, [])] for name in {name for part in parts for name in part}}


def everything(data: Any) -> Batch:
    batch: Batch = data.batch(torch.arange(len(data)))
    return batch


def rows(stream: Stream) -> list[dict[str, dict[str, list[int]]]]:
    return [{role: indices(data) for role, data in experience.data.items()} for experience in stream]


# ---------------------------------------------------------------------- properties


@settings(deadline=None, max_examples=40)
@given(st.integers(6, 40), st.integers(1, 5), st.integers(0, 9), st.sampled_from([0.0, 0.2, 0.5, 0.9]), st.sampled_from([0.1, 0.3, 0.8]))
def test_every_row_of_several_columns_comes_once(size: int, experiences: int, seed: int, validation: float, fraction: float) -> None:
    count = min(experiences, size - min(max(1, round(fraction * size)), size - 1))
    x, y = columns(size)
    y["kind"][1], y["pair"] = 1, torch.rand(size, 2)  # any split leaves a label to train on: see below for those that do not
    y["kind"][y["kind"] < 0] = 0
    stream = multitask((x, y), count, seed=seed, validation=validation, test_fraction=fraction)
    trained = merged([part for found in rows(stream) for part in found.values()])["data"]
    tested = indices(stream.evaluation(0).data)["data"]
    assert sorted(trained + tested) == list(range(size))
    assert len(tested) == min(max(1, round(fraction * size)), size - 1)
    shares = [sum(len(data) for data in experience.data.values()) for experience in stream]
    assert max(shares) - min(shares) <= 1
    for experience, share in zip(stream, shares, strict=True):
        kept = min(round(validation * share), share - 1)
        assert ("validation" in experience.data) == (kept > 0)
        assert len(experience.data["train"]) == share - kept
        assert experience.classes["kind"] == tuple(torch.unique(everything(experience.data["train"]).targets["kind"]).tolist())
        assert experience.data["train"].parts()[0].domain == ""


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(5, 30), min_size=1, max_size=5), st.integers(1, 9), st.integers(0, 9), st.sampled_from([0.0, 0.25]))
def test_every_row_of_several_sources_comes_once(sizes: list[int], experiences: int, seed: int, validation: float) -> None:
    given_sources = sources(sizes)
    count = min(experiences, sum(size - max(2, round(0.2 * size)) for size in sizes))
    stream = multitask(given_sources, count, seed=seed, validation=validation)
    trained = merged([part for found in rows(stream) for part in found.values()])
    tested = indices(stream.evaluation(0).data)
    for number, size in enumerate(sizes):
        assert sorted(trained[f"data/{number}"] + tested[f"data/{number}"]) == list(range(size))
    totals = [sum(len(data) for data in experience.data.values()) for experience in stream]
    assert max(totals) - min(totals) <= 1
    for experience in stream:
        shares = {part.tasks[0].name for part in experience.data["train"].parts()}
        assert [task.name for task in experience.tasks] == [f"data/{n}" for n in range(len(sizes)) if f"data/{n}" in shares]
        for part in experience.data["train"].parts():
            number = int(part.tasks[0].name.removeprefix("data/"))
            batch = everything(part)
            assert torch.equal(batch.x[:, 0].long() - 1000 * number, batch.index), "each row is asked on the task of its source"
            assert torch.equal(batch.targets[f"data/{number}"].float().flatten(), given_sources[number][1][batch.index].float())
    for number in range(len(sizes)):
        parts = [len(r) for found in rows(stream) if (r := merged(list(found.values())).get(f"data/{number}", []))]
        assert max(parts) - min([*parts, *([0] if len(parts) < count else [])]) <= 1


@settings(deadline=None, max_examples=25)
@given(st.booleans(), st.integers(0, 5), st.slices(4))
def test_slicing_and_iterating_agree(several: bool, seed: int, part: slice) -> None:
    stream = multitask(sources([11, 6, 9]) if several else columns(), 4, seed=seed, validation=0.3)
    expected = rows(stream)[part]
    if expected:
        assert rows(stream[part]) == expected


@pytest.mark.parametrize("name", ["linnerud", "mmoe-pairs:rows=30", ["digits", "digits"], ["iris", "iris"]])
def test_the_same_again_from_its_description(name: Any) -> None:
    options = {"tasks": ["a", "b"]} if isinstance(name, list) else {}
    stream = multitask(name, 3, seed=4, validation=0.1, **options)
    again = rebuild(json.loads(json.dumps(stream.description)))
    assert again.hash == stream.hash
    assert rows(again) == rows(stream)
    assert rows(rebuild(json.loads(json.dumps(stream[1:].description)))) == rows(stream)[1:]
    other = multitask(name, 3, seed=5, validation=0.1, **options)
    assert rows(other) != rows(stream)
    assert other.hash != stream.hash


@pytest.mark.parametrize("source", [columns(), sources([8, 9]), ["iris", (torch.rand(9, 4), torch.arange(9) % 2)]])
def test_what_was_given_as_objects_is_not_built_again(source: Any) -> None:
    stream = multitask(source, 2)
    json.dumps(stream.description)
    with pytest.raises(ConfigurationError, match="objects given by the user"):
        rebuild(stream.description)


# ---------------------------------------------------------------------- several columns


def test_kinds_follow_the_values() -> None:
    stream = multitask(columns())
    assert [(t.name, t.kind, t.size) for t in stream.tasks] == [
        ("kind", "classification", 3),
        ("value", "regression", 1),
        ("pair", "regression", 2),
    ]
    batch = everything(stream[0].data["train"])
    assert [tuple(batch.targets[t].shape[1:]) for t in ("kind", "value", "pair")] == [(), (1,), (2,)]
    assert batch.tasks == ("kind", "value", "pair")
    assert torch.equal(batch.targets["value"][:, 0], batch.index + 0.75)
    renamed = multitask(columns(), tasks=["x", "y", "z"])
    assert [t.name for t in renamed.tasks] == ["x", "y", "z"]
    assert torch.equal(everything(renamed[0].data["train"]).targets["y"], batch.targets["value"])
    assert renamed.hash != stream.hash


def test_missing_labels_are_masked_and_out_of_reach() -> None:
    _, y = columns()
    stream = multitask(columns(), 2)
    for data in (*(e.data["train"] for e in stream), stream.evaluation(0).data):
        assert isinstance(data, Data)
        batch = everything(data)
        assert torch.equal(batch.labelled_rows("kind"), y["kind"][batch.index] >= 0)
        assert torch.equal(batch.labelled_rows("pair"), ~y["pair"][batch.index].isnan().any(1))
        assert bool(batch.labelled_rows("value").all())
        assert bool((batch.targets["kind"][~batch.labelled_rows("kind")] == 0).all())
        assert bool((batch.targets["pair"][~batch.labelled_rows("pair")] == 0).all()), "also the value that is known of such a row"
        assert torch.equal(batch.targets["pair"][batch.labelled_rows("pair")][:, 1], batch.index[batch.labelled_rows("pair")] + 0.5)
    assert stream[0].classes == {"kind": tuple(sorted(set(y["kind"][stream[0].data["train"].parts()[0].indices].tolist()) - {-1}))}


def test_labels_of_test_rows_are_out_of_reach_of_training() -> None:
    x, y = columns()
    y["value"] += 1
    stream = multitask((x, y), 2)
    held_out = stream.evaluation(0).data.parts()[0].indices
    shown = stream[0].data["train"].parts()[0].source.take(held_out).targets
    assert all(not bool(column.any()) for column in shown.values())
    assert bool(stream.evaluation(0).data.parts()[0].source.take(held_out).targets["value"].all())


def test_rows_that_miss_the_same_labels_are_held_out_alike() -> None:
    x, y = numbered(100), {"a": torch.ones(100), "b": torch.ones(100)}
    y["a"][:20], y["b"][20:] = NAN, NAN
    held_out = multitask((x, y)).evaluation(0).data.parts()[0].indices
    assert (int((held_out < 20).sum()), int((held_out >= 20).sum())) == (4, 16)


def test_a_missing_label_and_a_zero_are_different_content() -> None:
    x, y = numbered(6), torch.tensor([0, 1, 0, 1, 0, 1])
    missing = torch.tensor([0, 1, -1, 1, 0, 1])
    assert multitask((x, {"a": y})).hash != multitask((x, {"a": missing})).hash
    assert multitask((x, {"a": missing})).hash == multitask((x.clone(), {"a": missing.clone()})).hash


@pytest.mark.parametrize("plugin", [None, "uncertainty_weighting", "pcgrad"])
@pytest.mark.parametrize("several", [False, True])
def test_an_engine_trains_and_measures_every_task(plugin: str | None, several: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(80, 4, generator=draw)
    kind, value = (x[:, 0] > 0).long(), x[:, 1:3] * 2
    kind[::5] = -1
    source: Any = [(x, kind.clamp_min(0)), (x[:30], value[:30])] if several else (x, {"kind": kind, "value": value})
    stream = multitask(source, 2, validation=0.1)
    result = Engine(models.mlp(stream, (8,)), sgd(), [] if plugin is None else [create(plugin, {})], batch_size=8, epochs=2).run(stream)
    last = [event for event in result.events if event["event"] == "evaluation" and event["trained"] == 2]
    assert [(e["set"], e["task"], e["metric"]) for e in last] == [
        (0, stream.tasks[0].name, "accuracy"),
        (0, stream.tasks[1].name, "mean_squared_error"),
    ]
    batch = everything(stream.evaluation(0).data)
    assert [e["count"] for e in last] == [int(batch.labelled_rows(task.name).sum()) for task in stream.tasks]
    first = [event for event in result.events if event["event"] == "evaluation" and event["trained"] == 0]
    assert last[1]["value"] < first[1]["value"]
    assert result.accuracy_matrix.shape == (3, 1)


def test_missing_labels_contribute_nothing() -> None:
    """What stands beside a missing label makes no difference, bit for bit."""
    x, y = columns()

    def trained(known: float) -> dict[str, Tensor]:
        pair = y["pair"].clone()
        pair[1::4, 0] = known
        stream = multitask((x / 24, {**y, "pair": pair / 24}), 2)
        engine = Engine(models.mlp(stream, (4,)), sgd(), batch_size=4)
        return dict(engine.run(stream).model.state_dict())

    one, other = trained(0.0), trained(1e6)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_given_test_rows_are_used_and_columns_may_come_in_another_order() -> None:
    x, y = columns()
    test_x, test_y = columns(9)
    test = TensorSource(test_x + 100, {k: test_y[k].nan_to_num().clamp_min(0) for k in ("pair", "kind", "value")}, "held out")
    stream = multitask((x, y), 2, test=test)
    assert sorted(merged([found["train"] for found in rows(stream)])["data"]) == list(range(24))
    batch = everything(stream.evaluation(1).data)
    assert stream.sets == (0,)
    assert torch.equal(batch.x[:, 0], torch.arange(9) + 100.0)
    assert torch.equal(batch.targets["kind"], test.targets["kind"])
    assert batch.targets["value"].shape == (9, 1)
    missing = multitask((x, y), test=(test_x + 100, test_y))
    assert int(everything(missing.evaluation(0).data).labelled_rows("kind").sum()) == int((test_y["kind"] >= 0).sum())


def test_numpy_lists_and_truth_values_are_read() -> None:
    stream = multitask((np.zeros((8, 2)), {"a": [True, False] * 4, "b": np.arange(8) / 7, "c": np.arange(8, dtype=np.uint8) % 4}))
    assert [(t.kind, t.size) for t in stream.tasks] == [("classification", 2), ("regression", 1), ("classification", 4)]
    assert everything(stream[0].data["train"]).targets["b"].dtype == torch.float32


def test_building_reads_no_inputs(toy: Any, counting: Any) -> None:
    plain = toy(60, 6, kind=counting)
    wide = counting(torch.rand(60, 4), {"a": torch.arange(60) % 2, "b": torch.rand(60)}, "wide")
    for source in (wide, [plain, toy(12, 3, name="other")]):
        assert len(multitask(source, 3)[1].data["train"]) > 0
    assert plain.rows_taken == wide.rows_taken == 0


def test_a_source_that_keeps_no_columns_is_read_and_may_miss_labels() -> None:
    class Plain:
        name, input_shape = "plain", (2,)

        def __len__(self) -> int:
            return 12

        def take(self, index: Tensor) -> Columns:
            return Columns(numbered(12)[index], {"a": (torch.arange(12) % 3 - 1)[index], "b": torch.arange(12.0)[index]})

        def fingerprint(self) -> str:
            return "plain"

    stream = multitask(Plain(), 2)
    batch = everything(stream[0].data["train"])
    assert torch.equal(batch.labelled_rows("a"), batch.index % 3 != 0)


# ---------------------------------------------------------------------- several sources


def test_images_of_another_size_are_resized_and_own_test_rows_are_used() -> None:
    picture = torch.rand(20, 1, 16, 16)
    stream = multitask(["digits", TensorSource(picture, {"y": torch.arange(20) % 2}, "big")], 2)
    assert [t.name for t in stream.tasks] == ["digits", "big"]
    assert {p.source.name: len(p) for p in stream.evaluation(0).data.parts()} == {"digits/test": 359, "big": 4}
    part = stream[0].data["train"].parts()[1]
    assert torch.allclose(everything(part).x, picture[part.indices].reshape(-1, 1, 8, 2, 8, 2).mean((3, 5)))


def test_names_and_test_rows_of_several_sources() -> None:
    own = [(numbered(10), torch.arange(10) % 2), TensorDataset(numbered(9), torch.arange(9) % 3)]
    test = (numbered(4), torch.arange(4) % 2)
    stream = multitask(own, 2, tasks=["left", "right"], test=[test, None])
    assert [(t.name, t.size) for t in stream.tasks] == [("left", 2), ("right", 3)]
    assert {p.source.name: len(p) for p in stream.evaluation(0).data.parts()} == {"data/0/test": 4, "data/1": 3}
    assert sorted(merged([found["train"] for found in rows(stream)])["data/0"]) == list(range(10))
    shown = stream[0].data["train"].parts()[1].source.take(stream.evaluation(0).data.parts()[1].indices).targets["y"]
    assert not bool(shown.any()), "labels of test rows are hidden"
    assert multitask(tuple(own), tasks=["left", "right"]).tasks == stream.tasks, "a tuple that is no pair (x, y) is a list, too"


def test_from_text() -> None:
    stream = build("multitask", source=["digits"], experiences=2)
    assert [t.name for t in stream.tasks] == ["digits"]
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        multitask(["digits", "digit"])


def test_a_source_that_cannot_answer_for_no_row_is_asked_for_one() -> None:
    class Stacked(TensorSource):
        def take(self, index: Tensor) -> Columns:
            return Columns(torch.stack([self._x[i] for i in index]), {"y": self.targets["y"][index]})

    stacked = Stacked(numbered(8).double(), {"y": torch.arange(8) % 2}, "stacked")
    assert len(multitask([stacked])[0].data["train"]) == 6
    with pytest.raises(DataError, match=r"source 1 \('stacked'\) has float64 inputs, source 0 \('data/0'\) float32: bring all to one type"):
        multitask([GOOD, stacked])


def test_more_sources_than_rows_of_some() -> None:
    """A source with fewer rows than there are experiences is absent from some of them."""
    stream = multitask([(numbered(30), torch.arange(30) % 2), (numbered(5), torch.arange(5) / 7)], 8)
    present = [len(experience.tasks) for experience in stream]
    assert sorted(present) == [1] * 4 + [2] * 4
    assert Engine(models.mlp(stream, (4,)), sgd(), batch_size=4).run(stream).accuracy_matrix.shape == (9, 1)


def test_a_thousand_experiences_share_one_source() -> None:
    x = torch.rand(2000, 40)
    stream = multitask((x, {"a": torch.arange(2000) % 5, "b": torch.rand(2000)}), 1000)
    parts = [experience.data["train"].parts()[0] for experience in stream]
    assert len({id(part.source) for part in parts}) == 1
    assert parts[0].source._x.data_ptr() == x.data_ptr()
    assert sorted(len(part) for part in parts) == [1] * 400 + [2] * 600


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": torch.full((24,), -1)}, "target 'kind' of source 'data' has no label in any row: leave this column out"),
        ({"kind": torch.full((24,), -2)}, "row 0 of target 'kind' of source 'data' has the negative label -2"),
        ({"kind": torch.zeros(24, 1, dtype=torch.int64)}, r"shape \(24, 1\): class numbers are integers .* with .squeeze\(1\)"),
        ({"kind": torch.zeros(24, 3, dtype=torch.int64)}, r"convert them with .argmax\(1\)"),
        ({"kind": torch.full((24,), 10**9)}, "has 24 rows and labels up to 1000000000: number classes from 0 without gaps"),
        ({"kind": torch.zeros(23, dtype=torch.int64)}, "24 rows of x but 23 of 'kind'"),
        ({"value": torch.full((24,), float("inf"))}, "row 0 of target 'value' of source 'data' holds infinity"),
        ({"value": torch.zeros(24, 2, 2)}, r"target 'value' of source 'data' has shape \(24, 2, 2\): values to regress"),
        ({"value": ["a"] * 24}, "target 'value' of source 'data' hold <U1 values: give numbers"),
        ({3: torch.zeros(24)}, "each with a name"),
    ],
)
def test_columns_that_are_no_targets_are_refused(change: dict[Any, Any], message: str) -> None:
    x, y = columns()
    with pytest.raises(DataError, match=message):
        multitask((x, {**y, **change}))


def test_other_columns_are_refused() -> None:
    x, y = columns()
    bad = x.clone()
    bad[7, 1] = NAN
    with pytest.raises(DataError, match="row 7 of x of source 'data' holds NaN"):
        multitask((bad, y))
    with pytest.raises(DataError, match="give at least one, each with a name"):
        multitask((x, {}))
    with pytest.raises(DataError, match="has 1 row, too few to train and to test"):
        multitask((x[:1], {"a": torch.zeros(1)}))
    with pytest.raises(DataError, match="no training row of source 'data' has a label of 'a'"):
        multitask((numbered(3), {"a": torch.tensor([-1, 0, -1])}), test_fraction=0.9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": None}, "have the targets kind, pair, 'data' has kind, value, pair: make them alike"),
        ({"kind": torch.rand(24)}, "target 'kind' of 'data/test' is 1 values a row, that of 'data' 3 classes"),
        ({"pair": torch.rand(24, 3)}, "target 'pair' of 'data/test' is 3 values a row, that of 'data' 2 values a row"),
        ({"kind": torch.arange(24)}, "label 23 in 'kind' of 'data/test' is out of range: 'data' has the classes 0 to 2"),
    ],
)
def test_test_rows_of_other_columns_are_refused(change: dict[str, Any], message: str) -> None:
    x, y = columns()
    with pytest.raises(DataError, match=message):
        multitask((x, y), test=(x, {k: v for k, v in {**y, **change}.items() if v is not None}))


def test_test_rows_that_do_not_fit_are_refused() -> None:
    x, y = columns()
    with pytest.raises(DataError, match=r"test rows of 'data/test' have shape \(3,\)"):
        multitask((x, y), test=(numbered(24, 3), y))
    with pytest.raises(DataError, match="'linnerud' is given for training and for testing"):
        multitask("linnerud", test="linnerud")
    with pytest.raises(DataError, match="test is one source and source is a list of 2: give a list as long"):
        multitask(sources([8, 8]), test=(numbered(4), torch.arange(4) % 2))
    with pytest.raises(DataError, match="test is 1 sources and source is a list of 2"):
        multitask(sources([8, 8]), test=[None])


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ([], {}, "source is an empty list: give at least one source"),
        (sources([8, 8]), {"shift": 3}, "shift 3 is asked of a source with several tasks: it belongs to overlays"),
        ("linnerud", {"target_domain": True}, "target_domain is asked of a source with several tasks"),
        (sources([8, 8]), {"tasks": ["a"]}, "tasks lists 1 names for 2: give one for each source"),
        (sources([8, 8]), {"tasks": ["a", "a"]}, r"sources 0 and 1 are both called 'a': give each a name of its own with tasks=\[...\]"),
        (["digits", "digits"], {}, "sources 0 and 1 are both called 'digits'"),
        ("linnerud", {"tasks": "a"}, "tasks is 'a': give a list of names, one for each target column"),
        (sources([8, 8]), {"experiences": 50}, "has 12 training rows, fewer than 50 experiences: ask for at most 12"),
        (sources([8, 8]), {"validation": "much"}, r"validation is 'much': give a fraction in \[0, 1\)"),
        (sources([8, 8]), {"test_fraction": 0}, "test_fraction is 0"),
        ([GOOD, 3], {}, "source 1: a int is no source"),
        ([GOOD, (numbered(6), torch.arange(6) % 2 + 1)], {}, "source 1: no row of source 'data/1' has the class 0"),
        ([GOOD, (numbered(6, 3), GOOD[1])], {}, r"source 1 \('data/1'\) has inputs of shape \(3,\)"),
        ([GOOD, (numbered(6).double(), GOOD[1])], {}, "has float64 inputs, source 0 .* float32"),
        ([(torch.rand(6, 3, 4, 4), GOOD[1]), (torch.rand(6, 1, 4, 4), GOOD[1])], {}, "images with as many channels"),
        ([class_incremental("digits")], {}, "source 0: stream 'digits/class_incremental' stands where a source is wanted"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        multitask(source, **options)


@real_data
def test_real_images_side_by_side() -> None:
    stream = multitask(["digits", "usps"], 3)
    assert len(stream[0].data["train"]) == 2910
    assert everything(stream[0].data["train"].subset(torch.arange(0, 2910, 97))).x.shape[1:] == (1, 8, 8)


def mat(path: str) -> dict[str, Any]:
    from scipy.io import loadmat

    found: dict[str, Any] = loadmat(os.path.join(os.environ["STREAMLEARN_DATA"], path))
    return found


@real_data
def test_exam_scores_of_139_schools_of_unequal_sizes() -> None:
    """The School data set (Argyriou, Evgeniou and Pontil 2008): predicting the mean has an error of 1."""
    found = mat("school/school.mat")
    every = np.concatenate([y.astype(np.float32) for y in found["Y"][0]])
    schools = [(x.astype(np.float32), (y - every.mean()) / every.std()) for x, y in zip(found["X"][0], found["Y"][0], strict=True)]
    stream = multitask(schools, 2)
    assert len(stream.tasks) == 139
    assert sum(len(e.data["train"]) for e in stream) + len(stream.evaluation(0).data) == len(every) == 15362
    assert {e.data["train"].tasks for e in stream} == {stream.tasks}
    assert abs(len(stream[0].data["train"]) - len(stream[1].data["train"])) <= 1


@real_data
def test_seven_torques_of_one_arm() -> None:
    """SARCOS: seven values to regress from the same rows."""
    table = torch.from_numpy(mat("sarcos/sarcos_inv_test.mat")["sarcos_inv_test"]).float()
    table = (table - table.mean(0)) / table.std(0)
    stream = multitask((table[:, :21], {f"torque {i}": table[:, 21 + i] for i in range(7)}))
    engine = Engine(models.mlp(stream, (32,)), sgd(), [create("uncertainty_weighting", {})], batch_size=32)
    last = [event for event in engine.run(stream).events if event["event"] == "evaluation"][-7:]
    assert [event["task"] for event in last] == [f"torque {i}" for i in range(7)]
    assert all(event["value"] < 0.7 for event in last), "always predicting the mean has an error of 1"
