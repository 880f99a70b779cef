"""Elastic weight consolidation (EWC): hold the parameters that mattered near the values they had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.penalties import embedded, quadratic_penalty
from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Experience

__all__ = ["EWC", "quadratic_penalty"]


class EWC(Plugin):
    r"""Elastic weight consolidation.

    .. math:: P(θ) = \frac{λ}{2} \sum_k \sum_j F_{kj} (θ_j - θ^*_{kj})^2

    with F_k the diagonal of the Fisher information after experience k and θ*_k the weights at that moment.

    ``mode="separate"`` (Kirkpatrick et al. 2017, eq. 3, one term for each experience) collapses exactly to one quadratic with
    F = Σ F_k and anchor Σ F_k θ*_k / F plus a constant, so it costs the same after the thousandth experience as after the
    first; the constant is part of the reported term. ``mode="online"`` (Schwarz et al. 2018, section 4) keeps
    F ← γ F + F_k and anchors at the latest weights.

    Args:
        strength: λ, at least 0; 0 switches the penalty off. Suitable values depend on the scale of F: from 1 to 1e10 are in use.
        mode: ``"separate"`` or ``"online"``.
        decay: γ of the online mode, in [0, 1].
        fisher: ``"exact"`` (expectation over the model's own prediction, as in the paper) or ``"empirical"`` (the labels of the
            data, one backward pass less per class). Both square gradients row by row, independent of any batch size.

    Cost: no additional pass per step; one pass over the experience's data after it. Memory: 2 x parameters.

    Reference: Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017; Schwarz et al., Progress &
    Compress, ICML 2018. Deviation: heads of tasks that an experience does not have are left out rather than penalised with zeros.
    Avalanche 0.6 squares the gradient of a mini-batch's mean loss, with the labels of the data: ``"empirical"`` agrees with it, in
    both modes, where its batch size is 1, and is larger beyond. Its λ has no 1/2 before it: λ/2 there is λ here.

    Example:
        >>> from streamlearn.plugins import EWC
        >>> EWC(strength=100.0, mode="online", decay=0.9)
        EWC(decay=0.9, mode='online', strength=100.0)
    """

    info = PluginInfo(
        name="ewc",
        family="regularization",
        summary="Holds parameters near their old values, each as firmly as the Fisher information says it mattered.",
        reference="Kirkpatrick et al. 2017, PNAS 114(13), eq. 3; online: Schwarz et al. 2018, ICML, section 4",
        memory="2 x parameters",
        strength="strength",
        vmappable=True,
    )

    class Config(PluginConfig):
        """Options of `EWC`."""

        strength: Annotated[float, Tunable(1e-1, 1e6, log=True)] = Field(1.0, ge=0)
        mode: Literal["separate", "online"] = "separate"
        decay: float = Field(1.0, ge=0, le=1)
        fisher: Literal["exact", "empirical"] = "exact"

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._importance: dict[str, Tensor] = {}
        self._anchor: dict[str, Tensor] = {}
        self._constant = 0.0

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """λ times the quadratic, once there is something to hold."""
        strength = step.run.value(self, "strength")
        if not self._importance or strength == 0:
            return None
        return strength * (quadratic_penalty(step.parameters, self._importance, self._anchor) + self._constant)

    @hookimpl
    def after_experience(self, experience: Experience, run: Run) -> None:
        """Add this experience's Fisher information."""
        if run.value(self, "strength") == 0:
            return
        fresh = run.importance(self.config.fisher, run.data(experience.main_role))
        weights = run.snapshot(frozenset(fresh) | frozenset(self._importance))
        if self.config.mode == "online":
            self._add_online(fresh, weights)
        else:
            self._add_separate(fresh, weights)

    def _add_online(self, fresh: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        for name, old in self._importance.items():
            kept = embedded(self.config.decay * old, weights[name])
            self._importance[name] = kept + fresh[name] if name in fresh else kept
        self._importance |= {name: value for name, value in fresh.items() if name not in self._importance}
        self._anchor = {name: weights[name] for name in self._importance}

    def _add_separate(self, fresh: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        # F_a (θ-a)² + F_b (θ-b)² = F (θ-m)² + F_a F_b / F (a-b)²  with  F = F_a + F_b,  m = (F_a a + F_b b) / F
        for name, added in fresh.items():
            now = weights[name]
            if name not in self._importance:
                self._importance[name], self._anchor[name] = added, now
                continue
            old, anchor = embedded(self._importance[name], now), embedded(self._anchor[name], now)
            total = old + added
            share = torch.where(total > 0, added / total, torch.zeros_like(total))
            gap = now - anchor
            self._constant += 0.5 * float((old * share * gap.square()).sum())
            self._importance[name], self._anchor[name] = total, anchor + share * gap

    def state_dict(self) -> dict[str, Any]:
        """Importance, anchor and the constant of the collapsed quadratic."""
        return {"importance": dict(self._importance), "anchor": dict(self._anchor), "constant": self._constant}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._importance, self._anchor = dict(state["importance"]), dict(state["anchor"])
        self._constant = float(state["constant"])
