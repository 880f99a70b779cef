"""Experiences in another order: coming again, and those of several streams one after another."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
from torch import Tensor

from streamlearn.errors import DataError
from streamlearn.streams.catalogue import build_chain
from streamlearn.streams.data import Data, JoinedData
from streamlearn.streams.experience import EvaluationSet, Experience
from streamlearn.streams.inputs import whole_number
from streamlearn.streams.operators.deriving import checked_stream, classes_in, derived, map_role
from streamlearn.streams.operators.identity import Apart, new_names, refuse_known_answers
from streamlearn.streams.partition import chunk_edges, permutation
from streamlearn.streams.stream import ENDLESS, Stream
from streamlearn.streams.task import Task

__all__ = ["concatenated", "recurring"]


def recurring(stream: Stream, times: int | str = 2, *, order: Sequence[int] | None = None, split: bool = False, seed: int = 0) -> Stream:
    """Experiences come again, with all their rows or, with ``split``, each time with others.

    Protocol: the experiences numbered ``order`` make one cycle, and there are ``times`` cycles. Visit k of an experience has all its rows;
    with ``split`` the rows of each of its roles, in a random order, are cut into as many shares as it has visits, of sizes that differ by
    at most one, and visit k has the k-th. Its evaluation sets are the same at every visit.

    Args:
        stream: a finite stream.
        times: number of cycles, at least 1, or "endless".
        order: numbers of experiences, which may be named several times or not at all; ``None``: each once, as they come.
        split: whether every visit gets a share of its own; not for "endless".
        seed: at least 0; of the shares.

    Raises:
        DataError: an argument is out of its range, the stream is endless, or an experience has fewer rows than visits to share them.

    Source: Stojanov et al., "Incremental object learning from contiguous views" (CRIB), CVPR 2019; Cossu et al., "Is class-incremental
        enough for continual learning?", 2022; Hemati et al., "Class-incremental learning with repetition", CoLLAs 2023.

    Example:
        >>> from streamlearn.streams import class_incremental
        >>> stream = recurring(class_incremental("digits", 5), 2, order=[0, 1, 0, 2], split=True)
        >>> len(stream), [len(experience.data["train"]) for experience in stream], stream.learnt_after
        (8, [73, 145, 72, 142, 72, 144, 72, 142], (1, 2, 4))
        >>> stream[2].name
        'classes 5, 7, visit 2'
    """
    base = checked_stream(stream, "recurring", finite=True)
    cycles = None if isinstance(times, str) and times == ENDLESS else whole_number(times, "times", 1)
    seed = whole_number(seed, "seed", 0)
    cycle = _cycle(order, len(base))
    each = Counter(cycle)
    before = _earlier(cycle)
    if split and cycles is None:
        raise DataError("times is 'endless', but split shares the rows of an experience among its visits: give a number of times")
    if split and cycles is not None:
        for home, count in each.items():
            _check_shares(base, home, count * cycles)

    def place(i: int) -> tuple[int, int]:
        """The experience of ``stream`` that is visited, and how often it has been before."""
        past, now = divmod(i, len(cycle))
        return cycle[now], past * each[cycle[now]] + before[now]

    def experience(i: int) -> Experience:
        home, visit = place(i)
        known = base[home]
        name = f"{known.name}, visit {visit + 1}".removeprefix(", ")
        if not split or cycles is None:
            return replace(known, index=i, name=name)
        data = {}
        for role, rows in known.data.items():
            start, stop = chunk_edges(len(rows), each[home] * cycles)[visit]
            if start < stop:
                drawn = permutation(len(rows), seed=seed, purpose=f"recurring {role}", number=home)
                data[role] = rows.subset(drawn[start:stop].sort().values)
        classes = {**dict.fromkeys(known.classes, ()), **classes_in(data[known.main_role])}
        return replace(known, index=i, name=name, data=data, classes=classes)

    return derived(
        base,
        "recurring",
        {
            "times": ENDLESS if cycles is None else cycles,
            "order": None if order is None else cycle,
            "split": bool(split),
            "seed": int(seed),
        },
        experience=experience,
        length=None if cycles is None else cycles * len(cycle),
        sets=lambda i: base.sets_of(place(i)[0]),
        truth=lambda i: base.truth(place(i)[0]),
    )


def _earlier(cycle: Sequence[int]) -> list[int]:
    """How often the experience at each place of the cycle has come earlier in it."""
    seen, found = Counter[int](), []
    for home in cycle:
        found.append(seen[home])
        seen[home] += 1
    return found


def _cycle(order: object, experiences: int) -> list[int]:
    if order is None:
        return list(range(experiences))
    if isinstance(order, (np.ndarray, Tensor)):
        order = order.tolist()
    if isinstance(order, str) or not isinstance(order, Sequence) or not order:
        raise DataError(f"order is {order!r}: give a list of numbers of experiences, such as [0, 1, 0]")
    numbers = [whole_number(number, f"number {place} of order", 0) for place, number in enumerate(order)]
    if max(numbers) >= experiences:
        raise DataError(f"order names the experience {max(numbers)}, but there are {experiences}: give numbers from 0 to {experiences - 1}")
    return numbers


def _check_shares(base: Stream, home: int, visits: int) -> None:
    known = base[home]
    rows = len(known.data[known.main_role])
    if rows < visits:
        raise DataError(
            f"experience {home} of stream {base.name!r} has {rows} rows, fewer than the {visits} visits that share them: ask for fewer"
        )


def concatenated(streams: Sequence[Stream | str]) -> Stream:
    """The experiences of several streams, one stream after another.

    Protocol: first all experiences of the first stream, then all of the second, and so on; each keeps its tasks, domains and evaluation
    sets. A task that has the same name in two streams is the same task, and one head serves both. Where two streams have sources of the
    same name but with other inputs, such as arrays, that of the later is called ``"<source>#2"``, and so on.

    Args:
        streams: at least one finite stream, or text as the command line takes it (``"joint:source=mnist"``); inputs of one shape.

    Raises:
        DataError: an element is no stream or endless, shapes of inputs differ, tasks of one name differ, or a row that one
            stream trains on is evaluated by another.
        ConfigurationError: text names no stream.

    Source: Ebrahimi et al., "Adversarial continual learning", ECCV 2020 (five data sets, one after another).

    Example:
        >>> stream = concatenated(["task_incremental:source=digits,experiences=2", "class_incremental:source=digits,experiences=2"])
        >>> len(stream), len(stream.sets), [experience.tasks[0].name for experience in stream]
        (4, 4, ['digits/0', 'digits/1', 'digits', 'digits'])
    """
    if isinstance(streams, (str, Stream)) or not isinstance(streams, Sequence) or not streams:
        raise DataError(f"streams is {streams!r}: give a list of streams, such as [joint('mnist'), joint('fashion-mnist')]")
    found = [checked_stream(build_chain(one) if isinstance(one, str) else one, "concatenated", finite=True) for one in streams]
    tasks = _union(found)
    strange = next((one for one in found if one.input_shape != found[0].input_shape), None)
    if strange is not None:
        raise DataError(
            f"inputs of stream {found[0].name!r} have shape {found[0].input_shape}, those of {strange.name!r} {strange.input_shape}: bring "
            "them to one shape"
        )
    names, apart = new_names(found), Apart()
    refuse_known_answers(found, names)
    stops, set_stops = list(accumulate(map(len, found))), list(accumulate(len(one.sets) for one in found))

    def place(i: int, stops: list[int]) -> tuple[int, int]:
        """Of which stream an experience (or a set) is, and its number there."""
        home = bisect_right(stops, i)
        return home, i - (stops[home - 1] if home else 0)

    def named(data: Data | JoinedData, home: int) -> Data | JoinedData:
        """``data`` under the names that its sources have among all streams."""
        if not names[home]:
            return data
        return map_role(data, lambda p: replace(p, source=apart.source(p.source, names[home].get(p.source.name, p.source.name))))

    def experience(i: int) -> Experience:
        home, number = place(i, stops)
        known = found[home][number]
        return replace(known, index=i, data={role: named(data, home) for role, data in known.data.items()})

    def evaluation(j: int) -> EvaluationSet:
        home, number = place(j, set_stops)
        known = found[home].evaluation_set(number)
        return replace(known, index=j, data=named(known.data, home))

    def sets(i: int) -> tuple[int, ...]:
        home, number = place(i, stops)
        return tuple(j + (set_stops[home - 1] if home else 0) for j in found[home].sets_of(number))

    def truth(i: int) -> Data | JoinedData | None:
        home, number = place(i, stops)
        known = found[home].truth(number)
        return None if known is None else named(known, home)

    return Stream(
        " + ".join(one.name for one in found),
        stops[-1],
        experience,
        evaluation,
        tasks=tasks,
        input_shape=found[0].input_shape,
        description={"builder": "concatenated", "streams": [one.description for one in found]},
        fingerprints=lambda: [known for one in found for known in one.fingerprints],
        sets=sets,
        truth=truth,
    )


def _union(streams: Sequence[Stream]) -> tuple[Task, ...]:
    known: dict[str, tuple[Task, Stream]] = {}
    for stream in streams:
        for task in stream.tasks:
            other, where = known.setdefault(task.name, (task, stream))
            if other != task:
                raise DataError(
                    f"streams {where.name!r} and {stream.name!r} both have a task {task.name!r}, but not the same: {other.kind} of size "
                    f"{other.size}, {task.kind} of size {task.size}, or classes of other names; give their sources other names"
                )
    return tuple(task for task, _ in known.values())
