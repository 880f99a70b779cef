"""The pages made from the code are those that the code would make now; what the pages for authors say is run."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from streamlearn.cli.main import main
from streamlearn.core import registry
from streamlearn.core.hooks import HOOKS, HookSpecs
from tests.core.distributions import Installer, installer

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "write-a-plugin.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", GUIDE, flags=re.DOTALL) for line in block.splitlines()]
COMMANDS = [line for line in SHELL if line.startswith("streamlearn ")]


@pytest.fixture(scope="module")
def reference() -> Iterator[ModuleType]:
    """The script ``docs/make_reference.py`` as a module."""
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["hooks.md", "plugins.md"])
def test_a_page_is_what_the_code_makes_of_it(reference: ModuleType, page: str) -> None:
    assert sorted(reference.PAGES) == ["hooks.md", "plugins.md"]
    written = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert written == reference.PAGES[page](), f"docs/{page} is stale: run  python docs/make_reference.py"


def test_every_hook_is_documented_and_has_a_section(reference: ModuleType) -> None:
    page = reference.hooks_page()
    for hook in HOOKS:
        documented = (getattr(HookSpecs, hook).__doc__ or "").strip()
        assert documented.endswith("."), f"{hook} has no docstring that says what it is for"
        assert f"\n### {hook}\n" in page
        assert f"def {hook}(self" in page


def test_every_hook_has_a_built_in_plugin_and_a_test(reference: ModuleType) -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__))
    for hook, users in reference.implementers().items():
        assert users, f"no built-in plugin implements {hook}"
        assert re.search(rf"\b{hook}\b", tests), f"no test names {hook}"


def test_every_built_in_plugin_has_a_card(reference: ModuleType) -> None:
    page = reference.plugins_page()
    for name, cls in reference.built_in().items():
        (card,) = re.findall(rf"\n### {name}\n(.*?)(?=\n##|\Z)", page, flags=re.DOTALL)
        for part in (cls.info.summary, "- **Hooks**: [`", "- **Cost**: ", "- **Reference**: ", f"- **Use it**: `--plugin {name}"):
            assert part in card
        for option in cls.Config.model_fields:
            (row,) = (line for line in card.splitlines() if line.startswith(f"| `{option}` |"))
            assert not row.endswith("| - |"), f"option {option} of {name} is not under Args in its docstring"


def test_the_kinds_of_the_contract_are_told(reference: ModuleType) -> None:
    page = reference.hooks_page()
    for kind in ("event", "additive", "pipeline", "exclusive", "wrapper"):
        assert re.search(rf"^\| `[a-z_]+_`.* \| {kind} \| ", page, flags=re.MULTILINE)


def test_the_parser_of_docstrings_keeps_what_it_reads(reference: ModuleType) -> None:
    found = reference.sections(
        "Head.\n\n.. math:: a\n    + b\n\nMore ``x``.\n\nArgs:\n    one: first\n        and more.\n    two: second.\n\nCost: none."
    )
    assert found[""] == "Head.\n\n```math\na\n+ b\n```\n\nMore `x`."
    assert reference.arguments(found["Args"]) == {"one": "first and more.", "two": "second."}
    assert found["Cost"] == "none."


# ------------------------------------------------------------------------------------------------ the guide


def test_the_guide_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "guide"}
    for number, block in enumerate(PYTHON):
        exec(compile(block, f"write-a-plugin.md, block {number + 1}", "exec", dont_inherit=True), names)
    assert {"SlowAnchor", "GradientNoise", "resumed", "test_conformance"} <= set(names)


def test_the_plugin_of_the_guide_keeps_what_every_plugin_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamlearn.testing import run_checks

    for install in installer(tmp_path, monkeypatch):
        _install_the_guides(install)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site-streamlearn-slow-anchor"))  # a check imports it in a fresh process
        report = run_checks(registry.create("slow_anchor", {"strength": 1.0}))
        assert report.passed, str(report)


def test_the_commands_of_the_guide_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (made, *others) = COMMANDS
    assert made == "streamlearn plugins new slow-anchor --kind loss"
    assert len(others) == 3
    monkeypatch.chdir(tmp_path)
    assert main(made.split()[1:]) == 0, capsys.readouterr().err
    assert (tmp_path / "streamlearn-slow-anchor" / "pyproject.toml").is_file()
    for install in installer(tmp_path, monkeypatch):
        _install_the_guides(install)
        for command in others:
            assert main(command.split()[1:]) == 0, capsys.readouterr().err
            assert "slow_anchor" in capsys.readouterr().out or "run" in command


def _install_the_guides(install: Installer) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", GUIDE, flags=re.DOTALL)
    project = tomllib.loads(block)["project"]
    ((name, entry),) = project["entry-points"][registry.GROUP].items()
    assert entry == "streamlearn_slow_anchor.method:SlowAnchor"
    install(project["name"], {name: "slow_anchor_method:SlowAnchor"}, {"slow_anchor_method": PYTHON[0]})


def test_the_guide_names_only_hooks_and_pages_that_exist() -> None:
    for hook in re.findall(r"`((?:before|after|collect|transform|provide|around)_[a-z_]+)`", GUIDE):
        assert hook in HOOKS
    for page in re.findall(r"\]\(([\w./-]+\.md)\)", GUIDE):
        assert (ROOT / "docs" / page).is_file()
