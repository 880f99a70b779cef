"""GEM: the gradient is projected so that the loss on the memory of no past experience rises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from scipy.optimize import nnls
from torch import Tensor

from streamlearn.core.plugin import Passes, PluginInfo, Tunable, hookimpl
from streamlearn.core.projection import LossProjection, Projects, project_losses
from streamlearn.core.remembering import MemoryOptions, open_memory, remember

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Experience

__all__ = ["GEM", "dual_weights", "projected_onto_cone"]

Margin = Literal["bound", "offset"]
_RIDGE = 1e-11


def dual_weights(references: Tensor, gradient: Tensor, bound: float = 0.0) -> Tensor:
    """argmin ½ vᵀGGᵀv + (Gg)ᵀv over v ≥ ``bound``, ``(k,)`` in float64; where it is not unique, one of them.

    That is the v with the shortest g + Gᵀv, a problem of least squares in which G Gᵀ neither is formed, which would cost half of the
    digits, nor has to have an inverse: equal, opposite or zero gradients do no harm. Each is scaled to length 1 first.

    Args:
        references: G, ``(k, n)``.
        gradient: g, ``(n,)``.
        bound: the least value of v, at least 0.

    Example:
        >>> dual_weights(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([-3.0, 1.0])).tolist()
        [3.0, 0.0]
    """
    matrix, g = references.detach().double().cpu(), gradient.detach().double().cpu()
    g = g + bound * matrix.sum(0)  # v = bound + u with u ≥ 0
    lengths, size = matrix.norm(dim=1), float(g.norm()) or 1.0
    weights = torch.full_like(lengths, bound)
    real = lengths > 0
    if bool(real.any()):
        scaled = matrix[real] / lengths[real].unsqueeze(1)
        count = len(scaled)
        # a ridge far below what float32 resolves, of gradients of length 1: v stays finite where some are opposite
        columns = torch.cat([scaled.T, _RIDGE * torch.eye(count, dtype=torch.float64)])
        goal = torch.cat([-g / size, torch.zeros(count, dtype=torch.float64)])
        found, _ = nnls(columns.numpy(), goal.numpy(), maxiter=100 * count)
        weights[real] += torch.from_numpy(found) * size / lengths[real]
    return weights


def projected_onto_cone(
    gradients: Mapping[str, Tensor], references: Sequence[Mapping[str, Tensor]], margin: float = 0.0, margin_as: Margin = "bound"
) -> dict[str, Tensor]:
    """What is nearest to g among all that has no negative product with any reference; g itself where it has none.

    Products are taken over the names of g; a reference without one of them is zero there, and gradients of names that no reference
    has are handed on.

    Args:
        gradients: g by name.
        references: g_k by name.
        margin: γ, at least 0; see `GEM`.
        margin_as: ``"bound"`` or ``"offset"``.

    Example:
        >>> g = {"w": torch.tensor([-1.0, -2.0, 3.0])}
        >>> found = projected_onto_cone(g, [{"w": torch.tensor([2.0, 0.0, 0.0])}, {"w": torch.tensor([0.0, 1.0, 0.0])}])
        >>> found["w"].tolist()
        [0.0, 0.0, 3.0]
    """
    shared = [name for name in gradients if any(name in reference for reference in references)]
    if not shared:
        return dict(gradients)
    products = torch.stack([_rows(name, gradients[name], references) @ _flat(gradients[name]) for name in shared]).sum(0)
    if not bool((products < 0).any()):
        return dict(gradients)
    small = _triangle(gradients, references, shared)
    weights = dual_weights(small[:, :-1].T, small[:, -1], margin if margin_as == "bound" else 0.0)
    if margin_as == "offset":
        weights += margin
    found = dict(gradients)
    for name in shared:
        g = gradients[name]  # the sum in float64: weights are large where references are nearly opposite
        found[name] = (_flat(g) + weights.to(g.device) @ _rows(name, g, references)).to(g.dtype).view_as(g)
    return found


def _flat(gradient: Tensor) -> Tensor:
    return gradient.flatten().double()


def _rows(name: str, like: Tensor, references: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """The references' gradients of one parameter, ``(k, entries)`` in float64."""
    return torch.stack([_flat(r[name] if name in r else torch.zeros_like(like)) for r in references])


def _triangle(gradients: Mapping[str, Tensor], references: Sequence[Mapping[str, Tensor]], shared: Sequence[str]) -> Tensor:
    """R of the QR decomposition of (Gᵀ, g), at most ``(k + 1, k + 1)``: all lengths and angles of the gradients, in few numbers.

    One parameter after the other, so that only that one's entries are there in float64.
    """
    found: Tensor | None = None
    for name in shared:
        block = torch.cat([_rows(name, gradients[name], references), _flat(gradients[name]).unsqueeze(0)]).T
        block = block if found is None else torch.cat([found.to(block.device), block])
        found = torch.linalg.qr(block, mode="r").R
    assert found is not None
    return found


class GEM(LossProjection):
    r"""Gradient episodic memory.

    .. math:: \tilde g = \arg\min_z \tfrac12 \|g - z\|_2^2 \;\text{ subject to }\; g_k^\top z \ge 0 \text{ for all } k, \qquad
        \tilde g = g + G^\top v^*, \quad v^* = \arg\min_{v \ge 0} \tfrac12 v^\top G G^\top v + (G g)^\top v

    with one gradient g_k for each past experience, that on all its rows in the memory, as the rows of G (Lopez-Paz & Ranzato 2017,
    eqs. 8 to 12). Where no product g_k · g is negative, g is left alone. As in `AGEM`, whose one constraint is on a draw from the whole
    past:

    - g_k is ∇s on the rows of experience k, at the parameters of the step, with the losses, masks and weighting of the strategy and
      without its terms.
    - Products run over the *model's* parameters that have a gradient in this step. One without (the head of a task of the past) is not
      moved, and does not count in g_k either. The modules of other plugins keep their gradients.
    - Rows of the memory are not mixed into the batch, and buffers do not see them. The memory is shared by name: when a replay plugin
      fills it, this one reads it only. Rows of the present experience give no constraint.

    The dual problem is solved in float64, whatever the rank of G, as a problem of non-negative least squares.
    Avalanche 0.6 and later versions of the authors' code
    add 10⁻³ to the diagonal of G Gᵀ, against which a memory whose gradients are shorter than about 0.03 hardly constrains anything.

    A ``margin`` γ > 0 favours updates that lower the losses of the past; it acts in the steps in which a constraint is violated. As
    ``"bound"`` the dual problem is solved over v ≥ γ, which is the authors' code and Avalanche's. As ``"offset"`` γ is added to v*,
    which is the text of the paper; constraints may then be violated when gradients of the past point against each other. Either is
    the more of a push the longer the g_k are.

    Args:
        memory: name of the memory. Plugins that name the same one share it, and must agree on ``capacity``, ``policy`` and ``budget``.
        margin: γ, at least 0. The authors' runs take 0.5; 0 is the projection alone.
        margin_as: ``"bound"`` or ``"offset"``.
        projects: ``"total"``: g is everything that would move the model, the combined gradient of the rows *and of every term* (EWC,
            LwF ...), as in Avalanche. ``"losses"``: g is without the gradient of the terms, which is added afterwards as it is.
        capacity: rows kept, at least 1.
        policy: ``"experience_balanced"``, the only one that tells experiences apart.
        budget: ``"per_group"``: ``capacity`` rows of each experience; ``"total"``: so many in all.

    Cost: in each step, one forward and one backward pass over its rows in the memory *for each past experience*; with
    ``projects="losses"`` one backward pass through the terms. ``passes`` counts one experience. Memory: indices of the rows, and a
    gradient for each past experience while a step lasts.

    Reference: Lopez-Paz & Ranzato, Gradient episodic memory for continual learning, NeurIPS 2017. Deviations: rows are kept uniformly
    at random, where the paper keeps the last ones of a task; tasks may take more than one epoch, which the engine says.

    Example:
        >>> from streamlearn.plugins import GEM
        >>> GEM(capacity=100, margin=0.0)
        GEM(capacity=100, margin=0.0)
    """

    info = PluginInfo(
        name="gem",
        family="gradients",
        summary="Projects the gradient so that, to first order, the loss on the memory of no past experience rises.",
        reference="Lopez-Paz & Ranzato 2017, NeurIPS, eqs. 8-12",
        provides=frozenset({"projection"}),
        before=frozenset({"look-ahead"}),  # terms are differentiated where the objective of the step is, outside of all look-aheads
        passes=lambda plugin: Passes(forward=1, backward=2 if plugin.config.projects == "losses" else 1),
        memory="capacity indices for each experience; 1 gradient for each past experience, within a step",
    )

    class Config(MemoryOptions):
        """Options of `GEM`."""

        capacity: int = Field(256, ge=1)
        policy: Literal["experience_balanced"] = "experience_balanced"
        budget: Literal["total", "per_group"] = "per_group"
        margin: Annotated[float, Tunable(0.0, 1.0)] = Field(0.5, ge=0)
        margin_as: Margin = "bound"
        projects: Projects = "total"

    @hookimpl
    def transform_gradients(self, gradients: Mapping[str, Tensor], step: Step) -> Mapping[str, Tensor]:
        """Project, once there is something to remember."""
        terms = self.terms.take()
        references = self._references(step)
        if not references:
            return gradients
        margin = step.run.value(self, "margin")
        return project_losses(gradients, terms, lambda g: projected_onto_cone(g, references, margin, self.config.margin_as))

    def _references(self, step: Step) -> list[dict[str, Tensor]]:
        """The gradient on what is remembered of each past experience; one without labelled rows has none."""
        run = step.run
        memory, present = open_memory(run, self), -1 if run.experience is None else run.experience.index
        found = []
        for group in memory.groups():
            rows = memory.rows_of(group) if group != present else None
            gradient = {} if rows is None else step.at(batch=rows.replace(stored={}).to(step.batch.x.device)).gradient()
            found.append({name: value for name, value in gradient.items() if name in run.model_parameter_names})
        return [gradient for gradient in found if gradient]

    @hookimpl
    def after_experience(self, experience: Experience, run: Run) -> None:
        """Offer the rows of the experience that has ended, unless another plugin does."""
        remember(run, self)
