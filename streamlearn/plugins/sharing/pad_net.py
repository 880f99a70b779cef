"""Prediction and distillation network (PAD-Net): first predictions of all tasks, from whose features the final ones are made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.models import Heads, Model
from streamlearn.models.parts import PartedHeads, PartedModel, require_heads
from streamlearn.models.stages import staged

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.core.supervision import Supervision
    from streamlearn.streams import Task

__all__ = ["PADNet"]

Distillation = Literal["attention", "message"]


class PADNet(Plugin):
    r"""Prediction and distillation network.

    From the encoder's features z every task makes features of its own and a first prediction from them; what these features say to other
    tasks is passed on before the final prediction,

    .. math:: F_k = \mathrm{relu}(U_k z), \qquad \hat y_k = \text{first head}_k(F_k), \qquad
        y_k = \text{head}_k \Bigl( F_k + \sum_{t \ne k} G_k \odot W_{tk} F_t \Bigr)

    and first predictions learn from the same labels: with deep supervision :math:`L_k + λ \hat L_k` is minimised for each task. There are
    two published settings:

    * ``distillation="attention"``: :math:`G_k = σ(V_k F_k)`, attention-guided message passing, the paper's module C;
    * ``distillation="message"``: :math:`G_k = 1`, message passing, its module B.

    The model must have heads by task (all of `streamlearn.models`, or `MultiHead`); the encoder may be anything that gives one row of
    numbers for each input.

    What concerns a task's loss concerns its first prediction too: class masks (ER-ACE), soft targets and row weights that plugins listed
    before it put on a record, its weight in a weighting, and its row for a combiner. The encoder and the U of all tasks are shared
    (``encoder.*``, ``heads.own.*``): combiners of task gradients act on them. First and final heads, V and W belong to the task that reads
    them. A task that arrives later gets its parts; its messages to earlier tasks start at 0, so that their outputs do not change when it
    comes. ``"features"`` are the F of all tasks side by side, and grow with the tasks; ``DANN(tap="encoder")`` takes z, and
    `FeatureDistillation` should.

    Args:
        distillation: ``"attention"`` or ``"message"``.
        supervision: λ, the weight of first predictions, at least 0; 0 leaves their losses out.

    Raises:
        ConfigurationError: the model has no heads by task, another plugin or a subclass has changed how it makes its outputs, or its
            encoder does not give one row of numbers for each input.

    Cost: no additional pass of the encoder; small layers for each pair of tasks. Memory: features² for each pair of tasks.

    Reference: Xu, Ouyang, Wang & Sebe, PAD-Net: multi-tasks guided prediction-and-distillation network for simultaneous depth estimation
    and scene parsing, CVPR 2018, section 3.4, equations 2 to 4. Deviations: there all of these layers are convolutions over maps, and a
    first prediction may be of a task that is not asked in the end. Vandenhende's code takes the attention from the sender, σ(V F_t),
    where the paper's equation 3 takes it from the receiver, as here.

    Example:
        >>> from streamlearn.plugins import PADNet
        >>> PADNet(distillation="message")
        PADNet(distillation='message')
    """

    info = PluginInfo(
        name="pad_net",
        family="sharing",
        summary="Makes first predictions of all tasks, and the final ones from the features of all of these.",
        reference="Xu et al. 2018, CVPR, equations 2-4",
        provides=frozenset({"sharing!"}),
        conflicts=frozenset({"packnet"}),  # it owns weights of the encoder, and later tasks would move the U of earlier ones
        after=frozenset({"multi_head"}),
        before=frozenset({"bic"}),
        memory="features^2 for each pair of tasks",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `PADNet`."""

        distillation: Distillation = "attention"
        supervision: float = Field(1.0, ge=0)

    @hookimpl
    def transform_model(self, model: Model, run: Run) -> Model:
        """Put first predictions and distillation behind the encoder."""
        heads = require_heads(self.name, model)
        staged(self.name, model.encoder, heads.features, run.stream.input_shape)
        return PartedModel(model.encoder, _DistillingHeads(heads, self.config.distillation == "attention"))

    @hookimpl
    def transform_supervision(self, supervision: tuple[Supervision, ...], step: Step) -> tuple[Supervision, ...]:
        """Beside each record of a task's outputs, one of its first prediction on the same rows."""
        if not self.config.supervision:
            return supervision
        first = [self._first(record, step) for record in supervision if step.outputs.serves(record.task)]
        return (*supervision, *[record for record in first if record is not None])

    def _first(self, record: Supervision, step: Step) -> Supervision | None:
        heads = next(module for module in step.run.model.modules() if isinstance(module, _DistillingHeads))
        names = {id(parameter): name for name, parameter in step.run.model.named_parameters()}
        head = heads.first_head(record.task)
        weight, bias = (step.parameters[names[id(parameter)]] for parameter in (head.weight, head.bias))
        features = heads.own_features(step.outputs.features, record.task)
        outputs = linear(features if record.rows is None else features[record.rows], weight, bias)
        if outputs.shape != record.outputs.shape:
            return None  # a record of something else, such as outputs on rows of a plugin's own
        return record.replace(outputs=outputs, scale=record.scale * self.config.supervision)


class _DistillingHeads(PartedHeads):
    """By task: features of its own, first and final head, and what it takes over of each other task."""

    def __init__(self, heads: Heads, attention: bool) -> None:
        super().__init__(heads)
        self.attention = attention
        self.first = Heads(heads.features)
        self.own, self.attentions, self.messages = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self.complete()

    def add(self, task: str, key: str, like: Tensor) -> None:
        """What belongs to ``task`` alone, and its U."""
        self.own[key] = self._square(like)
        if self.attention:
            self.attentions[key] = self._square(like)
        self.first.by_task[key] = nn.Linear(self.features, int(self.by_task[key].out_features)).to(like)  # type: ignore[arg-type]

    def meet(self, old: list[str], new: list[str]) -> None:
        """Messages between all pairs; 0 where an earlier task would read from a new one."""
        like = next(self.by_task.parameters())
        for to in [*old, *new]:
            row = self.messages[to] if to in self.messages else nn.ModuleDict()
            for source in [*old, *new]:
                if source != to and source not in row:  # type: ignore[operator]
                    message = row[source] = self._square(like)  # type: ignore[operator]
                    if to in old:
                        for parameter in message.parameters():
                            nn.init.zeros_(parameter)
            self.messages[to] = row

    def _square(self, like: Tensor) -> nn.Linear:
        return nn.Linear(self.features, self.features).to(like)

    def grow(self, task: Task) -> bool:
        """Make room for ``task``; whether anything changed."""
        changed = super().grow(task)
        return self.first.grow(task) or changed

    def first_head(self, task: str) -> nn.Linear:
        """The layer that makes the first prediction for ``task``."""
        head = self.first.by_task[self.key_of(task)]
        assert isinstance(head, nn.Linear)
        return head

    def own_features(self, features: Tensor, task: str) -> Tensor:
        """F of ``task``."""
        start = list(self.keys).index(task) * self.features
        return features[:, start : start + self.features]

    def encode(self, x: Tensor, encoder: nn.Module) -> Tensor:
        """F of all tasks, side by side."""
        z = encoder(x)
        return torch.cat([self.own[key](z).relu() for key in self.keys.values()], 1)

    def forward(self, features: Tensor, task: str) -> Tensor:
        """The final outputs for ``task``, ``(rows, size)``."""
        key = self.key_of(task)
        mine = self.own_features(features, task)
        messages: dict[str, nn.Module] = dict(self.messages[key].named_children())
        taken = [messages[self.keys[other]](self.own_features(features, other)) for other in self.keys if other != task]
        if not taken:
            return super().forward(mine, task)
        message = torch.stack(taken).sum(0)
        return super().forward(mine + (self.attentions[key](mine).sigmoid() * message if self.attention else message), task)

    def shared(self) -> Iterator[nn.Parameter]:
        """The parameters here that serve more than one task: U."""
        yield from self.own.parameters()
