"""Rows of neighbouring or of all experiences mixed: blurry class boundaries, and gradual transitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache
from itertools import accumulate
from math import inf

import torch
from torch import Tensor

from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams.data import Data, JoinedData, join
from streamlearn.streams.experience import Experience
from streamlearn.streams.inputs import real_number, whole_number
from streamlearn.streams.operators.deriving import checked_fraction, checked_stream, classes_in, derived
from streamlearn.streams.operators.drift import SHAPES, NoisyOrder
from streamlearn.streams.operators.identity import Apart
from streamlearn.streams.operators.leaving import Leaving
from streamlearn.streams.operators.thinning import NO_CLASS, Class, rows_by_class
from streamlearn.streams.partition import chunk_edges, permutation
from streamlearn.streams.stream import Stream

__all__ = ["blurry", "gradual"]


def blurry(stream: Stream, fraction: float = 0.1, *, disjoint: float = 0.0, seed: int = 0) -> Stream:
    """Blurry boundaries: some rows of every experience arrive in the others.

    Protocol: of the n training rows of each experience, round(fraction * n), drawn at random but never all, go to the other experiences,
    to each as many up to one; who gets one more is chosen so that the sizes of experiences change as little as possible. With
    ``disjoint``, that fraction of the classes (of the whole stream, rounded) is drawn first, and their rows neither go nor count in n.
    Every row still arrives exactly once; evaluation sets stay as they are.

    Args:
        stream: a finite stream of at least two experiences, all with role ``train``; other roles stay as they are.
        fraction: in [0, 1): how much is given away.
        disjoint: in [0, 1): how many of the classes stay where they are; above 0 for classification only. A row of several tasks is of
            its class of the first.
        seed: at least 0; of the classes and of the rows.

    Raises:
        DataError: an argument is out of its range, or the stream is endless, has one experience, or lacks training rows or classes.

    Source: Bang et al., "Rainbow memory: continual learning with a memory of diverse samples", CVPR 2021 (Blurry-M: M = 100 * fraction);
        Koh et al., "Online continual learning on class incremental blurry task configuration with anytime inference", ICLR 2022
        (i-Blurry-N-M: N = 100 * disjoint).

    Example:
        >>> from streamlearn.streams import class_incremental
        >>> base = class_incremental("digits", 5, shuffle=False)
        >>> stream = blurry(base, 0.1)
        >>> base[0].classes["digits"], stream[0].classes["digits"]
        ((0, 1), (0, 1, 2, 3, 4, 5, 6, 7, 8, 9))
        >>> [len(experience.data["train"]) for experience in base], [len(experience.data["train"]) for experience in stream]
        ([288, 288, 291, 288, 283], [288, 288, 291, 288, 283])
    """
    base = checked_stream(stream, "blurry", finite=True)
    fraction = checked_fraction(fraction, "fraction", zero=True)
    disjoint = checked_fraction(disjoint, "disjoint", zero=True)
    seed = whole_number(seed, "seed", 0)
    if len(base) == 1:
        raise DataError(f"blurry mixes experiences, and stream {base.name!r} has only one: cut it into more")
    without = next((experience.index for experience in base if "train" not in experience.data), None)
    if without is not None:
        raise DataError(f"blurry exchanges training rows, and experience {without} of stream {base.name!r} has none: leave it out")
    staying = _drawn_classes(base, disjoint, seed) if disjoint else frozenset[Class]()

    leaving = cache(lambda: Leaving.of(base, fraction, staying, seed))
    apart = Apart()

    def experience(i: int) -> Experience:
        known = base[i]
        train = known.data["train"]
        stays = torch.ones(len(train), dtype=torch.bool)
        stays[leaving().rows[i]] = False
        mixed = join(apart(join([train.subset(stays.nonzero().flatten()), *leaving().to(i)]).parts()))
        tasks = tuple({task.name: task for task in (*known.tasks, *mixed.tasks)}.values())
        classes = {**dict.fromkeys(known.classes, ()), **classes_in(mixed)}
        return replace(known, data={**known.data, "train": mixed}, tasks=tasks, classes=classes)

    options = {"fraction": fraction, "disjoint": disjoint, "seed": int(seed)}
    return derived(base, "blurry", options, experience=experience, length=len(base))


def _drawn_classes(base: Stream, disjoint: float, seed: int) -> frozenset[Class]:
    found = dict.fromkeys(key for experience in base for key in rows_by_class(experience.data["train"]) if key != NO_CLASS)
    if not found:
        raise DataError(f"disjoint is {disjoint}, but no training row of stream {base.name!r} has a class: leave it at 0")
    known = sorted(found)
    return frozenset(
        known[place] for place in permutation(len(known), seed=seed, purpose="disjoint")[: round(disjoint * len(known))].tolist()
    )


def gradual(stream: Stream, width: float = 0.5, *, shape: str = "linear", experiences: int | None = None, seed: int = 0) -> Stream:
    """Gradual transitions: around every boundary, rows of both sides arrive mixed.

    Protocol: row r of experience i has time i + (rank + 1/2) / n_i, with its rank among the n_i rows drawn at random. Noise is added, and
    all rows, sorted by their noisy times, are cut into chunks. "linear": the noise is uniform on (-width/2, width/2), so that the share of
    the next experience rises in a straight line from 0 to 1 over ``width`` around the boundary. "sigmoid": it is logistic with scale
    width/8, so that the share is 1 / (1 + exp(-8 s / width)) at the distance s past the boundary: 1.8 % and 98.2 % at the ends of
    ``width``. Every role is mixed by itself; no row is lost or repeated. A chunk has the evaluation sets of the experience that most of its
    rows are from (the earlier of equals); a set that no chunk has so belongs to the chunk with most of its experiences' rows. Rows that are
    of one kind keep the order of their times; those of different domains or tasks are grouped within the chunk.

    Args:
        stream: a finite stream, each experience with the same main role.
        width: above 0; of a transition, in experiences. Up to 1, transitions do not overlap.
        shape: "linear" or "sigmoid".
        experiences: number of chunks, from 1 to the number of rows, of sizes that differ by at most one; ``None``: as many and as large as
            the experiences were.
        seed: at least 0.

    Raises:
        DataError: an argument is out of its range, the stream is endless, or its experiences are about different roles.
        UnknownNameError: there is no such shape.

    Source: Lee et al., "A neural Dirichlet process mixture model for task-free continual learning", ICLR 2020, appendix (fuzzy boundaries);
        Zeno et al., "Task agnostic continual learning using online variational Bayes", 2018.

    Example:
        >>> from streamlearn.streams import class_incremental
        >>> stream = gradual(class_incremental("digits", 5, shuffle=False), 0.5, experiences=20)
        >>> [stream[i].classes["digits"] for i in range(2, 6)]
        [(0, 1), (0, 1, 2, 3), (0, 1, 2, 3), (2, 3)]
    """
    base = checked_stream(stream, "gradual", finite=True)
    if not 0 < real_number(width) < inf:
        raise DataError(f"width is {width!r}: give a number above 0, of experiences")
    if shape not in SHAPES:
        raise UnknownNameError("shape", str(shape), SHAPES)
    seed = whole_number(seed, "seed", 0)
    main, sizes = _roles(base)
    edges = {role: _edges(role, counts, experiences, main) for role, counts in sizes.items()}
    order = {
        role: NoisyOrder(counts, width=float(width), shape=shape, seed=seed, purpose=f"gradual {role}") for role, counts in sizes.items()
    }
    whole, apart = lru_cache(maxsize=8)(lambda i: base[i]), Apart()

    def gathered(role: str, i: int) -> tuple[Data | JoinedData, list[int]]:
        """The rows of chunk ``i``, and from which experiences they are."""
        homes, rows = order[role].between(*edges[role][i])
        known = torch.unique(homes).tolist()
        found = join([whole(home).data[role].subset(rows[homes == home]) for home in known])
        if isinstance(found, Data):  # joined home by home; back into the order of their times
            return found.subset(homes.argsort(stable=True).argsort()), known
        return join(apart(found.parts())), known

    def experience(i: int) -> Experience:
        data, homes = {}, list[Experience]()
        for role in edges:
            start, stop = edges[role][i]
            if start < stop:
                data[role], known = gathered(role, i)
                homes = [whole(home) for home in known] if role == main else homes
        name = " to ".join(dict.fromkeys(home.name for home in (homes[0], homes[-1]) if home.name))
        tasks = tuple({task.name: task for home in homes for task in home.tasks}.values())
        classes = {**dict.fromkeys((task for home in homes for task in home.classes), ()), **classes_in(data[main])}
        return Experience(i, tasks, data, name, classes)

    def truth(i: int) -> Data | JoinedData | None:
        homes = torch.unique(order["target"].between(*edges["target"][i])[0]).tolist() if "target" in order else []
        known = [found for home in homes if (found := base.truth(home)) is not None]
        return join(known) if known else None

    @cache
    def sets() -> list[tuple[int, ...]]:
        return _sets(base, [torch.unique(order[main].between(*edge)[0], return_counts=True) for edge in edges[main]])

    options = {"width": float(width), "shape": shape, "experiences": None if experiences is None else len(edges[main]), "seed": int(seed)}
    length = len(edges[main])
    return derived(base, "gradual", options, experience=experience, length=length, sets=lambda i: sets()[i], truth=truth)


def _roles(base: Stream) -> tuple[str, dict[str, list[int]]]:
    """The main role of all experiences, and how many rows of each role each of them has."""
    main, sizes = base[0].main_role, dict[str, list[int]]()
    for i, experience in enumerate(base):
        if experience.main_role != main:
            raise DataError(
                f"gradual mixes rows of one role, but experience 0 of stream {base.name!r} is about {main!r} and experience {i} about "
                f"{experience.main_role!r}: take a part whose experiences are alike"
            )
        for role, data in experience.data.items():
            sizes.setdefault(role, [0] * len(base))[i] = len(data)
    return main, sizes


def _edges(role: str, sizes: Sequence[int], experiences: int | None, main: str) -> list[tuple[int, int]]:
    """Start and stop of the rows of ``role`` in each chunk."""
    if experiences is None:
        stops = list(accumulate(sizes))
        return list(zip([0, *stops], stops, strict=False))
    count = whole_number(experiences, "the number of experiences", 1)
    if role == main and count > sum(sizes):
        raise DataError(f"the number of experiences is {count}, but there are only {sum(sizes)} rows of role {role!r}: ask for fewer")
    return chunk_edges(sum(sizes), count)


def _sets(base: Stream, homes: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[int, ...]]:
    """The evaluation sets of each chunk, of which ``homes`` says from which experiences how many of its rows are."""
    found = [base.sets_of(int(known[counts.argmax()])) for known, counts in homes]
    for number in sorted(set(range(len(base.sets))) - {number for several in found for number in several}):
        owners = torch.tensor([number in base.sets_of(home) for home in range(len(base))])
        best = max(range(len(homes)), key=lambda i: int(homes[i][1][owners[homes[i][0]]].sum()))
        found[best] = (*found[best], number)
    return found
