"""What weightings share: which task a row belongs to, sums of weighted losses, and numbers that are learned, one for each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from streamlearn.core.optimization import OptimizerFactory, Trainable
from streamlearn.errors import TrainingError

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step

__all__ = ["LearnedNumber", "kept_number", "learned_number", "learned_numbers", "move_number", "task_of", "tasks_of_rows", "weighted_sum"]


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Σ w_k L_k, a scalar.

    A row of weight 0 is left out of the graph: the parameters of its task get no gradient, not one of zeros. It still counts as a
    number, so that a loss that is not finite does not go unnoticed.

    Args:
        losses: L by row, at least one.
        weights: w by row.

    Example:
        >>> weighted_sum({"a": torch.tensor(3.0), "b": torch.tensor(1.0)}, {"a": 2.0, "b": 0.5}).item()
        6.5
    """
    parts = [_weighted(loss, weights[row]) for row, loss in losses.items()]
    return sum(parts[1:], parts[0])


def _weighted(loss: Tensor, weight: float) -> Tensor:
    if weight == 1.0:
        return loss
    return weight * (loss if weight else loss.detach())


def task_of(row: str, step: Step, plugin: str) -> str:
    """The task to which ``row`` belongs: by its name (``"<task>"``, ``"<task>@..."``, ``"<task>/..."``), or by its supervision.

    Args:
        row: name of a row.
        step: the step in which it was met.
        plugin: name of the plugin that asks.

    Raises:
        TrainingError: it belongs to none.
    """
    tasks = step.run.tasks
    if row in tasks:
        return row
    found = [task for task in tasks if row.startswith((f"{task}@", f"{task}/"))]
    if not found:
        found = [record.task for record in step.supervision if record.row == row]
    if not found:
        raise TrainingError(
            f"plugin {plugin} met the row {row!r}, which belongs to none of the tasks {', '.join(tasks)}: name it after its task, "
            f"as in '<task>@<domain>' or '<task>/<what>'"
        )
    return max(found, key=len)


def tasks_of_rows(losses: Mapping[str, Tensor], step: Step, plugin: str) -> dict[str, list[Tensor]]:
    """The losses of the rows of each task, by task in the order of the rows; see `task_of`."""
    found: dict[str, list[Tensor]] = {}
    for row, loss in losses.items():
        found.setdefault(task_of(row, step, plugin), []).append(loss)
    return found


class LearnedNumber(nn.Module):
    """One number to be learned; called without arguments it answers with it.

    Args:
        initial: the number at first.
        like: a tensor whose floating-point type it takes; default torch's own.
    """

    def __init__(self, initial: float, like: Tensor | None = None) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(float(initial), dtype=None if like is None else like.dtype))

    def forward(self) -> Tensor:
        """The number, ``()``."""
        return self.value


def learned_numbers(
    run: Run, initial: float, learning_rate: float | None, optimizer: OptimizerFactory | None = None
) -> dict[str, Trainable]:
    """What `collect_modules` answers for one number for every task met so far, of the model's floating-point type and never decayed.

    Args:
        run: the run.
        initial: a number at first; one that is there already stays.
        learning_rate: within the main optimiser; ``None`` takes the main one.
        optimizer: builds one for each number in place of the main one.
    """
    like = next((p for p in run.model.parameters() if p.is_floating_point()), None)
    return {_key(task): Trainable(LearnedNumber(initial, like), optimizer, learning_rate) for task in run.tasks}


def learned_number(row: str, step: Step, plugin: str) -> Tensor:
    """The number of `learned_numbers` of the task of ``row``, at the parameters of ``step``."""
    number: Tensor = step.module(f"{plugin}/{_key(task_of(row, step, plugin))}")()
    return number


def kept_number(task: str, run: Run, plugin: str) -> Tensor | None:
    """The number of `learned_numbers` of ``task`` itself, not at some step; ``None`` before there is one."""
    module = run.modules.get(f"{plugin}/{_key(task)}")
    return module.value if isinstance(module, LearnedNumber) else None


def move_number(task: str, run: Run, plugin: str, gradient: Tensor) -> None:
    """One update of the number of ``task`` by the optimiser of its own."""
    run.optimization.move(f"{plugin}/{_key(task)}", {"value": gradient})


def _key(task: str) -> str:
    # a dot would end the module's name within a parameter's name
    return task.replace(".", "\N{ONE DOT LEADER}")
