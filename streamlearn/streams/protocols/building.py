"""What every protocol over one source does alike: naming and describing the stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamlearn.streams.experience import EvaluationSet, Experience
from streamlearn.streams.inputs import Inputs
from streamlearn.streams.stream import ENDLESS, Stream
from streamlearn.streams.task import Task

__all__ = ["stream_over"]


def stream_over(
    inputs: Inputs,
    builder: str,
    tasks: tuple[Task, ...],
    *,
    experience: Callable[[int], Experience],
    evaluation: Callable[[int], EvaluationSet],
    options: dict[str, Any],
    length: int | None = None,
    input_shape: tuple[int, ...] | None = None,
    sets: Callable[[int], tuple[int, ...]] | None = None,
) -> Stream:
    """The stream that ``builder`` makes of ``inputs``; all options are described, and ``options["experiences"]`` is its length if no
    other is given.
    """
    count = options["experiences"] if length is None else length
    return Stream(
        f"{inputs.name}/{builder}",
        None if count == ENDLESS else count,
        experience,
        evaluation,
        tasks=tasks,
        input_shape=inputs.train.source.input_shape if input_shape is None else input_shape,
        description={"builder": builder, **inputs.described, **options},
        fingerprints=inputs.fingerprints,
        sets=sets,
    )
