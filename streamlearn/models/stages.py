"""An encoder as a list of stages: what architectures cut, copy, mask and join."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from streamlearn.errors import ConfigurationError, nearest

__all__ = ["shapes_of", "staged", "stages_of", "units_first"]


def stages_of(encoder: nn.Module, ends: Sequence[str] | None = None) -> tuple[nn.Sequential, ...]:
    """The stages of ``encoder``, which one after another do what it does; they hold its own modules, no copies.

    Args:
        encoder: an ``nn.Sequential``, nested if you like; anything else is one stage.
        ends: paths of the modules after which a stage ends; what comes behind the last is a stage of its own. An empty sequence makes
            one stage of all. ``None`` begins a stage with each module that has a matrix or a kernel among its parameters (linear and
            convolutional layers, residual blocks); normalisation, activation, dropout and pooling belong to the stage before, and an
            ``nn.Flatten`` to the one behind.

    Raises:
        ConfigurationError: there is no module at such a path, or it is not one of those that run one after another.

    Example:
        >>> encoder = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5), nn.ReLU())
        >>> [[type(module).__name__ for module in stage] for stage in stages_of(encoder)]
        [['Conv2d', 'ReLU'], ['Flatten', 'Linear', 'ReLU']]
        >>> len(stages_of(encoder, ends=("3",))), len(stages_of(encoder, ends=()))
        (2, 1)
    """
    steps = list(_steps(encoder))
    starts = _starts(steps) if ends is None else _starts_behind(steps, ends)
    return tuple(
        nn.Sequential(*[module for _, module in steps[start:end]]) for start, end in zip(starts, [*starts[1:], len(steps)], strict=True)
    )


def _steps(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """What runs one after another, with paths; sequences within sequences are taken apart."""
    if type(module) is nn.Sequential:
        for name, child in module._modules.items():  # named_children leaves out what comes a second time, such as one ReLU for all
            assert child is not None
            yield from _steps(child, f"{path}.{name}" if path else name)
    else:
        yield path, module


def _starts(steps: Sequence[tuple[str, nn.Module]]) -> list[int]:
    heavy = [number for number, (_, module) in enumerate(steps) if any(_connects(part) for part in module.modules())]
    return [0, *[_with_flattening(steps, number) for number in heavy[1:]]]


def _with_flattening(steps: Sequence[tuple[str, nn.Module]], start: int) -> int:
    while isinstance(steps[start - 1][1], nn.Flatten):
        start -= 1
    return start


def _connects(module: nn.Module) -> bool:
    """Whether units meet in it: not in a normalisation over several dimensions, whose weights have as many."""
    return not isinstance(module, nn.LayerNorm | nn.RMSNorm) and any(p.ndim > 1 for p in module.parameters(recurse=False))


def _starts_behind(steps: Sequence[tuple[str, nn.Module]], ends: Sequence[str]) -> list[int]:
    paths = [path for path, _ in steps]
    for path in ends:
        if path not in paths:
            guess = nearest(path, paths)
            raise ConfigurationError(
                f"no stage can end at {path!r}{f' (did you mean {guess!r}?)' if guess else ''}: the modules of the encoder that run one "
                f"after another are {', '.join(map(repr, paths))}"
            )
    return [0, *sorted({paths.index(path) + 1 for path in ends} - {len(steps)})]


def shapes_of(stages: Sequence[nn.Module], input_shape: Sequence[int]) -> list[tuple[int, ...]]:
    """The shape of one input, and then of what each stage makes of it; from a pass of zeros in evaluation mode, which leaves no trace.

    Raises:
        RuntimeError: a stage cannot take what the one before it gives.

    Example:
        >>> shapes_of(stages_of(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))), (6,))
        [(6,), (4,), (3,)]
    """
    parameters = [p for stage in stages for p in stage.parameters()]
    like = parameters[0] if parameters else torch.zeros(())
    x = torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device)
    shapes = [tuple(x.shape[1:])]
    modes = {module: module.training for stage in stages for module in stage.modules()}
    try:
        with torch.no_grad():
            for stage in stages:
                x = stage.eval()(x)
                shapes.append(tuple(x.shape[1:]))
    finally:
        for module, training in modes.items():
            module.training = training
    return shapes


def staged(
    plugin: str, encoder: nn.Module, width: int, input_shape: Sequence[int], ends: Sequence[str] | None = ()
) -> tuple[tuple[nn.Sequential, ...], list[tuple[int, ...]]]:
    """The stages of ``encoder``, and the shapes before, between and behind them, for ``plugin``.

    Args:
        plugin: who asks, named where something is wrong.
        encoder: as for `stages_of`.
        width: how many features heads take.
        input_shape: of one input.
        ends: as for `stages_of`.

    Raises:
        ConfigurationError: for one input the encoder does not give ``(width,)``, or ``ends`` names no module.
    """
    stages = stages_of(encoder, ends)
    try:
        shapes = shapes_of(stages, input_shape)
        found: object = (1, *shapes[-1])
    except RuntimeError as error:
        shapes, found = [], str(error).splitlines()[0]
    if found != (1, width):
        raise ConfigurationError(
            f"{plugin}: for one input of shape {tuple(input_shape)} the encoder gives {found} and not (1, {width}), which the heads take: "
            "end it with nn.Flatten(), or make the heads as wide as it is"
        )
    return stages, shapes


def units_first(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``values``, one for each unit or channel, shaped so that they meet dimension 1 of ``like``, ``(rows, units, ...)``.

    Example:
        >>> units_first(torch.ones(3), torch.ones(2, 3, 8, 8)).shape
        torch.Size([3, 1, 1])
    """
    return values.view(-1, *[1] * (like.ndim - 2))
