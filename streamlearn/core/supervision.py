"""Supervision: which rows are compared with which targets, and the row losses that follow.

    rows         L_k = Σ_r scale_r Σ_i w_i l_i  /  Σ_r Σ_i w_i          over the records r of row k
    share        share_k = (Σ w of row k / Σ w of all rows) * (labels / labelled rows of the batch)

``share_k`` is the part of the labelled weight that carries a label of k: the default weighting Σ share_k L_k is therefore the
mean over rows when each row has one task, and the sum of task means when every row has them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streamlearn.streams import Batch, Task
from streamlearn.streams.batch import EVERY_ROW

if TYPE_CHECKING:
    from streamlearn.core.view import Step

__all__ = ["RowLosses", "Supervision", "losses_of_rows", "supervise", "unreduced"]


@dataclass(slots=True)  # to be treated as immutable; frozen=True would triple the cost of making one
class Supervision:
    """One comparison of outputs with targets, contributing to row ``row`` of the Jacobian.

    Args:
        row: name of the row; by default the task.
        task: name of the task, which tells the loss.
        outputs: ``(n, size)``.
        target: class numbers ``(n,)``, probabilities ``(n, size)``, or regressed values ``(n, size)``.
        weight: weight of each of the n comparisons, ``(n,)``; ``None`` means 1 each, and keeps torch's fused mean.
        active: which outputs take part, bool, ``(size,)`` or ``(n, size)``; ``None`` means all.
        scale: factor on this record's part of the row loss.
        rows: which rows of the batch are compared: a slice, positions ``(n,)``, or ``None`` for all.
    """

    row: str
    task: str
    outputs: Tensor
    target: Tensor
    weight: Tensor | None = None
    active: Tensor | None = None
    scale: float = 1.0
    rows: slice | Tensor | None = None

    def replace(self, **changes: object) -> Supervision:
        """A copy with some fields exchanged."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def take(self, chosen: slice | Tensor, rows: slice | Tensor) -> Supervision:
        """The comparisons ``chosen`` of it alone, which are those of the rows ``rows`` of the batch."""
        active = self.active
        return replace(
            self,
            outputs=self.outputs[chosen],
            target=self.target[chosen],
            weight=None if self.weight is None else self.weight[chosen],
            active=active[chosen] if active is not None and active.ndim == 2 else active,
            rows=rows,
        )

    def weight_of(self, kind: Tensor) -> float:
        """The weight of the comparisons for which ``kind``, bool ``(n,)``, is true."""
        return float(kind.sum() if self.weight is None else self.weight[kind].sum())

    def multiplied(self, kind: Tensor, inside: float, outside: float) -> Supervision:
        """With the weights multiplied by ``inside`` where ``kind``, bool ``(n,)``, is true, and by ``outside`` elsewhere."""
        factors = self.outputs.new_full((len(self.target),), outside).masked_fill_(kind, inside)
        return replace(self, weight=factors if self.weight is None else factors * self.weight)


@dataclass(slots=True)
class RowLosses:
    """The losses by row, and the share of each in the default weighting."""

    losses: dict[str, Tensor]
    shares: dict[str, float | Tensor]


def supervise(step: Step) -> tuple[Supervision, ...]:
    """One record for each task that has labels in the batch; a task without any is a missing row, not a zero row."""
    batch = step.batch
    records = []
    for task, target in batch.targets.items():
        rows = batch.labelled.get(task, slice(0, 0))
        if isinstance(rows, slice):
            if rows is EVERY_ROW or rows == EVERY_ROW:
                records.append(Supervision(task, task, step.outputs[task], target))
            elif rows.start != rows.stop:
                records.append(Supervision(task, task, step.outputs.on(task, rows), target[rows], rows=rows))
        else:
            places = rows.nonzero().squeeze(1)
            if len(places):
                records.append(Supervision(task, task, step.outputs[task][places], target[places], rows=places))
    return tuple(records)


def _masked(record: Supervision) -> Tensor:
    if record.active is None:
        return record.outputs
    # a large finite number instead of -inf: 0 * -inf under soft targets would be NaN, while exp() of it is exactly 0 as well
    return record.outputs.masked_fill(~record.active, torch.finfo(record.outputs.dtype).min / 2)


def unreduced(record: Supervision, tasks: Mapping[str, Task]) -> Tensor:
    """The task's own loss for each comparison, ``(n,)``."""
    return tasks[record.task].loss(_masked(record), record.target, mean=False)


def losses_of_rows(
    records: Sequence[Supervision], tasks: Mapping[str, Task], batch: Batch, given: Iterable[Tensor] | None = None
) -> RowLosses:
    """Reduce ``records`` to one loss per row; ``given`` are unreduced losses that replace the task's own, one per record."""
    if given is None and len(records) == 1 and records[0].weight is None:
        record = records[0]
        outputs = record.outputs if record.active is None else _masked(record)
        loss = tasks[record.task].loss(outputs, record.target, mean=True)
        return RowLosses({record.row: loss if record.scale == 1.0 else loss * record.scale}, {record.row: 1.0})
    each = [unreduced(record, tasks) for record in records] if given is None else list(given)
    weights: list[float | Tensor] = [float(len(record.target)) if record.weight is None else record.weight.sum() for record in records]
    by_row: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        by_row.setdefault(record.row, []).append(number)
    losses: dict[str, Tensor] = {}
    row_weight: dict[str, float | Tensor] = {}
    for row, numbers in by_row.items():
        row_weight[row] = sum(weights[n] for n in numbers)
        total = sum(_weighted_sum(records[n], each[n]) for n in numbers)
        losses[row] = total / _nonzero(row_weight[row])  # type: ignore[assignment]
    everything = _nonzero(sum(row_weight.values()))
    labels = sum(len(record.target) for record in records)
    spread = labels / _labelled_rows(records, batch)
    return RowLosses(losses, {row: weight / everything * spread for row, weight in row_weight.items()})


def _nonzero(weight: float | Tensor) -> float | Tensor:
    """``weight``, or 1 where it is 0: a row without weight has loss 0 and share 0, not NaN."""
    return torch.where(weight == 0, torch.ones_like(weight), weight) if isinstance(weight, Tensor) else weight


def _weighted_sum(record: Supervision, each: Tensor) -> Tensor:
    total = each.sum() if record.weight is None else (record.weight * each).sum()
    return total if record.scale == 1.0 else total * record.scale


def _labelled_rows(records: Sequence[Supervision], batch: Batch) -> int:
    """How many rows of the batch are compared at all."""
    if any(record.rows is None for record in records):
        return len(batch)
    seen = torch.zeros(len(batch), dtype=torch.bool, device=batch.x.device)
    for record in records:
        seen[record.rows] = True
    return int(seen.sum())
