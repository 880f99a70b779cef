"""GradNorm: learned weights bring the gradients of all tasks to sizes that tell how far each has come."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.gradient_norms import chosen_layer, gradient_norm
from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from streamlearn.core.task_weights import kept_number, learned_number, learned_numbers, tasks_of_rows

if TYPE_CHECKING:
    from streamlearn.core.optimization import Trainable
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Experience

__all__ = ["GradNorm", "training_rates", "weight_slopes"]

_LEAST = 1e-6
"""What a weight is at least: below 0 it would train its task to get worse."""


def training_rates(losses: Sequence[Tensor], first: Sequence[float]) -> Tensor:
    """r_k = L̃_k / mean(L̃), with L̃_k = L_k / L_k(0): above 1 for a task that has come less far than the others, ``(tasks,)``.

    A task whose first loss was not above 0 counts as one that stands where it began.

    Args:
        losses: L, at least one.
        first: L(0).

    Example:
        >>> training_rates([torch.tensor(1.0), torch.tensor(9.0)], [2.0, 6.0])
        tensor([0.5000, 1.5000])
    """
    ratios = torch.stack([loss.detach() / start if start > 0 else torch.ones_like(loss) for loss, start in zip(losses, first, strict=True)])
    mean = ratios.mean()
    return torch.where(mean > 0, ratios / mean, torch.ones_like(ratios)).clamp(min=0)


def weight_slopes(weights: Tensor, norms: Tensor, rates: Tensor, alpha: float) -> Tensor:
    """∂/∂w_k of Σ_k |w_k n_k - mean(w n) r_k^α| with the second part of each difference constant: sign(...) n_k, ``(tasks,)``.

    Args:
        weights: w, above 0.
        norms: n_k = ‖∇_W L_k‖.
        rates: r, as `training_rates` gives them.
        alpha: α, at least 0.

    Example:
        >>> weight_slopes(torch.ones(2), torch.tensor([1.0, 3.0]), torch.ones(2), alpha=1.5)
        tensor([-1.,  3.])
    """
    sizes = weights * norms
    return torch.sign(sizes - sizes.mean() * rates**alpha) * norms


class GradNorm(Plugin):
    r"""Gradient normalisation.

    .. math:: s(L) = \sum_k w_k L_k, \qquad
        w \leftarrow \arg\min_w \sum_k \Big| G_k - \bar G\, r_k^α \Big| \text{ by one step}, \qquad
        G_k = \| w_k \nabla_W L_k \|, \qquad r_k = \frac{L_k / L_k(0)}{\mathrm{mean}_j\, L_j / L_j(0)}

    with the mean norm and r constant, so that ∂/∂w_k = sign(G_k - \bar G r_k^α) ‖∇_W L_k‖, and with Σ_k w_k = K restored after each
    step (Chen et al. 2018, eqs. 1-2 and algorithm 1). Gradients of all tasks come to one size; the larger α, the more a task gets
    whose loss has fallen less than the others', from its first value L_k(0) on.

    A weight belongs to a *task*. Rows that are parts of one (``"digit@photo"``, ``"digit/memory"``) share it: the gradient of the task
    is that of their sum, its loss their mean. A task that a batch does not have is left out of every mean, and its weight stays where
    it is; a step never changes the sum of the weights of those that it has. A new task enters with weight 1, and those beside it
    are scaled to a mean of 1. L_k(0) belongs to the task, and is its first loss whenever it arrives: what is relearned later is
    measured by that. With one task s is its loss.

    The norms are taken where the objective is: under SAM at the ascended parameters. A task whose loss does not depend on W, and
    every task where nothing is shared, keeps its weight. With micro-batches the slopes are the mean over them, of norms of
    their gradients. Beside a combiner the rows are w_k ∇L_k. The slopes are kept out of the gradients that later plugins see, such as
    `Clipping`; SAM counts them in ‖g‖.

    Args:
        alpha: α, at least 0; the paper uses 1.5 for tasks that differ, 0.12 for its toy of alike ones. 0 brings all gradients to one
            size whatever the losses.
        learning_rate: of the weights, by an Adam of their own. Above 0. They are never decayed.
        layer: where W is: ``"last"``, the last of the shared layers that is trained (in the order in which they were registered, which
            says nothing where experts stand side by side); ``"all"`` shared parameters; or a pattern of their names,
            ``"encoder.2.*"``.
        initial_loss: ``"first"`` takes L_k(0) from the first update of the task; ``"uniform"`` takes the log of the number of classes
            for classification, as the paper does where the first loss depends much on how weights were drawn.
        weights: ``"direct"`` learns w, as published, and keeps it above 0: a right weight far below ``learning_rate`` is overshot again and
            again. ``"softmax"`` learns v with w = K softmax(v), as LibMTL does, which suits losses whose scales are far apart.

    Raises:
        ConfigurationError: ``layer`` is a pattern that matches no shared parameter.
        TrainingError: a row belongs to no task.

    Cost: for each task of a batch one backward pass as far as W; beside a network of some depth little for ``"last"``, a whole
    backward pass for ``"all"``. Memory: 4 numbers for each task.

    Reference: Chen, Badrinarayanan, Lee & Rabinovich, GradNorm: gradient normalization for adaptive loss balancing in deep multitask
    networks, ICML 2018, section 3 and algorithm 1. Deviations: a weight is at least 1e-6; tasks may come and go, as said above; the
    weights are restored to their sum whatever it is. LibMTL takes the norms over all shared parameters, L_k(0) from the mean of
    the first epoch, and weights of 1 until that has ended.

    Example:
        >>> from streamlearn.plugins import GradNorm
        >>> GradNorm(alpha=0.12)
        GradNorm(alpha=0.12)
    """

    info = PluginInfo(
        name="gradnorm",
        family="weighting",
        summary="Learns weights under which the gradients of all tasks have like sizes, larger for those that lag behind.",
        reference="Chen et al. 2018, ICML, eqs. 1-2 and algorithm 1",
        before=frozenset({"clipping"}),
        memory="4 numbers for each task",
    )

    class Config(PluginConfig):
        """Options of `GradNorm`."""

        alpha: Annotated[float, Tunable(0.0, 3.0)] = Field(1.5, ge=0, allow_inf_nan=False)
        learning_rate: Annotated[float, Tunable(1e-3, 0.1, log=True)] = Field(0.025, gt=0, allow_inf_nan=False)
        layer: str = Field("last", min_length=1)
        initial_loss: Literal["first", "uniform"] = "first"
        weights: Literal["direct", "softmax"] = "direct"

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._first: dict[str, float] = {}
        self._slopes: dict[str, Tensor] = {}  # by name of the number, on its way through a step

    @property
    def _is_direct(self) -> bool:
        return bool(self.config.weights == "direct")

    @hookimpl
    def collect_modules(self, run: Run) -> dict[str, Trainable]:
        """A weight, or its logarithm, for every task met so far."""
        adam = partial(torch.optim.Adam, lr=run.value(self, "learning_rate"))
        return learned_numbers(run, 1.0 if self._is_direct else 0.0, None, adam)

    @hookimpl
    def before_experience(self, experience: Experience, run: Run) -> None:
        """The tasks that have been trained come to a mean of 1 before new ones enter with it; all ratios stay."""
        trained = {task: number for task in self._first if (number := kept_number(task, run, self.name)) is not None}
        here = [trained[task.name] for task in experience.tasks if task.name in trained]
        if here:
            self._rescale(list(trained.values()), self._total(here), float(len(here)))

    def _total(self, numbers: Sequence[Tensor]) -> Tensor:
        values = torch.stack([number.detach() for number in numbers])
        return values.sum() if self._is_direct else values.exp().sum()

    @torch.no_grad()
    def _rescale(self, numbers: Sequence[Tensor], total: Tensor, wanted: Tensor | float) -> None:
        """Multiply the weights of ``numbers`` by wanted / total."""
        for number in numbers:
            number.copy_(number * (wanted / total) if self._is_direct else number + torch.log(wanted / total))

    # ------------------------------------------------------------------ the step

    @hookimpl
    def provide_weighting(self, losses: Mapping[str, Tensor], step: Step) -> Tensor:
        """s(L), with a part whose value is 0 and whose derivative by the weights are the slopes."""
        by_task = tasks_of_rows(losses, step, self.name)
        weights = self._weights({task: learned_number(task, step, self.name) for task in by_task})
        parts = [weights[task].detach() * loss for task, rows in by_task.items() for loss in rows]
        total = sum(parts[1:], parts[0])
        if len(by_task) < 2 or not torch.is_grad_enabled():
            return total
        wanted = self._where(step)
        norms = {task: norm for task, rows in by_task.items() if (norm := gradient_norm(sum(rows[1:], rows[0]), wanted)) is not None}
        if len(norms) < 2:
            return total
        means = [torch.stack(by_task[task]).mean() for task in norms]
        rates = training_rates(means, [self._starts_at(task, mean, step) for task, mean in zip(norms, means, strict=True)])
        mine = torch.stack([weights[task] for task in norms])
        slopes = weight_slopes(mine.detach(), torch.stack(list(norms.values())), rates, step.run.value(self, "alpha"))
        return total + (slopes * (mine - mine.detach())).sum()

    def _weights(self, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._is_direct:
            return dict(numbers)
        values = torch.stack(list(numbers.values()))
        return dict(zip(numbers, values.detach().exp().sum() * torch.softmax(values, 0), strict=True))

    def _where(self, step: Step) -> list[Tensor]:
        """W at the parameters of ``step``."""
        shared = step.run.model.shared_names()
        parameters = {name: step.parameters[name] for name in step.run.parameters() if name in shared}
        return [parameters[name] for name in chosen_layer(parameters, self.config.layer, self.name)]

    def _starts_at(self, task: str, loss: Tensor, step: Step) -> float:
        """L(0)."""
        known = step.run.tasks[task]
        if self.config.initial_loss == "uniform" and known.kind == "classification" and known.size > 1:
            return math.log(known.size)
        return self._first[task] if task in self._first else float(loss.detach())

    @hookimpl
    def transform_gradients(self, gradients: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
        """Take the slopes out: they are no part of the gradient of a loss."""
        own = f"{self.name}/"
        self._slopes = {name: gradient for name, gradient in gradients.items() if name.startswith(own)}
        return {name: gradient for name, gradient in gradients.items() if not name.startswith(own)}

    @hookimpl
    def around_update(self, update: Callable[[Mapping[str, Tensor]], None], gradients: Mapping[str, Tensor], step: Step) -> None:
        """Move the weights with the model, and restore their sum."""
        slopes, self._slopes = self._slopes, {}
        update(gradients)
        if not slopes:
            return
        numbers = [step.run.parameters()[name] for name in slopes]
        before = self._total(numbers)
        for name, slope in slopes.items():
            step.run.optimization.move(name.removesuffix(".value"), {"value": slope})
        with torch.no_grad():
            for number in numbers:
                number.clamp_(min=_LEAST if self._is_direct else math.log(_LEAST))
            self._rescale(numbers, self._total(numbers), before)

    @hookimpl
    def after_step(self, step: Step) -> None:
        """Note the first loss of a task."""
        if not step.updated or all(row in self._first for row in step.losses):
            return
        for task, rows in tasks_of_rows(step.losses, step, self.name).items():
            if task not in self._first:
                self._first[task] = float(torch.stack([loss.detach() for loss in rows]).mean())

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """The first loss of every task."""
        return {"first": dict(self._first)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._first = {task: float(loss) for task, loss in state["first"].items()}
        self._slopes = {}
