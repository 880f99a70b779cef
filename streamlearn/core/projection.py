"""What projections of the gradient share: which part of it they act on.

The gradient of a step is ∇s + ∇P, that of the losses and that of the terms. A projection may take it as a whole, or take ∇s alone
and leave ∇P as it is. Then ∇P is needed by itself. It is taken from the graph of the step, before the backward pass uses that up,
so it is the ∇P of this step wherever the objective is evaluated (SAM, MAML) and in however many parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from streamlearn.core.gradients import named_gradients
from streamlearn.core.plugin import Plugin, hookimpl
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.core.objective import Objective
    from streamlearn.core.view import Step

__all__ = ["LossProjection", "Projects", "TermGradients", "project_losses"]

Projects = Literal["total", "losses"]


class TermGradients:
    """∇P of the step in progress by parameter name, gathered part by part; nothing of it outlives the step.

    Args:
        plugin: who asks, for messages.
    """

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin
        self._labelled, self._rows = 0, 1
        self._found: dict[str, Tensor] = {}

    def begin(self, step: Step) -> None:
        """A step starts; its batch is final."""
        self._labelled, self._rows = step.batch.count_labelled(), len(step.batch)
        self._found = {}

    def add(self, objective: Objective, part: Step) -> Objective:
        """Differentiate the terms of ``objective``, which is that of ``part`` of the rows; the objective is handed on as it is."""
        terms = [term for term in objective.terms.values() if term.requires_grad]
        if not terms:
            return objective
        if objective.losses and not any(loss.requires_grad for loss in objective.losses.values()):
            raise ConfigurationError(
                f"plugin {self._plugin.name} projects the gradient of the losses alone, but in this step no loss has a gradient, only "
                f"terms have ({', '.join(objective.terms)}): use projects='total'"
            )
        run = part.run
        # the weight of a part among the rows of the step is that with which the engine adds up their objectives
        share = part.batch.count_labelled() / self._labelled if self._labelled else len(part.batch) / self._rows
        wanted = {name: p for name, p in run.optimization.trainable().items() if name in run.model_parameter_names}
        total = torch.stack([term.to(run.device) for term in terms]).sum()
        for name, gradient in named_gradients(total, wanted, retain_graph=True).items():
            self._found[name] = torch.add(self._found[name], gradient, alpha=share) if name in self._found else share * gradient
        return objective

    def take(self) -> dict[str, Tensor]:
        """∇P, which is forgotten by this."""
        found, self._found = self._found, {}
        return found


class LossProjection(Plugin):
    """What plugins share that project the gradient of the losses with or without that of the terms, as ``config.projects`` says.

    They call ``self.terms.take()`` where they project.
    """

    @cached_property
    def terms(self) -> TermGradients:
        """∇P of the step in progress."""
        return TermGradients(self)

    @hookimpl
    def before_step(self, step: Step) -> None:
        """A new step has terms of its own."""
        self.terms.begin(step)

    @hookimpl
    def around_objective(self, objective: Callable[[Step], Objective], step: Step) -> Objective:
        """Keep the gradient of the terms, if the losses are projected without them."""
        found = objective(step)
        return self.terms.add(found, step) if self.config.projects == "losses" else found


def project_losses(
    gradients: Mapping[str, Tensor],
    terms: Mapping[str, Tensor],
    project: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """project(g - ∇P) + ∇P; where ``project`` hands on what it was given, g itself.

    Args:
        gradients: g by name.
        terms: ∇P by name, of some of them.
        project: from gradients to gradients of the same names.

    Example:
        >>> halved = lambda gradients: {name: 0.5 * gradient for name, gradient in gradients.items()}
        >>> project_losses({"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])}, halved)["w"].item()
        2.0
    """
    bare = {name: gradient - terms[name] if name in terms else gradient for name, gradient in gradients.items()}
    found = project(bare)
    result = {}
    for name, gradient in gradients.items():
        if found[name] is bare[name]:
            result[name] = gradient
        else:
            result[name] = found[name] + terms[name] if name in terms else found[name]
    return result
