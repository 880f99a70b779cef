"""Cross-stitch networks: a network for each task, which take over of each other what they learn to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.randomness import subseed
from streamlearn.models import Heads, Model
from streamlearn.models.parts import PartedModel, TowerHeads, Weights, require_heads
from streamlearn.models.stages import staged, units_first

if TYPE_CHECKING:
    from streamlearn.core.run import Run

__all__ = ["CrossStitch", "stitch"]

Per = Literal["channel", "layer"]


def stitch(outputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Σ_j α_j · x_j, channel by channel: ``(rows, channels, ...)``.

    Args:
        outputs: x_j, each ``(rows, channels, ...)``.
        weights: α_j, each ``(channels,)``, or ``(1,)`` for all channels alike.

    Example:
        >>> stitch([torch.ones(1, 2), torch.full((1, 2), 3.0)], [torch.tensor([0.5]), torch.tensor([1.0, 0.0])])
        tensor([[3.5000, 0.5000]])
    """
    parts = [units_first(weight, x) * x for weight, x in zip(weights, outputs, strict=True)]
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


class CrossStitch(Plugin):
    r"""Cross-stitch networks.

    Every task has a network of its own, a tower. Behind each stage every tower goes on with a mixture of what all towers have there,

    .. math:: \tilde x_i = \sum_j α_{ij} \, x_j

    with one learnt α for each pair of tasks, stage and channel. At the start :math:`α_{ii}` is ``own``, and the others share the rest, so
    that a row sums to 1. With ``own=1`` the towers start as separate networks, and with ``own=1/K`` each starts at the mean of all K.

    The stages are those of the model's encoder: any ``nn.Sequential``, of linear or convolutional layers. The model must have heads by task
    (all of `streamlearn.models`, or `MultiHead`); each reads what its task's tower has behind the last stage.

    Since towers take over of each other, every tower sees every row, and the towers and the α that lie before the last stage serve all
    tasks: combiners of task gradients act on them (``heads.towers.*`` and ``heads.stitches.*``). The α behind the last stage and the heads
    belong to their tasks. A task that arrives later gets a tower and its α; those of earlier tasks for it start at 0, so that their outputs
    do not change when it comes. ``"features"`` are what all towers have behind the last stage, before they meet, side by side. They
    grow with the tasks: `FeatureDistillation` needs taps, such as ``"heads.towers.left.0"``, or a stream whose tasks are known from the
    start.

    Weight decay acts on α as on any other weight, and pulls them to 0 and not to separate towers.

    Args:
        own: :math:`α_{ii}` at the start, in [0, 1]. The paper takes 0.9.
        per: one α for each ``"channel"`` (unit, where layers are linear), as in the paper, or one for each ``"layer"``, as in its
            equation 1 and in LibMTL.
        stages: paths of the modules of the encoder after which towers meet, besides its end; ``None`` takes the place before each linear or
            convolutional layer, and ``()`` lets them meet at the end alone.
        redraw: draw the towers of all tasks but the first anew, from the run's seed and the name of the task. ``False`` starts each at the
            given encoder's weights, for encoders that were trained before.

    Raises:
        ConfigurationError: the model has no heads by task, another plugin or a subclass has changed how it makes its outputs, its encoder
            does not give one row of numbers for each input or has no such stages, or a layer of it cannot be drawn anew.

    Cost: one pass through the model's encoder for each task of the stream, whatever the rows are asked on. Memory: one encoder for each
    task, and one number for each pair of tasks and channel.

    Reference: Misra, Shrivastava, Gupta & Hebert, Cross-stitch networks for multi-task learning, CVPR 2016, equation 1 and section 4.
    Deviations: α learn at the rate of all weights, where the paper gives them a higher one; towers are not trained separately
    before, unless the given encoder was. LibMTL starts all α at 1, so that each tower receives the sum of all.

    Example:
        >>> from streamlearn.plugins import CrossStitch
        >>> CrossStitch(own=0.8)
        CrossStitch(own=0.8)
    """

    info = PluginInfo(
        name="cross_stitch",
        family="sharing",
        summary="A network for each task, which take over of each other, channel by channel, what they learn to.",
        reference="Misra et al. 2016, CVPR, equation 1",
        provides=frozenset({"sharing!"}),
        conflicts=frozenset({"packnet"}),  # it prunes the one encoder
        after=frozenset({"multi_head"}),
        before=frozenset({"bic"}),
        memory="one encoder for each task",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `CrossStitch`."""

        own: float = Field(0.9, ge=0, le=1)
        per: Per = "channel"
        stages: tuple[str, ...] | None = None
        redraw: bool = True

    @hookimpl
    def transform_model(self, model: Model, run: Run) -> Model:
        """Put towers in place of the encoder."""
        heads = require_heads(self.name, model)
        stages, shapes = staged(self.name, model.encoder, heads.features, run.stream.input_shape, self.config.stages)
        seed = run.seed if self.config.redraw else None
        return PartedModel(nn.Identity(), _StitchedHeads(heads, stages, shapes, seed, self.config.own, self.config.per))


class _StitchedHeads(TowerHeads):
    """Towers, and for each pair of tasks the α of each stage."""

    def __init__(
        self, heads: Heads, stages: Sequence[nn.Module], shapes: Sequence[tuple[int, ...]], seed: int | None, own: float, per: Per
    ) -> None:
        super().__init__(heads, stages, shapes)
        self._seed, self._own, self._per = seed, own, per
        self.complete()

    def seed_of(self, task: str) -> int | None:
        """The seed from which the tower of ``task`` is drawn; ``None`` leaves it as it was given."""
        return None if self._seed is None else subseed(self._seed, "tower", task)

    def pair(self, to: str, source: str, old: list[str], new: list[str]) -> Weights:
        """α of a pair, stage by stage."""
        count = len(old) + len(new)
        if to == source:
            return self._weights(self._own if count > 1 else 1.0)
        return self._weights(0.0 if to in old else (1 - self._own) / (count - 1))

    def _weights(self, start: float) -> Weights:
        like = next(self.by_task.parameters())
        widths = [shape[0] if self._per == "channel" else 1 for shape in self.shapes[1:]]
        return Weights([torch.full((width,), start, dtype=like.dtype, device=like.device) for width in widths])

    def mixed(self, outputs: list[Tensor], weights: list[Tensor]) -> Tensor:
        """What a tower goes on with."""
        return stitch(outputs, weights)
