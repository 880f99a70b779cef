"""Meta-SGD: learn the weights to start from, and for every weight the rate at which it adapts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.inner_loop import Rates, UnrolledLearner, UnrolledOptions
from streamlearn.core.optimization import Trainable
from streamlearn.core.plugin import SUPERVISED, PluginInfo, Tunable, hookimpl
from streamlearn.core.rates import grow_rates, new_rates, rates_in

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.streams import Experience

__all__ = ["MetaSGD"]


class MetaSGD(UnrolledLearner):
    r"""Meta-SGD.

    .. math:: φ_e = θ - α \odot ∇_θ (s + P)(θ; support_e), \qquad (L, P)(θ, α) = \frac1E \sum_{e=1}^E (L, P)(φ_e; query_e)

    `MAML` whose rates α are learnt along with θ, by the same outer optimiser: one for each entry of a parameter (Li et al. 2017, eq. 3
    and algorithm 1), or one for each parameter. A rate may become negative, as in the paper: direction and size are both learnt.

    The rates know how many steps they are for: more steps in an evaluation than in training move further than they were learnt to, and
    may diverge. That warns.

    Args:
        steps: inner steps, at least 0; the paper takes 1.
        rate: the α that every parameter starts at, above 0. The paper draws them from [0.005, 0.1].
        rate_learning: the outer learning rate of α, above 0; ``None`` for that of the optimiser.
        per: ``"entry"``, a rate for each entry of a parameter, or ``"parameter"``.
        rule: how a gradient becomes an inner step, as for `MAML`.
        order: 2 differentiates through the inner steps; with 1 the rates learn from constant inner gradients.
        recompute: with order 2, go backwards through inner steps that are computed anew one by one, as for `MAML`.
        plastic: patterns of the names of the parameters that move in inner steps.
        evaluation_steps: inner steps in an evaluation, at least 0; default ``steps``.
        support: the role of the rows that inner steps learn from.
        query: the role of the rows of the outer objective; ``"*"`` takes all rows of the episode.
        executor: ``"vmap"`` goes through the episodes of a batch at once, ``"loop"`` one by one, ``"auto"`` as for `MAML`.
        chunk: at once at most so many episodes, at least 1; ``None`` for all.

    Raises:
        ConfigurationError: ``plastic`` matches no parameter.
        TrainingError: an episode has support but no query rows or the reverse, or the batch holds rows of yet another role.

    Cost: as `MAML`. Memory: 1 x the parameters with ``per="entry"``.

    Reference: Li, Zhou, Chen & Li, Meta-SGD: Learning to learn quickly for few-shot learning, arXiv 1707.09835, eq. 3 and algorithm 1;
    a rate for each layer: Antoniou, Edwards & Storkey, How to train your MAML, ICLR 2019, section 4 (there one for each step, too).

    Example:
        >>> from streamlearn.plugins import MetaSGD
        >>> MetaSGD(rate=0.02)
        MetaSGD(rate=0.02)
    """

    info = PluginInfo(
        name="meta_sgd",
        family="meta",
        summary="Learns the weights from which one gradient step leads far, and a rate for each of them.",
        reference="Li, Zhou, Chen & Li 2017, arXiv 1707.09835, eq. 3 and algorithm 1",
        provides=frozenset({"inner-loop!", "look-ahead"}),
        passes=UnrolledOptions.passes,
        memory="1 x parameters, and the graphs of the inner steps",
        strength="steps",
        vmappable=True,
        streams=SUPERVISED | {"episodes"},
    )

    class Config(UnrolledOptions):
        """Options of `MetaSGD`."""

        rate: Annotated[float, Tunable(1e-3, 1.0, log=True)] = Field(0.01, gt=0)
        rate_learning: float | None = Field(None, gt=0)
        per: Literal["entry", "parameter"] = "entry"

    config: Config

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Warn where rates are used for longer than they are learnt for."""
        asked = self.config.evaluation_steps
        if asked is not None and asked > self.config.steps:
            warnings.warn(
                f"plugin {self.name}: evaluation_steps={asked} is more than the {self.config.steps} inner steps for which the rates are "
                "learnt, and may lead anywhere: take as many steps in training",
                stacklevel=2,
            )

    @hookimpl
    def collect_modules(self, run: Run) -> dict[str, Trainable]:
        """Rates for every parameter of the model."""
        return new_rates(self.name, run, self.config.rate, partial(Trainable, learning_rate=self.config.rate_learning), self._like)

    @hookimpl
    def before_experience(self, experience: Experience, run: Run) -> None:
        """Rates of parameters that have grown follow them."""
        grow_rates(self.name, run, self.config.rate, self._like)

    def _like(self, parameter: Tensor) -> Tensor:
        return parameter.detach() if self.config.per == "entry" else parameter.detach().new_zeros(())

    def rates(self, run: Run, parameters: Mapping[str, Tensor]) -> Rates:
        """α by name of a parameter of the model, as ``parameters`` hold it; those of other plugins' modules rest."""
        known = rates_in(parameters, self.name, run)
        # what is evaluated before it is trained has no rate of its own yet
        fresh = {name: self._like(run.model.get_parameter(name)) for name in run.model_parameter_names - known.keys()}
        return known | {name: torch.full_like(value, self.config.rate) for name, value in fresh.items()}
