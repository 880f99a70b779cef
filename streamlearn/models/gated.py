"""An encoder whose units have gates by task, and which of its weights a set of claimed units protects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streamlearn.errors import ConfigurationError
from streamlearn.models.model import Heads, Model
from streamlearn.streams.task import Task

__all__ = ["GatedHeads", "GatedModel", "Layer", "layers_of", "protection"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BY_UNIT = nn.modules.batchnorm._NormBase  # batch and instance normalisation: no unit meets another
_MIXING = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear or convolutional layer of an ``nn.Sequential``.

    Attributes:
        path: where it is in the encoder.
        units: how many outputs, or channels, it has: one gate for each.
        end: how many of the encoder's stages are done when the gates act.
        dim: the dimension of the units there, 1 or -1.
        reads: the units of the layer before that each of its inputs comes from, int64; ``None`` for the first.
        by_unit: paths of the normalisations behind it, which treat each unit by itself.
    """

    path: str
    units: int
    end: int
    dim: int
    reads: Tensor | None
    by_unit: tuple[str, ...]


def layers_of(encoder: nn.Module) -> tuple[Layer, ...]:
    """The layers of ``encoder``, in order.

    Gates act right before the next layer, before an ``nn.Flatten``, or at the end.

    Raises:
        ConfigurationError: it is no ``nn.Sequential`` of linear and convolutional layers, normalisation by unit behind them, and modules
            without parameters; or a layer does not read the units of the one before it.

    Example:
        >>> encoder = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5), nn.ReLU())
        >>> [(layer.path, layer.units, layer.end) for layer in layers_of(encoder)]
        [('0', 2, 2), ('3', 5, 5)]
        >>> layers_of(encoder)[1].reads
        tensor([0, 0, 0, 0, 1, 1, 1, 1])
    """
    stages = list(_stages(encoder))
    starts = [number for number, (_, stage) in enumerate(stages) if isinstance(stage, (nn.Linear, *_CONVOLUTIONS))]
    if not starts or len({id(stage) for number, (_, stage) in enumerate(stages) if number in starts}) < len(starts):
        raise ConfigurationError(
            "gates need an encoder with linear or convolutional layers, each used once, in an nn.Sequential, but it is "
            f"{type(encoder).__name__}: give one, as models.mlp(stream, (100, 100)) builds it"
        )
    for path, stage in stages[: starts[0]]:
        _refuse_parameters(path, stage)
    found: list[Layer] = []
    for start, following in zip(starts, [*starts[1:], len(stages)], strict=True):
        path, stage = stages[start]
        behind = stages[start + 1 : following]
        for other, module in behind:
            if not isinstance(module, _BY_UNIT):
                _refuse_parameters(other, module)
        flat = next((number for number, (_, module) in enumerate(behind) if isinstance(module, nn.Flatten)), len(behind))
        units = _size(stage, "out")
        reads = _reads(path, stage, found[-1]) if found else None
        norms = tuple(other for other, module in behind if isinstance(module, _BY_UNIT))
        found.append(Layer(path, units, start + 1 + flat, -1 if isinstance(stage, nn.Linear) else 1, reads, norms))
    return tuple(found)


def _stages(module: nn.Module, path: str = "") -> Iterable[tuple[str, nn.Module]]:
    """What runs one after another, with paths; sequences within sequences are taken apart."""
    if type(module) is nn.Sequential:
        for name, child in module._modules.items():  # named_children leaves out what comes a second time, such as one ReLU for all
            assert child is not None
            yield from _stages(child, f"{path}.{name}" if path else name)
    else:
        yield path, module


def _size(stage: nn.Module, side: str) -> int:
    found: int = getattr(stage, f"{side}_{'features' if isinstance(stage, nn.Linear) else 'channels'}")
    return found


def _refuse_parameters(path: str, stage: nn.Module) -> None:
    if isinstance(stage, _MIXING) or next(stage.parameters(), None) is not None:
        raise ConfigurationError(
            f"gates cannot tell which unit what belongs to in {type(stage).__name__} at encoder.{path}: the encoder may have linear and "
            "convolutional layers, batch normalisation behind them, and modules without parameters such as activations and pooling"
        )


def _reads(path: str, stage: nn.Module, before: Layer) -> Tensor:
    """The units of the layer ``before`` that each input of ``stage`` comes from."""
    inputs = _size(stage, "in")
    times, rest = divmod(inputs, before.units)
    if rest or (times > 1 and not isinstance(stage, nn.Linear)) or getattr(stage, "groups", 1) > 1:
        raise ConfigurationError(
            f"gates cannot tell from which of the {before.units} units of encoder.{before.path} the {inputs} inputs of encoder.{path} are: "
            "give layers without groups that read the units, or the flattened channels, of the layer before them"
        )
    units = torch.arange(before.units)
    return units.repeat_interleave(times) if before.dim == 1 else units.repeat(times)


def protection(encoder: nn.Module, layers: Sequence[Layer], claimed: Sequence[Tensor]) -> dict[str, Tensor]:
    """1 - min(c_i, c_j) for the weight from unit j to unit i, by the name of the parameter in the encoder; 1 - c_i where there is no j.

    Args:
        encoder: whose layers they are.
        layers: as `layers_of` gives them.
        claimed: c of each layer, one number in [0, 1] for each unit.

    Example:
        >>> encoder = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))
        >>> found = protection(encoder, layers_of(encoder), [torch.tensor([1.0, 0.0]), torch.tensor([0.75])])
        >>> {name: factor.tolist() for name, factor in found.items()}
        {'0.weight': [[0.0], [1.0]], '0.bias': [0.0, 1.0], '1.weight': [[0.25, 1.0]], '1.bias': [0.25]}
    """
    found: dict[str, Tensor] = {}
    for number, layer in enumerate(layers):
        mine = claimed[number]
        for path in (layer.path, *layer.by_unit):
            for name, parameter in encoder.get_submodule(path).named_parameters():
                shape = (-1, *[1] * (parameter.ndim - 1))
                both = mine.view(shape)
                if parameter.ndim > 1 and layer.reads is not None:
                    read = claimed[number - 1][layer.reads.to(mine.device)]
                    both = torch.minimum(both, read.view(1, *shape[:-1]))
                found[f"{path}.{name}" if path else name] = (1 - both).expand_as(parameter).clone()
    return found


class _Embeddings(nn.ParameterList):
    """One number for each unit of each layer, drawn from N(0, 1)."""

    def reset_parameters(self) -> None:
        with torch.no_grad():
            for parameter in self:
                parameter.normal_()


class GatedHeads(Heads):
    """Heads, and for each task the embeddings whose sigmoid, s times steeper, are its gates.

    Args:
        heads: the heads.
        layers: those that have gates.
        largest: s where the model is evaluated.

    Attributes:
        scale: s where it is trained.
    """

    def __init__(self, heads: Heads, layers: Sequence[Layer], largest: float) -> None:
        super().__init__(heads.features)
        self.by_task = heads.by_task
        self.gates = nn.ModuleDict()
        self.layers = tuple(layers)
        self.scale, self.largest = largest, largest
        self._keys: dict[str, str] = {}
        self._complete()

    def _complete(self) -> None:
        """Embeddings for each head that has none yet."""
        for (task, key), head in zip(zip(self.sizes(), self.by_task, strict=True), self.by_task.values(), strict=True):
            self._keys[task] = key
            if key not in self.gates:
                like = next(head.parameters())
                self.gates[key] = _Embeddings(nn.Parameter(torch.randn(layer.units).to(like)) for layer in self.layers)

    def grow(self, task: Task) -> bool:
        """Make room for ``task``; whether anything changed."""
        changed = super().grow(task)
        self._complete()
        return changed

    def embeddings_of(self, task: str) -> list[Tensor]:
        """The embeddings of ``task``, layer by layer."""
        return list(self.gates[self._keys[task]].parameters())

    def parameters_of(self, task: str) -> list[nn.Parameter]:
        """All that belongs to ``task`` alone."""
        return [*self.gates[self._keys[task]].parameters(), *self.by_task[self._keys[task]].parameters()]

    def gates_of(self, task: str, scale: float | None = None) -> list[Tensor]:
        """The gates of ``task``, layer by layer; at ``scale``, or as steep as they are at present."""
        s = scale or (self.scale if self.training else self.largest)
        return [(s * embedding).sigmoid() for embedding in self.embeddings_of(task)]


class GatedModel(Model):
    """A model whose encoder runs where the task is known: features are the inputs.

    Args:
        encoder: with layers that have gates.
        heads: heads and gates.
    """

    heads: GatedHeads

    def __init__(self, encoder: nn.Module, heads: GatedHeads) -> None:
        super().__init__(encoder, heads)

    def encode(self, x: Tensor) -> Tensor:
        """The inputs."""
        return x

    def decode(self, features: Tensor, task: str) -> Tensor:
        """Inputs to the outputs of ``task``, through its gates."""
        if not self.heads.has(task):
            return super().decode(features, task)  # says which tasks there are
        stages = [stage for _, stage in _stages(self.encoder)]
        done = 0
        for layer, gate in zip(self.heads.layers, self.heads.gates_of(task), strict=True):
            for stage in stages[done : layer.end]:
                features = stage(features)
            done = layer.end
            if features.shape[layer.dim] != layer.units:
                raise ConfigurationError(
                    f"the {layer.units} units of encoder.{layer.path} have become {features.shape[layer.dim]} where their gates act: "
                    "put what mixes, folds or reshapes units behind an nn.Flatten, or leave it out"
                )
            features = features * (gate if layer.dim == -1 else gate.view(-1, *[1] * (features.ndim - 2)))
        for stage in stages[done:]:
            features = stage(features)
        return super().decode(features, task)
