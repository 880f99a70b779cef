from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn import Engine, models
from streamlearn.errors import DataError
from streamlearn.streams import adaptation, build_chain, class_incremental, domain_incremental, joint, rebuild, task_incremental
from streamlearn.streams.data import JoinedData
from tests.core.support import sgd


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 5), st.integers(0, 5))
def test_every_row_of_every_experience_once(experiences: int, seed: int) -> None:
    y = torch.arange(30) % 5
    base = class_incremental((torch.zeros(30, 1), y), experiences, seed=seed)
    stream = joint(base)
    (data,) = stream[0].data["train"].parts()
    assert sorted(data.indices.tolist()) == sorted(row for e in base for row in e.data["train"].indices.tolist())
    assert stream[0].classes == {"class": (0, 1, 2, 3, 4)}
    assert [stream.evaluation_set(k).data.indices.tolist() for k in range(len(stream.sets))] == [
        base.evaluation(k).data.indices.tolist() for k in range(experiences)
    ]
    assert sorted(row for part in stream.evaluation(0).data.parts() for row in part.indices.tolist()) == sorted(
        row for i in range(experiences) for row in base.evaluation(i).data.indices.tolist()
    )


def test_tasks_and_domains_stay_apart() -> None:
    tasks = joint(task_incremental("digits", 5))[0]
    assert len(tasks.tasks) == 5
    assert isinstance(tasks.data["train"], JoinedData)
    domains = joint(domain_incremental("digits", 3, transform="rotation"))[0].data["train"]
    assert [part.domain for part in domains.parts()] == ["rotation/0", "rotation/60", "rotation/120"]
    assert len(domains) == 3 * 1438


def test_of_a_source() -> None:
    stream = joint("digits")
    assert (len(stream), len(stream.sets), len(stream[0].data["train"])) == (1, 1, 1438)
    assert stream.name == "digits/data_incremental/joint"


def test_roles_and_truth_are_joined() -> None:
    base = adaptation("moons", rows=20, source_free=True)
    stream = joint(base)
    assert {role: len(data) for role, data in stream[0].data.items()} == {"train": 20, "target": 20}
    truth = stream.truth(0)
    assert truth is not None
    assert len(truth) == 20


def test_the_matrix_has_a_column_for_each_set_of_the_stream() -> None:
    stream = joint(class_incremental("digits", 5))
    result = Engine(models.mlp(stream, hidden=(16,)), sgd()).run(stream)
    assert result.accuracy_matrix.shape == (2, 5)
    assert result.metrics["average_accuracy"].value is not None
    assert result.metrics["forgetting"].value is None


def test_text_rebuilding_and_refusals() -> None:
    stream = build_chain("class_incremental:source=digits | joint")
    assert rebuild(json.loads(json.dumps(stream.description))).hash == stream.hash
    assert rebuild(json.loads(json.dumps(joint("digits").description))).hash == joint("digits").hash
    with pytest.raises(DataError, match="a list is no source"):
        joint([1, 2])  # type: ignore[arg-type]


def test_domains_whose_names_are_hidden_are_still_told_apart_by_memories() -> None:
    data = build_chain("domain_incremental:source=digits,experiences=2 | task_free | joint")[0].data["train"]
    assert [(part.source.name, part.domain) for part in data.parts()] == [("digits", ""), ("digits#2", "")]
