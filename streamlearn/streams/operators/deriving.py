"""What every operator does alike: naming, describing and hashing the stream that it makes of another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from streamlearn.errors import DataError
from streamlearn.streams.data import Data, JoinedData, classes_in, join
from streamlearn.streams.experience import EvaluationSet, Experience
from streamlearn.streams.inputs import real_number
from streamlearn.streams.stream import Stream

__all__ = ["checked_fraction", "checked_stream", "classes_in", "derived", "map_role", "recent"]

Rows = Data | JoinedData


def checked_stream(stream: object, operator: str, *, finite: bool = False) -> Stream:
    """``stream``, if it is one.

    Raises:
        DataError: it is something else, or, where ``finite``, has no end.
    """
    if not isinstance(stream, Stream):
        raise DataError(f"{operator} changes a stream, and a {type(stream).__name__} is none: build one first, {operator}(stream, ...)")
    if finite and stream.endless:
        raise DataError(f"{operator} must know every experience, and stream {stream.name!r} is endless: take a part, such as stream[:100]")
    return stream


def checked_fraction(value: object, what: str, *, zero: bool = False, one: bool = False) -> float:
    """``value`` as a float between 0 and 1; the ends are allowed where said.

    Raises:
        DataError: it is no number, or out of range.
    """
    number = float(real_number(value))
    if not (0 < number < 1 or (zero and number == 0) or (one and number == 1)):
        raise DataError(f"{what} is {value!r}: give a number in {'[' if zero else '('}0, 1{']' if one else ')'}")
    return number


def derived(
    stream: Stream,
    operator: str,
    options: Mapping[str, Any],
    *,
    experience: Callable[[int], Experience],
    length: int | None,
    sets: Callable[[int], tuple[int, ...]] | None = None,
    evaluation: Callable[[int], EvaluationSet] | None = None,
    truth: Callable[[int], Rows | None] | None = None,
    argument: str = "stream",
) -> Stream:
    """The stream that ``operator`` makes of ``stream``.

    Args:
        stream: the stream that is changed.
        operator: name under which it is registered.
        options: its options, as JSON, under the names of its arguments; they and the description of ``stream`` suffice to build it again.
        experience: builds experience ``i`` of the new stream.
        length: its number of experiences; ``None`` without end.
        sets: to which evaluation sets *of* ``stream`` (``stream.evaluation_set(k)``) experience ``i`` belongs; ``None``: to those of
            experience ``i`` of ``stream``.
        evaluation: builds evaluation set ``k``; ``None``: that of ``stream``.
        truth: as in `Stream`; ``None``: that of experience ``i`` of ``stream`` if ``sets`` is ``None``, else nothing is scored.
        argument: what the operator calls the stream.
    """
    base, own_sets = stream, sets is None
    told = {"builder": operator, argument: base.description, **options}

    def same_sets(i: int) -> tuple[int, ...]:
        return base.sets_of(i)

    def same_truth(i: int) -> Rows | None:
        return base.truth(i) if own_sets else None

    return Stream(
        f"{base.name}/{operator}",
        length,
        experience,
        base.evaluation_set if evaluation is None else evaluation,
        tasks=base.tasks,
        input_shape=base.input_shape,
        description=told,
        fingerprints=lambda: base.fingerprints,
        sets=same_sets if sets is None else sets,
        truth=same_truth if truth is None else truth,
    )


def map_role(data: Rows, change: Callable[[Data], Data]) -> Rows:
    """``data`` with ``change`` made to each of its homogeneous pieces."""
    return join([change(part) for part in data.parts()])


def recent(stream: Stream) -> Callable[[int], Experience]:
    """Experience ``i`` of ``stream``; the last one asked for is kept, because many pieces of one are asked for one after another."""
    kept: dict[int, Experience] = {}

    def experience(i: int) -> Experience:
        found = kept.get(i)
        if found is None:
            found = stream[i]
            kept.clear()
            kept[i] = found
        return found

    return experience
