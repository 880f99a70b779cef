"""What is to be predicted: the task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch.nn.functional import cross_entropy, mse_loss

from streamlearn.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Kind", "Task"]

Kind = Literal["classification", "regression"]


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be predicted, and how a prediction is judged.

    Args:
        name: identity of the task. Heads, rows of the Jacobian and every plugin's state are keyed by it.
        kind: ``"classification"`` (targets are class numbers in ``[0, size)``, shape ``(rows,)``) or
            ``"regression"`` (targets are floats of shape ``(rows, size)``).
        size: number of outputs, at least 1: classes, or regressed values.
        classes: the names of the classes, for people; empty when they have none.

    Raises:
        DataError: ``size`` is below 1, or ``classes`` does not hold ``size`` names.

    Example:
        >>> Task("digit", size=10).metric
        'accuracy'
    """

    name: str
    kind: Kind = "classification"
    size: int = 1
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 1:
            raise DataError(f"task {self.name!r} has size {self.size}: give at least 1 output")
        if self.classes and len(self.classes) != self.size:
            raise DataError(f"task {self.name!r} has size {self.size} but names {len(self.classes)} classes: name all or none")

    @property
    def metric(self) -> str:
        """Name of the measure by which this task is judged."""
        return "accuracy" if self.kind == "classification" else "mean_squared_error"

    def loss(self, outputs: Tensor, target: Tensor, *, mean: bool) -> Tensor:
        """Loss of ``outputs`` ``(rows, size)`` against ``target``: its mean over the rows, or one value per row.

        Cross-entropy for classification (``target`` may be class numbers or probabilities), squared error for regression.
        The mean is torch's own fused reduction, so that an engine without plugins equals a plain loop bit for bit.

        Raises:
            DataError: a label is no class of the task (on an accelerator torch itself stops the device instead).
        """
        if self.kind == "classification":
            try:
                return cross_entropy(outputs, target, reduction="mean" if mean else "none")
            except IndexError:
                raise self._out_of_range(outputs, target) from None
        if mean:
            return mse_loss(outputs, target)
        return mse_loss(outputs, target, reduction="none").flatten(1).mean(1)

    def total_loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Σ over the rows of `loss`, for evaluation: equal but for the last bits.

        For class numbers it is Σ logsumexp(outputs) - outputs[target]: torch's log-softmax of many rows of few classes takes four
        times as long.

        Raises:
            DataError: as `loss`.
        """
        if self.kind == "classification" and outputs.ndim == 2 and not target.is_floating_point():
            try:
                chosen = outputs.gather(1, target.unsqueeze(1)).squeeze(1)
            except RuntimeError:
                raise self._out_of_range(outputs, target) from None
            return (outputs.logsumexp(1) - chosen).sum()
        return self.loss(outputs, target, mean=True) * len(target)

    def total_metric(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Σ over the rows of the metric: rows that are right (the largest output is the target's), or squared errors.

        Raises:
            DataError: outputs and targets of a regression differ in shape.
        """
        if self.kind == "classification":
            return (outputs.max(1).indices == target).sum()
        if outputs.shape != target.shape:
            raise DataError(
                f"task {self.name!r}: outputs have shape {tuple(outputs.shape)}, targets {tuple(target.shape)}: make them equal"
            )
        return (outputs - target).square().mean(tuple(range(1, outputs.ndim))).sum()

    def _out_of_range(self, outputs: Tensor, target: Tensor) -> DataError:
        worst = int(target.min()) if int(target.min()) < 0 else int(target.max())
        return DataError(
            f"task {self.name!r} met label {worst}, but it has {outputs.shape[1]} classes, numbered 0 to {outputs.shape[1] - 1}: "
            "renumber the labels, or give the task its true size"
        )

    def describe(self) -> dict[str, Any]:
        """The task as JSON."""
        return {"name": self.name, "kind": self.kind, "size": self.size, "classes": list(self.classes)}
