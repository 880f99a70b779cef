"""Models: an encoder with heads by task, small encoders, and what wraps the user's own modules."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamlearn.models.builders import mlp
    from streamlearn.models.image_encoder import pretrained
    from streamlearn.models.model import Heads, Model, SharedOutput
    from streamlearn.models.vae import VAE

__all__ = ["VAE", "Heads", "Model", "SharedOutput", "mlp", "pretrained"]

_HOME = {"Heads": "model", "Model": "model", "SharedOutput": "model", "VAE": "vae", "mlp": "builders", "pretrained": "image_encoder"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"streamlearn.models.{_HOME[name]}"), name)
    raise AttributeError(f"module 'streamlearn.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
