"""What ``plugins new`` writes, and what it refuses to."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from streamlearn.cli.main import main
from streamlearn.cli.source import read_definition
from streamlearn.core.hooks import HOOKS
from streamlearn.errors import ConfigurationError, RunFolderError, UnknownNameError
from streamlearn.scaffold import KINDS, create

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_distribution_is_written(kind: str, tmp_path: Path) -> None:
    made = create("my-method", kind, tmp_path)
    module = "builder" if kind == "stream" else "method"
    assert (
        sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file())
        == [
            ".gitignore",
            "README.md",
            "pyproject.toml",
            "src/streamlearn_my_method/__init__.py",
            f"src/streamlearn_my_method/{module}.py",
            "src/streamlearn_my_method/py.typed",
            "tests/test_conformance.py",
            "tests/test_my_method.py",
        ]
        or kind == "stream"
    )
    project = tomllib.loads((made / "pyproject.toml").read_text())
    group = "streamlearn.streams" if kind == "stream" else "streamlearn.plugins"
    attribute = "my_method" if kind == "stream" else "MyMethod"
    assert project["project"]["entry-points"][group] == {"my_method": f"streamlearn_my_method.{module}:{attribute}"}
    assert project["project"]["name"] == "streamlearn-my-method"
    assert project["project"]["dependencies"] == ["streamlearn>=0.1"]
    for path in made.rglob("*"):
        if path.is_file():
            assert "{{" not in path.read_text(), path
    for path in made.rglob("*.py"):
        ast.parse(path.read_text())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "stream"])
def test_the_card_tells_what_the_module_does(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = create("my-method", kind, tmp_path)
    monkeypatch.syspath_prepend(made / "src")
    read = read_definition("streamlearn_my_method.method:MyMethod")
    card = KINDS[kind]
    assert (read.summary, read.family) == (card.summary, card.family)
    assert set(card.hooks) == set(read.hooks) <= set(HOOKS)
    readme = (made / "README.md").read_text()
    for part in (*card.hooks, card.summary, card.reference, *(option.name for option in card.options)):
        assert part in readme


def test_every_step_of_training_has_a_kind() -> None:
    hooks = {hook for kind in KINDS.values() for hook in kind.hooks}
    wanted = {
        "transform_batch", "transform_supervision", "collect_terms", "provide_weighting", "provide_gradient_combination",
        "transform_gradients", "transform_model", "provide_task_probabilities", "collect_metrics", "after_evaluation",
    }  # fmt: skip
    assert wanted <= hooks


@pytest.mark.parametrize("name", ["a", "my-method", "x2", "a-rather-long-name-for-a-method-of-today"])
def test_what_is_written_is_formatted_and_clean(name: str, tmp_path: Path) -> None:
    for kind in KINDS:
        create(name, kind, tmp_path / kind)
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", str(tmp_path)], check=False, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_what_is_written_has_strict_types(tmp_path: Path) -> None:
    packages = []
    for kind in KINDS:
        made = create(f"typed-{kind}", kind, tmp_path)
        packages.append(str(made / "src" / f"streamlearn_typed_{kind}"))
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), *packages]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("ewc", "loss", "there is a plugin 'ewc' already, in streamlearn: choose another name, such as 'my_ewc' or 'ewc_plus'"),
        ("multi-head", "model", "there is a plugin 'multi_head' already"),
        ("class-incremental", "stream", "there is a stream builder 'class_incremental' already, in streamlearn"),
        ("MyMethod", "loss", "'MyMethod' cannot be the name of a plugin: .*, such as 'my-method'"),
        ("2nd", "loss", "such as 'nd'"),
        ("class", "loss", "no word of Python, such as 'my-class'"),
        ("a--b", "loss", "such as 'a-b'"),
        ("../evil", "loss", "such as 'evil'"),
        ("x" * 41, "loss", "at most 40 characters"),
        ("", "loss", "'' cannot be the name of a plugin"),
        ("streamlearn-method", "loss", "begins with 'streamlearn', .*: write 'method'"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused_and_another_offered(name: str, kind: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=told):
        create(name, kind, tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_stream_may_be_called_as_a_plugin_is(tmp_path: Path) -> None:
    assert create("ewc", "stream", tmp_path).is_dir()


def test_a_kind_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown kind of plugin 'lose': did you mean 'loss'"):
        create("my-method", "lose", tmp_path)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    made = create("my-method", "loss", tmp_path)
    (made / "README.md").write_text("mine")
    with pytest.raises(RunFolderError, match="is there already, and nothing in it is overwritten: choose another name or another --folder"):
        create("my-method", "batch", tmp_path)
    assert (made / "README.md").read_text() == "mine"
    (tmp_path / "streamlearn-file").write_text("")
    with pytest.raises(RunFolderError, match="is there already"):
        create("file", "loss", tmp_path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot write .*choose another --folder"):
        create("my-method", "loss", tmp_path / "file")


def test_the_command_writes_it_and_says_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "new", "my-method", "--kind", "weighting", "--folder", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"pip install --editable {tmp_path / 'streamlearn-my-method'}" in out
    assert "streamlearn plugins info my_method" in out
    assert (tmp_path / "streamlearn-my-method" / "pyproject.toml").is_file()
    assert main(["plugins", "new", "my-method", "--folder", str(tmp_path)]) != 0
    assert "is there already" in capsys.readouterr().err


def test_the_help_tells_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "new", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for name, kind in KINDS.items():
        assert f"{name}: {kind.what}" in out
