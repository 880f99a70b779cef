"""Weighting by experiences: the more experiences there have been, the less the present one counts beside the memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.step import Step
    from streamlearn.core.supervision import Supervision
    from streamlearn.streams import Batch

__all__ = ["ExperienceWeighting", "mixing_factors"]


def mixing_factors(incoming: float, memory: float, experiences: int) -> tuple[float, float]:
    """Factors of the weights of incoming and of memory rows after which the former make up 1/k of the same total.

    Args:
        incoming: present weight of the incoming rows, above 0.
        memory: present weight of the memory rows, above 0.
        experiences: k, at least 1.

    Example:
        >>> mixing_factors(10.0, 30.0, 4)
        (1.0, 1.0)
        >>> mixing_factors(10.0, 10.0, 4)
        (0.5, 1.5)
    """
    total = incoming + memory
    return total / (experiences * incoming), total * (experiences - 1) / (experiences * memory)


class ExperienceWeighting(Plugin):
    r"""Weighting of incoming and of memory rows by the number of experiences.

    .. math:: L = \frac1k \bar L_{in} + \Big(1 - \frac1k\Big) \bar L_{memory}

    with k the number of experiences met, the present one included, and the means over the rows of each kind: as if every experience
    had as many rows in the batch. Without it, L is the mean over all rows of the batch. A batch that has rows of one kind only is
    left as it is. With several tasks the incoming rows of all of them together make up 1/k; weights that other plugins have given
    hold within each kind. In the first experience k is 1, so the rows of a memory that is filled as rows come do not count there.

    It stands beside any plugin that brings rows of a memory, and apart from `Replay` because rows with weights have no fused mean.

    Cost: no additional pass; a weighted mean in place of the fused one. Memory: none.

    Reference: van de Ven, Siegelmann & Tolias, Brain-inspired replay for continual learning with artificial neural networks, Nature
    Communications 11, 2020, and van de Ven et al., Three types of incremental learning, Nature Machine Intelligence 4, 2022, methods.

    Example:
        >>> from streamlearn.plugins import Replay
        >>> [Replay(capacity=200), ExperienceWeighting()]
        [Replay(capacity=200), ExperienceWeighting()]
    """

    info = PluginInfo(
        name="experience_weighting",
        family="replay",
        summary="Gives the incoming rows 1/k of the weight after k experiences, and the memory rows the rest.",
        reference="van de Ven et al. 2020, Nature Communications 11:4069; 2022, Nature Machine Intelligence 4:1185",
        requires=frozenset({"replay"}),
        ranks="local",
    )

    class Config(PluginConfig):
        """`ExperienceWeighting` has no options."""

    @hookimpl
    def transform_supervision(self, supervision: tuple[Supervision, ...], step: Step) -> tuple[Supervision, ...]:
        """Weights for every row."""
        replayed = _memory_rows(step.batch)
        if replayed is None:
            return supervision
        pairs = [(record, replayed if record.rows is None else replayed[record.rows]) for record in supervision]
        memory, incoming = sum(r.weight_of(kind) for r, kind in pairs), sum(r.weight_of(~kind) for r, kind in pairs)
        if not memory > 0 or not incoming > 0:
            return supervision  # rows of one kind have labels
        new, old = mixing_factors(incoming, memory, step.run.clock.experience + 1)
        return tuple(record.multiplied(kind, inside=old, outside=new) for record, kind in pairs)


def _memory_rows(batch: Batch) -> Tensor | None:
    """Which rows come from a memory, as a bool column; ``None`` when none does."""
    found = [segment for segment in batch.segments if segment.is_memory]
    if not found:
        return None
    column = torch.zeros(len(batch), dtype=torch.bool, device=batch.x.device)
    for segment in found:
        column[segment.rows] = True
    return column
