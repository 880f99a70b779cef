"""What several methods of distillation need: a teacher's outputs on some rows, labels as probabilities, and the loss between logits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streamlearn.core.forward import Forward
from streamlearn.errors import ConfigurationError, DataError, nearest

if TYPE_CHECKING:
    from streamlearn.core.plugin import Plugin
    from streamlearn.streams import Stream

__all__ = ["as_probabilities", "distillation_loss", "outputs_on", "refuse_unknown_tasks"]


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float, columns: Tensor | None = None) -> Tensor:
    """-mean_i Σ_c p_ic log q_ic with p = softmax(teacher / T), q = softmax(student / T): a scalar.

    Args:
        student: logits ``(rows, classes)``.
        teacher: logits of the same shape, or ``(rows, len(columns))``.
        temperature: T, above 0.
        columns: which outputs of the student those of the teacher are, where it has fewer; the student's other outputs take part in its
            softmax and have probability 0 in the target.

    Example:
        >>> round(distillation_loss(torch.zeros(3, 2), torch.zeros(3, 2), 2.0).item(), 4)  # log 2
        0.6931
        >>> round(distillation_loss(torch.zeros(3, 4), torch.zeros(3, 2), 2.0, torch.tensor([0, 1])).item(), 4)  # log 4
        1.3863
    """
    log_q = torch.log_softmax(student / temperature, 1)
    if columns is not None:
        log_q = log_q.index_select(1, columns)
    return -(torch.softmax(teacher / temperature, 1) * log_q).sum(1).mean()


def as_probabilities(target: Tensor, outputs: Tensor, task: str) -> Tensor:
    """Class numbers ``(rows,)`` as one-hot rows ``(rows, classes)`` like ``outputs``; probabilities stay as they are.

    Raises:
        DataError: a label is no class of the task.

    Example:
        >>> as_probabilities(torch.tensor([1, 0]), torch.zeros(2, 2), "a").tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    if target.is_floating_point():
        return target
    try:
        return torch.zeros_like(outputs.detach()).scatter_(1, target.unsqueeze(1), 1.0)
    except RuntimeError as error:
        raise DataError(
            f"task {task!r} met labels from {int(target.min())} to {int(target.max())}, but it has {outputs.shape[1]} classes, "
            f"numbered 0 to {outputs.shape[1] - 1}: renumber the labels, or give the task its true size"
        ) from error


def outputs_on(plugin: Plugin, teacher: Forward, task: str, rows: slice | Tensor | None) -> Tensor:
    """The outputs of ``teacher`` for ``task`` on ``rows`` (a slice, positions, or ``None`` for all).

    Raises:
        ConfigurationError: the teacher has no head for the task.
    """
    if not teacher.serves(task):
        raise ConfigurationError(
            f"plugin {plugin.name}: the teacher of task {task!r} is a model without a head for it (it has: "
            f"{', '.join(teacher) or 'none'}): give a model that has one, or a plain module"
        )
    if isinstance(rows, slice):
        return teacher.on(task, rows)
    return teacher[task] if rows is None else teacher[task][rows]


def refuse_unknown_tasks(plugin: Plugin, tasks: Iterable[str], stream: Stream) -> None:
    """Refuse a task that no experience of ``stream`` has: its teacher would silently never be read.

    Raises:
        ConfigurationError: there is one; the nearest name is offered.
    """
    known = {task.name for task in stream.tasks}
    if known >= set(tasks):
        return
    known |= {task.name for experience in stream for task in experience.tasks}  # those that only arrive on the way
    for task in tasks:
        if task not in known:
            guess = nearest(task, sorted(known))
            raise ConfigurationError(
                f"plugin {plugin.name}: a teacher is given for task {task!r}, which stream {stream.name!r} does not have"
                f"{f'; did you mean {guess!r}?' if guess else ''} (it has: {', '.join(sorted(known))})"
            )
