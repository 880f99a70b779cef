"""A-GEM: the gradient is projected so that the loss on a memory does not rise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.plugin import Passes, PluginInfo, hookimpl
from streamlearn.core.projection import LossProjection, Projects, project_losses
from streamlearn.core.remembering import MemoryOptions, brought, open_memory, remember

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Experience

__all__ = ["AGEM", "projected"]


def projected(gradients: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """g - (g·r / r·r) r where g·r < 0, else g itself: what is nearest to g among all that has no negative product with r.

    Products are taken over the names that both have; the gradients of other names are handed on.

    Args:
        gradients: g by name.
        reference: r by name.

    Example:
        >>> g, r = {"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([0.0, 2.0])}
        >>> projected(g, r)["w"].tolist()
        [1.0, 0.0]
    """
    names = [name for name in gradients if name in reference]
    if not names:
        return dict(gradients)
    pairs = [(gradients[name].flatten(), reference[name].flatten()) for name in names]
    both = torch.stack([torch.stack([torch.dot(g, r), torch.dot(r, r)]) for g, r in pairs]).sum(0)
    product, square = both.tolist()  # read at once: each reading waits for the device
    if not (product < 0 < square):  # the square of a very short reference is 0 in floating point
        return dict(gradients)
    return {name: torch.add(g, reference[name], alpha=-product / square) if name in reference else g for name, g in gradients.items()}


class AGEM(LossProjection):
    r"""Averaged gradient episodic memory.

    .. math:: \tilde g = g - \frac{g^\top g_{ref}}{g_{ref}^\top g_{ref}}\, g_{ref} \quad\text{if } g^\top g_{ref} < 0,
        \qquad \tilde g = g \quad\text{otherwise}

    with g_ref the gradient on a draw from a memory of the past (Chaudhry et al. 2019, eq. 11). What is compared:

    - With ``projects="total"``, g is everything that would move the model: the combined gradient of the rows *and of every term* (EWC,
      LwF ...), as in Avalanche. With ``projects="losses"``, g is without the gradient of the terms, which is added afterwards as it is:
      the update may then raise the loss on the memory, where a term asks for that.
    - g_ref is ∇s on the drawn rows, at the parameters of the step, with the losses, masks and weighting of the strategy and without
      its terms; beside an inner loop it is this plain gradient too, while g is the meta-gradient.
    - The products run over the *model's* parameters that have both gradients. One without a gradient in this step (the head of a
      task of the past) is not moved, and does not count in g_ref either, so that the product vanishes over what does move. The
      modules of other plugins keep their gradients.

    Rows of the memory are not mixed into the batch. The memory is shared by name: when a replay plugin fills it, this one only
    draws; otherwise it offers it the rows of every experience that has ended. Buffers (the statistics of BatchNorm) do not see the
    drawn rows.

    Args:
        memory: name of the memory. Plugins that name the same one share it, and must agree on ``capacity``, ``policy`` and ``budget``.
        rows: rows drawn per step, at least 1; default as many as the batch brings.
        projects: ``"total"`` or ``"losses"``.
        capacity: rows kept, at least 1.
        policy: which, as in `Replay`.
        budget: ``"total"``: ``capacity`` rows in all; ``"per_group"``: so many of each class, or experience.

    Cost: one forward and one backward pass over ``rows`` rows in each step, once the memory holds some; with ``projects="losses"`` one
    backward pass through the terms. Memory: ``capacity`` indices, and a gradient while a step lasts.

    Reference: Chaudhry, Ranzato, Rohrbach & Elhoseiny, Efficient lifelong learning with A-GEM, ICLR 2019. Deviations: the paper keeps
    equally many rows of every task and trains each task for one epoch; here ``policy`` and the engine's epochs say that.

    Example:
        >>> from streamlearn.plugins import AGEM
        >>> AGEM(capacity=200, rows=64)
        AGEM(capacity=200, rows=64)
    """

    info = PluginInfo(
        name="agem",
        family="gradients",
        summary="Projects the gradient so that, to first order, the loss on a memory of the past does not rise.",
        reference="Chaudhry et al. 2019, ICLR, eq. 11",
        provides=frozenset({"projection"}),
        before=frozenset({"look-ahead"}),  # terms are differentiated where the objective of the step is, outside of all look-aheads
        passes=lambda plugin: Passes(forward=1, backward=2 if plugin.config.projects == "losses" else 1),
        memory="capacity indices",
    )

    class Config(MemoryOptions):
        """Options of `AGEM`."""

        rows: int | None = Field(None, ge=1)
        projects: Projects = "total"

    @hookimpl
    def transform_gradients(self, gradients: Mapping[str, Tensor], step: Step) -> Mapping[str, Tensor]:
        """Project, once there is something to remember."""
        run, terms = step.run, self.terms.take()
        open_memory(run, self)
        drawn = step.draw(self.config.memory, self.config.rows or max(1, brought(step.batch)), purpose="reference")
        if drawn is None:
            return gradients
        found = step.at(batch=drawn.to(step.batch.x.device)).gradient()
        reference = {name: value for name, value in found.items() if name in run.model_parameter_names}
        return project_losses(gradients, terms, lambda g: projected(g, reference))

    @hookimpl
    def after_experience(self, experience: Experience, run: Run) -> None:
        """Offer the rows of the experience that has ended, unless another plugin does."""
        remember(run, self)
