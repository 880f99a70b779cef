"""One task of a stream of several by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from streamlearn import Engine, models
from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams import Stream, episodes, label_policy, multitask, task_incremental
from streamlearn.streams.operators.alone import single_task
from tests.core.support import sgd


def columns(rows: int = 24) -> tuple[Tensor, dict[str, Tensor]]:
    kind = torch.arange(rows) % 3
    kind[::4] = -1
    return torch.arange(rows, dtype=torch.float32).view(-1, 1).repeat(1, 2), {"kind": kind, "value": torch.arange(rows) + 0.75}


def rows(stream: Stream, role: str = "train") -> list[list[int]]:
    return [sorted(i for part in e.data[role].parts() for i in part.indices.tolist()) if role in e.data else [] for e in stream]


def test_rows_without_a_label_are_left_out() -> None:
    x, y = columns()
    whole = multitask((x, y), 3, validation=0.3)
    for task in whole.tasks:
        alone = single_task(whole, task.name)
        assert alone.tasks == (task,)
        for role in ("train", "validation"):
            labelled = [[i for i in found if task.name == "value" or int(y["kind"][i]) >= 0] for found in rows(whole, role)]
            assert rows(alone, role) == labelled
        for experience in alone:
            for data in experience.data.values():
                batch = data.batch(torch.arange(len(data)))
                assert batch.tasks == tuple(batch.targets) == (task.name,)
                assert bool(batch.labelled_rows(task.name).all())
                assert batch.targets[task.name].flatten().tolist() == [float(y[task.name][i]) for i in batch.index.tolist()]
            assert set(experience.classes) <= {task.name}
    tested = single_task(whole, "kind").evaluation(0).data
    assert [task.name for task in tested.tasks] == ["kind"]
    assert len(tested) == len(whole.evaluation(0).data)


def test_experiences_and_sets_without_the_task_are_left_out() -> None:
    whole = task_incremental("digits", 5)
    alone = single_task(whole, whole.tasks[3].name)
    assert (len(alone), alone.learnt_after, alone.fingerprints) == (1, (1,), whole.fingerprints)
    assert rows(alone) == [rows(whole)[3]]
    assert alone.evaluation_set(0).name == whole.evaluation_set(3).name
    assert single_task(whole[2:4], whole.tasks[3].name)[0].name == whole[3].name
    sources = [(columns(30)[0], torch.arange(30) % 2), (columns(5)[0], torch.arange(5) / 7)]
    several = multitask(sources, 8)
    few = single_task(several, "data/1")
    assert len(few) == sum(len(e.tasks) > 1 or e.tasks[0].name == "data/1" for e in several) < 8
    assert sum(map(len, rows(few))) == 4


def test_target_rows_keep_their_role_and_show_no_label() -> None:
    alone = single_task(multitask("digits", 2, target_domain=True), "right")
    data = alone[0].data["target"]
    assert len(data) == 719
    assert not data.batch(torch.arange(3), "target").targets
    late = single_task(label_policy(multitask("digits", 2), "delayed", steps=1), "left")
    assert [sorted(e.data) for e in late] == [["target"], ["target", "train"]]
    truth = late.truth(0)
    assert truth is not None
    assert [task.name for task in truth.tasks] == ["left"]


def test_it_is_trained_as_any_stream() -> None:
    whole = multitask(columns(), 2)
    results = [Engine(models.mlp(stream, (4,)), sgd(), batch_size=4).run(stream) for stream in (single_task(whole, "kind"), whole)]
    assert {e["task"] for e in results[0].events if e["event"] == "evaluation"} == {"kind"}
    assert results[0].accuracy_matrix.shape == results[1].accuracy_matrix.shape
    assert single_task(whole, "kind").description == {"builder": "single_task", "stream": whole.description, "task": "kind"}


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"task 'lift'.* did you mean 'left'"):
        single_task(multitask("digits"), "lift")
    with pytest.raises(DataError, match="single_task changes a stream, and a str is none"):
        single_task("digits", "left")  # type: ignore[arg-type]
    meta = episodes("sinusoids", train_episodes=4)
    with pytest.raises(DataError, match="are episodes: single_task is for streams of rows"):
        single_task(meta, meta.tasks[0].name)
