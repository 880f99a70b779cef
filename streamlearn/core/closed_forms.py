"""Sums over rows of the size of per-row gradients (their square, or absolute value) in closed form, for layers whose gradient factorises.

linear       Σ_i (g_i a_iᵀ)²  = (g²)ᵀ (a²)    Σ_i |g_i a_iᵀ| = |g|ᵀ |a|         bias  Σ_i g_i²    Σ_i |g_i|
convolution  the same with a_i unfolded into patches: the row's gradient is Σ_positions g_p a_pᵀ, of which the size is taken afterwards
normalisation (evaluation mode)  Σ_i (Σ_positions g x̂)²    Σ_i |Σ_positions g x̂|
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SIZES", "Size", "has_closed_form", "sizes_of_gradients", "squared_gradients"]

Size = Literal["square", "absolute"]
SIZES: dict[Size, Callable[[Tensor], Tensor]] = {"square": torch.square, "absolute": torch.abs}
"""What is added up over rows. Both are multiplicative, |ab| = |a| |b|: that is what the closed form of a linear layer rests on."""

_NORMALISATION = (nn.BatchNorm1d, nn.BatchNorm2d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, *_NORMALISATION)


def has_closed_form(model: nn.Module, names: frozenset[str]) -> bool:
    """Whether every wanted parameter belongs to exactly one layer that has a closed form."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for path, module in model.named_modules():
        own = [p for key, p in module.named_parameters(recurse=False) if (f"{path}.{key}" if path else key) in names]
        if own and (type(module) not in _LAYERS or any(owners[id(p)] > 1 for p in own) or not _factorises(module)):
            return False
    return True


def _factorises(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros"
    return not isinstance(module, _NORMALISATION) or module.running_mean is not None  # without, rows of a batch depend on one another


def squared_gradients(
    forward: Callable[[], Tensor], model: nn.Module, scores: Callable[[Tensor], list[Tensor]], names: frozenset[str]
) -> dict[str, Tensor] | None:
    """Σ_rows Σ_scores (∂⟨score, outputs⟩/∂θ)² by name: `sizes_of_gradients` with the square."""
    return sizes_of_gradients(forward, model, scores, names, "square")


def sizes_of_gradients(
    forward: Callable[[], Tensor], model: nn.Module, scores: Callable[[Tensor], list[Tensor]], names: frozenset[str], size: Size
) -> dict[str, Tensor] | None:
    """Σ_rows Σ_scores size(∂⟨score, outputs⟩/∂θ) by name, or ``None`` when the pass does not have the form that this needs: a layer ran
    more than once, its weight was read outside its call, or an in-place operation overwrote what a layer took in or gave out.

    One forward pass, and one backward pass to the layers' outputs for each score; no gradient of a parameter is formed.
    """
    seen: list[tuple[str, nn.Module, Tensor, Tensor]] = []
    versions: list[tuple[Tensor, int]] = []
    unclear: list[str] = []
    handles = []

    def keep(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            if not arguments or not isinstance(arguments[0], Tensor):  # called by keyword
                unclear.append(path)
                return
            seen.append((path, module, arguments[0].detach(), output))
            versions.extend([(arguments[0], arguments[0]._version), (output, output._version)])

        return hook

    for path, module in model.named_modules():
        if any((f"{path}.{key}" if path else key) in names for key, _ in module.named_parameters(recurse=False)):
            handles.append(module.register_forward_hook(keep(path)))
    frozen = [p for p in model.parameters() if not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)  # so that a graph reaches the layers; no gradient of theirs is kept
        with torch.enable_grad():
            outputs = forward()
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for handle in handles:
            handle.remove()
    ran_twice = len({path for path, *_ in seen}) != len(seen)
    rows = outputs.shape[0]
    # with as many positions as rows it cannot be told which dimension is which: (positions, rows, features) is a common layout too
    unclear += [path for path, module, a, _ in seen if isinstance(module, nn.Linear) and rows in a.shape[1:-1]]
    if unclear or ran_twice or any(a.shape[0] != outputs.shape[0] for _, _, a, _ in seen) or any(t._version != v for t, v in versions):
        return None
    if _read_elsewhere(outputs, model, names, seen):
        return None
    total: dict[str, Tensor] = {}
    vectors = scores(outputs)
    for number, vector in enumerate(vectors):
        gradients = torch.autograd.grad(outputs, [o for *_, o in seen], vector, retain_graph=number + 1 < len(vectors), allow_unused=True)
        for name, found in _by_name(seen, gradients, SIZES[size]):
            if name in names:
                total[name] = total[name] + found if name in total else found
    return total


def _read_elsewhere(outputs: Tensor, model: nn.Module, names: frozenset[str], seen: list[tuple[str, nn.Module, Tensor, Tensor]]) -> bool:
    """Whether the outputs depend on a wanted parameter otherwise than through the one call of its layer (tied or used by a function)."""
    ran = {path for path, *_ in seen}
    allowed = {id(p): int(name.rpartition(".")[0] in ran) for name, p in model.named_parameters() if name in names}
    readings: dict[int, int] = {}
    waiting, met = [outputs.grad_fn], {outputs.grad_fn}
    while waiting:
        node = waiting.pop()
        for following, _ in node.next_functions if node is not None else ():
            parameter = getattr(following, "variable", None)
            if parameter is not None:
                readings[id(parameter)] = readings.get(id(parameter), 0) + 1
            elif following is not None and following not in met:
                met.add(following)
                waiting.append(following)
    return any(readings.get(key, 0) > times for key, times in allowed.items())


def _by_name(
    seen: list[tuple[str, nn.Module, Tensor, Tensor]], gradients: tuple[Tensor | None, ...], size: Callable[[Tensor], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """The sums of every layer that the outputs depend on, by parameter name."""
    for (path, module, inputs, _), gradient in zip(seen, gradients, strict=True):
        if gradient is not None:
            for key, found in _layer(module, inputs, gradient, size):
                yield f"{path}.{key}" if path else key, found


def _layer(module: nn.Module, inputs: Tensor, gradient: Tensor, size: Callable[[Tensor], Tensor]) -> list[tuple[str, Tensor]]:
    """The sizes of the per-row gradients of one layer's parameters, summed over rows."""
    if isinstance(module, nn.Linear) and inputs.ndim == 2:
        found = {"weight": size(gradient).T @ size(inputs), "bias": size(gradient).sum(0)}
    else:
        if isinstance(module, nn.Linear):
            per_row = _matrix(inputs, gradient)
        elif isinstance(module, nn.Conv1d | nn.Conv2d):
            per_row = _convolution(module, inputs, gradient)
        else:
            per_row = _normalisation(module, inputs, gradient)
        found = {key: size(value).sum(0) for key, value in per_row.items()}
    return [(key, value) for key, value in found.items() if getattr(module, key) is not None]


def _matrix(inputs: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Of (rows, positions, features): a row's gradient is the sum over its positions."""
    a, g = inputs.flatten(1, -2), gradient.flatten(1, -2)
    return {"weight": torch.einsum("bpo,bpi->boi", g, a), "bias": g.sum(1)}


def _convolution(module: nn.Conv1d | nn.Conv2d, inputs: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    as_images = isinstance(module, nn.Conv1d)
    x, kernel, stride, dilation = inputs, module.kernel_size, module.stride, module.dilation
    padding = module._reversed_padding_repeated_twice
    x = F.pad(x, padding)
    if as_images:
        x, kernel, stride, dilation = x.unsqueeze(2), (1, *kernel), (1, *stride), (1, *dilation)
    patches = F.unfold(x, kernel, dilation, 0, stride)  # (rows, in * kernel, positions)
    g = gradient.flatten(2)
    return {"weight": torch.einsum("bop,bkp->bok", g, patches).view(-1, *module.weight.shape), "bias": g.sum(2)}


def _normalisation(module: Any, inputs: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    mean, variance, epsilon = module.running_mean, module.running_var, module.eps
    shape = (1, -1, *([1] * (inputs.ndim - 2)))
    normalised = (inputs - mean.view(shape)) / (variance.view(shape) + epsilon).sqrt()
    positions = tuple(range(2, inputs.ndim))
    weight = gradient * normalised
    return {"weight": weight.sum(positions), "bias": gradient.sum(positions)} if positions else {"weight": weight, "bias": gradient}
