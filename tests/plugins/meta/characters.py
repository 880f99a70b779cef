"""Classes of which new ones come one after another: what a prior of the others is for."""

from __future__ import annotations

import torch

from streamlearn.streams.sources import TensorSource


def characters(seed: int, classes: int, rows: int) -> TensorSource:
    """Classes that differ in eight hidden numbers, seen through a fixed map and under noise."""
    draw, world = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    first, second = torch.randn(8, 24, generator=world), 0.3 * torch.randn(24, 24, generator=world)
    y = torch.arange(classes * rows) % classes
    hidden = torch.randn(classes, 8, generator=draw)[y] + 0.3 * torch.randn(classes * rows, 8, generator=draw)
    x = torch.tanh(hidden @ first) @ second + 0.5 * torch.randn(classes * rows, 24, generator=draw)
    return TensorSource(x, {"y": y}, "characters")
