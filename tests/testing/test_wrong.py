"""The kit against plugins that are wrong on purpose: it must name what is wrong with each, and find nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from streamlearn import Plugin
from streamlearn.testing import CHECKS, Report, run_checks
from tests.testing.wrong import Control, meant, wrong_plugins

WRONG = wrong_plugins()


@pytest.fixture(autouse=True)
def what_they_leave_is_put_right() -> Iterator[None]:
    """Some seed what is everybody's: no other test may meet that."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - the global one is meant
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])


def cases() -> list[object]:
    found: list[object] = []
    for plugin in WRONG:
        missed = getattr(plugin, "missed", None)
        marks = [] if missed is None else [pytest.mark.xfail(reason=missed, strict=True)]
        found.append(pytest.param(plugin, id=f"{meant(plugin)}-{plugin.__name__}", marks=marks))
    return found


def failed(report: Report) -> set[str]:
    return {result.name for result in report.results if result.outcome == "failed"}


def family(check: str) -> str:
    return check.partition("[")[0]


def test_there_are_as_many_as_were_written() -> None:
    assert len(WRONG) == 63
    assert len({plugin.info.name for plugin in WRONG}) == len(WRONG)
    assert sum(hasattr(plugin, "missed") for plugin in WRONG) == 1


def test_every_check_has_a_plugin_that_fails_it() -> None:
    assert {family(check) for check in CHECKS} == {family(meant(plugin)) for plugin in WRONG}
    assert {meant(plugin) for plugin in WRONG} <= set(CHECKS)


def test_the_control_passes_every_check() -> None:
    report = run_checks(Control(strength=0.1))
    assert report.passed, str(report)
    assert len(report.results) == len(CHECKS)
    assert report.counts["not applicable"] == 3  # adaptation, test_time and episodes, for which it is not made


@pytest.mark.parametrize("plugin", cases())
def test_a_wrong_plugin_fails_the_check_that_is_about_its_mistake(plugin: type[Plugin]) -> None:
    report = run_checks(plugin(), only=[meant(plugin)])
    assert failed(report) == {meant(plugin)}, str(report)
    assert not report.passed
    assert all(len(result.reason.split()) >= 5 for result in report.results)


@pytest.mark.slow
@pytest.mark.parametrize("plugin", WRONG, ids=lambda plugin: f"{meant(plugin)}-{plugin.__name__}")
def test_a_wrong_plugin_fails_no_other_check(plugin: type[Plugin]) -> None:
    report = run_checks(plugin(), only=set(CHECKS) - {meant(plugin)})
    assert failed(report) == set(), str(report)
