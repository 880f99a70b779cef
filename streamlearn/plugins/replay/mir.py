"""Maximally interfered retrieval (MIR): of a draw from the memory, the rows that the coming update would hurt most are replayed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.plugin import Passes, Plugin, PluginInfo, Tunable, hookimpl
from streamlearn.core.randomness import forked
from streamlearn.core.remembering import MemoryOptions, brought, open_memory, remember, remember_batch
from streamlearn.core.supervision import unreduced
from streamlearn.streams.batch import EVERY_ROW, Batch

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Experience

__all__ = ["MIR", "most_interfered", "rows_of"]


def most_interfered(before: Tensor, after: Tensor, count: int) -> Tensor:
    """The positions of the ``count`` rows whose loss rises most, ascending, int64.

    Args:
        before: loss of each row, ``(rows,)``.
        after: the same after the update.
        count: how many; all rows when there are fewer.

    Example:
        >>> most_interfered(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([3.0, 0.0, 2.0]), 2).tolist()
        [0, 2]
    """
    order = (after - before).sort(descending=True, stable=True).indices
    return order[:count].sort().values


def rows_of(batch: Batch, positions: Tensor) -> Batch:
    """The rows at ``positions`` (ascending, int64), without stored columns.

    Example:
        >>> batch = Batch.uniform(torch.zeros(3, 2), "digit", torch.tensor([0, 1, 2]), torch.arange(3))
        >>> rows_of(batch, torch.tensor([0, 2])).targets["digit"].tolist()
        [0, 2]
    """
    segments, start, places = [], 0, positions.cpu()
    for segment in batch.segments:
        count = int(((places >= segment.start) & (places < segment.stop)).sum())
        if count:
            segments.append(segment._replace(start=start, stop=start + count))
        start += count
    return Batch(
        batch.x[positions],
        {task: column[positions] for task, column in batch.targets.items()},
        {
            task: rows if isinstance(rows, slice) and rows == EVERY_ROW else batch.labelled_rows(task)[positions]
            for task, rows in batch.labelled.items()
        },
        tuple(segments),
        batch.index[places],
    )


class MIR(Plugin):
    r"""Experience replay of the rows that interfere most with the update to come.

    .. math:: \theta^v = \theta - \eta \nabla_\theta L(B), \qquad s(x) = \ell(x; \theta^v) - \ell(x; \theta)

    In each step ``candidates`` rows are drawn from the memory; the ``batch_size`` of them with the largest s, the criterion s_MI-1 of
    the paper (the increase of the loss), join the batch in role ``"memory"``. B are the incoming rows, and θ^v is where one plain SGD
    step on them alone would lead; with momentum or Adam that is an approximation of the coming update, as in the authors' code. As many
    candidates as wanted, or fewer, join all.

    L and ℓ are the losses of the strategy, with its masks, soft targets and weighting, and without its terms; ℓ of a row is the sum over
    its tasks, and a row without a label has none, so that its increase is 0. Everything is evaluated in training mode with the dropout
    masks of the step; buffers (the statistics of BatchNorm) do not see it. Rows that another plugin has added are no part of B.

    Current and memory rows are averaged alike, as in `Replay`.

    Args:
        candidates: rows drawn per step, at least 1. The paper has 50.
        batch_size: rows of them that join the batch, at least 1; default as many as the batch brings.
        learning_rate: η, above 0; default the present one of the first group of the main optimiser.
        fill: ``"experience"`` offers the rows of an experience when it has ended, so that a step replays the past only;
            ``"step"`` offers them as they come (online learning, as in the paper), during the first epoch.
        memory: name of the memory. Plugins that name the same one share it, and must agree on ``capacity``, ``policy`` and ``budget``.
        capacity: rows kept, at least 1.
        policy: which, as in `Replay`; the paper has ``"reservoir"``.
        budget: ``"total"``: ``capacity`` rows in all; ``"per_group"``: so many of each class, or experience.

    Raises:
        ConfigurationError: the stream has episodes.

    Cost: one forward and one backward pass over the incoming rows and two forward passes over the candidates, once the memory holds
    more than ``batch_size`` rows; and each pass of the step sees ``batch_size`` rows more. Memory: ``capacity`` indices, and a gradient
    while a batch is made.

    Reference: Aljundi, Caccia, Belilovsky, Caccia, Lin, Charlin & Tuytelaars, Online continual learning with maximally interfered
    retrieval, NeurIPS 2019, section 3.1 and algorithm 1. Deviations: the authors' code adds the means of the two groups of rows, here L
    stays the mean over all rows; with as many memory rows as incoming ones that is half of it, so the learning rates correspond by a
    factor of 2. Their s_MI-2, which compares with the least loss that a row has ever had, is not offered. Avalanche 0.6 draws its
    candidates without the classes of the last batch of the experience before, and takes every penalty into the virtual step.

    Example:
        >>> from streamlearn.plugins import MIR
        >>> MIR(capacity=200, candidates=50, batch_size=10)
        MIR(batch_size=10, candidates=50, capacity=200)
    """

    info = PluginInfo(
        name="mir",
        family="replay",
        summary="Replays the rows of a draw from the memory whose loss the coming update would raise most.",
        reference="Aljundi et al. 2019, NeurIPS, section 3.1, criterion s_MI-1",
        provides=frozenset({"replay"}),
        passes=Passes(forward=3, backward=1),
        memory="capacity indices",
        ranks="local",
    )

    class Config(MemoryOptions):
        """Options of `MIR`."""

        candidates: int = Field(50, ge=1)
        batch_size: int | None = Field(None, ge=1)
        learning_rate: Annotated[float, Tunable(1e-3, 1.0, log=True)] | None = Field(None, gt=0)
        fill: Literal["experience", "step"] = "experience"

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._offered: tuple[int, int] | None = None

    @hookimpl
    def transform_batch(self, batch: Batch, step: Step) -> Batch:
        """Add the candidates that interfere most."""
        open_memory(step.run, self)
        drawn = step.draw(self.config.memory, self.config.candidates, purpose=f"{self.name}/candidates")
        if drawn is None:
            return batch
        drawn, wanted = drawn.to(batch.x.device), self.config.batch_size or max(1, brought(batch))
        if len(drawn) > wanted:
            with forked(step.run.device):
                drawn = rows_of(drawn, self._chosen(batch, drawn, wanted, step))
        return batch.with_rows("memory", drawn)

    def _chosen(self, batch: Batch, candidates: Batch, wanted: int, step: Step) -> Tensor:
        incoming = [(s, s.rows) for s in batch.segments if s.role.partition("/")[0] != "memory"]
        # a batch made anew, even of the very same rows, so that this pass is not the one that commits buffers
        gradient = step.at(batch=batch.take(incoming)).gradient() if incoming else {}
        rate = self._rate(step.run)
        ahead = {
            name: parameter.detach() - rate * gradient[name]
            for name, parameter in step.parameters.items()
            if name in gradient and name in step.run.model_parameter_names
        }
        with torch.no_grad():
            before, after = (_losses(step.at(parameters, batch=candidates)) for parameters in (None, ahead))
        return most_interfered(before, after, wanted)

    def _rate(self, run: Run) -> float:
        main = run.optimization.main
        if self.config.learning_rate is not None or main is None:
            return self.config.learning_rate or 0.0
        return float(main.param_groups[0]["lr"])

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


def _losses(view: Step) -> Tensor:
    """The loss of each row of ``view``, ``(rows,)``."""
    run, records = view.run, view.supervision
    provide = run.hooks.provide_task_losses
    like = records[0].outputs if records else view.batch.x.new_zeros(())
    total = like.new_zeros(len(view.batch))
    if records:
        each = [unreduced(record, run.tasks) for record in records] if provide is None else provide(records, view)
        for record, losses in zip(records, each, strict=True):
            total[slice(None) if record.rows is None else record.rows] += losses
    return total
