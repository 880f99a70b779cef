"""Rows that are generated for one task: two moons, and concepts that drift."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamlearn.errors import DataError
from streamlearn.streams.inputs import whole_number
from streamlearn.streams.sources.draws import drawn_source, normal, number, uniform
from streamlearn.streams.sources.tensors import TensorSource

__all__ = ["hyperplane", "moons", "sea"]

_SEA_THRESHOLDS = (8.0, 9.0, 7.0, 9.5)
_HYPERPLANE_STRETCH = 1000
"""After how many rows each direction of drift may turn round, and over how many ``speed`` is measured."""


def moons(rows: int = 1000, noise: float = 0.1, seed: int = 0) -> tuple[TensorSource, None]:
    """``"moons"``: two interleaved half circles, one of each class; no test rows of its own.

    Protocol: ``t`` uniform in [0, π]; class 0 lies at ``(cos t, sin t)``, class 1 at ``(1 - cos t, 0.5 - sin t)``, each coordinate with
    Gaussian noise. Classes alternate from row to row.

    Args:
        rows: at least 2; x is ``(rows, 2)``.
        noise: standard deviation, at least 0.
        seed: at least 0.

    Raises:
        DataError: an argument is out of its range.

    Source: scikit-learn's ``make_moons``, with ``t`` drawn instead of evenly spaced.

    Example:
        >>> moons(rows=4)[0].targets["y"]
        tensor([0, 1, 0, 1])
    """
    whole_number(rows, "rows", 2)
    number(noise, "noise", 0)
    t = np.pi * uniform("moons angle", seed, rows)
    y = np.arange(rows) % 2
    x = np.where(y[:, None] == 0, np.stack([np.cos(t), np.sin(t)], 1), np.stack([1 - np.cos(t), 0.5 - np.sin(t)], 1))
    return drawn_source(x + noise * normal("moons noise", seed, rows, 2), {"y": y}, "moons"), None


def hyperplane(
    rows: int = 10_000, features: int = 10, drifting: int = 5, speed: float = 0.1, noise: float = 0.05, seed: int = 0
) -> tuple[TensorSource, None]:
    """``"hyperplane"``: a hyperplane that turns while rows arrive, in order of time; no test rows of its own.

    Protocol: ``x`` is uniform in ``[0, 1]^features`` and ``y = 1`` if ``Σ w_i x_i > w_0``, with ``w_0 = Σ w_i / 2``, so that both classes
    are about equally frequent. Weights start uniform in [0, 1]. After each row the first ``drifting`` of them change by
    ``± speed / 1000``; after every 1,000 rows each of these directions turns round with probability 0.1. Then a fraction ``noise`` of
    the labels, chosen at random, is flipped.

    Args:
        rows: at least 2; x is ``(rows, features)``.
        features: at least 1.
        drifting: how many features' weights change, from 0 (no drift) to ``features``.
        speed: how far such a weight moves in 1,000 rows, at least 0.
        noise: probability that a label is flipped, in [0, 1).
        seed: at least 0.

    Raises:
        DataError: an argument is out of its range.

    Source: Hulten, Spencer and Domingos, "Mining time-changing data streams", KDD 2001; the schedule of the weights as in Wang, Fan, Yu
        and Han, "Mining concept-drifting data streams using ensemble classifiers", KDD 2003.

    Example:
        >>> hyperplane(rows=500)[0]
        TensorSource('hyperplane', 500 rows of (10,), targets y)
    """
    whole_number(rows, "rows", 2)
    whole_number(features, "features", 1)
    if whole_number(drifting, "drifting", 0) > features:
        raise DataError(f"drifting is {drifting}, but there are {features} features: give at most as many")
    number(speed, "speed", 0)
    x = uniform("hyperplane x", seed, rows, features)
    weights = np.repeat(uniform("hyperplane weights", seed, 1, features), rows, axis=0)
    stretches = -(-rows // _HYPERPLANE_STRETCH)
    turns = np.where(uniform("hyperplane turns", seed, stretches, drifting) < 0.1, -1.0, 1.0)
    turns[0] = np.where(uniform("hyperplane directions", seed, drifting) < 0.5, -1.0, 1.0)
    steps = np.repeat(turns.cumprod(0), _HYPERPLANE_STRETCH, axis=0)[: rows - 1]
    weights[1:, :drifting] += steps.cumsum(0) * (speed / _HYPERPLANE_STRETCH)
    y = (weights * x).sum(1) > weights.sum(1) / 2
    return drawn_source(x, {"y": y ^ _flips("hyperplane", noise, seed, rows)}, "hyperplane"), None


def sea(rows: int = 60_000, noise: float = 0.1, seed: int = 0) -> tuple[TensorSource, None]:
    """``"sea"``: four concepts, one after another, in order of time; no test rows of its own.

    Protocol: three features uniform in [0, 10], of which the third says nothing; ``y = 1`` if ``x_1 + x_2 > θ``, where θ is 8, 9, 7 and
    9.5 in four blocks whose lengths differ by at most one row. Then a fraction ``noise`` of the labels, chosen at random, is flipped.

    Args:
        rows: at least 4 (60,000 in the paper); x is ``(rows, 3)``.
        noise: probability that a label is flipped, in [0, 1).
        seed: at least 0.

    Raises:
        DataError: an argument is out of its range.

    Source: Street and Kim, "A streaming ensemble algorithm (SEA) for large-scale classification", KDD 2001.

    Example:
        >>> sea(rows=400)[0].input_shape
        (3,)
    """
    whole_number(rows, "rows", 4)
    x = 10 * uniform("sea x", seed, rows, 3)
    sizes = [len(block) for block in np.array_split(np.arange(rows), len(_SEA_THRESHOLDS))]
    y = x[:, 0] + x[:, 1] > np.repeat(_SEA_THRESHOLDS, sizes)
    return drawn_source(x, {"y": y ^ _flips("sea", noise, seed, rows)}, "sea"), None


def _flips(name: str, noise: float, seed: int, rows: int) -> NDArray[np.bool_]:
    if number(noise, "noise", 0, 1) == 1:
        raise DataError("noise is 1, which would turn every label round: give a probability below 1")
    return uniform(f"{name} noise", seed, rows) < noise
