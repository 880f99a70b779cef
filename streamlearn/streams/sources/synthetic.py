"""Rows that are generated: drifting concepts, two moons, pairs of regressions of a chosen relatedness.

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

__all__ = ["hyperplane", "mmoe_pairs", "moons", "sea"]

Floats = NDArray[np.float64]

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
    _number(noise, "noise", 0)
    t = np.pi * _uniform("moons angle", seed, rows)
    y = np.arange(rows) % 2
    x = np.where(y[:, None] == 0, np.stack([np.cos(t), np.sin(t)], 1), np.stack([1 - np.cos(t), 0.5 - np.sin(t)], 1))
    return _source(x + noise * _normal("moons noise", seed, rows, 2), {"y": y}, "moons"), None


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
    _number(speed, "speed", 0)
    x = _uniform("hyperplane x", seed, rows, features)
    weights = np.repeat(_uniform("hyperplane weights", seed, 1, features), rows, axis=0)
    stretches = -(-rows // _HYPERPLANE_STRETCH)
    turns = np.where(_uniform("hyperplane turns", seed, stretches, drifting) < 0.1, -1.0, 1.0)
    turns[0] = np.where(_uniform("hyperplane directions", seed, drifting) < 0.5, -1.0, 1.0)
    steps = np.repeat(turns.cumprod(0), _HYPERPLANE_STRETCH, axis=0)[: rows - 1]
    weights[1:, :drifting] += steps.cumsum(0) * (speed / _HYPERPLANE_STRETCH)
    y = (weights * x).sum(1) > weights.sum(1) / 2
    return _source(x, {"y": y ^ _flips("hyperplane", noise, seed, rows)}, "hyperplane"), None


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
    x = 10 * _uniform("sea x", seed, rows, 3)
    sizes = [len(block) for block in np.array_split(np.arange(rows), len(_SEA_THRESHOLDS))]
    y = x[:, 0] + x[:, 1] > np.repeat(_SEA_THRESHOLDS, sizes)
    return _source(x, {"y": y ^ _flips("sea", noise, seed, rows)}, "sea"), None


def mmoe_pairs(
    rows: int = 10_000, features: int = 100, correlation: float = 0.5, scale: float = 1.0, sines: int = 4, noise: float = 0.1, seed: int = 0
) -> tuple[TensorSource, None]:
    """``"mmoe-pairs"``: two regressions, ``y1`` and ``y2``, of a chosen relatedness; no test rows of its own.

    Protocol: ``u_1``, ``u_2`` are orthogonal unit vectors, ``w_1 = scale u_1`` and
    ``w_2 = scale (correlation u_1 + sqrt(1 - correlation²) u_2)``, so that ``correlation`` is the cosine between them.
    ``x ~ N(0, 1)^features`` and, for both tasks ``k``, ``y_k = w_k·x + Σ_i sin(α_i w_k·x + β_i) + ε_k`` with ``ε_k ~ N(0, noise²)``; the
    ``sines`` pairs ``α_i, β_i ~ N(0, 1)`` are the same for both.

    Args:
        rows: at least 2; x is ``(rows, features)``, both targets ``(rows,)``.
        features: at least 2.
        correlation: in [-1, 1].
        scale: length of the weights, above 0.
        sines: how many sines are added, at least 0.
        noise: standard deviation, at least 0 (0.1, a variance of 0.01, in the paper).
        seed: at least 0.

    Raises:
        DataError: an argument is out of its range.

    Source: Ma, Zhao, Yi, Chen, Hong and Chi, "Modeling task relationships in multi-task learning with multi-gate mixture-of-experts",
        KDD 2018, section 3.2, which leaves the α and β open.

    Example:
        >>> mmoe_pairs(rows=20, correlation=1.0, noise=0)[0]
        TensorSource('mmoe-pairs', 20 rows of (100,), targets y1, y2)
    """
    whole_number(rows, "rows", 2)
    whole_number(features, "features", 2)
    whole_number(sines, "sines", 0)
    _number(correlation, "correlation", -1, 1)
    _number(noise, "noise", 0)
    if _number(scale, "scale", 0) == 0:
        raise DataError("scale is 0: give a number above 0")
    first, second = _normal("mmoe-pairs directions", seed, 2, features)
    u1 = first / np.sqrt((first * first).sum())
    second = second - (second * u1).sum() * u1
    u2 = second / np.sqrt((second * second).sum())
    x = _normal("mmoe-pairs x", seed, rows, features)
    alpha, beta = _normal("mmoe-pairs sines", seed, 2, sines)
    errors = noise * _normal("mmoe-pairs noise", seed, 2, rows)
    targets = {}
    for number, u in enumerate((u1, correlation * u1 + np.sqrt(1 - correlation**2) * u2)):
        linear = (scale * x * u).sum(1)
        values = linear + np.sin(linear[:, None] * alpha + beta).sum(1) + errors[number]
        targets[f"y{number + 1}"] = values.astype(np.float32)
    return _source(x, targets, "mmoe-pairs"), None


def _source(x: Floats, targets: dict[str, NDArray[np.generic]], name: str) -> TensorSource:
    columns = {key: torch.from_numpy(values if values.dtype == np.float32 else values.astype(np.int64)) for key, values in targets.items()}
    return TensorSource(torch.from_numpy(x.astype(np.float32)), columns, name)


def _flips(name: str, noise: float, seed: int, rows: int) -> NDArray[np.bool_]:
    if _number(noise, "noise", 0, 1) == 1:
        raise DataError("noise is 1, which would turn every label round: give a probability below 1")
    return _uniform(f"{name} noise", seed, rows) < noise


def _uniform(purpose: str, seed: int, *shape: int) -> Floats:
    """Uniform in [0, 1), of 53 bits each."""
    key = hashlib.sha256(f"{purpose}/{whole_number(seed, 'seed', 0)}".encode()).digest()[:16]
    raw = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(int(np.prod(shape)))
    return ((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)


def _normal(purpose: str, seed: int, *shape: int) -> Floats:
    """Standard normal, by the formula of Box and Muller."""
    radius, angle = _uniform(purpose, seed, 2, *shape)
    values: Floats = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)
    return values


def _number(value: object, what: str, least: float, most: float = float("inf")) -> float:
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else float("nan")
    if not (least <= number <= most and number < float("inf")):
        limit = f" and at most {most:g}" if most < float("inf") else ""
        raise DataError(f"{what} is {value!r}: give a number of at least {least:g}{limit}")
    return number
