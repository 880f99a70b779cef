"""Initial weights: drawing them again, and knowing whether somebody has set them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.models.model import Model

__all__ = ["is_untouched", "mark_untouched", "reinitialize"]


def reinitialize(model: nn.Module, seed: int) -> None:
    """Draw every parameter of ``model`` again, each layer by its own ``reset_parameters``, from one seed.

    Raises:
        ConfigurationError: a module owns parameters but has no ``reset_parameters``; it is named.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for name, module in model.named_modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            elif next(module.parameters(recurse=False), None) is not None:
                raise ConfigurationError(
                    f"module {name or type(module).__name__!r} ({type(module).__name__}) has parameters but no reset_parameters(): "
                    "add one, or give the engine a function that builds the model"
                )


def mark_untouched(model: Model) -> Model:
    """Remember the state in which ``model`` was built, so that `is_untouched` can tell whether somebody changed it."""
    model.untouched_versions = {name: p._version for name, p in model.named_parameters()}  # type: ignore[assignment]
    return model


def is_untouched(model: nn.Module) -> bool:
    """Whether no parameter has been written since one of the builders made ``model``."""
    versions = getattr(model, "untouched_versions", None)
    return versions is not None and versions == {name: p._version for name, p in model.named_parameters()}
