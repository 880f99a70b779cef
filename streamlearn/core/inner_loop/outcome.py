"""A step towards where inner steps have led: the distance to there as a term, whose gradient is θ - φ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from streamlearn.core.objective import Objective
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step

__all__ = ["half_squared_distance", "outcome", "refuse_combiners"]


def half_squared_distance(parameters: Mapping[str, Tensor], ends: Mapping[str, Tensor]) -> Tensor:
    """½ Σ_n ‖θ_n - φ_n‖² over the names of φ, a scalar whose gradient is θ - φ.

    Args:
        parameters: θ by name.
        ends: φ by name, constants; at least one.

    Example:
        >>> import torch
        >>> half_squared_distance({"w": torch.ones(2), "b": torch.ones(1)}, {"w": torch.tensor([1.0, 3.0])}).item()
        2.0
    """
    parts = [0.5 * (parameters[name] - end).square().sum() for name, end in ends.items()]
    return sum(parts[1:], parts[0])


def outcome(name: str, view: Step, measured: Objective, ends: Mapping[str, Tensor]) -> Objective:
    """The distance to ``ends`` as term ``name``, beside what was measured, which is a number for the record.

    Args:
        name: of the term.
        view: where θ is.
        measured: the objective there.
        ends: φ by name, of the parameters that have moved; without any there is no term.
    """
    losses = {row: loss.detach() for row, loss in measured.losses.items()}
    if view.run.hooks.provide_weighting is not None:
        losses = {}  # learned weights have moved in the inner steps; they would learn a second time from losses out here
    terms = {key: term.detach() for key, term in measured.terms.items()}
    if ends:
        terms[name] = half_squared_distance(view.parameters, ends)
    return Objective(losses, terms, measured.shares)


def refuse_combiners(plugin: str, run: Run) -> None:
    """A combiner would be given no row.

    Raises:
        ConfigurationError: there is one.
    """
    combiners = run.implementers("provide_gradient_combination")
    if combiners:
        raise ConfigurationError(
            f"plugin {plugin} hands a step the distance to adapted weights, of which {', '.join(combiners)} has no rows to combine: "
            "remove one of the two"
        )
