"""Expected calibration error (ECE): how far confidence lies from accuracy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.run import Run

__all__ = ["BinnedCalibration", "CalibrationError", "bin_sums", "expected_calibration_error"]


def bin_sums(confidence: Tensor, correct: Tensor, bins: int) -> Tensor:
    """Rows, summed confidence and right predictions of each bin ((m-1)/M, m/M], float64, ``(3, bins)``.

    Args:
        confidence: probability of the predicted class, ``(rows,)``, in [0, 1].
        correct: whether the prediction is right, ``(rows,)``.
        bins: M, at least 1.

    Example:
        >>> bin_sums(torch.tensor([0.5, 0.75, 1.0]), torch.tensor([True, False, True]), 2).tolist()
        [[1.0, 2.0], [0.5, 1.75], [1.0, 1.0]]
    """
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)[1:-1]
    exact = confidence.double()
    which = torch.bucketize(exact, edges)
    sums = torch.zeros(3, bins, dtype=torch.float64, device=confidence.device)
    for number, column in enumerate((torch.ones_like(exact), exact, correct.double())):
        sums[number] = torch.bincount(which, column, minlength=bins)
    return sums


def expected_calibration_error(sums: Tensor) -> float:
    """Σ_m |B_m| / n |acc(B_m) - conf(B_m)| of what `bin_sums` gave (sums of several batches add up); NaN when there is no row.

    Example:
        >>> expected_calibration_error(bin_sums(torch.tensor([0.25, 0.75]), torch.tensor([True, True]), 2))
        0.5
    """
    rows = float(sums[0].sum())
    return float((sums[2] - sums[1]).abs().sum()) / rows if rows else math.nan


class BinnedCalibration:
    """The expected calibration error of logits, over as many batches and tasks as come: ``update``, ``compute`` and ``reset``.

    Tasks may differ in their classes, since only the probability of the predicted class counts. Targets that are no class numbers
    (regression) are passed over. Keeps sums by bin and not the rows.

    Args:
        bins: M, at least 1.

    Example:
        >>> metric = BinnedCalibration(15)
        >>> metric.update(torch.tensor([[9.0, 9.0 - math.log(3.0)]]), torch.tensor([1]))  # confident by 0.75, and wrong
        >>> round(metric.compute(), 6)
        0.75
    """

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self._sums: Tensor | None = None

    def reset(self) -> None:
        """Forget every row."""
        self._sums = None

    def update(self, outputs: Tensor, target: Tensor) -> None:
        """Add the rows of a classification: logits ``(rows, classes)`` and class numbers ``(rows,)``."""
        if target.is_floating_point() or target.ndim != 1 or outputs.ndim != 2:
            return
        confidence, predicted = outputs.double().softmax(1).max(1)
        sums = bin_sums(confidence, predicted == target, self.bins)
        self._sums = sums if self._sums is None else self._sums + sums

    def compute(self) -> float:
        """The error so far; NaN without a row."""
        return math.nan if self._sums is None else expected_calibration_error(self._sums)


class CalibrationError(Plugin):
    r"""Expected calibration error of every evaluation set, beside its accuracy.

    .. math:: ECE = \sum_{m=1}^{M} \frac{|B_m|}{n} \, |acc(B_m) - conf(B_m)|

    with B_m the rows whose confidence, the softmax probability of the predicted class, lies in ((m-1)/M, m/M]. Recorded as metric
    ``"calibration_error/expected"`` for each evaluation set, over the rows of all its classification tasks together: only the
    confidence of the prediction counts, so tasks may differ in their classes. Regressions are passed over; where a set has no
    classified row, the value is undefined (``None``).

    What the model, or the active predictor, gives is taken as logits, whatever its range. A class that a head has not grown to yet is
    never predicted: its rows count as wrong.

    Args:
        bins: M, at least 1; 15 as in the paper.

    Cost: a softmax of the outputs of every evaluation. Memory: 3 x bins.

    Reference: Guo et al., On calibration of modern neural networks, ICML 2017, eq. 3 and 5. It is the l1 norm of torchmetrics'
    ``MulticlassCalibrationError`` but for confidences at the edge of a bin: torchmetrics closes bins at the left, which gives a
    confidence of exactly 1 a bin of its own. It also takes logits that happen to lie in [0, 1] for probabilities.

    Example:
        >>> import torch
        >>> from streamlearn import Engine, models, streams
        >>> from streamlearn.plugins import CalibrationError
        >>> stream = streams.class_incremental("digits", experiences=5)
        >>> engine = Engine(models.mlp(stream), lambda p: torch.optim.SGD(p, lr=0.05), [CalibrationError()])
        >>> engine.run(stream).matrix(metric="calibration_error/expected").shape
        (6, 5)
    """

    info = PluginInfo(
        name="calibration_error",
        family="tracking",
        summary="Measures the expected calibration error of every evaluation set.",
        reference="Guo et al. 2017, ICML, eq. 3 and 5",
        memory="3 x bins",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `CalibrationError`."""

        bins: int = Field(15, ge=1)

    @hookimpl
    def collect_metrics(self, run: Run) -> dict[str, Any]:
        """One metric, asked of every evaluation set."""
        return {"expected": BinnedCalibration(self.config.bins)}
