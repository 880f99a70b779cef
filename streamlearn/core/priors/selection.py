"""Which component of a mixture of priors fits the rows that an experience begins with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streamlearn.core.forward import Forward
from streamlearn.core.importance import evaluating
from streamlearn.core.inner_loop.learner import task_loss
from streamlearn.core.priors.prior import Prior
from streamlearn.core.randomness import forked, subseed
from streamlearn.core.sampling import shuffled

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.streams import Batch, Experience

__all__ = ["losses_of_components"]


def losses_of_components(
    components: Sequence[Prior], starts: Sequence[Mapping[str, Tensor]], experience: Experience, run: Run, *, batches: int, steps: int
) -> list[float]:
    """The loss of each component on the first training batches of an experience, for each labelled row; infinite if it is no number.

    Args:
        components: the priors.
        starts: for each the values that it gives to parameters and buffers of the model.
        experience: whose rows.
        run: the run, of which nothing is moved.
        batches: how many batches.
        steps: inner steps of the component, at its own rates, before it is asked.
    """
    with torch.no_grad(), evaluating(run.model), forked(run.device):
        torch.default_generator.manual_seed(subseed(run.seed, "prior", run.clock.experience))  # of data that augment
        rows = list(_first(experience, run, batches))
        own = {name: value.detach() for name, value in (*run.model.named_parameters(), *run.model.named_buffers())}
        return [_loss(part, {**own, **start}, rows, run, steps) for part, start in zip(components, starts, strict=True)]


def _first(experience: Experience, run: Run, batches: int) -> Iterator[Batch]:
    """The batches with which training starts, episodes one by one."""
    role, size = experience.main_role, run.options.batch_size
    data = experience.data[role]
    order = shuffled(len(data), size, run.options.drop_last, 0, run.seed, run.clock.experience, 0, 0)
    for batch in data.in_order(order[: batches * size], size, role):
        moved = batch.to(run.device)
        yield from moved.by_domain().values() if "support" in moved.roles else [moved]


def _loss(component: Prior, values: Mapping[str, Tensor], rows: Sequence[Batch], run: Run, steps: int) -> float:
    total, count = 0.0, 0
    for batch in rows:
        learnt, asked = (batch.select(role) if role in batch.roles else batch for role in ("support", "query"))
        there = values if steps == 0 else component.adapted(partial(_fast_loss, learnt, run), values, steps=steps)
        found = _mean_loss(there, asked, run)
        if found is not None:
            total, count = total + float(found) * asked.count_labelled(), count + asked.count_labelled()
    return total / count if count and math.isfinite(total) else math.inf


def _fast_loss(batch: Batch, run: Run, fast: Mapping[str, Tensor], rest: Mapping[str, Tensor]) -> Tensor | None:
    return _mean_loss({**rest, **fast}, batch, run)


def _mean_loss(values: Mapping[str, Tensor], batch: Batch, run: Run) -> Tensor | None:
    return task_loss(Forward(run.model, batch.x, values), batch, run)
