"""One task of a stream of several, by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams.data import Data, JoinedData, join
from streamlearn.streams.experience import EvaluationSet, Experience
from streamlearn.streams.operators.deriving import checked_stream
from streamlearn.streams.stream import Stream

__all__ = ["single_task"]

Rows = Data | JoinedData


def single_task(stream: Stream, task: str) -> Stream:
    """One task of a stream by itself: what a model that is trained for it alone meets, and is measured on.

    Protocol: of every role, the rows that are asked on ``task``, asked on it alone, in their order. In roles ``train`` and ``validation``
    a row that has no label for it is left out: it has nothing to tell, and would make batches smaller than they are. Experiences that
    then have no row are left out, and so are evaluation sets that do not ask the task; the others keep their order.

    Args:
        stream: a finite stream of rows, not episodes.
        task: the name of one of its tasks.

    Raises:
        UnknownNameError: the stream has no task of this name.
        DataError: it is no stream, is endless or has episodes, or no experience has a row of the task.

    Source: the usual baseline of multi-task learning, e.g. Vandenhende et al., "Multi-task learning for dense prediction tasks: a survey",
        TPAMI 2021.

    Example:
        >>> from streamlearn.streams import multitask, single_task
        >>> alone = single_task(multitask("digits", 2), "left")
        >>> alone.tasks == multitask("digits").tasks[:1], alone[0].data["train"].batch(torch.arange(2)).tasks
        (True, ('left',))
    """
    base = checked_stream(stream, "single_task", finite=True)
    wanted = next((one for one in base.tasks if one.name == task), None)
    if wanted is None:
        raise UnknownNameError("task", str(task), [one.name for one in base.tasks])
    kept = [i for i in range(len(base)) if any(len(data) for data in _roles(base[i], task).values())]
    if not kept:
        raise DataError(f"no experience of stream {base.name!r} has a row of task {task!r}: choose another task")

    def experience(i: int) -> Experience:
        found = base[kept[i]]
        classes = {name: numbers for name, numbers in found.classes.items() if name == task}
        return replace(found, index=i, tasks=(wanted,), data=_roles(found, task), classes=classes)

    def evaluation(k: int) -> EvaluationSet:
        found = base.evaluation_set(k)
        return replace(found, data=_only(found.data, task, labelled=False))

    return Stream(
        f"{base.name}/{task}",
        len(kept),
        experience,
        evaluation,
        tasks=(wanted,),
        input_shape=base.input_shape,
        description={"builder": "single_task", "stream": base.description, "task": task},
        fingerprints=lambda: base.fingerprints,
        sets=_sets(base, kept, task),
        truth=_truth(base, kept, task),
    )


def _sets(base: Stream, kept: list[int], task: str) -> Callable[[int], tuple[int, ...]]:
    asked = {k: any(one.name == task for one in base.evaluation_set(k).tasks) for i in kept for k in base.sets_of(i)}
    mine = [tuple(k for k in base.sets_of(i) if asked[k]) for i in kept]
    if not all(mine):
        which = kept[mine.index(())]
        raise DataError(f"experience {which} of stream {base.name!r} has rows of task {task!r}, and none of its evaluation sets asks it")
    return mine.__getitem__


def _truth(base: Stream, kept: list[int], task: str) -> Callable[[int], Rows | None]:
    def truth(i: int) -> Rows | None:
        found = base.truth(kept[i])
        return None if found is None else _only(found, task, labelled=False)

    return truth


def _roles(found: Experience, task: str) -> dict[str, Rows]:
    made = {role: _parts(data, task, labelled=role in ("train", "validation")) for role, data in found.data.items()}
    return {role: join(parts) for role, parts in made.items() if parts}


def _only(data: Rows, task: str, *, labelled: bool) -> Rows:
    return join(_parts(data, task, labelled=labelled))


def _parts(data: Rows, task: str, *, labelled: bool) -> list[Data]:
    """The pieces of ``data`` that are asked on ``task``, asked on it alone; where ``labelled``, without rows that have no label for it."""
    found = []
    for part in data.parts():
        asked = tuple(one for one in part.tasks if one.name == task)
        if len(part) != len(part.indices):
            raise DataError(f"data of source {part.source.name!r} are episodes: single_task is for streams of rows")
        if not asked or (labelled and task not in part.targets):
            continue
        masks = {task: part.labelled[task]} if task in part.labelled else {}
        targets = {task: part.targets[task]} if task in part.targets else {}
        alone = replace(part, tasks=asked, targets=targets, labelled=masks)
        if labelled and masks:
            alone = replace(alone.subset(torch.arange(len(part))[masks[task]]), labelled={})
        found += [alone] if len(alone) else []
    return found
