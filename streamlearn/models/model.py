"""The model of a run: an encoder and heads by task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from streamlearn.errors import ConfigurationError, DataError
from streamlearn.streams.task import Task

__all__ = ["Heads", "Model", "Recipe", "SharedOutput"]

Recipe = Callable[[], "Model"]


class Heads(nn.Module):
    """One linear head per task, by the task's name.

    A head grows when its task does: the new layer keeps the leading slice of the old one, and the parameters keep their names. A head
    that comes later is of the type of those that are there, and where they are.

    Args:
        features: width of what the encoder hands over.
        tasks: the tasks known beforehand; others are added when they arrive.
    """

    def __init__(self, features: int, tasks: Iterable[Task] = ()) -> None:
        super().__init__()
        self.features = features
        self.by_task = nn.ModuleDict()
        for task in tasks:
            self.grow(task)

    def grow(self, task: Task) -> bool:
        """Make room for ``task``; whether anything changed."""
        key = _key(task.name)
        old = dict(self.by_task.items()).get(key)
        if isinstance(old, nn.Linear) and old.out_features >= task.size:
            return False
        new = nn.Linear(self.features, task.size)
        like = old.weight if isinstance(old, nn.Linear) else next(self.by_task.parameters(), None)
        if like is not None:
            new = new.to(like)
        if isinstance(old, nn.Linear):
            new.requires_grad_(old.weight.requires_grad)  # a frozen head stays frozen
            with torch.no_grad():
                new.weight[: old.out_features] = old.weight
                new.bias[: old.out_features] = old.bias
        self.by_task[key] = new
        return True

    def has(self, task: str) -> bool:
        """Whether there is a head for ``task``."""
        return _key(task) in self.by_task

    def sizes(self) -> dict[str, int]:
        """Outputs by task."""
        return {_name(key): int(head.out_features) for key, head in self.by_task.items() if isinstance(head, nn.Linear)}

    def forward(self, features: Tensor, task: str) -> Tensor:
        """The outputs for ``task``, ``(rows, size)``."""
        try:
            head = self.by_task[_key(task)]
        except KeyError:
            raise DataError(
                f"the model has no head for task {task!r} (it has: {', '.join(self.sizes()) or 'none'}): train it first"
            ) from None
        outputs: Tensor = head(features)
        return outputs


class SharedOutput(nn.Module):
    """All tasks read the same outputs: what a plain ``nn.Module`` does. A task of size n reads the first n."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[str, int] = {}

    def grow(self, task: Task) -> bool:
        """Remember how many outputs ``task`` reads; a plain module cannot grow."""
        self._sizes[task.name] = task.size
        return False

    def has(self, task: str) -> bool:
        """Every task is served."""
        return True

    def sizes(self) -> dict[str, int]:
        """Outputs by task met so far."""
        return dict(self._sizes)

    def forward(self, features: Tensor, task: str) -> Tensor:
        """The outputs for ``task``, ``(rows, size)``."""
        width = features.shape[1]
        size = self._sizes.get(task, width)
        if width < size:
            raise DataError(f"task {task!r} needs {size} outputs, the model gives {width}: widen its last layer, or use MultiHead")
        return features if width == size else features[:, :size]


class Model(nn.Module):
    """An encoder and heads by task, evaluated lazily: the encoder once, a head when somebody asks for its task.

    Args:
        encoder: maps inputs to features ``(rows, features)``.
        heads: maps features and the name of a task to that task's outputs.

    Example:
        >>> model = Model(nn.Linear(4, 8), Heads(8, [Task("a", size=3), Task("b", size=2)]))
        >>> model(torch.zeros(5, 4), "b").shape
        torch.Size([5, 2])
    """

    def __init__(self, encoder: nn.Module, heads: Heads | SharedOutput) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads
        self.is_plain = isinstance(heads, SharedOutput)
        """Whether a plain module is wrapped, whose output all tasks share."""

    @classmethod
    def of(cls, module: nn.Module) -> Model:
        """``module`` itself if it is a `Model`, else wrapped so that all tasks share its output."""
        return module if isinstance(module, Model) else cls(module, SharedOutput())

    def forward(self, x: Tensor, task: str | None = None) -> Tensor:
        """The outputs for ``task``; it may be left out while there is only one."""
        if task is None:
            tasks = list(self.heads.sizes())
            if len(tasks) > 1:
                raise ConfigurationError(f"the model serves the tasks {', '.join(tasks)}: say which, as in model(x, {tasks[0]!r})")
            task = tasks[0] if tasks else ""
        return self.decode(self.encode(x), task)

    def encode(self, x: Tensor) -> Tensor:
        """Inputs to features."""
        features: Tensor = self._modules["encoder"](x)  # type: ignore[misc]  # ten times faster than self.encoder, in every step
        return features

    def decode(self, features: Tensor, task: str) -> Tensor:
        """Features to the outputs of ``task``."""
        heads = self._modules["heads"]
        # with a shared output there is nothing to compute: spare the call of a module
        outputs: Tensor = heads.forward(features, task) if self.is_plain else heads(features, task)  # type: ignore[union-attr, misc]
        return outputs

    def grow(self, tasks: Iterable[Task]) -> bool:
        """Make room for ``tasks``; whether any parameter was added or exchanged. Names never change."""
        are_first = next(self.heads.parameters(), None) is None
        grown = [self.heads.grow(task) for task in tasks]  # every one, not only until the first that grows
        like = next((p for p in self.encoder.parameters() if p.is_floating_point()), None)
        if are_first and any(grown) and like is not None:
            self.heads.to(like)  # there was no other head to tell them the type of the model
        return any(grown)

    def shared_names(self) -> frozenset[str]:
        """The parameters that serve more than one task: the encoder's, and with a shared output all."""
        prefix = "" if self.is_plain else "encoder."
        return frozenset(name for name, _ in self.named_parameters() if name.startswith(prefix))

    def structure(self) -> Mapping[str, Any]:
        """What `restore_structure` needs to grow a fresh model to this one's shape."""
        return {"heads": self.heads.sizes()}

    def restore_structure(self, structure: Mapping[str, Any]) -> None:
        """Grow to the shape described by ``structure``."""
        self.grow(Task(name, size=size) for name, size in structure["heads"].items())


_TAKEN = frozenset(dir(nn.ModuleDict()))  # a task may be called "train", but no key of a module container may
_MARK = "\N{MODIFIER LETTER PRIME}"


def _key(task: str) -> str:
    # a dot would be read as a path by torch's module containers
    return task.replace(".", "\N{ONE DOT LEADER}") + (_MARK if task in _TAKEN else "")


def _name(key: str) -> str:
    return key.removesuffix(_MARK).replace("\N{ONE DOT LEADER}", ".")
