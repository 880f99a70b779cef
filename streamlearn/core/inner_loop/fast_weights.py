"""Fast weights that live longer than a step: what they were is a number, where they come from the slow ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from streamlearn.core.inner_loop.estimators import adapt
from streamlearn.core.inner_loop.rules import Rates
from streamlearn.core.objective import Objective, evaluate, minimised, weigh
from streamlearn.core.penalties import leading

if TYPE_CHECKING:
    from streamlearn.core.step import Step
    from streamlearn.streams import Batch

__all__ = ["adapted", "loss_at", "resumed", "values_after"]


def adapted(
    objective: Callable[[Step], Objective],
    step: Step,
    start: Mapping[str, Tensor],
    rows: Batch,
    *,
    steps: int,
    rates: Rates,
    order: Literal[1, 2],
) -> dict[str, Tensor]:
    """``start`` after some steps of gradient descent on ``rows``, with a graph to it; of order 1 as if their gradients were constants."""

    def loss(fast: Mapping[str, Tensor], _: Mapping[str, Tensor]) -> Tensor | None:
        there = step.at(fast, batch=rows)
        return minimised(objective(there), there)

    return adapt(loss, start, steps=steps, rates=rates, estimator="unrolled" if order == 2 else "first-order")


def values_after(step: Step, start: Mapping[str, Tensor], rows: Batch, *, steps: int, rates: Rates) -> dict[str, Tensor]:
    """`adapted`, as numbers."""
    here = {name: value.detach() for name, value in start.items()}
    found = adapted(evaluate, step, here, rows, steps=steps, rates=rates, order=1)
    return {name: value.detach() for name, value in found.items()}


def loss_at(step: Step, fast: Mapping[str, Tensor], rows: Batch) -> float:
    """s on ``rows`` at ``fast``, without terms; 0 without a labelled row."""
    with torch.no_grad():
        view = step.at(fast, batch=rows)
        found = weigh(Objective(view.rows.losses, {}, view.rows.shares), view)
    return 0.0 if found is None else float(found)


def resumed(step: Step, fast: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``fast`` for every trainable parameter, at its present shape; what has grown since, or is not in it, starts at the slow value."""
    found = {}
    for name, value in step.parameters.items():
        if value.requires_grad:
            found[name] = value.detach().clone()
            old = fast.get(name)
            if old is not None:
                leading(found[name], old.shape).copy_(old)
    return found
