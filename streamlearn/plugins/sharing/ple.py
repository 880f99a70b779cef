"""Progressive layered extraction (PLE): shared experts and experts of each task's own, mixed by gates level by level."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.randomness import subseed
from streamlearn.errors import ConfigurationError
from streamlearn.models import Heads, Model
from streamlearn.models.parts import PartedHeads, PartedModel, alone, copied, require_heads
from streamlearn.models.stages import staged

if TYPE_CHECKING:
    from streamlearn.core.run import Run

__all__ = ["PLE", "select"]

Variant = Literal["ple", "cgc"]


def select(outputs: Sequence[Tensor], scores: Tensor) -> Tensor:
    """Σ_e softmax(scores)_e · outputs_e, row by row.

    Args:
        outputs: of n experts, each ``(rows, ...)``.
        scores: what a gate says of them, ``(rows, n)``.

    Example:
        >>> select([torch.tensor([[2.0]]), torch.tensor([[4.0]])], torch.zeros(1, 2))
        tensor([[3.]])
    """
    stacked = torch.stack(list(outputs), 1)
    weights = scores.softmax(1)
    return (weights.view(*weights.shape, *[1] * (stacked.ndim - 2)) * stacked).sum(1)


class PLE(Plugin):
    r"""Progressive layered extraction (PLE), and its one-level case, customized gate control (CGC).

    At every level there are experts that all tasks share and experts of each task's own. A gate of task k mixes the shared experts and its
    own, never another task's; on all levels but the last a shared gate mixes all experts,

    .. math:: x_k^l = \mathrm{softmax}(W_k^l x_k^{l-1}) \cdot \bigl[ E_s^l(x_s^{l-1}),\, E_k^l(x_k^{l-1}) \bigr], \qquad
        x_s^l = \mathrm{softmax}(W_s^l x_s^{l-1}) \cdot \bigl[ E_s^l(x_s^{l-1}),\, E_1^l(x_1^{l-1}), \dots, E_K^l(x_K^{l-1}) \bigr]

    with :math:`x_k^0 = x_s^0 = x`, the input, and the head of task k on :math:`x_k^L`. Gates are linear maps without bias of what experts
    read, flattened. There are two published settings:

    * ``variant="ple"``: a level for each stage of the model's encoder, any ``nn.Sequential`` of linear or convolutional layers; an expert
      of a level has the structure of that stage. With an encoder of one stage this is CGC;
    * ``variant="cgc"``: one level, whose experts have the structure of the whole encoder.

    The model must have heads by task (all of `streamlearn.models`, or `MultiHead`). CGC without experts of a task's own is MMoE, and with
    one shared expert then the plain model.

    Combiners of task gradients act on what serves several tasks: the shared experts (``encoder.*``), the shared gates, and below the last
    level the experts of all tasks, which the shared gates read, with the gates below those. With CGC that is the shared experts alone: what
    belongs to a task without rows in a batch is not touched by its update then. A task that arrives later gets its experts and gates.
    With several levels the shared gates mix its experts in at once, which moves what the other tasks read.

    ``"features"`` are the outputs of the shared experts of the last level, followed by what the last experts and gates of tasks are made
    from. A method that aligns or compares representations should take the shared part alone, with CGC as in ``DANN(tap="encoder.0")``. With
    several levels the features grow with the tasks: `FeatureDistillation` needs taps, or a stream whose tasks are known from the start.

    Args:
        variant: ``"ple"`` or ``"cgc"``.
        shared: shared experts at each level, at least 1.
        own: experts of each task's own at each level, at least 0, and not 0 for PLE.
        stages: for PLE, paths of the modules of the encoder after which a level ends, besides the last; ``None`` ends one before each
            linear or convolutional layer.
        redraw: draw the weights of all experts but the first anew, from the run's seed, those of a task from its name too. ``False``
            starts each at the given encoder's weights, for encoders that were trained before; only the gates tell experts apart then.

    Raises:
        ConfigurationError: the model has no heads by task, another plugin or a subclass has changed how it makes its outputs, its encoder
            does not give one row of numbers for each input or has no such stages, or a layer of it cannot be drawn anew.

    Cost: one pass through the model's encoder for each shared expert, and for each expert of the tasks of the stream's (CGC: of the tasks
    that are asked, on their rows). Memory: (shared + tasks x own) x the encoder, and the gates.

    Reference: Tang, Liu, Zhao & Gong, Progressive layered extraction (PLE): a novel multi-task learning (MTL) model for personalized
    recommendations, RecSys 2020, equations 1 to 7. Deviations: the initial weights of gates, which the paper does not give, are torch's
    for a linear layer. In CGC gradients with respect to the input are cut where experts and gates of tasks read it, so that a combiner
    at the features meets the shared experts alone.

    Example:
        >>> from streamlearn.plugins import PLE
        >>> PLE(variant="cgc", shared=2)
        PLE(shared=2, variant='cgc')
    """

    info = PluginInfo(
        name="ple",
        family="sharing",
        summary="Experts that tasks share and experts of their own, mixed by gates level by level.",
        reference="Tang et al. 2020, RecSys, equations 1-7",
        provides=frozenset({"sharing!"}),
        conflicts=frozenset({"packnet"}),  # it owns weights of the encoder, and later tasks would move the experts of earlier ones
        after=frozenset({"multi_head"}),
        before=frozenset({"bic"}),
        memory="(shared + tasks x own experts) x the encoder",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `PLE`."""

        variant: Variant = "ple"
        shared: int = Field(1, ge=1)
        own: int = Field(1, ge=0)
        stages: tuple[str, ...] | None = None
        redraw: bool = True

    @hookimpl
    def transform_model(self, model: Model, run: Run) -> Model:
        """Put experts in place of the encoder."""
        if self.config.variant == "cgc" and self.config.stages is not None:
            raise ConfigurationError(
                f"{self.name}: variant='cgc' has one level, but stages is {self.config.stages!r}: leave stages out, or take variant='ple'"
            )
        if self.config.variant == "ple" and not self.config.own:
            raise ConfigurationError(f"{self.name}: own is 0, which variant='cgc' alone can do: give tasks at least 1 expert of their own")
        heads = require_heads(self.name, model)
        ends = () if self.config.variant == "cgc" else self.config.stages
        stages, shapes = staged(self.name, model.encoder, heads.features, run.stream.input_shape, ends)
        seed = run.seed if self.config.redraw else None
        extracting = _ExtractingHeads(heads, stages, shapes, self.config.shared, self.config.own, seed)  # copies what it needs first
        levels = [_Level([stage]) for stage in stages]
        for number, level in enumerate(levels):
            level.extend(extracting.draw(number, "shared", expert) for expert in range(1, self.config.shared))
        return PartedModel(nn.ModuleList(levels), extracting)


class _Level(nn.ModuleList):
    """The shared experts of a level: ``(rows, experts, ...)``."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([expert(x) for expert in self], 1)


class _ExtractingHeads(PartedHeads):
    """Experts and gates of each task, the shared gates, and a head for each task."""

    def __init__(
        self, heads: Heads, stages: Sequence[nn.Module], shapes: Sequence[tuple[int, ...]], shared: int, own: int, seed: int | None
    ) -> None:
        super().__init__(heads)
        self.shapes, self._shared, self._own, self._seed = list(shapes), shared, own, seed
        self._given = (copied(nn.ModuleList(stages)),)  # in a tuple: it is no part of the model
        self.experts, self.gates, self.shared_gates = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        like = next(self.by_task.parameters(), torch.zeros(()))
        self.shared_gates["shared"] = self._gates(self.levels - 1, shared, like)
        self.complete()

    @property
    def levels(self) -> int:
        """L."""
        return len(self.shapes) - 1

    def draw(self, level: int, whose: str, number: int) -> nn.Module:
        """An expert like the stage that was given."""
        return copied(self._given[0][level], None if self._seed is None else subseed(self._seed, "expert", whose, level, number))  # type: ignore[index]

    def _gates(self, levels: int, experts: int, like: Tensor) -> nn.ModuleList:
        """One gate for each of the first ``levels`` levels, over some experts."""
        return nn.ModuleList(nn.Linear(math.prod(shape), experts, bias=False).to(like) for shape in self.shapes[:levels])

    def add(self, task: str, key: str, like: Tensor) -> None:
        """Experts and gates for ``task``, and the part of the shared gates that concerns its experts."""
        self.gates[key] = self._gates(self.levels, self._shared + self._own, like)
        if self._own:
            drawn = [[self.draw(level, f"task {task}", number) for number in range(self._own)] for level in range(self.levels)]
            self.experts[key] = nn.ModuleList(nn.ModuleList(level) for level in drawn).to(like.device)
            self.shared_gates[f"task {key}"] = self._gates(self.levels - 1, self._own, like)

    def encode(self, x: Tensor, encoder: nn.Module) -> Tensor:
        """The outputs of the shared experts of the last level, and what the last gates and experts of tasks are made from, flat."""
        common, own = x, dict.fromkeys(self.keys.values(), x)
        carried: list[Tensor] = [x]
        for level in range(self.levels - 1):
            shared = list(encoder[level](common).unbind(1))  # type: ignore[index]
            each = {key: [expert(mine) for expert in self.experts[key][level]] for key, mine in own.items()}  # type: ignore[index]
            gates = [gates[level] for gates in self.shared_gates.values()]  # type: ignore[index]
            scores = torch.cat([gate(common.flatten(1)) for gate in gates], 1)
            common = select([*shared, *[output for outputs in each.values() for output in outputs]], scores)
            if level == self.levels - 2:  # the gates here are read by their tasks alone: see _own_part
                carried = [*shared, *[part for key in own for part in (own[key], *each[key])]]
            else:
                own = {key: self._gated(key, level, [*shared, *each[key]], mine) for key, mine in own.items()}
        last = encoder[self.levels - 1](common).flatten(1)  # type: ignore[index]
        return torch.cat([last, *[part.flatten(1).to(last.dtype) for part in carried]], 1)

    def _gated(self, key: str, level: int, outputs: Sequence[Tensor], read: Tensor) -> Tensor:
        return select(outputs, self.gates[key][level](read.flatten(1)))  # type: ignore[index]

    def _own_part(self, carried: Tensor, task: str) -> Tensor:
        """What the last gate and experts of ``task`` read: of several levels, mixed by its gate of the last but one.

        That gate runs here, where the task is known: in the pass of all, the gate of an absent task would get a gradient of 0, which is
        not none.
        """
        level = self.levels - 2
        if level < 0:
            return carried.detach()  # the input is no parameter's doing: cut off, it adds nothing to gradients taken at the features
        before, behind = math.prod(self.shapes[level]), math.prod(self.shapes[level + 1])
        start = self._shared * behind + list(self.keys).index(task) * (before + self._own * behind)
        sizes = [before, *[behind] * self._own]
        shared = carried[:, : self._shared * behind].split(behind, 1)  # type: ignore[no-untyped-call]
        read, *mine = carried[:, start : start + sum(sizes)].split(sizes, 1)  # type: ignore[no-untyped-call]
        return self._gated(self.keys[task], level, [*shared, *mine], read)

    def forward(self, features: Tensor, task: str) -> Tensor:
        """The outputs for ``task``, ``(rows, size)``."""
        key, level = self.key_of(task), self.levels - 1
        width = self._shared * self.features
        read = self._own_part(features[:, width:], task)
        shared = features[:, :width].split(self.features, 1)  # type: ignore[no-untyped-call]
        experts = self.experts[key][level] if self._own else ()  # type: ignore[index]
        mine = [alone(expert, read.reshape(-1, *self.shapes[level])) for expert in experts]
        return super().forward(self._gated(key, level, [*shared, *mine], read), task)

    def shared(self) -> Iterator[nn.Parameter]:
        """The parameters here that serve more than one task: what the shared gates read, and what is read to make that."""
        yield from self.shared_gates.parameters()
        for key in self.experts:
            for level in range(self.levels - 1):
                yield from self.experts[key][level].parameters()  # type: ignore[index]
            for level in range(self.levels - 2):
                yield from self.gates[key][level].parameters()  # type: ignore[index]
