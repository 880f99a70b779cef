"""GDumb: keep a balanced memory greedily, and learn from scratch on nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.core.memory import ReplayMemory
    from streamlearn.core.phases import Phase
    from streamlearn.core.run import Run
    from streamlearn.streams import Data, Experience
    from streamlearn.streams.data import JoinedData

__all__ = ["GDumb", "labelled_positions"]


def labelled_positions(data: Data | JoinedData) -> Tensor:
    """Positions of the rows of ``data`` that carry a label of any task, int64, ascending."""
    columns = []
    for piece in data.parts():
        known = torch.zeros(len(piece), dtype=torch.bool)
        for task in piece.targets:
            known |= piece.labelled[task] if task in piece.labelled else torch.ones(len(piece), dtype=torch.bool)
        columns.append(known)
    return torch.cat(columns).nonzero().squeeze(1)


class GDumb(Plugin):
    """Greedy sampler and dumb learner: what a memory alone is worth.

    A memory of ``capacity`` rows, shared equally among the classes met, is filled from each experience before it is trained; then
    the model goes back to its initial weights and the main phase trains on the memory alone. Nothing else of the past or the
    present reaches the weights, so a method that is worse makes no use of what it sees beyond a memory of that size.

    Rows without any label are not kept. An experience that has no ``train`` rows is left to others.

    Args:
        capacity: rows kept in all, at least 1.
        epochs: passes over the memory after each experience, at least 1; default the engine's. The paper makes 256.
        memory: name of the memory.

    Raises:
        ConfigurationError: the first task of a row is no classification: there is no class to balance; or another plugin fills the
            same memory.

    Cost: no additional pass; a step costs the same, and an experience has as many as the memory has batches. Memory: ``capacity``
    indices, and the initial weights that every run keeps.

    Reference: Prabhu et al., GDumb: a simple approach that questions our progress in continual learning, ECCV 2020, algorithm 1.
    Deviations: the algorithm takes rows as they come and evicts a random one of the largest class; here each class keeps a uniform
    sample of its rows, with the same numbers by class but for the last row. Trained after each experience instead of when asked for
    a prediction; the optimiser and its schedule are yours (the paper: SGD with warm restarts, and CutMix).

    Example:
        >>> from streamlearn.plugins import GDumb
        >>> GDumb(capacity=200, epochs=20)
        GDumb(capacity=200, epochs=20)
    """

    info = PluginInfo(
        name="gdumb",
        family="replay",
        summary="Trains from scratch on a class-balanced memory alone, after each experience.",
        reference="Prabhu et al. 2020, ECCV, algorithm 1",
        conflicts=frozenset({"replay", "joint", "slda"}),
        memory="capacity indices",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `GDumb`."""

        capacity: int = Field(500, ge=1)
        epochs: int | None = Field(None, ge=1)
        memory: str = Field("main", min_length=1)

    def _memory(self, run: Run) -> ReplayMemory:
        return run.memories.open(self.config.memory, self.config.capacity, "class_balanced")

    @hookimpl
    def before_experience(self, experience: Experience, run: Run) -> None:
        """Fill the memory, and forget everything else. Not fired again by a resume, which finds both as they were."""
        if "train" not in experience.data:
            return
        data = experience.data["train"]
        _refuse_without_classes(data)
        memory = self._memory(run)
        if memory.owner not in (None, self.name):
            raise ConfigurationError(
                f"gdumb fills the replay memory {memory.name!r} itself, but {memory.owner} fills it already: give one of them another name"
            )
        memory.owner = self.name
        memory.offer(data, experience.index, "train", labelled_positions(data))
        if experience.index:
            run.reset()

    @hookimpl
    def transform_phases(self, phases: tuple[Phase, ...], experience: Experience, run: Run) -> tuple[Phase, ...]:
        """Exchange the data of the main phase; the memory does not change before the next experience."""
        kept = self._memory(run).data() if "train" in experience.data else None
        if kept is None:
            return phases
        length = {} if self.config.epochs is None else {"epochs": self.config.epochs}
        return tuple(phase.replace(data=kept, **length) if phase.name == "main" else phase for phase in phases)


def _refuse_without_classes(data: Data | JoinedData) -> None:
    for piece in data.parts():
        kinds = {task.name: task.kind for task in piece.tasks}
        first = next(iter(piece.targets), None)
        if first is not None and kinds[first] != "classification":
            raise ConfigurationError(
                f"gdumb balances its memory by class, but task {first!r} of source {piece.source.name!r} is a {kinds[first]}: "
                "list a classification task first, or use Replay"
            )
