"""Gradients by name: of a scalar, and of each row for a combiner.

Combination concerns the parameters that rows share. Task-specific parameters, the plugins' own and those of a weighting get the
plain gradient of s; the gradient of the terms is added after combination.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streamlearn.errors import TrainingError

if TYPE_CHECKING:
    from streamlearn.core.objective import Objective
    from streamlearn.core.view import Step

__all__ = ["TaskRows", "combined_gradients", "named_gradients"]


def named_gradients(total: Tensor, parameters: Mapping[str, Tensor], *, retain_graph: bool = False) -> dict[str, Tensor]:
    """∂total/∂parameters by name; a parameter that ``total`` does not depend on is left out."""
    if not parameters or not total.requires_grad:
        return {}
    found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True, retain_graph=retain_graph)
    return {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}


class TaskRows:
    """The gradients ∂s/∂L_k · ∇L_k of each row with respect to the shared parameters, computed when asked for.

    Attributes:
        names: the rows, in order; rows are always referred to by name.
    """

    def __init__(self, losses: Mapping[str, Tensor], weights: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> None:
        self.names = tuple(losses)
        self._losses = losses
        self._weights = weights
        self._shared = shared
        self._touched: set[str] = set()

    @cached_property
    def matrix(self) -> Tensor:
        """The Jacobian, ``(rows, number of shared parameters)``."""
        rows = []
        for name, loss in self._losses.items():
            found = named_gradients(self._weights[name].detach() * loss, self._shared, retain_graph=True)
            self._touched |= found.keys()
            rows.append(torch.cat([(found[key] if key in found else torch.zeros_like(p)).flatten() for key, p in self._shared.items()]))
        return torch.stack(rows)

    @cached_property
    def gramian(self) -> Tensor:
        """Inner products of the rows, ``(rows, rows)``."""
        return self.matrix @ self.matrix.T

    def combine(self, answer: Mapping[str, float | Tensor] | Tensor) -> dict[str, Tensor]:
        """What a combiner answered (weights by row name, or a flat vector) as gradients by parameter name."""
        if isinstance(answer, Tensor):
            flat = answer
        else:
            unknown = sorted(set(answer) - set(self.names))
            if unknown:
                raise TrainingError(f"a combiner gave weights for rows {', '.join(unknown)}, but the rows are {', '.join(self.names)}")
            flat = sum(
                (answer[n] * row for n, row in zip(self.names, self.matrix, strict=True) if n in answer), torch.zeros_like(self.matrix[0])
            )
        if flat.shape != self.matrix[0].shape:
            raise TrainingError(
                f"a combiner returned a vector of shape {tuple(flat.shape)}, the shared parameters have {self.matrix.shape[1]} entries"
            )
        pieces = flat.split([p.numel() for p in self._shared.values()])  # type: ignore[no-untyped-call]
        named = zip(self._shared.items(), pieces, strict=True)
        return {name: piece.view_as(p) for (name, p), piece in named if name in self._touched}


def combined_gradients(objective: Objective, weighted: Tensor | None, step: Step) -> None:
    """Write combine(∂s/∂L_k · ∇L_k) + ∇P into ``.grad``, and ∇(s + P) for what is not shared."""
    run = step.run
    parameters = run.optimization.trainable()
    total: dict[str, Tensor] = {}
    if weighted is not None:
        losses = {name: loss for name, loss in objective.losses.items() if loss.requires_grad}
        if not losses:
            found: tuple[Tensor | None, ...] = ()
        else:
            found = torch.autograd.grad(weighted, list(losses.values()), retain_graph=True, allow_unused=True)
        weights = {n: w if w is not None else torch.zeros_like(losses[n]) for n, w in zip(losses, found, strict=True)}
        shared_names = run.model.shared_names()
        shared = {name: p for name, p in parameters.items() if name in shared_names}
        own = {name: p for name, p in parameters.items() if name not in shared_names}
        rows = TaskRows(losses, weights, shared)
        total = rows.combine(run.hooks.provide_gradient_combination(rows, step)) if losses and shared else {}
        total |= named_gradients(weighted, own, retain_graph=True)
    for term in objective.terms.values():
        for name, gradient in named_gradients(term, parameters, retain_graph=True).items():
            total[name] = total[name] + gradient if name in total else gradient
    for name, parameter in parameters.items():
        parameter.grad = total.get(name)
