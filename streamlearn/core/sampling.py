"""Which rows come next: a pure function of (seed, experience, phase, epoch) and how many batches have been drawn.

Without a task scheduler an epoch is one random order over all rows. With one, rows are drawn task by task: the next batch
takes from each task's own random order as many rows as a draw from its probabilities says, and continues there the next time;
a task that runs out starts a new order of its own. An epoch is as many batches as the data has rows, in both cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamlearn.core.randomness import permutation, subseed
from streamlearn.errors import ConfigurationError
from streamlearn.streams.data import Data, JoinedData

__all__ = ["Rounds", "TaskCursors", "batches_per_epoch", "shuffled"]


def batches_per_epoch(rows: int, batch_size: int, drop_last: bool) -> int:
    """⌊rows / batch_size⌋ with ``drop_last``, else the ceiling; never 0 for a single short batch."""
    return max(1, rows // batch_size) if drop_last else -(-rows // batch_size)


def shuffled(rows: int, batch_size: int, drop_last: bool, skip: int, seed: int, *place: str | int) -> Tensor:
    """The positions of one epoch in their order, from batch ``skip`` on."""
    order = permutation(rows, seed, "order", *place)
    return order[skip * batch_size : batches_per_epoch(rows, batch_size, drop_last) * batch_size]


class Rounds:
    """Rows that join every batch: one random order of them after another, without end.

    Batch ``number`` is a pure function of its number, so there is no cursor that a resume would need.

    Args:
        rows: how many there are, at least 1.
        batch_size: how many join a batch; all of them when there are fewer.
        seed: the run's seed.
        place: (experience, phase, role).

    Example:
        >>> rounds = Rounds(5, 2, 0, "here")
        >>> sorted(torch.cat([rounds.positions(0), rounds.positions(1), rounds.positions(2)[:1]]).tolist())
        [0, 1, 2, 3, 4]
    """

    def __init__(self, rows: int, batch_size: int, seed: int, *place: str | int) -> None:
        self._rows, self._size = rows, min(batch_size, rows)
        self._seed, self._place = seed, place
        self._orders: dict[int, Tensor] = {}

    def positions(self, number: int) -> Tensor:
        """The positions that join batch ``number`` of the phase."""
        round_, offset = divmod(number * self._size, self._rows)
        taken = self._order(round_)[offset : offset + self._size]
        missing = self._size - len(taken)
        return taken if not missing else torch.cat([taken, self._order(round_ + 1)[:missing]])

    def _order(self, number: int) -> Tensor:
        if number not in self._orders:
            self._orders = {n: order for n, order in self._orders.items() if n == number - 1}
            self._orders[number] = permutation(self._rows, self._seed, "round", *self._place, number)
        return self._orders[number]


class TaskCursors:
    """One cursor per task over its rows, moved by draws from task probabilities.

    Args:
        data: the rows of the phase.
        batch_size: rows per batch.
        seed: the run's seed.
        place: (experience, phase).
    """

    def __init__(self, data: Data | JoinedData, batch_size: int, seed: int, *place: str | int) -> None:
        self._seed, self._place, self._batch_size = seed, place, batch_size
        self._positions: dict[str, Tensor] = {}
        start = 0
        for part in data.parts():
            here = torch.arange(start, start + len(part))
            for task in part.tasks if len(part) else ():
                known = self._positions.get(task.name)
                self._positions[task.name] = here if known is None else torch.cat([known, here])
            start += len(part)
        self._cursor = {task: [0, 0] for task in self._positions}  # pass, offset
        self._orders: dict[tuple[str, int], Tensor] = {}

    def next(self, probabilities: Mapping[str, float], update: int) -> Tensor:
        """The positions of the next batch, task by task.

        Raises:
            ConfigurationError: a probability is negative, they sum to 0, or a task is not in the data.
        """
        names = list(self._positions)
        unknown = sorted(set(probabilities) - set(names))
        weights = np.array([float(probabilities.get(name, 0.0)) for name in names])
        if unknown or (weights < 0).any() or not weights.sum() > 0:
            raise ConfigurationError(
                f"task probabilities {dict(probabilities)} are not a distribution over the tasks present ({', '.join(names)}): "
                "give each a number of at least 0, not all 0"
            )
        draw = np.random.Generator(np.random.Philox(key=subseed(self._seed, "tasks", update)))
        counts = draw.multinomial(self._batch_size, weights / weights.sum())
        return torch.cat([self._take(name, int(count)) for name, count in zip(names, counts, strict=True) if count])

    def _take(self, task: str, count: int) -> Tensor:
        taken = []
        while count:
            number, offset = self._cursor[task]
            order = self._order(task, number)
            piece = order[offset : offset + count]
            taken.append(self._positions[task][piece])
            count -= len(piece)
            self._cursor[task] = [number, offset + len(piece)] if offset + len(piece) < len(order) else [number + 1, 0]
        return torch.cat(taken)

    def _order(self, task: str, number: int) -> Tensor:
        key = (task, number)
        if key not in self._orders:
            self._orders = {k: v for k, v in self._orders.items() if k[0] != task}
            self._orders[key] = permutation(len(self._positions[task]), self._seed, "order", *self._place, task, number)
        return self._orders[key]

    def state_dict(self) -> dict[str, Any]:
        """The cursors."""
        return {task: list(cursor) for task, cursor in self._cursor.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._cursor = {task: list(cursor) for task, cursor in state.items()}
