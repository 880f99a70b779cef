from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from streamlearn import Engine, models, streams
from streamlearn.errors import CompositionError, ConfigurationError
from streamlearn.plugins import ActiveSampling, TemperatureSampling
from streamlearn.plugins.scheduling.temperature_sampling import rows_by_task, temperature_probabilities
from tests.core.support import probe, separate_task_stream, sgd, two_task_stream


def counts(plugin: Any, stream: Any, **options: Any) -> tuple[Counter[str], int]:
    """Rows drawn for each task of the first experience, and the number of batches."""
    drawn: Counter[str] = Counter()
    steps: list[int] = []

    def look(step: Any) -> None:
        steps.append(len(step.batch))
        for task in step.batch.tasks:
            drawn[task] += int(step.batch.labelled_rows(task).sum())

    Engine(models.mlp(stream, (4,)), sgd(lr=0.01), [plugin, probe("look", before_step=look)], **({"batch_size": 8} | options)).run(stream)
    return drawn, len(steps)


def test_the_formula_against_logarithms_of_numpy() -> None:
    import numpy as np

    rows = {"a": 1_000_000, "b": 700, "c": 12}
    for temperature, cap in ((1.0, None), (3.3, None), (5.0, 1000), (0.5, None)):
        n = np.minimum(np.array(list(rows.values()), dtype=float), cap or np.inf)
        expected = np.exp(np.log(n) / temperature - np.logaddexp.reduce(np.log(n) / temperature))
        assert list(temperature_probabilities(rows, temperature, cap).values()) == pytest.approx(expected.tolist(), rel=1e-12)


def test_the_limits() -> None:
    rows = {"a": 30, "b": 10}
    assert temperature_probabilities(rows, 1.0) == pytest.approx({"a": 0.75, "b": 0.25})
    assert temperature_probabilities(rows, 1e9) == pytest.approx({"a": 0.5, "b": 0.5})
    assert temperature_probabilities(rows, 1.0, cap=10) == {"a": 0.5, "b": 0.5}
    assert temperature_probabilities(rows, 1e-3) == pytest.approx({"a": 1.0, "b": 0.0}), "nothing overflows"
    assert temperature_probabilities({"a": 3, "none": 0}, 1e9) == {"a": 1.0, "none": 0.0}, "rows that do not exist cannot be drawn"


def test_rows_are_counted_by_task() -> None:
    assert rows_by_task(separate_task_stream(1)[0].data["train"]) == {"a": 16, "b": 8}
    assert rows_by_task(two_task_stream()[0].data["train"]) == {"a": 24, "b": 24}


@pytest.mark.parametrize(("options", "share"), [({"temperature": 1.0}, 16 / 24), ({"temperature": 1e6}, 0.5), ({"cap": 8}, 0.5)])
def test_a_run_draws_tasks_as_often_as_it_says(options: dict[str, Any], share: float) -> None:
    drawn, steps = counts(TemperatureSampling(**options), separate_task_stream(1), epochs=50)
    assert steps == 150, "an epoch is as many batches as before"
    assert drawn["a"] + drawn["b"] == 1200
    assert drawn["a"] / 1200 == pytest.approx(share, abs=0.05)  # 3.5 standard deviations


def test_a_row_with_several_tasks_trains_them_all() -> None:
    stream = streams.multitask("digits")
    drawn, steps = counts(TemperatureSampling(), stream, batch_size=100)
    assert drawn["left"] == drawn["right"] == 100 * steps


def test_it_draws_anew_in_each_experience_and_from_its_data_alone() -> None:
    seen: list[Any] = []
    stream = separate_task_stream(2)
    watch = probe("look", before_step=lambda step: seen.append((step.run.clock.experience, step.batch.index)))
    Engine(models.mlp(stream, (4,)), sgd(lr=0.01), [TemperatureSampling(), watch], batch_size=8).run(stream)
    for experience, index in seen:
        assert bool(((index >= 24 * experience) & (index < 24 * experience + 24)).all())
    first = torch.cat([index for experience, index in seen if experience == 0])
    assert Counter(first[first >= 16].tolist()).most_common(1)[0][1] <= 2, "within a task each row comes once before any comes again"


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": float("inf")}, {"cap": 0}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"plugin temperature_sampling: option '{next(iter(options))}' is "):
        TemperatureSampling(**options)


def test_two_schedulers_are_refused() -> None:
    with pytest.raises(CompositionError, match="2 plugins claim 'provide_task_probabilities'"):
        Engine(torch.nn.Linear(6, 6), sgd(), [TemperatureSampling(), ActiveSampling()])
