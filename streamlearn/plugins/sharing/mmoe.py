"""Multi-gate mixture of experts (MMoE): several encoders, which every task mixes in its own way."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.randomness import subseed
from streamlearn.errors import ConfigurationError
from streamlearn.models import Heads, Model
from streamlearn.models.initialization import reinitialize

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.streams import Task

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
        if type(model) is not Model or type(model.heads) is not Heads:
            what = "a plain module" if model.is_plain else f"{type(model).__name__} with {type(model.heads).__name__}"
            raise ConfigurationError(
                f"mmoe needs a Model with a linear head for each task, but the model is {what}: take one of streamlearn.models, "
                "or list MultiHead() before it"
            )
        _check_width(model.encoder, model.heads.features, run.stream.input_shape)
        encoders = [model.encoder]
        for number in range(1, self.config.experts):
            encoder = copy.deepcopy(model.encoder)
            if self.config.redraw:
                reinitialize(encoder, subseed(run.seed, "experts", number))
            encoders.append(encoder)
        return _MixedModel(_Experts(encoders), _GatedHeads(model.heads, len(encoders), math.prod(run.stream.input_shape)))


class _Experts(nn.ModuleList):
    """Encoders side by side: ``(rows, n · width)``."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([expert(x) for expert in self], 1)


class _GatedHeads(Heads):
    """A gate and a head for each task, on the outputs of the experts followed by the flattened input.

    Gates run here and not in the encoder, so that the gate of a task that nobody asks about has no gradient at all.
    """

    def __init__(self, heads: Heads, experts: int, inputs: int) -> None:
        super().__init__(heads.features)
        self.experts, self.inputs = experts, inputs
        self.by_task = heads.by_task
        self.gates = nn.ModuleDict()
        self._keys: dict[str, str] = {}
        self._complete()

    def _complete(self) -> None:
        """A gate for each head that has none yet."""
        for task, (key, head) in zip(self.sizes(), self.by_task.items(), strict=True):
            self._keys[task] = key
            if key not in self.gates:
                like = next(head.parameters())
                self.gates[key] = nn.Linear(self.inputs, self.experts, bias=False).to(like)

    def grow(self, task: Task) -> bool:
        """Make room for ``task``; whether anything changed."""
        changed = super().grow(task)
        self._complete()
        return changed

    def forward(self, features: Tensor, task: str) -> Tensor:
        """The outputs for ``task``, ``(rows, size)``."""
        width = self.experts * self.features
        experts = features[:, :width].reshape(-1, self.experts, self.features)
        if task not in self._keys:
            return super().forward(experts[:, 0], task)  # says which tasks there are
        # the input is no parameter's doing: cut off, it adds nothing to gradients that are taken at the features
        scores = self.gates[self._keys[task]](features[:, width:].detach())
        return super().forward(mix(experts, scores), task)


class _MixedModel(Model):
    """A model whose features carry, after the outputs of the experts, the input that gates read."""

    def encode(self, x: Tensor) -> Tensor:
        experts = super().encode(x)
        return torch.cat([experts, x.flatten(1).to(experts.dtype)], 1)


def _check_width(encoder: nn.Module, width: int, input_shape: tuple[int, ...]) -> None:
    """Pass one input of zeros through the encoder: it must give what the heads take."""
    training = {module: module.training for module in encoder.modules()}
    try:
        with torch.no_grad():
            shape: object = tuple(encoder.eval()(torch.zeros(1, *input_shape)).shape)
    except RuntimeError as error:
        shape = str(error).splitlines()[0]
    for module, mode in training.items():
        module.training = mode
    if shape != (1, width):
        raise ConfigurationError(
            f"mmoe: for one input of shape {input_shape} the encoder gives {shape} and not (1, {width}), which the heads take: "
            "end it with nn.Flatten(), or make the heads as wide as it is"
        )
