"""Model-agnostic meta-learning (MAML): train the weights from which a few gradient steps lead far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.objective import Objective, minimised
from streamlearn.core.phases import ALL, select_names
from streamlearn.core.plugin import SUPERVISED, Passes, Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from streamlearn.errors import ConfigurationError, TrainingError

if TYPE_CHECKING:
    from streamlearn.core.evaluation import Evaluation
    from streamlearn.core.forward import Forward
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Batch

__all__ = ["MAML", "adapted"]

EVERYTHING = "*"
"""The value of ``query`` that asks on all rows of an episode."""


def adapted(
    loss: Callable[[Mapping[str, Tensor]], Tensor | None], parameters: Mapping[str, Tensor], *, steps: int, rate: float, order: int = 2
) -> dict[str, Tensor]:
    """``steps`` times θ ← θ - α ∇loss(θ), by name; the result carries a graph to ``parameters``.

    Args:
        loss: a scalar, a function of the parameters that move; ``None``, or a constant, stops.
        parameters: θ, those that move.
        steps: at least 0.
        rate: α.
        order: 2 differentiates through the steps; 1 takes their gradients as constants.

    Example:
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> fast = adapted(lambda p: p["w"] ** 2, {"w": w}, steps=2, rate=0.25)["w"]  # each step halves w
        >>> fast.item(), torch.autograd.grad(fast, w)[0].item()
        (0.25, 0.25)
    """
    fast = dict(parameters)
    for _ in range(steps):
        total = loss(fast)
        if total is None or not total.requires_grad:
            break
        found = torch.autograd.grad(total, list(fast.values()), create_graph=order == 2, allow_unused=True)
        pairs = zip(fast.items(), found, strict=True)
        fast = {name: value if gradient is None else value - rate * gradient for (name, value), gradient in pairs}
    return fast


class MAML(Plugin):
    r"""Model-agnostic meta-learning.

    .. math:: φ_e = θ - α \, ∇_θ (s + P)(θ; support_e), \qquad (L, P)(θ) = \frac1E \sum_{e=1}^E (L, P)(φ_e; query_e)

    with the gradient step repeated ``steps`` times (Finn et al. 2017, algorithm 2). Both levels take the whole objective with every
    plugin's losses and terms, so that EWC, distillation or a weighting act in the look-ahead as well; the rows L that come out are
    weighted, combined and projected as those of any step. The episodes e of a batch are its domains. A batch without ``support``
    rows is one episode that learns from, and is asked on, all its rows.

    In an evaluation the model takes ``evaluation_steps`` steps on the labelled ``support`` rows of each episode, from θ and on the
    task loss alone, predicts, and forgets them again.

    Args:
        steps: inner steps, at least 0. With 0 it is the plain step on all rows: together with ``evaluation_steps`` that is a network
            trained on all tasks and then fine-tuned, the usual baseline.
        rate: α, above 0.
        order: 2 differentiates through the inner steps; 1 takes their gradients as constants (FOMAML, section 5.2).
        plastic: patterns of the names of the parameters that move in inner steps. ``("heads.*",)`` is ANIL (Raghu et al. 2020).
        evaluation_steps: inner steps in an evaluation, at least 0; default ``steps``.
        support: the role of the rows that inner steps learn from.
        query: the role of the rows of the outer objective; ``"*"`` takes all rows of the episode. With ``support="train"`` and replay
            that is C-MAML (Gupta et al. 2020): look ahead on the incoming rows, be asked on these and the memory's.

    Raises:
        ConfigurationError: ``plastic`` matches no parameter.
        TrainingError: an episode has support but no query rows or the reverse, or the batch holds rows of yet another role.

    Cost: ``steps`` evaluations of the objective on the support rows more; order 2 differentiates through them, which about doubles
    their price. Episodes are gone through one by one. Memory: the graphs of all inner steps of a batch at order 2.

    Reference: Finn, Abbeel & Levine, Model-agnostic meta-learning for fast adaptation of deep networks, ICML 2017, eq. 1 and
    algorithm 2. Deviations: BatchNorm's running statistics move once a step, by the first pass over the support rows (over the whole
    batch, in one pass more, when it has several episodes), and an evaluation normalises with them, not with those of the query rows.
    The weighting of the outer rows is that at θ.

    Example:
        >>> from streamlearn.plugins import MAML
        >>> MAML(steps=5, rate=0.01, order=1)
        MAML(order=1, rate=0.01, steps=5)
    """

    info = PluginInfo(
        name="maml",
        family="meta",
        summary="Trains the weights from which a few gradient steps on a new task lead far.",
        reference="Finn et al. 2017, ICML, eq. 1 and algorithm 2; plastic heads: Raghu et al. 2020, ICLR; C-MAML: Gupta et al. 2020",
        provides=frozenset({"inner-loop!", "look-ahead"}),
        passes=lambda plugin: Passes(look_ahead=plugin.config.steps),
        memory="the graphs of the inner steps",
        strength="steps",
        streams=SUPERVISED | {"episodes"},
    )

    class Config(PluginConfig):
        """Options of `MAML`."""

        steps: int = Field(1, ge=0)
        rate: Annotated[float, Tunable(1e-3, 1.0, log=True)] = Field(0.01, gt=0)
        order: Literal[1, 2] = 2
        plastic: tuple[str, ...] = ALL
        evaluation_steps: int | None = Field(None, ge=0)
        support: str = Field("support", min_length=1)
        query: str = Field("query", min_length=1)

    def _plastic(self, run: Run) -> frozenset[str]:
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
        if self.config.steps == 0:
            return objective(step)
        views = self._episodes(step)
        if len(views) > 1 and step.run.has_buffers:
            with torch.no_grad():
                _ = step.at().outputs.features  # views on the rows of an episode move no statistics: all rows together do, once
        support, query = self._roles(step.batch)
        return Objective.merge([objective(self._ahead(view, objective, support).at(rows=query)) for view in views])

    def _roles(self, batch: Batch) -> tuple[str | None, str | None]:
        """The roles of the inner and outer rows, ``None`` for all rows."""
        if self.config.support not in batch.roles:
            return None, None
        return self.config.support, None if self.config.query == EVERYTHING else self.config.query

    def _episodes(self, step: Step) -> list[Step]:
        """A view for each episode of the batch."""
        batch, support = step.batch, self.config.support
        if support not in batch.roles:
            if self.config.query in batch.roles:
                self._check("", batch)
            return [step]
        bound = [s for s in batch.segments if self.config.query != EVERYTHING or s.role == support]
        if len({segment.domain for segment in bound}) == 1:
            self._check("", batch)
            return [step]
        episodes = batch.by_domain()
        for domain, rows in episodes.items():
            self._check(f" {domain!r}", rows)
        return [step.at(batch=rows) for rows in episodes.values()]

    def _check(self, episode: str, batch: Batch) -> None:
        """Refuse what would be left out in silence."""
        support, query = self.config.support, self.config.query
        missing = [role for role in (support, query) if role not in batch.roles and role != EVERYTHING]
        if missing:
            raise TrainingError(
                f"plugin {self.name}: an episode{episode} has no rows of role {missing[0]!r} in a batch, it has {', '.join(batch.roles)}: "
                "name the roles that the stream has as options support and query"
            )
        others = [role for role in batch.roles if role not in (support, query)]
        if others and query != EVERYTHING:
            raise TrainingError(
                f"plugin {self.name}: rows of role {others[0]!r} would be neither learnt from nor asked on, since support is {support!r} "
                f"and query {query!r}: give query='*' for all rows of an episode, or remove what adds them"
            )

    def _ahead(self, view: Step, objective: Callable[[Step], Objective], support: str | None) -> Step:
        """``view`` after the inner steps."""
        config, run = self.config, view.run
        names = self._plastic(run)
        movable = {name: value for name, value in view.parameters.items() if name in names and value.requires_grad}

        def loss(fast: Mapping[str, Tensor]) -> Tensor | None:
            there = view.at(fast, rows=support)
            return minimised(objective(there), there)

        return view.at(adapted(loss, movable, steps=config.steps, rate=run.value(self, "rate"), order=config.order))

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
        names = self._plastic(run) & run.model_parameter_names
        start = {name: value.detach().requires_grad_() for name, value in run.parameters().items() if name in names}

        def loss(fast: Mapping[str, Tensor]) -> Tensor | None:
            return _task_loss(evaluation.at(fast, support), support, run)

        with torch.enable_grad():
            fast = adapted(loss, start, steps=steps, rate=run.value(self, "rate"), order=1)
        outputs = evaluation.at(fast, episode)
        return {task: outputs[task].detach() for task in episode.tasks if outputs.serves(task)}


def _task_loss(outputs: Forward, batch: Batch, run: Run) -> Tensor | None:
    """The engine's default objective: the loss summed over labels, for each labelled row."""
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
