"""DWA: the slower a task's loss has fallen from epoch to epoch, the larger its weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from streamlearn.core.task_weights import task_of, weighted_sum

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Experience

__all__ = ["DWA", "averaged_weights", "rate_of_descent"]


def rate_of_descent(last: float | None, before: float | None) -> float:
    """r = L̄(e-1) / L̄(e-2): 1 where one of the two is missing, or where the earlier is 0 and nothing can be said.

    Args:
        last: the mean loss of the last epoch.
        before: that of the epoch before it.

    Example:
        >>> rate_of_descent(0.5, 2.0), rate_of_descent(0.5, None)
        (0.25, 1.0)
    """
    if last is None or not before:
        return 1.0
    rate = last / before
    return rate if math.isfinite(rate) else 1.0


def averaged_weights(rates: Mapping[str, float], temperature: float) -> dict[str, float]:
    """λ_k = K exp(r_k / T) / Σ_i exp(r_i / T), which sum to K.

    Args:
        rates: r_k by task, at least one.
        temperature: T above 0.

    Example:
        >>> {task: round(weight, 3) for task, weight in averaged_weights({"a": 0.5, "b": 0.9}, temperature=2.0).items()}
        {'a': 0.9, 'b': 1.1}
    """
    top = max(rates.values())
    parts = {task: math.exp((rate - top) / temperature) for task, rate in rates.items()}
    total = math.fsum(parts.values())
    return {task: len(parts) * part / total for task, part in parts.items()}


class DWA(Plugin):
    r"""Dynamic weight average.

    .. math:: s(L) = \sum_k λ_k L_k, \qquad λ_k = \frac{K \exp(r_k / T)}{\sum_i \exp(r_i / T)}, \qquad
        r_k = \frac{\bar L_k(e - 1)}{\bar L_k(e - 2)}

    with the mean losses of the two epochs before epoch e (Liu et al. 2019). A loss that has fallen less than the others gets a larger
    weight. The weights sum to K, and are 1 for the first two epochs: then s is the plain sum of the losses (not the engine's own
    Σ share_k L_k, which is the mean over rows where tasks have rows of their own). With one task s is its loss.

    The history belongs to a *task* and goes on from one experience to the next, so that an epoch after a change of the data may be
    compared with one before it: a task that has become harder by far takes most of the weight for an epoch. With
    ``across_experiences=False`` every experience starts anew. A task that was not trained in both of the last two epochs has r_k = 1;
    one that comes back after a pause is new. K counts the tasks of the batch and those of the experience that were trained in the last
    epoch, so that a task that a batch does not have leaves the weights of the others where they are.

    Rows that are parts of one task (``"digit@photo"``, ``"digit/memory"``) each get its weight, and its mean is over all of them.
    Losses are those that were minimised: under MAML or SAM, those at the parameters where the objective was evaluated. Epochs of every
    phase count in which something was trained.

    Args:
        temperature: T, above 0. The paper uses 2; the larger, the more equal the weights.
        across_experiences: whether the history goes on when an experience ends.

    Raises:
        TrainingError: a row belongs to no task.

    Cost: no additional pass. Memory: 4 numbers for each task.

    Reference: Liu, Johns & Davison, End-to-end multi-task learning with attention, CVPR 2019, dynamic weight average. Deviations:
    tasks may come and go, as said above; the mean of an epoch is over its updates, as in the authors' code, whatever the number of
    rows in each.

    Example:
        >>> from streamlearn.plugins import DWA
        >>> DWA(temperature=1.0)
        DWA(temperature=1.0)
    """

    info = PluginInfo(
        name="dwa",
        family="weighting",
        summary="Gives more weight to the tasks whose loss has fallen least over the last two epochs.",
        reference="Liu, Johns & Davison 2019, CVPR",
        memory="4 numbers for each task",
        vmappable=True,
    )

    class Config(PluginConfig):
        """Options of `DWA`."""

        temperature: Annotated[float, Tunable(0.5, 10.0, log=True)] = Field(2.0, gt=0, allow_inf_nan=False)
        across_experiences: bool = True

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._means: tuple[dict[str, float], dict[str, float]] = ({}, {})  # of the last epoch, and of the one before it
        self._sums: dict[str, tuple[Tensor, int]] = {}  # of the epoch in progress: losses added up, and how many

    @hookimpl
    def before_experience(self, experience: Experience, run: Run) -> None:
        """Forget the history, if it is not to go on."""
        if not self.config.across_experiences:
            self._means = ({}, {})

    @hookimpl
    def provide_weighting(self, losses: Mapping[str, Tensor], step: Step) -> Tensor:
        """s(L)."""
        tasks = {row: task_of(row, step, self.name) for row in losses}
        last, before = self._means
        experience = step.run.experience
        elsewhere = [task.name for task in experience.tasks if task.name in last] if experience is not None else []
        rates = {task: rate_of_descent(last.get(task), before.get(task)) for task in [*tasks.values(), *elsewhere]}
        weights = averaged_weights(rates, step.run.value(self, "temperature"))
        return weighted_sum(losses, {row: weights[task] for row, task in tasks.items()})

    @hookimpl
    def after_step(self, step: Step) -> None:
        """Add up the losses that were minimised."""
        if not step.updated:
            return
        for row, loss in step.losses.items():
            task = task_of(row, step, self.name)
            total, count = self._sums.get(task, (None, 0))
            found = loss.detach().to(torch.promote_types(loss.dtype, torch.float32))  # sums in half precision soon stand still
            self._sums[task] = (found if total is None else total + found, count + 1)

    @hookimpl
    def after_epoch(self, run: Run) -> None:
        """Close the epoch."""
        if self._sums:
            self._means = ({task: float(total) / count for task, (total, count) in self._sums.items()}, self._means[0])
            self._sums = {}

    def state_dict(self) -> dict[str, Any]:
        """The means of two epochs, and the sums of the one in progress."""
        last, before = self._means
        sums = {task: {"total": total.clone(), "count": count} for task, (total, count) in self._sums.items()}
        return {"last": dict(last), "before": dict(before), "sums": sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._means = (dict(state["last"]), dict(state["before"]))
        self._sums = {task: (kept["total"].clone(), int(kept["count"])) for task, kept in state["sums"].items()}
