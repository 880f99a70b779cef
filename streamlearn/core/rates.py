"""Learning rates that are learnt: one module for each parameter, under a key that torch takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Rate", "rate_key"]


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
            grown[tuple(slice(0, size) for size in self.value.shape)] = self.value
            self.value = nn.Parameter(grown)


def rate_key(name: str) -> str:
    """The name of a parameter without dots, which torch keeps for modules; no two names become one.

    Example:
        >>> rate_key("encoder.0.weight")
        'encoder%2E0%2Eweight'
    """
    return name.replace("%", "%25").replace(".", "%2E")
