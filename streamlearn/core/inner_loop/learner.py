"""What plugins share that take steps on each episode of a batch and are asked elsewhere on it: MAML and its kin."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, Self

import pydantic
import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.inner_loop.estimators import Estimator, Gradient, Implicit, adapt
from streamlearn.core.inner_loop.executors import Executor, over_episodes
from streamlearn.core.inner_loop.rules import Adam, GradientDescent, InnerRule, Momentum, Rates
from streamlearn.core.objective import Objective, minimised
from streamlearn.core.phases import ALL, select_names
from streamlearn.core.plugin import Passes, Plugin, PluginConfig, hookimpl
from streamlearn.errors import ConfigurationError, TrainingError

if TYPE_CHECKING:
    from streamlearn.core.evaluation import Evaluation
    from streamlearn.core.forward import Forward
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Batch

__all__ = ["EVERYTHING", "EpisodeLearner", "EpisodeOptions", "UnrolledLearner", "UnrolledOptions", "task_loss"]

EVERYTHING = "*"
"""The value of ``query`` that asks on all rows of an episode."""
RULES: Mapping[str, InnerRule] = {"sgd": GradientDescent(), "momentum": Momentum(), "nesterov": Momentum(nesterov=True), "adam": Adam()}


class EpisodeOptions(PluginConfig):
    """Options of every plugin that learns on episodes."""

    steps: int = Field(1, ge=0)
    rule: Literal["sgd", "momentum", "nesterov", "adam"] = "sgd"
    plastic: tuple[str, ...] = ALL
    evaluation_steps: int | None = Field(None, ge=0)
    support: str = Field("support", min_length=1)
    query: str = Field("query", min_length=1)


class UnrolledOptions(EpisodeOptions):
    """Options where the gradient goes through the steps themselves."""

    order: Literal[1, 2] = 2
    recompute: bool = False
    executor: Executor = "auto"
    chunk: int | None = Field(None, ge=1)

    @staticmethod
    def passes(plugin: UnrolledLearner) -> Passes:
        """Each inner step evaluates the objective; steps that are computed anew do so twice."""
        config = plugin.config
        return Passes(look_ahead=config.steps * (2 if config.recompute and config.order == 2 else 1))

    @pydantic.model_validator(mode="after")
    def _one_by_one(self) -> Self:
        if self.recompute and self.executor == "vmap":
            raise ValueError("recompute=True goes through episodes one by one: leave out executor='vmap'")
        return self


class EpisodeLearner(Plugin):
    """Takes inner steps on the support rows of each episode, and is asked on its query rows.

    A subclass says at which rates, and how a gradient flows through the steps.
    """

    config: EpisodeOptions

    @abstractmethod
    def rates(self, run: Run, parameters: Mapping[str, Tensor]) -> Rates:
        """α, read from ``parameters`` where it is learnt."""

    @abstractmethod
    def estimator(self) -> Estimator:
        """How the gradient flows through the inner steps."""

    def implicit(self, run: Run) -> Implicit | None:
        """For the estimator ``"implicit"``, how."""
        return None

    def executor(self) -> tuple[Executor, int | None]:
        """How to go through episodes, and how many at once."""
        return "loop", None

    def plastic(self, run: Run) -> frozenset[str]:
        """Names of the parameters that move in inner steps."""
        if not select_names(run.parameters(), self.config.plastic):
            raise ConfigurationError(
                f"plugin {self.name}: no parameter matches plastic={self.config.plastic!r}; there are {', '.join(run.parameters())}"
            )
        return select_names(run.optimization.trainable_names(), self.config.plastic)

    # ------------------------------------------------------------------ training

    @hookimpl
    def around_objective(self, objective: Callable[[Step], Objective], step: Step) -> Objective:
        """The mean over episodes of the objective on query rows, at the weights adapted to support rows."""
        config, batch = self.config, step.batch
        if config.steps == 0:
            return objective(step)
        several = self._has_several_episodes(batch)
        support, query = (config.support, config.query) if config.support in batch.roles else (None, EVERYTHING)
        names = self.plastic(step.run)

        def look_ahead(view: Step, gradient: Gradient | None) -> Step:
            return self._ahead(view, objective, support, names, gradient).at(rows=None if query == EVERYTHING else query)

        if not several:
            return objective(look_ahead(step, None))
        if step.run.has_buffers:
            with torch.no_grad():
                _ = step.at().outputs.features  # views on the rows of an episode move no statistics: all rows together do, once
        executor, chunk = self.executor()
        return over_episodes(objective, step, look_ahead, executor=executor, chunk=chunk)

    def _has_several_episodes(self, batch: Batch) -> bool:
        """Whether the batch has more than one; what would be left out in silence is refused."""
        support, query = self.config.support, self.config.query
        if support not in batch.roles:
            if query in batch.roles:
                self._check("", batch.roles)
            return False
        bound = [s for s in batch.segments if query != EVERYTHING or s.role == support]
        if len({segment.domain for segment in bound}) == 1:
            self._check("", batch.roles)
            return False
        roles: dict[str, dict[str, None]] = {}
        for segment in batch.segments:
            roles.setdefault(segment.domain, {})[segment.role] = None
        for domain, found in roles.items():
            self._check(f" {domain!r}", tuple(found))
        return True

    def _check(self, episode: str, roles: tuple[str, ...]) -> None:
        support, query = self.config.support, self.config.query
        missing = [role for role in (support, query) if role not in roles and role != EVERYTHING]
        if missing:
            raise TrainingError(
                f"plugin {self.name}: an episode{episode} has no rows of role {missing[0]!r} in a batch, it has {', '.join(roles)}: "
                "name the roles that the stream has as options support and query"
            )
        others = [role for role in roles if role not in (support, query)]
        if others and query != EVERYTHING:
            raise TrainingError(
                f"plugin {self.name}: rows of role {others[0]!r} would be neither learnt from nor asked on, since support is {support!r} "
                f"and query {query!r}: give query='*' for all rows of an episode, or remove what adds them"
            )

    def _ahead(
        self, view: Step, objective: Callable[[Step], Objective], support: str | None, names: frozenset[str], gradient: Gradient | None
    ) -> Step:
        """``view`` after the inner steps, in which the parameters called ``names`` move."""
        config, run = self.config, view.run
        learns = {name: value for name, value in view.parameters.items() if value.requires_grad}
        movable = {name: value for name, value in learns.items() if name in names}

        def loss(fast: Mapping[str, Tensor], fixed: Mapping[str, Tensor]) -> Tensor | None:
            there = view.at({**fixed, **fast}, rows=support)
            return minimised(objective(there), there)

        return view.at(
            adapt(
                loss,
                movable,
                steps=config.steps,
                rates=self.rates(run, view.parameters),
                rule=RULES[config.rule],
                estimator=self.estimator(),
                fixed={name: value for name, value in learns.items() if name not in names},
                implicit=self.implicit(run),
                gradient=gradient,
            )
        )

    # ------------------------------------------------------------------ evaluation

    @hookimpl
    def provide_predictions(self, batch: Batch, evaluation: Evaluation) -> Mapping[str, Tensor]:
        """Outputs of the model adapted to the support rows of each episode; its own on rows that have none."""
        steps = self.config.steps if self.config.evaluation_steps is None else self.config.evaluation_steps
        own = evaluation.at({}, batch)
        if steps == 0 or self.config.support not in batch.roles:
            return own
        found: dict[str, Tensor] = {}
        for domain, episode in batch.by_domain().items():
            outputs = self._adapted_outputs(episode, evaluation, steps)
            for task in outputs if self.config.support in episode.roles else ():
                if task not in found:
                    found[task] = own[task].detach().clone()
                _put_back(found[task], outputs[task], batch, domain)
        return found

    def _adapted_outputs(self, episode: Batch, evaluation: Evaluation, steps: int) -> dict[str, Tensor]:
        """Outputs by task on the rows of one episode."""
        run, support = evaluation.run, episode.select(self.config.support)
        names = self.plastic(run) & run.model_parameter_names
        parameters = {name: value.detach() for name, value in run.parameters().items()}

        def loss(fast: Mapping[str, Tensor], fixed: Mapping[str, Tensor]) -> Tensor | None:
            return task_loss(evaluation.at(fast, support), support, run)

        fast = adapt(
            loss,
            {name: value for name, value in parameters.items() if name in names},
            steps=steps,
            rates=self.rates(run, parameters),
            rule=RULES[self.config.rule],
            estimator="implicit" if self.estimator() == "implicit" else "first-order",
            implicit=self.implicit(run),
        )
        outputs = evaluation.at(fast, episode)
        return {task: outputs[task].detach() for task in episode.tasks if outputs.serves(task)}


class UnrolledLearner(EpisodeLearner):
    """The gradient goes through the inner steps, or takes what they took for constants."""

    config: UnrolledOptions

    def estimator(self) -> Estimator:
        """As ``order`` and ``recompute`` say."""
        return "first-order" if self.config.order == 1 else "adjoint" if self.config.recompute else "unrolled"

    def executor(self) -> tuple[Executor, int | None]:
        """As asked; steps that are computed anew are gone through one by one."""
        config = self.config
        return ("loop" if config.recompute and config.order == 2 else config.executor), config.chunk


def task_loss(outputs: Forward, batch: Batch, run: Run) -> Tensor | None:
    """The engine's default objective: the loss summed over labels, for each labelled row; ``None`` without any."""
    tasks = {task.name: task for task in run.stream.tasks} | run.tasks  # the first evaluation comes before any task has been met
    parts = []
    for task, target in batch.targets.items():
        known = batch.labelled_rows(task)
        if task in tasks and outputs.serves(task) and bool(known.any()):
            parts.append(tasks[task].loss(outputs[task][known], target[known], mean=False).sum())
    return sum(parts[1:], parts[0]) / batch.count_labelled() if parts else None


def _put_back(into: Tensor, rows: Tensor, batch: Batch, domain: str) -> None:
    """Write the rows of one episode, as `Batch.by_domain` ordered them, to their places in the batch."""
    start = 0
    for segment in batch.segments:
        if segment.domain == domain:
            stop = start + segment.stop - segment.start
            into[segment.rows] = rows[start:stop]
            start = stop
