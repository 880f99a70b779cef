"""Replay memories: a service of the run, owned once, shared by every plugin that names the same memory.

A memory holds no copies of rows but (source, index), and fetches them from their source when they are drawn. Which rows it
keeps follows one rule for all policies: every row that is offered gets a random priority, and each group keeps the rows with the
smallest ones (bottom-k sampling). With one group for all that *is* reservoir sampling (Vitter 1985): a uniform sample without
replacement of everything offered. With one group for each class, or experience, it is the balanced version, and a group whose
quota shrinks drops its largest priorities, which leaves a uniform sample again. Priorities that fall with time keep the latest rows (a
ring buffer), and those that somebody gives keep what he puts first (herding).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from streamlearn.core.randomness import distinct, subseed
from streamlearn.errors import ConfigurationError
from streamlearn.streams.batch import Batch, StoredColumn, concatenate
from streamlearn.streams.data import Data, JoinedData, join, same_kind
from streamlearn.streams.hiding import raw_targets

__all__ = ["Budget", "Part", "Policy", "ReplayMemory", "quotas"]

Policy = Literal["reservoir", "class_balanced", "experience_balanced", "ring", "herding"]
Budget = Literal["total", "per_group"]

Part = tuple[int, str, int]
"""Where rows come from: (experience, role, number of the piece of that data). It finds them again after a restart."""


def quotas(available: np.ndarray, capacity: int) -> np.ndarray:
    """Share ``capacity`` among groups with ``available`` rows each: equally, and what one cannot use goes to the others.

    >>> quotas(np.array([1, 50, 50]), 21).tolist()
    [1, 10, 10]
    """
    given = np.zeros_like(available)
    while (left := capacity - int(given.sum())) > 0:
        open_groups = np.flatnonzero(given < available)
        if not len(open_groups):
            break
        each = max(left // len(open_groups), 1)
        for group in open_groups[:left]:
            given[group] += min(each, int(available[group] - given[group]), capacity - int(given.sum()))
    return given


class ReplayMemory:
    """Rows of the past, at most ``capacity`` of them.

    Args:
        name: under which plugins share it.
        capacity: rows kept, at least 1.
        policy: which: ``"reservoir"``, a uniform sample of all; ``"class_balanced"`` or ``"experience_balanced"``, one of each class or
            experience; ``"ring"``, the latest of each class; ``"herding"``, those of each class that come first in an order that is given.
        seed: of the run.
        budget: ``"total"``: the capacity is shared by all groups; ``"per_group"``: each class (or experience) has so much.

    Attributes:
        offered: rows offered so far.
        owner: the plugin that offers rows; others that share the memory only draw, so that no row comes in twice.

    Raises:
        ConfigurationError: the capacity is below 1.
    """

    _COLUMNS = ("part", "index", "group", "priority")

    def __init__(self, name: str, capacity: int, policy: Policy, seed: int, budget: Budget = "total") -> None:
        if capacity < 1:
            raise ConfigurationError(f"replay memory {name!r} has capacity {capacity}: give at least 1 row")
        self.name, self.capacity, self.policy, self.budget = name, capacity, policy, budget
        self._seed = subseed(seed, "memory", name)
        self._random = torch.Generator()  # seeded anew for each draw, which costs a tenth of making one
        self._parts: list[Part] = []
        self._kinds: list[Data] = []
        self._kind_of_part: list[int] = []
        self._part = np.zeros(0, np.int64)
        self._index = np.zeros(0, np.int64)
        self._group = np.zeros(0, np.int64)
        self._priority = np.zeros(0)
        self._stored: dict[str, Tensor] = {}
        self.offered = 0
        self.owner: str | None = None

    def __len__(self) -> int:
        return len(self._index)

    @property
    def draws(self) -> bool:
        """Whether rows may come out differently each time, because they are augmented."""
        return any(kind.draws for kind in self._kinds)

    def groups(self) -> dict[int, int]:
        """Rows kept by group (class or experience; all rows are group 0 in a reservoir)."""
        names, counts = np.unique(self._group, return_counts=True)
        return dict(zip(names.tolist(), counts.tolist(), strict=True))

    def offer(
        self,
        data: Data | JoinedData,
        experience: int,
        role: str,
        positions: Tensor | None = None,
        order: Tensor | None = None,
    ) -> None:
        """Offer rows of ``data``, all of them or those at ``positions``; each row must be offered only once.

        ``order`` gives every row of ``data`` its priority, ``(rows,)``: of each group, those with the smallest are kept.
        """
        start = 0
        for number, piece in enumerate(data.parts()):
            here = (
                torch.arange(len(piece))
                if positions is None
                else positions[(positions >= start) & (positions < start + len(piece))] - start
            )
            index, first = piece.indices[here], None if order is None else order[start + here]
            start += len(piece)
            if len(index):
                self.insert(piece, (experience, role, number), index, first)

    def insert(
        self, piece: Data, part: Part, index: Tensor, order: Tensor | None = None, stored: Mapping[str, Tensor] | None = None
    ) -> None:
        """Offer the rows ``index`` of the source of ``piece``, which is found again as ``part``.

        Args:
            piece: whose rows they are.
            part: how it is found again.
            index: which rows, ``(rows,)``.
            order: their priorities, needed by ``"herding"``.
            stored: columns ``(rows, size)`` that are kept beside them, and come back with every draw as ``batch.stored``.
        """
        if part not in self._parts:
            self._add_part(part, piece)
        fresh = len(index)
        draw = np.random.Generator(np.random.Philox(key=subseed(self._seed, self.offered)))
        self.offered += fresh
        self._part = np.concatenate([self._part, np.full(fresh, self._parts.index(part))])
        self._index = np.concatenate([self._index, index.numpy()])
        self._group = np.concatenate([self._group, self._groups_of(piece, part, index)])
        self._priority = np.concatenate([self._priority, self._priorities(fresh, order, draw)])
        for name in {**self._stored, **(stored or {})}:
            self._store(name, len(self._index) - fresh, None if stored is None else stored.get(name))
        self._keep(self._survivors())

    def _priorities(self, fresh: int, order: Tensor | None, draw: np.random.Generator) -> np.ndarray:
        """Those of ``fresh`` rows just offered."""
        if self.policy == "herding":
            if order is None:
                raise ConfigurationError(
                    f"memory {self.name!r} keeps rows by herding, which orders all rows of a finished experience, but rows are offered one "
                    "batch after another: use fill='experience', or another policy"
                )
            return order.double().numpy()
        if self.policy == "ring":
            return -np.arange(self.offered - fresh, self.offered, dtype=float)
        return draw.random(fresh)

    def _store(self, name: str, before: int, values: Tensor | None) -> None:
        """Keep ``values`` beside the rows from ``before`` on; where there are none, and where a column has widened since, stands NaN."""
        old = self._stored.get(name)
        width = max(0 if old is None else old.shape[1], 0 if values is None else values.shape[1])
        column = torch.full((len(self._index), width), float("nan"))
        if old is not None:
            column[:before, : old.shape[1]] = old
        if values is not None:
            column[before:, : values.shape[1]] = values.detach().float().cpu()
        self._stored[name] = column

    def lacking(self, name: str) -> np.ndarray:
        """The places of the rows beside which nothing is stored under ``name``."""
        column = self._stored.get(name)
        return np.arange(len(self._index)) if column is None else column.isnan().all(1).numpy().nonzero()[0]

    def store(self, name: str, places: np.ndarray, values: Tensor) -> None:
        """Keep ``values`` ``(places, size)`` beside rows that are in the memory already; see `lacking` and `rows_at`."""
        self._store(name, len(self._index), None)
        old = self._stored[name]
        if values.shape[1] > old.shape[1]:
            self._stored[name] = torch.cat([old, old.new_full((len(old), values.shape[1] - old.shape[1]), float("nan"))], 1)
        self._stored[name][places, : values.shape[1]] = values.detach().float().cpu()

    def _add_part(self, part: Part, piece: Data) -> None:
        """Remember where rows come from; parts that differ only in their rows are fetched by one gather."""
        if len(piece) != len(piece.indices):
            raise ConfigurationError(
                f"memory {self.name!r} keeps rows, but experience {part[0]} has episodes, where alone rows have labels: leave replay out"
            )
        kind = next(
            (number for number, known in enumerate(self._kinds) if not (known.labelled or piece.labelled) and same_kind(known, piece)),
            len(self._kinds),
        )
        if kind == len(self._kinds):
            self._kinds.append(piece)
        self._parts.append(part)
        self._kind_of_part.append(kind)

    def _groups_of(self, piece: Data, part: Part, index: Tensor) -> np.ndarray:
        if self.policy == "reservoir":
            return np.zeros(len(index), np.int64)
        if self.policy == "experience_balanced":
            return np.full(len(index), part[0])
        if not piece.targets:
            raise ConfigurationError(
                f"memory {self.name!r} is {_BY_CLASS[self.policy]}, but rows of {piece.source.name!r} have no labels: use 'reservoir'"
            )
        # classes of different tasks, or of the same task in different domains, are told apart by the source's own numbers
        task, target = next(iter(piece.targets.items()))
        groups = raw_targets(piece.source, target.column, index).numpy().astype(np.int64)
        if task in piece.labelled:  # what is hidden must not steer which rows are kept: such rows are a group of their own
            groups[~piece.labelled[task][_positions(piece, index)].numpy()] = -1
        return groups

    def _survivors(self) -> np.ndarray:
        if len(self._index) <= self.capacity:
            return np.arange(len(self._index))
        order = np.lexsort((self._priority, self._group))
        names, first, counts = np.unique(self._group[order], return_index=True, return_counts=True)
        if self.budget == "per_group":
            return np.sort(np.concatenate([order[f : f + min(count, self.capacity)] for f, count in zip(first, counts, strict=True)]))
        # which groups get what cannot be shared equally is drawn once for all: with more groups than places, not the oldest stay
        rank = np.argsort([subseed(self._seed, "group", int(name)) for name in names])
        allowed = np.zeros_like(counts)
        allowed[rank] = quotas(counts[rank], self.capacity)
        return np.sort(np.concatenate([order[f : f + a] for f, a in zip(first, allowed, strict=True)]))

    def _keep(self, places: np.ndarray) -> None:
        for column in self._COLUMNS:
            setattr(self, f"_{column}", getattr(self, f"_{column}")[places])
        self._stored = {name: column[torch.from_numpy(places)] for name, column in self._stored.items()}

    def draw(self, rows: int, seed: int) -> Batch | None:
        """A uniform draw without replacement of at most ``rows`` rows, role ``"memory"``; ``None`` while empty."""
        size = len(self._index)
        if not size:
            return None
        self._random.manual_seed(subseed(self._seed, "draw", seed))
        return self._fetch(distinct(size, min(rows, size), self._random).numpy())

    def _fetch(self, places: np.ndarray) -> Batch:
        if len(self._kinds) == 1:
            batch = _rows_of(self._kinds[0], torch.from_numpy(self._index[places]))
        else:
            kinds = np.array(self._kind_of_part)[self._part[places]]
            by_kind = [places[kinds == k] for k in np.unique(kinds)]
            chosen = zip(np.unique(kinds), by_kind, strict=True)
            batch = concatenate([_rows_of(self._kinds[k], torch.from_numpy(self._index[here])) for k, here in chosen])
            places = np.concatenate(by_kind)
        if not self._stored:
            return batch
        everything, index = slice(0, len(batch)), torch.from_numpy(places)
        return batch.replace(stored={n: StoredColumn(everything, column.index_select(0, index)) for n, column in self._stored.items()})

    def rows_at(self, places: np.ndarray) -> Batch:
        """The rows at ``places``, at least one, each at its own place in the batch."""
        if len(self._kinds) == 1:
            return self._fetch(places)
        return concatenate([self._fetch(places[number : number + 1]).replace(stored={}) for number in range(len(places))])

    def rows_of(self, group: int) -> Batch | None:
        """All rows of one group (see `groups`), as a batch of role ``"memory"``; ``None`` when there are none."""
        places = (self._group == group).nonzero()[0]
        return self._fetch(places) if len(places) else None

    def data(self) -> Data | JoinedData | None:
        """Everything kept, to be trained on like the data of an experience; ``None`` while empty."""
        kinds = np.array(self._kind_of_part, np.int64)[self._part]
        chosen = [(self._kinds[kind], torch.from_numpy(self._index[kinds == kind])) for kind in np.unique(kinds)]
        pieces: list[Data | JoinedData] = [_piece_of(kind, index) for kind, index in chosen]
        return join(pieces) if pieces else None

    def all_rows(self) -> Batch | None:
        """Everything kept, as one batch of role ``"memory"``; ``None`` while empty."""
        return self._fetch(np.arange(len(self._index))) if len(self._index) else None

    def state_dict(self) -> dict[str, Any]:
        """Priorities, indices and where they come from; no rows."""
        columns = {column: torch.from_numpy(getattr(self, f"_{column}").copy()) for column in self._COLUMNS}
        state: dict[str, Any] = {
            "parts": [list(part) for part in self._parts],
            "offered": self.offered,
            "owner": self.owner,
            "columns": columns,
        }
        return {**state, "stored": dict(self._stored)} if self._stored else state

    def load_state_dict(self, state: Mapping[str, Any], piece_at: Callable[[int, str, int], Data]) -> None:
        """Take back what `state_dict` gave; ``piece_at`` finds the data a `Part` names."""
        self._parts, self._kinds, self._kind_of_part = [], [], []
        for experience, role, number in state["parts"]:
            self._add_part((int(experience), str(role), int(number)), piece_at(experience, role, number))
        self.offered, self.owner = int(state["offered"]), state["owner"]
        for column in self._COLUMNS:
            setattr(self, f"_{column}", state["columns"][column].numpy().copy())
        self._stored = dict(state.get("stored", {}))


_BY_CLASS = {"class_balanced": "class-balanced", "ring": "a ring for each class", "herding": "herded by class"}


def _rows_of(piece: Data, index: Tensor) -> Batch:
    """The rows ``index`` of the source of ``piece``; a row that came without a label is replayed without one."""
    if not piece.labelled:
        return piece.fetch(index, "memory")
    return piece.batch(_positions(piece, index), "memory")


def _piece_of(piece: Data, index: Tensor) -> Data:
    """The rows ``index`` of the source of ``piece``, as data."""
    if piece.labelled:
        return piece.subset(_positions(piece, index))
    return replace(piece, indices=index)


def _positions(piece: Data, index: Tensor) -> Tensor:
    order = piece.indices.argsort()
    return order[torch.searchsorted(piece.indices[order], index)]
