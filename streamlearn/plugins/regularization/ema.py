"""Exponential moving average of the weights (EMA)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step

__all__ = ["EMA", "averaged"]


def averaged(average: Tensor, parameter: Tensor, decay: float) -> Tensor:
    """d · average + (1 - d) · parameter; what a parameter has grown by starts at its own value.

    Args:
        average: so far; at most as large as ``parameter`` in every dimension.
        parameter: after the update.
        decay: d, in [0, 1].

    Example:
        >>> averaged(torch.tensor([1.0]), torch.tensor([3.0, 5.0]), 0.5).tolist()
        [2.0, 5.0]
    """
    result = parameter.detach().clone()
    known = tuple(slice(0, size) for size in average.shape)
    result[known] = torch.lerp(result[known], average, decay)
    return result


class EMA(Plugin):
    r"""Exponential moving average of the weights, kept beside them.

    .. math:: \bar θ_t = d_t \, \bar θ_{t-1} + (1 - d_t) \, θ_t, \qquad d_t = \min(d, \tfrac{1 + t}{10 + t}) \text{ with warm-up}

    after every update t (Polyak & Juditsky 1992 average all iterates alike; Tarvainen & Valpola 2017, eq. 2, with exponential weights).
    Steps are not changed, so the plugin goes with any other. With ``write=True`` the weights become their average when a phase
    named ``main`` ends, before anything reads the final weights: what is evaluated, copied as a teacher, taken as an anchor, and what
    the next experience starts from, is the average. Weights that were set anew since (GDumb, training from scratch) start a new average.

    Args:
        decay: d, in [0, 1]; 0 keeps the latest weights.
        warm_up: use the smaller d_t at first, so that the average forgets the initial weights sooner.
        write: write the average into the weights at the end of each main phase.

    Attributes:
        average: the averages by parameter name, the model's and those of the plugins' modules.

    Cost: one pass over the parameters per update. Memory: 1 x parameters.

    Reference: Polyak & Juditsky, Acceleration of stochastic approximation by averaging, SIAM J. Control and Optimization 30, 1992;
    Tarvainen & Valpola, Mean teachers are better role models, NeurIPS 2017, eq. 2. Buffers, such as BatchNorm's statistics, are not
    averaged. A teacher that is such an average is the engine's: ``Teacher("ema")``.

    Example:
        >>> from streamlearn.plugins import EMA
        >>> EMA(decay=0.99)
        EMA(decay=0.99)
    """

    info = PluginInfo(
        name="ema",
        family="regularization",
        summary="Keeps an exponential moving average of the weights, and puts it in their place when an experience ends.",
        reference="Polyak & Juditsky 1992; Tarvainen & Valpola 2017, NeurIPS, eq. 2",
        memory="1 x parameters",
        ranks="local",
        strength="decay",
    )

    class Config(PluginConfig):
        """Options of `EMA`."""

        decay: float = Field(0.99, ge=0, le=1)
        warm_up: bool = True
        write: bool = True

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self.average: dict[str, Tensor] = {}
        self._updates = 0

    @hookimpl
    def around_update(self, update: Callable[[Mapping[str, Tensor]], None], gradients: Mapping[str, Tensor], step: Step) -> None:
        """Update, then average."""
        update(gradients)
        if self.config.decay == 0:
            return
        decay = self.config.decay
        if self.config.warm_up:
            decay = min(decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        for name, parameter in step.run.parameters().items():
            known = self.average.get(name)
            self.average[name] = parameter.detach().clone() if known is None else averaged(known, parameter, decay)

    @hookimpl
    def before_epoch(self, run: Run) -> None:
        """Forget the average of weights that were set anew since it was written."""
        if self.config.write and run.phase is not None and run.phase.name == "main" and run.clock.epoch == 0:
            known = ((p, self.average[name]) for name, p in run.parameters().items() if name in self.average and p.requires_grad)
            if not all(torch.equal(p[tuple(slice(0, size) for size in average.shape)], average) for p, average in known):
                self.average, self._updates = {}, 0

    @hookimpl
    def after_epoch(self, run: Run) -> None:
        """Put the average in the place of the weights when the main phase ends."""
        if self.config.write and self.average and run.phase is not None and run.phase.name == "main" and run.clock.is_last_epoch:
            with torch.no_grad():
                for name, parameter in run.parameters().items():
                    if name in self.average and parameter.requires_grad:
                        parameter.copy_(self.average[name])

    def state_dict(self) -> dict[str, Any]:
        """The averages and the number of updates behind them."""
        return {"average": dict(self.average), "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.average, self._updates = dict(state["average"]), int(state["updates"])
