"""What is counted before training: right, of visible labels only, and without reading inputs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.errors import DataError
from streamlearn.streams import (
    adaptation,
    class_incremental,
    data_incremental,
    domain_incremental,
    episodes,
    joint,
    label_policy,
    multitask,
    online,
    task_incremental,
    validation,
)
from streamlearn.streams.overview import Amount, overview


def test_every_class_is_counted_where_it_comes() -> None:
    stream = class_incremental("digits", 5, seed=3)
    found = overview(stream)
    assert found.complete
    for experience, seen in zip(stream, found.experiences, strict=True):
        classes = seen.roles["train"].tasks["digits"].classes
        column = experience.data["train"].column("digits")  # type: ignore[union-attr]
        assert classes == {number: int((column == number).sum()) for number in experience.classes["digits"]}
        assert seen.roles["train"].amount == Amount(len(experience.data["train"]), len(experience.data["train"]))
    assert sum(found.totals["train"].tasks["digits"].classes.values()) == found.totals["train"].amount.rows == 1438
    assert sum(one.rows.amount.rows for one in found.sets) == 359


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 50), st.integers(1, 20), st.integers(1, 400))
def test_totals_do_not_depend_on_how_rows_are_cut(seed: int, experiences: int, rows: int) -> None:
    stream = data_incremental("digits", experiences, seed=seed)
    cut = online(stream, rows=rows, seed=seed)
    assert overview(cut, most=10_000).totals == overview(stream).totals


def test_inputs_are_not_read(toy: Any, counting: Any) -> None:
    source = toy(rows=40, classes=4, kind=counting)
    test = toy(rows=8, classes=4, name="test", kind=counting)
    for stream in (class_incremental(source, 2, test=test), domain_incremental(source, 3, test=test), joint(source, test=test)):
        overview(stream)
    assert (source.rows_taken, test.rows_taken) == (0, 0)


def test_only_visible_labels_are_counted() -> None:
    sparse = overview(label_policy(class_incremental("digits", 5), "sparse", per_class=3))
    for one in sparse.experiences:
        assert set(one.roles["train"].tasks["digits"].classes.values()) == {3}
        assert one.roles["train"].amount.labelled == 6
    never = overview(label_policy(class_incremental("digits", 5), "never"))
    for one in never.experiences:
        assert one.roles["target"].amount.labelled == 0
        assert one.roles["target"].tasks["digits"].classes == {}
        assert one.scored == one.roles["target"].amount.rows


def test_roles_domains_and_tasks() -> None:
    found = overview(adaptation("moons", rows=40))
    (one,) = found.experiences
    assert {role: rows.amount for role, rows in one.roles.items()} == {"train": Amount(40, 40), "target": Amount(40, 0)}
    assert one.whole.domains == {"source": Amount(40, 40), "target": Amount(40, 0)}
    assert one.scored == 0
    tasks = overview(task_incremental("digits", 5))
    assert [experience.tasks for experience in tasks.experiences] == [(f"digits/{i}",) for i in range(5)]
    kept = overview(validation(class_incremental("digits", 2), 0.25))
    assert set(kept.totals) == {"train", "validation"}
    assert kept.totals["train"].amount + kept.totals["validation"].amount == Amount(1438, 1438)


def test_values_of_a_regression(toy: Any) -> None:
    y = torch.linspace(-1.25, 3.3, 40)
    found = overview(data_incremental((torch.rand(40, 2), y), 4))
    values = [one.roles["train"].tasks[found.tasks[0].name].values for one in found.experiences]
    total = found.totals["train"].tasks[found.tasks[0].name].values
    assert total is not None
    known = [one for one in values if one is not None]
    assert len(known) == 4
    assert total.low[0] == min(one.low[0] for one in known)
    assert total.high[0] == max(one.high[0] for one in known)
    assert total.mean[0] == pytest.approx(sum(one.mean[0] for one in known) / 4)


def test_missing_labels_of_several_tasks() -> None:
    y = torch.tensor([0, 1, -1, -1] * 10)
    found = overview(multitask((torch.rand(40, 3), {"a": y, "b": torch.rand(40)}), test_fraction=0.25))
    rows = found.totals["train"]
    assert rows.amount == Amount(30, 30)
    assert rows.tasks["a"].amount.labelled == sum(rows.tasks["a"].classes.values()) < 30
    assert set(rows.tasks["a"].classes) == {0, 1}
    assert rows.tasks["b"].amount == Amount(30, 30)


def test_episodes_are_told_apart_from_rows() -> None:
    (one,) = overview(episodes("sinusoids", train_episodes=7, shots=2, queries=3)).experiences
    assert (one.roles["train"].episodes, one.roles["train"].amount.rows) == (7, 35)


def test_a_long_stream_is_looked_at_in_even_steps_and_an_endless_one_from_its_start() -> None:
    long = overview(domain_incremental("digits", 1000), most=5)
    assert [one.index for one in long.experiences] == [0, 249, 499, 749, 999]
    assert [one.sets for one in long.experiences] == [(i,) for i in (0, 249, 499, 749, 999)]
    assert not long.complete
    endless = overview(domain_incremental("digits", "endless"), most=3)
    assert [one.index for one in endless.experiences] == [0, 1, 2]
    assert endless.to_json()["length"] == "endless"
    assert [one.index for one in overview(online(class_incremental("digits", 5)), most=1).experiences] == [0]


def test_which_evaluation_sets_belong_to_an_experience() -> None:
    found = overview(joint(class_incremental("digits", 5)))
    assert found.experiences[0].sets == (0, 1, 2, 3, 4)
    assert [one.index for one in found.sets] == [0, 1, 2, 3, 4]


def test_it_is_json() -> None:
    told = overview(label_policy(data_incremental("digits", 3), "sparse", fraction=0.1)).to_json()
    assert json.loads(json.dumps(told)) == told
    assert told["experiences"][0]["roles"]["train"]["tasks"]["digits"]["classes"].keys() == {str(i) for i in range(10)}


def test_nothing_to_look_at_is_refused() -> None:
    with pytest.raises(DataError, match="most is 0"):
        overview(data_incremental("digits", 2), most=0)
