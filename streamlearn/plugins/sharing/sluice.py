"""Sluice networks: a network for each task, which share subspaces of their layers, and mix their layers' outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from streamlearn.core.randomness import subseed
from streamlearn.errors import ConfigurationError
from streamlearn.models import Heads, Model
from streamlearn.models.parts import PartedModel, TowerHeads, Weights, require_heads
from streamlearn.models.stages import staged

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step

__all__ = ["Sluice", "overlap", "sluice"]


def sluice(outputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Subspace a of the result is Σ_j Σ_b α_j,ab · (subspace b of x_j): ``(rows, channels, ...)``.

    Args:
        outputs: x_j, each ``(rows, channels, ...)``; a subspace is a run of channels, all equally long.
        weights: α_j, each ``(subspaces, subspaces)``.

    Example:
        >>> sluice([torch.tensor([[1.0, 2.0, 3.0, 4.0]])], [torch.tensor([[1.0, 0.0], [1.0, 1.0]])])
        tensor([[1., 2., 4., 6.]])
    """
    (subspaces, _), like = weights[0].shape, outputs[0]
    parts = [x.reshape(len(x), subspaces, -1, *x.shape[2:]) for x in outputs]
    mixed = [torch.einsum("ab,rb...->ra...", weight, part) for weight, part in zip(weights, parts, strict=True)]
    return torch.stack(mixed).sum(0).reshape(like.shape)


def overlap(weight: Tensor, subspaces: int) -> Tensor:
    """Σ_{a<b} ‖G_aᵀ G_b‖²_F, with the weights of the units of subspace a as the columns of G_a, ``(inputs, units of a subspace)``.

    It is 0 if and only if every unit of a subspace is orthogonal to every unit of the others.

    Args:
        weight: of a linear or convolutional layer, ``(units, ...)``.
        subspaces: how many there are.

    Example:
        >>> overlap(torch.tensor([[1.0, 0.0], [2.0, 3.0]]), 2)
        tensor(4.)
    """
    parts = weight.reshape(subspaces, len(weight) // subspaces, -1)
    return torch.stack([(parts[a] @ parts[b].T).square().sum() for a, b in combinations(range(subspaces), 2)]).sum()


class Sluice(Plugin):
    r"""Sluice networks.

    Every task has a network of its own, a tower, and the outputs of each of its stages fall into ``subspaces`` equal runs of channels.
    Behind each stage every subspace of every tower goes on with a mixture of the subspaces of all towers, and the head of task i reads a
    mixture of what its tower has behind each of its stages,

    .. math:: \tilde x_{i,a}^l = \sum_j \sum_b α_{ia,jb}^l \, x_{j,b}^l, \qquad z_i = \sum_l β_i^l \, \tilde x_i^l

    A penalty keeps the subspaces of a stage from learning the same,

    .. math:: P = λ \sum_i \sum_l \sum_{a < b} \bigl\| (G_{i,a}^l)^\top G_{i,b}^l \bigr\|_F^2

    with the weights of the units of subspace a in the columns of G: it is 0 when every unit is orthogonal to those of other subspaces. At
    the start a subspace takes ``own`` of itself and equal parts of all
    others, and :math:`β^l` is ``last`` for the last stage and equal for the others, each summing to 1.

    The stages are those of the model's encoder: any ``nn.Sequential`` of linear or convolutional layers. β mixes stages of one shape; where
    they have several, or an encoder has one stage, list it with ``skips=False``. The model must have heads by task (all of
    `streamlearn.models`, or `MultiHead`).

    Every tower sees every row. Towers and α serve all tasks: combiners of task gradients act on them (``heads.towers.*``,
    ``heads.stitches.*``), but for the α behind the last stage, which belong to their tasks as β and the heads do. A task that arrives later
    gets a tower, α and β; the α of earlier tasks for it start at 0, so that their outputs do not change when it comes. ``"features"`` are
    what all towers have behind the last stage, before they meet, and behind the others, side by side. They
    grow with the tasks: `FeatureDistillation` needs taps, such as ``"heads.towers.left.0"``, or a stream whose tasks are known from the
    start.

    Args:
        strength: λ, at least 0.
        subspaces: into how many runs the channels of each stage fall, at least 1, which must divide their number; the paper has 2.
        own: of α, in [0, 1].
        last: of β, in [0, 1].
        skips: whether heads read all stages; ``False`` leaves β out, and heads read the last.
        stages: paths of the modules of the encoder after which towers meet, besides its end; ``None`` takes the place before each linear or
            convolutional layer, and ``()`` lets them meet at the end alone.
        redraw: draw the towers of all tasks but the first anew, from the run's seed and the name of the task. ``False`` starts each at the
            given encoder's weights.

    Raises:
        ConfigurationError: the model has no heads by task, another plugin or a subclass has changed how it makes its outputs, its encoder
            does not give one row of numbers for each input or has no such stages, subspaces do not divide a stage's channels, β cannot mix
            the stages, or a layer cannot be drawn anew.

    Cost: one pass through the model's encoder for each task of the stream; the penalty needs the products of a layer's rows with one
    another. Memory: one encoder for each task, and subspaces² numbers for each pair of tasks and stage.

    Reference: Ruder, Bingel, Augenstein & Søgaard, Latent multi-task architecture learning, AAAI 2019, equations 1 to 4. Deviations: the
    paper's layers are recurrent. The first layer of a stage is the one whose weights are kept apart. The penalty is added once a step and
    not once for each task asked, and starts of α and β sum to 1, where the authors' code has several 0.95 in a row. That code has units
    in the rows of G, so that its product pairs unit u of one subspace with unit u of the other: that makes weights small, and none
    orthogonal.

    Example:
        >>> from streamlearn.plugins import Sluice
        >>> Sluice(strength=0.1)
        Sluice(strength=0.1)
    """

    info = PluginInfo(
        name="sluice",
        family="sharing",
        summary="A network for each task; subspaces of their layers are shared, and layers mixed, as learnt.",
        reference="Ruder et al. 2019, AAAI, equations 1-4",
        provides=frozenset({"sharing!"}),
        conflicts=frozenset({"packnet"}),  # it prunes the one encoder
        after=frozenset({"multi_head"}),
        before=frozenset({"bic"}),
        memory="one encoder for each task",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `Sluice`."""

        strength: Annotated[float, Tunable(1e-4, 1.0, log=True)] = Field(0.01, ge=0)
        subspaces: int = Field(2, ge=1)
        own: float = Field(0.9, ge=0, le=1)
        last: float = Field(0.9, ge=0, le=1)
        skips: bool = True
        stages: tuple[str, ...] | None = None
        redraw: bool = True

    @hookimpl
    def transform_model(self, model: Model, run: Run) -> Model:
        """Put towers in place of the encoder."""
        heads, config = require_heads(self.name, model), self.config
        stages, shapes = staged(self.name, model.encoder, heads.features, run.stream.input_shape, config.stages)
        for number, shape in enumerate(shapes[1:], start=1):
            if shape[0] % config.subspaces:
                raise ConfigurationError(
                    f"{self.name}: stage {number} of the encoder has {shape[0]} channels, which do not fall into subspaces="
                    f"{config.subspaces} equal parts: give widths that do, or other subspaces"
                )
        if config.skips and len(set(shapes[1:])) > 1:
            raise ConfigurationError(
                f"{self.name}: the stages of the encoder give {', '.join(map(str, shapes[1:]))}, and skips mix what has one shape: give "
                "stages of one width, or take skips=False"
            )
        return PartedModel(nn.Identity(), _SluiceHeads(heads, stages, shapes, run.seed if config.redraw else None, config))

    @hookimpl
    def collect_terms(self, step: Step) -> dict[str, Tensor]:
        """λ Σ ‖GᵀG‖² over towers, stages and pairs of subspaces."""
        if not step.run.value(self, "strength") or self.config.subspaces == 1:
            return {}
        total = [overlap(weight, self.config.subspaces) for weight in self._kept_apart(step)]
        return {"orthogonality": step.run.value(self, "strength") * torch.stack(total).sum()} if total else {}

    def _kept_apart(self, step: Step) -> Iterator[Tensor]:
        """By tower and stage the weights of its first layer, at this view."""
        names = {id(parameter): name for name, parameter in step.run.model.named_parameters()}
        heads = next(module for module in step.run.model.modules() if isinstance(module, _SluiceHeads))
        for tower in heads.towers.values():
            for stage in tower.children():
                weight = next((p for p in stage.parameters() if p.ndim > 1), None)
                if weight is not None and weight.shape[0] % self.config.subspaces == 0:
                    yield step.parameters[names[id(weight)]]


class _SluiceHeads(TowerHeads):
    """Towers, for each pair of tasks the α of each stage, and for each task β."""

    def __init__(
        self, heads: Heads, stages: Sequence[nn.Module], shapes: Sequence[tuple[int, ...]], seed: int | None, config: Sluice.Config
    ) -> None:
        super().__init__(heads, stages, shapes)
        self._seed, self._config = seed, config
        self.skips = nn.ModuleDict()
        self.complete()

    def seed_of(self, task: str) -> int | None:
        """The seed from which the tower of ``task`` is drawn; ``None`` leaves it as it was given."""
        return None if self._seed is None else subseed(self._seed, "tower", task)

    def add(self, task: str, key: str, like: Tensor) -> None:
        """A tower for ``task``, and its β."""
        super().add(task, key, like)
        if self._config.skips:
            count = len(self.shapes) - 1
            start = torch.full((count,), (1 - self._config.last) / max(count - 1, 1))
            start[-1] = self._config.last if count > 1 else 1.0
            self.skips[key] = Weights([start.to(like)])

    def pair(self, to: str, source: str, old: list[str], new: list[str]) -> Weights:
        """α of a pair, stage by stage."""
        size = self._config.subspaces
        others = (len(old) + len(new)) * size - 1
        own, rest = (self._config.own, (1 - self._config.own) / others) if others else (1.0, 0.0)
        start = torch.full((size, size), 0.0 if to in old else rest)
        if to == source:
            start.fill_diagonal_(own)
        like = next(self.by_task.parameters())
        return Weights([start.to(like) for _ in self.shapes[1:]])

    def mixed(self, outputs: list[Tensor], weights: list[Tensor]) -> Tensor:
        """What a tower goes on with."""
        return sluice(outputs, weights)

    def encode(self, x: Tensor, encoder: nn.Module) -> Tensor:
        """What all towers have behind their last stage, and, for β, what they go on with behind each of the others."""
        levels = self.levels(x)
        read = [levels[-1], *(levels[:-1] if self._config.skips else [])]
        return torch.cat([mine.flatten(1) for level in read for mine in level], 1)

    def forward(self, features: Tensor, task: str) -> Tensor:
        """The outputs for ``task``, ``(rows, size)``."""
        last = self.met(features, task)
        if not self._config.skips:
            return super(TowerHeads, self).forward(last, task)
        beta = self.skips[self.key_of(task)][0]  # type: ignore[index]
        place, count = list(self.keys).index(task), len(self.keys)
        parts = features.split(self.features, 1)[count + place :: count]  # type: ignore[no-untyped-call]
        read = torch.stack([*parts, last], 1)
        return super(TowerHeads, self).forward((beta.view(-1, 1) * read).sum(1), task)
