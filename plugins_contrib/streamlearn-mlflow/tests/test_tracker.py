"""Runs as MLflow holds them: complete, each value once, also after a stop and a resume."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from streamlearn import Engine, models, streams
from streamlearn.errors import ConfigurationError, MissingExtraError
from streamlearn.plugins import EWC

from streamlearn_mlflow import MLflowTracker
from streamlearn_mlflow.tracker import measurements

installed = importlib.util.find_spec("mlflow") is not None
needs_mlflow = pytest.mark.skipif(not installed, reason="mlflow is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow and what it imports warn of themselves

STREAM = streams.class_incremental("digits", experiences=2)


def engine(folder: Path, progress: Any = None, **options: Any) -> Engine:
    plugins = [MLflowTracker(uri=(folder / "mlruns").as_uri(), experiment="digits", **options), EWC(strength=1.0)]
    optimizer = lambda p: torch.optim.SGD(p, lr=0.05)  # noqa: E731
    return Engine(models.mlp(STREAM, (8,)), optimizer, plugins, batch_size=64, evaluate_every=4, checkpoint_every=1, progress=progress)


def runs(folder: Path) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(folder / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("digits")
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def history(folder: Path, run: Any) -> list[tuple[str, float, int]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(folder / "mlruns").as_uri())
    return sorted((m.key, m.value, m.step) for name in run.data.metrics for m in client.get_metric_history(run.info.run_id, name))


class Stop(Exception):  # noqa: N818
    pass


def test_what_is_undefined_is_left_out_and_names_are_mended() -> None:
    event = {"event": "evaluation", "update": 1, "set_name": "a|b", "task": "", "metric": "m/x", "value": None, "loss": 2.0}
    assert measurements([event]) == [("loss/a_b", 2.0, 1)]


@needs_mlflow
def test_options_values_and_the_record_are_there(tmp_path: Path) -> None:
    result = engine(tmp_path, run_name="first").run(STREAM)
    (run,) = runs(tmp_path)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    assert run.data.params["ewc.strength"] == "1.0"
    assert run.data.params["engine.batch_size"] == "64"
    assert run.data.params["stream.hash"] == STREAM.hash
    assert history(tmp_path, run) == sorted(measurements(result.events))
    assert any(name.startswith("train/ewc") for name in run.data.metrics)
    (record,) = Path(tmp_path).rglob("events.jsonl")
    assert len(record.read_text().splitlines()) == len(result.events)


@needs_mlflow
@pytest.mark.parametrize("update", [3, 13, 15])
def test_a_resume_goes_on_in_the_same_run_and_writes_nothing_twice(update: int, tmp_path: Path) -> None:
    def stop(event: str, run: Any) -> None:
        if run.clock.update == update:
            raise Stop

    with pytest.raises(Stop):
        engine(tmp_path, stop).run(STREAM, output=tmp_path / "run")
    (run,) = runs(tmp_path)
    assert run.info.status == "FAILED"
    result = engine(tmp_path).resume(tmp_path / "run", STREAM)
    (run,) = runs(tmp_path)
    assert run.info.status == "FINISHED"
    assert history(tmp_path, run) == sorted(measurements(result.events))


@needs_mlflow
def test_an_address_that_is_none_is_told(tmp_path: Path) -> None:
    tracker = MLflowTracker(uri="gopher://nowhere")
    with pytest.raises(ConfigurationError, match=r"plugin mlflow_tracker: MLflow at gopher://nowhere refuses: .*; check 'uri'"):
        Engine(models.mlp(STREAM, (8,)), lambda p: torch.optim.SGD(p, lr=0.05), [tracker]).run(STREAM)


def test_without_mlflow_the_line_that_brings_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamlearn_mlflow.tracker.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"plugin mlflow_tracker needs the package 'mlflow'.*pip install mlflow-skinny"):
        MLflowTracker()
