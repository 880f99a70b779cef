"""Group DRO: the groups with the largest losses get the largest weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.step import Step
    from streamlearn.core.supervision import Supervision
    from streamlearn.streams import Batch

__all__ = ["GroupDRO", "admitted", "raised", "split_by_domain"]


def admitted(log_weights: Mapping[str, float], groups: Iterable[str]) -> dict[str, float]:
    """log q with those of ``groups`` that are new: each enters with an equal share of everything, q sums to 1 again.

    Example:
        >>> found = admitted({"a": math.log(0.2), "b": math.log(0.8)}, ["b", "c", "d"])
        >>> {name: round(math.exp(value), 3) for name, value in found.items()}
        {'a': 0.1, 'b': 0.4, 'c': 0.25, 'd': 0.25}
    """
    fresh = [group for group in dict.fromkeys(groups) if group not in log_weights]
    if not fresh:
        return dict(log_weights)
    total = len(log_weights) + len(fresh)
    kept = math.log(len(log_weights) / total) if log_weights else 0.0
    return {name: value + kept for name, value in log_weights.items()} | dict.fromkeys(fresh, -math.log(total))


def raised(log_weights: Mapping[str, float], losses: Mapping[str, float], step_size: float) -> dict[str, float]:
    """log q after q_d ← q_d exp(η L_d), divided by its sum: one step of exponentiated gradient ascent.

    Args:
        log_weights: log q by group.
        losses: L by group; one without a loss keeps its q, up to the division.
        step_size: η.

    Example:
        >>> found = raised({"a": math.log(0.5), "b": math.log(0.5)}, {"a": math.log(3.0), "b": 0.0}, 1.0)
        >>> {name: round(math.exp(value), 3) for name, value in found.items()}
        {'a': 0.75, 'b': 0.25}
    """
    moved = {name: value + step_size * losses.get(name, 0.0) for name, value in log_weights.items()}
    top = max(moved.values())
    total = top + math.log(sum(math.exp(value - top) for value in moved.values()))
    return {name: value - total for name, value in moved.items()}


def split_by_domain(record: Supervision, batch: Batch) -> list[Supervision]:
    """``record`` in one part for each stretch of rows of one domain, named ``"<row>@<domain>"``; ``"<row>"`` where it has no name."""
    if isinstance(record.rows, Tensor):
        domains = batch.domain[record.rows]
        places = [(name, (domains == number).nonzero().squeeze(1)) for number, name in enumerate(batch.domains)]
        return [_part(record, name, chosen, record.rows[chosen]) for name, chosen in places if len(chosen)]
    first, stop, _ = (record.rows or slice(None)).indices(len(batch))
    stretches: list[tuple[str, int, int]] = []
    for segment in batch.segments:
        start, end = max(segment.start, first), min(segment.stop, stop)
        if start < end and stretches and stretches[-1][0] == segment.domain:
            stretches[-1] = (segment.domain, stretches[-1][1], end)
        elif start < end:
            stretches.append((segment.domain, start, end))
    if len(stretches) == 1:
        return [record.replace(row=_group(record.row, stretches[0][0]))]
    return [_part(record, name, slice(start - first, end - first), slice(start, end)) for name, start, end in stretches]


def _group(row: str, domain: str) -> str:
    return f"{row}@{domain}" if domain else row


def _part(record: Supervision, domain: str, chosen: slice | Tensor, rows: slice | Tensor) -> Supervision:
    """The comparisons ``chosen`` of ``record``, which are the rows ``rows`` of the batch."""
    by_row = record.active is not None and record.active.ndim == record.outputs.ndim
    return record.replace(
        row=_group(record.row, domain),
        outputs=record.outputs[chosen],
        target=record.target[chosen],
        weight=None if record.weight is None else record.weight[chosen],
        active=record.active[chosen] if by_row and record.active is not None else record.active,
        rows=rows,
    )


class GroupDRO(Plugin):
    r"""Group distributionally robust optimisation.

    .. math:: s(L) = \frac{\sum_d q_d L_d}{\sum_d q_d}, \qquad q_d \leftarrow \frac{q_d\, e^{η L_d}}{\sum_{d'} q_{d'} e^{η L_{d'}}}
        \text{ after every step}

    over the groups d, each a task in a domain: the rows of a task are split by their domain into ``"<task>@<domain>"`` (Sagawa et
    al. 2020, algorithm 1). The larger the loss of a group, the larger its weight: what is minimised approaches the worst group's
    loss. Every row of the Jacobian is a group, so that a combiner sees groups too. Data without domains has one group for each task.

    Groups are kept by name. A new one enters with an equal share of everything; one that the batch does not have keeps its q, and s
    is an average over those that it has.

    Args:
        step_size: η, above 0. The paper uses 0.01.

    Cost: no additional pass. Memory: 1 number for each group.

    Reference: Sagawa, Koh, Hashimoto & Liang, Distributionally robust neural networks for group shifts, ICLR 2020. Deviations: a step
    uses the q that the step before it left, because a weighting changes no state (the paper moves q first); losses are those of a
    batch with rows of several groups, as in the authors' code, not of one drawn group; s is divided by the q of the groups present;
    the adjustment by group sizes is left out. The paper's strong regularisation is the optimiser's weight decay.

    Example:
        >>> from streamlearn.plugins import GroupDRO
        >>> GroupDRO(step_size=0.1)
        GroupDRO(step_size=0.1)
    """

    info = PluginInfo(
        name="group_dro",
        family="weighting",
        summary="Weighs each domain's loss by how badly it has done: approaches the loss of the worst domain.",
        reference="Sagawa et al. 2020, ICLR, algorithm 1",
        memory="1 number for each group",
    )

    class Config(PluginConfig):
        """Options of `GroupDRO`."""

        step_size: Annotated[float, Tunable(1e-4, 1.0, log=True)] = Field(0.01, gt=0, allow_inf_nan=False)

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._log_weights: dict[str, float] = {}

    @hookimpl
    def transform_supervision(self, supervision: tuple[Supervision, ...], step: Step) -> tuple[Supervision, ...]:
        """One record for each task and domain."""
        return tuple(part for record in supervision for part in split_by_domain(record, step.batch))

    @hookimpl
    def provide_weighting(self, losses: Mapping[str, Tensor], step: Step) -> Tensor:
        """The average of the losses by q."""
        log_weights = admitted(self._log_weights, losses)
        top = max(log_weights[group] for group in losses)
        weights = {group: math.exp(log_weights[group] - top) for group in losses}
        parts = [weights[group] / sum(weights.values()) * loss for group, loss in losses.items()]
        return sum(parts[1:], parts[0])

    @hookimpl
    def after_step(self, step: Step) -> None:
        """Move q by the losses that were minimised."""
        if not step.updated or not step.losses:
            return
        values = torch.stack([loss.detach() for loss in step.losses.values()]).tolist()
        losses = dict(zip(step.losses, values, strict=True))
        self._log_weights = raised(admitted(self._log_weights, losses), losses, step.run.value(self, "step_size"))

    def state_dict(self) -> dict[str, Any]:
        """log q by group."""
        return {"log_weights": dict(self._log_weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._log_weights = {name: float(value) for name, value in state["log_weights"].items()}
