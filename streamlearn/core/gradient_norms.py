"""How large the gradient of a loss is, and in which layer it is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from streamlearn.core.phases import select_names
from streamlearn.errors import ConfigurationError

__all__ = ["chosen_layer", "gradient_norm", "last_layer"]


def gradient_norm(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor | None:
    """‖∂loss/∂parameters‖, all taken together, ``()``; ``None`` if it depends on none of them. The graph is kept.

    Args:
        loss: a scalar.
        parameters: where.

    Example:
        >>> at = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> gradient_norm(at.square().sum(), [at]).item()
        10.0
    """
    if not loss.requires_grad or not parameters:
        return None
    found = torch.autograd.grad(loss, list(parameters), retain_graph=True, allow_unused=True)
    norms = [torch.linalg.vector_norm(gradient) for gradient in found if gradient is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else None


def last_layer(parameters: Mapping[str, Tensor]) -> list[str]:
    """The names of the last module that has a matrix or a kernel among its parameters.

    Args:
        parameters: by name, in the order in which the modules were registered.

    Example:
        >>> last_layer(dict(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 3), torch.nn.LayerNorm(3)).named_parameters()))
        ['1.weight', '1.bias']
    """
    heavy = [name for name, value in parameters.items() if value.ndim > 1] or list(parameters)
    return [name for name in parameters if name.rpartition(".")[0] == heavy[-1].rpartition(".")[0]] if heavy else []


def chosen_layer(parameters: Mapping[str, Tensor], layer: str, plugin: str) -> list[str]:
    """The names of those of ``parameters`` in which the gradient is looked at; frozen ones are left out.

    Args:
        parameters: what tasks share, by name, in order.
        layer: ``"last"``, see `last_layer`; ``"all"``; or a pattern of names (shell wildcards).
        plugin: name of the plugin that asks.

    Raises:
        ConfigurationError: the pattern matches none.

    Example:
        >>> parameters = dict(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 3)).named_parameters())
        >>> chosen_layer(parameters, "last", "gradnorm"), chosen_layer(parameters, "0.*", "gradnorm")
        (['1.weight', '1.bias'], ['0.weight', '0.bias'])
    """
    if layer not in ("last", "all"):
        found = select_names(parameters, (layer,))
        if not found:
            names = ", ".join(parameters) or "none"
            raise ConfigurationError(f"plugin {plugin}: layer={layer!r} matches no shared parameter; give one or a pattern of: {names}")
        return [name for name in parameters if name in found and parameters[name].requires_grad]
    trained = {name: value for name, value in parameters.items() if value.requires_grad}
    return last_layer(trained) if layer == "last" else list(trained)
