"""The kit for authors of plugins: is it a plugin, does it act, does it resume, does it stand beside others?

    from streamlearn.testing import plugin_checks

    @plugin_checks(MyMethod(strength=0.1))
    def test_conformance(check):
        check()

Each check trains tiny networks on tiny streams for a fraction of a second. `run_checks` does the same without pytest, and
``streamlearn plugins check NAME`` from the command line. What the checks are is told by `CHECKS`, and by the docstring of each.

Names are loaded when they are first used: pytest loads `streamlearn.testing.pytest_plugin` in every project of an environment.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamlearn.testing.doubles import network, tiny_stream
    from streamlearn.testing.kit import CHECKS, plugin_checks, run_checks
    from streamlearn.testing.report import Report, Result
    from streamlearn.testing.spy import Spy

__all__ = ["CHECKS", "Report", "Result", "Spy", "network", "plugin_checks", "run_checks", "tiny_stream"]

_HOME = {
    "CHECKS": "kit",
    "Report": "report",
    "Result": "report",
    "Spy": "spy",
    "network": "doubles",
    "plugin_checks": "kit",
    "run_checks": "kit",
    "tiny_stream": "doubles",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"streamlearn.testing.{_HOME[name]}"), name)
    raise AttributeError(f"module 'streamlearn.testing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
