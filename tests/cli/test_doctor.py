"""``plugins doctor`` tells what is wrong with each plugin; what is wrong with one stands in nobody's way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamlearn.core.registry import installed
from tests.core.distributions import Installer, installer, working

from .conftest import TINY, Call


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installer]:
    yield from installer(tmp_path / "sites", monkeypatch)


@pytest.fixture
def patients(install: Installer) -> None:
    """One plugin that works, and one of each kind that does not."""
    modules = {
        "acme_good": working("counter"),
        "acme_syntax": "def (",
        "acme_import": "import no_such_package",
        "acme_newer": working("newer", more="api=99"),
        "acme_typo": working("typo").replace("after_step", "after_stepp"),
    }
    entries = {
        "counter": "acme_good:Made",
        "syntax": "acme_syntax:Made",
        "imports": "acme_import:Made",
        "newer": "acme_newer:Made",
        "typo": "acme_typo:Made",
        "absent": "acme_good:Absent",
    }
    install("acme", entries, modules, version="2.1")


def test_with_the_built_ins_alone_all_is_well(cli: Call) -> None:
    done = cli("plugins", "doctor")
    assert done.err == ""
    assert done.code == 0
    ours = [plugin for plugin in installed() if plugin.distribution == "streamlearn"]
    assert sum(line.startswith("ok ") for line in done.out.splitlines()) >= len(ours)
    assert done.last.startswith(f"{len(installed())} plugins: {len(installed())} ok")


@pytest.mark.usefixtures("patients")
def test_each_broken_plugin_is_listed_with_cause_and_cure(cli: Call) -> None:
    done = cli("plugins", "doctor")
    assert done.code == 1
    lines = {line.split()[1]: line for line in done.out.splitlines() if line.startswith(("ok ", "broken "))}
    assert lines["counter"].split() == ["ok", "counter", "acme", "2.1"]
    for name, cause, cure in (
        ("syntax", "SyntaxError", "tell its authors"),
        ("imports", "No module named 'no_such_package'", "pip install no_such_package"),
        ("newer", "written for version 99", "pip install --upgrade streamlearn"),
        ("typo", "there is no hook 'after_stepp'", "did you mean 'after_step'?"),
        ("absent", "AttributeError", "names what is not there"),
    ):
        assert lines[name].startswith("broken ")
        assert cause in lines[name]
        assert cure in lines[name]
    assert done.last.endswith(" ok, 5 broken")
    assert "Traceback" not in done.err


@pytest.mark.usefixtures("patients")
def test_the_same_as_json(cli: Call) -> None:
    done = cli("plugins", "doctor", "--json")
    assert done.code == 1
    told = json.loads(done.out)
    by_name = {plugin["name"]: plugin for plugin in told["plugins"]}
    assert by_name["ewc"]["state"] == "ok"
    assert by_name["ewc"]["problems"] == []
    assert by_name["imports"]["distribution"] == "acme"
    (problem,) = by_name["imports"]["problems"]
    assert problem["cure"] == "run  pip install no_such_package"
    assert told["damaged"] == []


@pytest.mark.usefixtures("patients")
def test_broken_plugins_stand_in_nobodys_way(cli: Call) -> None:
    listed = {plugin["name"] for plugin in json.loads(cli("plugins", "list", "--json").out)}
    assert {"ewc", "counter", "syntax", "absent"} <= listed
    assert cli("hooks").code == 0
    assert cli("plugins", "info", "counter").code == 0
    done = cli("run", *TINY, "--plugin", "ewc", "--plugin", "counter", "--output", "o", "-q")
    assert (done.code, done.err) == (0, "")
    done = cli("run", *TINY, "--plugin", "syntax")
    assert done.code == 2
    assert done.err.startswith("error: plugin 'syntax' of acme 2.1 cannot be imported from 'acme_syntax:Made' (SyntaxError: ")


def test_two_of_one_name_are_told_apart_everywhere(cli: Call, install: Installer) -> None:
    install("acme", {"ewc": "acme_ewc:Made"}, {"acme_ewc": working("ewc")})
    done = cli("plugins", "doctor")
    assert done.code == 1
    assert "is offered by acme too: write ewc@streamlearn to mean this one" in done.out
    assert cli("plugins", "info", "ewc@acme").out.startswith("ewc: Counts steps.")
    assert cli("plugins", "info", "ewc@streamlearn").out.startswith("ewc: Holds parameters")
    done = cli("run", *TINY, "--plugin", "ewc")
    assert "write ewc@acme or ewc@streamlearn, or uninstall all but one" in done.err
    assert "1. EWC(strength=2.0)" in cli("explain", *TINY, "--plugin", "ewc@streamlearn:strength=2").out


def test_damaged_metadata_is_named_and_fails(cli: Call, install: Installer) -> None:
    info = install("acme", {})
    (info / "entry_points.txt").write_text("[streamlearn.plugins]\nnonsense\n")
    done = cli("plugins", "doctor")
    assert done.code == 1
    assert f"damaged: the entry points at {info} cannot be read (" in done.out
    assert done.last.endswith(" ok, 1 damaged")
    assert [damaged["path"] for damaged in json.loads(cli("plugins", "doctor", "--json").out)["damaged"]] == [str(info)]
    assert cli("plugins", "list").code == 0


# ------------------------------------------------------------------------------------------------ who may be loaded


@pytest.mark.usefixtures("patients")
def test_the_environment_keeps_plugins_out_and_is_said_to(cli: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMLEARN_PLUGINS", "streamlearn,ecw")
    done = cli("plugins", "doctor")
    assert done.code == 0
    assert "STREAMLEARN_PLUGINS is 'streamlearn,ecw': only what it lists may be loaded; nothing installed answers to 'ecw'" in done.out
    assert done.last.endswith(" ok, 6 not allowed")
    done = cli("run", *TINY, "--plugin", "counter")
    assert done.code == 2
    assert "plugin 'counter' of acme 2.1 may not be loaded: the environment variable STREAMLEARN_PLUGINS allows only" in done.err


@pytest.mark.parametrize("command", ["run", "explain"])
@pytest.mark.parametrize("word", ["ewc", "EWC", "ewc@streamlearn", "streamlearn"])
def test_no_plugin_refuses_a_strategy_that_lists_it(cli: Call, command: str, word: str) -> None:
    done = cli(command, *TINY, "--plugin", "ewc", "--no-plugin", "lwf", "--no-plugin", word)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: the command line lists the plugin 'ewc' (of streamlearn ")
    assert f"which --no-plugin {word} forbids" in done.err


def test_no_plugin_says_which_file_lists_it(cli: Call, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("[[plugins]]\nname = 'ewc'\n")
    assert cli("explain", "s.toml", "--no-plugin", "ewc").err.startswith("error: s.toml lists the plugin 'ewc'")


def test_no_plugin_lets_every_other_plugin_pass(cli: Call) -> None:
    done = cli("explain", *TINY, "--plugin", "ewc", "--no-plugin", "lwf")
    assert done.code == 0
    assert "1. EWC()" in done.out


def test_no_plugin_forbids_nothing_that_is_not_there(cli: Call) -> None:
    done = cli("explain", *TINY, "--no-plugin", "ewv")
    assert done.code == 2
    assert "unknown plugin or distribution after --no-plugin 'ewv': did you mean 'ewc'?" in done.err


def test_no_plugin_alone_starts_no_demo(cli: Call) -> None:
    assert "--no-plugin is given, but not what to run" in cli("run", "--no-plugin", "ewc").err


# ------------------------------------------------------------------------------------------------ resuming


def test_a_run_whose_plugin_is_gone_is_not_resumed(cli: Call, install: Installer, tmp_path: Path) -> None:
    info = install("acme", {"counter": "acme_good:Made"}, {"acme_good": working("counter")})
    assert cli("run", *TINY, "--plugin", "counter", "--output", "o", "-q").code == 0
    (tmp_path / "o" / "result.json").unlink()  # as if it had been killed before its end
    info.rename(info.with_name("gone"))
    done = cli("run", "--resume", "o")
    assert done.code == 1
    assert done.err.startswith(
        "error: o was made with plugin 'counter' of acme 1.0, which is not installed any more: run  pip install acme==1.0"
    )
