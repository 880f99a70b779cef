"""Active sampling: draw most often the tasks that are furthest below their targets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from streamlearn.core.scheduling import labelled_tasks
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Task

__all__ = ["ActiveSampling", "gap_probabilities", "relative_gap", "upper_bounds"]


def relative_gap(performance: float, target: float, *, error: bool = False) -> float:
    """m = (target - performance) / target; for an error, which is to be small, the same of the inverses: 1 - target / performance.

    Args:
        performance: what was measured, at least 0.
        target: what is wished for, above 0.
        error: whether less is better.

    Example:
        >>> relative_gap(0.25, 0.5), relative_gap(4.0, 1.0, error=True)
        (0.5, 0.75)
    """
    if error:
        return 1.0 - target / max(performance, 1e-12)  # an error of 0 is as far beyond its target as can be
    return (target - performance) / target


def gap_probabilities(gaps: Mapping[str, float], temperature: float) -> dict[str, float]:
    """p_k = exp(m_k / τ) / Σ_j exp(m_j / τ).

    Args:
        gaps: m_k by task, at least one.
        temperature: τ above 0.

    Example:
        >>> {task: round(p, 3) for task, p in gap_probabilities({"a": 0.1, "b": 0.05}, temperature=0.05).items()}
        {'a': 0.731, 'b': 0.269}
    """
    widest = max(gaps.values())
    weights = {task: math.exp((gap - widest) / temperature) for task, gap in gaps.items()}
    total = math.fsum(weights.values())
    return {task: weight / total for task, weight in weights.items()}


def upper_bounds(sums: Mapping[str, float], counts: Mapping[str, float], exploration: float) -> dict[str, float]:
    """S_k / N_k + c √(log Σ_j N_j / N_k) by task; infinite for one that was never drawn.

    Args:
        sums: S_k, the discounted sum of what was gained by drawing task k.
        counts: N_k, the discounted number of times it was drawn.
        exploration: c, at least 0.

    Example:
        >>> upper_bounds({"a": 1.0, "b": 0.0}, {"a": 4.0, "b": 0.0}, 0.0)
        {'a': 0.25, 'b': inf}
    """
    spread = math.log(max(math.fsum(counts.values()), 1.0))
    return {task: sums[task] / n + exploration * math.sqrt(spread / n) if n > 0 else math.inf for task, n in counts.items()}


class ActiveSampling(Plugin):
    r"""Active sampling of tasks by their distance from a target.

    .. math:: p_k = \frac{\exp(m_k / τ)}{\sum_j \exp(m_j / τ)}, \qquad m_k = \frac{t_k - a_k}{t_k}

    with t_k the target of task k and a_k its performance on the **validation** rows of the present experience, never on test rows. It
    is measured before the first batch of every epoch, or of every phase and then whenever ``every`` updates have been made.

    a_k is the accuracy of a classification. For a regression, whose mean squared error e_k is to be small, a_k = 1 / e_k and the target
    is an error too: m_k = 1 - t_k / e_k.

    There are two published rules:

    * ``rule="softmax"`` (A5C): each row of a batch is drawn from these p_k;
    * ``rule="ucb"`` (UA4C): a bandit, whose arms are the tasks. All rows of a batch are of the task with the largest upper bound

      .. math:: \frac{S_k}{N_k} + c \sqrt{\frac{\log \sum_j N_j}{N_k}}, \qquad S_k \leftarrow γ S_k + \max(m_k, 0)\,[k\text{ drawn}],
          \quad N_k \leftarrow γ N_k + [k\text{ drawn}]

      with m_k from the last measurement. A task that was never drawn comes first, and a task that was long not drawn comes again,
      however near its target it is. S and N are kept by the names of tasks; those of a task that is absent rest.

    A row that carries several tasks trains all of them, whichever it was drawn for, and may stand in a batch once for each of them:
    where every row carries every task, as in `streamlearn.streams.multitask`, no sampling of rows can favour one (a weighting can).
    Tasks without a labelled row in the phase's data are not drawn; where no task has any, as in adaptation at test time, nothing is
    measured and they are drawn equally often.

    Args:
        targets: t_k by task, or one accuracy in (0, 1] for all. A regression must be named, with an error above 0.
        temperature: τ, above 0; the smaller, the more the furthest task is preferred. The gaps are at most 1. A task that cannot reach its
            target draws rows for ever, under either rule: give targets within reach, or a larger τ.
        every: updates between two measurements, at least 1; default once an epoch.
        rule: ``"softmax"`` or ``"ucb"``.
        exploration: c of the bandit, at least 0. The larger, the more equally tasks are drawn.
        discount: γ of the bandit, in (0, 1]: 1 never forgets, below it about 1 / (1 - γ) batches count.

    Raises:
        ConfigurationError: an experience with labelled training rows has no validation rows, or none of some task; or a target is
            missing or impossible.

    Cost: one forward pass over the validation rows at each measurement, none beyond that per step. Memory: 3 numbers for each task.

    Reference: Sharma et al., Learning to multi-task by active sampling, ICLR 2018, arXiv 1702.06053, algorithms A5C and UA4C; the
    discounted bound: Garivier & Moulines, On upper-confidence bound policies for switching bandit problems, ALT 2011, section 2.2.
    Deviations: the paper's a_k is the mean score of the last training episodes of a game; here it is a measurement on held-out rows,
    and the gap of an error is defined as above. The c of Garivier & Moulines, 2 √ξ with ξ > 1/2, is for gains that fill [0, 1] and
    would drown gaps of some per cent; the default is smaller.

    Example:
        >>> from streamlearn.plugins import ActiveSampling
        >>> ActiveSampling(targets={"left": 0.95, "right": 0.9})
        ActiveSampling(targets={'left': 0.95, 'right': 0.9})
    """

    info = PluginInfo(
        name="active_sampling",
        family="scheduling",
        summary="Draws most often the tasks furthest below their targets on validation rows.",
        reference="Sharma et al. 2018, ICLR, arXiv 1702.06053, algorithms A5C and UA4C",
        memory="3 numbers for each task",
        streams=frozenset({"multitask"}),
    )

    class Config(PluginConfig):
        """Options of `ActiveSampling`."""

        targets: float | dict[str, float] = 1.0
        temperature: Annotated[float, Tunable(0.01, 1.0, log=True)] = Field(0.05, gt=0, allow_inf_nan=False)
        every: int | None = Field(None, ge=1)
        rule: Literal["softmax", "ucb"] = "softmax"
        exploration: Annotated[float, Tunable(0.01, 2.0, log=True)] = Field(0.1, ge=0)
        discount: float = Field(0.99, gt=0, le=1)

        @field_validator("targets")
        @classmethod
        def _possible(cls, targets: float | dict[str, float]) -> float | dict[str, float]:
            if not isinstance(targets, dict) and not 0 < targets <= 1:
                raise ValueError("one target for all tasks is an accuracy in (0, 1]")
            if isinstance(targets, dict) and not all(0 < target < math.inf for target in targets.values()):
                raise ValueError("every target is a finite number above 0")
            return targets

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._gaps: dict[str, float] = {}
        self._place: list[int] = []  # experience, phase and epoch of the last measurement
        self._update = 0  # updates done at that moment
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}
        self._drawn: tuple[str, int] = ("", -1)  # the task that the bandit drew last, and for which update

    @hookimpl
    def provide_task_probabilities(self, step: Step) -> dict[str, float]:
        """From the last measurement; makes one when it is due. Asked twice for one batch, it answers the same."""
        run = step.run
        place = [run.clock.experience, run.clock.phase, run.clock.epoch if self.config.every is None else 0]
        waited = run.clock.update - self._update
        if place != self._place or (self.config.every is not None and waited >= self.config.every):
            self._gaps, self._place, self._update = self._measured(run), place, run.clock.update
        if self.config.rule == "softmax":
            return gap_probabilities(self._gaps, run.value(self, "temperature"))
        if self._drawn[1] != run.clock.update:
            self._drawn = (self._draw(run.value(self, "exploration")), run.clock.update)
        return {self._drawn[0]: 1.0}

    def _draw(self, exploration: float) -> str:
        """The task with the largest bound, which has gained its gap thereby."""
        sums, counts = ({task: known.get(task, 0.0) for task in self._gaps} for known in (self._sums, self._counts))
        bounds = upper_bounds(sums, counts, exploration)
        drawn = max(bounds, key=bounds.__getitem__)
        for task, gap in self._gaps.items():
            mine = float(task == drawn)
            self._sums[task] = self.config.discount * sums[task] + mine * max(gap, 0.0)
            self._counts[task] = self.config.discount * counts[task] + mine
        return drawn

    def _measured(self, run: Run) -> dict[str, float]:
        """The gap of each task that may be drawn."""
        assert run.phase is not None
        tasks = labelled_tasks(run.phase.data)
        if not tasks or (run.experience is not None and "train" not in run.experience.data):  # adaptation: nothing is measured
            return {task.name: 0.0 for part in run.phase.data.parts() for task in part.tasks if len(part)}
        self._refuse_no_validation(run)
        measured = run.measure("validation")
        return {name: self._gap(task, measured, run) for name, task in tasks.items()}

    def _gap(self, task: Task, measured: Mapping[str, float], run: Run) -> float:
        name, targets, error = task.name, self.config.targets, task.kind == "regression"
        where = f"plugin {self.name}, experience {run.clock.experience}"
        if name not in measured:
            raise ConfigurationError(f"{where}: no validation row is labelled for task {name!r}, which is trained: keep some for it")
        if isinstance(targets, dict) and name not in targets:
            raise ConfigurationError(f"{where}: targets has none for task {name!r} (it has: {', '.join(sorted(targets))}): add one")
        if not isinstance(targets, dict) and error:
            raise ConfigurationError(
                f"{where}: targets is {targets}, an accuracy, but task {name!r} is a regression: give targets by task, its own as an error"
            )
        target = float(targets[name] if isinstance(targets, dict) else targets)
        if not error and target > 1:
            raise ConfigurationError(f"{where}: the target of task {name!r} is {target}, but it is an accuracy: give a number in (0, 1]")
        return relative_gap(measured[name], target, error=error)

    def _refuse_no_validation(self, run: Run) -> None:
        experience = run.experience
        if experience is not None and not len(experience.data.get("validation", ())):
            raise ConfigurationError(
                f"plugin {self.name}: experience {experience.index} has no validation rows to measure tasks on (its roles: "
                f"{', '.join(experience.data)}): keep some from training, such as validation=0.1 of streams.multitask"
            )

    def state_dict(self) -> dict[str, Any]:
        """The last measurement and when it was made, and what the bandit knows."""
        return {
            "gaps": dict(self._gaps),
            "place": list(self._place),
            "update": self._update,
            "sums": dict(self._sums),
            "counts": dict(self._counts),
            "drawn": list(self._drawn),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._gaps, self._sums, self._counts = dict(state["gaps"]), dict(state["sums"]), dict(state["counts"])
        self._place, self._update = list(state["place"]), int(state["update"])
        self._drawn = (str(state["drawn"][0]), int(state["drawn"][1]))
