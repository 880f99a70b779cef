"""Training from scratch: every experience starts at the initial weights, and sees its own rows alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamlearn.core.plugin import Plugin, PluginInfo, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.streams import Experience

__all__ = ["FromScratch"]


class FromScratch(Plugin):
    """From-scratch training: every experience but the first starts at the initial weights, with optimisers that remember nothing.

    What is learnt of an experience alone, by the same network in the same number of steps: the yardstick for transfer from the past, and
    a lower bound for what is kept of it, since nothing is. Rows are not exchanged: beside `Replay` the memory survives, so the present
    and what the memory holds are learnt from scratch. ``Joint(restart=True)`` does the same with all rows seen so far.

    Outputs by which a head has grown since the start are drawn anew each time. What other plugins keep (anchors, importance, memories)
    stays theirs.

    Cost: none. Memory: none beyond the initial weights that every run keeps.

    Reference: Lomonaco et al., Avalanche: an end-to-end library for continual learning, CVPR workshops 2021 (``FromScratchTraining``).
    Deviations: Avalanche 0.6 leaves buffers, such as the statistics of batch normalisation, as they were, and a head that has grown as it
    was trained; here all of the model starts again.

    Example:
        >>> from streamlearn.plugins import FromScratch
        >>> FromScratch()
        FromScratch()
    """

    info = PluginInfo(
        name="from_scratch",
        family="replay",
        summary="Starts every experience at the initial weights: what is learnt of it alone.",
        reference="Lomonaco et al. 2021, CVPR workshops (Avalanche), 'FromScratchTraining'",
        conflicts=frozenset({"packnet", "hat"}),  # what they protect would be overwritten
        ranks="local",
    )

    @hookimpl
    def before_experience(self, experience: Experience, run: Run) -> None:
        """Back to the start. Not fired again by a resume, which finds the weights as they were."""
        if run.clock.experience:
            run.reset()
