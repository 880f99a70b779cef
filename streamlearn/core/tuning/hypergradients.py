"""Derivatives of a loss on held-out rows with respect to numbers: options of plugins that enter the objective, settings of the optimiser.

Both kinds of hypergradient need the mixed derivative ∂∇L(θ, h)/∂h. It is taken as ∇(∂L/∂h), which follows only the way on which h
enters: for the strength of a penalty that is the penalty alone, and no second derivative of the model is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streamlearn.core.forward import Forward
from streamlearn.core.gradients import named_gradients
from streamlearn.core.importance import evaluating
from streamlearn.core.inner_loop.estimators import Implicit, solve
from streamlearn.core.inner_loop.learner import task_loss
from streamlearn.core.objective import evaluate, minimised
from streamlearn.core.randomness import forked
from streamlearn.core.tuning.tunables import groups_of_the_model, is_decoupled, names_in

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.view import Step
    from streamlearn.streams import Batch

__all__ = ["cross_slopes", "dot", "held_out_slopes", "implicit_slopes", "training_total", "with_decay"]


# ------------------------------------------------------------------------------------------------ losses


def training_total(view: Step) -> Tensor | None:
    """s + P at ``view`` as it is minimised, look-aheads included; ``None`` when there is nothing."""
    wrap = view.run.hooks.around_objective
    return minimised(evaluate(view) if wrap is None else wrap(evaluate, view), view)


def held_out_slopes(run: Run, batch: Batch) -> dict[str, Tensor]:
    """∇ of the mean loss over the labels of ``batch``, without any plugin's term, in evaluation mode; leaves every ``.grad`` alone."""
    with torch.enable_grad(), evaluating(run.model), forked(run.device):
        total = task_loss(Forward(run.model, batch.x), batch, run)
        return {} if total is None else named_gradients(total, run.optimization.trainable())


def with_decay(gradients: Mapping[str, Tensor], run: Run) -> dict[str, Tensor]:
    """Gradients of what the main optimiser moves of the model, with the decay of weights where that is part of the objective."""
    found, parameters, apart = {}, run.parameters(), is_decoupled(run)
    for group in groups_of_the_model(run):
        decay = 0.0 if apart else float(group.get("weight_decay", 0.0))
        for name in names_in(group, run):
            if name in gradients:
                found[name] = gradients[name] + decay * parameters[name].detach() if decay else gradients[name]
    return found


# ------------------------------------------------------------------------------------------------ hypergradients


def dot(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Σ one · other over the names that both have; of a parameter that has grown in between, over the leading slice.

    Example:
        >>> dot({"a": torch.ones(3), "b": torch.ones(1)}, {"a": torch.ones(2)})
        2.0
    """
    total = 0.0
    for name in one.keys() & other.keys():
        a, b = one[name], other[name]
        if a.shape != b.shape:
            common = tuple(slice(0, min(sizes)) for sizes in zip(a.shape, b.shape, strict=True))
            a, b = a[common], b[common]
        total += float((a * b).sum())
    return total


def cross_slopes(total: Tensor, parameters: Mapping[str, Tensor], numbers: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """∂∇L/∂h by number and parameter; a number that L does not depend on is left out.

    Args:
        total: L, with a graph to both.
        parameters: θ.
        numbers: h, scalars.

    Example:
        >>> w, h = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)
        >>> cross_slopes(h * w.square().sum(), {"w": w}, {"h": h})["h"]["w"].tolist()
        [2.0, 4.0]
    """
    if not numbers or not total.requires_grad:
        return {}
    firsts = torch.autograd.grad(total, list(numbers.values()), create_graph=True, allow_unused=True)
    return {
        name: named_gradients(first, parameters, retain_graph=True) if first.requires_grad else {}
        for name, first in zip(numbers, firsts, strict=True)
        if first is not None
    }


def implicit_slopes(
    held: Mapping[str, Tensor],
    total: Tensor,
    parameters: Mapping[str, Tensor],
    cross: Mapping[str, Mapping[str, Tensor]],
    how: Implicit,
    damping: float = 0.0,
) -> dict[str, float]:
    r"""dL_held/dh = -∇L_held · (H + δ)⁻¹ · ∂∇L/∂h by number, H being the Hessian of L at its minimum θ.

    Args:
        held: ∇L_held at θ.
        total: L, with a graph to θ.
        parameters: θ.
        cross: ∂∇L/∂h, by number; see `cross_slopes`.
        how: the solver, its steps, tolerance and rate.
        damping: δ, at least 0.
    """
    with torch.enable_grad():
        slopes = torch.autograd.grad(total, list(parameters.values()), create_graph=True, allow_unused=True)
    curved_names = [name for name, slope in zip(parameters, slopes, strict=True) if slope is not None and slope.requires_grad]
    ends = [slope for slope in slopes if slope is not None and slope.requires_grad]

    def curved(vector: dict[str, Tensor]) -> dict[str, Tensor]:
        found = torch.autograd.grad(
            ends, list(parameters.values()), [vector[name] for name in curved_names], retain_graph=True, allow_unused=True
        )
        return {n: damping * vector[n] + (0.0 if h is None else h) for n, h in zip(parameters, found, strict=True)}

    goal = {name: held.get(name, torch.zeros_like(value)).detach() for name, value in parameters.items()}
    solved = solve(curved, goal, how) if ends else {}
    return {name: -dot(solved, slope) for name, slope in cross.items()}
