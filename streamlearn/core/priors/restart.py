"""Putting a model, or a part of it, back to where a run started."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from streamlearn.core.penalties import leading
from streamlearn.core.randomness import forked, subseed
from streamlearn.models.initialization import reinitialize

if TYPE_CHECKING:
    from streamlearn.core.run import Run

__all__ = ["start_of_run", "tensors_of", "write"]


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name, live."""
    yield from model.named_parameters()
    yield from model.named_buffers()


@torch.no_grad()
def write(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy ``values`` into the tensors of the same names."""
    for name, value in values.items():
        own[name].copy_(value)


@torch.no_grad()
def start_of_run(run: Run) -> dict[str, Tensor]:
    """What the model would be, had the run just started: heads that have come since, and what they have grown by, are drawn anew."""
    drawn = deepcopy(run.model.heads)
    with forked(run.device):
        reinitialize(drawn, subseed(run.seed, "reset", run.clock.experience))
    found = {f"heads.{name}": value.detach() for name, value in tensors_of(drawn)}
    for name, value in tensors_of(run.initial):
        if name in found:
            leading(found[name], value.shape).copy_(value)
        else:
            found[name] = value.detach()
    return found
