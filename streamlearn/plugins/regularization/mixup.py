"""Mixup: train on convex combinations of pairs of rows and of their targets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from streamlearn.errors import DataError

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Batch, Segment

__all__ = ["Mixup", "draw_share", "mixed"]


def mixed(rows: Tensor, order: Tensor, share: float) -> Tensor:
    """λ v_i + (1 - λ) v_j with j = order_i; a row that is its own partner comes out bit for bit.

    Args:
        rows: v, floating-point numbers, ``(rows, ...)``.
        order: partner of each row, int64, ``(rows,)``.
        share: λ, in [0, 1].

    Example:
        >>> mixed(torch.tensor([[0.0], [4.0]]), torch.tensor([1, 0]), 0.75).flatten().tolist()
        [1.0, 3.0]
    """
    return torch.lerp(rows, rows[order], 1.0 - share)


def draw_share(alpha: float, random: torch.Generator) -> float:
    """λ ~ Beta(α, α), for which torch has no sampler that takes a generator."""
    key = int(torch.randint(2**62, (), generator=random))
    return float(np.random.Generator(np.random.Philox(key=key)).beta(alpha, alpha))


class Mixup(Plugin):
    r"""Mixup.

    .. math:: \tilde x = λ x_i + (1 - λ) x_j, \qquad \tilde y = λ y_i + (1 - λ) y_j, \qquad λ \sim Beta(α, α)

    with one λ for each batch and each row's partner j from a random permutation of the rows that share its segment (role, tasks,
    domain, source) and have labels of the same tasks. Class numbers become probabilities, for all rows of the task's column;
    regressed values are mixed as they are. Rows without a label are left alone: methods that use them want them as they are. So
    are rows that carry stored columns, such as logits, which belong to the unmixed input.

    Rows of a memory are mixed among themselves when the memory's plugin provides ``"replay"``: Mixup then acts after it. The memory
    itself keeps unmixed rows.

    Args:
        alpha: α, at least 0; 0 switches it off. The paper uses 0.1 to 0.4.

    Raises:
        DataError: inputs are no floating-point numbers, or a label is no class of its task.

    Cost: no additional pass; the cross-entropy of probabilities in place of class numbers. Memory: a second copy of the batch.

    Reference: Zhang, Cisse, Dauphin & Lopez-Paz, mixup: beyond empirical risk minimization, ICLR 2018, section 2. As in the authors'
    code, partners come from the same batch.

    Example:
        >>> from streamlearn.plugins import Mixup
        >>> Mixup(alpha=0.4)
        Mixup(alpha=0.4)
    """

    info = PluginInfo(
        name="mixup",
        family="regularization",
        summary="Trains on convex combinations of pairs of rows and of their targets.",
        reference="Zhang et al. 2018, ICLR, section 2",
        after=frozenset({"replay"}),  # rows that join later would bring class numbers into a column of probabilities
        memory="a second copy of the batch",
        ranks="local",
        strength="alpha",
    )

    class Config(PluginConfig):
        """Options of `Mixup`."""

        alpha: Annotated[float, Tunable(0.05, 2.0, log=True)] = Field(0.2, ge=0)

    @hookimpl
    def transform_batch(self, batch: Batch, step: Step) -> Batch:
        """Mix the rows that have labels; the batch handed in is left as it is."""
        alpha = step.run.value(self, "alpha")
        if alpha == 0 or not batch.targets:
            return batch
        if not batch.x.is_floating_point():
            raise DataError(f"mixup met inputs of type {batch.x.dtype}, which cannot be mixed: give floating-point inputs, or remove mixup")
        random = step.run.generator(self)
        share = draw_share(alpha, random)
        order = torch.arange(len(batch))
        for rows in _groups(batch):
            order[rows] = rows[torch.randperm(len(rows), generator=random)]
        order = order.to(batch.x.device)
        targets = {task: mixed(_as_numbers(batch, task, step.run), order, share) for task in batch.targets}
        return batch.replace(x=mixed(batch.x, order, share), targets=targets)


def _groups(batch: Batch) -> Iterator[Tensor]:
    """Positions of rows that may be mixed with each other: of one segment, with labels of the same tasks (at least one)."""
    columns = [(batch.labelled_rows(task), 2**bit) for bit, task in enumerate(batch.targets)]
    pattern = sum(column.to(torch.int64) * value for column, value in columns)
    assert isinstance(pattern, Tensor)
    pattern = pattern.cpu()
    for segment in batch.segments:
        if not _has_stored(batch, segment):
            found = pattern[segment.rows]
            for labels in torch.unique(found[found > 0]).tolist():
                yield (found == labels).nonzero().squeeze(1) + segment.start


def _has_stored(batch: Batch, segment: Segment) -> bool:
    return any(column.rows.start < segment.stop and segment.start < column.rows.stop for column in batch.stored.values())


def _as_numbers(batch: Batch, name: str, run: Run) -> Tensor:
    """The target column of a task as numbers that can be mixed: probabilities for a classification."""
    column = batch.targets[name]
    if column.is_floating_point():
        return column
    size = max(run.model.heads.sizes().get(name, 0), run.tasks[name].size)  # a head may be wider than the task is at present
    known = column.masked_fill(~batch.labelled_rows(name), 0)  # without a label the value is not specified
    if len(known) and not 0 <= int(known.min()) <= int(known.max()) < size:
        wrong = int(known.max()) if int(known.min()) >= 0 else int(known.min())
        raise DataError(
            f"task {name!r} met label {wrong}, but it has {size} classes, numbered 0 to {size - 1}: "
            "renumber the labels, or give the task its true size"
        )
    return one_hot(known, size).to(batch.x.dtype)
