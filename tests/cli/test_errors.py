"""Bad input gets one clear sentence on stderr, an exit code, and no traceback."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from streamlearn.cli import main as program
from streamlearn.core.plugin import Plugin, PluginInfo, hookimpl
from streamlearn.errors import RunInterrupted

from .conftest import TINY, Call

MISUSE = {
    "unknown plugin": (["--plugin", "ecw"], "unknown plugin 'ecw': did you mean 'ewc'?"),
    "unknown option of a plugin": (["--plugin", "ewc:strenght=1"], "did you mean 'strength'?"),
    "bad value of a plugin": (["--plugin", "ewc:strength=-1"], "option 'strength' is -1"),
    "two plugins of one name": (["--plugin", "ewc", "--plugin", "ewc"], "2 plugins are called 'ewc'"),
    "unknown stream": (["--stream", "class_incrementel:source=digits"], "did you mean 'class_incremental'?"),
    "unknown option of a stream": (["--stream", "class_incremental:source=digits,experience=2"], "did you mean 'experiences'?"),
    "unknown source": (["--stream", "class_incremental:source=digit"], "unknown source 'digit': did you mean 'digits'?"),
    "unknown optimizer": (["--optimizer", "sdg"], "unknown optimizer 'sdg': did you mean 'sgd'?"),
    "unknown option of an optimizer": (["--optimizer", "sgd:momentun=1"], "did you mean 'momentum'?"),
    "bad value of an optimizer": (["--optimizer", "sgd:lr=-1"], "optimizer 'sgd' does not accept (lr=-1)"),
    "word for a number": (["--optimizer", "sgd:lr=high"], "optimizer 'sgd' does not accept (lr='high')"),
    "an optimizer the engine cannot drive": (["--optimizer", "lbfgs"], "optimizer 'lbfgs' cannot be used"),
    "the base class": (["--optimizer", "optimizer"], "unknown optimizer 'optimizer'"),
    "unknown model": (["--model", "mpl"], "unknown model 'mpl': did you mean 'mlp'?"),
    "unknown option of a model": (["--model", "mlp:hiden=[3]"], "did you mean 'hidden'?"),
    "bad value of a model": (["--model", "mlp:hidden=3"], "model 'mlp' does not accept (hidden=3)"),
    "unknown device": (["--device", "toaster"], "device 'toaster' cannot be used here"),
    "not of the form": (["--plugin", "ewc:strength"], "'strength' is not of the form key=value"),
    "a name twice": (["--model", "mlp:name=mlp"], "is given the option 'name'"),
    "seed and seeds": (["--seed", "1", "--seeds", "2"], "--seed and --seeds exclude each other"),
    "no epochs": (["--epochs", "0"], "invalid value for '--epochs'"),
    "unknown option": (["--epoch", "1"], "no such option: --epoch"),
    "no such file": (["none.toml"], "there is no strategy file 'none.toml'"),
    "resume and more": (["--resume", "o"], "--resume takes everything from o: remove --stream"),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_told_in_a_sentence(cli: Call, case: str) -> None:
    words, message = MISUSE[case]
    done = cli("run", *([] if "--stream" in words else TINY[:2]), *words)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert message in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


FILES = {
    "not TOML": ("epochs = = 1", "s.toml is not valid TOML"),
    "misspelt key": ("epoch = 1", "unknown key of s.toml 'epoch': did you mean 'epochs'?"),
    "misspelt table": ("[[plugin]]\nname = 'ewc'", "unknown key of s.toml 'plugin': did you mean 'plugins'?"),
    "wrong type": ("epochs = 'two'", "s.toml: epochs is 'two'"),
    "out of range": ("batch_size = 0", "s.toml: batch_size is 0"),
    "no name": ("[[plugins]]\ncapacity = 3", "s.toml lacks plugins.0.name"),
    "a module instead of a name": ("[[plugins]]\nname = 'os:system'", "unknown plugin 'os:system'"),
    "a path instead of a model": ("[model]\nname = 'streamlearn.models.mlp'", "unknown model 'streamlearn.models.mlp'"),
    "a class of models that builds nothing": ("[model]\nname = 'Heads'", "unknown model 'Heads'"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_bad_strategy_file_is_told_in_a_sentence(cli: Call, tmp_path: Path, case: str) -> None:
    content, message = FILES[case]
    (tmp_path / "s.toml").write_text(content)
    done = cli("run", "s.toml")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert message in done.err


def test_a_folder_is_no_strategy_file(cli: Call) -> None:
    assert "cannot read the strategy file '.'" in cli("run", ".").err


def test_options_without_what_to_run_do_not_start_the_demo(cli: Call, tmp_path: Path) -> None:
    done = cli("run", "--epochs", "2")
    assert done.code == 2
    assert "--epochs is given, but not what to run" in done.err
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_holds_another_run_is_refused(cli: Call, tmp_path: Path) -> None:
    cli("run", *TINY, "--output", "o", "-q")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "o").rglob("*")}
    done = cli("run", *TINY, "--plugin", "ewc", "--output", "o")
    assert done.code == 1
    assert done.err.strip() == "error: o holds a run that has ended: choose another --output, or remove that one"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "o").rglob("*")} == before


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_resuming_what_is_no_run_is_refused(cli: Call, folder: str) -> None:
    done = cli("run", "--resume", folder)
    assert done.code == 1
    assert f"error: {folder} holds no run: there is no run.json in it" in done.err


def test_an_output_that_is_a_file_is_refused(cli: Call, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        done = cli("run", *TINY, "--output", place)
        assert done.code in (1, 2)
        assert done.err.startswith("error: ")
        assert "Traceback" not in done.err


class Stumbling(Plugin):
    """Fails in the fourth step."""

    info = PluginInfo("stumbling", "regularization", "Fails.", "nobody")

    @hookimpl
    def after_step(self, step: Any) -> None:
        if step.run.clock.update == 3:
            raise ZeroDivisionError("no more steps")


@pytest.fixture
def stumbling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamlearn.core.registry.load", lambda name: Stumbling)


@pytest.mark.usefixtures("stumbling")
def test_a_plugin_that_raises_is_named_with_hook_and_place_and_the_run_can_go_on(cli: Call) -> None:
    done = cli("run", *TINY, "--plugin", "stumbling", "--output", "o")
    assert done.code == 1
    assert done.err.startswith("error: ZeroDivisionError: no more steps")
    for part in ("stumbling", "after_step", "step 3", "resume with: streamlearn run --resume o", "--traceback"):
        assert part in done.err
    assert "Traceback" not in done.err
    assert "engine.resume" not in done.err


@pytest.mark.usefixtures("stumbling")
@pytest.mark.parametrize("place", [0, 1, 99])
def test_with_traceback_all_of_it_is_shown(cli: Call, place: int) -> None:
    words = ["run", *TINY, "--plugin", "stumbling"]
    words.insert(place, "--traceback")
    done = cli(*words)
    assert done.code == 1
    assert "Traceback (most recent call last)" in done.err
    assert "in after_step" in done.err


def test_an_error_of_ours_has_a_traceback_only_when_asked(cli: Call) -> None:
    done = cli("run", "--plugin", "ecw", "--traceback")
    assert done.code == 2
    assert "Traceback (most recent call last)" in done.err


def raising(error: BaseException) -> Any:
    def stand_in(words: list[str]) -> None:
        raise error

    return stand_in


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (
            RunInterrupted(Path("o"), command_line=True),
            130,
            "\ninterrupted; a checkpoint was written. Resume with: streamlearn run --resume o\n",
        ),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "error: PermissionError: [Errno 13] Permission denied: '/x'\n"),
    ],
)
def test_ends_that_are_nobodys_mistake(cli: Call, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, text: str) -> None:
    monkeypatch.setattr(program, "_invoke", raising(error))
    assert cli("run") == (code, "", text)


def test_a_mistake_of_the_library_shows_where_it_is(cli: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_invoke", raising(AssertionError("ours")))
    done = cli("run")
    assert done.code == 1
    assert "Traceback" in done.err


def test_a_warning_is_one_line(cli: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(words: list[str]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("a damaged checkpoint was passed over", RuntimeWarning, stacklevel=1)

    monkeypatch.setattr(program, "_invoke", warn)
    assert cli("run").err == "warning: a damaged checkpoint was passed over\n"


def test_nobody_reading_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -c 'from streamlearn.cli.main import main; import sys; sys.exit(main())' hooks | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    assert done.stderr == ""


def test_without_a_command_the_help_is_shown(cli: Call) -> None:
    for words in ([], ["plugins"]):
        done = cli(*words)
        assert "Usage: streamlearn" in done.out + done.err
        assert "error:" not in done.err
