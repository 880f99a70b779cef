"""Gradient clipping: no update is larger than a bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.step import Step

__all__ = ["Clipping", "clipped_norm", "clipped_values"]


def clipped_norm(gradients: Mapping[str, Tensor], max_norm: float) -> dict[str, Tensor]:
    """g · min(1, c / (‖g‖ + 1e-6)) with the norm over all of them together; new tensors.

    Args:
        gradients: g by name.
        max_norm: c, above 0.

    Example:
        >>> found = clipped_norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, 1.0)
        >>> {name: round(value.item(), 4) for name, value in found.items()}
        {'a': 0.6, 'b': 0.8}
    """
    norm = torch.nn.utils.get_total_norm(list(gradients.values()))
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return {name: gradient * factor.to(gradient.device) for name, gradient in gradients.items()}


def clipped_values(gradients: Mapping[str, Tensor], bound: float) -> dict[str, Tensor]:
    """Each entry of g brought into [-c, c]; new tensors.

    Args:
        gradients: g by name.
        bound: c, above 0.

    Example:
        >>> clipped_values({"a": torch.tensor([3.0, -0.5])}, 1.0)["a"].tolist()
        [1.0, -0.5]
    """
    return {name: gradient.clamp(-bound, bound) for name, gradient in gradients.items()}


class Clipping(Plugin):
    r"""Gradient clipping.

    .. math:: \tilde g = g \cdot \min\Big(1, \frac{c}{\|g\|_2 + 10^{-6}}\Big)

    with g the gradients of everything that moves in a step, taken together: the parameters of the model *and* those of the plugins'
    modules (discriminators, log-variances), as ``torch.nn.utils.clip_grad_norm_`` does for what an optimiser holds. With
    ``kind="value"`` each entry is brought into [-c, c] by itself, which changes the direction too.

    It comes after projections (A-GEM), wherever it is listed: the projected gradient is what must not be too long.

    Args:
        max_norm: c, above 0: the largest Euclidean norm, or with ``kind="value"`` the largest absolute value of an entry.
        kind: ``"norm"`` or ``"value"``.

    Cost: one more pass over the gradients. Memory: a copy of the gradients, within a step.

    Reference: Pascanu, Mikolov & Bengio, On the difficulty of training recurrent neural networks, ICML 2013, algorithm 1. Deviation:
    torch's 1e-6 beside the norm.

    Example:
        >>> from streamlearn.plugins import Clipping
        >>> Clipping(max_norm=5.0)
        Clipping(max_norm=5.0)
    """

    info = PluginInfo(
        name="clipping",
        family="gradients",
        summary="Shortens a gradient that is longer than a bound.",
        reference="Pascanu, Mikolov & Bengio 2013, ICML, algorithm 1",
        after=frozenset({"projection"}),
        memory="1 x parameters, within a step",
    )

    class Config(PluginConfig):
        """Options of `Clipping`."""

        max_norm: Annotated[float, Tunable(0.1, 10.0, log=True)] = Field(1.0, gt=0, allow_inf_nan=False)
        kind: Literal["norm", "value"] = "norm"

    @hookimpl
    def transform_gradients(self, gradients: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
        """The gradients, clipped."""
        bound = step.run.value(self, "max_norm")
        return clipped_norm(gradients, bound) if self.config.kind == "norm" else clipped_values(gradients, bound)
