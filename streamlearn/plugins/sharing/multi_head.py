"""Multi-head: a shared trunk and an output layer for each task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import nn

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.errors import ConfigurationError
from streamlearn.models import Heads, Model

if TYPE_CHECKING:
    from streamlearn.core.run import Run

__all__ = ["MultiHead"]


class MultiHead(Plugin):
    """A shared trunk with one linear head for each task (hard parameter sharing).

    A plain ``nn.Module`` has one output that all tasks share. This plugin takes its last linear layer off and puts a head for each
    task of the stream in its place (within that module); tasks that are not known beforehand get theirs when they arrive. A
    model that has heads by task already (all of `streamlearn.models`) is left as it is.

    Args:
        layer: path of the linear layer to take off, such as ``"classifier"``; default the last one of the module.

    Raises:
        ConfigurationError: there is no such layer, or it is not the last thing the module does (its output has another shape).

    Cost: none per step. Memory: one layer for each task.

    Reference: Caruana, Multitask learning, Machine Learning 28, 1997.

    Example:
        >>> from streamlearn.plugins import MultiHead
        >>> MultiHead(layer="classifier")
        MultiHead(layer='classifier')
    """

    info = PluginInfo(
        name="multi_head",
        family="sharing",
        summary="Gives every task an output layer of its own on a shared trunk.",
        reference="Caruana 1997, Machine Learning 28:41-75",
        memory="one layer for each task",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `MultiHead`."""

        layer: str | None = Field(None, min_length=1)

    @hookimpl
    def transform_model(self, model: Model, run: Run) -> Model:
        """Split a plain module into trunk and heads."""
        if not model.is_plain:
            return model
        path, layer = self._layer(model.encoder)
        trunk = nn.Identity() if not path else _without(model.encoder, path)
        _check_width(trunk, path, layer, run.stream.input_shape)
        return Model(trunk, Heads(layer.in_features, run.stream.tasks).to(layer.weight))

    def _layer(self, module: nn.Module) -> tuple[str, nn.Linear]:
        linear = {path: layer for path, layer in module.named_modules() if isinstance(layer, nn.Linear)}
        path = self.config.layer or next(reversed(linear), None)
        if path is None or path not in linear:
            raise ConfigurationError(
                f"multi_head: the model has no linear layer {self.config.layer or ''!r} (it has: {', '.join(linear) or 'none'}): "
                "name its output layer, as in MultiHead(layer='classifier')"
            )
        return path, linear[path]


def _check_width(trunk: nn.Module, path: str, layer: nn.Linear, input_shape: tuple[int, ...]) -> None:
    """Pass one input of zeros through the trunk, to see that the layer taken off was its last."""
    width, like = layer.in_features, layer.weight
    training = {module: module.training for module in trunk.modules()}
    try:
        with torch.no_grad():
            features = tuple(trunk.eval()(like.new_zeros(1, *input_shape)).shape)
    except RuntimeError as error:
        features = (str(error).splitlines()[0],)
    for module, mode in training.items():
        module.training = mode
    if features != (1, width):
        raise ConfigurationError(
            f"multi_head: without its layer {path!r} the model gives {features} and not (1, {width}), so that layer is not its output: "
            "name the output layer, as in MultiHead(layer='classifier')"
        )


def _without(module: nn.Module, path: str) -> nn.Module:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, nn.Identity())
    return module
