"""Episodes: small tasks drawn from a distribution of tasks, each with rows to learn from and rows to be asked on.

An experience is a stretch of the distribution. Its data are `Episodes`, whose unit is the episode: a batch holds ``batch_size`` of
them, first all ``support`` rows, then all ``query`` rows, and ``batch.by_domain()`` gives one batch for each episode.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamlearn.errors import DataError
from streamlearn.streams.batch import EVERY_ROW, Batch, Labelled, Segment
from streamlearn.streams.data import Data, Target
from streamlearn.streams.experience import EvaluationSet, Experience
from streamlearn.streams.inputs import resolve, whole_number
from streamlearn.streams.partition import RowsByClass, permutation
from streamlearn.streams.sources.tensors import TensorSource
from streamlearn.streams.stream import Stream
from streamlearn.streams.task import Task

__all__ = ["Episodes", "episodes"]

FAMILIES = ("sinusoids",)


@dataclass(frozen=True, slots=True, eq=False)
class Episodes(Data):
    """Rows of a source grouped into episodes; ``len()`` is the number of episodes.

    Args (beyond those of `Data`, whose ``indices`` are all rows, episode by episode):
        support: how many rows of each episode come first, as its support set.
        size: rows of an episode, above ``support``.
        labels: class numbers *within* the episode, ``(episodes * size,)``; ``None`` reads the source's own targets.
        numbers: of the episodes, ``(episodes,)``, for their names; ``None`` counts from 0.
    """

    support: int = 1
    size: int = 2
    labels: Tensor | None = None
    numbers: Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices) // self.size

    def batch(self, positions: Tensor, role: str = "train") -> Batch:
        """The episodes at ``positions``: all support rows, then all query rows; ``role`` is that of neither."""
        places = self._places(positions)
        order = torch.cat([places[:, : self.support].flatten(), places[:, self.support :].flatten()])
        index = self.indices[order]
        x, columns = self.source.take(index)
        targets = {task: columns[target.column] if self.labels is None else self.labels[order] for task, target in self.targets.items()}
        labelled: dict[str, Labelled] = dict.fromkeys(targets, EVERY_ROW)
        return Batch(x if self.transform is None else self.transform(x), targets, labelled, tuple(self._segments(positions)), index)

    def _places(self, positions: Tensor) -> Tensor:
        """The places of the rows of the episodes at ``positions``, ``(episodes, size)``."""
        return positions.view(-1, 1) * self.size + torch.arange(self.size)

    def _numbers(self) -> Tensor:
        return torch.arange(len(self)) if self.numbers is None else self.numbers

    def _segments(self, positions: Tensor) -> Iterator[Segment]:
        names, start = tuple(task.name for task in self.tasks), 0
        numbers = self._numbers()[positions].tolist()
        for role, rows in (("support", self.support), ("query", self.size - self.support)):
            for number in numbers:
                yield Segment(role, start, start + rows, names, f"{self.domain}{number}", self.source.name)
                start += rows

    def fetch(self, index: Tensor, role: str = "train") -> Batch:
        """Refused: a row of an episode has its label there only."""
        raise DataError(
            f"rows of {self.source.name!r} are asked for one by one, but they are grouped into episodes, where alone they have labels: "
            "replay and other memories of rows do not fit episodes"
        )

    def in_order(self, positions: Tensor | slice, batch_size: int, role: str = "train") -> Iterator[Batch]:
        """The episodes at ``positions`` in batches of ``batch_size`` episodes."""
        for piece in torch.arange(len(self))[positions].split(batch_size):  # type: ignore[no-untyped-call]
            yield self.batch(piece, role)

    def subset(self, positions: Tensor) -> Episodes:
        """The episodes at ``positions``, under their names."""
        places = self._places(positions).flatten()
        labels = None if self.labels is None else self.labels[places]
        return replace(self, indices=self.indices[places], labels=labels, numbers=self._numbers()[positions])

    def without_labels(self) -> Episodes:
        """The same episodes with no target left in reach."""
        bare = super(Episodes, self).without_labels()
        return replace(self, source=bare.source, targets={}, labels=None)

    def melted(self, others: Sequence[Data]) -> Episodes:
        """The episodes of this and of ``others``, which are of the same kind."""
        group = [self, *(other for other in others if isinstance(other, Episodes))]
        labels = None if self.labels is None else torch.cat([part.labels for part in group if part.labels is not None])
        return replace(self, indices=torch.cat([p.indices for p in group]), labels=labels, numbers=torch.cat([p._numbers() for p in group]))

    def is_like(self, other: Data) -> bool:
        """Whether ``other`` differs in nothing but its episodes."""
        same = isinstance(other, Episodes) and (self.support, self.size) == (other.support, other.size)
        return same and super(Episodes, self).is_like(other)


def episodes(
    source: Any = "sinusoids",
    experiences: int = 1,
    *,
    ways: int = 5,
    shots: int = 5,
    queries: int = 10,
    train_episodes: int = 1000,
    test_episodes: int = 100,
    held_out: float = 0.3,
    seed: int = 0,
    test: Any = None,
    test_fraction: float = 0.2,
) -> Stream:
    """A distribution of small tasks; training and evaluation meet different ones.

    Protocol: ``"sinusoids"``: episode e is y = A sin(x + φ) with A in [0.1, 5], φ in [0, π], x in [-5, 5] (Finn et al. 2017,
    section 5.1), with ``shots`` support rows and ``queries`` query rows. Any other source: N-way K-shot classification; a fraction
    ``held_out`` of the classes never trains and makes up the test episodes. Each episode draws ``ways`` classes, numbers them anew,
    and takes ``shots`` + ``queries`` rows of each.

    Args:
        source: ``"sinusoids"``, or a source as for `class_incremental`.
        experiences: at least 1; each has episodes of its own.
        ways: classes of an episode, at least 2; of a classification source.
        shots: support rows (of each class), at least 1.
        queries: query rows (of each class), at least 1.
        train_episodes: episodes of each experience, at least 1; an epoch goes through all of them.
        test_episodes: episodes of each evaluation set, at least 1.
        held_out: in (0, 1); of the classes.
        seed: at least 0.
        test, test_fraction: which rows test episodes are made of, as in `class_incremental`.

    Raises:
        DataError: an argument is out of its range, or there are too few classes or rows.

    Source: Vinyals et al., "Matching networks", NeurIPS 2016; Finn et al., "MAML", ICML 2017.

    Example:
        >>> stream = episodes("sinusoids", shots=5, queries=10, train_episodes=100)
        >>> batch = stream[0].data["train"].batch(torch.tensor([0, 1]))
        >>> batch.roles, len(batch), len(batch.by_domain())
        (('support', 'query'), 30, 2)
    """
    for value, what in (
        (experiences, "experiences"),
        (shots, "shots"),
        (queries, "queries"),
        (train_episodes, "train_episodes"),
        (test_episodes, "test_episodes"),
    ):
        whole_number(value, what, 1)
    whole_number(seed, "seed", 0)
    sizes = {"shots": shots, "queries": queries, "train_episodes": train_episodes, "test_episodes": test_episodes, "seed": seed}
    if isinstance(source, str) and source in FAMILIES:
        return _sinusoids(source, experiences, **sizes)
    return _classes(
        source, experiences, ways=whole_number(ways, "ways", 2), held_out=held_out, test=test, test_fraction=test_fraction, **sizes
    )


def _sinusoids(family: str, experiences: int, *, shots: int, queries: int, train_episodes: int, test_episodes: int, seed: int) -> Stream:
    task, size = Task(family, "regression", 1), shots + queries

    def made(number: int, count: int, purpose: str) -> Episodes:
        draw = _random(seed, purpose, number)
        amplitude, phase = draw.uniform(0.1, 5.0, (count, 1)), draw.uniform(0.0, np.pi, (count, 1))
        x = draw.uniform(-5.0, 5.0, (count, size))
        y = amplitude * np.sin(x + phase)
        columns = {"y": torch.from_numpy(y.reshape(-1, 1).astype(np.float32))}
        source = TensorSource(torch.from_numpy(x.reshape(-1, 1).astype(np.float32)), columns, f"{family}/{purpose}/{number}")
        numbers = torch.arange(number * count, (number + 1) * count)
        targets = {task.name: Target("y")}
        return Episodes(source, torch.arange(count * size), (task,), targets, None, f"{purpose}/", {}, shots, size, numbers=numbers)

    return Stream(
        f"{family}/episodes",
        experiences,
        lambda i: Experience(i, (task,), {"train": made(i, train_episodes, "train")}, f"episodes {i}"),
        lambda i: EvaluationSet(i, made(i, test_episodes, "test"), f"new episodes {i}"),
        tasks=(task,),
        input_shape=(1,),
        description={
            "builder": "episodes", "source": family, "experiences": experiences, "shots": shots, "queries": queries,
            "train_episodes": train_episodes, "test_episodes": test_episodes, "seed": seed,
        },
    )  # fmt: skip


def _classes(
    source: Any, experiences: int, *, ways: int, held_out: float, test: Any, test_fraction: float, shots: int, queries: int,
    train_episodes: int, test_episodes: int, seed: int,
) -> Stream:  # fmt: skip
    inputs = resolve(source, test, test_fraction, seed)
    if isinstance(held_out, bool) or not 0 < held_out < 1:
        raise DataError(f"held_out is {held_out!r}: give a number between 0 and 1")
    shuffled = permutation(inputs.classes, seed=inputs.seed, purpose="classes").tolist()
    kept = inputs.classes - round(held_out * inputs.classes)
    train_classes, test_classes = sorted(shuffled[:kept]), sorted(shuffled[kept:])
    for classes, what in ((train_classes, "train"), (test_classes, "are held out")):
        if len(classes) < ways:
            raise DataError(
                f"{len(classes)} classes of {inputs.name!r} {what}, but episodes have {ways}: ask for fewer ways, or change held_out"
            )
    task, each = Task(f"{inputs.name}/{ways}-way", "classification", ways), shots + queries

    def made(number: int, count: int, purpose: str) -> Episodes:
        rows, classes = (inputs.train, train_classes) if purpose == "train" else (inputs.test, test_classes)
        by_class = RowsByClass(rows.labels, inputs.classes)
        draw = _random(seed, purpose, number)
        support, query = [], []
        for _ in range(count):
            chosen = draw.choice(classes, ways, replace=False)
            picked = [_some(by_class.of([int(c)]), each, draw, inputs.name) for c in chosen]
            support.append(torch.cat([p[:shots] for p in picked]))
            query.append(torch.cat([p[shots:] for p in picked]))
        places = torch.cat([torch.stack(support), torch.stack(query)], 1).flatten()
        own = torch.cat([torch.arange(ways).repeat_interleave(shots), torch.arange(ways).repeat_interleave(queries)]).repeat(count)
        targets = {task.name: Target(rows.column)}
        numbers = torch.arange(number * count, (number + 1) * count)
        inside: Any = {"support": ways * shots, "size": ways * each, "labels": own, "numbers": numbers}
        return Episodes(rows.source, rows.indices[places], (task,), targets, domain=f"{purpose}/", **inside)

    return Stream(
        f"{inputs.name}/episodes",
        experiences,
        lambda i: Experience(i, (task,), {"train": made(i, train_episodes, "train")}, f"episodes {i}", {task.name: tuple(range(ways))}),
        lambda i: EvaluationSet(i, made(i, test_episodes, "test"), f"new episodes {i}"),
        tasks=(task,),
        input_shape=inputs.train.source.input_shape,
        description={
            "builder": "episodes", **inputs.described, "experiences": experiences, "ways": ways, "shots": shots, "queries": queries,
            "train_episodes": train_episodes, "test_episodes": test_episodes, "held_out": float(held_out),
        },
        fingerprints=inputs.fingerprints,
    )  # fmt: skip


def _random(seed: int, purpose: str, number: int) -> np.random.Generator:
    key = hashlib.sha256(f"episodes/{purpose}/{seed}/{number}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def _some(rows: Tensor, count: int, draw: np.random.Generator, name: str) -> Tensor:
    if len(rows) < count:
        raise DataError(f"a class of {name!r} has {len(rows)} rows, fewer than the {count} of an episode: ask for fewer shots or queries")
    return rows[torch.from_numpy(draw.choice(len(rows), count, replace=False))]
