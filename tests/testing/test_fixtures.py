from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from streamlearn import Engine
from streamlearn.core import registry
from streamlearn.core.hooks import HOOKS, kind_of
from streamlearn.errors import UnknownNameError
from streamlearn.testing import Spy, network


def test_the_pytest_plugin_imports_nothing_heavy() -> None:
    code = "import sys, streamlearn.testing.pytest_plugin; print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_spy_hears_every_shared_hook_and_changes_nothing(tiny_stream: Callable[..., Any], spy_plugin: Spy) -> None:
    stream = tiny_stream("multitask")

    def run(*plugins: Any) -> dict[str, torch.Tensor]:
        engine = Engine(lambda: network(stream), lambda p: torch.optim.SGD(p, lr=0.1), plugins, batch_size=6)
        model: Any = engine.run(stream).model
        return dict(model.state_dict())

    bare, spied = run(), run(spy_plugin)
    assert all(torch.equal(bare[name], spied[name]) for name in bare)
    assert set(spy_plugin.hooks) == {hook for hook in HOOKS if kind_of(hook) != "exclusive"}


def test_the_isolated_registry_knows_only_what_is_registered(isolated_registry: Callable[[Any], None]) -> None:
    isolated_registry(Spy)
    assert [plugin.name for plugin in registry.installed()] == ["spy"]
    assert registry.load("spy") is Spy
    with pytest.raises(UnknownNameError, match="ewc"):
        registry.load("ewc")
