"""Several updates for each batch, as in online learning, where a batch comes once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.phases import Phase

__all__ = ["UpdatesPerBatch"]


class UpdatesPerBatch(Plugin):
    """``updates`` updates for each batch of the main phase, one after another on the same incoming rows.

    Everything that happens in a step happens in each of them: a replay memory gives other rows to each, and augmentation is drawn
    anew. A phase that makes several updates per batch already, each of some parameters, makes the whole series as many times. Other
    phases than ``"main"`` are left alone.

    Args:
        updates: r, at least 1; 1 changes nothing.

    Cost: r times the training. Memory: none.

    Reference: Aljundi et al., Online continual learning with maximally interfered retrieval, NeurIPS 2019, arXiv 1908.04742 (iterations
    per incoming batch); Zhang et al., A simple but strong baseline for online continual learning: repeated augmented rehearsal,
    NeurIPS 2022. Deviation: beside ``Replay(fill="step")`` each incoming row is offered to the memory once, but right after the first
    of the updates on it rather than after the last, so that the later ones may replay rows of their own batch.

    Example:
        >>> from streamlearn.plugins import UpdatesPerBatch
        >>> UpdatesPerBatch(updates=5)
        UpdatesPerBatch(updates=5)
    """

    info = PluginInfo(
        name="updates_per_batch",
        family="scheduling",
        summary="Makes several updates on each batch of the main phase.",
        reference="Aljundi et al. 2019, NeurIPS, arXiv 1908.04742; Zhang et al. 2022, NeurIPS, arXiv 2209.13917",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `UpdatesPerBatch`."""

        updates: int = Field(2, ge=1)

    @hookimpl
    def transform_phases(self, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """Repeat the updates of the main phase."""
        updates = self.config.updates
        return tuple(phase.replace(updates=phase.updates * updates) if phase.name == "main" else phase for phase in phases)
