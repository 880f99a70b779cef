"""Nearest class mean: predict the class whose exemplars lie nearest in feature space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.core.evaluation import Evaluation
    from streamlearn.core.memory import ReplayMemory
    from streamlearn.core.run import Run
    from streamlearn.streams import Batch

__all__ = ["NearestClassMean", "class_means", "mean_distances"]

_BEHIND = 1e3
"""How far a class without exemplars lies behind the farthest class that has some: never chosen, and of finite loss."""


def class_means(features: Tensor, labels: Tensor, size: int, unit: bool = True) -> tuple[Tensor, Tensor]:
    """μ_c = 1/n_c Σ_{i: y_i = c} φ_i, brought to length 1 if ``unit``, and which classes have any row.

    Args:
        features: φ, ``(rows, features)``.
        labels: y, class numbers ``(rows,)``.
        size: number of classes.
        unit: whether the mean of each class is divided by its length.

    Returns:
        The means ``(size, features)``, zero where a class has no row, and a bool column ``(size,)``.

    Example:
        >>> means, known = class_means(torch.tensor([[0.0, 2.0], [0.0, 4.0]]), torch.tensor([1, 1]), 2)
        >>> means.tolist(), known.tolist()
        ([[0.0, 0.0], [0.0, 1.0]], [False, True])
    """
    counts = torch.bincount(labels, minlength=size)
    sums = features.new_zeros(size, features.shape[1]).index_add_(0, labels, features)
    means = sums / counts.clamp(min=1).unsqueeze(1).to(features)
    return (normalize(means) if unit else means), counts > 0


def mean_distances(features: Tensor, means: Tensor, known: Tensor) -> Tensor:
    """-‖φ_i - μ_c‖, ``(rows, classes)``; a class that is not ``known`` gets less than all others.

    Example:
        >>> mean_distances(torch.zeros(1, 2), torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([True, False])).tolist()
        [[-5.0, -1005.0]]
    """
    distances = torch.cdist(features, means, compute_mode="donot_use_mm_for_euclid_dist")
    farthest = distances[:, known].amax(1, keepdim=True)
    return -torch.where(known, distances, farthest + _BEHIND)


class NearestClassMean(Plugin):
    r"""Nearest class mean over the rows of a replay memory (nearest mean of exemplars).

    .. math:: \hat y = \arg\min_c ‖φ(x) - μ_c‖, \qquad μ_c = \frac{\sum_{p \in P_c} φ(p)}{‖\sum_{p \in P_c} φ(p)‖}

    with φ the features, what the encoder hands to the heads, divided by their length, and P_c the rows of class c in the memory. The
    means are computed anew at each evaluation, so they follow the features, which is what a linear head does not do.

    Every classification task of which the memory holds a labelled row is predicted so. A classification task without one is
    undefined, with that reason in the record: the head's outputs would be another predictor's figures under the same name. Tasks of
    other kinds keep the model's own outputs. With a plain module, whose features are its outputs, list `MultiHead` first to
    take its last layer off.

    Args:
        memory: name of the replay memory.
        normalize: divide features and means by their length, as the paper does; without, plain nearest centroids.

    Raises:
        ConfigurationError: after the first experience there is no memory of that name.

    Cost: none per training step; one pass over the memory at each evaluation, and at each step of an experience that is scored
    before it is learnt (``"prequential"``). Memory: none beyond the replay memory's.

    Reference: Rebuffi et al., iCaRL: incremental classifier and representation learning, CVPR 2017, algorithm 1 and eq. 2.
    The exemplars are those that the replay memory keeps: the paper's, chosen by herding, with ``Replay(policy="herding")``.

    Example:
        >>> from streamlearn.plugins import NearestClassMean, Replay
        >>> [Replay(capacity=200, policy="class_balanced"), NearestClassMean()]
        [Replay(capacity=200, policy='class_balanced'), NearestClassMean()]
    """

    info = PluginInfo(
        name="nearest_class_mean",
        family="replay",
        summary="Predicts the class whose rows in memory have the nearest mean in feature space.",
        reference="Rebuffi et al. 2017, CVPR, algorithm 1 and eq. 2",
        requires=frozenset({"replay"}),
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `NearestClassMean`."""

        memory: str = Field("main", min_length=1)
        normalize: bool = True

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._evaluation: Evaluation | None = None  # the one that the means belong to; neither is state
        self._means: dict[str, tuple[Tensor, Tensor]] = {}

    @hookimpl
    def before_evaluation(self, evaluation: Evaluation) -> None:
        """Compute the means in the present feature space."""
        self._evaluation, self._means = evaluation, self._computed(evaluation)

    @hookimpl
    def after_evaluation(self, evaluation: Evaluation) -> None:
        """Forget them: the features move on."""
        self._evaluation, self._means = None, {}

    @hookimpl
    def provide_predictions(self, batch: Batch, evaluation: Evaluation) -> Mapping[str, Tensor]:
        """Distances by class for each classification task, the model's own outputs for the rest."""
        run = evaluation.run
        means = self._means if evaluation is self._evaluation else self._computed(evaluation)
        raw = run.model.encode(batch.x)
        features = self._flat(raw)
        outputs = {task: mean_distances(features, *means[task]) for task in batch.tasks if task in means}
        for task in batch.tasks:
            if task in run.tasks and run.tasks[task].kind != "classification":
                outputs[task] = run.model.decode(raw, task)
        return outputs

    @torch.no_grad()
    def _computed(self, evaluation: Evaluation) -> dict[str, tuple[Tensor, Tensor]]:
        run = evaluation.run
        memory = self._memory(run, evaluation.trained)
        rows = None if memory is None else memory.all_rows()
        if rows is None:
            return {}
        rows = rows.to(run.device)
        size = run.options.evaluation_batch_size
        features = torch.cat([self._flat(run.model.encode(x)) for x in rows.x.split(size)])  # type: ignore[no-untyped-call]
        means = {}
        for task, target in rows.targets.items():
            known = rows.labelled_rows(task)
            if run.tasks[task].kind == "classification" and bool(known.any()):
                means[task] = class_means(features[known], target[known], run.tasks[task].size, self.config.normalize)
        return means

    def _flat(self, features: Tensor) -> Tensor:
        flat = features.flatten(1)
        return normalize(flat) if self.config.normalize else flat

    def _memory(self, run: Run, trained: int) -> ReplayMemory | None:
        found = run.memories.find(self.config.memory)
        if found is None and trained:
            known = ", ".join(run.memories.names) or "none"
            raise ConfigurationError(
                f"nearest_class_mean reads the replay memory {self.config.memory!r}, but there is none of that name (there are: {known}): "
                "give the replay plugin and this one the same memory name"
            )
        return found
