"""Small convex problems on the inner products of some vectors, which several combiners pose; solved exactly, in float64.

Every one of them is put as a problem of least squares with weights that are not negative, on short vectors that have the given inner
products: squares of lengths are never formed, which would cost half of the digits, and neither equal nor opposite nor zero rows harm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from scipy.optimize import nnls
from torch import Tensor

from streamlearn.errors import ConfigurationError, TrainingError

__all__ = ["dual_cone_weights", "min_norm_weights", "preference_weights", "short_rows", "shortest_combination"]

_RIDGE = 1e-11
_NOTHING = 1e-14  # of the largest weight: rounding


def short_rows(gramian: Tensor) -> Tensor:
    """Vectors with the inner products ``gramian``, ``(rows, rows)`` in float64 on the CPU.

    The cosines are factorised, not the products, so that short rows keep as many digits as long ones.

    Args:
        gramian: G with G_ij = g_i · g_j, ``(rows, rows)``.

    Example:
        >>> rows = short_rows(torch.tensor([[4.0, 0.0], [0.0, 9.0]]))
        >>> (rows @ rows.T).round().tolist()
        [[4.0, 0.0], [0.0, 9.0]]
    """
    products = gramian.detach().double().cpu()
    lengths = products.diagonal().clamp(min=0).sqrt()
    each = torch.where(lengths > 0, lengths, 1.0)
    values, vectors = torch.linalg.eigh(products / each / each.unsqueeze(1))
    directions: Tensor = vectors * values.clamp(min=0).sqrt()
    return torch.nn.functional.normalize(directions, dim=1) * lengths.unsqueeze(1)


def shortest_combination(rows: Tensor) -> Tensor:
    """The weights α ≥ 0, Σ α_k = 1, that minimise ‖Σ_k α_k r_k‖, ``(rows,)``; where they are not unique, some of them.

    Minimising ‖Σ y_k r_k‖² + s² (Σ y_k - 1)² over y ≥ 0 gives a multiple of α whatever s is: along each ray what is left is a growing
    function of the length of its convex combination.

    Args:
        rows: r, ``(rows, n)`` in float64 on the CPU.

    Example:
        >>> shortest_combination(torch.eye(2, dtype=torch.float64))
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    size = float(rows.norm(dim=1).max()) or 1.0
    columns = torch.cat([rows.T / size, torch.ones(1, len(rows), dtype=torch.float64)])
    goal = torch.zeros(len(columns), dtype=torch.float64)
    goal[-1] = 1.0
    weights = _not_negative(columns, goal)
    weights[weights < _NOTHING * weights.max()] = 0.0  # beside a row of zeros, all others have no weight at all
    return weights / weights.sum()


def min_norm_weights(gramian: Tensor) -> Tensor:
    """The weights α ≥ 0, Σ α_k = 1, that minimise ‖Σ_k α_k g_k‖², ``(rows,)`` in float64 on the CPU.

    Args:
        gramian: G with G_ij = g_i · g_j, ``(rows, rows)``.

    Example:
        >>> min_norm_weights(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    return shortest_combination(short_rows(gramian))


def dual_cone_weights(rows: Tensor, start: Tensor) -> Tensor:
    """The weights v ≥ ``start`` with the shortest Σ_k v_k r_k, ``(rows,)``.

    That vector is the projection of Σ_k start_k r_k onto the dual cone of the rows: what is nearest to it among all that has no
    negative product with any row.

    Args:
        rows: r, ``(rows, n)`` in float64 on the CPU.
        start: the least weights, ``(rows,)``.

    Example:
        >>> dual_cone_weights(torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64), torch.tensor([1.0, 0.0]))
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    weights = start.double().clone()
    lengths = rows.norm(dim=1)
    real = lengths > 0
    goal = -(weights @ rows)
    size = float(goal.norm())
    if size == 0 or not bool(real.any()):
        return weights
    count = int(real.sum())
    # a ridge far below what float32 resolves, beside rows of length 1: v stays finite where some are opposite
    columns = torch.cat([(rows[real] / lengths[real].unsqueeze(1)).T, _RIDGE * torch.eye(count, dtype=torch.float64)])
    found = _not_negative(columns, torch.cat([goal / size, torch.zeros(count, dtype=torch.float64)]))
    weights[real] += found * size / lengths[real]
    return weights


def _not_negative(columns: Tensor, goal: Tensor) -> Tensor:
    """argmin ‖Ay - b‖ over y ≥ 0."""
    try:
        found, _ = nnls(columns.numpy(), goal.numpy(), maxiter=100 * columns.shape[1])
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"the weights of {columns.shape[1]} gradients could not be found: {error}; lower the learning rate, or take another combiner"
        ) from error
    return torch.from_numpy(found)


def preference_weights(names: Sequence[str], preference: Mapping[str, float]) -> Tensor:
    """Weights that sum to 1 over ``names``, in proportion to ``preference``; a name without one counts 1. ``(names,)`` in float64.

    Example:
        >>> preference_weights(["a", "b"], {"b": 3.0}).tolist()
        [0.25, 0.75]

    Raises:
        ConfigurationError: all of them are 0.
    """
    found = torch.tensor([preference.get(name, 1.0) for name in names], dtype=torch.float64)
    if not float(found.sum()):
        raise ConfigurationError(f"preference= gives 0 to every row of a batch ({', '.join(names)}): give one of them more than 0")
    return found / found.sum()
