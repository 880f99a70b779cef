"""Parameters that correspond across tasks: those of their networks or towers, or of heads of equal shape.

They are told by their names: a pattern such as ``"heads.networks.{task}.*"`` says where the name of a parameter has that of its task.
Parameters whose names differ in nothing else, and whose shapes are equal, are the same layer of different tasks.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import field_validator
from torch import Tensor

from streamlearn.core.plugin import Plugin, PluginConfig, hookimpl
from streamlearn.core.randomness import forked
from streamlearn.errors import ConfigurationError
from streamlearn.models.model import _key

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.streams import Task

__all__ = ["HEADS", "TOWERS", "Layer", "LayerOptions", "LayerPenalty", "checked_patterns", "corresponding", "require_layers", "stacked"]

TOWERS: tuple[str, ...] = ("*.networks.{task}.*", "*.towers.{task}.*")
"""Where tasks have networks of their own (`SeparateNetworks`) or towers (`CrossStitch`, `Sluice`)."""
HEADS: tuple[str, ...] = ("*.by_task.{task}.*",)
"""Where they have heads."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One parameter of several tasks.

    Attributes:
        name: its name, with ``{task}`` for that of the task.
        tasks: who has it, at least two.
        parameters: its name for each of them.
    """

    name: str
    tasks: tuple[str, ...]
    parameters: tuple[str, ...]


def corresponding(
    parameters: Mapping[str, Tensor], tasks: Iterable[str], patterns: tuple[str, ...] | None = None, least_dims: int = 0
) -> tuple[Layer, ...]:
    """The layers of ``parameters`` that at least two of ``tasks`` have, in the order of the parameters.

    Args:
        parameters: by name.
        tasks: names of the tasks that are compared.
        patterns: of names, each with one ``{task}``; ``*`` stands for anything. ``None`` takes `TOWERS`, and where there are none `HEADS`.
        least_dims: parameters with fewer dimensions are left out.

    Example:
        >>> heads = {f"heads.by_task.{task}.weight": torch.zeros(size, 4) for task, size in (("a", 3), ("b", 3), ("c", 2))}
        >>> corresponding(heads, ["a", "b", "c"])[0].tasks
        ('a', 'b')
    """
    shapes = tuple((name, p.shape) for name, p in parameters.items() if p.ndim >= least_dims)
    known = tuple(tasks)
    if patterns is not None:
        return _layers(shapes, known, patterns)
    return _layers(shapes, known, TOWERS) or _layers(shapes, known, HEADS)


def checked_patterns(patterns: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """``patterns``, each with one ``{task}``.

    Raises:
        ValueError: there is none, or one without or with several.
    """
    wrong = [pattern for pattern in patterns or () if pattern.count("{task}") != 1]
    if wrong or patterns == ():
        raise ValueError("each has {task} once, where the name of a parameter has that of its task, as in 'heads.networks.{task}.*'")
    return patterns


def require_layers(plugin: str, run: Run, patterns: tuple[str, ...] | None, least_dims: int = 0) -> None:
    """Refuse a run whose stream has several tasks, and in which nothing corresponds when all of them have come.

    Raises:
        ConfigurationError: so it is.
    """
    stream, model = run.stream, run.model
    if corresponding(dict(model.named_parameters()), [task.name for task in stream.tasks], patterns, least_dims):
        return
    tasks: dict[str, Task] = {}
    for task in [*stream.tasks, *(task for number in range(len(stream)) for task in stream[number].tasks)]:
        if task.name not in tasks or tasks[task.name].size < task.size:
            tasks[task.name] = task
    if len(tasks) < 2:
        return
    with forked(run.device):
        grown = copy.deepcopy(model)  # heads that come, or grow, may have the shape of others in the end
        grown.grow(tasks.values())
    if corresponding(dict(grown.named_parameters()), tasks, patterns, least_dims):
        return
    where = f"parameters={list(patterns)!r}" if patterns else "parameters of towers, or of heads of equal shape,"
    raise ConfigurationError(
        f"plugin {plugin}: no {where} correspond across the tasks {', '.join(tasks)}: list SeparateNetworks(), which gives every task a "
        "network of its own, or say by parameters= where their names have the task, as in 'encoder.towers.{task}.*'"
    )


def stacked(layer: Layer, parameters: Mapping[str, Tensor]) -> Tensor:
    """The parameter of each task, flattened: ``(tasks, entries)``."""
    return torch.stack([parameters[name].flatten() for name in layer.parameters])


class LayerOptions(PluginConfig):
    """Options of a penalty between layers of different tasks."""

    parameters: tuple[str, ...] | None = None

    _patterns = field_validator("parameters")(checked_patterns)


class LayerPenalty(Plugin):
    """A penalty of strength ``strength`` between layers that correspond across tasks; parameters of fewer dimensions are left out."""

    least_dims: ClassVar[int] = 0

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Refuse a model in which nothing corresponds."""
        if run.value(self, "strength"):
            require_layers(self.name, run, self.config.parameters, self.least_dims)

    def layers(self, parameters: Mapping[str, Tensor], run: Run) -> tuple[Layer, ...]:
        """What corresponds across the tasks met so far; nothing at strength 0."""
        return corresponding(parameters, run.tasks, self.config.parameters, self.least_dims) if run.value(self, "strength") else ()


@lru_cache(maxsize=64)
def _layers(shapes: tuple[tuple[str, torch.Size], ...], tasks: tuple[str, ...], patterns: tuple[str, ...]) -> tuple[Layer, ...]:
    keys = {_key(task): task for task in tasks}
    if not keys:
        return ()
    forms = [_form(pattern, tuple(keys)) for pattern in patterns]
    found: dict[tuple[str, torch.Size], dict[str, str]] = {}
    for name, shape in shapes:
        match = next((match for form in forms if (match := form.fullmatch(name))), None)
        if match is not None:
            before, after = match.span("task")
            found.setdefault((f"{name[:before]}{{task}}{name[after:]}", shape), {})[keys[match["task"]]] = name
    return tuple(Layer(name, tuple(of), tuple(of.values())) for (name, _), of in found.items() if len(of) > 1)


def _form(pattern: str, keys: tuple[str, ...]) -> re.Pattern[str]:
    before, after = (re.escape(part).replace(r"\*", ".*") for part in pattern.split("{task}"))
    either = "|".join(re.escape(key) for key in sorted(keys, key=len, reverse=True))
    return re.compile(f"{before}(?P<task>{either}){after}", re.DOTALL)
