"""Task routing: every task passes through its own random part of one encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.randomness import permutation
from streamlearn.models import Heads, Model
from streamlearn.models.parts import PartedHeads, PartedModel, alone, require_heads
from streamlearn.models.stages import staged, units_first

if TYPE_CHECKING:
    from streamlearn.core.run import Run

__all__ = ["TaskRouting", "route"]


def route(units: int, ratio: float, seed: int, *place: str | int) -> Tensor:
    """A mask in {0, 1} with max(1, round(ratio · units)) ones at random places, ``(units,)``, float32.

    Args:
        units: how many there are.
        ratio: which part of them is open.
        seed: of the run.
        *place: the task and the layer: what tells masks apart.

    Example:
        >>> route(8, 0.5, 0, "digits", 0).sum(), torch.equal(route(8, 0.5, 0, "digits", 0), route(8, 0.5, 0, "digits", 0))
        (tensor(4.), True)
    """
    mask = torch.zeros(units)
    mask[permutation(units, seed, "task routing", *place)[: max(1, round(ratio * units))]] = 1.0
    return mask


class TaskRouting(Plugin):
    r"""Task routing.

    Behind every stage of the encoder stands a task routing layer, which closes some units (channels, where the stage is convolutional):

    .. math:: x' = m_k \odot x, \qquad m_k \in \{0, 1\}^{units}

    The masks of task k are drawn once, from the run's seed and the name of the task, and never change: ``ratio`` of the units of each stage
    are open, each choice of units as likely as any other. A unit is open to two tasks with probability ratio². With ``ratio=1`` this is
    hard parameter sharing. A task that arrives later gets masks of its own.

    The stages are those of the model's encoder: any ``nn.Sequential``, of linear or convolutional layers. The model must have heads by task
    (all of `streamlearn.models`, or `MultiHead`), which the masks do not touch. The whole encoder is shared: combiners of task gradients
    act on it. A unit that no task of a batch opens has gradient 0, by which momentum and weight decay may still move it.

    The model hands its input to the part behind, where the task is known, so ``"features"`` are the inputs; methods that read features
    are refused. Statistics of BatchNorm are moved by the rows of every task in turn.

    Args:
        ratio: the part of the units that a task opens, in (0, 1]; at least one unit of each stage is.
        stages: paths of the modules of the encoder after which masks act, besides its end; ``None`` takes the place before each linear or
            convolutional layer, and ``()`` masks the end alone.

    Raises:
        ConfigurationError: the model has no heads by task, another plugin or a subclass has changed how it makes its outputs, or its
            encoder does not give one row of numbers for each input or has no such stages.

    Cost: a row passes through the encoder once for each task that it is asked on. Memory: one number for each unit and task.

    Reference: Strezoski, van Noord & Worring, Many task learning with task routing, ICCV 2019, section 3. Deviations: the authors' code
    counts closed units, and writes the masked values past the graph (``input.data.mul_``), so that there gradients flow through closed
    units as if they were open; here they are masked too.

    Example:
        >>> from streamlearn.plugins import TaskRouting
        >>> TaskRouting(ratio=0.6)
        TaskRouting(ratio=0.6)
    """

    info = PluginInfo(
        name="task_routing",
        family="sharing",
        summary="Every task passes through its own random part of the encoder, chosen once.",
        reference="Strezoski et al. 2019, ICCV, section 3",
        provides=frozenset({"sharing!"}),
        conflicts=frozenset(  # they read features
            {"nearest_class_mean", "slda", "ranpac", "feature_distillation", "dann", "coral", "mgda_ub", "graddrop"}
        ),
        after=frozenset({"multi_head"}),
        before=frozenset({"bic"}),
        memory="one number for each unit and task",
        ranks="local",
        streams=frozenset({"task_incremental", "multitask"}),
    )

    class Config(PluginConfig):
        """Options of `TaskRouting`."""

        ratio: float = Field(0.5, gt=0, le=1)
        stages: tuple[str, ...] | None = None

    @hookimpl
    def transform_model(self, model: Model, run: Run) -> Model:
        """Put masks behind the stages."""
        heads = require_heads(self.name, model)
        stages, shapes = staged(self.name, model.encoder, heads.features, run.stream.input_shape, self.config.stages)
        encoder = nn.ModuleList(stages)
        return _RoutedModel(encoder, _RoutedHeads(heads, [shape[0] for shape in shapes[1:]], self.config.ratio, run.seed))


class _RoutedHeads(PartedHeads):
    """Heads, and the masks of each task: a function of seed and name, so that they need no saving."""

    def __init__(self, heads: Heads, units: Sequence[int], ratio: float, seed: int) -> None:
        super().__init__(heads)
        self._units, self._ratio, self._seed = list(units), ratio, seed
        self._masks: dict[str, list[Tensor]] = {}
        self.complete()

    def add(self, task: str, key: str, like: Tensor) -> None:
        """Masks for ``task``."""
        self._masks[task] = [route(units, self._ratio, self._seed, task, stage).to(like) for stage, units in enumerate(self._units)]

    def encode(self, x: Tensor, encoder: nn.Module) -> Tensor:
        """The inputs: which way they go is known where the task is."""
        return x

    def masks_of(self, task: str, device: torch.device) -> list[Tensor]:
        """The masks of ``task``, stage by stage."""
        self.key_of(task)
        if self._masks[task][0].device != device:  # they are no buffers, which a module would take along
            self._masks[task] = [mask.to(device) for mask in self._masks[task]]
        return self._masks[task]


class _RoutedModel(PartedModel):
    """A model whose encoder runs where the task is known."""

    def decode(self, features: Tensor, task: str) -> Tensor:
        """Inputs to the outputs of ``task``, through its part of the encoder."""
        x = features
        for stage, mask in zip(self.encoder, self._parted[0].masks_of(task, features.device), strict=True):  # type: ignore[call-overload, operator]
            x = alone(stage, x)
            x = x * units_first(mask, x)
        return super().decode(x, task)
