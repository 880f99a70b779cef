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

__all__ = ["Combination", "TaskRows", "named_gradients"]


def named_gradients(total: Tensor, parameters: Mapping[str, Tensor], *, retain_graph: bool = False) -> dict[str, Tensor]:
    """∂total/∂parameters by name; a parameter that ``total`` does not depend on is left out."""
    if not parameters or not total.requires_grad:
        return {}
    found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True, retain_graph=retain_graph)
    return {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}


class TaskRows:
    """The gradients ∂s/∂L_k · ∇L_k of each row, as a combiner sees them.

    Attributes:
        names: the rows, in order; rows are always referred to by name.
        matrix: the Jacobian, ``(rows, n)``: n shared parameters, or with ``info.rows="features"`` the entries of the features.
        features: with ``info.rows="features"`` the features themselves, ``(batch rows, ...)``; else ``None``.
    """

    def __init__(self, names: tuple[str, ...], matrix: Tensor, features: Tensor | None = None) -> None:
        self.names, self.matrix, self.features = names, matrix, features

    @cached_property
    def gramian(self) -> Tensor:
        """Inner products of the rows, ``(rows, rows)``."""
        return self.matrix @ self.matrix.T

    def combine(self, answer: Mapping[str, float | Tensor] | Tensor) -> Tensor:
        """What a combiner answered (weights by row name, or a flat vector) as a flat vector."""
        if isinstance(answer, Tensor):
            flat = answer
        else:
            unknown = sorted(set(answer) - set(self.names))
            if unknown:
                raise TrainingError(f"a combiner gave weights for rows {', '.join(unknown)}, but the rows are {', '.join(self.names)}")
            pairs = zip(self.names, self.matrix, strict=True)
            flat = sum((answer[name] * row for name, row in pairs if name in answer), torch.zeros_like(self.matrix[0]))
        if flat.shape != self.matrix[0].shape:
            what = "shared parameters" if self.features is None else "features"
            raise TrainingError(
                f"a combiner returned a vector of shape {tuple(flat.shape)}, the {what} have {self.matrix.shape[1]} entries"
            )
        return flat


class Combination:
    """combine(∂s/∂L_k · ∇L_k) + ∇P for what rows share, ∇(s + P) for the rest: gathered from the parts of a step, then written.

    Args:
        step: the whole step.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        run = step.run
        shared_names = run.model.shared_names()
        self._parameters = run.optimization.trainable()
        self._shared = {name: p for name, p in self._parameters.items() if name in shared_names}
        self._own = {name: p for name, p in self._parameters.items() if name not in shared_names}
        self._at_features = run.rows_at_features
        self._rows: dict[str, Tensor] = {}
        self._touched: set[str] = set()
        self._plain: dict[str, Tensor] = {}
        self._features: Tensor | None = None

    def add(self, objective: Objective, weighted: Tensor | None, part: Step, share: float) -> None:
        """Differentiate the objective of one part, which has ``share`` of the rows."""
        losses = {name: loss for name, loss in objective.losses.items() if loss.requires_grad}
        if weighted is not None and losses:
            found = torch.autograd.grad(weighted, list(losses.values()), retain_graph=True, allow_unused=True)
            for (name, loss), weight in zip(losses.items(), found, strict=True):
                row = self._row(name, torch.zeros_like(loss) if weight is None else share * weight.detach() * loss, part)
                self._rows[name] = self._rows[name] + row if name in self._rows else row
        if weighted is not None:
            self._add_plain(share * weighted, self._own)
        for term in objective.terms.values():
            self._add_plain(share * term, self._parameters)

    def _row(self, name: str, loss: Tensor, part: Step) -> Tensor:
        wanted: Mapping[str, Tensor] = self._shared
        if self._at_features and self._shared:
            self._features = part.outputs.features  # unsplit: a slice of it would miss every path through the whole
            wanted = {"features": self._features} if self._features.requires_grad else {}
        found = named_gradients(loss, wanted, retain_graph=True)
        if self._at_features and not found and named_gradients(loss, self._shared, retain_graph=True):
            raise TrainingError(
                f"row {name!r} does not come from the features of the step (a look-ahead, or rows of a plugin's own), where "
                f"{', '.join(part.run.implementers('provide_gradient_combination'))} combines: take a combiner at the parameters"
            )
        self._touched |= found.keys()
        flat = [(found[key] if key in found else torch.zeros_like(p)).flatten() for key, p in wanted.items()]
        return torch.cat(flat) if flat else loss.new_zeros(0)

    def _add_plain(self, value: Tensor, parameters: Mapping[str, Tensor]) -> None:
        for name, gradient in named_gradients(value, parameters, retain_graph=True).items():
            self._plain[name] = self._plain[name] + gradient if name in self._plain else gradient

    def write(self) -> None:
        """Combine, and put the result into ``.grad``; a parameter that nothing depends on gets none."""
        total = dict(self._plain)
        for name, gradient in self._combined().items():
            total[name] = total[name] + gradient if name in total else gradient
        for name, parameter in self._parameters.items():
            parameter.grad = total.get(name)

    def _combined(self) -> dict[str, Tensor]:
        if not self._rows or not self._shared or (self._at_features and not self._touched):
            return {}
        rows = TaskRows(tuple(self._rows), torch.stack(list(self._rows.values())), self._features)
        flat = rows.combine(self._step.run.hooks.provide_gradient_combination(rows, self._step)).detach()
        if self._features is not None:
            found = torch.autograd.grad(self._features, list(self._shared.values()), flat.view_as(self._features), allow_unused=True)
            return {name: gradient for name, gradient in zip(self._shared, found, strict=True) if gradient is not None}
        pieces = flat.split([p.numel() for p in self._shared.values()])  # type: ignore[no-untyped-call]
        named = zip(self._shared.items(), pieces, strict=True)
        return {name: piece.view_as(p) for (name, p), piece in named if name in self._touched}
