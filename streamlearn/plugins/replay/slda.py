"""Deep streaming linear discriminant analysis (SLDA): class means and one covariance of fixed features, and no gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from streamlearn.core.importance import evaluating
from streamlearn.core.phases import ALL, Phase
from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.evaluation import Evaluation
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Batch, Experience

__all__ = ["SLDA", "Statistics", "discriminant", "updated"]

_BEHIND = 1e3
"""How far a class not met yet lies behind the least likely one that has been: never chosen, and of finite loss."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What is known of the features of a task.

    Attributes:
        counts: n_c, rows met by class, float64, ``(classes,)``.
        means: μ_c, float64, ``(classes, features)``; zero for a class not met yet.
        scatter: Σ_c Σ_{i: y_i = c} (z_i - μ_c)(z_i - μ_c)ᵀ, float64, ``(features, features)``.
    """

    counts: Tensor
    means: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, classes: int, features: int, device: torch.device | None = None) -> Statistics:
        """Nothing met yet."""
        shapes = ((classes,), (classes, features), (features, features))
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def grown(self, classes: int) -> Statistics:
        """With room for ``classes`` classes; those that are there keep their places."""
        missing = classes - len(self.counts)
        if missing <= 0:
            return self
        counts = torch.cat([self.counts, self.counts.new_zeros(missing)])
        means = torch.cat([self.means, self.means.new_zeros(missing, self.means.shape[1])])
        return Statistics(counts, means, self.scatter)


def updated(known: Statistics, features: Tensor, labels: Tensor) -> Statistics:
    """The statistics after more rows; the same, up to rounding, whatever the order and the size of the portions.

    For each class, with n_b new rows of mean m_b and scatter S_b (Chan et al. 1979; one row at a time it is Welford's):

        S ← S + S_b + n n_b / (n + n_b) (m_b - μ)(m_b - μ)ᵀ,     μ ← μ + n_b / (n + n_b) (m_b - μ),     n ← n + n_b

    Args:
        known: of the rows so far.
        features: z, ``(rows, features)``.
        labels: class numbers ``(rows,)``.

    Example:
        >>> after = updated(Statistics.empty(1, 1), torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]))
        >>> after.means.item(), after.scatter.item()
        (2.0, 2.0)
    """
    z = features.to(known.means)
    member = one_hot(labels, len(known.counts)).to(z)
    fresh = member.sum(0)
    total = known.counts + fresh
    gap = member.T @ z / fresh.clamp(min=1).unsqueeze(1) - known.means
    gap = gap * (fresh > 0).unsqueeze(1)
    inside = z - (known.means + gap)[labels]
    share = fresh / total.clamp(min=1)
    between = gap.T @ (gap * (known.counts * share).unsqueeze(1))
    return Statistics(total, known.means + share.unsqueeze(1) * gap, known.scatter + inside.T @ inside + between)


def discriminant(known: Statistics, shrinkage: float) -> tuple[Tensor, Tensor]:
    """W = Λ μ and b_c = -1/2 μ_c · Λ μ_c with Λ = ((1 - ε) Σ + ε I)⁻¹: the score of class c is w_c · z + b_c.

    Args:
        known: statistics; Σ = scatter / rows.
        shrinkage: ε, in (0, 1].

    Returns:
        Weights ``(classes, features)`` and biases ``(classes,)``, float64.

    Example:
        >>> two = updated(Statistics.empty(2, 1), torch.tensor([[0.0], [4.0]]), torch.tensor([0, 1]))
        >>> weight, bias = discriminant(two, 1.0)
        >>> weight.flatten().tolist(), bias.tolist()
        ([0.0, 4.0], [-0.0, -8.0])
    """
    covariance = known.scatter / known.counts.sum().clamp(min=1)
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    weight = torch.linalg.solve((1 - shrinkage) * covariance + shrinkage * identity, known.means.T).T
    return weight, -0.5 * (weight * known.means).sum(1)


class SLDA(Plugin):
    r"""Deep streaming linear discriminant analysis.

    .. math:: \hat y = \arg\max_c \; μ_c^T Λ z - \tfrac12 μ_c^T Λ μ_c, \qquad Λ = \big((1 - ε) Σ + ε I\big)^{-1}

    with z the features of a fixed encoder (what it hands to the heads, in evaluation mode), μ_c the running mean of class c and Σ
    the running covariance within classes, one for all classes of a task. Each row is looked at once; nothing is trained, so the
    main phase is one epoch in which no parameter moves, and what was learnt does not depend on the order of the rows.

    It is as good as the encoder is: give a model that was trained before, or ``base_initialization=True``, with which the first
    experience is trained as usual, and looked at once more afterwards; from the second on the encoder is fixed. With a plain module,
    whose features are its outputs, list `MultiHead` first to take its last layer off.

    Tasks that are no classification, and those without a labelled row yet, are undefined, with that reason in the record.

    Args:
        shrinkage: ε, in (0, 1]; 1 makes it nearest class mean. The paper uses 1e-4.
        base_initialization: train the model on the first experience.

    Cost: one forward pass in evaluation mode per step, in place of the training step. Memory: features² + classes x features numbers
    of 64 bits for each task.

    Reference: Hayes & Kanan, Lifelong machine learning with deep streaming linear discriminant analysis, CVPR workshops 2020, eqs. 1-6.
    Deviation: the paper weights a row's part in Σ by t / (t + 1), with t the rows of all classes; here by n_c / (n_c + 1), which is the
    exact covariance within classes, and makes the order of rows irrelevant.

    Example:
        >>> from streamlearn.plugins import SLDA
        >>> SLDA(shrinkage=1e-3)
        SLDA(shrinkage=0.001)
    """

    info = PluginInfo(
        name="slda",
        family="replay",
        summary="Learns class means and one covariance of fixed features, row by row and without a gradient.",
        reference="Hayes & Kanan 2020, CVPR workshops, eqs. 1-6",
        conflicts=frozenset({"joint", "mixup"}),  # the one would count rows again, the other has no class numbers left
        memory="features² + classes x features",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `SLDA`."""

        shrinkage: float = Field(1e-4, gt=0, le=1)
        base_initialization: bool = False

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._statistics: dict[str, Statistics] = {}
        self._solved: dict[str, tuple[Statistics, Tensor, Tensor]] = {}  # follows from the statistics: it is no state
        self._counted: tuple[int, int] | None = None  # (experience, batch) that was counted last

    # ------------------------------------------------------------------ learning

    @hookimpl
    def transform_phases(self, phases: tuple[Phase, ...], experience: Experience, run: Run) -> tuple[Phase, ...]:
        """One look at each row, in which no parameter moves."""
        if "train" not in experience.data:
            return phases
        if self._trains_encoder(experience.index):
            data = next((phase.data for phase in phases if phase.name == "main"), experience.data["train"])
            return (*phases, Phase(self.name, data, 1, trainable=(), only=frozenset({self.name})))
        return tuple(phase.replace(epochs=1, trainable=(), updates=(ALL,)) if phase.name == "main" else phase for phase in phases)

    def _trains_encoder(self, experience: int) -> bool:
        return bool(self.config.base_initialization) and experience == 0

    @hookimpl
    def after_step(self, step: Step) -> None:
        """Count the incoming rows."""
        run = step.run
        mine = self.name if self._trains_encoder(run.clock.experience) else "main"
        place = (run.clock.experience, run.clock.batch)  # a batch may make several updates
        if run.phase is None or run.phase.name != mine or run.clock.epoch or place == self._counted:
            return
        self._counted = place
        wanted = {task: _labelled(step.batch, task) for task in step.batch.targets if run.tasks[task].kind == "classification"}
        wanted = {task: rows for task, rows in wanted.items() if bool(rows.any())}
        if not wanted:
            return
        with torch.no_grad(), evaluating(run.model):
            features = run.model.encode(step.batch.x).flatten(1)
        for task, rows in wanted.items():
            known = self._statistics.get(task) or Statistics.empty(run.tasks[task].size, features.shape[1], features.device)
            known = known.grown(run.tasks[task].size)
            self._statistics[task] = updated(known, features[rows], step.batch.targets[task][rows])

    # ------------------------------------------------------------------ predicting

    @hookimpl
    def provide_predictions(self, batch: Batch, evaluation: Evaluation) -> Mapping[str, Tensor]:
        """Discriminant scores by class for each task met."""
        features = evaluation.run.model.encode(batch.x).flatten(1)
        return {task: self._scores(task, features) for task in batch.tasks if task in self._statistics}

    def _scores(self, task: str, features: Tensor) -> Tensor:
        known = self._statistics[task]
        if task not in self._solved or self._solved[task][0] is not known:
            self._solved[task] = (known, *discriminant(known, self.config.shrinkage))
        _, weight, bias = self._solved[task]
        scores = features.to(weight) @ weight.T + bias
        met = known.counts > 0
        least = scores[:, met].amin(1, keepdim=True)
        return torch.where(met, scores, least - _BEHIND).to(features.dtype)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Counts, means and scatter by task."""
        return {task: {"counts": s.counts, "means": s.means, "scatter": s.scatter} for task, s in self._statistics.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._statistics = {task: Statistics(s["counts"], s["means"], s["scatter"]) for task, s in state.items()}


def _labelled(batch: Batch, task: str) -> Tensor:
    """The incoming rows with a label of ``task``: rows of a memory have been counted when they came."""
    rows = batch.labelled_rows(task).clone()
    for segment in batch.segments:
        if segment.role != "train":
            rows[segment.rows] = False
    return rows
