"""More rows of the same: data-incremental streams, in a random order or in that of time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streamlearn.errors import DataError
from streamlearn.streams.data import classes_in
from streamlearn.streams.experience import EvaluationSet, Experience
from streamlearn.streams.inputs import count_experiences, resolve, whole_number
from streamlearn.streams.partition import chunk_edges, permutation
from streamlearn.streams.protocols.building import stream_over
from streamlearn.streams.stream import Stream

if TYPE_CHECKING:
    from streamlearn.streams.inputs import Inputs, SourceLike

__all__ = ["data_incremental"]


def data_incremental(
    source: SourceLike,
    experiences: int | None = None,
    *,
    rows: int | None = None,
    shuffle: bool = True,
    seed: int = 0,
    test: SourceLike | None = None,
    test_fraction: float = 0.2,
) -> Stream:
    """More rows of the same task in every experience: drawn at random, or in the order in which the source has them.

    Protocol: the training rows, in a random order, are cut into ``experiences`` chunks whose sizes differ by at most one, or into chunks
    of ``rows`` (the last may be shorter). All share one evaluation set, all test rows. With ``shuffle=False`` the rows keep the order of
    the source, which for recorded data is that of time; if the test rows are then split off the same source, evaluation set ``i`` holds
    those that lie between the training rows of experience ``i``, so that drift can be seen (where none lie there, the experience shares
    the set before it).

    Args:
        source: a name, ``(x, y)`` arrays, a map-style torch data set, or a `Source`; targets may be classes or, for regression, floats.
        experiences: from 1 to the number of training rows; by default 5.
        rows: of each experience, at least 1; in place of ``experiences``.
        shuffle: whether the rows are shuffled before they are cut.
        seed: at least 0; of the order and of the test split.
        test, test_fraction: what to evaluate on, as in `class_incremental`.

    Raises:
        DataError: an argument is out of its range, or the labels are not class numbers 0 to n-1 without gaps.

    Source: De Lange and Tuytelaars, "Continual prototype evolution", ICCV 2021 (the data-incremental setting); Lomonaco and
        Maltoni, "CORe50", CoRL 2017 (new instances); recorded streams: Gama et al., "A survey on concept drift adaptation", 2014.

    Example:
        >>> [len(experience.data["train"]) for experience in data_incremental("digits", 4)]
        [360, 360, 359, 359]
        >>> len(data_incremental("digits", rows=100)), len(data_incremental("digits", rows=100).sets)
        (15, 1)
    """
    inputs = resolve(source, test, test_fraction, seed, regression=True)
    known, task = len(inputs.train.indices), inputs.task
    edges = _edges(known, experiences, rows, inputs.name)
    order = permutation(known, seed=inputs.seed, purpose="rows") if shuffle else torch.arange(known)
    by_time = not shuffle and inputs.test.source.name == inputs.train.source.name

    def experience(i: int) -> Experience:
        positions = order[slice(*edges[i])].sort().values
        data = inputs.train.data(positions, task)
        return Experience(i, (task,), {"train": data}, f"chunk {i}", classes_in(data))

    home, first_set = _by_time(inputs, edges) if by_time else (torch.zeros(len(inputs.test.indices), dtype=torch.int64), [0] * len(edges))

    def evaluation(i: int) -> EvaluationSet:
        name = f"test rows of chunk {i}" if by_time else "all test rows"
        return EvaluationSet(i, inputs.test.data((home == i).nonzero().flatten(), task), name)

    options = {"experiences": len(edges) if rows is None else None, "rows": rows, "shuffle": bool(shuffle)}
    return stream_over(
        inputs,
        "data_incremental",
        (task,),
        experience=experience,
        evaluation=evaluation,
        options=options,
        length=len(edges),
        sets=lambda i: (first_set[i],),
    )


def _edges(known: int, experiences: int | None, rows: int | None, name: str) -> list[tuple[int, int]]:
    if rows is None:
        count = count_experiences(experiences, 5)
        if known < count:
            raise DataError(f"source {name!r} has {known} training rows, fewer than {count} experiences: ask for at most {known}")
        return chunk_edges(known, count)
    if experiences is not None:
        raise DataError(f"experiences is {experiences} and rows is {rows}: the one follows from the other, give one of them")
    size = whole_number(rows, "rows", 1)
    return [(start, min(start + size, known)) for start in range(0, known, size)]


def _by_time(inputs: Inputs, edges: list[tuple[int, int]]) -> tuple[Tensor, list[int]]:
    """In which chunk each test row lies, and the evaluation set of each chunk: its own, or the last that has rows."""
    starts = inputs.train.indices[torch.tensor([start for start, _ in edges])]
    home = (torch.searchsorted(starts, inputs.test.indices, right=True) - 1).clamp_min(0)
    filled = torch.unique(home)
    latest = (torch.searchsorted(filled, torch.arange(len(edges)), right=True) - 1).clamp_min(0)
    return home, filled[latest].tolist()
