"""The shared architectures side by side, and models on which they are tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from streamlearn import Plugin
from streamlearn.models import Heads, Model
from streamlearn.plugins.sharing.cross_stitch import CrossStitch
from streamlearn.plugins.sharing.mtan import MTAN
from streamlearn.plugins.sharing.pad_net import PADNet
from streamlearn.plugins.sharing.ple import PLE
from streamlearn.plugins.sharing.sluice import Sluice
from streamlearn.plugins.sharing.task_routing import TaskRouting
from streamlearn.streams import Task

A, B, C = Task("a", size=6), Task("b", size=3), Task("c", size=2)

ARCHITECTURES: dict[str, Callable[[], Plugin]] = {
    "ple": lambda: PLE(shared=2),
    "cgc": lambda: PLE(variant="cgc", own=2),
    "cross_stitch": CrossStitch,
    "layerwise": lambda: CrossStitch(per="layer", own=0.5),
    "sluice": lambda: Sluice(strength=0.01),
    "mtan": MTAN,
    "pad_net": PADNet,
    "messages": lambda: PADNet(distillation="message"),
    "task_routing": TaskRouting,
}


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def smooth(
    tasks: Sequence[Task] = (A, B), dtype: Any = torch.float64, stages: int = 3, seed: int = 0, inputs: int = 6, width: int = 4
) -> Model:
    """Linear layers and tanh: no gradient is zero by chance."""

    def build() -> Model:
        layers: list[nn.Module] = []
        for stage in range(stages):
            layers += [nn.Linear(width if stage else inputs, width), nn.Tanh()]
        return Model(nn.Sequential(*layers), Heads(width, tasks)).to(dtype)

    return seeded(build, seed)


def convolutional(tasks: Sequence[Task] = (A, B), dtype: Any = torch.float64, norm: bool = False) -> Model:
    """Two convolutions, the second behind a pooling."""

    def build() -> Model:
        layers: list[nn.Module] = [nn.Conv2d(1, 4, 3, padding=1), *([nn.BatchNorm2d(4)] if norm else []), nn.Tanh(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return Model(nn.Sequential(*layers), Heads(4, tasks)).to(dtype)

    return seeded(build)


def transformed(plugin: Plugin, model: Model, input_shape: tuple[int, ...] = (6,), seed: int = 5) -> Any:
    """The model that ``plugin`` makes of ``model``, without a run."""
    run = SimpleNamespace(seed=seed, stream=SimpleNamespace(input_shape=input_shape))
    return seeded(lambda: plugin.transform_model(model, run))  # type: ignore[attr-defined]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def drifted(model: Any, seed: int = 1) -> Any:
    """Every weight moved a little, so that nothing holds by the starting values alone."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))
    return model
