"""The built-in plugins: one published method per file, a folder per family. Loaded when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamlearn.plugins.distillation.lwf import LwF
    from streamlearn.plugins.regularization.ewc import EWC
    from streamlearn.plugins.replay.joint import Joint
    from streamlearn.plugins.replay.replay import Replay
    from streamlearn.plugins.sharing.multi_head import MultiHead

__all__ = ["EWC", "Joint", "LwF", "MultiHead", "Replay"]

_HOME = {
    "EWC": "regularization.ewc",
    "Joint": "replay.joint",
    "LwF": "distillation.lwf",
    "MultiHead": "sharing.multi_head",
    "Replay": "replay.replay",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"streamlearn.plugins.{_HOME[name]}"), name)
    raise AttributeError(f"module 'streamlearn.plugins' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
