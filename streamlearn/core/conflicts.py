"""How the gradients of the rows stand to each other, over an epoch: for the record, and a guard before anything is combined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from streamlearn.errors import DivergenceError

if TYPE_CHECKING:
    from streamlearn.core.gradients import TaskRows
    from streamlearn.core.run import Run

__all__ = ["Conflicts"]

_AT_ONCE = 64


class Conflicts:
    """Sums over the steps of an epoch in which a combiner acted: lengths of the rows' gradients, and cosines between them.

    They are kept by the names of the rows, so that tasks may be absent from a batch.
    """

    def __init__(self) -> None:
        self._met: list[tuple[tuple[str, ...], Tensor]] = []  # rows and Gramians that are not in the sums yet
        self._updates = 0
        self._names: list[str] = []
        self._lengths = torch.zeros(2, 0, dtype=torch.float64)  # sum, steps
        self._pairs = torch.zeros(3, 0, 0, dtype=torch.float64)  # cosines, conflicts, steps in which both had a direction

    @property
    def updates(self) -> int:
        """Steps counted."""
        return self._updates + len(self._met)

    def add(self, rows: TaskRows, run: Run) -> None:
        """Count the rows of one step.

        Raises:
            DivergenceError: the gradient of a row is not finite, though its loss is; the message names the row.
        """
        gramian = rows.gramian.detach()
        squares = gramian.diagonal().tolist()
        guilty = [name for name, square in zip(rows.names, squares, strict=True) if not isfinite(square)]
        if guilty:
            raise _divergence(guilty, run)
        self._met.append((rows.names, gramian.cpu()))
        if len(self._met) == _AT_ONCE or (self._met[0][0] != rows.names):
            self._sum_up()

    def _sum_up(self) -> None:
        """Into the sums; those of many steps at once, because each operation on a few numbers costs as much as on many."""
        met, self._met = self._met, []
        for names, found in groupby(met, key=lambda pair: pair[0]):
            gramians = torch.stack([gramian for _, gramian in found]).double()
            lengths = gramians.diagonal(dim1=1, dim2=2).sqrt()
            products = lengths.unsqueeze(2) * lengths.unsqueeze(1)
            known = products > 0  # a row of zeros has no direction
            cosines = torch.where(known, gramians / torch.where(known, products, 1.0), 0.0).clamp(-1, 1)
            places = self._places(names)
            self._updates += len(gramians)
            self._lengths[:, places] = _added_in_order(self._lengths[:, places], torch.stack([lengths, torch.ones_like(lengths)]))
            parts = torch.stack([cosines, (cosines < 0).double(), known.double()])
            where = (slice(None), places.unsqueeze(1), places)
            self._pairs[where] = _added_in_order(self._pairs[where], parts)

    def _places(self, names: tuple[str, ...]) -> Tensor:
        fresh = [name for name in names if name not in self._names]
        if fresh:
            self._names += fresh
            self._lengths = pad(self._lengths, (0, len(fresh)))
            self._pairs = pad(self._pairs, (0, len(fresh), 0, len(fresh)))
        return torch.tensor([self._names.index(name) for name in names])

    def means(self) -> dict[str, Any]:
        """What goes into the record: ``{}`` where no two rows have met.

        A pair's ``cosine`` is the mean over the ``updates`` in which both had a gradient other than zero, its ``conflict_rate`` the
        share of those in which the cosine was negative; the first ``conflict_rate`` is that of all pairs. ``norms`` are the mean
        lengths of the gradients by row.
        """
        self._sum_up()
        order = sorted(range(len(self._names)), key=self._names.__getitem__)
        cosines, conflicts, steps = self._pairs.tolist()
        pairs = [(i, j) for number, i in enumerate(order) for j in order[number + 1 :] if steps[i][j]]
        if not pairs:
            return {}
        return {
            "conflict_rate": sum(conflicts[i][j] for i, j in pairs) / sum(steps[i][j] for i, j in pairs),
            "pairs": [
                {
                    "rows": [self._names[i], self._names[j]],
                    "updates": int(steps[i][j]),
                    "cosine": cosines[i][j] / steps[i][j],
                    "conflict_rate": conflicts[i][j] / steps[i][j],
                }
                for i, j in pairs
            ],
            "norms": {self._names[i]: float(self._lengths[0, i] / self._lengths[1, i]) for i in order},
        }

    def state_dict(self) -> dict[str, Any]:
        """The sums."""
        self._sum_up()
        return {"updates": self.updates, "names": list(self._names), "lengths": self._lengths.tolist(), "pairs": self._pairs.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        count = len(state["names"])
        self._met, self._updates, self._names = [], int(state["updates"]), list(state["names"])
        self._lengths = torch.tensor(state["lengths"], dtype=torch.float64).view(2, count)
        self._pairs = torch.tensor(state["pairs"], dtype=torch.float64).view(3, count, count)


def _added_in_order(sums: Tensor, parts: Tensor) -> Tensor:
    """``sums`` plus ``parts`` ``(kinds, steps, ...)``, step after step: when it is done must not change a bit, or a resume would."""
    return torch.cat([sums.unsqueeze(1), parts], 1).cumsum(1)[:, -1]


def _divergence(guilty: Sequence[str], run: Run) -> DivergenceError:
    return DivergenceError(
        f"training diverged at {run.clock}: the gradient of {', '.join(f'row {name!r}' for name in guilty)} is not finite, though the loss "
        "is. The update was not made; start again, in another folder, with a lower learning rate, or another loss"
    )
