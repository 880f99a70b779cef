from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamlearn import Engine, models
from streamlearn.core.scheduling import power_probabilities
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import EWC, Replay
from streamlearn.plugins.scheduling.annealed_sampling import AnnealedSampling, annealed_exponent
from streamlearn.plugins.scheduling.temperature_sampling import temperature_probabilities
from tests.core.support import probe, resumes_bit_for_bit, separate_task_stream, sgd

GLUE = {"cola": 8551, "mrpc": 3668, "mnli": 392702, "rte": 2490, "sts": 5749, "sst": 67349, "qqp": 363846, "qnli": 104743}


def test_the_schedule_of_the_paper() -> None:
    """p_k ∝ n_k^α with α = 1 - 0.8 (e - 1) / (E - 1), by logarithms."""
    logs = np.log(list(GLUE.values()))
    for epochs in (2, 7, 25):
        for epoch in range(1, epochs + 1):
            alpha = 1 - 0.8 * (epoch - 1) / (epochs - 1)
            expected = np.exp(alpha * logs - np.logaddexp.reduce(alpha * logs))
            found = power_probabilities(GLUE, annealed_exponent(epoch, epochs))
            assert list(found.values()) == pytest.approx(expected.tolist(), rel=1e-12)
    assert annealed_exponent(1, 1) == 1.0
    assert annealed_exponent(3, 3, 0.5, 0.0) == 0.0
    assert power_probabilities(GLUE, 0.0) == dict.fromkeys(GLUE, 1 / 8)
    assert power_probabilities({"a": 4, "none": 0}, 0.0) == {"a": 1.0, "none": 0.0}


def test_the_ends_are_those_of_temperature_sampling() -> None:
    assert power_probabilities(GLUE, annealed_exponent(1, 5)) == temperature_probabilities(GLUE, 1.0)
    assert power_probabilities(GLUE, annealed_exponent(5, 5)) == pytest.approx(temperature_probabilities(GLUE, 5.0), rel=1e-12)


def probabilities(experiences: int, monkeypatch: Any, **options: Any) -> list[tuple[int, int, float]]:
    """(experience, epoch, probability of "a") at each batch."""
    stream, asked = separate_task_stream(experiences), []
    ask = AnnealedSampling.provide_task_probabilities

    def provide(self: Any, step: Any) -> Any:
        found = ask(self, step)
        asked.append((step.run.clock.experience, step.run.clock.epoch, found["a"]))
        return found

    provide.streamlearn_impl = ask.streamlearn_impl  # type: ignore[attr-defined]
    monkeypatch.setattr(AnnealedSampling, "provide_task_probabilities", provide)
    plugin = AnnealedSampling(start=options.pop("start", 1.0), end=options.pop("end", 0.2))
    Engine(models.mlp(stream, (4,)), sgd(), [plugin], batch_size=8, **options).run(stream)
    return asked


def test_a_run_anneals_from_epoch_to_epoch_anew_in_each_experience(monkeypatch: Any) -> None:
    asked = probabilities(2, monkeypatch, epochs=5)
    assert len(asked) == 2 * 5 * 3
    for _, epoch, found in asked:
        alpha = 1 - 0.2 * epoch
        assert found == pytest.approx(2**alpha / (2**alpha + 1))  # 16 rows to 8


def test_a_phase_of_one_epoch_stays_at_the_start_and_iterations_count_as_the_epochs_that_they_need(monkeypatch: Any) -> None:
    assert [found for *_, found in probabilities(1, monkeypatch, epochs=1, start=0.5)] == pytest.approx([2**0.5 / (2**0.5 + 1)] * 3)
    found = [found for *_, found in probabilities(1, monkeypatch, iterations=7, end=0.0)]
    assert found == pytest.approx([2 / 3] * 3 + [2**0.5 / (2**0.5 + 1)] * 3 + [0.5])


def test_tasks_are_drawn_as_often_as_it_says() -> None:
    drawn: list[Counter[str]] = [Counter(), Counter()]

    def look(step: Any) -> None:
        for task in step.batch.tasks:
            drawn[step.run.clock.epoch >= 50][task] += int(step.batch.labelled_rows(task).sum())

    stream = separate_task_stream(1)
    plugins = [AnnealedSampling(end=0.0), probe("look", before_step=look)]
    Engine(models.mlp(stream, (4,)), sgd(lr=0.01), plugins, batch_size=8, epochs=100).run(stream)
    early, late = (counts["a"] / counts.total() for counts in drawn)
    alphas = 1 - np.arange(100) / 99
    shares = 2**alphas / (2**alphas + 1)
    assert early == pytest.approx(float(shares[:50].mean()), abs=0.05)  # 3.5 standard deviations
    assert late == pytest.approx(float(shares[50:].mean()), abs=0.05)


@pytest.mark.parametrize("update", [2, 7])
def test_a_resume_in_mid_epoch_draws_what_it_would_have_drawn(update: int, tmp_path: Path) -> None:
    stream = separate_task_stream(2)

    def engine(**options: Any) -> Engine:
        plugins = [AnnealedSampling(), EWC(strength=1.0), Replay(capacity=8)]
        return Engine(models.mlp(stream, (9,)), sgd(), plugins, batch_size=8, seed=2, epochs=2, checkpoint_every=1, **options)

    resumes_bit_for_bit(engine, stream, update, tmp_path)


@pytest.mark.parametrize("options", [{"start": -0.1}, {"end": -1}, {"end": float("nan")}, {"end": float("inf")}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"plugin annealed_sampling: option '{next(iter(options))}' is "):
        AnnealedSampling(**options)
