"""One training step, as algebra.

Every method is a term in one of these lines:

    tasks        p     = provide_task_probabilities              (drawn from in sampling.py)
    batch        B     = transform_batch(one draw per role)
    view         v     = the step at θ on B                      outputs, taps, teachers: lazy, each once; v.at(θ', rows, batch)
    supervision  S     = transform_supervision(labelled rows)
    rows         L_k   = provide_task_losses(S)                  one loss per row of the Jacobian
    terms        P     = Σ collect_terms
    objective    L, P  = around_objective(v -> (L, P))           at which parameters
    weighting    s     = provide_weighting(L)                    default Σ share_k L_k
    gradient     g     = ∇(s + P)                                no combiner: one backward pass
                 g     = combine(∂s/∂L_k · ∇L_k) + ∇P            a combiner
    projection   g     = transform_gradients(g)
    update       θ     = around_update(optimiser step, g)        exactly once

`train_step` at the end of this module is those lines. Why each stands where it does: *where* (objective) outside *what* (rows,
terms); weighting before combination; terms after combination, because a penalty at its anchor has gradient zero and a combiner
such as MGDA would return zero for ever; projection after terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streamlearn.core.gradients import Combination
from streamlearn.core.objective import Objective, evaluate, weigh, with_terms
from streamlearn.core.randomness import seed_forward
from streamlearn.core.view import Step
from streamlearn.errors import TrainingError
from streamlearn.streams import Batch

if TYPE_CHECKING:
    from streamlearn.core.run import Run

__all__ = ["Objective", "Step", "evaluate", "train_step", "weigh"]


def train_step(run: Run, batch: Batch, predicted: Callable[[Step], None] | None = None) -> None:
    """One training step on ``batch``: the lines at the head of this module, in their order.

    ``predicted`` is called when the outputs are there and no parameter has moved: prequential scoring.
    """
    hooks = run.hooks
    if hooks.step_is_plain and run.trains and batch.is_one_task and not run.is_special:
        _plain_step(run, batch)
        return
    step = Step(run, batch)
    if hooks.transform_batch is not None:
        step._batch = hooks.transform_batch(batch, step)
    if hooks.before_step is not None:
        hooks.before_step(step)

    combination = None if hooks.provide_gradient_combination is None else Combination(step)
    if 1 < run.options.microbatches <= len(step.batch):
        _in_parts(step, combination, predicted)
    else:
        found = _differentiate(step, 1.0, combination, run.meter.add) if run.trains else None
        step.objective = None if found is None else found[0]
        if predicted is not None:
            predicted(step)
    if step.objective is not None:
        if combination is not None:
            combination.write()
        _update(step)

    if hooks.after_step is not None:
        hooks.after_step(step)
    if hooks.around_objective is not None and step.objective is not None:
        # the graph of a look-ahead may lead back to the step, which then would live until garbage is collected
        step.objective = step.objective.detached()


def _in_parts(step: Step, combination: Combination | None, predicted: Callable[[Step], None] | None) -> None:
    """The objective of ``step`` and its gradient, part by part: the graph of one is gone when the next is made."""
    run = step.run
    done, total = [], torch.zeros((), device=run.device)
    for part, share in step.parts(run.options.microbatches):
        found = _differentiate(part, share, combination, run.meter.guard) if run.trains else None
        if predicted is not None:
            predicted(part)
        if found is not None:
            done.append((found[0].detached(), share))
            total = total + share * found[1].detach()
        del part, found
    if done:
        step.objective = Objective.average(done)
        run.meter.add(step.objective, total, run)


def _differentiate(
    part: Step, share: float, combination: Combination | None, watch: Callable[[Objective, Tensor, Run], object]
) -> tuple[Objective, Tensor] | None:
    """The objective on ``part`` of a step's rows with s + P, and ``share`` of its gradient; ``None`` if there is nothing to minimise."""
    run = part.run
    wrap = run.hooks.around_objective
    objective: Objective = evaluate(part) if wrap is None else wrap(evaluate, part)
    weighted = weigh(objective, part)
    total = with_terms(weighted, objective)
    if total is None or not total.requires_grad:
        return None
    watch(objective, total, run)  # stops here if anything is not finite
    if combination is not None:
        combination.add(objective, weighted, part, share)
    else:
        (total if share == 1.0 else share * total).backward()  # type: ignore[no-untyped-call]
    return objective, total


def _plain_step(run: Run, batch: Batch) -> None:
    """The same lines with nobody listening and one task: s = L, g = ∇L. At this size of step the objects of the general form show.

    The tests hold it to the general form bit for bit.
    """
    seed_forward(run.forward_seed, run.clock.update, run.device)
    ((task, target),) = batch.targets.items()
    model = run.model
    loss = run.tasks[task].loss(model.decode(model.encode(batch.x), task), target, mean=True)
    if loss.requires_grad:
        run.meter.add_loss(task, loss, run)
        loss.backward()  # type: ignore[no-untyped-call]
        run.optimization.step()


def _update(step: Step) -> None:
    """Projection and update; gradients lie in ``.grad``."""
    run = step.run
    _project_and_move(step)
    step.updated = True
    if run.averaged:
        run.average_teachers()


def _project_and_move(step: Step) -> None:
    run = step.run
    hooks, optimization = run.hooks, run.optimization
    if hooks.transform_gradients is None and hooks.around_update is None:
        optimization.step()
        return
    gradients = optimization.gradients()
    if hooks.transform_gradients is not None:
        gradients = hooks.transform_gradients(gradients, step)
    step.gradients = gradients
    if hooks.around_update is None:
        optimization.update(gradients)
        return
    calls = 0

    def update(chosen: Mapping[str, Tensor]) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            optimization.update(chosen)

    hooks.around_update(update, gradients, step)
    if calls != 1:
        who = ", ".join(run.implementers("around_update"))
        raise TrainingError(f"around_update must call update(gradients) exactly once, it was called {calls} times: {who}")
