"""The listings: complete, quick to start, and honest about what they cannot read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from streamlearn.core.hooks import HOOKS
from streamlearn.core.registry import installed, load

from .conftest import Call

HEAVY = {"torch", "avalanche", "pydantic", "numpy", "sklearn", "typer", "rich"}


@pytest.mark.parametrize("words", [["plugins", "list"], ["plugins", "list", "--json"], ["hooks"], ["streams", "list"]])
def test_a_listing_imports_nothing_heavy(words: list[str]) -> None:
    script = (
        f"import sys; from streamlearn.cli.main import main; main({words}); print(*sorted({HEAVY} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout
    assert done.stderr.split() == []


def test_plugins_list_tells_what_each_plugin_tells_of_itself(cli: Call) -> None:
    listed = {plugin["name"]: plugin for plugin in json.loads(cli("plugins", "list", "--json").out)}
    for plugin in installed():
        info = load(plugin.name).info
        assert listed[plugin.name]["summary"] == info.summary
        assert listed[plugin.name]["family"] == info.family
        assert listed[plugin.name]["version"] == plugin.version


def test_plugins_list_has_a_line_for_each_plugin(cli: Call) -> None:
    done = cli("plugins", "list")
    assert done.code == 0
    for plugin in installed():
        assert any(line.startswith(f"{plugin.name} ") for line in done.out.splitlines())


def test_the_program_and_typer_list_alike(cli: Call) -> None:
    from typer.testing import CliRunner

    from streamlearn.cli.app import app

    for words in (["plugins", "list"], ["plugins", "list", "--json"], ["hooks"], ["streams", "list"]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0
        assert result.output == cli(*words).out


def test_plugins_info_shows_options_bounds_hooks_and_reference(cli: Call) -> None:
    out = cli("plugins", "info", "ewc").out
    for part in ("strength", ">= 0", "may be tuned from 0.1 to 1e+06", "collect_terms", "Kirkpatrick", "'separate'", "--plugin ewc:"):
        assert part in out


@pytest.mark.parametrize("name", [plugin.name for plugin in installed()])
def test_plugins_info_works_for_every_plugin(cli: Call, name: str) -> None:
    done = cli("plugins", "info", name)
    assert done.code == 0
    assert done.out.startswith(f"{name}: {load(name).info.summary}")


def test_plugins_info_offers_the_nearest_name(cli: Call) -> None:
    done = cli("plugins", "info", "ewv")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: unknown plugin 'ewv': did you mean 'ewc'?")


def test_hooks_lists_every_hook_with_kind_and_phase(cli: Call) -> None:
    lines = {line.split()[0]: line for line in cli("hooks").out.splitlines() if line.strip()}
    assert set(HOOKS) <= set(lines)
    assert lines["collect_terms"].split()[1:3] == ["additive", "step"]
    assert {"ewc", "lwf"} <= set(lines["collect_terms"].rpartition("[")[2].rstrip("]").split(", "))


def test_streams_list_names_builders_and_their_options(cli: Call) -> None:
    out = cli("streams", "list").out
    assert "class_incremental" in out
    assert "experiences=None" in out


def test_streams_show_tells_rows_and_classes(cli: Call) -> None:
    out = cli("streams", "show", "class_incremental:source=digits,experiences=2,shuffle=false").out
    assert "digits/class_incremental: 2 experiences, inputs 1x8x8" in out
    assert "0,1,2,3,4" in out


def test_streams_show_shortens_a_long_stream(cli: Call) -> None:
    assert "... and 2 more" in cli("streams", "show", "data_incremental:source=digits,experiences=12").out


def test_streams_show_without_options_documents_the_builder(cli: Call) -> None:
    out = cli("streams", "show", "class-incremental").out
    assert "Args:" in out
    assert "experiences" in out


def test_streams_show_offers_the_nearest_name(cli: Call) -> None:
    done = cli("streams", "show", "clas_incremental")
    assert done.code == 2
    assert "did you mean 'class_incremental'?" in done.err


def test_on_a_terminal_the_last_column_is_wrapped() -> None:
    from streamlearn.cli.text import columns

    text = columns(["name", "what"], [["a", "word " * 30]], total=40)
    assert max(map(len, text.splitlines())) <= 40
    assert text.count("word") == 30


@pytest.mark.parametrize("reference", ["no_such_package.x:Y", "streamlearn.no_such:Y", "streamlearn.errors:Nothing", "json:"])
def test_what_cannot_be_read_is_left_empty(reference: str) -> None:
    from streamlearn.cli.source import Definition, read_definition

    assert read_definition(reference) == Definition()


def test_reading_a_foreign_plugin_does_not_import_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamlearn.cli.source import read_definition

    package = tmp_path / "foreign_methods"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "nudge.py").write_text(
        "import torch_of_the_future\nclass Nudge(Plugin):\n    '''Nudges.'''\n"
        "    info: ClassVar = PluginInfo('nudge', 'meta', 'Nudges weights.')\n"
        "    @streamlearn.hookimpl\n    def collect_terms(self, step): ...\n    @hookimpl()\n    def after_step(self, step): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    read = read_definition("foreign_methods.nudge:Nudge")
    assert (read.summary, read.family, read.documentation) == ("Nudges weights.", "meta", "Nudges.")
    assert read.hooks == ("collect_terms", "after_step")


@pytest.mark.parametrize("name", ["adaptation", "episodes", "multitask"])
def test_streams_of_other_fields_are_listed_and_documented(cli: Call, name: str) -> None:
    (line,) = (line for line in cli("streams", "list").out.splitlines() if line.startswith(f"{name} "))
    assert "Options: source='" in line
    out = cli("streams", "show", name).out
    assert out.startswith(f"{name}(source: ")
    assert "Protocol" in out
    assert "Raises:" in out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "multitask:source=digits,experiences=2,validation=0.1,target_domain=true",
            ["2 experiences, inputs 1x10x10", "left (classification, 10 outputs), right", "647, validation 72, target 719 "],
        ),
        ("episodes:source=sinusoids", ["1 experience, ", "(regression, 1 outputs)", "1000 episodes of 15 rows", "100 episodes of"]),
        ("episodes:source=digits,ways=3,shots=1,queries=2", ["digits/3-way (", "1000 episodes of 9 rows", "0,1,2"]),
        ("adaptation:source=moons,rows=40", ["moons/adaptation: 1 experience, inputs 2", "40, target 40  40 "]),
        ("adaptation:source_free=true", ["2 experiences", "target 150  150", "source", "target"]),
    ],
)  # fmt: skip
def test_streams_show_tells_what_such_a_stream_holds(cli: Call, text: str, shown: list[str]) -> None:
    done = cli("streams", "show", text)
    assert done.code == 0
    for part in shown:
        assert part in done.out
    assert f"built by: builder={text.partition(':')[0]}" in done.out


def test_streams_show_refuses_what_such_a_builder_refuses(cli: Call) -> None:
    done = cli("streams", "show", "adaptation:source=moons,noise=-1")
    assert done.code != 0
    assert "noise is -1" in done.err
    assert "did you mean 'shots'" in cli("streams", "show", "episodes:shot=1").err
