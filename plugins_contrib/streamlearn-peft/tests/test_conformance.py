"""The rules that every plugin must keep."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("peft", reason="peft is not installed")

from streamlearn.testing import plugin_checks

from streamlearn_peft import PEFT


@plugin_checks(PEFT(rank=2))
def test_one_for_the_run(check: Callable[[], None]) -> None:
    check()


@plugin_checks(PEFT(rank=2, adapters="experience"))
def test_one_for_each_experience(check: Callable[[], None]) -> None:
    check()


@plugin_checks(PEFT(rank=2, adapters="task"))
def test_one_for_each_task(check: Callable[[], None]) -> None:
    check()
