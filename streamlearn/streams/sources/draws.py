"""Random draws that are the same on every platform, and sources made of them.

All draws come from the raw output of Philox, as in `streamlearn.streams.partition`, so that a seed gives the same rows on every platform;
only the last bit of a sine, a cosine or a logarithm is the platform's, which float32 inputs hardly ever show.
"""

from __future__ import annotations

import hashlib
from numbers import Real

import numpy as np
import torch
from numpy.typing import NDArray

from streamlearn.errors import DataError
from streamlearn.streams.inputs import whole_number
from streamlearn.streams.sources.tensors import TensorSource

__all__ = ["Floats", "drawn_source", "normal", "number", "uniform"]

Floats = NDArray[np.float64]


def drawn_source(x: Floats, targets: dict[str, NDArray[np.generic]], name: str) -> TensorSource:
    """A source of float32 inputs; float32 targets are values, all others class numbers."""
    columns = {key: torch.from_numpy(values if values.dtype == np.float32 else values.astype(np.int64)) for key, values in targets.items()}
    return TensorSource(torch.from_numpy(x.astype(np.float32)), columns, name)


def uniform(purpose: str, seed: int, *shape: int) -> Floats:
    """Uniform in [0, 1), of 53 bits each."""
    key = hashlib.sha256(f"{purpose}/{whole_number(seed, 'seed', 0)}".encode()).digest()[:16]
    raw = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(int(np.prod(shape)))
    return ((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)


def normal(purpose: str, seed: int, *shape: int) -> Floats:
    """Standard normal, by the formula of Box and Muller."""
    radius, angle = uniform(purpose, seed, 2, *shape)
    values: Floats = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)
    return values


def number(value: object, what: str, least: float, most: float = float("inf")) -> float:
    """``value`` if it is a number in [``least``, ``most``].

    Raises:
        DataError: it is not; ``what`` says what it was to be.
    """
    found = float(value) if isinstance(value, Real) and not isinstance(value, bool) else float("nan")
    if not (least <= found <= most and found < float("inf")):
        limit = f" and at most {most:g}" if most < float("inf") else ""
        raise DataError(f"{what} is {value!r}: give a number of at least {least:g}{limit}")
    return found
