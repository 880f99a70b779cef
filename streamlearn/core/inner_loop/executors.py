"""Whether the episodes of a batch are gone through one by one, or all at once by ``torch.vmap``.

At once is several times faster where an episode is a few small matrix products. It asks that everything that is evaluated for an
episode can stand a batch of them: every plugin that acts in the objective says so by ``info.vmappable``, and the model must keep no
running statistics and be made of operations that torch can batch. Otherwise, and where convolutions leave nothing to gain, one by one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from streamlearn.core.inner_loop.estimators import Gradient
from streamlearn.core.objective import Objective
from streamlearn.streams.batch import EVERY_ROW

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Batch

__all__ = ["Executor", "LookAhead", "over_episodes", "why_one_by_one"]

Executor = Literal["auto", "loop", "vmap"]
LookAhead = Callable[["Step", Gradient | None], "Step"]
"""From the view on an episode to the one at which it is asked; the gradient to take on the way, ``None`` for plain autograd."""

_STUBBORN = (nn.RNNBase, nn.MultiheadAttention)
"""Modules whose second derivatives torch cannot batch."""
_SLOW = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Modules of which a batch is no faster than a loop."""


def over_episodes(
    objective: Callable[[Step], Objective], step: Step, look_ahead: LookAhead, *, executor: Executor = "auto", chunk: int | None = None
) -> Objective:
    """The mean over the episodes of the step's batch of the objective after ``look_ahead``.

    Args:
        objective: what is evaluated.
        step: at the whole batch.
        look_ahead: of one episode.
        executor: ``"auto"`` goes at once where `why_one_by_one` finds no reason against it and there is something to gain.
        chunk: at most so many episodes at once; ``None`` for all.
    """
    batch = step.batch
    if executor != "loop" and why_one_by_one(step.run, batch, ask=executor == "vmap") is None:
        try:
            return _at_once(objective, step, look_ahead, chunk)
        except RuntimeError as error:
            step.run.one_by_one = str(error).partition("\n")[0]
            warnings.warn(f"episodes are gone through one by one from here on, because torch cannot batch them: {error}", stacklevel=2)
    return Objective.merge([objective(look_ahead(step.at(batch=rows), None)) for rows in batch.by_domain().values()])


def why_one_by_one(run: Run, batch: Batch, *, ask: bool = False) -> str | None:
    """Why the episodes of ``batch`` must be gone through one by one, or had better be; ``None`` if all can go at once.

    Args:
        run: the run.
        batch: of episodes.
        ask: leave out what is only no gain.
    """
    return next(_reasons(run, batch, ask), None)


def _reasons(run: Run, batch: Batch, ask: bool) -> Iterator[str]:
    if run.one_by_one is not None:
        yield run.one_by_one
    if run.not_vmappable:
        yield f"{', '.join(run.not_vmappable)} may read or do what differs between episodes (info.vmappable is not set)"
    if run.has_buffers:
        yield "the model has buffers, such as running statistics"
    for module in run.model.modules():
        if isinstance(module, _STUBBORN):
            yield f"the model has a module of type {type(module).__name__}"
        if not ask and isinstance(module, _SLOW):
            yield "the model has convolutions, of which a batch is no faster"
    if len(batch.domains) < 2:
        yield "a batch has one episode"
    if not _alike(batch):
        yield "the episodes of a batch differ in their rows, tasks or labels"


def _alike(batch: Batch) -> bool:
    """Whether episodes differ in nothing but numbers, all of them in the order in which the first has its rows."""
    if batch.stored or any(not isinstance(rows, slice) or rows != EVERY_ROW for rows in batch.labelled.values()):
        return False
    domains = batch.domains
    for role in batch.roles:
        segments = [segment for segment in batch.segments if segment.role == role]
        if [segment.domain for segment in segments] != list(domains):
            return False
        if len({(segment.stop - segment.start, segment.tasks, segment.source) for segment in segments}) > 1:
            return False
    return True


def _at_once(objective: Callable[[Step], Objective], step: Step, look_ahead: LookAhead, chunk: int | None) -> Objective:
    batch = step.batch
    first = batch.of_domain(batch.domains[0])
    columns = {"": batch.x, **batch.targets}
    stacked = {name: _by_episode(column, batch) for name, column in columns.items()}
    shares: dict[str, float] = {}

    def of_one(columns: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], ...]:
        rows = first.replace(x=columns[""], targets={task: columns[task] for task in first.targets})
        found = objective(look_ahead(step.at(batch=rows), _by_functions))
        shares.update({name: share for name, share in found.shares.items() if not isinstance(share, Tensor)})
        weighed = {name: share for name, share in found.shares.items() if isinstance(share, Tensor)}
        return dict(found.losses), dict(found.terms), weighed

    parts = torch.vmap(of_one, chunk_size=chunk, randomness="same")(stacked)
    losses, terms, weighed = ({name: value.mean(0) for name, value in part.items()} for part in parts)
    return Objective(losses, terms, {**shares, **weighed})


def _by_episode(column: Tensor, batch: Batch) -> Tensor:
    """``(episodes, rows of one, ...)``, the rows of each in the order of `Batch.by_domain`."""
    count, parts = len(batch.domains), []
    for role in batch.roles:
        rows = column[batch.rows(role)]
        parts.append(rows.view(count, len(rows) // count, *column.shape[1:]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _by_functions(function: Callable[[Mapping[str, Tensor]], Tensor | None], at: Mapping[str, Tensor], graph: bool) -> dict[str, Tensor]:
    """∇ by `torch.func.grad`, which can stand within `torch.vmap`. Its graph is there if ``at`` has one."""

    def total(parameters: Any) -> Tensor:
        found = function(parameters)
        if found is None:
            raise RuntimeError("an episode has no loss to learn from")
        return found

    found: dict[str, Tensor] = torch.func.grad(total)(dict(at))
    return found
