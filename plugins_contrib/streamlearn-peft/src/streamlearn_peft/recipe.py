"""What an adapter is made of: a method of PEFT with its options, and the layers of the encoder that it changes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamlearn.errors import ConfigurationError, UnknownNameError
from torch import nn

__all__ = ["METHODS", "Recipe", "layers_of"]

METHODS: tuple[str, ...] = ("delora", "gralora", "hira", "hra", "ia3", "loha", "lokr", "lora", "miss", "oft", "road")
"""The methods of PEFT that change layers one by one, start without effect, and allow several adapters on a layer."""

_ALPHA = ("lora_alpha", "alpha", "hira_alpha", "delora_lambda")
_FIXED = frozenset({"target_modules", "feedforward_modules", "peft_type", "inference_mode", "bias", "modules_to_save"})
_BYPASSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules that read the weights of the layers within them, past whatever has been put in their place."""


def layers_of(encoder: nn.Module, wanted: str | Sequence[str] | None) -> list[str]:
    """The paths of the layers to change.

    Args:
        encoder: where they are looked for.
        wanted: a regular expression for whole paths, or the ends of paths; ``None`` for every linear layer, or where there is none every
            convolution.

    Raises:
        ConfigurationError: there is none, or torch would read its weights past an adapter.

    Example:
        >>> encoder = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> layers_of(encoder, None), layers_of(encoder, ["2"])
        (['0', '2'], ['2'])
    """
    modules = {path: module for path, module in encoder.named_modules() if path}
    bypassed = tuple(f"{path}." for path, module in encoder.named_modules() if isinstance(module, _BYPASSED) and path)
    reachable = [path for path in modules if not path.startswith(bypassed) and not isinstance(encoder, _BYPASSED)]
    if wanted is None:
        for kind in (nn.Linear, nn.modules.conv._ConvNd):
            found = [path for path in reachable if isinstance(modules[path], kind)]
            if found:
                return found
        raise ConfigurationError(
            "plugin peft finds no linear layer and no convolution in the encoder that it can reach: name others as target_modules"
        )
    if isinstance(wanted, str):
        found = [path for path in modules if re.fullmatch(wanted, path)]
    else:
        missing = [end for end in wanted if not any(_ends(path, end) for path in modules)]
        if missing:
            raise UnknownNameError("layer of the encoder", missing[0], modules)
        found = [path for path in modules if any(_ends(path, end) for end in wanted)]
    if not found:
        raise ConfigurationError(
            f"plugin peft: no layer of the encoder matches target_modules={wanted!r} (it has: {', '.join(modules) or 'none'})"
        )
    hidden = [path for path in found if path not in reachable]
    if hidden:
        raise ConfigurationError(
            f"plugin peft: layer {hidden[0]!r} lies in a module of torch that reads its weights past any adapter "
            "(nn.MultiheadAttention, nn.TransformerEncoderLayer): leave it out of target_modules"
        )
    return found


def _ends(path: str, end: str) -> bool:
    return path == end or path.endswith(f".{end}")


@dataclass(frozen=True)
class Recipe:
    """A method with its options, on some layers.

    Args:
        method: one of `METHODS`.
        layers: paths of the layers.
        options: those of PEFT's configuration, with their names there.
    """

    method: str
    layers: tuple[str, ...]
    options: Mapping[str, Any]

    @classmethod
    def of(cls, method: str, layers: Sequence[str], rank: int | None, alpha: float | None, options: Mapping[str, Any]) -> Recipe:
        """With rank and alpha under the names that the method has for them.

        Raises:
            ConfigurationError: the method has no rank or no alpha.
            UnknownNameError: it has no such option.
        """
        known = set(inspect.signature(_config_class(method)).parameters)
        given = dict(options)
        for word, value, names in (("rank", rank, ("r",)), ("alpha", alpha, _ALPHA)):
            name = next((name for name in names if name in known), None)
            if value is not None and name is None:
                raise ConfigurationError(f"plugin peft: method {method!r} has no {word}: leave the option out")
            if value is not None and name is not None:
                given[name] = value
        for option in given:
            if option not in known - _FIXED:
                raise UnknownNameError(f"option of method {method!r} of PEFT", option, known - _FIXED)
        return cls(method, tuple(layers), given)

    def config(self) -> Any:
        """A configuration of PEFT.

        Raises:
            ConfigurationError: PEFT refuses an option.
        """
        kind = _config_class(self.method)
        feedforward: dict[str, Any] = {"feedforward_modules": []} if "feedforward_modules" in inspect.signature(kind).parameters else {}
        try:
            return kind(target_modules="|".join(map(re.escape, self.layers)), **feedforward, **self.options)
        except (TypeError, ValueError) as error:
            raise self.refused(error) from error

    def refused(self, error: Exception) -> ConfigurationError:
        """That PEFT refuses it, and why."""
        return ConfigurationError(f"plugin peft: PEFT refuses method {self.method!r} on layers {', '.join(self.layers)}: {error}")


def _config_class(method: str) -> Any:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return next(kind for name, kind in PEFT_TYPE_TO_CONFIG_MAPPING.items() if name.value.lower() == method)
