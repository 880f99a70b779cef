"""Quadratic penalties on the way from an anchor, 1/2 Σ_n Σ_j F_nj (θ_nj - θ*_nj)², and what those who hold them share.

Such a penalty is evaluated in every step over every parameter, so it is one node in the graph: its gradient F (θ - θ*) is at hand
once its value has been computed, and the backward pass hands it out. Under ``create_graph`` (a look-ahead of second order) the
gradient is computed again, differentiably.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["embedded", "leading", "quadratic_penalty"]


def quadratic_penalty(parameters: Mapping[str, Tensor], importance: Mapping[str, Tensor] | None, anchor: Mapping[str, Tensor]) -> Tensor:
    """1/2 Σ_n Σ_j F_nj (θ_nj - θ*_nj)², a scalar.

    A parameter that has grown since is compared on its leading slice; one that is absent is skipped.

    Args:
        parameters: θ by name.
        importance: F by name; ``None`` counts every entry of ``anchor`` once.
        anchor: θ* by name, shaped like F.

    Example:
        >>> one = torch.ones(2)
        >>> quadratic_penalty({"w": 3 * one}, {"w": one}, {"w": one}).item()
        4.0
    """
    names = [name for name in (anchor if importance is None else importance) if name in parameters]
    if not names:
        return torch.zeros(())
    anchors = [anchor[name] for name in names]
    weights = [None] * len(names) if importance is None else [importance[name] for name in names]
    thetas = [leading(parameters[name], start.shape) for name, start in zip(names, anchors, strict=True)]
    if torch.func.debug_unwrap(thetas[0]) is not thetas[0]:  # within torch.vmap or torch.func.grad, which take no node that reuses memory
        moved = [theta - start for theta, start in zip(thetas, anchors, strict=True)]
        parts = [(m * m if w is None else w * m * m).sum() for m, w in zip(moved, weights, strict=True)]
        return 0.5 * torch.stack(parts).sum()
    return _Quadratic.apply(weights, anchors, *thetas)  # type: ignore[no-any-return]


def leading(grown: Tensor, shape: torch.Size) -> Tensor:
    """The leading slice of ``shape`` of a parameter that has grown since it had that shape.

    Example:
        >>> leading(torch.tensor([1.0, 2.0, 3.0]), torch.Size([2])).tolist()
        [1.0, 2.0]
    """
    return grown if grown.shape == shape else grown[tuple(slice(0, size) for size in shape)]


def embedded(old: Tensor, like: Tensor) -> Tensor:
    """``old`` as the leading slice of zeros shaped like a parameter that has grown since.

    Example:
        >>> embedded(torch.ones(1), torch.zeros(3)).tolist()
        [1.0, 0.0, 0.0]
    """
    if old.shape == like.shape:
        return old
    grown = torch.zeros_like(like)
    leading(grown, old.shape).copy_(old)
    return grown


class _Quadratic(torch.autograd.Function):
    """1/2 Σ F (θ - θ*)², differentiable in θ as often as one likes."""

    @staticmethod
    def forward(ctx: Any, weights: Sequence[Tensor | None], anchors: Sequence[Tensor], *thetas: Tensor) -> Tensor:
        gradients, squares = [], []
        for theta, weight, anchor in zip(thetas, weights, anchors, strict=True):  # one tensor after the other, while it is in the cache
            moved = theta - anchor
            gradient = moved if weight is None else weight * moved
            gradients.append(gradient)
            squares.append(torch.dot(gradient.flatten(), moved.flatten()))
        ctx.weights, ctx.anchors, ctx.gradients = weights, anchors, gradients
        ctx.save_for_backward(*thetas)
        return 0.5 * torch.stack(squares).sum()

    @staticmethod
    def backward(ctx: Any, *outside: Tensor) -> tuple[Tensor | None, ...]:
        (factor,) = outside
        found, ctx.gradients = ctx.gradients, None  # handed out once: they are scaled, and added to, in place
        if found is not None and not torch.is_grad_enabled():
            return (None, None, *(gradient.mul_(factor) for gradient in found))
        moved = [theta - anchor for theta, anchor in zip(ctx.saved_tensors, ctx.anchors, strict=True)]
        return (None, None, *(factor * (m if w is None else w * m) for m, w in zip(moved, ctx.weights, strict=True)))
