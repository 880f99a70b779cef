"""How a plugin fills a replay memory: the options of a memory, and what is offered to it when an experience ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from streamlearn.core.forward import Forward
from streamlearn.core.importance import evaluating
from streamlearn.core.plugin import PluginConfig
from streamlearn.core.randomness import forked, subseed
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.core.memory import ReplayMemory
    from streamlearn.core.plugin import Plugin
    from streamlearn.core.run import Run
    from streamlearn.streams import Batch, Data
    from streamlearn.streams.data import JoinedData

__all__ = ["MemoryOptions", "brought", "herding_order", "is_new", "open_memory", "remember", "remember_batch"]


class MemoryOptions(PluginConfig):
    """The options of a plugin that fills a replay memory, or shares one; the words are those of `ReplayMemory`."""

    memory: str = Field("main", min_length=1)
    capacity: int = Field(500, ge=1)
    policy: Literal["reservoir", "class_balanced", "experience_balanced", "ring", "herding"] = "reservoir"
    budget: Literal["total", "per_group"] = "total"


def open_memory(run: Run, plugin: Plugin) -> ReplayMemory:
    """The memory that the options of ``plugin``, `MemoryOptions`, name.

    Raises:
        ConfigurationError: another plugin has opened it with other options.
    """
    options = plugin.config
    return run.memories.open(options.memory, options.capacity, options.policy, options.budget)


def remember(run: Run, plugin: Plugin) -> ReplayMemory:
    """Offer the training rows of the experience that has ended to the memory of ``plugin``, unless another plugin fills it."""
    memory, experience = open_memory(run, plugin), run.experience
    if experience is not None and memory.owner in (None, plugin.name) and "train" in experience.data:
        memory.owner = plugin.name
        data = run.data()
        order = _herding(run, memory, data) if memory.policy == "herding" else None
        memory.offer(data, experience.index, "train", order=order)
    return memory


def is_new(run: Run) -> bool:
    """Whether the rows of the batch in progress are seen for the first time: in the first epoch of the ordinary phase."""
    return run.clock.epoch == 0 and run.phase is not None and run.phase.name == "main"


def remember_batch(
    run: Run, plugin: Plugin, batch: Batch, last: tuple[int, int] | None, stored: Mapping[str, Tensor] | None = None
) -> tuple[int, int] | None:
    """Offer the incoming rows of ``batch`` to the memory of ``plugin`` if they are new, unless another plugin fills it.

    Args:
        run: the run, in the step of the batch.
        plugin: whose options, `MemoryOptions`, name the memory.
        batch: the rows of the step.
        last: what the last call returned: a batch that makes several updates is offered once.
        stored: columns ``(rows of the batch, size)`` that are kept beside the rows.

    Returns:
        The place in the run whose rows were offered last: (experience, batch).

    Raises:
        ConfigurationError: the rows belong to episodes.
    """
    memory, place = open_memory(run, plugin), (run.clock.experience, run.clock.batch)
    if "support" in batch.roles:
        raise ConfigurationError(
            f"memory {memory.name!r} keeps rows, but experience {run.clock.experience} has episodes, where alone rows have labels: leave "
            f"{plugin.name} out"
        )
    if not is_new(run) or place == last or memory.owner not in (None, plugin.name):
        return last
    memory.owner = plugin.name
    run.offer(memory, batch, stored=stored)
    return place


def brought(batch: Batch) -> int:
    """How many rows of ``batch`` come from no memory: two that replay do not replay each other's rows twice over."""
    return len(batch) - sum(segment.stop - segment.start for segment in batch.segments if segment.is_memory)


def herding_order(features: Tensor, count: int) -> Tensor:
    """The rows whose running mean stays nearest to the mean of all, one after another (Rebuffi et al. 2017, algorithm 4).

    p_k = argmin_x ‖μ - (φ(x) + Σ_{j<k} φ(p_j)) / k‖, each row at most once.

    Args:
        features: φ, ``(rows, size)``.
        count: how many to choose; all rows when there are fewer.

    Returns:
        Positions ``(min(count, rows),)``, int64.

    Example:
        >>> herding_order(torch.tensor([[0.0], [3.0], [1.0]]), 2).tolist()
        [2, 1]
    """
    features = features.double()
    mean, total = features.mean(0), features.new_zeros(features.shape[1])
    chosen = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    order = []
    for k in range(1, min(count, len(features)) + 1):
        distances = (mean - (features + total) / k).square().sum(1).masked_fill(chosen, float("inf"))
        best = int(distances.argmin())
        order.append(best)
        chosen[best] = True
        total += features[best]
    return torch.tensor(order, dtype=torch.int64)


def _herding(run: Run, memory: ReplayMemory, data: Data | JoinedData) -> Tensor:
    """The priority of every row of ``data``, ``(rows,)``: its place in the order of its class; what herding does not reach comes later.

    Features are the encoder's, divided by their length, in evaluation mode.

    Raises:
        ConfigurationError: rows have no class.
    """
    features, classes = [], []
    with torch.no_grad(), evaluating(run.model), forked(run.device):
        torch.default_generator.manual_seed(subseed(run.seed, "herding", run.clock.experience))  # of rows that are augmented
        for batch in run.batches(data, run.options.evaluation_batch_size):
            if not batch.targets:
                raise ConfigurationError(f"memory {memory.name!r} is herded by class, but rows have no labels: use 'reservoir'")
            features.append(normalize(Forward(run.model, batch.x).tap("features").flatten(1)).cpu())
            classes.append(_classes(batch))
    found, numbers = torch.cat(features), torch.cat(classes)
    order = torch.full((len(numbers),), float(len(numbers)), dtype=torch.float64)
    for number in torch.unique(numbers).tolist():
        rows = (numbers == number).nonzero().squeeze(1)
        ranked = herding_order(found[rows], memory.capacity)
        order[rows[ranked]] = torch.arange(len(ranked), dtype=torch.float64)
    return order


def _classes(batch: Batch) -> Tensor:
    """A number for the class of each row, of different tasks told apart; rows without a label are one more group."""
    column = torch.full((len(batch),), -1, dtype=torch.int64)
    for place, (task, target) in enumerate(batch.targets.items()):
        known = batch.labelled_rows(task) & (column.to(target.device) < 0)
        column[known.cpu()] = place * 2**32 + target[known].long().cpu()
    return column
