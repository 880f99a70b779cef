"""Experience replay: rows of a memory join every batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.memory import ReplayMemory
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Batch, Experience

__all__ = ["Replay"]


class Replay(Plugin):
    """Experience replay: ``batch_size`` rows of a memory join every batch, in role ``"memory"``.

    The memory holds at most ``capacity`` rows in all. ``policy="reservoir"`` is a uniform sample of everything offered
    (Vitter 1985; Chaudhry et al. 2019, algorithm 2); ``"class_balanced"`` shares the capacity equally among the classes met,
    ``"experience_balanced"`` among the experiences, each a uniform sample of its group. Rows are kept as (source, index); no
    input is copied.

    Current and memory rows are averaged alike: L is the mean over all rows of the batch. `ExperienceWeighting` beside it gives the
    current ones 1/k of the weight after k experiences.

    Args:
        capacity: rows kept in all, at least 1.
        policy: ``"reservoir"``, ``"class_balanced"`` or ``"experience_balanced"``.
        batch_size: rows drawn per step, at least 1; default as many as the batch brings.
        fill: ``"experience"`` offers the rows of an experience when it has ended, so that a step replays the past only;
            ``"step"`` offers them as they come (online learning), during the first epoch.
        memory: name of the memory. Plugins that name the same one share it.

    Cost: no additional pass, but each pass sees ``batch_size`` rows more. Memory: ``capacity`` indices.

    Reference: Ratcliff 1990; Chaudhry et al., On tiny episodic memories in continual learning, arXiv 1902.10486.

    Example:
        >>> from streamlearn.plugins import Replay
        >>> Replay(capacity=200, policy="class_balanced")
        Replay(capacity=200, policy='class_balanced')
    """

    info = PluginInfo(
        name="replay",
        family="replay",
        summary="Mixes rows of the past, kept in a memory of fixed size, into every batch.",
        reference="Chaudhry et al. 2019, arXiv 1902.10486, algorithms 1 and 2; Vitter 1985",
        provides=frozenset({"replay"}),
        memory="capacity indices",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `Replay`."""

        capacity: int = Field(500, ge=1)
        policy: Literal["reservoir", "class_balanced", "experience_balanced"] = "reservoir"
        batch_size: int | None = Field(None, ge=1)
        fill: Literal["experience", "step"] = "experience"
        memory: str = Field("main", min_length=1)

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._offered: tuple[int, int] | None = None  # (experience, batch) whose rows were offered last

    def _memory(self, run: Run) -> ReplayMemory:
        return run.memories.open(self.config.memory, self.config.capacity, self.config.policy)

    @hookimpl
    def transform_batch(self, batch: Batch, step: Step) -> Batch:
        """Add a draw from the memory."""
        self._memory(step.run)
        rows = step.draw(self.config.memory, self.config.batch_size or _brought(batch))
        return batch if rows is None else batch.with_rows("memory", rows.to(batch.x.device))

    @hookimpl
    def after_step(self, step: Step) -> None:
        """Offer the incoming rows as they come."""
        run = step.run
        if self.config.fill == "step" and run.clock.epoch == 0 and run.phase is not None and run.phase.name == "main":
            memory = self._memory(run)
            place = (run.clock.experience, run.clock.batch)  # a batch may make several updates
            if memory.owner in (None, self.name) and place != self._offered:
                memory.owner, self._offered = self.name, place
                run.offer(memory, step.batch)

    @hookimpl
    def after_experience(self, experience: Experience, run: Run) -> None:
        """Offer the rows of the experience that has ended."""
        memory = self._memory(run)
        if self.config.fill == "experience" and memory.owner in (None, self.name) and "train" in experience.data:
            memory.owner = self.name
            memory.offer(run.data(), experience.index, "train")


def _brought(batch: Batch) -> int:
    """Rows of the batch that come from no memory: two replay plugins do not replay each other's rows twice over."""
    return len(batch) - sum(segment.stop - segment.start for segment in batch.segments if segment.role == "memory")
