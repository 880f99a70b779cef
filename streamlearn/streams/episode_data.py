"""Data whose unit is the episode: rows to learn from and rows to be asked on, which stay together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from streamlearn.errors import DataError
from streamlearn.streams.batch import EVERY_ROW, Batch, Labelled, Segment
from streamlearn.streams.data import Data
from streamlearn.streams.hiding import without_targets

__all__ = ["Episodes"]


@dataclass(frozen=True, slots=True, eq=False)
class Episodes(Data):
    """Rows of a source grouped into episodes; ``len()`` is the number of episodes.

    A batch of ``n`` episodes holds first the support rows of all ``n``, then the query rows of all ``n``; an episode is a domain of it.

    Args (beyond those of `Data`, whose ``indices`` are all rows, episode by episode, and whose ``domain`` precedes each number):
        support: how many rows of each episode come first, as its support set.
        size: rows of an episode, above ``support``.
        labels: class numbers *within* the episode, ``(episodes * size,)``; ``None`` reads the source's own targets.
        numbers: of the episodes, ``(episodes,)``, for their names; ``None`` counts from 0.

    Example:
        >>> from streamlearn.streams import Task, TensorSource
        >>> from streamlearn.streams.data import Target
        >>> source = TensorSource(torch.rand(6, 4), {"y": torch.rand(6, 1)}, name="toy")
        >>> two = Episodes(source, torch.arange(6), (Task("y", "regression"),), {"y": Target("y")}, domain="train/", support=1, size=3)
        >>> batch = two.batch(torch.tensor([0, 1]))
        >>> len(two), batch.index.tolist(), batch.domains
        (2, [0, 3, 1, 2, 4, 5], ('train/0', 'train/1'))
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
        change = self._change()
        return Batch(x if change is None else change(x, index), targets, labelled, tuple(self._segments(positions)), index)

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
        return replace(self, source=without_targets(self.source), targets={}, labels=None)

    def column(self, task: str) -> Tensor | None:
        """The targets of ``task``, one for each row of each episode."""
        return self.labels if self.labels is not None and task in self.targets else super(Episodes, self).column(task)

    def melted(self, others: Sequence[Data]) -> Episodes:
        """The episodes of this and of ``others``, which are of the same kind."""
        group = [self, *(other for other in others if isinstance(other, Episodes))]
        labels = None if self.labels is None else torch.cat([part.labels for part in group if part.labels is not None])
        return replace(self, indices=torch.cat([p.indices for p in group]), labels=labels, numbers=torch.cat([p._numbers() for p in group]))

    def is_like(self, other: Data) -> bool:
        """Whether ``other`` differs in nothing but its episodes."""
        same = isinstance(other, Episodes) and (self.support, self.size) == (other.support, other.size)
        return same and super(Episodes, self).is_like(other)
