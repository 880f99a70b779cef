"""Where a run is."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["Clock"]


@dataclass(slots=True)
class Clock:
    """Where a run is; all that a checkpoint needs to find the place again. Every count starts at 0.

    Attributes:
        experience: number of the experience being trained, also the number of experiences finished.
        phase: number of the phase within the experience.
        epoch: number of the epoch (pass over the data) within the phase.
        batch: batches done in this epoch.
        update: updates done in the run; the step in progress is number ``update``.
        epochs: epochs of the current phase.
        batches: batches of one of its epochs.
        iterations: batches of all of them; the last epoch may be cut short.
        inside: whether an experience has been started and not finished.
        entered: the value of ``update`` when it was started.
        started: whether the measurement before any training is done.
    """

    experience: int = 0
    phase: int = 0
    epoch: int = 0
    batch: int = 0
    update: int = 0
    epochs: int = 0
    batches: int = 0
    iterations: int = 0
    inside: bool = False
    entered: int = 0
    started: bool = False

    @property
    def is_last_epoch(self) -> bool:
        """Whether the phase ends with this epoch."""
        return self.epoch + 1 >= self.epochs

    @property
    def progress(self) -> float:
        """How much of the current phase is done: what ramps go by. From 0 to below 1 in its steps, 1 after the last of them."""
        return (self.epoch * self.batches + self.batch) / max(self.iterations, 1)

    def to_json(self) -> dict[str, int | bool]:
        """For the checkpoint."""
        return asdict(self)

    def __str__(self) -> str:
        return f"experience {self.experience}, phase {self.phase}, epoch {self.epoch}, step {self.update}"
