"""``run`` and ``explain``: what runs, what is kept, and that a stopped run goes on to the same end."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from streamlearn.results import METRICS

from .conftest import TINY, Call, start

FILE = """
epochs = 2
batch_size = 128
[stream]
name = "class_incremental"
source = "digits"
experiences = 2
[model]
name = "mlp"
hidden = [8]
[optimizer]
name = "adam"
lr = 0.01
betas = [0.8, 0.9]
[[plugins]]
name = "replay"
capacity = 20
[[plugins]]
name = "replay"
instance = "second"
memory = "other"
"""


def described(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content


def result_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return content


def test_a_run_keeps_the_matrix_and_the_metrics_by_name(cli: Call, tmp_path: Path) -> None:
    done = cli("run", *TINY, "--plugin", "replay:capacity=50", "--plugin", "ewc:strength=10", "--seed", "1", "--output", "runs/one")
    assert (done.code, done.err) == (0, "")
    content = result_of(tmp_path / "runs/one")
    assert [len(row) for row in content["accuracy_matrix"]] == [2, 2, 2]
    assert set(content["metrics"]) == set(METRICS)
    assert done.out.startswith("running: class_incremental(source=digits, experiences=2); replay(capacity=50) + ewc(strength=10)")
    assert done.last.startswith("result: runs/one")


def test_elsewhere_than_on_a_terminal_there_is_a_plain_line_for_each_experience(cli: Call) -> None:
    out = cli("run", *TINY).out
    assert [line.split(" ")[1] for line in out.splitlines() if line.startswith("experience ")] == ["1/2", "2/2"]
    assert "\x1b" not in out


def test_quiet_prints_the_last_line_only(cli: Call) -> None:
    assert cli("run", *TINY, "--quiet", "--output", "o").out.splitlines()[0].startswith("result: o")


def test_the_seed_goes_to_the_engine_and_to_the_stream(cli: Call, tmp_path: Path) -> None:
    cli("run", *TINY, "--seed", "3", "--output", "o", "-q")
    assert (described(tmp_path / "o")["seed"], described(tmp_path / "o")["stream"]["description"]["seed"]) == (3, 3)


def test_a_seed_named_by_the_stream_is_kept(cli: Call, tmp_path: Path) -> None:
    cli("run", "--stream", "class_incremental:source=digits,experiences=2,seed=7", "--seed", "3", "--output", "o", "-q")
    assert (described(tmp_path / "o")["seed"], described(tmp_path / "o")["stream"]["description"]["seed"]) == (3, 7)


def test_a_strategy_file_says_everything(cli: Call, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(FILE)
    assert cli("run", "s.toml", "--output", "o", "-q").code == 0
    strategy = described(tmp_path / "o")["strategy"]
    assert [plugin["instance"] for plugin in strategy["plugins"]] == ["replay", "second"]
    assert (strategy["epochs"], strategy["batch_size"], strategy["optimizer"]["name"]) == (2, 128, "Adam")
    assert strategy["optimizer"]["groups"][0]["betas"] == [0.8, 0.9]


def test_options_override_the_file(cli: Call, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(FILE)
    more = ["--plugin", "ewc:strength=2,name=held", "--epochs", "1", "--optimizer", "sgd:lr=0.1"]
    assert cli("run", "s.toml", *more, "--output", "o", "-q").code == 0
    strategy = described(tmp_path / "o")["strategy"]
    assert [plugin["instance"] for plugin in strategy["plugins"]] == ["held"]
    assert (strategy["epochs"], strategy["optimizer"]["name"]) == (1, "SGD")


def test_explain_takes_the_same_options_and_trains_nothing(cli: Call, tmp_path: Path) -> None:
    done = cli("explain", *TINY, "--plugin", "replay", "--plugin", "ewc", "--output", "o")
    assert done.code == 0
    assert "plugins, in resolved order:" in done.out
    assert "digits/class_incremental, 2 experiences" in done.out
    assert not (tmp_path / "o").exists()


# ---------------------------------------------------------------------- several seeds


def test_seeds_are_run_one_by_one_and_not_again(cli: Call, tmp_path: Path) -> None:
    words = ["run", *TINY, "--seeds", "2", "--output", "o"]
    first = cli(*words)
    assert first.code == 0
    assert "standard deviation" in first.out
    content = json.loads((tmp_path / "o/summary.json").read_text())
    values = [result_of(tmp_path / f"o/seed-{seed}")["metrics"]["average_accuracy"] for seed in (0, 1)]
    assert content["metrics"]["average_accuracy"]["values"] == values
    assert content["metrics"]["average_accuracy"]["mean"] == pytest.approx(sum(values) / 2)
    again = cli(*words)
    assert again.out.count("is done already") == 2
    assert "experience 1/2" not in again.out


def test_seeds_of_another_strategy_are_not_taken_for_these(cli: Call) -> None:
    cli("run", *TINY, "--seeds", "1", "--output", "o", "-q")
    done = cli("run", *TINY, "--plugin", "ewc", "--seeds", "1", "--output", "o", "-q")
    assert done.code == 1
    assert done.err.startswith("error: o/seed-0 holds another run: its plugins is []")


def test_a_seed_that_was_killed_before_its_first_checkpoint_starts_again(cli: Call, tmp_path: Path) -> None:
    words = ["run", *TINY, "--seeds", "1", "--output", "o", "-q"]
    cli(*words)
    expected = (tmp_path / "o/seed-0/result.json").read_bytes()
    for path in (tmp_path / "o/seed-0/checkpoints").glob("*/*"):
        path.unlink()
    (tmp_path / "o/seed-0/result.json").unlink()
    assert cli(*words).code == 0
    assert (tmp_path / "o/seed-0/result.json").read_bytes() == expected


def test_resuming_the_folder_of_several_seeds_names_them(cli: Call) -> None:
    cli("run", *TINY, "--seeds", "1", "--output", "o", "-q")
    assert "resume o/seed-0, or repeat the command with --seeds" in cli("run", "--resume", "o").err


# ---------------------------------------------------------------------- stopping and going on


def test_an_interrupted_run_is_saved_and_resumed_to_the_same_result(cli: Call, tmp_path: Path) -> None:
    words = ["run", "--stream", "class_incremental:source=digits,experiences=3", "--batch-size", "4", "--epochs", "4"]
    words += ["--plugin", "replay:capacity=50", "--plugin", "ewc:strength=10", "--model", "mlp:hidden=[8]"]
    process = start(*words, "--output", "stopped", cwd=tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("experience 1/3"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "Resume with: streamlearn run --resume stopped" in err
    assert "Traceback" not in err
    assert not (tmp_path / "stopped/result.json").exists()
    assert cli("run", "--resume", "stopped", "-q").code == 0
    assert cli(*words, "--output", "whole", "-q").code == 0
    assert (tmp_path / "stopped/result.json").read_bytes() == (tmp_path / "whole/result.json").read_bytes()


def test_resuming_a_finished_run_only_tells_its_result(cli: Call, tmp_path: Path) -> None:
    cli("run", *TINY, "--output", "o", "-q")
    before = (tmp_path / "o/events.jsonl").stat().st_mtime_ns
    done = cli("run", "--resume", "o")
    assert "has ended" in done.out
    assert done.last.startswith("result: o")
    assert (tmp_path / "o/events.jsonl").stat().st_mtime_ns == before


def test_a_run_of_a_script_is_resumed_by_that_script(cli: Call, tmp_path: Path) -> None:
    cli("run", *TINY, "--output", "o", "-q")
    content = described(tmp_path / "o")
    (tmp_path / "o/run.json").write_text(json.dumps({**content, "origin": None}))
    done = cli("run", "--resume", "o")
    assert done.code == 1
    assert done.err.strip() == "error: the run in o was started by a script: resume it there, with engine.resume('o')"


# ---------------------------------------------------------------------- real data


@pytest.mark.data
def test_the_command_of_the_readme_runs_on_mnist(cli: Call, tmp_path: Path, data_folder: Path) -> None:
    stream = "class_incremental:source=mnist,experiences=5"
    more = ["--plugin", "replay:capacity=500", "--plugin", "ewc:strength=10", "--seed", "1", "--epochs", "1", "--batch-size", "512"]
    done = cli("run", "--stream", stream, *more, "--output", "runs/mnist", "--model", "mlp:hidden=[20]")
    assert done.code == 0, done.err
    content = result_of(tmp_path / "runs/mnist")
    assert len(content["accuracy_matrix"]) == 6
    assert content["metrics"]["average_accuracy"] > 0.3


CHAIN = "class_incremental:source=digits,experiences=2,classes=[[0,1],[2,3]] | online:rows=100"


def test_operators_follow_a_stream(cli: Call, tmp_path: Path) -> None:
    options = ("--batch-size", "50", "--model", "mlp:hidden=[8]", "--seed", "3")
    done = cli("run", "--stream", CHAIN, *options, "--output", "chain")
    assert (done.code, done.err) == (0, "")
    assert "class_incremental(source=digits, experiences=2, classes=[[0, 1], [2, 3]]) | online(rows=100)" in done.out
    content = result_of(tmp_path / "chain")
    assert [len(row) for row in content["accuracy_matrix"]] == [2] * 7, "six pieces, two evaluation sets"
    assert described(tmp_path / "chain")["stream"]["description"]["seed"] == 3, "the seed of the run is that of each link"
    Path("same.toml").write_text(
        'batch_size = 50\nseed = 3\n[stream]\nname = "class_incremental"\nsource = "digits"\nexperiences = 2\n'
        'classes = [[0, 1], [2, 3]]\nthen = [{ name = "online", rows = 100 }]\n[model]\nname = "mlp"\nhidden = [8]\n'
    )
    assert cli("run", "same.toml", "--output", "file").code == 0
    assert result_of(tmp_path / "file") == content
    assert cli("run", "--resume", "chain").code == 0, "what is finished is built again from its description"
    explained = cli("explain", "--stream", CHAIN)
    assert "| online(rows=100)" in explained.out


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        ("online:rows=10", "'online' is an operator and needs a stream before it"),
        ("class_incremental:source=digits | onlin:rows=10", "unknown stream builder 'onlin': did you mean 'online'?"),
        ("class_incremental:source=digits |", "there is nothing on one side of a '|'"),
        ("class_incremental:source=digits | online:row=10", "unknown option of online 'row': did you mean 'rows'?"),
        ("class_incremental:source=digits | task_incremental:source=digits", "cannot follow another: only operators stand after '|'"),
    ],
)
def test_chains_that_cannot_be(cli: Call, stream: str, told: str) -> None:
    done = cli("run", "--stream", stream)
    assert done.code == 2
    assert told in done.err
    assert len(done.err.strip().splitlines()) == 1
