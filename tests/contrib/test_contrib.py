"""Each contributed distribution is built, installed into a fresh environment, listed, and passes its own tests there."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.scaffold.environment import Environment

FOLDER = Path(__file__).parents[2] / "plugins_contrib"
DISTRIBUTIONS = sorted(path.parent.name for path in FOLDER.glob("*/pyproject.toml"))


def project(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / name / "pyproject.toml").read_text())


def test_there_are_some() -> None:
    assert {"streamlearn-example", "streamlearn-torchjd"} <= set(DISTRIBUTIONS)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_it_says_what_it_is(name: str) -> None:
    told = project(name)["project"]
    assert told["name"] == name
    assert told["license"] == "Apache-2.0"
    assert "streamlearn>=0.1" in told["dependencies"]
    assert told["entry-points"]["streamlearn.plugins"]
    readme = (FOLDER / name / "README.md").read_text()
    for plugin in told["entry-points"]["streamlearn.plugins"]:
        assert plugin in readme
        assert plugin in (FOLDER / "README.md").read_text()
    assert name in (FOLDER / "README.md").read_text()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = Environment(tmp_path_factory.mktemp("contrib") / "environment")
    made.install(*(FOLDER / name for name in DISTRIBUTIONS))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_it_is_listed_and_its_tests_pass(name: str, environment: Environment, tmp_path: Path) -> None:
    listed = {plugin["name"]: plugin for plugin in json.loads(environment.program("plugins", "list", "--json", cwd=tmp_path).stdout)}
    for plugin in project(name)["project"]["entry-points"]["streamlearn.plugins"]:
        assert (listed[plugin]["distribution"], listed[plugin]["version"]) == (name, project(name)["project"]["version"])
        assert len(listed[plugin]["summary"]) > 10
    done = environment.pytest([FOLDER / name], cwd=tmp_path, timeout=290)
    assert done.returncode == 0, done.stdout
