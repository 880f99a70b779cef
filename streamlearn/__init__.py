"""streamlearn: one engine for a stream of tasks; every method is a plugin that composes.

    >>> import streamlearn
    >>> streamlearn.__version__
    '0.1.0'

Nothing heavy is imported until it is used: ``import streamlearn`` loads neither torch nor any plugin.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamlearn import errors, models, plugins, results, streams
    from streamlearn.core.baselines import single_task_baselines
    from streamlearn.core.engine import Engine
    from streamlearn.core.hooks import HOOK_API_VERSION
    from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
    from streamlearn.core.priors.prior import Prior
    from streamlearn.core.tuning.search import Tuning, tune
    from streamlearn.core.tuning.tuned_engine import with_values
    from streamlearn.results import Result

__version__ = "0.1.0"

__all__ = [
    "HOOK_API_VERSION",
    "Engine",
    "Plugin",
    "PluginConfig",
    "PluginInfo",
    "Prior",
    "Result",
    "Tunable",
    "Tuning",
    "errors",
    "hookimpl",
    "models",
    "plugins",
    "results",
    "single_task_baselines",
    "streams",
    "tune",
    "with_values",
]

_HOME = {
    "Engine": "streamlearn.core.engine",
    "HOOK_API_VERSION": "streamlearn.core.hooks",
    "Plugin": "streamlearn.core.plugin",
    "PluginConfig": "streamlearn.core.plugin",
    "PluginInfo": "streamlearn.core.plugin",
    "Prior": "streamlearn.core.priors.prior",
    "Result": "streamlearn.results",
    "Tunable": "streamlearn.core.plugin",
    "Tuning": "streamlearn.core.tuning.search",
    "hookimpl": "streamlearn.core.plugin",
    "single_task_baselines": "streamlearn.core.baselines",
    "tune": "streamlearn.core.tuning.search",
    "with_values": "streamlearn.core.tuning.tuned_engine",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in __all__:
        return importlib.import_module(f"streamlearn.{name}")
    raise AttributeError(f"module 'streamlearn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
