"""How a gradient becomes a step: pure functions, so that a gradient can flow through them and many episodes can go at once.

torch's optimisers write into their parameters and are of no use where the result must keep its graph. A rule here returns new tensors,
and its state is a value: ``begin`` makes one, ``update`` takes one and returns the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Adam", "GradientDescent", "InnerRule", "Momentum", "Rates", "State", "rate_of"]

Rates = float | Tensor | Mapping[str, Tensor]
"""α: one number, or for each parameter by name a scalar or a tensor of its shape. What has no rate does not move."""
State = dict[str, dict[str, Tensor]]
"""What a rule remembers, by its own names and then by parameter."""


class InnerRule(Protocol):
    """A step of gradient descent of some kind."""

    def begin(self, parameters: Mapping[str, Tensor]) -> State:
        """The state before the first step."""
        ...

    def update(
        self, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor], rates: Rates, state: State, step: int
    ) -> tuple[dict[str, Tensor], State]:
        """The parameters and the state after step number ``step`` (from 0); a parameter without a gradient stays as it is."""
        ...


def rate_of(rates: Rates, name: str) -> float | Tensor | None:
    """The rate of one parameter."""
    return rates.get(name) if isinstance(rates, Mapping) else rates


@dataclass(frozen=True, slots=True)
class GradientDescent:
    """θ - α g.

    Example:
        >>> GradientDescent().update({"w": torch.ones(2)}, {"w": torch.tensor([1.0, 2.0])}, 0.5, {}, 0)[0]["w"].tolist()
        [0.5, 0.0]
    """

    def begin(self, parameters: Mapping[str, Tensor]) -> State:
        """Nothing to remember."""
        return {}

    def update(
        self, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor], rates: Rates, state: State, step: int
    ) -> tuple[dict[str, Tensor], State]:
        """One step."""
        return _moved(parameters, gradients, rates), state


@dataclass(frozen=True, slots=True)
class Momentum:
    """v ← μ v + g; θ - α v, or θ - α (g + μ v) with ``nesterov``: torch's SGD without dampening.

    Args:
        momentum: μ, in [0, 1).
        nesterov: look ahead along v.
    """

    momentum: float = 0.9
    nesterov: bool = False

    def begin(self, parameters: Mapping[str, Tensor]) -> State:
        """Standing still."""
        return {"velocity": {name: torch.zeros_like(value) for name, value in parameters.items()}}

    def update(
        self, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor], rates: Rates, state: State, step: int
    ) -> tuple[dict[str, Tensor], State]:
        """One step."""
        before, mu = state["velocity"], self.momentum
        velocity = {name: mu * before[name] + gradient for name, gradient in gradients.items()}
        directions = {name: gradient + mu * velocity[name] for name, gradient in gradients.items()} if self.nesterov else velocity
        return _moved(parameters, directions, rates), {"velocity": {**before, **velocity}}


@dataclass(frozen=True, slots=True)
class Adam:
    """m ← β₁ m + (1 - β₁) g, v ← β₂ v + (1 - β₂) g²; θ - α m̂ / (√(v̂ + ε²) + ε): torch's Adam, but for ε² below the root.

    It keeps the derivative of the root finite where a gradient has always been zero.

    Args:
        betas: β₁ and β₂, in [0, 1).
        epsilon: ε, above 0.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def begin(self, parameters: Mapping[str, Tensor]) -> State:
        """Both moments zero."""
        return {kind: {name: torch.zeros_like(value) for name, value in parameters.items()} for kind in ("first", "second")}

    def update(
        self, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor], rates: Rates, state: State, step: int
    ) -> tuple[dict[str, Tensor], State]:
        """One step. The moments of a parameter without a gradient rest."""
        (one, two), epsilon = self.betas, self.epsilon
        first = {name: one * state["first"][name] + (1 - one) * gradient for name, gradient in gradients.items()}
        second = {name: two * state["second"][name] + (1 - two) * gradient.square() for name, gradient in gradients.items()}
        near, far = 1 - one ** (step + 1), 1 - two ** (step + 1)
        directions = {name: (first[name] / near) / ((second[name] / far + epsilon**2).sqrt() + epsilon) for name in gradients}
        return _moved(parameters, directions, rates), {"first": {**state["first"], **first}, "second": {**state["second"], **second}}


def _moved(parameters: Mapping[str, Tensor], directions: Mapping[str, Tensor], rates: Rates) -> dict[str, Tensor]:
    found = dict(parameters)
    for name, direction in directions.items():
        rate = rate_of(rates, name)
        if rate is not None:
            found[name] = parameters[name] - rate * direction
    return found
