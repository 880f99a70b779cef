"""Multi-gate mixture of experts (MMoE): several encoders, which every task mixes in its own way."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.randomness import subseed
from streamlearn.models import Heads, Model
from streamlearn.models.parts import PartedHeads, copied, require_heads
from streamlearn.models.stages import staged

if TYPE_CHECKING:
    from streamlearn.core.run import Run

__all__ = ["MMoE", "mix"]


def mix(experts: Tensor, scores: Tensor) -> Tensor:
    """Σ_i softmax(scores)_i · experts_i, row by row: ``(rows, width)``.

    Args:
        experts: outputs of n experts, ``(rows, n, width)``.
        scores: what a gate says of them, ``(rows, n)``.

    Example:
        >>> mix(torch.tensor([[[2.0], [4.0]]]), torch.zeros(1, 2))
        tensor([[3.]])
    """
    return (scores.softmax(1).unsqueeze(2) * experts).sum(1)


class MMoE(Plugin):
    r"""Multi-gate mixture of experts.

    .. math:: y_k = h_k \Bigl( \sum_{i=1}^n g_{ki}(x) f_i(x) \Bigr), \qquad g_k(x) = \mathrm{softmax}(W_k x)

    with f_i the experts, h_k the head of task k and g_k its gate, a linear map of the flattened input x without bias. The experts have the
    structure of the model's encoder; the model must have heads by task (all of `streamlearn.models`, or `MultiHead`).

    Only the experts are shared: combiners of task gradients act on them. Gates and heads belong to their tasks; a task that arrives later
    gets its own, and those of a task without rows in a batch are not touched by its update. With one expert the model is the plain one.

    The features that this model hands to its heads are the outputs of all experts side by side, followed by the input, which the gates
    read. A method that aligns or compares representations should take the experts' part alone, as in ``DANN(tap="encoder")``.

    Args:
        experts: n, at least 1. The paper takes 8 for seven tasks, fewer for two.
        redraw: draw the weights of all experts but the first anew. ``False`` starts each at the given encoder's weights, for encoders
            that were trained before; only the gates tell the experts apart then.

    Raises:
        ConfigurationError: the model has no heads by task, another plugin or a subclass has changed how it makes its outputs, its
            encoder does not give one row of numbers for each input, or a layer of it cannot be drawn anew.

    Cost: one pass through the model's encoder for each expert. Memory: n x the encoder, and n weights per entry of the input and task.

    Reference: Ma et al., Modeling task relationships in multi-task learning with multi-gate mixture-of-experts, KDD 2018,
    section 4.2.
    Deviations: the initial weights of the gates, which the paper does not give, are torch's for a linear layer. Gradients with respect to
    the input pass through the experts and not through the gates, so that a combiner at the features meets the experts alone.

    Example:
        >>> from streamlearn.plugins import MMoE
        >>> MMoE(experts=3)
        MMoE(experts=3)
    """

    info = PluginInfo(
        name="mmoe",
        family="sharing",
        summary="Puts several encoders in place of one, mixed for each task by a gate of its own.",
        reference="Ma et al. 2018, KDD, section 4.2",
        provides=frozenset({"sharing!"}),
        after=frozenset({"multi_head"}),
        before=frozenset({"bic"}),
        memory="experts x the encoder",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `MMoE`."""

        experts: int = Field(4, ge=1)
        redraw: bool = True

    @hookimpl
    def transform_model(self, model: Model, run: Run) -> Model:
        """Put experts in place of the encoder, and a gate beside each head."""
        heads = require_heads(self.name, model)
        staged(self.name, model.encoder, heads.features, run.stream.input_shape)
        seeds = [subseed(run.seed, "experts", number) if self.config.redraw else None for number in range(1, self.config.experts)]
        encoders = [model.encoder, *[copied(model.encoder, seed) for seed in seeds]]
        return _MixedModel(_Experts(encoders), _GatedHeads(heads, len(encoders), math.prod(run.stream.input_shape)))


class _Experts(nn.ModuleList):
    """Encoders side by side: ``(rows, n · width)``."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([expert(x) for expert in self], 1)


class _GatedHeads(PartedHeads):
    """A gate and a head for each task, on the outputs of the experts followed by the flattened input.

    Gates run here and not in the encoder, so that the gate of a task that nobody asks about has no gradient at all.
    """

    def __init__(self, heads: Heads, experts: int, inputs: int) -> None:
        super().__init__(heads)
        self.experts, self.inputs = experts, inputs
        self.gates = nn.ModuleDict()
        self.complete()

    def add(self, task: str, key: str, like: Tensor) -> None:
        """A gate for ``task``."""
        self.gates[key] = nn.Linear(self.inputs, self.experts, bias=False).to(like)

    def forward(self, features: Tensor, task: str) -> Tensor:
        """The outputs for ``task``, ``(rows, size)``."""
        gate, width = self.gates[self.key_of(task)], self.experts * self.features
        experts = features[:, :width].reshape(-1, self.experts, self.features)
        # the input is no parameter's doing: cut off, it adds nothing to gradients that are taken at the features
        return super().forward(mix(experts, gate(features[:, width:].detach())), task)


class _MixedModel(Model):
    """A model whose features carry, after the outputs of the experts, the input that gates read."""

    def encode(self, x: Tensor) -> Tensor:
        experts = super().encode(x)
        return torch.cat([experts, x.flatten(1).to(experts.dtype)], 1)
