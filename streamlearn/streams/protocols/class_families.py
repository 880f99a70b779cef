"""Families of classifications: N classes of a source, K rows of each to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams.data import Source, Target, Transform
from streamlearn.streams.episode_data import Episodes
from streamlearn.streams.hiding import hide_rows
from streamlearn.streams.inputs import as_source, given_by_user, real_number, refuse_same_rows, whole_number
from streamlearn.streams.partition import permutation
from streamlearn.streams.protocols.families import FUNCTIONS, Pools, Sizes, Stretch, names_held_out
from streamlearn.streams.protocols.several import dtype_of_inputs, listed, naming, told_together
from streamlearn.streams.sources import canonical_name, named_source
from streamlearn.streams.sources.labels import class_labels
from streamlearn.streams.task import Task
from streamlearn.streams.transforms import Resize

__all__ = ["ClassFamily", "class_pools"]


class ClassFamily:
    """The N-way K-shot classifications that the classes of a source allow.

    Each episode draws ``task.size`` of the classes, numbers them anew in the order drawn, and takes ``shots`` + ``queries`` rows of each.

    Args:
        name: of the family.
        task: the classification task of all episodes, of N classes.
        shots: support rows of each class, at least 1.
        queries: query rows of each class, at least 1.
        source: where the rows lie.
        column: its target column.
        labels: the values of that column, ``(rows,)``.
        classes: those that episodes are made of, ascending.
        transform: what is done to inputs.

    Raises:
        DataError: a class has too few rows for an episode.

    Example:
        >>> from streamlearn.streams import TensorSource
        >>> labels = torch.arange(12) // 4
        >>> source = TensorSource(torch.rand(12, 5), {"y": labels}, "toy")
        >>> family = ClassFamily(
        ...     "toy", Task("toy", size=2), 1, 2, source=source, column="y", labels=labels, classes=torch.tensor([0, 2])
        ... )
        >>> few = family.episodes(Stretch("train", 0, torch.arange(3), "train/", seed=0))
        >>> few.column("toy")[:6].tolist(), set(labels[few.indices].tolist())
        ([0, 1, 0, 0, 1, 1], {0, 2})
    """

    def __init__(
        self,
        name: str,
        task: Task,
        shots: int,
        queries: int,
        *,
        source: Source,
        column: str,
        labels: Tensor,
        classes: Tensor,
        transform: Transform | None = None,
    ) -> None:
        self.name, self.task, self.shots, self.queries = name, task, shots, queries
        self.source, self._transform, self._targets = source, transform, {task.name: Target(column)}
        rows = torch.isin(labels, classes).nonzero().flatten()
        rows = rows[labels[rows].argsort(stable=True)]
        counts = torch.unique_consecutive(labels[rows], return_counts=True)[1]
        self._rows, self._counts = rows.numpy(), counts.tolist()
        self._starts = (counts.cumsum(0) - counts).numpy()
        if min(self._counts) < shots + queries:
            few = self._counts.index(min(self._counts))
            raise DataError(
                f"class {int(classes[few])} of {name!r} has {self._counts[few]} rows, fewer than the {shots + queries} of an episode: "
                "ask for fewer shots or queries"
            )

    def episodes(self, wanted: Stretch) -> Episodes:
        """One classification for each of ``wanted.numbers``."""
        count, ways, shots = len(wanted.numbers), self.task.size, self.shots
        rows = self._drawn(wanted.random(), count)
        support, query = rows[:, :, :shots].reshape(count, -1), rows[:, :, shots:].reshape(count, -1)
        own = [torch.arange(ways).repeat_interleave(each) for each in (shots, self.queries)]
        indices = torch.from_numpy(np.concatenate([support, query], 1).reshape(-1))
        size = ways * (shots + self.queries)
        inside: Any = {"support": ways * shots, "size": size, "labels": torch.cat(own).repeat(count), "numbers": wanted.numbers}
        return Episodes(self.source, indices, (self.task,), self._targets, transform=self._transform, domain=wanted.domain, **inside)

    def _drawn(self, draw: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Rows of the classes of each episode, ``(episodes, classes, rows)``; the first episodes are the same however many follow."""
        ways, each = self.task.size, self.shots + self.queries
        chosen = np.empty((count, ways), dtype=np.int64)
        picked = np.empty((count, ways, each), dtype=np.int64)
        for episode in range(count):
            chosen[episode] = draw.choice(len(self._counts), ways, replace=False)
            for place, number in enumerate(chosen[episode].tolist()):
                picked[episode, place] = draw.choice(self._counts[number], each, replace=False)
        found: NDArray[np.int64] = self._rows[self._starts[chosen][:, :, None] + picked]
        return found


@dataclass(frozen=True, slots=True, eq=False)
class _Given:
    """A source, what the family over it is called, and what a description says of it; ``fit`` brings its inputs to the common shape."""

    name: str
    told: Any
    source: Source
    column: str
    labels: Tensor
    fit: Transform | None = None

    def family(self, task: Task, sizes: Sizes, classes: Tensor, what: str, cure: str = "", *, hide: bool = False) -> ClassFamily:
        """The episodes that ``classes`` allow; ``hide`` puts the labels of all other rows out of reach."""
        if len(classes) < task.size:
            raise DataError(f"{len(classes)} classes of {self.name!r} {what}, but episodes have {task.size}: ask for fewer ways{cure}")
        source = self.source
        if hide:
            source = hide_rows(source, {self.column: self.labels}, torch.isin(self.labels, classes).nonzero().flatten())
        rows: dict[str, Any] = {"source": source, "column": self.column, "labels": self.labels, "classes": classes}
        return ClassFamily(self.name, task, sizes.shots, sizes.queries, **rows, transform=self.fit)

    def whole(self, task: Task, sizes: Sizes, what: str) -> ClassFamily:
        """The episodes that all classes allow."""
        return self.family(task, sizes, torch.unique(self.labels), what)

    def divided(self, task: Task, sizes: Sizes, held_out: float, number: int) -> tuple[ClassFamily, ClassFamily]:
        """Episodes of the classes that train, and episodes of those that are held out, whose labels the former cannot reach."""
        classes, cure = torch.unique(self.labels), ", or change held_out"
        order = classes[permutation(len(classes), seed=sizes.seed, purpose="classes", number=number)]
        kept = len(classes) - round(held_out * len(classes))
        train = self.family(task, sizes, order[:kept].sort().values, "train", cure, hide=True)
        return train, self.family(task, sizes, order[kept:].sort().values, "are held out", cure)


def class_pools(
    source: Sequence[object], test: object, held_out_families: Sequence[str] | None, ways: int, held_out: float, sizes: Sizes
) -> Pools:
    """What episodes of classes are drawn of.

    Args:
        source: the sources, as for `streamlearn.streams.episodes`.
        test, held_out_families, ways, held_out: as there.
        sizes: of the episodes.

    Raises:
        UnknownNameError: no source, or no family, has this name.
        DataError: there are too few classes or rows, or the sources do not fit together.
    """
    if not 0 < real_number(held_out) < 1:
        raise DataError(f"held_out is {held_out!r}: give a number between 0 and 1")
    held_out = float(held_out)
    ways = whole_number(ways, "ways", 2)
    every = _named(_read(source, "data"))
    name = "+".join(one.name for one in every) if len(every) > 1 or isinstance(source[0], (str, Source)) else "class"
    task = Task(f"{name}/{ways}-way", "classification", ways)
    held = names_held_out(held_out_families, [one.name for one in every], test)
    asked = [] if test is None else _named(_read(listed(test) or [test], f"{name}/test", for_testing=True), every)
    every, asked = _fitted(every, every[0]), _fitted(asked, every[0])
    if asked or held:
        train = [one.whole(task, sizes, "train") for one in every if one.name not in held]
        tests = [one.whole(task, sizes, "are for testing") for one in asked or every if asked or one.name in held]
    else:
        pairs = [one.divided(task, sizes, held_out, number) for number, one in enumerate(every)]
        train, tests = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    described = {"source": _told(every), "test": _told(asked), "ways": ways, "held_out": float(held_out)}
    described |= {"held_out_families": held} if held else {}
    several = max(len(every), len(asked)) > 1
    sources = tuple(one.source for one in (*every, *asked))
    return Pools(name, task, train, tests, several, every[0].source.input_shape, described, sources)


def _read(items: Sequence[object], unnamed: str, *, for_testing: bool = False) -> list[tuple[Source, Any]]:
    """Each source, and what a description says of it; of one that has rows for training and for testing, either."""
    found: list[tuple[Source, Any]] = []
    for place, item in enumerate(items):
        with naming(f"source {place}") if len(items) > 1 else nullcontext():
            if not isinstance(item, str):
                source = as_source(item, unnamed if len(items) == 1 else f"{unnamed}/{place}")
                found.append((source, given_by_user(source)))
                continue
            train, own_test = _of_name(item)
            found.append((own_test if for_testing and own_test is not None else train, canonical_name(item)))
    return found


def _of_name(text: str) -> tuple[Source, Source | None]:
    try:
        return named_source(text)
    except UnknownNameError as error:
        if error.kind != "source":
            raise
        raise UnknownNameError("source", error.name, [*error.known, *FUNCTIONS]) from None


def _named(found: Sequence[tuple[Source, Any]], trained: Sequence[_Given] = ()) -> list[_Given]:
    """The sources with names of their own: if two are called alike, as the user wrote them."""
    for source, _ in found:
        if any(source is one.source or source.name == one.source.name for one in trained):
            raise DataError(
                f"source {source.name!r} is given for training and for testing: give other rows as test (under another name), or held_out"
            )
        for one in trained:
            refuse_same_rows(source, one.source, "held_out")
    names = [source.name for source, _ in found]
    if len(set(names)) < len(names):
        names = [told if isinstance(told, str) else source.name for source, told in found]
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise DataError(f"two sources are called {twice!r}: give each once, under a name of its own")
    return [_Given(name, told, source, *class_labels(source)) for name, (source, told) in zip(names, found, strict=True)]


def _fitted(several: Sequence[_Given], first: _Given) -> list[_Given]:
    """``several``, with what brings their inputs to the shape of ``first``: nothing, or another size of images."""
    wanted, fitted = first.source.input_shape, list[_Given]()
    for one in several:
        shape = one.source.input_shape
        if one.source is not first.source:
            own, usual = dtype_of_inputs(one.source), dtype_of_inputs(first.source)
            kinds = [str(kind).removeprefix("torch.") for kind in (own, usual)]
            if own != usual:
                raise DataError(f"source {one.name!r} has {kinds[0]} inputs, {first.name!r} {kinds[1]}: bring all to one type")
            if shape != wanted and not (len(shape) == len(wanted) == 3 and shape[0] == wanted[0] and own.is_floating_point):
                raise DataError(
                    f"source {one.name!r} has inputs of shape {shape}, {first.name!r} of {wanted}: bring all to one shape (images with as "
                    "many channels are resized)"
                )
        fitted.append(one if shape == wanted else replace(one, fit=Resize(*wanted[1:])))
    return fitted


def _told(several: Sequence[_Given]) -> Any:
    """What a description says of them: of a single one what it is, of several a list."""
    told = [one.told for one in several]
    return told_together(told) if len(told) > 1 else next(iter(told), None)
