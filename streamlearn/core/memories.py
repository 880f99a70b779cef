"""The replay memories of a run: opened by name, shared by who names the same one, drawn from once a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from streamlearn.core.memory import Budget, Policy, ReplayMemory
from streamlearn.core.randomness import subseed
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.streams.batch import Batch
    from streamlearn.streams.data import Data

__all__ = ["Memories"]


class Memories:
    """The replay memories of a run, by name."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._memories: dict[str, ReplayMemory] = {}
        self._drawn: dict[tuple[str, int, str], Batch | None] = {}
        self._update = -1

    def open(self, name: str, capacity: int, policy: Policy, budget: Budget = "total") -> ReplayMemory:
        """The memory ``name``; made at the first call.

        Raises:
            ConfigurationError: it exists with another capacity, policy or budget.
        """
        memory = self._memories.get(name)
        if memory is None:
            memory = self._memories[name] = ReplayMemory(name, capacity, policy, self._seed, budget)
        known, asked = (memory.capacity, memory.policy, memory.budget), (capacity, policy, budget)
        if known != asked:
            shown = [f"{c}, {p}{'' if known[2] == budget else f', {b}'}" for c, p, b in (known, asked)]
            raise ConfigurationError(
                f"two plugins share the replay memory {name!r} but want capacity {' and '.join(shown)}: make them agree, or give one of "
                "them another memory name"
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
            name: {"capacity": memory.capacity, "policy": memory.policy, "budget": memory.budget, "state": memory.state_dict()}
            for name, memory in self._memories.items()
        }

    def load_state_dict(self, state: Mapping[str, Any], piece_at: Callable[[int, str, int], Data]) -> None:
        """Take back what `state_dict` gave."""
        for name, saved in state.items():
            memory = self.open(name, saved["capacity"], saved["policy"], saved.get("budget", "total"))
            memory.load_state_dict(saved["state"], piece_at)
        self._drawn, self._update = {}, -1
