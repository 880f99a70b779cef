"""Joint training: every experience trains on all data seen so far, the usual upper bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.streams.data import join

if TYPE_CHECKING:
    from streamlearn.core.phases import Phase
    from streamlearn.core.run import Run
    from streamlearn.streams import Experience

__all__ = ["Joint"]


class Joint(Plugin):
    """Joint training on all data seen so far: an upper bound, since nothing is ever out of reach.

    The main phase of experience k trains on the rows of experiences 0 to k, for the engine's number of epochs over all of them.

    Args:
        restart: begin every experience from the initial weights instead of continuing (slower, and free of the past's path).

    Cost: the training time grows with the experiences. Memory: none beyond the stream's own sources.

    Reference: the "joint" or "cumulative" baseline, as in van de Ven et al., Three types of incremental learning, Nature Machine
    Intelligence 4, 2022.

    Example:
        >>> from streamlearn.plugins import Joint
        >>> Joint(restart=True)
        Joint(restart=True)
    """

    info = PluginInfo(
        name="joint",
        family="replay",
        summary="Trains on all data seen so far: the upper bound.",
        reference="van de Ven et al. 2022, Nature Machine Intelligence 4:1185, 'joint'",
        conflicts=frozenset({"replay"}),
        memory="the data of the past",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `Joint`."""

        restart: bool = False

    @hookimpl
    def before_experience(self, experience: Experience, run: Run) -> None:
        """Start again from the initial weights, if asked to."""
        if self.config.restart and experience.index:
            run.reset()

    @hookimpl
    def transform_phases(self, phases: tuple[Phase, ...], experience: Experience, run: Run) -> tuple[Phase, ...]:
        """Exchange the data of the main phase."""
        met = [run.stream[number].data for number in range(experience.index + 1)]
        seen = join([data["train"] for data in met if "train" in data] or [phases[0].data])
        return tuple(phase.replace(data=seen) if phase.name == "main" else phase for phase in phases)
