r"""Metrics of several tasks learnt together: against a model for each task, against other methods, and over a front of trade-offs.

Values come from the end of a run, or as plain numbers: by task, ``{"depth": 0.41}`` with the name of the metric in ``metric=``, or by task
and metric, ``{"depth": {"absolute_error": 0.41, "relative_error": 0.17}}``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from streamlearn.errors import ConfigurationError
from streamlearn.results.hypervolume import hypervolume
from streamlearn.results.measure import Measure
from streamlearn.results.multitask_values import (
    HIGHER_IS_BETTER,
    LOWER_IS_BETTER,
    Directions,
    Told,
    Values,
    check_alike,
    final_values,
    read_values,
)

__all__ = ["HIGHER_IS_BETTER", "LOWER_IS_BETTER", "delta_m", "final_values", "hypervolume", "mean_ranks", "worst_task"]

_DELTA = "Maninis et al. 2019; over several metrics of a task as in LibMTL"


def delta_m(
    values: Told, baselines: Told, *, metric: str = "accuracy", higher_is_better: Iterable[str] = (),
    lower_is_better: Iterable[str] = (),
) -> Measure:  # fmt: skip
    r"""How much better the tasks are learnt together than each alone, relatively, in per cent; above 0, together is better.

    .. math:: \Delta_m = \frac{100}{K} \sum_{k=1}^{K} \frac{1}{n_k} \sum_{m=1}^{n_k} (-1)^{l_m} \frac{M_{k,m} - B_{k,m}}{B_{k,m}}

    where ``M`` is measured on the model of several tasks, ``B`` on that of task ``k`` alone, and ``l_m`` is 1 where a lower value is
    better, else 0. A task with several metrics (depth: an absolute and a relative error) counts as much as one with one metric.

    (Where a baseline is negative, ``|B|`` divides, so that better stays better.)

    Two traps. An error near 0 as a baseline makes the number as large as one likes. And the sign differs from what some papers print: Liu
    et al. 2021 (CAGrad), 2023 (FAMO) and Navon et al. 2022 (Nash-MTL) show the *drop*, which is ``-delta_m``; lower is then better.

    Args:
        values: of the model of several tasks: a result, or numbers as this module's docstring says.
        baselines: results by task, as `streamlearn.core.baselines.single_task_baselines` gives them; or numbers.
        metric: what numbers without the name of a metric are.
        higher_is_better, lower_is_better: the names of further metrics; those of `HIGHER_IS_BETTER` and `LOWER_IS_BETTER` are known.

    Raises:
        ConfigurationError: a task or a metric is there in the one only, or nothing says which direction is the better one.

    Returns:
        The measure, in unit ``"percent"``; undefined where a value is NaN or a baseline is 0.

    Source: Maninis, Radosavovic and Kokkinos, "Attentive single-tasking of multiple tasks", CVPR 2019; Vandenhende et al., "Multi-task
        learning for dense prediction tasks: a survey", TPAMI 2021; the mean over the metrics of a task as in Lin and Zhang, "LibMTL",
        JMLR 2023.

    Example:
        >>> together = {"segmentation": {"miou": 0.66}, "depth": {"absolute": 0.45, "relative": 0.2}}
        >>> alone = {"segmentation": {"miou": 0.60}, "depth": {"absolute": 0.50, "relative": 0.2}}
        >>> delta_m(together, alone, higher_is_better=["miou"], lower_is_better=["absolute", "relative"])
        Measure(delta_m = 7.5 percent, mean over tasks of the mean over metrics of ±(M - B) / B, in per cent)
    """
    name, formula = "delta_m", "mean over tasks of the mean over metrics of ±(M - B) / B, in per cent"
    found = _gains(read_values(values, metric), read_values(baselines, metric), Directions(higher_is_better, lower_is_better))
    if isinstance(found, str):
        return Measure(name, None, formula, _DELTA, found, "percent")
    return Measure(name, 100 * float(np.mean(list(found.values()))), formula, _DELTA, unit="percent")


def worst_task(
    values: Told, baselines: Told | None = None, *, metric: str = "accuracy",
    higher_is_better: Iterable[str] = (), lower_is_better: Iterable[str] = (),
) -> Measure:  # fmt: skip
    """The value of the task that is learnt worst; which one it is, the formula tells.

    Without ``baselines`` the tasks must have one metric, the same for all: the smallest accuracy, or the largest error. With them, the task
    that lost most (or gained least) against its baseline, in per cent: the smallest of the terms of `delta_m`.

    Args:
        values, baselines, metric, higher_is_better, lower_is_better: as of `delta_m`.

    Raises:
        ConfigurationError: as `delta_m`; or there are several metrics and no baselines.

    Example:
        >>> worst_task({"left": 0.9, "right": 0.7}), worst_task({"left": 0.9, "right": 0.7}, {"left": 1.0, "right": 0.7}).value.__round__(6)
        (Measure(worst_task = 0.7000, worst over tasks of accuracy, of task 'right'), -10.0)
    """
    directions, mine = Directions(higher_is_better, lower_is_better), read_values(values, metric)
    if baselines is not None:
        gains = _gains(mine, read_values(baselines, metric), directions)
        formula = "min over tasks of the mean over metrics of ±(M - B) / B, in per cent"
        if isinstance(gains, str):
            return Measure("worst_task", None, formula, "a term of delta_m", gains, "percent")
        worst = min(gains, key=gains.__getitem__)
        return Measure("worst_task", 100 * gains[worst], f"{formula}, of task {worst!r}", "a term of delta_m", unit="percent")
    metrics = {name for by in mine.values() for name in by}
    if len(metrics) != 1:
        raise ConfigurationError(
            f"tasks are measured by {', '.join(sorted(metrics))}, which cannot be compared: give baselines, or the values of one metric"
        )
    (one,) = metrics
    formula, source = f"worst over tasks of {one}", "the minimum over tasks (max-min fairness)"
    missing = next((task for task, by in mine.items() if math.isnan(by[one])), None)
    if missing is not None:
        return Measure("worst_task", None, formula, source, f"{one} of task {missing!r} is undefined", _unit(one))
    worst = (min if directions.higher(one) else max)(mine, key=lambda task: mine[task][one])
    return Measure("worst_task", mine[worst][one], f"{formula}, of task {worst!r}", source, unit=_unit(one))


def mean_ranks(
    methods: Mapping[str, Told], *, metric: str = "accuracy", higher_is_better: Iterable[str] = (), lower_is_better: Iterable[str] = ()
) -> dict[str, Measure]:
    r"""The mean rank (MR) of each method: ``mean over tasks and metrics of its rank there``; 1 is best, equal values share their mean rank.

    Every pair of a task and a metric counts alike, as in the source: a task of three metrics counts three times. The ranks depend on which
    methods are compared, and by how much one is better they do not tell.

    Args:
        methods: by the name of each method what is given to `delta_m` as ``values``; at least one.
        metric, higher_is_better, lower_is_better: as there.

    Raises:
        ConfigurationError: as `delta_m`, between any two methods; or there is no method.

    Source: Navon et al., "Multi-task learning as a bargaining game", ICML 2022, section 6 (MR); ties after Demsar, "Statistical
        comparisons of classifiers over multiple data sets", JMLR 2006.

    Example:
        >>> ranks = mean_ranks({"sum": {"a": 0.9, "b": 0.5}, "mgda": {"a": 0.8, "b": 0.6}, "pcgrad": {"a": 0.9, "b": 0.7}})
        >>> {name: float(rank) for name, rank in ranks.items()}
        {'sum': 2.25, 'mgda': 2.5, 'pcgrad': 1.25}
    """
    if not methods:
        raise ConfigurationError("there is no method to rank: give at least one, by its name")
    directions, told = Directions(higher_is_better, lower_is_better), {name: read_values(given, metric) for name, given in methods.items()}
    names = list(told)
    first = told[names[0]]
    for name in names[1:]:
        check_alike(told[name], first, f"method {name!r}", f"method {names[0]!r}")
    ranks: list[list[float]] = []
    formula, source = "mean over tasks and metrics of the rank among methods", "Navon et al. 2022, MR"
    for task, by in first.items():
        for one in by:
            sign = -1 if directions.higher(one) else 1
            column = [sign * told[name][task][one] for name in names]
            if any(map(math.isnan, column)):
                which = names[[math.isnan(value) for value in column].index(True)]
                reason = f"{one} of task {task!r} is undefined for method {which!r}"
                return {name: Measure("mean_rank", None, formula, source, reason, "rank") for name in names}
            ranks.append([1 + sum(b < a for b in column) + (column.count(a) - 1) / 2 for a in column])
    means = np.mean(ranks, axis=0).tolist()
    return {name: Measure("mean_rank", mean, formula, source, unit="rank") for name, mean in zip(names, means, strict=True)}


def _gains(values: Values, baselines: Values, directions: Directions) -> dict[str, float] | str:
    """For each task the mean over its metrics of the relative gain; or why there is none."""
    check_alike(values, baselines, "this run", "the baselines")
    gains = {}
    for task, by in values.items():
        terms = []
        for metric, value in by.items():
            base, sign = baselines[task][metric], 1 if directions.higher(metric) else -1
            if math.isnan(value) or math.isnan(base):
                return f"{metric} of task {task!r} is undefined {'in the baselines' if math.isnan(base) else 'in this run'}"
            if base == 0:
                return f"{metric} of task {task!r} is 0 in the baselines, and nothing is a multiple of it"
            terms.append(sign * (value - base) / abs(base))
        gains[task] = float(np.mean(terms))
    return gains


def _unit(metric: str) -> str:
    return "fraction" if metric == "accuracy" else metric
