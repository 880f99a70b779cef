"""A stream: a lazy sequence of experiences, and what to evaluate on."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, overload

import numpy as np

from streamlearn.errors import DataError
from streamlearn.streams.data import Data, JoinedData, join
from streamlearn.streams.experience import EvaluationSet, Experience
from streamlearn.streams.sealing import SealedBuilder, Withheld
from streamlearn.streams.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ENDLESS", "EndlessStreamError", "Stream"]

ENDLESS = "endless"
"""What builders take as the number of experiences of a stream without an end."""

_ALL_NUMBERS = range(sys.maxsize)


class EndlessStreamError(DataError):
    """What needs an end was asked of a stream that has none."""  # no TypeError, which `list` would pass over and then never return


class Stream:
    """A lazy sequence of `Experience`, and the evaluation sets on which a run over it is measured.

    Experiences are built when they are asked for, by number, so a stream can be walked, sliced and resumed at any place. By default
    every experience has an evaluation set of its own. Where several experiences share one (the chunks of what was one experience) or
    one experience has several (everything at once), ``sets`` says so.

    Args:
        name: what the record calls it.
        length: number of experiences; ``None`` for a stream without an end.
        experience: builds experience ``i``; must be a pure function of ``i``.
        evaluation: builds evaluation set ``j``; likewise.
        tasks: every task that will come up, as far as it is known beforehand.
        input_shape: shape of one input as the model receives it.
        description: what was asked for, as JSON: enough to build the stream again when it came from a named builder.
        fingerprints: content hashes of the sources, or a function that gives them (then called when first asked for).
        sets: the numbers of the evaluation sets that belong to experience ``i``, at least one; ``None`` stands for ``(i,)``.
        truth: the labelled rows of experience ``i`` on which what was predicted before the model learnt from them is scored, or
            ``None`` to score nothing. Without ``truth``, an experience that has only rows of role ``target`` is scored on its
            evaluation set, and others are not.

    Raises:
        DataError: the stream has no experience.
    """

    def __init__(
        self,
        name: str,
        length: int | None,
        experience: Callable[[int], Experience],
        evaluation: Callable[[int], EvaluationSet],
        *,
        tasks: tuple[Task, ...],
        input_shape: tuple[int, ...],
        description: Mapping[str, Any],
        fingerprints: Sequence[str] | Callable[[], Sequence[str]] = (),
        sets: Callable[[int], tuple[int, ...]] | None = None,
        truth: Callable[[int], Data | JoinedData | None] | None = None,
    ) -> None:
        if length is not None and length < 1:
            raise DataError(f"stream {name!r} has no experience: build it with at least one")
        self.name = name
        self._whole = _ALL_NUMBERS if length is None else range(length)
        self._order: Sequence[int] = self._whole
        self._experience = experience
        self._evaluation = evaluation
        self._sets_of = sets
        self._truth = truth
        self._sets: tuple[int, ...] | None = None
        self._places: dict[int, int] | None = None
        self._learnt: tuple[int, ...] | None = None
        self.tasks = tasks
        self.input_shape = input_shape
        self._description: dict[str, Any] = _plain(dict(description))
        self._fingerprints = fingerprints

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"stream {self.name!r} holds functions and is not pickled: pickle stream.description, and streams.rebuild() it")

    # ------------------------------------------------------------------ experiences

    @property
    def endless(self) -> bool:
        """Whether it has no end: take a part, such as ``stream[:100]``, to train on."""
        return self._order is _ALL_NUMBERS

    def __len__(self) -> int:
        if self.endless:
            raise EndlessStreamError(f"stream {self.name!r} is endless and has no length: take a part of it, such as stream[:100]")
        return len(self._order)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Experience]:
        return (self[i] for i in range(len(self._order)))

    @overload
    def __getitem__(self, i: int) -> Experience: ...
    @overload
    def __getitem__(self, i: slice) -> Stream: ...

    def __getitem__(self, i: int | slice) -> Experience | Stream:
        if isinstance(i, slice):
            if self.endless and _reaches_the_end(i):
                raise EndlessStreamError(f"stream {self.name!r} is endless: give the part an end, such as stream[:100]")
            return self.reordered(self._order[i])
        place = self._place(i)
        built = self._experience(self._order[place])
        if not any(len(data) for data in built.data.values()):
            raise DataError(f"experience {place} of stream {self.name!r} is empty: remove it from the stream or give it rows")
        return replace(built, index=place)

    def _place(self, i: int) -> int:
        size = len(self._order)
        if not -size <= i < size or (self.endless and i < 0):
            raise IndexError(f"stream {self.name!r} has {'no last' if self.endless else len(self)} experiences; there is none at {i}")
        return range(size)[i]

    def reordered(self, order: Sequence[int]) -> Stream:
        """The experiences numbered ``order`` (numbers of the unsliced stream), in that order.

        Raises:
            DataError: ``order`` is empty, or names an experience that the unsliced stream does not have.
        """
        if not len(order):
            raise DataError(f"this part of stream {self.name!r} holds no experience: choose a slice that is not empty")
        strange = next((n for n in _checked(order) if not 0 <= n < len(self._whole)), None)
        if strange is not None:
            raise DataError(f"stream {self.name!r} has no experience {strange}: choose numbers from 0 to {len(self._whole) - 1}")
        other = Stream.__new__(Stream)
        other.__dict__.update(self.__dict__)
        other._order, other._sets = (self._whole if _equal(order, self._whole) else order), None
        other._places, other._learnt = None, None
        return other

    # ------------------------------------------------------------------ what is evaluated

    @property
    def sets(self) -> tuple[int, ...]:
        """The evaluation sets of this part of the stream, by their numbers in the whole, in the order in which they are first taught."""
        if self._sets is None:
            if self.endless:
                raise EndlessStreamError(f"stream {self.name!r} is endless: list the evaluation sets of a part, such as stream[:100]")
            self._sets = tuple(dict.fromkeys(j for i in self._order for j in self._numbers(i)))
        return self._sets

    @property
    def learnt_after(self) -> tuple[int, ...]:
        """For each evaluation set, after how many experiences its rows' distribution has been trained on: at the end of the first
        unbroken run of experiences to which the set belongs.
        """
        if self._learnt is not None:
            return self._learnt
        taught, found, ended = self.sets, dict[int, int](), set[int]()
        previous: tuple[int, ...] = ()
        for place, number in enumerate(self._order):
            current = self._numbers(number)
            ended.update(j for j in previous if j not in current)
            found.update((j, place + 1) for j in current if j not in ended)
            previous = current
        self._learnt = tuple(found[j] for j in taught)
        return self._learnt

    def sets_of(self, i: int) -> tuple[int, ...]:
        """Which evaluation sets, from 0 in the order of `sets`, belong to experience ``i``."""
        return tuple(map(self._set_number, self._numbers(self._order[self._place(i)])))

    @property
    def _in_place(self) -> bool:
        """Whether sets keep the numbers that the whole stream gives them."""
        return self._order is self._whole and (self._sets_of is None or self.endless)

    def _numbers(self, number: int) -> tuple[int, ...]:
        return (number,) if self._sets_of is None else self._sets_of(number)

    def evaluation(self, i: int) -> EvaluationSet:
        """What experience ``i`` is evaluated on: its evaluation set, or all of them as one."""
        mine = self._numbers(self._order[self._place(i)])
        built = [self._evaluation(j) for j in mine]
        first = self._set_number(mine[0])
        if len(built) == 1:
            return replace(built[0], index=first)
        return EvaluationSet(first, join([found.data for found in built]), ", ".join(found.name for found in built))

    def _set_number(self, j: int) -> int:
        if self._in_place:
            return j  # nothing to look up, however long the stream
        if self._places is None:
            self._places = {number: k for k, number in enumerate(self.sets)}
        return self._places[j]

    def evaluation_set(self, k: int) -> EvaluationSet:
        """Evaluation set ``k`` of `sets`, from 0."""
        number = k if self._in_place else self.sets[k]
        return replace(self._evaluation(number), index=k)

    def truth(self, i: int) -> Data | JoinedData | None:
        """The labelled rows on which predictions made during experience ``i`` are scored; ``None``: they are not."""
        number = self._order[self._place(i)]
        if self._truth is not None:
            return self._truth(number)
        roles = set(self._experience(number).data) - {"validation"}
        return self.evaluation(i).data if roles == {"target"} else None

    def for_training(self) -> Stream:
        """The stream as training may see it: evaluation sets, and what is hidden in them or in the sources, are not in reach."""
        other = self.reordered(self._order)
        other._fingerprints, other._evaluation = self.fingerprints, Withheld(self._evaluation)
        other._experience = SealedBuilder(self._experience)
        other._sets_of = None if self._sets_of is None else SealedBuilder(self._sets_of)  # an operator's holds the stream it changes
        other._truth = None if self._truth is None else Withheld(self._truth)
        return other

    # ------------------------------------------------------------------ what it is

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Content hashes of the sources."""
        if callable(self._fingerprints):
            self._fingerprints = tuple(self._fingerprints())
        return tuple(self._fingerprints)

    @property
    def part(self) -> list[int] | None:
        """The numbers of these experiences in the whole stream; ``None`` for the whole."""
        return None if self._order is self._whole else list(self._order)

    @property
    def description(self) -> dict[str, Any]:
        """What was asked for, and which part of it this is: enough for `streamlearn.streams.rebuild` when objects were not given."""
        part = self.part
        return self._description if part is None else {**self._description, "part": part}

    @property
    def hash(self) -> str:
        """SHA-256 of the description, the part taken and the content of the sources, 16 hexadecimal digits."""
        text = json.dumps([self.name, self.description, self.fingerprints], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """The stream as JSON: what was asked for, its tasks, its length, which part of it this is, and its hash."""
        told: dict[str, Any] = {
            "name": self.name,
            "experiences": ENDLESS if self.endless else len(self),
            "part": self.part,
            "tasks": [task.describe() for task in self.tasks],
            "input_shape": list(self.input_shape),
            "description": self.description,
            "hash": self.hash,
        }
        if not self.endless and (after := self.learnt_after) != tuple(range(1, len(self) + 1)):
            told["learnt_after"] = list(after)
        return told

    def show(self, path: str | Path | None = None) -> Figure:
        """A picture: which classes, domains and tasks come when, how many rows, and sample inputs; also written to ``path`` if given.

        Raises:
            DataError: the suffix of ``path`` is no kind of picture, or it cannot be written.
        """
        from streamlearn.streams.drawing import draw, write

        figure = draw(self)
        if path is not None:
            write(figure, Path(path))
        return figure

    def to_avalanche(self) -> Any:
        """The stream as an Avalanche benchmark; see `streamlearn.streams.to_avalanche`."""
        from streamlearn.streams.avalanche import to_avalanche

        return to_avalanche(self)

    def __repr__(self) -> str:
        length = "endless" if self.endless else f"{len(self)} experiences"
        return f"Stream({self.name!r}, {length}, tasks {', '.join(task.name for task in self.tasks)})"


def _plain(value: Any) -> Any:
    """``value`` with Python's own numbers in place of numpy's."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _reaches_the_end(part: slice) -> bool:
    return part.stop is None or part.stop < 0 or (part.start or 0) < 0 or (part.step or 1) < 0


def _equal(order: Sequence[int], whole: range) -> bool:
    return order == whole if isinstance(order, range) else len(order) == len(whole) and list(order) == list(whole)


def _checked(order: Sequence[int]) -> Sequence[int]:
    """The numbers of ``order`` that can be out of range: the first and the last of a range, all of anything else."""
    return (order[0], order[-1]) if isinstance(order, range) else order
