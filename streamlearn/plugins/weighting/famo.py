"""FAMO: all losses fall at like rates, by weights that are learned from how much each has just fallen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.plugin import Passes, Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from streamlearn.core.task_weights import kept_number, learned_number, learned_numbers, move_number, tasks_of_rows
from streamlearn.errors import DivergenceError, TrainingError

if TYPE_CHECKING:
    from streamlearn.core.optimization import Trainable
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step

__all__ = ["FAMO", "balanced_logarithms", "logit_slopes"]

_EPSILON = 1e-8


def balanced_logarithms(distances: Mapping[str, Tensor], logits: Mapping[str, Tensor]) -> Tensor:
    """c Σ_k z_k log D_k with z = softmax(ξ) and c = 1 / Σ_k (z_k / D_k), both constant: a scalar with ∂/∂D_k = c z_k / D_k.

    Args:
        distances: D_k = L_k - b_k + ε by task, at least one, above 0.
        logits: ξ by task.

    Example:
        >>> distances = {"a": torch.tensor(2.0, requires_grad=True), "b": torch.tensor(1.0, requires_grad=True)}
        >>> balanced_logarithms(distances, {"a": torch.tensor(0.0), "b": torch.tensor(0.0)}).backward()
        >>> [distance.grad.item() for distance in distances.values()]  # they sum to 1
        [0.3333..., 0.6666...]
    """
    values = torch.stack(list(distances.values()))
    shares = torch.softmax(torch.stack([logits[task].detach() for task in distances]), 0)
    scale = 1 / (shares / values.detach()).sum()
    return (scale * shares * values.log()).sum()


def logit_slopes(logits: Tensor, falls: Tensor) -> Tensor:
    """Jᵀ δ with J = ∂ softmax(ξ) / ∂ξ: z_k (δ_k - Σ_j z_j δ_j), ``(tasks,)``.

    Args:
        logits: ξ.
        falls: δ_k, how far the logarithm of each loss has fallen.

    Example:
        >>> logit_slopes(torch.zeros(2), torch.tensor([0.4, 0.0]))
        tensor([ 0.1000, -0.1000])
    """
    shares = torch.softmax(logits, 0)
    return shares * (falls - (shares * falls).sum())


class FAMO(Plugin):
    r"""Fast adaptive multitask optimisation.

    .. math:: s(L) = c \sum_k z_k \log(L_k - b_k + ε), \qquad z = \mathrm{softmax}(ξ), \qquad
        c = \Big(\sum_k \frac{z_k}{L_k - b_k + ε}\Big)^{-1}, \\
        ξ \leftarrow ξ - β \Big(J^\top \big(\log (L - b + ε) - \log (L' - b + ε)\big) + γ ξ\Big), \qquad J = \frac{\partial z}{\partial ξ}

    with z and c constant in the first line, so that the weights ∂s/∂L_k sum to 1, and with L' the losses after the update (Liu et al.
    2023, eq. 9 and algorithms 1 and 2). It approaches the step by which the task that falls least, in proportion to its loss, falls
    most; no gradient of a single task is needed. A loss multiplied by a constant changes the length of the gradient and not its direction.

    L' is measured on the *same rows* as L: replayed and augmented rows are those of the step, dropout has the same masks,
    BatchNorm the statistics of the batch, and its running ones do not move. With micro-batches both are measured on the whole
    batch, and s is the mean of theirs. Under SAM both are measured at θ, not at the ascended parameters.

    ξ_k belongs to a *task*. Rows that are parts of one (``"digit@photo"``, ``"digit/memory"``) share it, and L_k is the mean of their
    losses. z is over the tasks of the batch: one that it does not have is left out, and its ξ stays where it is. A new task
    enters at the mean of those that the tasks beside it have. With one task the gradient is that of its loss.

    Args:
        learning_rate: β, of the Adam that moves ξ. Above 0.
        decay: γ, at least 0: what draws ξ to 0, that is all tasks to one share.
        bounds: b by task, finite and of either sign; 0 for those not named. A loss may not get below.

    Raises:
        TrainingError: a loss is below its bound, or a row belongs to no task.
        DivergenceError: a loss is not finite after an update.

    Cost: one more forward pass in each step, without a graph; with micro-batches, or where the objective is not read at θ, two.
    None where a batch has but one task. Memory: 4 numbers for each task.

    Reference: Liu, Feng, Stone & Liu, FAMO: fast adaptive multitask optimization, NeurIPS 2023. Deviations: tasks may come and go, as
    said above. The γ of 0.001 is that of algorithm 2 and of LibMTL; the authors' code takes 1e-5. It also clips the gradient of the
    shared parameters to norm 1, which `Clipping` does, and draws new dropout masks for L'.

    Example:
        >>> from streamlearn.plugins import FAMO
        >>> FAMO(decay=0.0)
        FAMO(decay=0.0)
    """

    info = PluginInfo(
        name="famo",
        family="weighting",
        summary="Lets all losses fall at like rates, from how much each fell in the step before.",
        reference="Liu et al. 2023, NeurIPS, eq. 9 and algorithm 2",
        conflicts=frozenset({"inner-loop"}),
        passes=Passes(forward=1),
        memory="4 numbers for each task",
    )

    class Config(PluginConfig):
        """Options of `FAMO`."""

        learning_rate: Annotated[float, Tunable(1e-3, 0.3, log=True)] = Field(0.025, gt=0, allow_inf_nan=False)
        decay: Annotated[float, Tunable(0.0, 0.1)] = Field(1e-3, ge=0, allow_inf_nan=False)
        bounds: dict[str, float] = Field(default_factory=dict)

    @hookimpl
    def collect_modules(self, run: Run) -> dict[str, Trainable]:
        """One ξ for every task met so far."""
        beside = [] if run.experience is None else [kept_number(task.name, run, self.name) for task in run.experience.tasks]
        known = [float(number.detach()) for number in beside if number is not None]
        adam = partial(torch.optim.Adam, lr=run.value(self, "learning_rate"), weight_decay=run.value(self, "decay"))
        return learned_numbers(run, math.fsum(known) / len(known) if known else 0.0, None, adam)

    @hookimpl
    def provide_weighting(self, losses: Mapping[str, Tensor], step: Step) -> Tensor:
        """s(L)."""
        distances = self._distances(losses, step)
        return balanced_logarithms(distances, {task: learned_number(task, step, self.name) for task in distances})

    def _distances(self, losses: Mapping[str, Tensor], step: Step, when: str = "") -> dict[str, Tensor]:
        """D by task."""
        found = {task: torch.stack(rows).mean() for task, rows in tasks_of_rows(losses, step, self.name).items()}
        bounds = self.config.bounds
        distances = {task: loss - bounds.get(task, 0.0) + _EPSILON for task, loss in found.items()}
        values = torch.stack([distance.detach() for distance in distances.values()]).tolist()  # one wait for the device
        for task, value in zip(distances, values, strict=True):
            if value <= 0:
                raise TrainingError(
                    f"plugin {self.name}: the loss of task {task!r} is {float(found[task].detach()):g}{when}, below its bound "
                    f"{bounds.get(task, 0.0):g}, and has no logarithm then: give a lower one, as in bounds={{{task!r}: ...}}"
                )
            if when and not math.isfinite(value):
                raise DivergenceError(
                    f"training diverged at {step.run.clock}: the loss of task {task!r} is {float(found[task].detach())}{when}; start "
                    "again, in another folder, with a lower learning rate"
                )
        return distances

    @hookimpl
    def around_update(self, update: Callable[[Mapping[str, Tensor]], None], gradients: Mapping[str, Tensor], step: Step) -> None:
        """Move ξ by how far each loss has fallen."""
        run = step.run
        if len(tasks_of_rows(step.losses, step, self.name)) < 2:
            update(gradients)
            return
        with torch.no_grad():
            # what was computed part by part has other masks and statistics than a pass over the whole batch
            here = step if step.outputs_were_read and run.options.microbatches == 1 else step.at(run.parameters())
            before = {task: value.log() for task, value in self._distances(here.rows.losses, step).items()}
        update(gradients)
        with torch.no_grad():
            after = self._distances(step.at(run.parameters()).rows.losses, step, " after the update")
            falls = torch.stack([value - after[task].log() for task, value in before.items()])
            slopes = logit_slopes(torch.stack([learned_number(task, step, self.name) for task in before]), falls)
        for task, slope in zip(before, slopes, strict=True):
            move_number(task, run, self.name, slope)
