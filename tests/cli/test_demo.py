"""The demonstration: it runs as configured, tells what was measured, and removes nothing but itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from streamlearn.cli import demo as module
from streamlearn.cli.demo import strategies, verdict
from streamlearn.results import Record, Result

from .conftest import Call


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    short = {name: text.replace("epochs = 8", "epochs = 1") for name, text in module.STRATEGIES.items()}
    monkeypatch.setattr(module, "STRATEGIES", short)


@pytest.mark.usefixtures("quick")
def test_the_demo_runs_again_and_keeps_what_is_not_its_own(cli: Call, tmp_path: Path) -> None:
    first = cli("run")
    assert (first.code, first.err) == (0, "")
    folder = tmp_path / "runs/demo"
    for name in ("figure.svg", "figure.png", "no_plugin/result.json", "replay_ewc/result.json", "joint/result.json", "replay_ewc.toml"):
        assert (folder / name).stat().st_size > 0, name
    assert "figure.svg" in first.last
    (folder / "mine.txt").write_text("kept")
    assert cli("run", "--seed", "1", "-q").code == 0
    assert (folder / "mine.txt").read_text() == "kept"
    assert json.loads((folder / "joint/run.json").read_text())["seed"] == 1


@pytest.mark.usefixtures("quick")
def test_the_strategy_files_that_the_demo_leaves_can_be_run(cli: Call, tmp_path: Path) -> None:
    cli("run", "-q")
    assert cli("run", "runs/demo/replay_ewc.toml", "--output", "mine", "-q").code == 0
    same = [json.loads((tmp_path / place / "result.json").read_text()) for place in ("mine", "runs/demo/replay_ewc")]
    assert same[0] == same[1]


def test_a_folder_of_something_else_is_left_alone(cli: Call, tmp_path: Path) -> None:
    (tmp_path / "runs/demo/joint").mkdir(parents=True)
    (tmp_path / "runs/demo/joint/thesis.tex").touch()
    done = cli("run")
    assert done.code == 1
    assert "holds something that is not the demo's" in done.err
    assert (tmp_path / "runs/demo/joint/thesis.tex").exists()


def test_the_demo_shows_the_bounds_and_the_composition() -> None:
    plugins = {name: [plugin.name for plugin in strategy.plugins] for name, strategy in strategies(seed=3).items()}
    assert plugins == {"no plugin": [], "replay + EWC": ["replay", "ewc"], "joint": ["joint"]}
    assert {strategy.seed for strategy in strategies(seed=3).values()} == {3}


def result(matrix: list[list[float]]) -> Result:
    record = Record()
    for trained, row in enumerate(matrix):
        for place, value in enumerate(row):
            event = {
                "event": "evaluation",
                "trained": trained,
                "set": place,
                "set_name": f"part {place}",
                "task": "t",
                "metric": "accuracy",
            }
            record.append({**event, "value": value})
    for index in range(len(matrix) - 1):
        record.append({"event": "experience", "index": index, "name": f"part {index}"})
    return Result({"format": 1, "stream": {"name": "s", "experiences": len(matrix) - 1}}, record)


def test_the_closing_words_follow_from_the_measurements() -> None:
    forgetful = result([[0, 0, 0], [1, 0, 0], [0.9, 1, 0], [0.4, 0.6, 1]])
    faithful = result([[0, 0, 0], [1, 0, 0], [0.9, 1, 0], [0.8, 0.9, 1]])
    empty = result([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    missing = result([[0, 0], [np.nan, 0], [0, 1]])
    text = verdict({"a": forgetful, "b": faithful, "c": empty, "d": missing})
    assert "a forgot 1 of the 2 earlier experiences (part 0); it knew 100 % of each" in text
    assert "b forgot none of the 2 earlier experiences; it knew 100 % of each when it had just learnt it, and 90 % of all" in text
    assert "c forgot all of the 2 earlier experiences (part 0; part 1)" in text
    assert "d was not measured everywhere" in text


@pytest.mark.slow
def test_the_demo_keeps_its_promise_over_five_seeds() -> None:
    from streamlearn.cli.build import build

    means = {}
    for name in strategies():
        results = []
        for seed in range(5):
            engine, stream = build(strategies(seed)[name])
            results.append(engine.run(stream).metrics)
        means[name] = {key: np.mean([float(measures[key]) for measures in results]) for key in ("average_accuracy", "forgetting")}
    assert means["no plugin"]["forgetting"] > 0.9
    assert means["replay + EWC"]["average_accuracy"] >= 0.85
    assert means["joint"]["average_accuracy"] >= 0.945
