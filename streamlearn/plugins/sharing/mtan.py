"""Multi-task attention network (MTAN): every task looks at its own choice of one encoder's features, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.errors import ConfigurationError
from streamlearn.models import Heads, Model
from streamlearn.models.parts import PartedHeads, PartedModel, require_heads
from streamlearn.models.stages import staged

if TYPE_CHECKING:
    from streamlearn.core.run import Run

__all__ = ["MTAN", "Attention"]

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_POOLINGS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


class MTAN(Plugin):
    r"""Multi-task attention network.

    The encoder is shared as it is. Behind each of its stages, with features :math:`p^j`, every task has an attention module, which masks
    these features by what they are and by what it has seen in the stage before,

    .. math:: \hat a_k^j = a_k^j \odot p^j, \qquad
        a_k^j = σ\Bigl( h_k^j\bigl( \mathrm{relu}( g_k^j( [p^j;\, f_k^j(\hat a_k^{j-1})] ) ) \bigr) \Bigr)

    and the head of task k reads :math:`\hat a_k^S` of the last stage; the first stage has :math:`p^1` alone. g and h are convolutions with
    kernels of size 1, f one of size 3 with a relu behind it, averaged to the places of stage j; where features are vectors all three are
    linear, and f reads the means of channels where they become vectors. With all masks open this is hard parameter sharing.

    The stages are those of the model's encoder: any ``nn.Sequential``, of linear or convolutional layers. The model must have heads by task
    (all of `streamlearn.models`, or `MultiHead`).

    The encoder alone is shared: combiners of task gradients act on it. Attention modules and heads belong to their tasks; a task that
    arrives later gets its own, and those of a task without rows in a batch are not touched by its update. ``"features"`` are the features
    of all stages, flattened side by side. A method that aligns or compares representations should take the last stage alone: in an
    encoder of two stages, as in ``DANN(tap="encoder.1")``.

    Args:
        stages: paths of the modules of the encoder after which tasks look, besides its end; ``None`` takes the place before each linear or
            convolutional layer, and ``()`` the end alone.

    Raises:
        ConfigurationError: the model has no heads by task, another plugin or a subclass has changed how it makes its outputs, its encoder
            does not give one row of numbers for each input or has no such stages, or a stage turns vectors into maps.

    Cost: no additional pass of the encoder; two or three small layers for each stage and task asked. Memory: those layers, some times
    channels² for each stage and task, and the features of all stages once more.

    Reference: Liu, Johns & Davison, End-to-end multi-task learning with attention, CVPR 2019, equations 1 and 2. Deviations: there the
    mask is made from the features in the middle of a block of layers, and acts on those at its end; a stage here may be one layer, so
    both are at its end. There is no batch normalisation in attention modules: a batch may have a single row of a task. f averages places
    where the paper takes the maximum.

    Example:
        >>> from streamlearn.plugins import MTAN
        >>> MTAN()
        MTAN()
    """

    info = PluginInfo(
        name="mtan",
        family="sharing",
        summary="Every task masks the features of one encoder, stage by stage, by attention of its own.",
        reference="Liu, Johns & Davison 2019, CVPR, equations 1-2",
        provides=frozenset({"sharing!"}),
        after=frozenset({"multi_head"}),
        before=frozenset({"bic"}),
        memory="small layers for each stage and task",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `MTAN`."""

        stages: tuple[str, ...] | None = None

    @hookimpl
    def transform_model(self, model: Model, run: Run) -> Model:
        """Put attention beside the encoder."""
        heads = require_heads(self.name, model)
        stages, shapes = staged(self.name, model.encoder, heads.features, run.stream.input_shape, self.config.stages)
        for number, (before, behind) in enumerate(pairwise(shapes[1:]), start=2):
            if len(before) != len(behind) and len(behind) > 1:
                raise ConfigurationError(
                    f"{self.name}: stage {number} of the encoder turns features of shape {before} into {behind}, and attention follows no "
                    "such turn: name other ends in stages=, so that maps stay maps or become vectors"
                )
        return PartedModel(_Trunk(stages), _AttentiveHeads(heads, shapes[1:]))


class _Trunk(nn.ModuleList):
    """The stages: the features of all of them, flattened side by side."""

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for stage in self:
            x = stage(x)
            found.append(x.flatten(1))
        return torch.cat(found, 1) if len(found) > 1 else found[0]


def _layer(before: int, behind: int, places: int, kernel: int) -> nn.Module:
    """A convolution over some dimensions of places that keeps their number, or a linear layer where there are none."""
    return _CONVOLUTIONS[places](before, behind, kernel, padding=kernel // 2) if places else nn.Linear(before, behind)


class Attention(nn.Module):
    """The attention of one task at one stage: a mask in (0, 1), as large as the stage's features.

    Args:
        shape: of the features p.
        before: of the masked features of the stage before; ``None`` at the first.

    Example:
        >>> attention = Attention((8, 4, 4), before=(3, 8, 8))
        >>> attention(torch.rand(2, 8, 4, 4), torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 8, 4, 4])
    """

    def __init__(self, shape: Sequence[int], before: Sequence[int] | None = None) -> None:
        super().__init__()
        units, places = shape[0], len(shape) - 1
        self.g = _layer(units if before is None else 2 * units, units, places, 1)
        self.h = _layer(units, units, places, 1)
        if before is not None:
            self.f = _layer(before[0], units, places, 3)
            self.pool = _POOLINGS[places](tuple(shape[1:])) if places and tuple(before[1:]) != tuple(shape[1:]) else nn.Identity()

    def forward(self, p: Tensor, seen: Tensor | None = None) -> Tensor:
        """The mask for p, given the masked features of the stage before."""
        if seen is not None:
            seen = seen if p.ndim > 2 or seen.ndim == 2 else seen.flatten(2).mean(2)
            p = torch.cat([p, self.pool(self.f(seen).relu())], 1)
        mask: Tensor = self.h(self.g(p).relu()).sigmoid()
        return mask


class _AttentiveHeads(PartedHeads):
    """Attention at each stage, and a head, for each task."""

    def __init__(self, heads: Heads, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__(heads)
        self.shapes = list(shapes)
        self.attention = nn.ModuleDict()
        self.complete()

    def add(self, task: str, key: str, like: Tensor) -> None:
        """Attention for ``task``."""
        before = [None, *self.shapes]
        self.attention[key] = nn.ModuleList(Attention(shape, before[stage]) for stage, shape in enumerate(self.shapes)).to(like)

    def forward(self, features: Tensor, task: str) -> Tensor:
        """The outputs for ``task``, ``(rows, size)``."""
        modules = self.attention[self.key_of(task)]
        parts = features.split([math.prod(shape) for shape in self.shapes], 1)  # type: ignore[no-untyped-call]
        seen: Tensor | None = None
        for shape, part, attention in zip(self.shapes, parts, modules, strict=True):  # type: ignore[call-overload]
            p = part.reshape(-1, *shape)
            seen = attention(p, seen) * p
        assert seen is not None
        return super().forward(seen, task)
