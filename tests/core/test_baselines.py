"""A model for each task alone, and what several tasks are measured against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamlearn import Engine, models
from streamlearn.core.baselines import single_task_baselines
from streamlearn.errors import ConfigurationError, UnknownNameError
from streamlearn.results.multitask_metrics import delta_m, final_values, worst_task
from streamlearn.streams import Stream, multitask
from streamlearn.streams.operators.alone import single_task
from tests.core.support import same, sgd


def make(stream: Stream, **options: Any) -> Engine:
    return Engine(models.mlp(stream, (16,)), sgd(), seed=3, **({"evaluate": "end", "batch_size": 32} | options))


def test_each_task_is_trained_alone_and_compared() -> None:
    stream = multitask("multi-digits", 2)
    alone = single_task_baselines(make, stream)
    assert list(alone) == ["left", "right"]
    by_hand = make(single_task(stream, "right")).run(single_task(stream, "right"))
    assert same(final_values(alone["right"]), final_values(by_hand))
    assert {task: list(found) for task, found in final_values(alone["left"]).items()} == {"left": ["accuracy"]}
    together = make(stream).run(stream)
    mine = {task: by["accuracy"] for task, by in final_values(together).items()}
    base = {task: final_values(found)[task]["accuracy"] for task, found in alone.items()}
    expected = 100 * sum((mine[task] - base[task]) / base[task] for task in mine) / 2
    assert float(delta_m(together, alone)) == pytest.approx(expected)
    assert float(worst_task(together, alone)) <= float(delta_m(together, alone))


def test_runs_are_recorded_and_not_trained_again(tmp_path: Path) -> None:
    stream, made = multitask("linnerud"), list[str]()

    def counted(found: Stream) -> Engine:
        made.append(found.tasks[0].name)
        return make(found)

    first = single_task_baselines(counted, stream, tasks=["pulse", "weight"], output=tmp_path)
    assert made == ["pulse", "weight"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "2"]
    stamp = (tmp_path / "2/events.jsonl").read_bytes()
    again = single_task_baselines(counted, stream, output=tmp_path)
    assert list(again) == ["weight", "waist", "pulse"]
    assert (tmp_path / "2/events.jsonl").read_bytes() == stamp
    assert final_values(again["pulse"]) == final_values(first["pulse"])


def test_what_cannot_be_is_refused() -> None:
    stream = multitask("linnerud")
    with pytest.raises(UnknownNameError, match="did you mean 'waist'"):
        single_task_baselines(make, stream, tasks=["wast"])
    with pytest.raises(ConfigurationError, match="make gives a NoneType for stream 'linnerud/multitask/weight': give a function"):
        single_task_baselines(lambda _: None, stream)  # type: ignore[arg-type, return-value]
