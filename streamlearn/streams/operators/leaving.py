"""The rows that leave their experience when experiences are blurred, and where they go."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from streamlearn.streams.data import Data, JoinedData
from streamlearn.streams.operators.drift import even_exchange
from streamlearn.streams.operators.thinning import Class, rows_by_class
from streamlearn.streams.partition import permutation
from streamlearn.streams.stream import Stream

__all__ = ["Leaving"]


@dataclass(frozen=True, slots=True, eq=False)
class Leaving:
    """The rows that leave their experience, no more indices than these.

    Args:
        rows: for each experience the positions of the training rows that leave it, ascending.
        pieces: the rows that leave, of each piece of each experience those that do.
        piece: of each row that leaves, sorted by where it goes, the number of its piece;
        place: and where it is therein.
        stops: at which of these the rows end that go to each experience.
    """

    rows: list[Tensor]
    pieces: list[Data]
    piece: Tensor
    place: Tensor
    stops: list[int]

    @classmethod
    def of(cls, base: Stream, fraction: float, staying: frozenset[Class], seed: int) -> Leaving:
        """Of each experience of ``base`` ``fraction`` of the rows that are of none of the classes ``staying``."""
        data = [experience.data["train"] for experience in base]
        free = [_free(found, staying) for found in data]
        counts = [min(round(fraction * len(rows)), len(found) - 1) for rows, found in zip(free, data, strict=True)]
        left, pieces, sizes, aims = list[Tensor](), list[Data](), list[int](), list[Tensor]()
        for i, (rows, shares) in enumerate(zip(free, even_exchange(counts), strict=True)):
            drawn = rows[permutation(len(rows), seed=seed, purpose="blurry", number=i)[: counts[i]]]
            order, goes = drawn.argsort(), torch.arange(len(base)).repeat_interleave(shares)
            left.append(drawn[order])
            aims.append(goes[order])
            start = 0
            for part in data[i].parts() if counts[i] else ():
                here = (left[-1] >= start) & (left[-1] < start + len(part))
                pieces.append(part.subset(left[-1][here] - start))
                sizes.append(len(pieces[-1]))
                start += len(part)
        every = torch.cat(aims)
        lengths = torch.tensor(sizes, dtype=torch.int64)
        piece = torch.arange(len(sizes)).repeat_interleave(lengths)
        place = torch.arange(len(every)) - (lengths.cumsum(0) - lengths)[piece]
        order = every.argsort(stable=True)
        stops = torch.bincount(every, minlength=len(base)).cumsum(0).tolist()
        return cls(left, pieces, piece[order], place[order], stops)

    def to(self, i: int) -> list[Data]:
        """The rows that go to experience ``i``, piece by piece."""
        here = slice(self.stops[i - 1] if i else 0, self.stops[i])
        numbers, counts = torch.unique_consecutive(self.piece[here], return_counts=True)
        rows = self.place[here].split(counts.tolist())  # type: ignore[no-untyped-call]
        return [self.pieces[number].subset(found) for number, found in zip(numbers.tolist(), rows, strict=True)]


def _free(data: Data | JoinedData, staying: frozenset[Class]) -> Tensor:
    """The positions of the rows that may leave, ascending."""
    if not staying:
        return torch.arange(len(data))
    rows = [positions for key, positions in rows_by_class(data).items() if key not in staying]
    return torch.cat([torch.zeros(0, dtype=torch.int64), *rows]).sort().values
