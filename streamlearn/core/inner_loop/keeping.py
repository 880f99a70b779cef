"""Rows that a plugin keeps from one step to the next, and how they survive a restart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from streamlearn.streams.batch import EVERY_ROW, Batch, Labelled, Segment, concatenate

__all__ = ["anew", "halves", "packed", "unpacked"]


def anew(batch: Batch) -> Batch:
    """The same rows as another object: a view of a step on them counts as one on other rows, and moves no buffer."""
    return batch.take([(segment, segment.rows) for segment in batch.segments]).replace(stored={})


def halves(batches: Sequence[Batch]) -> tuple[Batch, Batch]:
    """The rows of the first half of ``batches``, and of the second; one alone is both.

    Example:
        >>> import torch
        >>> batches = [Batch.uniform(torch.zeros(rows, 2), "t", torch.zeros(rows), torch.arange(rows)) for rows in (3, 2, 4)]
        >>> [len(half) for half in halves(batches)]
        [5, 4]
    """
    middle = (len(batches) + 1) // 2
    first = concatenate(list(batches[:middle]))
    return first, concatenate(list(batches[middle:])) if len(batches) > 1 else first


def packed(batch: Batch) -> dict[str, Any]:
    """``batch`` as what a plugin may save; columns stored beside the rows are left out.

    Example:
        >>> import torch
        >>> batch = Batch.uniform(torch.zeros(3, 2), "t", torch.arange(3), torch.arange(3))
        >>> unpacked(packed(batch))
        Batch(train[3] of t; x (3, 2))
    """
    labelled: dict[str, Any] = {}
    for task, rows in batch.labelled.items():
        # all of them stay "all": a mean over every row and one over those of a mask differ in rounding
        labelled[task] = rows if isinstance(rows, Tensor) else "all" if rows is EVERY_ROW else list(rows.indices(len(batch))[:2])
    segments = [[s.role, s.start, s.stop, list(s.tasks), s.domain, s.source] for s in batch.segments]
    return {"x": batch.x, "targets": dict(batch.targets), "labelled": labelled, "segments": segments, "index": batch.index}


def unpacked(saved: Mapping[str, Any]) -> Batch:
    """The batch that `packed` gave."""
    labelled: dict[str, Labelled] = {}
    for task, rows in saved["labelled"].items():
        labelled[task] = rows if isinstance(rows, Tensor) else EVERY_ROW if rows == "all" else slice(*rows)
    segments = tuple(Segment(role, start, stop, tuple(tasks), *rest) for role, start, stop, tasks, *rest in saved["segments"])
    return Batch(saved["x"], dict(saved["targets"]), labelled, segments, saved["index"].cpu())
