"""RanPAC: random projections of fixed features, their second moments, and a ridge regression solved in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from streamlearn.core.importance import evaluating
from streamlearn.core.phases import ALL, Phase
from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.randomness import forked, generator, permutation, subseed
from streamlearn.errors import TrainingError

if TYPE_CHECKING:
    from streamlearn.core.evaluation import Evaluation
    from streamlearn.core.run import Run
    from streamlearn.streams import Batch, Experience

__all__ = ["RIDGES", "RanPAC", "Sums", "chosen_ridge", "projected", "ridge_weights", "updated"]

RIDGES: tuple[float, ...] = tuple(10.0**power for power in range(-8, 9))
"""What λ is chosen from, as in the authors' code."""

_ROWS, _COLUMNS = 1024, 2048  # projected at once: a whole experience would take more memory than the Gram matrix
_BEHIND = 1e3
"""How far a class not met yet lies behind the least likely one that has been: never chosen, and of finite loss."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What is known of the rows of a task.

    Attributes:
        gram: G = Σ h hᵀ, ``(projected, projected)``.
        prototypes: C = Σ h yᵀ, sums of h by class, ``(projected, classes)``.
        counts: rows by class, float64, ``(classes,)``.
        ridge: λ, as last chosen.
    """

    gram: Tensor
    prototypes: Tensor
    counts: Tensor
    ridge: float = 1.0

    @classmethod
    def empty(cls, classes: int, projection: Tensor) -> Sums:
        """Nothing met yet; type and device are those of ``projection``."""
        width = projection.shape[1]
        counts = torch.zeros(classes, dtype=torch.float64, device=projection.device)
        return cls(projection.new_zeros(width, width), projection.new_zeros(width, classes), counts)

    def grown(self, classes: int) -> Sums:
        """With room for ``classes`` classes; those that are there keep their places."""
        missing = classes - len(self.counts)
        if missing <= 0:
            return self
        prototypes = torch.cat([self.prototypes, self.prototypes.new_zeros(len(self.prototypes), missing)], 1)
        return replace(self, prototypes=prototypes, counts=torch.cat([self.counts, self.counts.new_zeros(missing)]))


def projected(features: Tensor, projection: Tensor) -> Tensor:
    """h = max(0, z W), ``(rows, projected)``, in the type of ``projection``.

    Example:
        >>> projected(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, -1.0], [0.0, 0.0]])).tolist()
        [[1.0, 0.0]]
    """
    return (features.to(projection) @ projection).relu_()


def updated(known: Sums, features: Tensor, labels: Tensor, projection: Tensor) -> Sums:
    """The sums after more rows: G + Σ h hᵀ and C + Σ h yᵀ with y of one hot label.

    Args:
        known: of the rows so far; left as it is.
        features: z, ``(rows, features)``.
        labels: class numbers ``(rows,)``.
        projection: W, ``(features, projected)``.

    Example:
        >>> after = updated(Sums.empty(2, torch.eye(1)), torch.tensor([[2.0], [3.0]]), torch.tensor([0, 1]), torch.eye(1))
        >>> after.gram.tolist(), after.prototypes.tolist(), after.counts.tolist()
        ([[13.0]], [[2.0, 3.0]], [1.0, 1.0])
    """
    gram, prototypes = known.gram.clone(), known.prototypes.clone()
    targets = one_hot(labels, len(known.counts)).to(prototypes)
    _add(gram, prototypes, features, targets, projection)
    return replace(known, gram=gram, prototypes=prototypes, counts=known.counts + targets.sum(0, dtype=torch.float64))


def _add(gram: Tensor, prototypes: Tensor, features: Tensor, targets: Tensor, projection: Tensor) -> None:
    for part, wanted in zip(features.split(_ROWS), targets.split(_ROWS), strict=True):  # type: ignore[no-untyped-call]
        h = projected(part, projection)
        gram.addmm_(h.T, h)
        prototypes.addmm_(h.T, wanted)


def ridge_weights(gram: Tensor, prototypes: Tensor, ridge: float) -> Tensor:
    """(G + λ I)⁻¹ C, ``(projected, classes)``, float64.

    A λ so small beside G that the matrix has no Cholesky factor in 64 bits is raised tenfold until it has one.

    Example:
        >>> ridge_weights(torch.tensor([[3.0]]), torch.tensor([[2.0, 4.0]]), 1.0).tolist()
        [[0.5, 1.0]]
    """
    found = _solved(gram, prototypes, ridge)
    while found is None:
        ridge *= 10
        found = _solved(gram, prototypes, ridge)
    return found


def _solved(matrix: Tensor, right: Tensor, ridge: float) -> Tensor | None:
    """(matrix + λ I)⁻¹ right in 64 bits; ``None`` where rounding leaves the matrix without a Cholesky factor."""
    system = matrix.to(torch.float64, copy=True)
    system.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(system)
    return None if bool(failed) else torch.cholesky_solve(right.to(factor), factor)


def chosen_ridge(features: Tensor, targets: Tensor, projection: Tensor, ridges: tuple[float, ...] = RIDGES) -> float | None:
    """The λ with which a ridge regression of the first four fifths of the rows has the least squared error on the rest.

    Of n rows and M projected features, it solves systems of the smaller of both sizes: H (HᵀH + λ I)⁻¹ Hᵀ Y = H Hᵀ (H Hᵀ + λ I)⁻¹ Y.

    Args:
        features: z, ``(rows, features)``, in random order.
        targets: y, ``(rows, classes)``.
        projection: W, ``(features, projected)``.
        ridges: candidates, ascending; of equally good ones the first is taken, and those too small to be solved are passed over.

    Returns:
        λ, or ``None`` when there are fewer than two rows.
    """
    fit = min(int(0.8 * len(features)) or 1, len(features) - 1)
    if fit < 1:
        return None
    y, held_out = targets.to(projection), targets[fit:].double()
    if fit <= projection.shape[1]:
        kernel = y.new_zeros(len(features), len(features))
        for columns in projection.split(_COLUMNS, 1):  # type: ignore[no-untyped-call]
            h = projected(features, columns)
            kernel.addmm_(h, h.T)
        matrix, right, left = kernel[:fit, :fit], y[:fit], kernel[fit:, :fit].double()
    else:
        start = Sums.empty(y.shape[1], projection)
        matrix, right = start.gram, start.prototypes
        _add(matrix, right, features[:fit], y[:fit], projection)
        left = projected(features[fit:], projection).double()
    solved = ((ridge, _solved(matrix, right, ridge)) for ridge in ridges)
    errors = {ridge: float((left @ weights - held_out).square().mean()) for ridge, weights in solved if weights is not None}
    return min(errors, key=errors.__getitem__) if errors else ridges[-1]


class RanPAC(Plugin):
    r"""RanPAC: random projections and pre-trained models for continual learning.

    .. math:: h = \max(0, W^T z), \quad G = \sum_i h_i h_i^T, \quad C = \sum_i h_i y_i^T, \quad \hat y = \arg\max_c [h^T (G + λ I)^{-1} C]_c

    with z the features of a fixed encoder (what it hands to the heads, in evaluation mode), W a matrix of normal random numbers that is
    drawn once, and y the label, one hot. When an experience ends, G and C take up its rows, in one pass over them. Nothing is trained:
    the main phase is one epoch in which no parameter moves. What is predicted is the ridge regression on all rows met so far, whatever
    their order.

    After each experience λ is chosen from 10⁻⁸ to 10⁸, in powers of ten: a ridge regression of four fifths of its rows, drawn at random,
    is to have the least squared error on the last fifth.

    It is as good as the encoder is: give a model that was trained before (``models.pretrained``), or ``first_session=True``, with which
    the first experience is trained as usual (add `FrozenBackbone`, or a plugin of your own, to say what moves then); from the
    second on the encoder is fixed. With a plain module, whose features are its outputs, list `MultiHead` first to take its last layer off.

    Rows of a memory are not counted again. Tasks that are no classification, and those without a labelled row yet, are undefined, with
    that reason in the record.

    Args:
        dimensions: M, width of h, at least 1. The paper uses 10,000.
        ridge: λ, above 0; ``None`` chooses it.
        first_session: train the model on the first experience.
        dtype: in which G and C are kept; in ``"float32"`` they take half the memory, and a small λ is drowned by their rounding. Systems
            are solved in 64 bits.

    Raises:
        TrainingError: the encoder gives features that are not finite.

    Cost: one forward pass of the rows of an experience when it ends, in place of training, and M² operations for each; systems of size
    min(rows, M) when λ is chosen, and of size M before an evaluation. Memory: M² + classes x M numbers for each task, and twice M² for a
    moment. W is drawn again from the seed and not kept.

    Reference: McDonnell et al., RanPAC: random projections and pre-trained models for continual learning, NeurIPS 2023, eqs. 4-6 and
    algorithm 1. Deviations: the paper's first session trains small adapters inside the encoder (PETL), here whatever moves in the model;
    a λ that leaves G + λ I without a Cholesky factor in 64 bits is passed over, or raised tenfold until it has one.

    Example:
        >>> from streamlearn.plugins import RanPAC
        >>> RanPAC(dimensions=2000)
        RanPAC(dimensions=2000)
    """

    info = PluginInfo(
        name="ranpac",
        family="replay",
        summary="Solves a ridge regression on random projections of fixed features, from sums that grow row by row.",
        reference="McDonnell et al. 2023, NeurIPS, eqs. 4-6 and algorithm 1",
        memory="projected² + classes x projected",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `RanPAC`."""

        dimensions: int = Field(10_000, ge=1)
        ridge: float | None = Field(None, gt=0)
        first_session: bool = False
        dtype: Literal["float32", "float64"] = "float64"

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._sums: dict[str, Sums] = {}
        self._weights: dict[str, tuple[Sums, Tensor]] = {}  # follow from the sums: they are no state
        self._projection: Tensor | None = None  # follows from the seed

    # ------------------------------------------------------------------ learning

    @hookimpl
    def transform_phases(self, phases: tuple[Phase, ...], experience: Experience, run: Run) -> tuple[Phase, ...]:
        """Nothing is trained, but in the first session."""
        if "train" not in experience.data or (self.config.first_session and experience.index == 0):
            return phases
        return tuple(phase.replace(epochs=1, trainable=(), updates=(ALL,)) if phase.name == "main" else phase for phase in phases)

    @hookimpl
    def after_experience(self, experience: Experience, run: Run) -> None:
        """Take up the rows of the experience."""
        if "train" not in experience.data:
            return
        for task, (features, labels) in self._collected(run).items():
            if not bool(features.isfinite().all()):
                raise TrainingError(
                    f"plugin {self.name}: the encoder gives features that are not finite for rows of experience {experience.index}, task "
                    f"{task!r}: check its weights and the scale of its inputs"
                )
            projection = self._drawn(run, features.shape[1], features.device)
            known = self._sums.get(task) or Sums.empty(run.tasks[task].size, projection)
            known = known.grown(run.tasks[task].size)
            ridge = self.config.ridge
            if ridge is None:
                order = permutation(len(labels), run.seed, "plugin", self.name, "held out", task, experience.index).to(labels.device)
                targets = one_hot(labels[order], len(known.counts))
                ridge = chosen_ridge(features[order], targets, projection) or known.ridge
            self._sums[task] = replace(updated(known, features, labels, projection), ridge=ridge)

    @torch.no_grad()
    def _collected(self, run: Run) -> dict[str, tuple[Tensor, Tensor]]:
        """Features and labels of the labelled rows of each classification task in the present experience."""
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        with evaluating(run.model), forked(run.device):
            torch.default_generator.manual_seed(subseed(run.seed, "ranpac rows", run.clock.experience))  # of data that augment
            for batch in run.batches(run.data(), run.options.evaluation_batch_size):
                features = run.model.encode(batch.x).flatten(1)
                for task in batch.targets:
                    rows = batch.labelled_rows(task)
                    if run.tasks[task].kind == "classification" and bool(rows.any()):
                        found.setdefault(task, []).append((features[rows], batch.targets[task][rows]))
        return {task: (torch.cat([z for z, _ in parts]), torch.cat([y for _, y in parts])) for task, parts in found.items()}

    def _drawn(self, run: Run, features: int, device: torch.device) -> Tensor:
        """W, drawn on the CPU so that it is the same on every device."""
        known = self._projection
        if known is None or len(known) != features or known.device != device:
            draw = generator(run.seed, "plugin", self.name, "projection")  # the same at every update
            drawn = torch.randn(features, self.config.dimensions, generator=draw)
            known = self._projection = drawn.to(device, getattr(torch, self.config.dtype))
        return known

    # ------------------------------------------------------------------ predicting

    @hookimpl
    def provide_predictions(self, batch: Batch, evaluation: Evaluation) -> Mapping[str, Tensor]:
        """The regression's values by class for each task met."""
        tasks = [task for task in batch.tasks if task in self._sums]
        if not tasks:
            return {}
        features = evaluation.run.model.encode(batch.x).flatten(1)
        h = projected(features, self._drawn(evaluation.run, features.shape[1], features.device))
        return {task: self._scores(task, h).to(features.dtype) for task in tasks}

    def _scores(self, task: str, h: Tensor) -> Tensor:
        known = self._sums[task]
        if task not in self._weights or self._weights[task][0] is not known:
            self._weights[task] = (known, ridge_weights(known.gram, known.prototypes, known.ridge))
        weights = self._weights[task][1]
        scores = h.to(weights) @ weights
        met = known.counts > 0
        return torch.where(met, scores, scores[:, met].amin(1, keepdim=True) - _BEHIND)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Sums and λ by task."""
        return {task: {"gram": s.gram, "prototypes": s.prototypes, "counts": s.counts, "ridge": s.ridge} for task, s in self._sums.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._sums = {task: Sums(s["gram"], s["prototypes"], s["counts"], float(s["ridge"])) for task, s in state.items()}
