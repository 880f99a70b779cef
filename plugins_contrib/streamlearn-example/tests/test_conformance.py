"""The rules that every plugin must keep."""

from __future__ import annotations

from collections.abc import Callable

from streamlearn.testing import plugin_checks

from streamlearn_example import L2Anchor


@plugin_checks(L2Anchor())
def test_conformance(check: Callable[[], None]) -> None:
    check()
