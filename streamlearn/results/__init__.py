"""What a run measured: the raw record, the accuracy matrix, its metrics with their formulas, tables and figures.

    >>> from streamlearn.results import METRICS
    >>> list(METRICS)[0]
    'average_accuracy'

Importing this package loads neither matplotlib nor rich nor torch.
"""

from __future__ import annotations

from streamlearn.results.compute import compute
from streamlearn.results.figure import compare_figure, to_svg
from streamlearn.results.measure import Measure
from streamlearn.results.metrics import METRICS
from streamlearn.results.multitask_metrics import delta_m, final_values, hypervolume, mean_ranks, worst_task
from streamlearn.results.record import Record
from streamlearn.results.result import Result
from streamlearn.results.table import compare_table

__all__ = [
    "METRICS",
    "Measure",
    "Record",
    "Result",
    "compare_figure",
    "compare_table",
    "compute",
    "delta_m",
    "final_values",
    "hypervolume",
    "mean_ranks",
    "to_svg",
    "worst_task",
]
