"""Learning rates that are learnt: one module for each parameter, under a key that torch takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from streamlearn.core.optimization import Trainable
from streamlearn.core.penalties import leading

if TYPE_CHECKING:
    from streamlearn.core.run import Run

__all__ = ["Rate", "grow_rates", "new_rates", "rate_key", "rates_in"]

Like = Callable[[Tensor], Tensor]
"""From a parameter to what its rate is shaped like."""


class Rate(nn.Module):
    """A learning rate for every entry of one parameter.

    Args:
        parameter: the parameter, which tells shape, kind and device.
        initial: the first value of every entry.
    """

    def __init__(self, parameter: Tensor, initial: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.full_like(parameter.detach(), initial))

    @torch.no_grad()
    def grow(self, parameter: Tensor, initial: float) -> None:
        """Follow a parameter that has grown: what is new starts at ``initial``. The optimiser must be told (`Optimization.refresh`)."""
        if self.value.shape != parameter.shape:
            grown = torch.full_like(parameter.detach(), initial)
            leading(grown, self.value.shape).copy_(self.value)
            self.value = nn.Parameter(grown)


def rate_key(name: str) -> str:
    """The name of a parameter without dots, which torch keeps for modules; no two names become one.

    Example:
        >>> rate_key("encoder.0.weight")
        'encoder%2E0%2Eweight'
    """
    return name.replace("%", "%25").replace(".", "%2E")


def new_rates(
    plugin: str, run: Run, initial: float, train: Callable[[Rate], Trainable] = Trainable, like: Like = torch.Tensor.detach
) -> dict[str, Trainable]:
    """For `collect_modules`: a rate for every parameter of the model that has none yet."""
    return {
        rate_key(name): train(Rate(like(p), initial))
        for name, p in run.model.named_parameters()
        if f"{plugin}/{rate_key(name)}" not in run.modules
    }


def grow_rates(plugin: str, run: Run, initial: float, like: Like = torch.Tensor.detach) -> None:
    """Rates follow parameters that have grown."""
    for name, p in run.model.named_parameters():
        rate = run.modules[f"{plugin}/{rate_key(name)}"]
        assert isinstance(rate, Rate)
        rate.grow(like(p), initial)
    run.optimization.refresh()


def rates_in(parameters: Mapping[str, Tensor], plugin: str, run: Run) -> dict[str, Tensor]:
    """α by name of a parameter of the model, as ``parameters`` hold it; what has none yet is left out."""
    keys = {name: f"{plugin}/{rate_key(name)}.value" for name in run.model_parameter_names}
    return {name: parameters[key] for name, key in keys.items() if key in parameters}
