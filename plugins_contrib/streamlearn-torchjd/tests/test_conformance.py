"""The rules that every plugin must keep."""

from __future__ import annotations

from collections.abc import Callable

from streamlearn.testing import plugin_checks

from streamlearn_torchjd import TorchJDAggregator, TorchJDScalarizer


@plugin_checks(TorchJDAggregator())
def test_aggregator(check: Callable[[], None]) -> None:
    check()


@plugin_checks(TorchJDScalarizer())
def test_scalarizer(check: Callable[[], None]) -> None:
    check()
