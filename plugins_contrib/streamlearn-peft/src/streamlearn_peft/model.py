"""A model whose encoder is frozen and carries adapters."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from streamlearn.models import Model
from torch import Tensor, nn

from streamlearn_peft.recipe import Recipe

if TYPE_CHECKING:
    from streamlearn.streams import Task

__all__ = ["Adapted", "PerTask", "adapter_of"]


def adapter_of(task: str) -> str:
    """The adapter of a task: a dot would end its name within that of a parameter.

    Example:
        >>> adapter_of("digits")
        'task digits'
    """
    return f"task {task.replace('.', chr(0x2024))}"


class Adapted(Model):
    """A model with a frozen encoder on whose layers the first few of its adapters act, all of them together; the last of those learns.

    The encoder's modules are new, its weights are those of ``model``. Statistics of batch normalisation rest, as the weights do.

    Args:
        model: encoder and heads.
        recipe: what an adapter is made of.
        adapters: their names; how many are in use is part of the structure.
    """

    def __init__(self, model: Model, recipe: Recipe, adapters: Sequence[str]) -> None:
        tensors = {id(tensor): tensor for tensor in [*model.encoder.parameters(), *model.encoder.buffers()]}
        super().__init__(copy.deepcopy(model.encoder, tensors), model.heads)
        self.encoder.requires_grad_(False)
        self.recipe = recipe
        self.owned: dict[str, tuple[str, ...]] = {}
        """The parameters of the encoder that learn, by adapter."""
        self.used = 1
        for name in adapters:
            self.owned[name] = self._insert(name)
        self.use(self.used)

    def _insert(self, name: str) -> tuple[str, ...]:
        """Add an adapter; the names of its parameters, which are left to learn."""
        from peft import inject_adapter_in_model

        flags = {key: parameter.requires_grad for key, parameter in self.encoder.named_parameters()}
        self.encoder.requires_grad_(False)
        try:
            inject_adapter_in_model(self.recipe.config(), self.encoder, name)
        except (TypeError, ValueError) as error:
            raise self.recipe.refused(error) from error
        del self.encoder.peft_config  # PEFT takes a model that has one for a mistake, and warns
        parameters = dict(self.encoder.named_parameters())
        found = tuple(key for key, parameter in parameters.items() if parameter.requires_grad and name in key.split("."))
        for key, parameter in parameters.items():
            parameter.requires_grad_(key in found or flags.get(key, False))
        return found

    def activate(self, names: Sequence[str]) -> None:
        """Let the layers apply these adapters; what is trained is not touched, as PEFT's own way would."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for module in self.encoder.modules():
            if isinstance(module, BaseTunerLayer):
                module._active_adapter = list(names)

    def use(self, number: int) -> None:
        """Apply the first ``number`` adapters, and train the last of them alone."""
        names = list(self.owned)[:number]
        self.used = number
        self.activate(names)
        self._train_only(names[-1:])

    def _is_frozen(self) -> bool:
        """Whether this is a copy that does not learn: it stays one when it grows."""
        return bool(self.owned) and not any(parameter.requires_grad for parameter in self.encoder.parameters())

    def _train_only(self, names: Sequence[str]) -> None:
        learning = {key for name in names for key in self.owned[name]}
        for key, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(key in learning)

    def train(self, mode: bool = True) -> Adapted:
        """Switch the mode; batch normalisation of the frozen encoder stays as it is in evaluations."""
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(False)
        return self

    def structure(self) -> Mapping[str, Any]:
        """That of a model, and how many adapters are in use."""
        return {**super().structure(), "adapters": self.used}

    def restore_structure(self, structure: Mapping[str, Any]) -> None:
        """Grow to that shape, and use as many adapters."""
        super().restore_structure(structure)
        if structure["adapters"] != self.used:
            frozen = self._is_frozen()
            self.use(structure["adapters"])
            if frozen:
                self._train_only([])


class PerTask(Adapted):
    """A model with an adapter for each task.

    Its features are the inputs: the encoder runs when the outputs of a task are asked for, so that the adapter of a task that nobody asks
    about has no gradient at all.
    """

    def __init__(self, model: Model, recipe: Recipe) -> None:
        super().__init__(model, recipe, [adapter_of(task) for task in model.heads.sizes()])
        self._train_only(list(self.owned))

    def encode(self, x: Tensor) -> Tensor:
        """The inputs as they are."""
        return x

    def decode(self, features: Tensor, task: str) -> Tensor:
        """The outputs for ``task`` through its own adapter, ``(rows, size)``."""
        if self.heads.has(task):
            self.activate([adapter_of(task)])
            features = self.encoder(features)
        return super().decode(features, task)  # which says of an unknown task which there are

    def grow(self, tasks: Iterable[Task]) -> bool:
        """Make room for ``tasks``: heads and adapters."""
        grown, frozen = super().grow(tasks), self._is_frozen()
        for name in map(adapter_of, self.heads.sizes()):
            if name not in self.owned:
                self.owned[name] = self._insert(name)
                if frozen:
                    self._train_only([])
        return grown

    def shared_names(self) -> frozenset[str]:
        """The frozen encoder's: what learns belongs to one task."""
        own = {f"encoder.{key}" for keys in self.owned.values() for key in keys}
        return super().shared_names() - own
