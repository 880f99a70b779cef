"""Gradient similarity: auxiliary tasks count where their gradients agree with that of the main task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.scheduling import refuse_unknown_tasks
from streamlearn.core.task_weights import task_of
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.core.gradients import TaskRows
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step

__all__ = ["GradientSimilarity", "similarity_weights"]

Rule = Literal["gate", "weighted"]


def similarity_weights(gramian: Tensor, main: Sequence[bool], rule: Rule = "gate") -> Tensor:
    """1 for each main row, and for an auxiliary one what its cosine with the sum of the main rows gives, ``(rows,)`` in float64.

    Args:
        gramian: G with G_ij = g_i · g_j, ``(rows, rows)``.
        main: which rows belong to main tasks; where none does, all weights are 1.
        rule: ``"gate"`` or ``"weighted"``.

    Example:
        >>> gramian = torch.tensor([[4.0, 1.0, -1.0], [1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]])
        >>> similarity_weights(gramian, [True, False, False], "weighted")
        tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    products = gramian.detach().double().cpu()
    chosen = torch.tensor(main)
    if not bool(chosen.any()):
        return torch.ones(len(products), dtype=torch.float64)
    along = products[chosen].sum(0)
    if rule == "gate":
        weights = (along >= 0).double()
    else:
        lengths = (along[chosen].sum().clamp(min=0) * products.diagonal().clamp(min=0)).sqrt()
        weights = torch.where(lengths > 0, along / torch.where(lengths > 0, lengths, 1.0), 0.0).clamp(0, 1)
    weights[chosen] = 1.0
    return weights


class GradientSimilarity(Plugin):
    r"""Auxiliary tasks that help the main task, as long as they do.

    .. math:: g = g_{main} + \sum_k w_k\, g_k, \qquad
        w_k = [\cos(g_{main}, g_k) \ge 0] \quad\text{or}\quad w_k = \max(0, \cos(g_{main}, g_k))

    over the auxiliary rows k. The rows are those of the weighting, ∂s/∂L_k · ∇L_k, over the parameters that tasks share; g_main is the
    sum of the rows of the main task (of all of them, where several are main). There are two published settings:

    * ``rule="gate"`` takes the gradient of an auxiliary task whole, or not at all (the unweighted version);
    * ``rule="weighted"`` takes it in proportion to the cosine (the weighted version).

    g never points against g_main, so that to first order no step makes the main loss larger; nothing protects the auxiliary ones. An
    auxiliary row whose gradient is zero changes nothing. Beside a main gradient of zero, the gate is open and the weight is 0. In a
    batch without labels of a main task there is nothing to compare with: then g is the plain sum. How much auxiliary tasks count
    besides is for a weighting to say. Their own heads always get their plain gradient.

    Args:
        main: name of the main task, or of several. ``None`` takes the task of the present experience, which must then have only one:
            rows of earlier tasks, replayed beside it, are auxiliary to what is being learnt.
        rule: ``"gate"`` or ``"weighted"``.

    Raises:
        UnknownNameError: ``main`` names a task that the stream never has.
        ConfigurationError: ``main`` is ``None``, and an experience has several tasks.
        TrainingError: a row belongs to no task.

    Cost: one backward pass for each row through what the rows share, in place of one for all. Memory: one gradient for each row while
    a step lasts.

    Reference: Du, Czarnecki, Jayakumar, Farajtabar, Pascanu & Lakshminarayanan, Adapting auxiliary losses using gradient similarity,
    arXiv 1812.02224, 2018, sections 3 and 4. Deviation: several main tasks, and several auxiliary ones, each of which is compared by
    itself.

    Example:
        >>> from streamlearn.plugins import GradientSimilarity
        >>> GradientSimilarity(main="left", rule="weighted")
        GradientSimilarity(main='left', rule='weighted')
    """

    info = PluginInfo(
        name="gradient_similarity",
        family="gradients",
        summary="Lets auxiliary tasks count where their gradients agree with that of the main task.",
        reference="Du et al. 2018, arXiv 1812.02224",
        needs=frozenset({"task_gradients"}),
        memory="1 gradient for each row, within a step",
        streams=frozenset({"multitask"}),
    )

    class Config(PluginConfig):
        """Options of `GradientSimilarity`."""

        main: str | tuple[str, ...] | None = Field(None, min_length=1)
        rule: Rule = "gate"

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Refuse a main task that never comes."""
        refuse_unknown_tasks(self._named(), f"main of plugin {self.name}", run)

    @hookimpl
    def provide_gradient_combination(self, rows: TaskRows, step: Step) -> dict[str, float]:
        """The weight of each row."""
        main = self._named() or self._present(step.run)
        weights = similarity_weights(rows.gramian, [task_of(row, step, self.name) in main for row in rows.names], self.config.rule)
        return dict(zip(rows.names, weights.tolist(), strict=True))

    def _named(self) -> tuple[str, ...]:
        main = self.config.main
        return () if main is None else (main,) if isinstance(main, str) else tuple(main)

    def _present(self, run: Run) -> tuple[str, ...]:
        assert run.experience is not None
        tasks = tuple(task.name for task in run.experience.tasks)
        if len(tasks) > 1:
            raise ConfigurationError(
                f"plugin {self.name}, experience {run.clock.experience}: which of the tasks {', '.join(tasks)} is the main one? Name "
                f"it, as in GradientSimilarity(main={tasks[0]!r})"
            )
        return tasks
