"""A stream: a lazy sequence of experiences, and what to evaluate on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

from streamlearn.errors import DataError
from streamlearn.streams.experience import EvaluationSet, Experience
from streamlearn.streams.task import Task

__all__ = ["Stream"]


class Stream:
    """A lazy sequence of `Experience`, each with its `EvaluationSet`.

    Experiences are built when they are asked for, by number, so a stream can be walked, sliced and resumed at any place.

    Args:
        name: what the record calls it.
        length: number of experiences.
        experience: builds experience ``i``; must be a pure function of ``i``.
        evaluation: builds evaluation set ``i``; likewise.
        tasks: every task that will come up, as far as it is known beforehand.
        input_shape: shape of one input as the model receives it.
        description: what was asked for, as JSON: enough to build the stream again when it came from a named builder.
        fingerprints: content hashes of the sources, or a function that gives them (then called when first asked for).

    Raises:
        DataError: the stream has no experience.
    """

    def __init__(
        self,
        name: str,
        length: int,
        experience: Callable[[int], Experience],
        evaluation: Callable[[int], EvaluationSet],
        *,
        tasks: tuple[Task, ...],
        input_shape: tuple[int, ...],
        description: Mapping[str, Any],
        fingerprints: Sequence[str] | Callable[[], Sequence[str]] = (),
    ) -> None:
        if length < 1:
            raise DataError(f"stream {name!r} has no experience: build it with at least one")
        self.name = name
        self._length = length
        self._order: Sequence[int] = range(length)
        self._experience = experience
        self._evaluation = evaluation
        self.tasks = tasks
        self.input_shape = input_shape
        self.description = dict(description)
        self._fingerprints = fingerprints

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Content hashes of the sources."""
        if callable(self._fingerprints):
            self._fingerprints = tuple(self._fingerprints())
        return tuple(self._fingerprints)

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Experience]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, i: int) -> Experience: ...
    @overload
    def __getitem__(self, i: slice) -> Stream: ...

    def __getitem__(self, i: int | slice) -> Experience | Stream:
        if isinstance(i, slice):
            return self.reordered(self._order[i])
        place = self._place(i)
        built = self._experience(self._order[place])
        if not any(len(data) for data in built.data.values()):
            raise DataError(f"experience {place} of stream {self.name!r} is empty: remove it from the stream or give it rows")
        return Experience(place, built.tasks, built.data, built.name, built.classes)

    def evaluation(self, i: int) -> EvaluationSet:
        """Evaluation set ``i``: the test rows that belong to experience ``i``."""
        place = self._place(i)
        built = self._evaluation(self._order[place])
        return EvaluationSet(place, built.data, built.name)

    def _place(self, i: int) -> int:
        if not -len(self) <= i < len(self):
            raise IndexError(f"stream {self.name!r} has {len(self)} experiences; there is none at {i}")
        return range(len(self))[i]

    def reordered(self, order: Sequence[int]) -> Stream:
        """The experiences numbered ``order`` (numbers of the unsliced stream), in that order.

        Raises:
            DataError: ``order`` is empty, or names an experience that the unsliced stream does not have.
        """
        if not len(order):
            raise DataError(f"this part of stream {self.name!r} holds no experience: choose a slice that is not empty")
        strange = next((number for number in order if not 0 <= number < self._length), None)
        if strange is not None:
            raise DataError(f"stream {self.name!r} has no experience {strange}: choose numbers from 0 to {self._length - 1}")
        other = Stream.__new__(Stream)
        other.__dict__.update(self.__dict__)
        other._order = order
        return other

    def for_training(self) -> Stream:
        """The stream as training may see it: its evaluation sets, and what is hidden in them, are not in reach."""
        other = self.reordered(self._order)
        other._fingerprints, other._evaluation = self.fingerprints, _refuse
        return other

    @property
    def hash(self) -> str:
        """SHA-256 of the description, the part taken and the content of the sources, 16 hexadecimal digits."""
        text = json.dumps([self.name, list(self._order), self.description, self.fingerprints], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """The stream as JSON: what was asked for, its tasks, its length, which part of it this is, and its hash."""
        whole = list(self._order) == list(range(self._length))
        return {
            "name": self.name,
            "experiences": len(self),
            "part": None if whole else list(self._order),
            "tasks": [task.describe() for task in self.tasks],
            "input_shape": list(self.input_shape),
            "description": self.description,
            "hash": self.hash,
        }

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, {len(self)} experiences, tasks {', '.join(task.name for task in self.tasks)})"


def _refuse(i: int) -> EvaluationSet:
    raise DataError(f"evaluation set {i} is out of reach of training: steer by rows of role 'validation', as run.measure() does")
