"""Which way the gradient of each row takes through the graph of a step, and the cheapest way to all of them.

The features stand between the encoder, which tasks share, and the heads. With a combiner each head reads an alias of the features of
its own (see `Forward`). Where every loss depends on the encoder through its own aliases alone, one backward pass through all heads
gives the gradients of all rows at the features, and those of everything beside the encoder. Where a loss takes another way, such as
that of a look-ahead, each row needs a backward pass of its own; nothing is assumed, the graph is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from streamlearn.core.view import Step

__all__ = ["Routed", "gradients_at_features"]


class Routed(NamedTuple):
    """Gradients of the rows at the features, and of what is not shared.

    Attributes:
        rows: by row, ``(batch rows, ...)``, shaped like the features; ``None`` where the loss does not depend on them.
        own: of s, by parameter name.
    """

    rows: dict[str, Tensor | None]
    own: dict[str, Tensor]


def gradients_at_features(
    weighted: Tensor, losses: Mapping[str, Tensor], shared: Mapping[str, Tensor], own: Mapping[str, Tensor], part: Step
) -> Routed | None:
    """∂s/∂L_k · ∇L_k at the features for each row, and ∇s for ``own``, from one backward pass; ``None`` where that is not enough.

    Args:
        weighted: s.
        losses: L_k by row.
        shared: parameters that rows share, by name; what is below the features.
        own: all other parameters, by name.
        part: the step, or the part of it, whose losses they are.
    """
    outputs = part.outputs
    if part.run.hooks.around_objective is not None or not outputs.has_run or not outputs.features.requires_grad:
        return None
    aliases = outputs.aliases
    nodes: dict[Any, str | None] = {alias.grad_fn: task for task, alias in aliases.items()}
    nodes[outputs.features.grad_fn] = None  # read by no head: by which row, cannot be told apart
    leaves = {id(parameter) for parameter in shared.values()}
    tasks_of: dict[str, set[str]] = {}
    for name, loss in losses.items():
        met = _reached(loss, nodes, leaves)
        if met is None or None in met or any(met & others for others in tasks_of.values()):
            return None
        tasks_of[name] = {task for task in met if task is not None}
    inputs = {
        **{("alias", task): aliases[task] for tasks in tasks_of.values() for task in tasks},
        **{("own", n): p for n, p in own.items()},
    }
    if not inputs:
        return None
    found = torch.autograd.grad(weighted, list(inputs.values()), retain_graph=True, allow_unused=True)
    gradients = {key: gradient for key, gradient in zip(inputs, found, strict=True) if gradient is not None}
    rows: dict[str, Tensor | None] = {}
    for name, tasks in tasks_of.items():
        parts = [gradients["alias", task] for task in tasks if ("alias", task) in gradients]
        rows[name] = sum(parts[1:], parts[0]) if parts else None
    return Routed(rows, {key[1]: gradient for key, gradient in gradients.items() if key[0] == "own"})


def _reached(loss: Tensor, nodes: Mapping[Any, str | None], leaves: set[int]) -> set[str | None] | None:
    """Which of ``nodes`` the graph of ``loss`` leads to, not looking behind them; ``None`` if it leads past them to one of ``leaves``."""
    met: set[str | None] = set()
    seen: set[Any] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in nodes:
            met.add(nodes[node])
            continue
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in leaves:
            return None
        waiting += [following for following, _ in node.next_functions]
    return met
