"""Cutting experiences into smaller ones, and hiding where they end: online and task-free streams."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from streamlearn.streams.data import Data, JoinedData, join
from streamlearn.streams.experience import Experience
from streamlearn.streams.inputs import whole_number
from streamlearn.streams.operators.deriving import checked_stream, classes_in, derived, recent
from streamlearn.streams.operators.identity import Apart
from streamlearn.streams.partition import permutation
from streamlearn.streams.protocols.episodes import Episodes
from streamlearn.streams.stream import Stream

__all__ = ["online", "task_free"]


def online(stream: Stream, rows: int = 10, *, seed: int = 0, shuffle: bool = True, boundaries: bool = True) -> Stream:
    """Every experience arrives in small ones of ``rows`` rows: with one epoch each, every row is seen once.

    Protocol: the main role's rows of each experience, in a random order, are cut into runs of ``rows``; the last run of an experience may
    be shorter. Roles other than ``train`` are cut into as many runs, as even as possible. All pieces of an experience share its evaluation
    sets, which are therefore as many as before.

    Args:
        stream: any stream.
        rows: of each new experience, at least 1.
        seed: at least 0; of the order within each experience.
        shuffle: whether rows are shuffled; without it they keep their order, as a recorded sequence must.
        boundaries: whether `Experience.origin` tells from which experience a piece was cut.

    Raises:
        DataError: an argument is out of its range, or the stream is endless.

    Source: Lopez-Paz and Ranzato, "Gradient episodic memory", NeurIPS 2017 (each row is seen once); Aljundi et al., "Gradient based sample
        selection for online continual learning", NeurIPS 2019 (mini-batches of 10).

    Example:
        >>> from streamlearn.streams import class_incremental
        >>> stream = online(class_incremental("digits", 5), rows=10)
        >>> len(stream), len(stream[0].data["train"]), len(stream.sets)
        (146, 10, 5)
    """
    base = checked_stream(stream, "online", finite=True)
    rows, seed = whole_number(rows, "rows", 1), whole_number(seed, "seed", 0)
    sizes = [len(experience.data[experience.main_role]) for experience in base]
    stops = list(accumulate(-(-size // rows) for size in sizes))
    whole = recent(base)

    def place(i: int) -> tuple[int, int]:
        """The experience of ``stream`` from which piece ``i`` is cut, and which of its pieces this is."""
        home = bisect_right(stops, i)
        return home, i - (stops[home - 1] if home else 0)

    @lru_cache(maxsize=4)
    def order(home: int, role: str, size: int) -> Tensor:
        """The order of the rows of a whole experience; kept, because all its pieces ask for it one after another."""
        return permutation(size, seed=seed, purpose=f"online {role}", number=home) if shuffle else torch.arange(size)

    def experience(i: int) -> Experience:
        home, piece = place(i)
        origin = whole(home)
        pieces = -(-sizes[home] // rows)
        data = {}
        for role, found in origin.data.items():
            size = len(found)
            main = role == origin.main_role
            start, stop = (piece * rows, (piece + 1) * rows) if main else (piece * size // pieces, (piece + 1) * size // pieces)
            data[role] = found.subset(order(home, role, size)[start:stop])
        data = {role: found for role, found in data.items() if len(found) or role == origin.main_role}
        classes = {**dict.fromkeys(origin.classes, ()), **classes_in(data[origin.main_role])}
        return replace(origin, index=i, data=data, classes=classes, origin=home if boundaries else None)

    return derived(
        base,
        "online",
        {"rows": rows, "seed": seed, "shuffle": bool(shuffle), "boundaries": bool(boundaries)},
        experience=experience,
        length=stops[-1],
        sets=lambda i: base.sets_of(place(i)[0]),
        truth=lambda i: base.truth(place(i)[0]),
    )


def task_free(stream: Stream) -> Stream:
    """Nothing tells training where one experience of the protocol ends and the next begins, or from which domain a row is.

    Protocol: of every experience the name, `Experience.origin` and each `Data.domain` are removed; episodes are numbered from 0 within
    their experience. Rows, sizes and evaluation sets stay, and so do the tasks, because without them no head would know what it is asked:
    begin with `class_incremental` or `domain_incremental` where the task is not to be told either. To take away the jump itself, put
    `streamlearn.streams.gradual` and `online` before it. Rows of several domains in one experience may be rows of the same source seen
    differently; so that a memory finds the right ones again, the second kind is said to be of source ``"<source>#2"``, and so on, counted
    anew in every experience.

    Args:
        stream: any stream, endless ones too.

    Raises:
        DataError: ``stream`` is none.

    Source: Aljundi et al., "Task-free continual learning", CVPR 2019; Zeno et al., "Task agnostic continual learning using online
        variational Bayes", 2018.

    Example:
        >>> from streamlearn.streams import domain_incremental
        >>> stream = task_free(online(domain_incremental("digits", 3), rows=100))
        >>> stream[0].name, stream[0].origin, stream[0].data["train"].domain
        ('', None, '')
        >>> stream.evaluation_set(1).data.domain
        'permutation/1'
    """
    base, apart = checked_stream(stream, "task_free"), Apart()

    def experience(i: int) -> Experience:
        known = base[i]
        data = {role: join(apart(_nameless(found))) for role, found in known.data.items()}
        return replace(known, index=i, name="", data=data, origin=None)

    def truth(i: int) -> Data | JoinedData | None:
        known = base.truth(i)
        target = base[i].data.get("target") if known is not None else None
        if known is None or target is None:
            return known
        # predictions are matched with the truth by source and domain: what changes in the one must change in the other
        renamed = zip(target.parts(), apart(_nameless(target)), strict=True)
        name = {(part.source.name, part.domain): new.source.name for part, new in renamed}
        met = [part for part in known.parts() if (part.source.name, part.domain) in name]
        found = [replace(part, source=apart.source(part.source, name[part.source.name, part.domain]), domain="") for part in met]
        return join(found) if found else None

    return derived(base, "task_free", {}, experience=experience, length=None if base.endless else len(base), truth=truth)


def _nameless(data: Data | JoinedData) -> list[Data]:
    """The pieces of ``data`` without the names of their domains; those of episodes only count them."""
    nameless, episodes = [], 0
    for part in data.parts():
        known = replace(part, domain="")
        if isinstance(known, Episodes):
            known = replace(known, numbers=torch.arange(episodes, episodes + len(known)))
            episodes += len(known)
        nameless.append(known)
    return nameless
