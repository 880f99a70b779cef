"""Replay memories: a service of the run, owned once, shared by every plugin that names the same memory.

A memory holds no copies of rows but (source, index), and fetches them from their source when they are drawn. Which rows it
keeps follows one rule for all policies: every row that is offered gets a random priority, and each group keeps the rows with the
smallest ones (bottom-k sampling). With one group for all that *is* reservoir sampling (Vitter 1985): a uniform sample without
replacement of everything offered. With one group for each class, or experience, it is the balanced version, and a group whose
quota shrinks drops its largest priorities, which leaves a uniform sample again.
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
from streamlearn.streams.batch import Batch, concatenate
from streamlearn.streams.data import Data, JoinedData, join, same_kind

__all__ = ["Memories", "Policy", "ReplayMemory", "quotas"]

Policy = Literal["reservoir", "class_balanced", "experience_balanced"]

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
        capacity: rows kept in all, at least 1.
        policy: ``"reservoir"``, ``"class_balanced"`` or ``"experience_balanced"``.
        seed: of the run.

    Attributes:
        offered: rows offered so far.
        owner: the plugin that offers rows; others that share the memory only draw, so that no row comes in twice.

    Raises:
        ConfigurationError: the capacity is below 1.
    """

    _COLUMNS = ("part", "index", "group", "priority")

    def __init__(self, name: str, capacity: int, policy: Policy, seed: int) -> None:
        if capacity < 1:
            raise ConfigurationError(f"replay memory {name!r} has capacity {capacity}: give at least 1 row")
        self.name, self.capacity, self.policy = name, capacity, policy
        self._seed = subseed(seed, "memory", name)
        self._random = torch.Generator()  # seeded anew for each draw, which costs a tenth of making one
        self._parts: list[Part] = []
        self._kinds: list[Data] = []
        self._kind_of_part: list[int] = []
        self._part = np.zeros(0, np.int64)
        self._index = np.zeros(0, np.int64)
        self._group = np.zeros(0, np.int64)
        self._priority = np.zeros(0)
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

    def offer(self, data: Data | JoinedData, experience: int, role: str, positions: Tensor | None = None) -> None:
        """Offer rows of ``data``, all of them or those at ``positions``; each row must be offered only once."""
        start = 0
        for number, piece in enumerate(data.parts()):
            here = positions if positions is None else positions[(positions >= start) & (positions < start + len(piece))] - start
            index = piece.indices if here is None else piece.indices[here]
            start += len(piece)
            if len(index):
                self.insert(piece, (experience, role, number), index)

    def insert(self, piece: Data, part: Part, index: Tensor) -> None:
        """Offer the rows ``index`` of the source of ``piece``, which is found again as ``part``."""
        if part not in self._parts:
            self._add_part(part, piece)
        fresh = len(index)
        draw = np.random.Generator(np.random.Philox(key=subseed(self._seed, self.offered)))
        self.offered += fresh
        self._part = np.concatenate([self._part, np.full(fresh, self._parts.index(part))])
        self._index = np.concatenate([self._index, index.numpy()])
        self._group = np.concatenate([self._group, self._groups_of(piece, part, index)])
        self._priority = np.concatenate([self._priority, draw.random(fresh)])
        self._keep(self._survivors())

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
                f"memory {self.name!r} is class-balanced, but rows of {piece.source.name!r} have no labels: use 'reservoir'"
            )
        # classes of different tasks, or of the same task in different domains, are told apart by the source's own numbers
        task, target = next(iter(piece.targets.items()))
        groups = piece.source.take(index).targets[target.column].numpy().astype(np.int64)
        if task in piece.labelled:  # what is hidden must not steer which rows are kept: such rows are a group of their own
            groups[~piece.labelled[task][_positions(piece, index)].numpy()] = -1
        return groups

    def _survivors(self) -> np.ndarray:
        if len(self._index) <= self.capacity:
            return np.arange(len(self._index))
        order = np.lexsort((self._priority, self._group))
        names, first, counts = np.unique(self._group[order], return_index=True, return_counts=True)
        # which groups get what cannot be shared equally is drawn once for all: with more groups than places, not the oldest stay
        rank = np.argsort([subseed(self._seed, "group", int(name)) for name in names])
        allowed = np.zeros_like(counts)
        allowed[rank] = quotas(counts[rank], self.capacity)
        return np.sort(np.concatenate([order[f : f + a] for f, a in zip(first, allowed, strict=True)]))

    def _keep(self, places: np.ndarray) -> None:
        for column in self._COLUMNS:
            setattr(self, f"_{column}", getattr(self, f"_{column}")[places])

    def draw(self, rows: int, seed: int) -> Batch | None:
        """A uniform draw without replacement of at most ``rows`` rows, role ``"memory"``; ``None`` while empty."""
        size = len(self._index)
        if not size:
            return None
        self._random.manual_seed(subseed(self._seed, "draw", seed))
        return self._fetch(distinct(size, min(rows, size), self._random).numpy())

    def _fetch(self, places: np.ndarray) -> Batch:
        parts, index = self._part[places], torch.from_numpy(self._index[places])
        if len(self._kinds) == 1:
            return _rows_of(self._kinds[0], index)
        kinds = np.array(self._kind_of_part)[parts]
        return concatenate([_rows_of(self._kinds[k], index[torch.from_numpy(kinds == k)]) for k in np.unique(kinds)])

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
        return {"parts": [list(part) for part in self._parts], "offered": self.offered, "owner": self.owner, "columns": columns}

    def load_state_dict(self, state: Mapping[str, Any], piece_at: Callable[[int, str, int], Data]) -> None:
        """Take back what `state_dict` gave; ``piece_at`` finds the data a `Part` names."""
        self._parts, self._kinds, self._kind_of_part = [], [], []
        for experience, role, number in state["parts"]:
            self._add_part((int(experience), str(role), int(number)), piece_at(experience, role, number))
        self.offered, self.owner = int(state["offered"]), state["owner"]
        for column in self._COLUMNS:
            setattr(self, f"_{column}", state["columns"][column].numpy().copy())


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


class Memories:
    """The replay memories of a run, by name."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._memories: dict[str, ReplayMemory] = {}
        self._drawn: dict[tuple[str, int, str], Batch | None] = {}
        self._update = -1

    def open(self, name: str, capacity: int, policy: Policy) -> ReplayMemory:
        """The memory ``name``; made at the first call.

        Raises:
            ConfigurationError: it exists with another capacity or policy.
        """
        memory = self._memories.get(name)
        if memory is None:
            memory = self._memories[name] = ReplayMemory(name, capacity, policy, self._seed)
        if (memory.capacity, memory.policy) != (capacity, policy):
            raise ConfigurationError(
                f"two plugins share the replay memory {name!r} but want capacity {memory.capacity}, {memory.policy} and "
                f"{capacity}, {policy}: make them agree, or give one of them another memory name"
            )
        return memory

    @property
    def draws(self) -> bool:
        """Whether a memory holds rows that are augmented."""
        return any(memory.draws for memory in self._memories.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The memories that plugins have opened."""
        return tuple(self._memories)

    def find(self, name: str) -> ReplayMemory | None:
        """The memory ``name``, if a plugin has opened it."""
        return self._memories.get(name)

    def draw(self, name: str, rows: int, update: int, purpose: str) -> Batch | None:
        """One draw per step, number of rows and purpose; who asks again gets the same rows."""
        if name not in self._memories:
            known = ", ".join(self._memories) or "none"
            raise ConfigurationError(f"there is no replay memory {name!r} (there are: {known}): list a replay plugin that fills it")
        if update != self._update:
            self._drawn, self._update = {}, update
        key = (name, rows, purpose)
        if key not in self._drawn:
            self._drawn[key] = self._memories[name].draw(rows, subseed(update, rows, purpose))
        return self._drawn[key]

    def state_dict(self) -> dict[str, Any]:
        """Every memory's state."""
        return {
            name: {"capacity": memory.capacity, "policy": memory.policy, "state": memory.state_dict()}
            for name, memory in self._memories.items()
        }

    def load_state_dict(self, state: Mapping[str, Any], piece_at: Callable[[int, str, int], Data]) -> None:
        """Take back what `state_dict` gave."""
        for name, saved in state.items():
            self.open(name, saved["capacity"], saved["policy"]).load_state_dict(saved["state"], piece_at)
        self._drawn, self._update = {}, -1
