"""Aligned-MTL: the tasks' gradients are replaced by the nearest that are orthogonal and equally long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from torch import Tensor
from torchjd.aggregation import AlignedMTLWeighting

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.solvers import preference_weights

if TYPE_CHECKING:
    from streamlearn.core.gradients import TaskRows
    from streamlearn.core.step import Step

__all__ = ["AlignedMTL", "aligned_weights"]

Scale = Literal["min", "median", "rmse"]


def aligned_weights(gramian: Tensor, importance: Tensor, scale: Scale = "min") -> Tensor:
    """The weights B w of the rows, with B = σ V Λ^(-1/2) Vᵀ from the eigenvectors of G, ``(rows,)``; see `AlignedMTL`.

    Args:
        gramian: G with G_ij = g_i · g_j, ``(rows, rows)``; its precision tells which eigenvalues count as 0.
        importance: w, ``(rows,)``.
        scale: what σ is.

    Example:
        >>> import torch
        >>> aligned_weights(torch.tensor([[1.0, 0.0], [0.0, 16.0]]), torch.tensor([0.5, 0.5])).tolist()
        [0.5, 0.125]
    """
    products = gramian.detach().cpu()
    weights: Tensor = AlignedMTLWeighting(importance.to(products), scale_mode=scale)(products)
    return weights


class AlignedMTL(Plugin):
    r"""Aligned-MTL: independent component alignment.

    .. math:: g = \hat J^\top w, \qquad \hat J = σ\, V Λ^{-1/2} V^\top J, \qquad J J^\top = V Λ V^\top

    with the rows g_k of J those of the weighting, ∂s/∂L_k · ∇L_k, over the parameters that tasks share, w their importances, and σ the
    smallest singular value of J (Senushkin et al. 2023, algorithm 1). Ĵ has the principal components of J, all with the length σ: its
    rows are what is nearest to those of J among all that are orthogonal and of that length.

    Singular values that are zero to the precision of the gradients are left out, with their components: dependent rows do no harm, and a
    row of zeros has weight 0. g has a product with the *aligned* rows that is never negative; with the rows themselves it may be,
    where they conflict and are of unequal length. Doubling all losses doubles g.

    Args:
        scale: σ from the singular values of J: ``"min"``, the smallest, is the paper's; ``"median"`` and ``"rmse"``, the root of the mean
            of their squares, are further settings of the authors' code.
        reduction: ``"mean"``: the importances sum to 1, as in TorchJD; ``"sum"``: they sum to the number of rows, as in LibMTL.
        preference: importances by the name of a row, at least 0; one that is not named has 1. They are taken relative to each other.

    Cost: one backward pass for each row through what the rows share, in place of one for all. Memory: one gradient for each row while
    a step lasts.

    Reference: Senushkin, Patakin, Kuznetsov & Konushin, Independent component alignment for multi-task learning, CVPR 2023,
    algorithm 1. The matrix B is TorchJD's. Task-specific parameters get their plain gradient.

    Example:
        >>> from streamlearn.plugins import AlignedMTL
        >>> AlignedMTL(scale="median")
        AlignedMTL(scale='median')
    """

    info = PluginInfo(
        name="aligned_mtl",
        family="gradients",
        summary="Makes the principal components of the tasks' gradients equally strong before they are added.",
        reference="Senushkin et al. 2023, CVPR, algorithm 1",
        needs=frozenset({"task_gradients"}),
        memory="1 gradient for each row, within a step",
    )

    class Config(PluginConfig):
        """Options of `AlignedMTL`."""

        scale: Scale = "min"
        reduction: Literal["mean", "sum"] = "mean"
        preference: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)

    @hookimpl
    def provide_gradient_combination(self, rows: TaskRows, step: Step) -> dict[str, float]:
        """B w by row."""
        importance = preference_weights(rows.names, self.config.preference)
        if self.config.reduction == "sum":
            importance = importance * len(importance)
        return dict(zip(rows.names, aligned_weights(rows.gramian, importance, self.config.scale).tolist(), strict=True))
