"""The first experiences of a stream as a stream of their own, which leads to no later one."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from streamlearn.errors import ConfigurationError, DataError
from streamlearn.streams import EvaluationSet, Stream
from streamlearn.streams.operators.thinning import validation

__all__ = ["beginning", "length_of_beginning"]


def length_of_beginning(stream: Stream, experiences: float) -> int:
    """How many experiences are meant: a whole number of them, or a share of the stream above 0 and up to 1, at least one.

    Raises:
        ConfigurationError: there are not so many.

    Example:
        >>> from streamlearn import streams
        >>> stream = streams.class_incremental("digits", experiences=5)
        >>> length_of_beginning(stream, 2), length_of_beginning(stream, 0.5)
        (2, 2)
    """
    if isinstance(experiences, bool) or not (
        experiences >= 1 and (stream.endless or experiences <= len(stream))
        if isinstance(experiences, int)
        else 0 < experiences <= 1 and not stream.endless
    ):
        size = "no end" if stream.endless else f"{len(stream)} experiences"
        raise ConfigurationError(
            f"experiences is {experiences!r}, but stream {stream.name!r} has {size}: give a number of them of at least 1, or a share of "
            "the stream above 0 and up to 1.0"
        )
    return experiences if isinstance(experiences, int) else max(1, int(experiences * len(stream)))


def beginning(stream: Stream, experiences: int, *, on: Literal["validation", "evaluation"] = "validation", fraction: float = 0.1) -> Stream:
    """The first experiences of ``stream``, and what they are measured on, built at once: no number, slice or closure leads further.

    Sources are not copied: whoever leaves experiences aside and reads a source by row numbers of his own finds what is stored in it.

    Args:
        stream: the whole.
        experiences: how many, at least 1.
        on: measured on rows of role ``"validation"``, one set for each experience, so that no evaluation set of the stream is touched;
            or on its ``"evaluation"`` sets.
        fraction: of the training rows of each class that become validation rows where there are none.

    Raises:
        DataError: an experience has no validation rows.
    """
    part = stream[:experiences]
    if on == "validation" and fraction and not any("validation" in experience.data for experience in part):
        part = validation(part, fraction)
    built = list(part)
    if on == "evaluation":
        sets = [part.evaluation_set(j) for j in range(len(part.sets))]
        numbers = [part.sets_of(i) for i in range(len(built))]
    else:
        without = next((experience for experience in built if "validation" not in experience.data), None)
        if without is not None:
            raise DataError(
                f"experience {without.index} of stream {stream.name!r} has no rows of role 'validation' to measure on: keep a larger "
                "fraction of the training rows, or measure on='evaluation'"
            )
        sets = [EvaluationSet(i, experience.data["validation"], experience.name) for i, experience in enumerate(built)]
        numbers = [(i,) for i in range(len(built))]
    met = {task.name for experience in built for task in experience.tasks}
    return Stream(
        stream.name,
        len(built),
        lambda i: replace(built[i]),
        lambda j: sets[j],
        tasks=tuple(task for task in stream.tasks if task.name in met),
        input_shape=stream.input_shape,
        description={"beginning of": stream.description, "experiences": len(built), "measured on": on, "fraction": fraction},
        fingerprints=stream.fingerprints,
        sets=lambda i: numbers[i],
    )
