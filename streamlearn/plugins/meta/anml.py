"""A neuromodulated meta-learning algorithm (ANML): a second network learns which features may act, and so which may learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from streamlearn.core.inner_loop import Rates
from streamlearn.core.inner_loop.trajectory import TrajectoryLearner, TrajectoryOptions
from streamlearn.core.plugin import SUPERVISED, Passes, PluginInfo, Tunable, hookimpl
from streamlearn.core.randomness import subseed
from streamlearn.models import Model
from streamlearn.models.parts import copied, require_heads
from streamlearn.models.stages import staged

if TYPE_CHECKING:
    from streamlearn.core.run import Run

__all__ = ["ANML", "HEAD", "NETWORK", "GatedEncoder"]

NETWORK: tuple[str, ...] = ("encoder.prediction.*", "heads.*")
"""The whole prediction network moves in inner steps, the modulating one rests."""
HEAD: tuple[str, ...] = ("heads.*",)
"""Heads alone move in inner steps."""


class GatedEncoder(nn.Module):
    r"""Features of one network under gates that another one opens and closes: f(x) ⊙ sigmoid(W g(x) + b).

    Args:
        prediction: f, ``(rows, width)``.
        modulation: g, of the same shape.
        width: of both.
    """

    def __init__(self, prediction: nn.Module, modulation: nn.Module, width: int) -> None:
        super().__init__()
        self.prediction, self.modulation, self.gate = prediction, modulation, nn.Linear(width, width)

    def gates(self, x: Tensor) -> Tensor:
        """How far each feature may act, in (0, 1), ``(rows, width)``."""
        return torch.sigmoid(self.gate(self.modulation(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Features behind their gates, ``(rows, width)``."""
        features: Tensor = self.prediction(x)
        return features * self.gates(x)


class ANML(TrajectoryLearner):
    r"""Neuromodulated meta-learning.

    .. math::
        z(x) = f_φ(x) \odot σ(W g_ψ(x) + b), \qquad
        W^p_{j+1} = W^p_j - α \, ∇_{W^p} (s + P)(W^p_j, ψ; \text{rows}_j), \qquad
        (L, P) = \frac1E \sum_{e=1}^E (L, P)(W_k^{p,e}, ψ; \text{all rows of } e)

    The model's encoder is the prediction network f. Beside it stands a modulating network g of the same structure, drawn anew, whose gates
    multiply the features before they reach the heads: what is gated away neither acts nor learns, since the gradient of the head's weights
    passes through the same gate. Inner steps learn a trajectory row after row, as in `OML`, and move W^p, the prediction network, while
    the modulating network rests; the outer step moves all of both, by the exact gradient through all inner steps (Beaulieu et al. 2020,
    section 3 and algorithm 1).

    ``plastic`` names what moves in inner steps: `NETWORK`, the encoder's prediction network and the heads (the paper's meta-training), or
    `HEAD`, the heads alone (what is fine-tuned in its meta-test; `OML` with gates).

    To go on with what has been learnt, take `streamlearn.Prior.of` the model and start a run there with `FromPrior`, beside
    ``ANML(steps=0)``, which puts the gates into the model and makes plain steps, and `FrozenBackbone`: plain SGD on the heads is then the
    paper's meta-test. Roles, evaluation, and other plugins in the objective are as in `OML`.

    Args:
        steps: inner steps on each piece of the trajectory, at least 0. With 0 it is the plain step on all rows, with gates.
        rate: α, above 0.
        rows: how many rows of the trajectory an inner step takes, at least 1; with BatchNorm at least 2 are taken.
        order: 2 differentiates through the inner steps; 1 takes their gradients as constants, as the authors' code does.
        recompute: with order 2, go backwards through inner steps that are computed anew one by one: the same gradient in less memory.
        plastic: patterns of the names of what moves in inner steps.
        rule: ``"sgd"``; others would have to remember something from one piece to the next.
        evaluation_steps: inner steps on each piece in an evaluation, at least 0; default ``steps``.
        support: the role of the rows of the trajectory.
        query: the role of the rows of the objective; ``"*"`` takes all rows of the episode.
        executor: as for `MAML`.
        chunk: at once at most so many episodes, at least 1; ``None`` for all.

    Raises:
        ConfigurationError: the model has no heads by task, another plugin has changed how it makes its outputs, its encoder does not give
            one row of numbers for each input, a layer of it cannot be drawn anew, or ``plastic`` matches no parameter.
        TrainingError: an episode has support but no query rows or the reverse.

    Cost: a second encoder in every pass; ``steps`` passes over the trajectory, in as many small steps as it has pieces; order 2 about
    doubles their price. Memory: 1 x the encoder and width² for the gates, and at order 2 the graphs of all inner steps of a batch.

    Reference: Beaulieu et al., Learning to continually learn, ECAI 2020, section 3 and algorithm 1. Deviations: the modulating network has
    the structure of the encoder (the paper's has fewer channels) and gates the encoder's output; episodes number their classes anew, which
    takes the place of drawing a class's output weights anew before each trajectory; the query rows are of the episode's classes, not of
    all; the authors' code makes each row's batch statistics of that row alone, here BatchNorm is torch's.

    Example:
        >>> from streamlearn.plugins import ANML
        >>> from streamlearn.plugins.meta.anml import HEAD
        >>> ANML(rate=0.05, plastic=HEAD)
        ANML(plastic=('heads.*',), rate=0.05)
    """

    info = PluginInfo(
        name="anml",
        family="meta",
        summary="Trains a network that gates another's features, so that this can learn row after row without forgetting.",
        reference="Beaulieu et al. 2020, ECAI, section 3 and algorithm 1",
        provides=frozenset({"inner-loop!", "look-ahead", "sharing!"}),
        after=frozenset({"multi_head"}),
        passes=lambda plugin: Passes(look_ahead=plugin.config.steps),
        memory="1 x encoder, and the graphs of the inner steps",
        vmappable=True,
        streams=SUPERVISED | {"episodes"},
    )

    class Config(TrajectoryOptions):
        """Options of `ANML`."""

        rate: Annotated[float, Tunable(1e-3, 1.0, log=True)] = Field(0.1, gt=0)
        plastic: tuple[str, ...] = NETWORK

    config: Config

    @hookimpl
    def transform_model(self, model: Model, run: Run) -> Model:
        """Put the encoder behind gates."""
        heads = require_heads(self.name, model)
        staged(self.name, model.encoder, heads.features, run.stream.input_shape)
        modulation = copied(model.encoder, subseed(run.seed, "modulation"))
        gated = GatedEncoder(model.encoder, modulation, heads.features)
        like = next((p for p in model.encoder.parameters() if p.is_floating_point()), None)
        if like is not None:
            gated.gate.to(like)
        return Model(gated, heads)

    def rates(self, run: Run, parameters: Mapping[str, Tensor]) -> Rates:
        """α."""
        return run.value(self, "rate")
