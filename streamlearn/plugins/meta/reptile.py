"""Reptile: move the weights towards where a few gradient steps on each task lead."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from streamlearn.core.gradients import named_gradients
from streamlearn.core.inner_loop.outcome import outcome, refuse_combiners
from streamlearn.core.objective import Objective, minimised
from streamlearn.core.plugin import SUPERVISED, Passes, Plugin, PluginConfig, PluginInfo, Tunable, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step

__all__ = ["Reptile"]


class Reptile(Plugin):
    r"""Reptile.

    .. math:: φ_e = U^k(θ; e), \qquad P(θ) = \frac1E \sum_{e=1}^E \frac12 \lVert θ - φ_e \rVert^2, \qquad ∇P = θ - \overline{φ}

    U^k are ``steps`` steps of gradient descent with rate α from θ, on the whole objective (Nichol et al. 2018, algorithm 2). The
    distance to where they lead is all that the outer optimiser sees: with SGD its learning rate is the paper's ε, and 1 moves the
    weights all the way; Adam takes θ - φ for the gradient, as in the paper's section 2. An episode is a domain of a batch with
    ``support`` rows, else the batch is one episode; there is no need to split its rows, so inner steps take all of them.

    Losses, terms and the weighting act in the inner steps, on all trainable parameters, those of helper modules among them. Outside
    they are numbers for the record (row losses only while no plugin weighs them), and the distance is a *term*: no weighting scales it.
    A combiner would find no row to combine and is refused; projections and clipping act on θ - φ.

    Args:
        steps: k, at least 1. With one step the direction is that of the ordinary gradient.
        rate: α, above 0.

    Raises:
        ConfigurationError: beside a plugin that combines the gradients of rows.

    Cost: ``steps`` evaluations of the objective in place of one; no graph through them. Memory: 2 x the parameters, within a step.

    Reference: Nichol, Achiam & Schulman, On first-order meta-learning algorithms, arXiv 1803.02999. Deviations: the inner optimiser is
    plain gradient descent on all rows of the episode (the paper draws minibatches and uses Adam). BatchNorm's running statistics move
    once a step, by the first pass (with several episodes by one pass more, over all rows). An evaluation measures θ itself.

    Example:
        >>> from streamlearn.plugins import Reptile
        >>> Reptile(steps=10, rate=0.02)
        Reptile(rate=0.02, steps=10)
    """

    info = PluginInfo(
        name="reptile",
        family="meta",
        summary="Moves the weights towards where a few gradient steps on each task lead; no second derivatives.",
        reference="Nichol, Achiam & Schulman 2018, arXiv 1803.02999, algorithms 1 and 2",
        provides=frozenset({"inner-loop!", "look-ahead"}),
        passes=lambda plugin: Passes(look_ahead=plugin.config.steps - 1),
        memory="2 x parameters within a step",
        streams=SUPERVISED | {"episodes"},
    )

    class Config(PluginConfig):
        """Options of `Reptile`."""

        steps: int = Field(5, ge=1)
        rate: Annotated[float, Tunable(1e-3, 1.0, log=True)] = Field(0.02, gt=0)

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Refuse a combiner, which would be given no row."""
        refuse_combiners(self.name, run)

    @hookimpl
    def around_objective(self, objective: Callable[[Step], Objective], step: Step) -> Objective:
        """Half the squared distance to the adapted weights, the mean over episodes."""
        views = [step]
        if "support" in step.batch.roles and len(step.batch.domains) > 1:
            views = [step.at(batch=episode) for episode in step.batch.by_domain().values()]
            if step.run.has_buffers:
                with torch.no_grad():
                    _ = step.at().outputs.features  # other rows move no statistics: all rows together do, once
        return Objective.merge([self._distance(objective, view) for view in views])

    def _distance(self, objective: Callable[[Step], Objective], view: Step) -> Objective:
        """The distance to φ as a term, beside what was measured at θ."""
        run, rate = view.run, view.run.value(self, "rate")
        ends = {name: view.parameters[name].detach() for name in run.optimization.trainable_names()}
        first: Objective | None = None
        moved: set[str] = set()
        for _ in range(self.config.steps):
            there = view.at({name: value.requires_grad_() for name, value in ends.items()})
            found = objective(there)
            first = found if first is None else first
            total = minimised(found, there)
            gradients = {} if total is None else named_gradients(total, ends)
            ends = {name: (value - rate * gradients[name] if name in gradients else value).detach() for name, value in ends.items()}
            moved |= gradients.keys()
        assert first is not None
        return outcome(self.name, view, first, {name: ends[name] for name in ends if name in moved})
