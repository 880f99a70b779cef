"""Temperature sampling: draw rows of small tasks more often than their size would have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from streamlearn.core.scheduling import power_probabilities, rows_by_task

if TYPE_CHECKING:
    from streamlearn.core.step import Step

__all__ = ["TemperatureSampling", "rows_by_task", "temperature_probabilities"]


def temperature_probabilities(rows: Mapping[str, int], temperature: float, cap: int | None = None) -> dict[str, float]:
    """p_k = min(n_k, cap)^(1/τ) / Σ_j min(n_j, cap)^(1/τ); a task without rows has probability 0.

    Args:
        rows: n_k by task, at least one of them above 0.
        temperature: τ above 0.
        cap: no task counts for more rows than this; ``None`` sets no limit.

    Example:
        >>> temperature_probabilities({"a": 16, "b": 4}, temperature=2.0)
        {'a': 0.6666666666666666, 'b': 0.3333333333333333}
    """
    return power_probabilities(rows, 1 / temperature, cap)


class TemperatureSampling(Plugin):
    r"""Temperature sampling of tasks.

    .. math:: p_k = \frac{\min(n_k, c)^{1/τ}}{\sum_j \min(n_j, c)^{1/τ}}

    with n_k the rows of task k in the data of the present phase. τ = 1 is proportional sampling, which draws in proportion to size;
    τ = 2 is square-root sampling; as τ grows, the tasks come to be drawn equally often (uniform sampling). Exponential smoothing with
    exponent S is τ = 1 / S (multilingual BERT: S = 0.7). `AnnealedSampling` moves from proportional to nearly uniform while it trains.

    The rows of a batch are drawn task by task from these probabilities, and within a task each row once before any comes again. An
    epoch stays as many batches as the data fills, so rows of a large task may be left out of it and those of a small one come
    several times.

    A row that carries several tasks trains all of them, whichever it was drawn for, and may stand in a batch once for each of them:
    where every row carries every task, as in `streamlearn.streams.multitask`, no sampling of rows can favour one (a weighting can).

    Args:
        temperature: τ, above 0; 5 is usual in machine translation. Below 1 large tasks are favoured even more.
        cap: c, at least 1: no task counts for more rows than this. Default no limit.

    Cost: none. Memory: none.

    Reference: Devlin et al., multilingual BERT, 2018; Arivazhagan et al., arXiv 1907.05019; with the cap, Raffel et al., JMLR 21(140),
    2020, section 3.5.2; Wang et al., arXiv 2004.06748. Some of them draw one task for a whole batch; here each row of a batch is drawn
    on its own.

    Example:
        >>> from streamlearn.plugins import TemperatureSampling
        >>> TemperatureSampling(temperature=5.0)
        TemperatureSampling(temperature=5.0)
    """

    info = PluginInfo(
        name="temperature_sampling",
        family="scheduling",
        summary="Draws tasks by size to the power 1/temperature, from proportional to uniform.",
        reference="Arivazhagan et al. 2019, arXiv 1907.05019; Raffel et al. 2020, JMLR 21(140), section 3.5.2",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `TemperatureSampling`."""

        temperature: Annotated[float, Tunable(1.0, 100.0, log=True)] = Field(5.0, gt=0, allow_inf_nan=False)
        cap: int | None = Field(None, ge=1)

    @hookimpl
    def provide_task_probabilities(self, step: Step) -> dict[str, float]:
        """From the rows of the present phase."""
        run = step.run
        assert run.phase is not None
        return temperature_probabilities(rows_by_task(run.phase.data), run.value(self, "temperature"), self.config.cap)
