"""Heads that have further parts for each task, and the models that they stand in: what shared architectures have in common."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from streamlearn.errors import ConfigurationError, DataError
from streamlearn.models.initialization import reinitialize
from streamlearn.models.model import Heads, Model
from streamlearn.streams.task import Task

__all__ = ["PartedHeads", "PartedModel", "TowerHeads", "Weights", "alone", "copied", "require_heads"]


def require_heads(plugin: str, model: Model) -> Heads:
    """The heads of ``model``, which must be a `Model` as it comes, with a linear head for each task.

    Raises:
        ConfigurationError: it is a plain module, or another plugin or a subclass has changed how it makes its outputs.
    """
    if type(model) is not Model or type(model.heads) is not Heads:
        what = "a plain module" if model.is_plain else f"{type(model).__name__} with {type(model.heads).__name__}"
        raise ConfigurationError(
            f"{plugin} needs a Model with a linear head for each task, but the model is {what}: take one of streamlearn.models, "
            "or list MultiHead() before it"
        )
    return model.heads


def copied(module: nn.Module, seed: int | None = None) -> nn.Module:
    """A copy of ``module``; with a seed, its weights are drawn anew from that.

    Raises:
        ConfigurationError: a layer of it cannot be drawn anew.
    """
    made = copy.deepcopy(module)
    if seed is not None:
        reinitialize(made, seed)
    return made


def alone(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` for the rows of one task: of a single row, BatchNorm could not make statistics, and uses those that it has."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training]
    if len(x) != 1 or not norms:
        found: Tensor = module(x)
        return found
    try:
        for part in norms:
            part.training = False
        found = module(x)
    finally:
        for part in norms:
            part.training = True
    return found


class PartedHeads(Heads):
    """Heads, and for each task parts of its own, made by `add` when the task comes.

    What is kept by task is kept here and not in the encoder, also where the encoder's pass reads it: tasks come, and are drawn anew,
    where heads are.

    Args:
        heads: the heads.
    """

    def __init__(self, heads: Heads) -> None:
        super().__init__(heads.features)
        self.by_task = heads.by_task
        self.keys: dict[str, str] = {}
        """By task, the key of its parts in module containers; in the order in which tasks came."""

    def complete(self) -> None:
        """Parts for each head that has none yet."""
        old = list(self.keys.values())
        for task, key in zip(self.sizes(), self.by_task, strict=True):
            if task not in self.keys:
                self.keys[task] = key
                like = next(self.by_task.parameters())
                self.add(task, key, like)
        if len(self.keys) > len(old):
            self.meet(old, list(self.keys.values())[len(old) :])

    def add(self, task: str, key: str, like: Tensor) -> None:
        """Make the parts of ``task``, of the type of ``like`` and where it is."""
        raise NotImplementedError

    def meet(self, old: list[str], new: list[str]) -> None:
        """The tasks with the keys ``new`` have come, all at once: make what belongs to pairs of tasks."""

    def grow(self, task: Task) -> bool:
        """Make room for ``task``; whether anything changed."""
        changed = super().grow(task)
        self.complete()
        return changed

    def key_of(self, task: str) -> str:
        """The key of the parts of ``task``.

        Raises:
            DataError: there is no such task.
        """
        if task not in self.keys:
            raise DataError(f"the model has no head for task {task!r} (it has: {', '.join(self.sizes()) or 'none'}): train it first")
        return self.keys[task]

    def encode(self, x: Tensor, encoder: nn.Module) -> Tensor:
        """Inputs to features."""
        features: Tensor = encoder(x)
        return features

    def shared(self) -> Iterator[nn.Parameter]:
        """The parameters here that serve more than one task."""
        return iter(())


class PartedModel(Model):
    """A model whose features are made by its heads, with the encoder's help.

    Args:
        encoder: what all tasks share.
        heads: the rest.
    """

    def __init__(self, encoder: nn.Module, heads: PartedHeads) -> None:
        super().__init__(encoder, heads)
        self._parted = (heads,)  # in a tuple: a plugin that puts something around the heads (BiC) leaves these where they are

    def encode(self, x: Tensor) -> Tensor:
        """Inputs to features."""
        return self._parted[0].encode(x, self.encoder)

    def shared_names(self) -> frozenset[str]:
        """The encoder's parameters, and of the heads' what serves more than one task."""
        also = {id(parameter) for parameter in self._parted[0].shared()}
        return frozenset(name for name, p in self.named_parameters() if name.startswith("encoder.") or id(p) in also)


class TowerHeads(PartedHeads):
    """A network of stages for each task, all of which see every row and meet after each stage; and a head for each.

    The first task has the given stages; those of others are copies.

    Args:
        heads: the heads.
        stages: the stages.
        shapes: of the input, and behind each stage.
    """

    def __init__(self, heads: Heads, stages: Sequence[nn.Module], shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__(heads)
        self.shapes = list(shapes)
        self.towers, self.stitches = nn.ModuleDict(), nn.ModuleDict()
        self._given = (nn.ModuleList(copy.deepcopy(list(stages))),)  # in a tuple: it is no part of the model
        self._first: list[nn.Module] = list(stages)

    def seed_of(self, task: str) -> int | None:
        """The seed from which the tower of ``task`` is drawn; ``None`` leaves it as it was given."""
        raise NotImplementedError

    def add(self, task: str, key: str, like: Tensor) -> None:
        """A tower for ``task``."""
        first, self._first = self._first, []
        tower = nn.ModuleList(first) if first else copied(self._given[0], self.seed_of(task))
        self.towers[key] = tower.to(like.device)

    def pair(self, to: str, source: str, old: list[str], new: list[str]) -> Weights:
        """What the tower of ``to`` takes of that of ``source``, stage by stage; the tasks ``old`` were here before those of ``new``."""
        raise NotImplementedError

    def meet(self, old: list[str], new: list[str]) -> None:
        """Weights for each pair that has none yet."""
        for to in (*old, *new):
            row = self.stitches[to] if to in self.stitches else nn.ModuleDict()
            row.update({source: self.pair(to, source, old, new) for source in (*old, *new) if source not in row})  # type: ignore[operator]
            self.stitches[to] = row

    def weights_of(self, key: str, stage: int) -> list[Tensor]:
        """What the tower ``key`` takes of every tower behind ``stage``."""
        return [self.stitches[key][source][stage] for source in self.keys.values()]  # type: ignore[index]

    def mixed(self, outputs: list[Tensor], weights: list[Tensor]) -> Tensor:
        """What a tower goes on with: ``weights`` of all towers' ``outputs``."""
        raise NotImplementedError

    def shared(self) -> Iterator[nn.Parameter]:
        """The parameters here that serve more than one task: all but the weights behind the last stage."""
        yield from self.towers.parameters()
        for row in self.stitches.values():
            for weights in row.children():
                yield from list(weights.parameters())[:-1]

    def levels(self, x: Tensor) -> list[list[Tensor]]:
        """By stage and tower what the towers go on with; behind the last stage, what they have there before they meet.

        What the last meeting gives a task is nobody else's, and is made where the task is known: in the pass of all, what belongs to
        an absent task would get a gradient of 0, which is not none.
        """
        keys, found = list(self.keys.values()), []
        going = [x] * len(keys)
        for stage in range(len(self.shapes) - 1):
            outputs = [self.towers[key][stage](mine) for key, mine in zip(keys, going, strict=True)]  # type: ignore[index]
            last = stage == len(self.shapes) - 2
            going = outputs if last else [self.mixed(outputs, self.weights_of(key, stage)) for key in keys]
            found.append(going)
        return found

    def encode(self, x: Tensor, encoder: nn.Module) -> Tensor:
        """What all towers have behind their last stage, side by side."""
        return torch.cat(self.levels(x)[-1], 1)

    def met(self, features: Tensor, task: str) -> Tensor:
        """What ``task`` has behind the last stage and the last meeting; ``features`` begin as those of `encode`."""
        key = self.key_of(task)
        outputs = features[:, : len(self.keys) * self.features].split(self.features, 1)  # type: ignore[no-untyped-call]
        return self.mixed(list(outputs), self.weights_of(key, len(self.shapes) - 2))

    def forward(self, features: Tensor, task: str) -> Tensor:
        """The outputs for ``task``, ``(rows, size)``."""
        return super().forward(self.met(features, task), task)


class Weights(nn.ParameterList):
    """Numbers that start at given values, and go back to them when they are drawn anew.

    Args:
        values: the tensors.
    """

    def __init__(self, values: Sequence[Tensor]) -> None:
        super().__init__([nn.Parameter(value.clone()) for value in values])
        self._start = tuple(value.clone() for value in values)

    def reset_parameters(self) -> None:
        """Back to the start."""
        with torch.no_grad():
            for parameter, value in zip(self, self._start, strict=True):
                parameter.copy_(value)
