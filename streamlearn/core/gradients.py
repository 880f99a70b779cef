"""Gradients by name: of a scalar, and of each row for a combiner.

Combination concerns the parameters that rows share. Task-specific parameters, the plugins' own and those of a weighting get the
plain gradient of s; the gradient of the terms is added after combination. What each row's way through the graph costs is decided in
``routes.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streamlearn.core.routes import gradients_at_features
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

    Args:
        names: the rows, in order; rows are always referred to by name.
        matrix: the Jacobian, ``(rows, n)``: n shared parameters, or with ``info.rows="features"`` the entries of the features. Or its
            columns in several pieces, which are put together only for who asks for `matrix`.
        features: with ``info.rows="features"`` the features themselves, ``(batch rows, ...)``; else ``None``.
    """

    def __init__(self, names: tuple[str, ...], matrix: Tensor | Sequence[Tensor], features: Tensor | None = None) -> None:
        self.names, self.features = names, features
        self.pieces: tuple[Tensor, ...] = (matrix,) if isinstance(matrix, Tensor) else tuple(matrix)

    @cached_property
    def matrix(self) -> Tensor:
        """The Jacobian, ``(rows, n)``."""
        return self.pieces[0] if len(self.pieces) == 1 else torch.cat(self.pieces, 1)

    @cached_property
    def gramian(self) -> Tensor:
        """Inner products of the rows, ``(rows, rows)``."""
        products = [piece @ piece.T for piece in self.pieces]
        return sum(products[1:], products[0])

    def combine(self, answer: Mapping[str, float | Tensor] | Tensor) -> tuple[Tensor, ...]:
        """What a combiner answered (weights by row name, or a flat vector) as a vector for each piece."""
        if isinstance(answer, Tensor):
            sizes = [piece.shape[1] for piece in self.pieces]
            if answer.shape != (sum(sizes),):
                what = "shared parameters" if self.features is None else "features"
                raise TrainingError(f"a combiner returned a vector of shape {tuple(answer.shape)}, the {what} have {sum(sizes)} entries")
            return answer.split(sizes)  # type: ignore[no-any-return, no-untyped-call]
        unknown = sorted(set(answer) - set(self.names))
        if unknown:
            raise TrainingError(f"a combiner gave weights for rows {', '.join(unknown)}, but the rows are {', '.join(self.names)}")
        weights = self.pieces[0].new_tensor([float(answer.get(name, 0.0)) for name in self.names])
        return tuple(weights @ piece for piece in self.pieces)


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
        self._rows: dict[str, dict[str, Tensor]] = {}  # by row, then by what is shared; what a row does not depend on is left out
        self._plain: dict[str, Tensor] = {}
        self._features: Tensor | None = None

    def add(self, objective: Objective, weighted: Tensor | None, part: Step, share: float) -> None:
        """Differentiate the objective of one part, which has ``share`` of the rows."""
        if weighted is not None and weighted.requires_grad:
            losses = {name: loss for name, loss in objective.losses.items() if loss.requires_grad}
            if losses and part.run.hooks.provide_weighting is not None:  # a row that s leaves out is no row, not a row of zeros
                weights = torch.autograd.grad(weighted, list(losses.values()), retain_graph=True, allow_unused=True)
                losses = {name: loss for (name, loss), weight in zip(losses.items(), weights, strict=True) if weight is not None}
            if losses:
                self._add_rows(share * weighted, losses, part)
            else:
                self._add_plain(share * weighted, self._own)
        for term in objective.terms.values():
            self._add_plain(share * term, self._parameters)

    def _add_rows(self, weighted: Tensor, losses: Mapping[str, Tensor], part: Step) -> None:
        if self._at_features:
            self._features = part.outputs.features  # unsplit: a slice of it would miss every path through the whole
        routed = gradients_at_features(weighted, losses, self._shared, self._own, part)
        if routed is not None:
            for name, gradient in routed.own.items():
                self._gather(self._plain, name, gradient)
            for name, at_features in routed.rows.items():
                row = self._rows.setdefault(name, {})
                for key, value in self._through_the_trunk(at_features, part).items():
                    self._gather(row, key, value)
            return
        weights = torch.autograd.grad(weighted, list(losses.values()), retain_graph=True)
        for (name, loss), weight in zip(losses.items(), weights, strict=True):
            row = self._rows.setdefault(name, {})
            for key, value in self._whole_way(name, weight.detach() * loss, part).items():
                self._gather(row, key, value)
        self._add_plain(weighted, self._own)

    def _through_the_trunk(self, gradient: Tensor | None, part: Step) -> dict[str, Tensor]:
        """From the gradient of a row at the features to that at what is shared."""
        if gradient is None:
            return {}
        if self._at_features:
            return {"features": gradient}
        found = torch.autograd.grad(part.outputs.features, list(self._shared.values()), gradient, retain_graph=True, allow_unused=True)
        return {name: value for name, value in zip(self._shared, found, strict=True) if value is not None}

    def _whole_way(self, name: str, loss: Tensor, part: Step) -> dict[str, Tensor]:
        """The gradient of a row at what is shared, by a backward pass of its own."""
        if not self._at_features:
            return named_gradients(loss, self._shared, retain_graph=True)
        at = {} if self._features is None or not self._features.requires_grad else {"features": self._features}
        found = named_gradients(loss, at, retain_graph=True)
        if not found and named_gradients(loss, self._shared, retain_graph=True):
            raise TrainingError(
                f"row {name!r} does not come from the features of the step (a look-ahead, or rows of a plugin's own), where "
                f"{', '.join(part.run.implementers('provide_gradient_combination'))} combines: take a combiner at the parameters"
            )
        return found

    def _add_plain(self, value: Tensor, parameters: Mapping[str, Tensor]) -> None:
        for name, gradient in named_gradients(value, parameters, retain_graph=True).items():
            self._gather(self._plain, name, gradient)

    @staticmethod
    def _gather(sums: dict[str, Tensor], name: str, gradient: Tensor) -> None:
        sums[name] = sums[name] + gradient if name in sums else gradient

    def write(self) -> None:
        """Combine, and put the result into ``.grad``; a parameter that nothing depends on gets none."""
        total = dict(self._plain)
        for name, gradient in self._combined().items():
            self._gather(total, name, gradient)
        for name, parameter in self._parameters.items():
            parameter.grad = total.get(name)

    def _combined(self) -> dict[str, Tensor]:
        touched = dict.fromkeys(key for row in self._rows.values() for key in row)
        if not self._rows or not self._shared or (self._at_features and not touched):
            return {}
        run = self._step.run
        wanted: Mapping[str, Tensor] = {"features": self._features} if self._at_features and self._features is not None else self._shared
        rows = TaskRows(tuple(self._rows), self._stacked(wanted), self._features)
        run.meter.conflicts.add(rows, run)  # stops here if the gradient of a row is not finite
        pieces = rows.combine(run.hooks.provide_gradient_combination(rows, self._step))
        if self._features is not None:
            at_features = pieces[0].detach().view_as(self._features)
            found = torch.autograd.grad(self._features, list(self._shared.values()), at_features, allow_unused=True)
            return {name: gradient for name, gradient in zip(self._shared, found, strict=True) if gradient is not None}
        return {name: piece.detach().view_as(p) for (name, p), piece in zip(wanted.items(), pieces, strict=True) if name in touched}

    def _stacked(self, wanted: Mapping[str, Tensor]) -> list[Tensor]:
        """By what is shared, the gradients of all rows, ``(rows, its size)``."""
        pieces = []
        for key, like in wanted.items():
            nothing = like.new_zeros(like.numel())
            pieces.append(torch.stack([row[key].flatten() if key in row else nothing for row in self._rows.values()]))
        return pieces
