"""Transforms of single images as transforms of whole batches: those of torchvision and Avalanche that draw nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from streamlearn.streams.data import Transform
from streamlearn.streams.sources import TensorSource

__all__ = ["Chain", "Change", "compiled", "in_memory"]

_READABLE = (torch.int32, torch.int64)
_TO_FLOATS = ("ToTensor", "ToImage", "ToDtype")
"""What a source in memory has done already; whether it did the same is seen when a few rows are compared."""


class Change(NamedTuple):
    """A change of a batch of inputs ``(rows, ...)``, and its name and numbers for the hash of a stream."""

    call: Callable[[Tensor], Tensor]
    told: str


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """Changes one after another; ``first``, which a stream brought along, may want the index."""

    changes: tuple[Change, ...]
    first: Transform | None = None

    @property
    def needs_index(self) -> bool:
        """Whether ``first`` wants the rows' identities."""
        return bool(getattr(self.first, "needs_index", False))

    @property
    def trusted(self) -> bool:
        """Whether all are known to keep rows and type, and to give finite values: ours are."""
        return self.first is None or bool(getattr(self.first, "trusted", False))

    def __call__(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """The batch ``x`` ``(rows, ...)``, changed."""
        if self.first is not None:
            x = self.first(x, index) if self.needs_index else self.first(x)
        for change in self.changes:
            x = change.call(x)
        return x

    @property
    def told(self) -> str:
        """What is done, for the hash of a stream."""
        return ", ".join(change.told for change in self.changes)


def compiled(functions: Iterable[Any]) -> tuple[Change, ...] | None:
    """Transforms of one input each as changes of batches; ``None``: one of them is unknown here, or draws."""
    found: list[Change] = []
    for function in functions:
        kind, home = type(function).__name__, type(function).__module__
        if function is None or (home.startswith("torchvision.transforms") and kind in _TO_FLOATS):
            continue
        if home.startswith("torchvision.transforms") and kind == "Compose":
            inner = compiled(function.transforms)
            if inner is None:
                return None
            found.extend(inner)
        elif home.startswith("torchvision.transforms") and kind == "Normalize":
            found.append(_normalize(function.mean, function.std))
        elif home.startswith("torchvision.transforms") and kind == "RandomRotation" and len(set(map(float, function.degrees))) == 1:
            found.append(_rotate(function))
        elif home.startswith("avalanche.benchmarks.classic") and kind == "PixelsPermutation":
            found.append(_permute(function.permutation))
        else:
            return None
    return tuple(found)


def _normalize(mean: Sequence[float], std: Sequence[float]) -> Change:
    """(x - mean) / std for each channel, in the order of torchvision's operations."""

    def call(x: Tensor) -> Tensor:
        low, width = (torch.as_tensor(values, dtype=x.dtype, device=x.device).view(-1, 1, 1) for values in (mean, std))
        return x.sub(low).div_(width)

    return Change(call, f"normalize {list(map(float, mean))} {list(map(float, std))}")


def _permute(permutation: Tensor) -> Change:
    order = torch.as_tensor(permutation)

    def call(x: Tensor) -> Tensor:
        return x.flatten(1).index_select(1, order.to(x.device)).view(x.shape)

    return Change(call, f"permute {hashlib.sha256(order.numpy().tobytes()).hexdigest()[:16]}")


def _rotate(function: Any) -> Change:
    """One angle for all: what RandomRotation comes to when both its bounds are equal."""

    def call(x: Tensor) -> Tensor:
        from torchvision.transforms.functional import rotate

        fill = [float(function.fill)] * x.shape[1] if isinstance(function.fill, (int, float)) else list(function.fill)
        turned: Tensor = rotate(x, float(function.degrees[0]), function.interpolation, function.expand, function.center, fill)
        return turned

    return Change(call, f"rotate {float(function.degrees[0])}")


def in_memory(leaf: Any, name: str) -> TensorSource | None:
    """The inputs that ``leaf`` holds as one array, as a source without targets; ``None``: it holds none, or of a kind no model reads.

    Bytes are taken for images: ``(rows, height, width)``, or with channels last, as torchvision keeps them.
    """
    if isinstance(leaf, TensorDataset):
        x, divide_by = leaf.tensors[0], None
        if not x.is_floating_point() and x.dtype not in _READABLE:
            return None
    else:
        data = getattr(leaf, "data", None)
        images = torch.from_numpy(data) if isinstance(data, np.ndarray) and data.dtype == np.uint8 else data
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.dim() not in (3, 4) or len(images) != len(leaf):
            return None
        x, divide_by = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous(), 255
    return TensorSource(x, {"": torch.zeros(len(x), dtype=torch.int64)}, name, divide_by=divide_by).without_targets()
