"""Every built-in plugin goes through the kit that authors of plugins use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from streamlearn.core import registry
from streamlearn.core.plugin import Plugin
from streamlearn.plugins import L2Anchor, SeparateNetworks
from streamlearn.testing import CHECKS, run_checks

BUILT_IN = [plugin.name for plugin in registry.installed() if plugin.distribution == "streamlearn"]

EXPECTED: Mapping[str, Mapping[str, str]] = {
    "bic": {"teardown": "its second phase, where nothing of the model trains, reads the model in evaluation mode; the next epoch sets it"},
}
"""By plugin, the checks that must fail, and why."""


def teacher(size: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(size)
        return nn.Linear(6, size)


OPTIONS: Mapping[str, Callable[[Path], Mapping[str, Any]]] = {
    "agem": lambda folder: {"capacity": 12},
    "constant_weighting": lambda folder: {"weights": {"a": 3.0}},
    "csv_tracker": lambda folder: {"path": folder / "run.csv"},
    "forward_hypergradient": lambda folder: {"tune": ("l2.strength",)},
    "from_prior": lambda folder: {"at_experience": "reset"},
    "gdumb": lambda folder: {"capacity": 12},
    "generative_replay": lambda folder: {"likelihood": "gaussian", "hidden": (8,), "latent": 3},
    "implicit_hypergradient": lambda folder: {"tune": ("l2.strength",)},
    "mer": lambda folder: {"batch_size": 2, "capacity": 12},
    "meta_sgd": lambda folder: {"rate_learning": 1e-4},  # at the kit's own rate, the rates themselves diverge
    "multi_teacher": lambda folder: {"teachers": {"a": teacher(6), "b": teacher(2)}},
    "gradient_similarity": lambda folder: {"main": "a"},
    "ranpac": lambda folder: {"dimensions": 50},
    "replay": lambda folder: {"capacity": 12},
}
"""Options of those that need some; memories small enough to be full."""

BESIDE: Mapping[str, Sequence[type[Plugin]]] = dict.fromkeys(
    ("soft_sharing", "trace_norm", "task_relationships"), (SeparateNetworks,)
) | dict.fromkeys(("forward_hypergradient", "implicit_hypergradient"), (L2Anchor,))
"""What stands beside those that compare the networks of tasks, which the kit's own model has not, or that tune another's number."""


def made(name: str, folder: Path) -> Plugin:
    return registry.create(name, OPTIONS.get(name, lambda folder: {})(folder))


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_plugin_passes_every_check(name: str, tmp_path: Path) -> None:
    report = run_checks(partial(made, name, tmp_path), expected_failures=EXPECTED.get(name), beside=BESIDE.get(name, ()))
    assert report.passed, str(report)
    assert len(report.results) == len(CHECKS) == 29
    few = Counter(result.outcome for result in report.results)["not applicable"]
    assert few <= 13, str(report)  # a kit that looks at nothing passes everything


def test_the_whole_house_is_checked() -> None:
    """90 plugins, 29 checks each; who adds a plugin or a check says so here."""
    assert len(BUILT_IN) * len(CHECKS) == 90 * 29
    assert EXPECTED.keys() <= set(BUILT_IN)
    assert OPTIONS.keys() | BESIDE.keys() <= set(BUILT_IN)
