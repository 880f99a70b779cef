"""Rows that are generated for several tasks of a chosen relatedness, or of chosen scales."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamlearn.errors import DataError
from streamlearn.streams.inputs import real_number, whole_number
from streamlearn.streams.sources.draws import Floats, drawn_source, normal, number
from streamlearn.streams.sources.tensors import TensorSource

__all__ = ["gradnorm_toy", "mmoe_pairs"]


def mmoe_pairs(
    rows: int = 10_000,
    features: int = 100,
    correlation: float = 0.5,
    scale: float = 1.0,
    sines: int = 4,
    noise: float = 0.1,
    seed: int = 0,
    *,
    tasks: int = 2,
) -> tuple[TensorSource, None]:
    """``"mmoe-pairs"``: regressions, ``y1``, ``y2`` and so on, of a chosen relatedness; no test rows of its own.

    Protocol: ``u_1``, ``u_2`` are orthogonal unit vectors, ``w_1 = scale u_1`` and
    ``w_2 = scale (correlation u_1 + sqrt(1 - correlation²) u_2)``, so that ``correlation`` is the cosine between them.
    ``x ~ N(0, 1)^features`` and, for all tasks ``k``, ``y_k = w_k·x + Σ_i sin(α_i w_k·x + β_i) + ε_k`` with ``ε_k ~ N(0, noise²)``; the
    ``sines`` pairs ``α_i, β_i ~ N(0, 1)`` are the same for all. The paper has two tasks. Of more, any two have ``correlation`` as their
    cosine: ``w_k = scale Σ_j L_kj u_j``, where ``L L^T`` is the matrix of these cosines and ``L`` is lower triangular.

    Args:
        rows: at least 2; x is ``(rows, features)``, each target ``(rows,)``.
        features: at least 2, and at least ``tasks``.
        correlation: in [-1, 1]; at least ``-1 / (tasks - 1)``, as no more than two directions can be opposite to one another.
        scale: length of the weights, above 0.
        sines: how many sines are added, at least 0.
        noise: standard deviation, at least 0 (0.1, a variance of 0.01, in the paper).
        seed: at least 0.
        tasks: how many, at least 1.

    Raises:
        DataError: an argument is out of its range.

    Source: Ma, Zhao, Yi, Chen, Hong and Chi, "Modeling task relationships in multi-task learning with multi-gate mixture-of-experts",
        KDD 2018, section 3.2, which leaves the α and β open.

    Example:
        >>> mmoe_pairs(rows=20, correlation=1.0, noise=0)[0]
        TensorSource('mmoe-pairs', 20 rows of (100,), targets y1, y2)
        >>> list(mmoe_pairs(rows=20, tasks=4)[0].targets)
        ['y1', 'y2', 'y3', 'y4']
    """
    whole_number(rows, "rows", 2)
    whole_number(features, "features", 2)
    whole_number(sines, "sines", 0)
    if whole_number(tasks, "tasks", 1) > features:
        raise DataError(f"tasks is {tasks}, but there are {features} features: give at most as many")
    number(correlation, "correlation", -1, 1)
    number(noise, "noise", 0)
    if number(scale, "scale", 0) == 0:
        raise DataError("scale is 0: give a number above 0")
    if (tasks - 1) * correlation < -1:
        raise DataError(f"correlation is {correlation}, which {tasks} tasks cannot all have: give at least {-1 / (tasks - 1):.6g}")
    directions = _orthonormal(normal("mmoe-pairs directions", seed, max(tasks, 2), features))
    x = normal("mmoe-pairs x", seed, rows, features)
    alpha, beta = normal("mmoe-pairs sines", seed, 2, sines)
    errors = noise * normal("mmoe-pairs noise", seed, max(tasks, 2), rows)
    targets = {}
    for k, shares in enumerate(_equal_cosines(tasks, float(correlation))):
        u = sum(share * direction for share, direction in zip(shares, directions, strict=False))
        linear = (scale * x * u).sum(1)
        values = linear + np.sin(linear[:, None] * alpha + beta).sum(1) + errors[k]
        targets[f"y{k + 1}"] = values.astype(np.float32)
    return drawn_source(x, targets, "mmoe-pairs"), None


def _orthonormal(rows: Floats) -> Floats:
    """The rows, each made orthogonal to those before it (Gram and Schmidt) and of length 1."""
    made: list[Floats] = []
    for row in rows:
        rest = row
        for u in made:
            rest = rest - (rest * u).sum() * u
        made.append(rest / np.sqrt((rest * rest).sum()))
    return np.stack(made)


def _equal_cosines(tasks: int, cosine: float) -> list[list[float]]:
    """The rows of the lower triangular ``L`` for which ``L L^T`` has 1 on its diagonal and ``cosine`` elsewhere (Cholesky).

    Below its diagonal, each column of ``L`` holds one value throughout.
    """
    below: list[float] = []
    rows = []
    for _ in range(tasks):
        rest = 1 - sum(value**2 for value in below)
        diagonal = float(np.sqrt(max(rest, 0.0)))
        rows.append([*below, diagonal])
        # nothing is left of a direction that those before it span: cosines of 1, or the least that there can be
        below.append((cosine - 1 + rest) / diagonal if rest > 1e-12 else 0.0)
    return rows


def gradnorm_toy(
    rows: int = 10_000,
    features: int = 250,
    outputs: int = 100,
    scales: Sequence[float] = (1.0, 100.0),
    shared: float = 10.0,
    own: float = 3.5,
    seed: int = 0,
) -> tuple[TensorSource, None]:
    r"""``"gradnorm-toy"``: regressions, ``y1``, ``y2`` and so on, that are alike but for their scales; no test rows of its own.

    Protocol: for every task ``i``,

    .. math:: y_i = \sigma_i \tanh\bigl((B + \epsilon_i)\, x\bigr)

    with ``B ~ N(0, shared)`` and ``ε_i ~ N(0, own)``, entry by entry, both ``(outputs, features)`` and constant. There is no noise. A sum
    of squared errors hears almost only the task of the largest ``σ``, though all are equally hard.

    The paper says nothing of the inputs. Here they are directions, ``x = g / |g|`` with ``g ~ N(0, 1)^features``, so that the argument of
    each tanh has the variance ``shared + own``. The paper writes N(0, 10) and N(0, 3.5); these are read as variances. Public code has
    taken both for standard deviations: ``shared=100,own=12.25``.

    Args:
        rows: at least 2; x is ``(rows, features)``, each target ``(rows, outputs)``.
        features, outputs: at least 1 (250 and 100 in the paper).
        scales: the ``σ_i``, one for each task, each above 0 (two tasks of 1 and 100, and ten tasks, in the paper).
        shared, own: variances of the entries of ``B`` and of ``ε_i``, at least 0.
        seed: at least 0.

    Raises:
        DataError: an argument is out of its range.

    Source: Chen, Badrinarayanan, Lee and Rabinovich, "GradNorm: Gradient normalization for adaptive loss balancing in deep multitask
        networks", ICML 2018, section 4 (eq. 3).

    Example:
        >>> gradnorm_toy(rows=20, scales=[1, 10, 100])[0]
        TensorSource('gradnorm-toy', 20 rows of (250,), targets y1, y2, y3)
    """
    whole_number(rows, "rows", 2)
    whole_number(features, "features", 1)
    whole_number(outputs, "outputs", 1)
    number(shared, "shared", 0)
    number(own, "own", 0)
    if not isinstance(scales, (list, tuple)) or not scales or not all(0 < real_number(scale) < float("inf") for scale in scales):
        raise DataError(f"scales is {scales!r}: give a list of numbers above 0, one for each task")
    x = normal("gradnorm-toy x", seed, rows, features)
    x /= np.sqrt((x * x).sum(1, keepdims=True))
    common = np.sqrt(shared) * normal("gradnorm-toy shared", seed, outputs, features)
    targets = {}
    for i, scale in enumerate(scales):  # a task draws for itself: its values are the same, however many others there are
        matrix = common + np.sqrt(own) * normal(f"gradnorm-toy own {i}", seed, outputs, features)
        targets[f"y{i + 1}"] = (float(scale) * np.tanh(x @ matrix.T)).astype(np.float32)
    return drawn_source(x, targets, "gradnorm-toy"), None
