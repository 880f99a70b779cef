"""Phases: what is trained on, for how long, and which parameters move."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from streamlearn.core.optimization import OptimizerFactory
from streamlearn.errors import ConfigurationError
from streamlearn.streams.data import Data, JoinedData

__all__ = ["ALL", "Phase", "select_names"]

ALL: tuple[str, ...] = ("*",)
"""Every parameter: the default of one update, and of ``Phase.trainable``."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training within an experience.

    Args:
        name: ``"main"`` is the ordinary one.
        data: what is trained on.
        epochs: passes over the data, at least 0.
        iterations: batches in all, at least 1, in place of ``epochs``: as many passes as they need, the last one cut short.
        updates: one entry for each update made per batch: patterns of parameter names that it moves.
        trainable: patterns of the parameters that move in this phase; ``None`` means all, ``()`` none.
        optimizer: an optimiser of the phase's own; ``None`` uses the main one.
        only: names of the plugins that act on the steps of this phase; ``None`` means all.
        role: the role that the rows have in a batch.
        batch_size: rows per batch; ``None`` takes the engine's.
        companions: data by role whose rows join every batch, as many as it has of its own: the unlabelled ``target`` of a domain
            adaptation. The engine fills in the other roles of the experience for the phase ``"main"``, but for ``validation``.
    """

    name: str
    data: Data | JoinedData
    epochs: int
    updates: tuple[tuple[str, ...], ...] = (ALL,)
    trainable: tuple[str, ...] | None = None
    optimizer: OptimizerFactory | None = None
    only: frozenset[str] | None = None
    role: str = "train"
    batch_size: int | None = None
    companions: Mapping[str, Data | JoinedData] = field(default_factory=dict)
    iterations: int | None = None

    def __post_init__(self) -> None:
        if self.only is not None:
            object.__setattr__(self, "only", frozenset(self.only))  # any collection of names is welcome
        if self.epochs < 0:
            raise ConfigurationError(f"phase {self.name!r} has {self.epochs} epochs: give 0 or more")
        if self.iterations is not None and self.iterations < 1:
            raise ConfigurationError(f"phase {self.name!r} has {self.iterations} iterations: give 1 or more, or None")

    def replace(self, **changes: object) -> Phase:
        """A copy with some fields exchanged; one that is given epochs has no number of iterations, unless that is given, too."""
        if "epochs" in changes:
            changes = {"iterations": None, **changes}
        return replace(self, **changes)  # type: ignore[arg-type]


def select_names(names: Iterable[str], patterns: tuple[str, ...] | None) -> frozenset[str]:
    """The names that match any of ``patterns`` (shell wildcards); ``None`` selects all.

    >>> sorted(select_names(["encoder.0.weight", "heads.a.bias"], ("encoder.*",)))
    ['encoder.0.weight']
    """
    return frozenset(name for name in names if patterns is None or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
