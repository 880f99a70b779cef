"""Constant weighting: a fixed weight for the loss of each task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field, field_validator
from torch import Tensor

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.task_weights import task_of, weighted_sum
from streamlearn.errors import UnknownNameError

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step

__all__ = ["ConstantWeighting"]


class ConstantWeighting(Plugin):
    r"""Constant weights by task.

    .. math:: s(L) = \sum_k w_k L_k

    with w_k = 1 for a task that ``weights`` does not name. Without any it is the plain sum, also called unitary scalarization or equal
    weighting, the baseline that Kurin et al. 2022 find hard to beat. The weights are not normalised: doubling them all is doubling the
    model's learning rate, but for terms, which they leave alone.

    This is not the engine's own weighting, Σ share_k L_k, which is the mean over rows where tasks have rows of their own. The two are
    equal where every row carries every task, as in `streamlearn.streams.multitask`.

    A weight belongs to a *task*: rows that are parts of one (``"digit@photo"``, ``"digit/memory"``) each get its weight. A task of
    weight 0 moves nothing, not even its head through momentum, and is no row for a combiner.

    Args:
        weights: w_k by task, each at least 0.

    Raises:
        UnknownNameError: ``weights`` names a task that the stream never has.
        TrainingError: a row belongs to no task.

    Cost: no additional pass. Memory: none.

    Reference: Kurin, De Palma, Kostrikov, Whiteson & Kumar, In defense of the unitary scalarization for deep multi-task learning,
    NeurIPS 2022, eq. 1, for weights of 1; fixed weights are folklore, going back at least to Caruana, Multitask learning, Machine
    Learning 28, 1997.

    Example:
        >>> from streamlearn.plugins import ConstantWeighting
        >>> ConstantWeighting(weights={"left": 2.0})
        ConstantWeighting(weights={'left': 2.0})
    """

    info = PluginInfo(
        name="constant_weighting",
        family="weighting",
        summary="Weighs the loss of each task by a fixed number.",
        reference="Kurin et al. 2022, NeurIPS, eq. 1; Caruana 1997",
        streams=frozenset({"multitask"}),
        vmappable=True,
    )

    class Config(PluginConfig):
        """Options of `ConstantWeighting`."""

        weights: dict[str, float] = Field(default_factory=dict)

        @field_validator("weights")
        @classmethod
        def _possible(cls, weights: dict[str, float]) -> dict[str, float]:
            for task, weight in weights.items():
                if not 0 <= weight < math.inf:
                    raise ValueError(f"the weight of task {task!r} must be finite and at least 0")
            return weights

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Refuse a weight for a task that never comes."""
        named, stream = set(self.config.weights), run.stream
        known = {task.name for task in stream.tasks}
        if not named <= known:  # a stream may have tasks that it does not announce
            known |= {task.name for number in range(len(stream)) for task in stream[number].tasks}
        for task in sorted(named - known):
            raise UnknownNameError(f"task in the weights of plugin {self.name}", task, known)

    @hookimpl
    def provide_weighting(self, losses: Mapping[str, Tensor], step: Step) -> Tensor:
        """s(L)."""
        weights = self.config.weights
        return weighted_sum(losses, {row: weights.get(task_of(row, step, self.name), 1.0) for row in losses})
