"""Which rows go where: seeded permutations, stratified splits, rows by class.

Everything here is a pure function of its arguments on every platform and with every version of numpy: permutations sort the
*raw* output of Philox, which numpy promises never to change (it does not promise so for `numpy.random.Generator`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from streamlearn.errors import DataError

__all__ = ["RowsByClass", "chunk_edges", "even_groups", "permutation", "split_rows", "stratified_split"]


def permutation(size: int, *, seed: int, purpose: str, number: int = 0) -> Tensor:
    """A random order of ``size`` things (int64, ``(size,)``), independent for each ``(seed, purpose, number)``.

    Example:
        >>> permutation(5, seed=0, purpose="classes").tolist()
        [4, 0, 2, 3, 1]
    """
    key = hashlib.sha256(f"{purpose}/{seed}/{number}".encode()).digest()[:16]
    raw = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(size)
    return torch.from_numpy(np.argsort(raw, kind="stable"))


def even_groups(items: Sequence[int], groups: int) -> tuple[tuple[int, ...], ...]:
    """``items`` in order, cut into ``groups`` runs whose lengths differ by at most one (longer ones first).

    Example:
        >>> even_groups(range(5), 2)
        ((0, 1, 2), (3, 4))
    """
    edges = chunk_edges(len(items), groups)
    return tuple(tuple(items[start:stop]) for start, stop in edges)


def chunk_edges(size: int, chunks: int) -> list[tuple[int, int]]:
    """Start and stop of each of ``chunks`` runs that cover ``size`` places as evenly as possible."""
    length, longer = divmod(size, chunks)
    stops = [length * (i + 1) + min(i + 1, longer) for i in range(chunks)]
    return list(zip([0, *stops], stops, strict=False))


class RowsByClass:
    """The positions of each class in a column of labels, found by one sort and kept in the memory of one column.

    Args:
        labels: class numbers of at least 0, int64, ``(rows,)``.
        classes: how many classes there are; more than the largest label.

    Example:
        >>> rows = RowsByClass(torch.tensor([1, 0, 1, 2]), 3)
        >>> rows.of([2, 1]).tolist()
        [0, 2, 3]
    """

    def __init__(self, labels: Tensor, classes: int) -> None:
        self._order = labels.argsort(stable=True)
        self.counts = torch.bincount(labels, minlength=classes)
        self._stops = self.counts.cumsum(0)

    def of(self, classes: Iterable[int]) -> Tensor:
        """The positions of all rows of ``classes``, ascending."""
        runs = [self._order[self._stops[c] - self.counts[c] : self._stops[c]] for c in classes]
        return torch.cat(runs).sort().values


def stratified_split(labels: Tensor, fraction: float, *, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """Rows for training and rows for testing, both ascending; ``fraction`` of every class goes to the test rows.

    Args:
        labels: class numbers of at least 0, int64, ``(rows,)``.
        fraction: in (0, 1), unchecked; every class keeps at least one row on either side.
        seed: which rows are drawn.
        name: what messages call the source.

    Raises:
        DataError: a class has a single row.

    Example:
        >>> train, test = stratified_split(torch.tensor([0] * 8 + [1] * 4), 0.25, seed=0, name="toy")
        >>> len(train), len(test)
        (9, 3)
    """
    classes = int(labels.max()) + 1
    rows = RowsByClass(labels, classes)
    chosen = []
    for number, count in enumerate(rows.counts.tolist()):
        if count == 1:
            raise DataError(f"class {number} of source {name!r} has a single row, too few to train and to test: add rows or give test=")
        taken = min(max(1, round(fraction * count)), count - 1) if count else 0
        chosen.append(rows.of([number])[permutation(count, seed=seed, purpose="test rows", number=number)[:taken]])
    in_test = torch.zeros(len(labels), dtype=torch.bool)
    in_test[torch.cat(chosen)] = True
    return (~in_test).nonzero().flatten(), in_test.nonzero().flatten()


def split_rows(targets: Tensor, fraction: float, *, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """Rows for training and rows for testing, both ascending: by class where the targets are class numbers, else at random.

    Args:
        targets: class numbers, int64, ``(rows,)``, or values, floating, ``(rows, ...)``.
        fraction, seed, name: as for `stratified_split`.

    Raises:
        DataError: a class, or the source, has a single row.

    Example:
        >>> train, test = split_rows(torch.linspace(0, 1, 8), 0.25, seed=0, name="toy")
        >>> len(train), len(test)
        (6, 2)
    """
    if not targets.is_floating_point():
        return stratified_split(targets, fraction, seed=seed, name=name)
    if len(targets) < 2:
        raise DataError(f"source {name!r} has a single row, too few to train and to test: add rows or give test=")
    count = min(max(1, round(fraction * len(targets))), len(targets) - 1)
    order = permutation(len(targets), seed=seed, purpose="test rows")
    return order[count:].sort().values, order[:count].sort().values
