"""Learning a trajectory row by row within a step: what meta-learners for continual learning share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import Tensor

from streamlearn.core.inner_loop.estimators import Gradient, adapt
from streamlearn.core.inner_loop.learner import EVERYTHING, UnrolledLearner, UnrolledOptions, task_loss
from streamlearn.core.objective import Objective, minimised

if TYPE_CHECKING:
    from streamlearn.core.evaluation import Evaluation
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Batch, Segment

__all__ = ["TrajectoryLearner", "TrajectoryOptions", "in_order"]


def in_order(batch: Batch, rows: int, least: int = 1) -> list[Batch]:
    """The rows of ``batch`` in their order, ``rows`` in each piece.

    Args:
        batch: the rows.
        rows: of each piece but the last, at least 1.
        least: a last piece with fewer joins the one before it.

    Example:
        >>> import torch
        >>> from streamlearn.streams import Batch
        >>> batch = Batch.uniform(torch.zeros(7, 2), "t", torch.arange(7), torch.arange(7))
        >>> [piece.targets["t"].tolist() for piece in in_order(batch, 3, 2)]
        [[0, 1, 2], [3, 4, 5, 6]]
    """
    pieces: list[list[tuple[Segment, slice]]] = []
    sizes: list[int] = []
    for segment in batch.segments:
        first = segment.start
        while first < segment.stop:
            if not pieces or sizes[-1] == rows:
                pieces.append([])
                sizes.append(0)
            stop = min(segment.stop, first + rows - sizes[-1])
            pieces[-1].append((segment, slice(first, stop)))
            sizes[-1] += stop - first
            first = stop
    if len(pieces) > 1 and sizes[-1] < least:
        pieces[-2:] = [pieces[-2] + pieces[-1]]
    return [batch.take(piece) for piece in pieces]


class TrajectoryOptions(UnrolledOptions):
    """Options of every plugin that learns trajectories."""

    rule: Literal["sgd"] = "sgd"
    plastic: tuple[str, ...] = ("heads.*",)
    query: str = Field(EVERYTHING, min_length=1)
    rows: int = Field(1, ge=1)


class TrajectoryLearner(UnrolledLearner):
    """Learns the support rows of each episode in their order, a few at a time, and is asked on all its rows afterwards."""

    config: TrajectoryOptions

    def begin(self, movable: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Where the plastic part starts, given its live values."""
        return movable

    def pieces(self, support: Batch, run: Run) -> list[Batch]:
        """The trajectory, step by step. BatchNorm has no statistics of a single row."""
        least = 2 if run.has_buffers else 1
        return in_order(support, max(least, self.config.rows), least)

    def _ahead(
        self, view: Step, objective: Callable[[Step], Objective], support: str | None, names: frozenset[str], gradient: Gradient | None
    ) -> Step:
        """``view`` after the trajectory."""
        run = view.run
        learns = {name: value for name, value in view.parameters.items() if value.requires_grad}
        rests = {name: value for name, value in learns.items() if name not in names}
        fast = dict(self.begin({name: value for name, value in learns.items() if name in names}))
        rates = self.rates(run, view.parameters)
        for piece in self.pieces(view.batch if support is None else view.batch.select(support), run):

            def loss(fast: Mapping[str, Tensor], fixed: Mapping[str, Tensor], piece: Batch = piece) -> Tensor | None:
                there = view.at({**fixed, **fast}, batch=piece)
                return minimised(objective(there), there)

            fast = adapt(loss, fast, steps=self.config.steps, rates=rates, estimator=self.estimator(), fixed=rests, gradient=gradient)
        return view.at(fast)

    def _adapted_outputs(self, episode: Batch, evaluation: Evaluation, steps: int) -> dict[str, Tensor]:
        """Outputs by task on the rows of one episode, its support rows having been learnt in their order."""
        run = evaluation.run
        names = self.plastic(run) & run.model_parameter_names
        parameters = {name: value.detach() for name, value in run.parameters().items()}
        fast, rates = {name: value for name, value in parameters.items() if name in names}, self.rates(run, parameters)
        for piece in self.pieces(episode.select(self.config.support), run):

            def loss(fast: Mapping[str, Tensor], fixed: Mapping[str, Tensor], piece: Batch = piece) -> Tensor | None:
                return task_loss(evaluation.at(fast, piece), piece, run)

            fast = adapt(loss, fast, steps=steps, rates=rates, estimator="first-order")
        outputs = evaluation.at(fast, episode)
        return {task: outputs[task].detach() for task in episode.tasks if outputs.serves(task)}
