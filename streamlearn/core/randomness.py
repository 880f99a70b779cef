"""One random stream per purpose, each a pure function of (seed, purpose, place in the run).

Nothing here keeps a state that would have to be saved: who draws for update 1,234 asks for the generator of update 1,234.
Hence a resumed run draws what the uninterrupted one would have drawn, and drawing more for one purpose (evaluating more
often, adding a plugin) moves no other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

__all__ = ["distinct", "forked", "generator", "permutation", "seed_forward", "subseed"]

_ODD = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def subseed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose at one place: the head of SHA-256 over its parts.

    >>> subseed(0, "order", 1) == subseed(0, "order", 1) != subseed(0, "order", 2)
    True
    """
    digest = hashlib.sha256(repr((int(seed), *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def permutation(length: int, seed: int, *purpose: str | int) -> Tensor:
    """A random order of ``range(length)``, int64; Philox, so that it is the same on every machine."""
    order = np.random.Generator(np.random.Philox(key=subseed(seed, *purpose))).permutation(length)
    return torch.from_numpy(order)


def distinct(size: int, count: int, random: torch.Generator) -> Tensor:
    """A uniform draw of ``count`` of the numbers below ``size`` without replacement, int64, in random order.

    Costs O(count) whatever the size: of a large range numbers are drawn one after another, and repeated ones passed over.

    Raises:
        ValueError: ``count`` is above ``size``.

    >>> sorted(distinct(3, 3, torch.Generator().manual_seed(0)).tolist())
    [0, 1, 2]
    """
    if count > size:
        raise ValueError(f"cannot draw {count} distinct numbers below {size}")
    if size <= 8 * count:
        return torch.randperm(size, generator=random)[:count]
    found: dict[int, None] = {}
    while len(found) < count:
        found |= dict.fromkeys(torch.randint(size, (count - len(found),), generator=random).tolist())
    return torch.tensor(list(found), dtype=torch.int64)


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A fresh CPU generator for one purpose at one place."""
    made = torch.Generator()
    made.manual_seed(subseed(seed, *purpose))
    return made


def seed_forward(base: int, update: int, device: torch.device | None = None) -> None:
    """Seed torch's own random stream, from which dropout draws, for the forward passes of one update.

    ``base`` is ``subseed(seed, "forward")``. Every view of the step sees the same masks, because each is seeded alike. Only
    the generator of the device in use is touched: seeding all of them costs 100 times more.
    """
    value = ((base ^ (update * _ODD)) & _MASK) >> 1
    if device is None or device.type == "cpu":
        torch.default_generator.manual_seed(value)
    else:
        torch.get_device_module(device).manual_seed(value)


@contextmanager
def forked(device: torch.device) -> Iterator[None]:
    """Leave torch's random streams as they were found."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"):
        yield
