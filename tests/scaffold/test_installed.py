"""One plugin of every kind, written, installed into a fresh environment, and used by somebody who changes nothing in streamlearn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from streamlearn.scaffold import KINDS, create

from .environment import Environment

pytestmark = pytest.mark.slow


class World(NamedTuple):
    folder: Path
    environment: Environment
    distributions: dict[str, Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    made = {kind: create(f"new-{kind}", kind, folder / "written") for kind in KINDS}
    environment = Environment(folder / "environment")
    environment.install(*made.values())
    return World(folder, environment, made)


def test_they_are_listed_with_their_distributions(world: World) -> None:
    listed = json.loads(world.environment.program("plugins", "list", "--json", cwd=world.folder).stdout)
    found = {plugin["name"]: plugin for plugin in listed}
    for kind in set(KINDS) - {"stream"}:
        plugin = found[f"new_{kind}"]
        assert (plugin["distribution"], plugin["version"]) == (f"streamlearn-new-{kind}", "0.1.0")
        assert plugin["summary"] == KINDS[kind].summary
        assert set(plugin["hooks"]) == set(KINDS[kind].hooks)
    assert "new_stream" in world.environment.program("streams", "list", cwd=world.folder).stdout


def test_their_own_numbers_are_right(world: World) -> None:
    done = world.environment.pytest(list(world.distributions.values()), "--ignore-glob=*test_conformance.py", cwd=world.folder)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_they_keep_the_rules_of_plugins(world: World, kind: str) -> None:
    folder = world.distributions[kind]
    done = world.environment.run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder / "tests" / "test_conformance.py"), cwd=folder, timeout=280
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_they_train_next_to_built_in_methods(world: World) -> None:
    tracked = world.folder / "measured.jsonl"
    together = ["loss", "batch", "gradient", "model", "supervision", "metric", f"tracker:path={tracked}"]
    plugins = [word for name in together for word in ("--plugin", f"new_{name}")]
    words = [
        "run",
        "--stream",
        "new_stream:experiences=2,rows=40",
        *plugins,
        "--plugin",
        "ewc:strength=1",
        "--plugin",
        "replay:capacity=20",
    ]
    done = world.environment.program(*words, "--output", "run", "-q", cwd=world.folder)
    assert done.returncode == 0, done.stderr
    described = json.loads((world.folder / "run" / "run.json").read_text())
    assert "streamlearn-new-loss 0.1.0" in json.dumps(described)
    assert any("new_metric/top_k" in line for line in tracked.read_text().splitlines())


def test_they_combine_with_those_that_answer_alone(world: World) -> None:
    words = ["--stream", "multitask:source=linnerud", "--plugin", "new_combiner", "--plugin", "new_weighting", "--plugin", "new_scheduler"]
    done = world.environment.program("run", *words, "--plugin", "ewc:strength=1", "-q", cwd=world.folder)
    assert done.returncode == 0, done.stderr
    refused = world.environment.program("run", *words, "--plugin", "pcgrad", cwd=world.folder)
    assert refused.returncode == 2
    assert "provide_gradient_combination" in refused.stderr
