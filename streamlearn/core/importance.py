"""The engine's one importance pass: Σ over rows of the size of per-row gradients, divided by the number of rows.

    exact       F_n = 1/N Σ_i Σ_c p_ic (∂ log p_ic / ∂θ_n)²      Fisher information, the expectation over the model's own prediction
    empirical   F_n = 1/N Σ_i (∂ log p_{i, y_i} / ∂θ_n)²         the same with the labels of the data
    outputs     Ω_n = 1/N Σ_i |∂ ‖F(x_i)‖² / ∂θ_n|               how much the outputs change with a parameter; reads no labels

Gradients are squared, or made positive, row by row, never averaged over a batch first, so the result does not depend on the batch
size. For a linear layer the gradient of row i is g_i a_iᵀ, hence Σ_i (g_i a_iᵀ)² = (g²)ᵀ (a²): two matrix products instead of N
backward passes. Convolutions unfold into the same form and normalisation layers are element-wise. ``vmap`` serves the rest.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from streamlearn.core.closed_forms import SIZES, Size, has_closed_form, sizes_of_gradients
from streamlearn.streams.batch import EVERY_ROW

if TYPE_CHECKING:
    from streamlearn.models import Model
    from streamlearn.streams import Batch

__all__ = ["Importance", "evaluating", "importance"]

Importance = Literal["exact", "empirical", "outputs"]


def importance(
    model: Model,
    batches: Iterator[Batch],
    kind: Importance,
    names: frozenset[str],
    regression: frozenset[str] = frozenset(),
) -> dict[str, Tensor]:
    """Mean over rows of the squared gradient of the log-likelihood, or of the absolute one of the outputs, by parameter name.

    Args:
        model: evaluated in evaluation mode; its mode, gradients and the random state are left as found.
        batches: the rows; of rows asked on several tasks, what those give is added up.
        kind: ``"exact"``, ``"empirical"``, for which only labelled rows count, or ``"outputs"``. For regression tasks the likelihood
            is Gaussian with unit variance; its exact Fisher information does not depend on the targets.
        names: the parameters wanted. One that no row depends on (the head of an absent task) is left out.
        regression: the names of the regression tasks.

    Returns:
        Tensors shaped like the parameters.
    """
    total: dict[str, Tensor] = {}
    rows = 0
    if not names:
        return total
    with evaluating(model):
        for batch in batches:
            rows += batch.count_labelled() if kind == "empirical" and batch.targets else len(batch)
            for segment in batch.segments:
                for task in segment.tasks:
                    part, target = batch.x[segment.rows], batch.targets[task][segment.rows] if task in batch.targets else None
                    # what has no label has no such gradient
                    if kind == "empirical" and target is not None and batch.labelled.get(task) is not EVERY_ROW:
                        shown = batch.labelled_rows(task)[segment.rows]
                        part, target = part[shown], target[shown]
                        if not len(part):
                            continue
                    for name, found in _of_rows(model, part, task, target, kind, task in regression, names).items():
                        total[name] = total[name] + found if name in total else found
    return {name: found / max(rows, 1) for name, found in total.items()}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, module by module put back as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _of_rows(
    model: Model, x: Tensor, task: str, target: Tensor | None, kind: Importance, regression: bool, names: frozenset[str]
) -> dict[str, Tensor]:
    """Σ over the rows of ``x``, not yet divided."""
    size: Size = "absolute" if kind == "outputs" else "square"
    score = _of_outputs if kind == "outputs" else _scores(target, kind, regression)
    if has_closed_form(model, names):
        found = sizes_of_gradients(lambda: model.decode(model.encode(x), task), model, score, names, size)
        if found is not None:
            return found
    return _by_vmap(model, x, task, score, names, size)


def _of_outputs(outputs: Tensor) -> list[Tensor]:
    """∂‖F‖²/∂F, the one vector whose product with the Jacobian is the gradient of the squared norm."""
    return [2 * outputs.detach()]


def _scores(target: Tensor | None, kind: Importance, regression: bool) -> Callable[[Tensor], list[Tensor]]:
    """From outputs ``(rows, size)`` to the vectors whose products with the Jacobian are squared and added up.

    Each is √weight · ∂ log-likelihood / ∂ outputs, ``(rows, size)``.
    """

    def scores(outputs: Tensor) -> list[Tensor]:
        outputs = outputs.detach()
        if regression:
            if kind == "exact" or target is None:
                return [
                    torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)[c].expand_as(outputs)
                    for c in range(outputs.shape[1])
                ]
            return [target.reshape_as(outputs) - outputs]
        probabilities = outputs.softmax(1)
        if kind == "empirical" and target is not None:
            return [F.one_hot(target, outputs.shape[1]).to(outputs) - probabilities]
        eye = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
        return [probabilities[:, c : c + 1].sqrt() * (eye[c] - probabilities) for c in range(outputs.shape[1])]

    return scores


def _row_by_row(
    one: Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor], wanted: Mapping[str, Tensor], x: Tensor, vector: Tensor, size: Size
) -> dict[str, Tensor]:
    """The same sum by one backward pass for each row: slow, and always possible."""
    leaves = {name: p.clone().requires_grad_() for name, p in wanted.items()}
    total = {name: torch.zeros_like(p) for name, p in wanted.items()}
    for row, weights in zip(x, vector, strict=True):
        with torch.enable_grad():
            found = torch.autograd.grad(one(leaves, row, weights), list(leaves.values()), allow_unused=True)
        for name, gradient in zip(leaves, found, strict=True):
            if gradient is not None:
                total[name] += SIZES[size](gradient)
    return total


def _by_vmap(
    model: Model, x: Tensor, task: str, score: Callable[[Tensor], list[Tensor]], names: frozenset[str], size: Size, chunk: int = 64
) -> dict[str, Tensor]:
    """The same sum through per-row gradients; for models with layers that have no closed form."""
    from streamlearn.core.forward import _Call

    call = _Call(model)
    every = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    wanted = {name: p for name, p in every.items() if name.removeprefix("model.") in names}
    fixed = {name: p for name, p in every.items() if name not in wanted} | {f"model.{n}": b for n, b in model.named_buffers()}

    def one(parameters: Mapping[str, Tensor], row: Tensor, vector: Tensor) -> Tensor:
        outputs = functional_call(call, {**parameters, **fixed}, ("forward", row.unsqueeze(0), task))
        score_of_row: Tensor = (outputs.squeeze(0) * vector).sum()
        return score_of_row

    per_row = vmap(grad(one), in_dims=(None, 0, 0), chunk_size=chunk, randomness="different")
    with torch.no_grad():
        vectors = score(model(x, task))
    total = {name: torch.zeros_like(p) for name, p in wanted.items()}
    for vector in vectors:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)  # an operator that vmap runs row by row
                found = {name: SIZES[size](gradients).sum(0) for name, gradients in per_row(wanted, x, vector).items()}
        except RuntimeError:  # some models cannot be traced: recurrent ones, or a branch on values
            found = _row_by_row(one, wanted, x, vector, size)
        for name, value in found.items():
            total[name] += value
    return {name.removeprefix("model."): value for name, value in total.items() if bool(value.any()) or name.startswith("model.encoder.")}
