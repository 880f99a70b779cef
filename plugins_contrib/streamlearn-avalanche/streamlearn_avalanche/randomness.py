"""Avalanche's code kept to itself: random streams and warning filters of its own.

Avalanche's loaders, buffers and plugins draw from the global generators of torch, Python and NumPy. Here they meet generators that
nobody else draws from: what the engine draws moves nothing in Avalanche, and what Avalanche draws moves nothing in the engine.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["RandomStream", "quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Drop the warnings that Avalanche's own code gives about itself, and undo what it does to the filters of the process.

    Its deprecated functions, which its plugins call, switch on all deprecation warnings for good.
    """
    with warnings.catch_warnings(record=True) as given:
        warnings.filterwarnings("ignore", module=r"avalanche\.")
        yield
    for warning in given:
        if "avalanche" not in warning.filename:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


class RandomStream:
    """The global generators as they would be if only the code in its ``with`` blocks ever drew from them.

    Args:
        seed: what ``torch.manual_seed``, ``random.seed`` and ``numpy.random.seed`` are called with before the first block.
        device: whose generator belongs to the stream, beside the CPU's.

    Example:
        >>> stream = RandomStream(0, torch.device("cpu"))
        >>> with stream:
        ...     first = torch.rand(1)
        >>> other = torch.rand(1)
        >>> with stream:
        ...     second = torch.rand(1)
        >>> alone = torch.rand(2, generator=torch.Generator().manual_seed(0))
        >>> torch.equal(torch.cat([first, second]), alone)
        True
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = None if device.type == "cpu" else device
        self._outside: tuple[Any, ...] = ()
        outside = self._get()
        torch.default_generator.manual_seed(seed)
        if self._device is not None:
            torch.get_device_module(self._device).manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the generator that Avalanche draws from
        self._inside = self._get()
        self._set(outside)

    def __enter__(self) -> None:
        self._outside = self._get()
        self._set(self._inside)

    def __exit__(self, *_: object) -> None:
        self._inside = self._get()
        self._set(self._outside)

    def _get(self) -> tuple[Any, ...]:
        device = None if self._device is None else torch.get_device_module(self._device).get_rng_state(self._device)
        return torch.get_rng_state(), random.getstate(), np.random.get_state(), device  # noqa: NPY002

    def _set(self, states: tuple[Any, ...]) -> None:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002
        if self._device is not None:
            torch.get_device_module(self._device).set_rng_state(states[3], self._device)
