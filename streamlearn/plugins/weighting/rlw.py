"""RLW: the weights of the tasks are drawn at random, anew in every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.randomness import generator
from streamlearn.core.task_weights import task_of, weighted_sum

if TYPE_CHECKING:
    from streamlearn.core.step import Step

__all__ = ["RLW", "Distribution", "random_weights"]

Distribution = Literal["normal", "uniform", "random_normal", "dirichlet", "bernoulli", "constrained_bernoulli"]
"""The distributions of the paper."""


def random_weights(
    distribution: Distribution, draws: Mapping[str, Generator], moments: Mapping[str, tuple[float, float]] | None = None
) -> dict[str, float]:
    """Weights by task that sum to 1, at least 0 each.

    Args:
        distribution: one of those that `RLW` explains.
        draws: by task, at least one, the generator from which its part is drawn: what one task draws moves no other's draw.
        moments: for ``"random_normal"``, mean and standard deviation by task.

    Example:
        >>> draws = {task: torch.Generator().manual_seed(seed) for seed, task in enumerate("abc")}
        >>> found = random_weights("normal", draws)
        >>> len(found), round(sum(found.values()), 9), min(found.values()) > 0
        (3, 1.0, True)
    """
    if distribution == "bernoulli":
        return _shares(_coins(draws))
    drawn = {task: _SCORES[distribution](random) for task, random in draws.items()}
    if distribution == "constrained_bernoulli":
        chosen = max(drawn, key=lambda task: drawn[task])
        return {task: float(task == chosen) for task in drawn}
    if distribution == "dirichlet":
        return _shares(drawn)
    if distribution == "random_normal":
        given = moments or {}
        drawn = {task: given[task][0] + given[task][1] * score for task, score in drawn.items()}
    top = max(drawn.values())
    return _shares({task: math.exp(score - top) for task, score in drawn.items()})


def _shares(parts: Mapping[str, float]) -> dict[str, float]:
    total = math.fsum(parts.values())
    return {task: part / total for task, part in parts.items()}


def _normal(random: Generator) -> float:
    return torch.randn((), generator=random, dtype=torch.float64).item()


def _uniform(random: Generator) -> float:
    return torch.rand((), generator=random, dtype=torch.float64).item()


def _exponential(random: Generator) -> float:
    # divided by their sum, exponential draws have the Dirichlet distribution with α = 1
    return -math.log1p(-_uniform(random))


_SCORES: dict[str, Callable[[Generator], float]] = {
    "normal": _normal,
    "random_normal": _normal,
    "uniform": _uniform,
    "constrained_bernoulli": _uniform,
    "dirichlet": _exponential,
}


def _coins(draws: Mapping[str, Generator]) -> dict[str, float]:
    """A fair coin for each task, tossed again by all while no one has a 1."""
    while True:
        tossed = {task: float(_uniform(random) < 0.5) for task, random in draws.items()}
        if any(tossed.values()):
            return tossed


class RLW(Plugin):
    r"""Random loss weighting.

    .. math:: s(L) = \sum_k w_k L_k, \qquad w = \mathrm{softmax}(z), \qquad z_k \sim \mathcal N(0, 1)

    drawn anew in every step (Lin et al. 2022): a baseline that any clever weighting should beat. In the mean over the steps all tasks
    weigh the same, but for ``random_normal``, which prefers some tasks for a whole run.

    ========================= ===========================================================================================
    ``distribution``          w
    ========================= ===========================================================================================
    ``normal``                softmax of a standard normal z_k
    ``uniform``               softmax of z_k uniform in [0, 1): all weights are within a factor e of each other
    ``random_normal``         softmax of a normal z_k whose mean and deviation are drawn from [0, 1) once a run for each task
    ``dirichlet``             uniform on the simplex, the Dirichlet distribution with α = 1
    ``bernoulli``             a fair coin for each task, not all 0, divided by their sum
    ``constrained_bernoulli`` 1 for one task, 0 for all others
    ========================= ===========================================================================================

    A draw belongs to a *task* and is a function of the seed, the update and its name: the objective may be evaluated several times in
    a step (look-aheads, micro-batches) and every time meets the same z_k, and a task that comes or goes moves no other's. The weights
    sum to 1 over the tasks of the batch; rows that are parts of one task (``"digit@photo"``, ``"digit/memory"``) each get its weight.
    A batch with one task is trained with weight 1.

    A task of weight 0 moves nothing in that step, not even its head through momentum, and is no row for a combiner.

    Args:
        distribution: from the table.
        total: what the weights sum to: ``"one"``, as in the paper, so that the gradient is K times smaller than that of the plain sum;
            or ``"tasks"``, K, as in Kurin et al. 2022, which keeps the learning rate of the plain sum.

    Raises:
        TrainingError: a row belongs to no task.

    Cost: no additional pass. Memory: none.

    Reference: Lin, Ye, Zhang & Tsang, Reasonable effectiveness of random weighting: a litmus test for multi-task learning, TMLR 2022,
    arXiv 2111.10603. The distributions are those of the code of its first version. Deviations: that code passes Dirichlet weights
    through a softmax once more, which leaves them almost equal, and lets Bernoulli ones be 0 or 1 without dividing by their sum.

    Example:
        >>> from streamlearn.plugins import RLW
        >>> RLW(distribution="dirichlet")
        RLW(distribution='dirichlet')
    """

    info = PluginInfo(
        name="rlw",
        family="weighting",
        summary="Weighs tasks at random, anew in every step: the baseline for every other weighting.",
        reference="Lin et al. 2022, TMLR, arXiv 2111.10603",
    )

    class Config(PluginConfig):
        """Options of `RLW`."""

        distribution: Distribution = "normal"
        total: Literal["one", "tasks"] = "one"

    @hookimpl
    def provide_weighting(self, losses: Mapping[str, Tensor], step: Step) -> Tensor:
        """s(L)."""
        tasks = {row: task_of(row, step, self.name) for row in losses}
        names = dict.fromkeys(tasks.values())
        draws = {task: step.run.generator(self, f"weight of {task}") for task in names}
        moments = {task: self._moments(task, step) for task in names} if self.config.distribution == "random_normal" else None
        weights = random_weights(self.config.distribution, draws, moments)
        scale = 1 if self.config.total == "one" else len(names)
        return weighted_sum(losses, {row: scale * weights[task] for row, task in tasks.items()})

    def _moments(self, task: str, step: Step) -> tuple[float, float]:
        """Mean and deviation of a task's normal distribution: the same in every step of a run."""
        random = generator(step.run.seed, "plugin", self.name, f"moments of {task}")
        return _uniform(random), _uniform(random)
