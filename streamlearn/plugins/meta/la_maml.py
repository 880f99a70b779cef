"""La-MAML: look ahead over the incoming rows at learned rates, and let the same rates protect what the memory knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.objective import Objective, minimised
from streamlearn.core.optimization import Trainable
from streamlearn.core.plugin import Passes, Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from streamlearn.core.rates import grow_rates, new_rates, rates_in
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Experience

__all__ = ["LaMAML", "looked_ahead"]


def looked_ahead(parameters: Mapping[str, Tensor], rates: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """θ - max(0, α) ⊙ g by name; a parameter without a gradient stays.

    Args:
        parameters: θ.
        rates: α, shaped like θ, for every name in ``gradients``.
        gradients: g.

    Example:
        >>> looked_ahead({"w": torch.ones(2)}, {"w": torch.tensor([0.5, -0.5])}, {"w": torch.ones(2)})["w"].tolist()
        [0.5, 1.0]
    """
    return {name: value - rates[name].relu() * gradients[name] if name in gradients else value for name, value in parameters.items()}


class LaMAML(Plugin):
    r"""Look-ahead MAML.

    .. math::
        θ_{k+1} = θ_k - \max(0, α) \odot ∇(s + P)(θ_k; \text{chunk}_k), \qquad
        (L, P) = \frac1K \sum_{k=1}^K (L, P)(θ_k; \text{all rows}), \\
        α ← α - η \, g_α, \qquad θ ← θ - \max(0, α) \odot g_θ

    A chunk is a share of the incoming rows, all rows are these and those of a memory. A rate falls, and with it what the step moves,
    where the gradients of incoming and remembered rows disagree (Gupta et al. 2020, section 4 and algorithm 1). Beside `Replay` with
    ``fill="step"`` it is the published method; every plugin's losses and terms act in the look-ahead, EWC and distillation too.

    With ``order=1`` the inner gradients g_j are constants, and the gradients are closed: g_θ = mean_k ∇M_k(θ_k) and
    g_α = -mean_k ∇M_k(θ_k) ⊙ Σ_{j<k} g_j 1[α > 0], where M_k = (s + P)(θ_k). The rates learn by plain SGD of rate η, whatever moves the
    model. A parameter that grows keeps its rates and gets new ones for what is new.

    With ``asynchronous=True`` the optimiser is given max(0, α) ⊙ g_θ with the α of *after* its step, in one update. The
    optimiser's learning rate multiplies that: take ``SGD(lr=1.0)`` for the equation above. Parameters of other plugins' modules have no
    rate: they stay during the look-ahead and get their plain gradient. With ``asynchronous=False`` θ takes the optimiser's ordinary
    step (the paper's Sync; with ``rate_learning=0`` its C-MAML).

    Args:
        rate: the α that every parameter starts at, above 0.
        rate_learning: η, at least 0.
        chunks: K, at least 0; the paper makes one of each row. There are at most as many as rows; with BatchNorm, half as many. With 0
            nothing is looked ahead and no rate learns: the plain step on all rows. That is experience replay beside `Replay`, at the
            optimiser's rate with ``asynchronous=False``, else at ``rate`` times it.
        order: 2 differentiates through the look-ahead; 1 is what the paper evaluates.
        asynchronous: whether the learned rates move the model, or the optimiser's.

    Raises:
        ConfigurationError: ``asynchronous`` with an optimiser other than SGD: one that divides by the size of gradients undoes the rates.

    Cost: 2 K evaluations of the objective in place of one, K of them on a K-th of the incoming rows. Memory: 1 x the parameters, and
    the graphs of K evaluations within a step.

    Reference: Gupta, Yadav & Paull, La-MAML: Look-ahead meta learning for continual learning, NeurIPS 2020. Deviations: the
    meta-objective is the mean along the trajectory, as in the authors' code, where algorithm 1 writes the last point; rates below 0 stop
    the look-ahead as well as the update; gradients are not clipped (add `Clipping`). The weighting of the rows is that at θ.
    BatchNorm's running statistics move once a step, at θ_1.

    Example:
        >>> from streamlearn.plugins import LaMAML
        >>> LaMAML(rate=0.1, rate_learning=0.3, chunks=10)
        LaMAML(chunks=10, rate=0.1, rate_learning=0.3)
    """

    info = PluginInfo(
        name="la_maml",
        family="meta",
        summary="Learns a rate for every parameter so that steps on new rows do not undo what the memory knows.",
        reference="Gupta, Yadav & Paull 2020, NeurIPS, section 4 and algorithm 1",
        provides=frozenset({"inner-loop!", "look-ahead"}),
        passes=lambda plugin: Passes(look_ahead=max(0, 2 * plugin.config.chunks - 1)),
        memory="1 x parameters",
    )

    class Config(PluginConfig):
        """Options of `LaMAML`."""

        rate: Annotated[float, Tunable(1e-3, 1.0, log=True)] = Field(0.1, gt=0)
        rate_learning: float = Field(0.1, ge=0)
        chunks: int = Field(5, ge=0)
        order: Literal[1, 2] = 1
        asynchronous: bool = True

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Refuse an optimiser that undoes the rates."""
        main = run.optimization.main
        if self.config.asynchronous and main is not None and not isinstance(main, torch.optim.SGD):
            raise ConfigurationError(
                f"plugin {self.name}: asynchronous=True scales gradients by the learned rates, which {type(main).__name__} divides out "
                "again: take torch.optim.SGD, or asynchronous=False"
            )

    # ------------------------------------------------------------------ the rates

    @hookimpl
    def collect_modules(self, run: Run) -> dict[str, Trainable]:
        """Rates for every parameter of the model."""
        initial, learning = run.value(self, "rate"), self.config.rate_learning
        return new_rates(self.name, run, initial, lambda rate: Trainable(rate, optimizer=lambda own: torch.optim.SGD(own, lr=learning)))

    @hookimpl
    def before_experience(self, experience: Experience, run: Run) -> None:
        """Rates of parameters that have grown follow them."""
        grow_rates(self.name, run, run.value(self, "rate"))

    # ------------------------------------------------------------------ the step

    @hookimpl
    def around_objective(self, objective: Callable[[Step], Objective], step: Step) -> Objective:
        """The mean over the look-ahead of the objective on all rows."""
        run = step.run
        role = "train" if run.phase is None else run.phase.role
        if role not in step.batch.roles or self.config.chunks == 0:
            return objective(step)
        rates = rates_in(step.parameters, self.name, run)
        fast = {name: step.parameters[name] for name in rates if step.parameters[name].requires_grad}
        seen = []
        incoming = step.batch.select(role)
        most = len(incoming) // 2 if run.has_buffers else len(incoming)  # BatchNorm has no statistics of a single row
        for chunk in incoming.split(max(1, min(self.config.chunks, most))):
            there = step.at(fast, batch=chunk)
            fast = looked_ahead(fast, rates, self._gradients(minimised(objective(there), there), fast))
            seen.append(objective(step.at(fast)))
        return Objective.merge(seen)

    def _gradients(self, total: Tensor | None, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if total is None or not total.requires_grad or not parameters:
            return {}
        found = torch.autograd.grad(total, list(parameters.values()), create_graph=self.config.order == 2, allow_unused=True)
        return {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}

    @hookimpl
    def around_update(self, update: Callable[[Mapping[str, Tensor]], None], gradients: Mapping[str, Tensor], step: Step) -> None:
        """θ moves at the learned rates, which have learned from this step already."""
        if not self.config.asynchronous:
            update(gradients)
            return
        run, learning = step.run, self.config.rate_learning
        with torch.no_grad():
            after = {name: p - learning * gradients[name] if name in gradients else p for name, p in run.parameters().items()}
            rates = rates_in(after, self.name, run)
            update({name: rates[name].relu() * gradient if name in rates else gradient for name, gradient in gradients.items()})
