"""Task relationships: a covariance between tasks, learnt in closed form, says how the weights of one bear on those of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.correspondence import LayerOptions, LayerPenalty, stacked
from streamlearn.core.plugin import PluginInfo, Tunable, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step

__all__ = ["TaskRelationships", "best_covariance"]

Covariance = dict[str, dict[str, float]]


def best_covariance(products: Tensor, jitter: float = 0.0) -> Tensor:
    """Ω = (WᵀW + εI)^½ / tr (WᵀW + εI)^½, which minimises tr(W Ω⁻¹ Wᵀ) among the covariances of trace 1 where ε = 0; ``(tasks, tasks)``.

    Args:
        products: WᵀW, ``(tasks, tasks)``; of zeros, all tasks are equal and unrelated.
        jitter: ε as a share of the mean of the diagonal of WᵀW, at least 0.

    Example:
        >>> best_covariance(torch.tensor([[9.0, 0.0], [0.0, 1.0]]))
        tensor([[0.7500, 0.0000],
                [0.0000, 0.2500]], dtype=torch.float64)
    """
    given = products.detach().double().cpu()
    eye = torch.eye(len(given), dtype=torch.float64)
    if not float(given.diagonal().sum()):
        return eye / len(given)
    values, vectors = torch.linalg.eigh(given + jitter * given.diagonal().mean() * eye)
    root: Tensor = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return root / root.diagonal().sum()


class TaskRelationships(LayerPenalty):
    r"""Multi-task relationship learning (MTRL).

    .. math:: P(θ) = \frac{λ}{2} \sum_{layers} \mathrm{tr}(W Ω^{-1} W^T), \qquad Ω = \frac{(W^T W)^{1/2}}{\mathrm{tr}\,(W^T W)^{1/2}}

    with column k of W the weights of task k in a layer, and Ω a covariance of the tasks with trace 1. It starts at I/K, unrelated tasks,
    and takes the value on the right, the best one for the weights as they are, after every epoch. In between it is fixed. Tasks whose
    weights point the same way come to be held together, those with opposite weights apart, and unrelated ones are left alone: unlike with
    `SoftSharing`, nobody needs to know who is related. At Ω's best value the penalty is λ/2 times the square of the trace norm of W.

    There are two settings: ``per="layer"`` has one Ω for each layer (Long et al. 2017), ``per="network"`` one for all layers together that
    the same tasks have. For linear models they are one (Zhang & Yeung 2010).

    What corresponds is found by the names of parameters: the networks of `SeparateNetworks` and the towers of `CrossStitch` or `Sluice`
    where there are some, else heads of equal shape. Only weights take part (parameters with two dimensions or more), and only tasks that
    have been met. With one task there is no penalty.

    Ω is kept by the names of tasks. One that arrives later joins as unrelated to all, with the mean of their variances; one that is absent
    keeps its place. After a run `covariances` tells what was learnt.

    Args:
        strength: λ, at least 0; 0 switches the penalty off.
        per: ``"layer"`` or ``"network"``.
        jitter: ε in (WᵀW + εI)^½, as a share of the mean squared length of the tasks' weights, above 0. Where tasks have (nearly) the same
            weights Ω has no inverse; the smaller ε, the harder such tasks are held together, up to about K / √ε times λ, which the
            learning rate must bear.
        parameters: patterns of names, each with ``{task}`` once where the name has that of the task, and ``*`` for anything, such as
            ``("encoder.towers.{task}.*",)``; ``None`` finds them as told above.

    Raises:
        ConfigurationError: the stream has several tasks and no weights correspond.

    Cost: no additional pass; in proportion to the weights times the tasks. Memory: tasks² numbers for each layer.

    Reference: Zhang & Yeung, A convex formulation for learning task relationships in multi-task learning, UAI 2010, equations 8 and 13;
    Long, Cao, Wang & Yu, Learning multiple tasks with multilinear relationship networks, NeurIPS 2017. Deviations: W moves by steps of
    the optimiser between two updates of Ω rather than to its minimum, and by ε. Their separate penalty on the size of W is weight decay
    here. Of Long et al.'s three covariances for each layer, those of inputs and outputs are the identity.

    Example:
        >>> from streamlearn.plugins import TaskRelationships
        >>> TaskRelationships(strength=0.1, per="network")
        TaskRelationships(per='network', strength=0.1)
    """

    least_dims = 2

    info = PluginInfo(
        name="task_relationships",
        family="regularization",
        summary="Learns how tasks are related, and holds the weights of related ones together.",
        reference="Zhang & Yeung 2010, UAI, eqs. 8 and 13; Long et al. 2017, NeurIPS",
        memory="tasks² numbers for each layer",
        strength="strength",
        streams=frozenset({"task_incremental", "multitask"}),
        vmappable=True,
    )

    class Config(LayerOptions):
        """Options of `TaskRelationships`."""

        strength: Annotated[float, Tunable(1e-5, 1.0, log=True)] = Field(0.01, ge=0)
        per: Literal["layer", "network"] = "layer"
        jitter: float = Field(1e-3, gt=0)

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._covariances: dict[str, Covariance] = {}

    @property
    def covariances(self) -> dict[str, Covariance]:
        """Ω by layer (the first of a network), task and task; the layer is the name of its parameter, with ``{task}`` for the task."""
        return {layer: {task: dict(row) for task, row in rows.items()} for layer, rows in self._covariances.items()}

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """λ/2 times the traces, once two tasks have been met."""
        strength = step.run.value(self, "strength")
        parts = []
        for name, tasks, weights in self._weights(step.parameters, step.run):
            precision = torch.linalg.inv(_covariance(self._covariances.get(name, {}), tasks)).to(weights)
            parts.append(((precision @ weights) * weights).sum())
        return 0.5 * strength * sum(parts[1:], parts[0]) if parts else None

    @hookimpl
    def after_epoch(self, run: Run) -> None:
        """Ω becomes the best one for the present weights."""
        with torch.no_grad():
            for name, tasks, weights in self._weights(run.parameters(), run):
                exact = weights.double()
                best = best_covariance(exact @ exact.T, self.config.jitter).tolist()
                rows = self._covariances.setdefault(name, {})
                for task, row in zip(tasks, best, strict=True):
                    rows[task] = dict(zip(tasks, row, strict=True))

    def _weights(self, parameters: Mapping[str, Tensor], run: Run) -> list[tuple[str, tuple[str, ...], Tensor]]:
        """For each Ω its name, its tasks, and Wᵀ, ``(tasks, weights)``."""
        each = [(layer.name, layer.tasks, stacked(layer, parameters)) for layer in self.layers(parameters, run)]
        if self.config.per == "layer":
            return each
        groups: dict[tuple[str, ...], tuple[str, list[Tensor]]] = {}
        for first, tasks, weights in each:
            groups.setdefault(tasks, (first, []))[1].append(weights)
        return [(first, tasks, torch.cat(found, 1)) for tasks, (first, found) in groups.items()]

    def state_dict(self) -> dict[str, Any]:
        """Ω by layer and pair of tasks."""
        return {"covariances": self.covariances}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._covariances = {layer: {task: dict(row) for task, row in rows.items()} for layer, rows in state["covariances"].items()}


def _covariance(known: Mapping[str, Mapping[str, float]], tasks: Sequence[str]) -> Tensor:
    """Ω of ``tasks``, of trace 1; who is not known is unrelated, with the mean of the variances of the others."""
    variances = [known[task][task] for task in tasks if task in known]
    usual = sum(variances) / len(variances) if variances else 1.0

    def entry(a: str, b: str) -> float:
        if b in known.get(a, {}) and a in known.get(b, {}):  # both, or they are of different updates, which do not fit together
            return known[a][b]
        return usual if a == b else 0.0

    rows = [[entry(a, b) for b in tasks] for a in tasks]
    found = torch.tensor(rows, dtype=torch.float64)
    return found / found.diagonal().sum()
