"""Who goes where when experiences are mixed: even exchanges, and orders with noise. Numbers only; no data."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from streamlearn.streams.partition import permutation

__all__ = ["SHAPES", "NoisyOrder", "even_exchange"]

SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda u: u - 0.5,
    "sigmoid": lambda u: torch.log(u / (1 - u)) / 8,
}
"""For each shape of transitions of width 1 the noise at the quantile ``u``: uniform on (-1/2, 1/2), or logistic of scale 1/8."""


def even_exchange(counts: Sequence[int]) -> Iterator[Tensor]:
    """How many of the ``counts[i]`` rows that i gives go to each of the others: numbers that differ by at most one.

    Those who still miss most get one more (after Kleitman and Wang, "Algorithms for constructing graphs and digraphs with given valences",
    1973), so that where it is possible everyone gets as many as it gives.

    Args:
        counts: at least two numbers of at least 0.

    Example:
        >>> [shares.tolist() for shares in even_exchange([3, 3, 3])]
        [[0, 2, 1], [1, 0, 2], [2, 1, 0]]
    """
    size = len(counts)
    given, places = torch.tensor(counts), torch.arange(size)
    evenly, more = given // (size - 1), given % (size - 1)
    missing = given - (evenly.sum() - evenly)
    for i in range(size):
        shares = evenly[i].expand(size).clone()
        shares[i] = 0
        if more[i]:
            waiting = torch.where(places > i, more, 0)  # who gives later can be given less freely
            # one number to sort by: who misses most, then who waits for most, then who comes next after i, which is last itself
            turn = (missing * size + waiting) * size - (places - i) % size
            turn[i] = torch.iinfo(torch.int64).min
            first = turn.topk(int(more[i]), sorted=False).indices
            shares[first] += 1
            missing[first] -= 1
        yield shares


class NoisyOrder:
    """The rows of several runs, sorted by a time to which noise is added.

    Row r of run i has time i + (rank + 1/2) / sizes[i] + noise, where rank is drawn without replacement, and the noise lies at the
    quantile (draw + 1/2) / sizes[i] of its distribution, where draw is, too. Only the runs near a place of the order are looked at to
    know which rows are there.

    Args:
        sizes: how many rows each run has, at least 0.
        width: of the transition between two runs, above 0; the length of a run is 1.
        shape: one of `SHAPES`.
        seed: of the draws.
        purpose: what they are for.

    Example:
        >>> order = NoisyOrder([4, 4], width=2.0, shape="linear", seed=0, purpose="example")
        >>> runs, rows = order.between(0, 8)
        >>> runs.tolist(), sorted(rows[runs == 0].tolist())
        ([0, 0, 1, 0, 0, 1, 1, 1], [0, 1, 2, 3])
    """

    def __init__(self, sizes: Sequence[int], *, width: float, shape: str, seed: int, purpose: str) -> None:
        self._sizes, self._width, self._noise = list(sizes), width, SHAPES[shape]
        self._seed, self._purpose = seed, purpose
        extreme = self._noise(torch.tensor(1 - 0.5 / max(*sizes, 1), dtype=torch.float64))
        self.reach = math.ceil(width * float(extreme) + 1e-6)
        self._times = lru_cache(maxsize=2 * self.reach + 2)(self._draw)
        self._sorted = lru_cache(maxsize=4)(self._sort)

    def _draw(self, run: int) -> tuple[Tensor, Tensor]:
        """The noisy time of each row of a run, and the run in whose span it falls (the first or last if in none)."""
        size = self._sizes[run]
        rank, draw = (
            permutation(size, seed=self._seed, purpose=f"{self._purpose} {what}", number=run).double() for what in ("rank", "noise")
        )
        noise = self._width * self._noise((draw + 0.5) / max(size, 1))
        times = (run + (rank + 0.5) / max(size, 1) + noise).round(decimals=9)  # the last bits of a logarithm differ between platforms
        return times, times.floor().long().clamp(0, len(self._sizes) - 1)

    @cached_property
    def _stops(self) -> list[int]:
        """How many rows fall into each span or an earlier one."""
        counts = torch.zeros(len(self._sizes), dtype=torch.int64)
        for run in range(len(self._sizes)):
            counts += torch.bincount(self._times(run)[1], minlength=len(self._sizes))
        return counts.cumsum(0).tolist()

    def _sort(self, span: int) -> tuple[Tensor, Tensor]:
        """Runs and numbers of the rows in a span, in order."""
        times, runs, rows = [], [], []
        for run in range(max(0, span - self.reach), min(len(self._sizes), span + self.reach + 1)):
            every, spans = self._times(run)
            here = (spans == span).nonzero().flatten()
            times.append(every[here])
            runs.append(torch.full_like(here, run))
            rows.append(here)
        order = torch.cat(times).argsort(stable=True)
        return torch.cat(runs)[order], torch.cat(rows)[order]

    def between(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """For each place from ``start`` up to ``stop`` the run and the number of the row that stands there."""
        first = bisect_right(self._stops, start)
        runs, rows = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
        for span in range(first, len(self._sizes)):
            begin = self._stops[span - 1] if span else 0
            if begin >= stop:
                break
            of, found = self._sorted(span)
            runs.append(of[max(0, start - begin) : stop - begin])
            rows.append(found[max(0, start - begin) : stop - begin])
        return torch.cat(runs), torch.cat(rows)
