"""GradDrop: where the signs of gradients disagree, one sign is drawn and the other is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.gradients import TaskRows
    from streamlearn.core.step import Step

__all__ = ["GradDrop", "kept_signs", "purity"]

Share = Annotated[float, Field(ge=0, le=1)]


def purity(gradients: Tensor) -> Tensor:
    """P = ½ (1 + Σ_k g_k / Σ_k |g_k|), entry by entry: 1 where every gradient is positive, 0 where each is negative.

    Args:
        gradients: ``(rows, n)``; ½ where all are zero.

    Example:
        >>> purity(torch.tensor([[1.0, 1.0, 0.0], [2.0, -3.0, 0.0]])).tolist()
        [1.0, 0.25, 0.5]
    """
    total = gradients.abs().sum(0)
    return 0.5 * (1 + gradients.sum(0) / torch.where(total > 0, total, 1.0))


def kept_signs(gradients: Tensor, uniform: Tensor) -> Tensor:
    """Which entries are kept: the positive ones where ``uniform`` < P, the negative ones elsewhere; bool, ``(rows, n)``."""
    positive = uniform < purity(gradients)
    return (positive & (gradients > 0)) | (~positive & (gradients < 0))


class GradDrop(Plugin):
    r"""Gradient sign dropout.

    .. math:: g = \sum_k \big(\ell_k + (1 - \ell_k) M_k\big) \odot g_k, \qquad
        M_k = [U < P][g_k > 0] + [U \ge P][g_k < 0], \qquad P = \frac12 \Big(1 + \frac{\sum_k g_k}{\sum_k |g_k|}\Big)

    entry by entry, with U drawn uniformly from [0, 1) in every step (Chen et al. 2020, algorithm 1, with f the identity). Where all
    signs agree nothing is dropped; elsewhere one sign survives, the stronger one more often.

    - ``at="features"``, as in the paper: the g_k are the gradients at Z, the output of the encoder on every row of the batch. The signs
      are those of Σ_n sgn(Z_n) ⊙ ∇_{Z_n} L_k, one for each feature and task, and the mask they give holds for all rows of the batch.
    - ``at="parameters"``: g_k is the gradient at the parameters that tasks share, and each parameter draws for itself.

    Rows are those of the weighting, ∂s/∂L_k · ∇L_k. Doubling all losses doubles g. With one row it is the plain gradient. Nothing
    holds g to descend on every loss. A row of zeros changes nothing.

    Args:
        leak: ℓ, in [0, 1]: what part of a gradient passes in any case, one number or by the name of a row (others: 0). 1 switches
            the method off.
        at: ``"features"`` or ``"parameters"``.

    Cost: at the features one backward pass through the heads for each row and one through the encoder for all; at the parameters
    one backward pass for each row. Memory: one gradient for each row (of the features, or of the parameters), within a step.

    Reference: Chen, Ngiam, Huang, Luong, Kretzschmar, Chai & Anguelov, Just pick a sign: optimizing deep multitask models with gradient
    sign dropout, NeurIPS 2020, algorithm 1. Deviation: it acts at the output of the encoder, not at any layer. At the features it is
    refused beside plugins that evaluate the objective at other parameters (MAML, SAM) and with micro-batches. TorchJD's applies the
    same rule to any matrix, without activations; LibMTL's has the features alone.

    Example:
        >>> from streamlearn.plugins import GradDrop
        >>> GradDrop(leak=0.1, at="parameters")
        GradDrop(at='parameters', leak=0.1)
    """

    info = PluginInfo(
        name="graddrop",
        family="gradients",
        summary="Where the signs of the tasks' gradients disagree, draws one sign and drops the gradients of the other.",
        reference="Chen et al. 2020, NeurIPS, algorithm 1",
        conflicts=frozenset({"inner-loop", "look-ahead"}),
        needs=frozenset({"task_gradients"}),
        memory="1 gradient of the features for each row, within a step (at='parameters': of the shared parameters)",
        rows="features",
    )

    class Config(PluginConfig):
        """Options of `GradDrop`."""

        leak: Share | dict[str, Share] = 0.0
        at: Literal["features", "parameters"] = "features"

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        if self.config.at == "parameters":  # any look-ahead will do there
            self.info = replace(type(self).info, rows="parameters", conflicts=frozenset())  # type: ignore[misc]

    @hookimpl
    def provide_gradient_combination(self, rows: TaskRows, step: Step) -> Tensor:
        """The sum of what is kept of each gradient."""
        gradients, leak = rows.matrix, self._leak(rows.names, rows.matrix).unsqueeze(1)
        if rows.features is None:
            return ((leak + (1 - leak) * kept_signs(gradients, self._uniform(gradients[0], step))) * gradients).sum(0)
        features = rows.features.detach()
        batch = len(features)
        signed = (gradients.view(len(gradients), batch, -1) * features.view(batch, -1).sign()).sum(1)
        passed = leak + (1 - leak) * kept_signs(signed, self._uniform(signed[0], step))
        return (passed.unsqueeze(1) * gradients.view(len(gradients), batch, -1)).sum(0).flatten()

    def _uniform(self, like: Tensor, step: Step) -> Tensor:
        return torch.rand(like.shape, generator=step.run.generator(self, "signs"), dtype=like.dtype).to(like.device)

    def _leak(self, names: Sequence[str], like: Tensor) -> Tensor:
        leak = self.config.leak
        return torch.tensor([leak.get(name, 0.0) if isinstance(leak, dict) else leak for name in names]).to(like)
