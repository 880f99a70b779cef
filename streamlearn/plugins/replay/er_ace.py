"""Experience replay with asymmetric cross-entropy (ER-ACE): incoming rows do not push old classes away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.core.supervision import Supervision
    from streamlearn.streams import Batch

__all__ = ["ERACE", "present_classes"]


def present_classes(targets: Iterable[Tensor], size: int) -> Tensor:
    """Which of ``size`` classes occur in ``targets``, a bool column ``(size,)``.

    Args:
        targets: columns of class numbers ``(rows,)``, or of probabilities ``(rows, size)``, in which every class above 0 occurs.
        size: number of classes.

    Example:
        >>> present_classes([torch.tensor([2, 0])], 4).tolist()
        [True, False, True, False]
    """
    columns = list(targets)
    present = torch.zeros(size, dtype=torch.bool, device=columns[0].device if columns else None)
    for target in columns:
        if target.is_floating_point():
            present |= (target > 0).any(0)
        else:
            present[target.clamp(0, size - 1)] = True  # a label out of range is the loss's to report, with the task's name
    return present


class ERACE(Plugin):
    r"""Experience replay with asymmetric cross-entropy.

    .. math:: L = \frac1n \Big( \sum_{i \in in} CE(x_i, y_i; C_{curr}) + \sum_{i \in memory} CE(x_i, y_i; C_{old} \cup C_{curr}) \Big)

    where CE(x, y; C) is the cross-entropy under a softmax over the classes in C alone. C_curr are the classes among the incoming
    rows of this batch, so that incoming rows compete with each other only and do not push the features of old classes away; memory
    rows are told apart among all classes met so far. A record that mixes both is split in two of the same row. Tasks that are no
    classification, and rows without a label, are left alone.

    Incoming rows are masked from the moment there is something to protect: the task has a finished experience, or the batch brings
    memory rows of it. Before, they are compared with all classes, as in the authors' code.

    With probabilities for targets (mixup), every class with a probability above 0 counts as present.

    Cost: no additional pass. Memory: none beyond the replay plugin's.

    Reference: Caccia et al., New insights on reducing abrupt representation change in online continual learning, ICLR 2022, the loss
    of ER-ACE in section 4. Deviation: the paper adds the means of the two parts, here L stays the mean over all rows; with as many
    memory rows as incoming ones that is half of it, so the learning rates correspond by a factor of 2. With micro-batches the
    classes present are those of the micro-batch.

    Example:
        >>> from streamlearn.plugins import ERACE, Replay
        >>> [Replay(capacity=200, fill="step"), ERACE()]
        [Replay(capacity=200, fill='step'), ERACE()]
    """

    info = PluginInfo(
        name="er_ace",
        family="replay",
        summary="Compares incoming rows with the classes of their own batch only, and memory rows with all classes.",
        reference="Caccia et al. 2022, ICLR, section 4, loss of ER-ACE",
        requires=frozenset({"replay"}),
        before=frozenset({"bam", "multi_teacher"}),  # in a teacher's prediction every class has a part, and would count as present
        ranks="local",
    )

    class Config(PluginConfig):
        """`ERACE` has no options."""

    @hookimpl
    def transform_supervision(self, supervision: tuple[Supervision, ...], step: Step) -> tuple[Supervision, ...]:
        """Split records into incoming and memory rows, and say which classes are active for each."""
        run, batch = step.run, step.batch
        by_task: dict[str, list[tuple[bool, Supervision]]] = {}
        found: list[tuple[bool, Supervision]] = []
        for record in supervision:
            if run.tasks[record.task].kind == "classification":
                pieces = list(_split(record, batch))
                by_task.setdefault(record.task, []).extend(pieces)
                found += pieces
            else:
                found.append((False, record))
        masks = {task: _masks(task, pieces, run) for task, pieces in by_task.items()}
        return tuple(_masked(record, masks[record.task][replayed]) if record.task in masks else record for replayed, record in found)


def _masks(task: str, pieces: list[tuple[bool, Supervision]], run: Run) -> tuple[Tensor | None, Tensor | None]:
    """The classes active for incoming and for memory rows of ``task``; ``None`` means all."""
    protects = task in run.classes_seen or any(replayed for replayed, _ in pieces)
    if not protects:
        return None, None
    size = pieces[0][1].outputs.shape[1]
    incoming = present_classes((record.target for replayed, record in pieces if not replayed), size).to(pieces[0][1].outputs.device)
    known = {*run.classes_seen.get(task, ())}
    if run.experience is not None:
        known.update(run.experience.classes.get(task, ()))  # a memory filled as rows come holds classes of this experience too
    met = present_classes([torch.tensor(sorted(known), dtype=torch.int64)], size).to(incoming.device)
    replayed_targets = [record.target for replayed, record in pieces if replayed]
    return incoming, met | incoming | present_classes(replayed_targets, size).to(incoming.device)


def _masked(record: Supervision, active: Tensor | None) -> Supervision:
    if active is None:
        return record
    return record.replace(active=active if record.active is None else record.active & active)


def _split(record: Supervision, batch: Batch) -> Iterator[tuple[bool, Supervision]]:
    """(whether they are memory rows, record) for each stretch of rows that are all the one or all the other."""
    stretches = _stretches(batch)
    if len(stretches) == 1:
        yield stretches[0][0], record
    elif isinstance(record.rows, Tensor):
        replayed = torch.zeros(len(batch), dtype=torch.bool, device=record.rows.device)
        for memory, start, stop in stretches:
            replayed[start:stop] = memory
        for memory in (False, True):
            chosen = (replayed[record.rows] == memory).nonzero().squeeze(1)
            if len(chosen):
                yield memory, record.take(chosen, record.rows[chosen])
    else:
        first, last, _ = (record.rows or slice(None)).indices(len(batch))
        for memory, start, stop in stretches:
            inside = slice(max(start, first), min(stop, last))
            if inside.start < inside.stop:
                yield memory, record.take(slice(inside.start - first, inside.stop - first), inside)


def _stretches(batch: Batch) -> list[tuple[bool, int, int]]:
    """(whether they are memory rows, start, stop), neighbours of one sort joined."""
    found: list[tuple[bool, int, int]] = []
    for segment in batch.segments:
        memory = segment.is_memory
        start = found.pop()[1] if found and found[-1][0] == memory else segment.start
        found.append((memory, start, segment.stop))
    return found
