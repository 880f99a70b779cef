"""Annealed sampling: draw tasks in proportion to their sizes at first, and more and more equally from epoch to epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.scheduling import power_probabilities, rows_by_task

if TYPE_CHECKING:
    from streamlearn.core.step import Step

__all__ = ["AnnealedSampling", "annealed_exponent"]


def annealed_exponent(epoch: int, epochs: int, start: float = 1.0, end: float = 0.2) -> float:
    """α = start + (end - start) (e - 1) / (E - 1) in epoch e of E; ``start`` where there is one epoch.

    Args:
        epoch: e, from 1.
        epochs: E.
        start: α in the first epoch.
        end: α in the last one.

    Example:
        >>> [round(annealed_exponent(e, 5), 3) for e in (1, 2, 3, 4, 5)]
        [1.0, 0.8, 0.6, 0.4, 0.2]
    """
    return start + (end - start) * (epoch - 1) / (epochs - 1) if epochs > 1 else start


class AnnealedSampling(Plugin):
    r"""Annealed sampling of tasks.

    .. math:: p_k = \frac{n_k^α}{\sum_j n_j^α}, \qquad α = 1 - 0.8\, \frac{e - 1}{E - 1}

    in epoch e of the E epochs of a phase, with n_k the rows of task k in its data. Large tasks are drawn most at first; towards the end,
    where the tasks interfere most, they are drawn more equally. α goes from ``start`` to ``end`` in equal steps, anew in each phase and
    experience. A phase of one epoch, such as that of a stream in which every row comes once, stays at ``start``: give it the exponent
    that it should have, or use `TemperatureSampling`.

    The rows of a batch are drawn task by task from these probabilities, and within a task each row once before any comes again. An
    epoch stays as many batches as the data fills, so rows of a large task may be left out of it and those of a small one come
    several times.

    A row that carries several tasks trains all of them, whichever it was drawn for, and may stand in a batch once for each of them:
    where every row carries every task, as in `streamlearn.streams.multitask` of one source, no sampling of rows can favour one (a
    weighting can).

    Args:
        start: α in the first epoch, at least 0; 1 draws in proportion to size.
        end: α in the last epoch, at least 0; 0 draws all tasks equally often.

    Cost: none. Memory: none.

    Reference: Stickland & Murray, BERT and PALs: projected attention layers for efficient adaptation in multi-task learning, ICML 2019,
    section 4.2. Deviation: the paper draws one task for a whole batch; here each row of a batch is drawn on its own. The authors' code
    divides by 0 where there is one epoch.

    Example:
        >>> from streamlearn.plugins import AnnealedSampling
        >>> AnnealedSampling(end=0.5)
        AnnealedSampling(end=0.5)
    """

    info = PluginInfo(
        name="annealed_sampling",
        family="scheduling",
        summary="Draws tasks by size at first, and more and more equally towards the last epoch.",
        reference="Stickland & Murray 2019, ICML, section 4.2",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `AnnealedSampling`."""

        start: float = Field(1.0, ge=0)
        end: float = Field(0.2, ge=0)

    @hookimpl
    def provide_task_probabilities(self, step: Step) -> dict[str, float]:
        """From the rows of the present phase and the number of its epoch."""
        run = step.run
        assert run.phase is not None
        exponent = annealed_exponent(run.clock.epoch + 1, run.clock.epochs, self.config.start, self.config.end)
        return power_probabilities(rows_by_task(run.phase.data), exponent)
