"""Implicit MAML: the meta-gradient of where an inner problem is solved, not of the path that led there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from torch import Tensor

from streamlearn.core.inner_loop import EpisodeLearner, EpisodeOptions, Estimator, Implicit, Rates
from streamlearn.core.plugin import SUPERVISED, Passes, PluginInfo, Tunable

if TYPE_CHECKING:
    from streamlearn.core.run import Run

__all__ = ["IMAML"]


class IMAML(EpisodeLearner):
    r"""Implicit MAML.

    .. math::
        φ_e = \arg\min_φ \; (s + P)(φ; support_e) + \frac{λ}{2} \lVert φ - θ \rVert^2, \qquad
        \frac{d}{dθ} (s + P)(φ_e; query_e) = \Bigl(1 + \frac1λ ∇^2 (s + P)(φ_e; support_e)\Bigr)^{-1} ∇(s + P)(φ_e; query_e)

    (Rajeswaran et al. 2019, eq. 4 and 6). The minimum is approached by ``steps`` steps; the equations are solved by products with the
    Hessian, which need the graph of one step, however many led to φ. The result is exact at the minimum alone: take enough steps, or
    a λ that keeps it near. Parameters that do not move in inner steps get the implicit gradient as well.

    Everything else is as in `MAML`: both levels take the whole objective, episodes are domains, an evaluation adapts to the support rows.

    Args:
        steps: inner steps, at least 0; many more than MAML's.
        rate: of the inner steps, above 0.
        strength: λ, above 0; the paper takes 2 for Omniglot and 0.5 for Mini-ImageNet.
        solver: ``"cg"``, conjugate gradients, or ``"neumann"``, the series Σ_j (1 - r (1 + H/λ))^j r.
        solver_steps: products with the Hessian, at least 1; the paper takes 5.
        solver_rate: r of the series, above 0 and below 2 / (1 + ‖H‖/λ).
        rule: how a gradient becomes an inner step, as for `MAML`.
        plastic: patterns of the names of the parameters that move in inner steps.
        evaluation_steps: inner steps in an evaluation, at least 0; default ``steps``.
        support: the role of the rows that inner steps learn from.
        query: the role of the rows of the outer objective; ``"*"`` takes all rows of the episode.

    Raises:
        ConfigurationError: ``plastic`` matches no parameter.
        TrainingError: an episode has support but no query rows or the reverse, or the batch holds rows of yet another role.

    Episodes are gone through one by one.

    Cost: ``steps`` evaluations of the objective on the support rows more, and ``solver_steps`` products with the Hessian, each about as
    dear as two backward passes. Memory: the graph of one inner step.

    Reference: Rajeswaran, Finn, Kakade & Levine, Meta-learning with implicit gradients, NeurIPS 2019, eq. 4 and 6, algorithms 1 and 2.
    Deviations: the Neumann series is that of Lorraine et al. 2020.

    Example:
        >>> from streamlearn.plugins import IMAML
        >>> IMAML(steps=16, rate=0.1, strength=2.0)
        IMAML(rate=0.1, steps=16, strength=2.0)
    """

    info = PluginInfo(
        name="imaml",
        family="meta",
        summary="Trains weights near which the problem of a new task has its solution, by the implicit gradient of that.",
        reference="Rajeswaran, Finn, Kakade & Levine 2019, NeurIPS, eq. 4 and 6",
        provides=frozenset({"inner-loop!", "look-ahead"}),
        passes=lambda plugin: Passes(look_ahead=plugin.config.steps + bool(plugin.config.steps)),  # and once more to solve
        memory="the graph of one inner step",
        strength="steps",
        streams=SUPERVISED | {"episodes"},
    )

    class Config(EpisodeOptions):
        """Options of `IMAML`."""

        steps: int = Field(10, ge=0)
        rate: Annotated[float, Tunable(1e-3, 1.0, log=True)] = Field(0.01, gt=0)
        strength: Annotated[float, Tunable(0.01, 100.0, log=True)] = Field(2.0, gt=0)
        solver: Literal["cg", "neumann"] = "cg"
        solver_steps: int = Field(5, ge=1)
        solver_rate: float = Field(0.1, gt=0)

    config: Config

    def rates(self, run: Run, parameters: Mapping[str, Tensor]) -> Rates:
        """α."""
        return run.value(self, "rate")

    def estimator(self) -> Estimator:
        """That of the minimum."""
        return "implicit"

    def implicit(self, run: Run) -> Implicit:
        """λ and the solver."""
        config = self.config
        return Implicit(run.value(self, "strength"), config.solver, steps=config.solver_steps, rate=config.solver_rate)
