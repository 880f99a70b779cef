"""The plugin that passes every check, and from which the wrong ones differ by one mistake each."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from streamlearn import Plugin, PluginInfo, hookimpl
from streamlearn.core.plugin import PluginConfig
from streamlearn.core.run import Run
from streamlearn.core.view import Step

__all__ = ["Control", "Described"]

_CARD = """{told}

.. math:: {formula}

Args:
    strength: λ, at least 0; 0 switches the method off.
{options}
Cost: no additional pass per step. Memory: {memory}.

Reference: Li, Grandvalet & Davoine, Explicit inductive bias for transfer learning with convolutional networks, ICML 2018.

Example:
    >>> {name}(strength=0.5)
    {name}(strength=0.5)
"""


class Described(Plugin):
    """What wrong plugins have in common: everything but what they do."""

    formula = r"P(θ) = \frac{λ}{2} \sum_j (θ_j - θ^*_j)^2"

    info = PluginInfo(
        name="control",
        family="regularization",
        summary="Pulls every weight to the value that it had when the last experience ended.",
        reference="Li, Grandvalet & Davoine 2018, ICML",
        memory="1 x parameters",
        strength="strength",
    )

    class Config(PluginConfig):
        """Options of the pull."""

        strength: float = Field(0.1, ge=0)

    def __init_subclass__(cls, options: Mapping[str, str] | None = None, card: bool = True, **kwargs: Any) -> None:
        """Complete a wrong plugin: the ``options`` are described, and without ``card`` the docstring stays as it was written."""
        if "info" not in vars(cls):
            cls.info = replace(cls.info, name=re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower())
        if card:
            more = "".join(f"    {option}: {told}\n" for option, told in (options or {}).items())
            told = inspect.cleandoc(cls.__doc__ or "")
            cls.__doc__ = _CARD.format(told=told, formula=cls.formula, options=more, memory=cls.info.memory, name=cls.__name__)
        super().__init_subclass__(**kwargs)


class Control(Described, card=False):
    r"""Pulls every weight to the value that it had when the last experience ended.

    .. math:: P(θ) = \frac{λ}{2} \sum_j (θ_j - θ^*_j)^2

    A wrong plugin is a subclass: it says in its docstring what is wrong and why that matters; name and method card are added here.

    Args:
        strength: λ, at least 0; 0 switches the pull off.

    Cost: no additional pass per step. Memory: 1 x parameters.

    Reference: Li, Grandvalet & Davoine, Explicit inductive bias for transfer learning with convolutional networks, ICML 2018.

    Example:
        >>> Control(strength=0.5)
        Control(strength=0.5)
    """

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._anchor: dict[str, Tensor] = {}

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """λ times half the squared distance, once there is something to hold."""
        strength = step.run.value(self, "strength")
        return strength * self.distance(step.parameters) if self._anchor and strength else None

    def distance(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Half the squared distance; a parameter that has grown since is compared on its leading slice."""
        parts = [
            (parameters[name][tuple(slice(0, size) for size in anchor.shape)] - anchor).square().sum()
            for name, anchor in self._anchor.items()
            if name in parameters
        ]
        return 0.5 * torch.stack(parts).sum()

    @hookimpl
    def after_experience(self, run: Run) -> None:
        """Hold the weights as they are now."""
        self._anchor = run.snapshot()

    def state_dict(self) -> dict[str, Any]:
        """The anchor."""
        return {"anchor": dict(self._anchor)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._anchor = dict(state["anchor"])
