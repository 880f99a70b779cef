"""Experience replay: rows of a memory join every batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from streamlearn.core.plugin import Plugin, PluginInfo, hookimpl
from streamlearn.core.remembering import MemoryOptions, brought, open_memory, remember, remember_batch

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Batch, Experience

__all__ = ["Replay"]


class Replay(Plugin):
    """Experience replay: ``batch_size`` rows of a memory join every batch, in role ``"memory"``.

    The memory holds at most ``capacity`` rows in all. ``policy="reservoir"`` is a uniform sample of everything offered
    (Vitter 1985; Chaudhry et al. 2019, algorithm 2); ``"class_balanced"`` shares the capacity equally among the classes met,
    ``"experience_balanced"`` among the experiences, each a uniform sample of its group; ``"ring"`` keeps the latest rows of each class
    (Chaudhry et al. 2019, algorithm 3), ``"herding"`` those whose features have a mean near that of their class (Rebuffi et al. 2017,
    algorithm 4), chosen with the model as it is when the experience ends. Rows are kept as (source, index); no
    input is copied.

    Current and memory rows are averaged alike: L is the mean over all rows of the batch. `ExperienceWeighting` beside it gives the
    current ones 1/k of the weight after k experiences.

    Args:
        capacity: rows kept, at least 1.
        policy: ``"reservoir"``, ``"class_balanced"``, ``"experience_balanced"``, ``"ring"`` or ``"herding"``.
        budget: ``"total"``: ``capacity`` rows in all; ``"per_group"``: so many of each class, or experience.
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

    class Config(MemoryOptions):
        """Options of `Replay`."""

        batch_size: int | None = Field(None, ge=1)
        fill: Literal["experience", "step"] = "experience"

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._offered: tuple[int, int] | None = None  # (experience, batch) whose rows were offered last

    @hookimpl
    def transform_batch(self, batch: Batch, step: Step) -> Batch:
        """Add a draw from the memory."""
        open_memory(step.run, self)
        rows = step.draw(self.config.memory, self.config.batch_size or brought(batch))
        return batch if rows is None else batch.with_rows("memory", rows.to(batch.x.device))

    @hookimpl
    def after_step(self, step: Step) -> None:
        """Offer the incoming rows as they come."""
        if self.config.fill == "step":
            self._offered = remember_batch(step.run, self, step.batch, self._offered)

    @hookimpl
    def after_experience(self, experience: Experience, run: Run) -> None:
        """Offer the rows of the experience that has ended."""
        if self.config.fill == "experience":
            remember(run, self)
