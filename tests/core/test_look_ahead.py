"""Every plugin acts in a look-ahead: the objective that MAML, SAM and the like evaluate elsewhere is the whole one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, Plugin, models
from streamlearn.core.objective import Objective, evaluate, weigh
from streamlearn.plugins import BAM, EWC, MAML, SAM, LaMAML, LwF, PCGrad, Replay, Reptile, UncertaintyWeighting
from tests.core.support import class_stream, final, net, probe, same, sgd, smooth, two_task_stream

SMOOTH = sgd(lr=0.2, momentum=0.0, weight_decay=0.0)


def total_at(step: Any, parameters: dict[str, Tensor]) -> Tensor:
    """s + P of the step's look-ahead from ``parameters``, as the engine puts it together."""
    view = step.at(parameters)
    found = step.run.hooks.around_objective(evaluate, view)
    total = weigh(found, view)
    return sum(found.terms.values(), total if total is not None else torch.zeros((), dtype=torch.float64))


def leaves(step: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone().requires_grad_() for name, p in step.parameters.items()}


def in_second_experience(check: Callable[[Any], Any], *plugins: Plugin, dtype: torch.dtype = torch.float64, **options: Any) -> list[Any]:
    """What ``check(step)`` gave at every step of the second of two experiences."""
    found: list[Any] = []

    def look(gradients: Any, step: Any) -> Any:
        if step.run.clock.experience == 1:
            step.gradients = gradients
            found.append(check(step))
        return gradients

    stream = two_task_stream(dtype, experiences=2)
    engine = Engine(smooth(stream.tasks, dtype), SMOOTH, [*plugins, probe("look", transform_gradients=look)], batch_size=12, **options)
    engine.run(stream)
    assert len(found) == 2
    return found


# ---------------------------------------------------------------------------------------------------- what acts in it


@pytest.mark.parametrize("plugin", [EWC(strength=20.0), LwF(), BAM()], ids=lambda plugin: plugin.name)
def test_a_plugin_changes_where_the_inner_steps_lead_and_the_gradient(plugin: Plugin) -> None:
    ends: list[dict[str, Tensor]] = []

    def end(objective: Any, step: Any) -> Any:
        ends.append({name: value.detach().clone() for name, value in step.parameters.items()})
        return objective(step)

    def look_ahead(step: Any, active: set[str]) -> tuple[dict[str, Tensor], list[Tensor]]:
        run, whole = step.run, step.run.hooks
        run.hooks = run.restricted_hooks(frozenset(active))
        start = leaves(step)
        gradient = torch.autograd.grad(total_at(step, start), list(start.values()))
        run.hooks = whole
        return ends[-1], list(gradient)

    def check(step: Any) -> None:
        (fast, gradient), (bare_fast, bare_gradient) = look_ahead(step, {"maml", "end", plugin.name}), look_ahead(step, {"maml", "end"})
        for name, p in step.parameters.items():
            assert float((fast[name] - bare_fast[name]).abs().max()) > 1e-6, name
            assert float((bare_fast[name] - p).detach().abs().max()) > 1e-6, name
        assert all(float((a - b).abs().max()) > 1e-6 for a, b in zip(gradient, bare_gradient, strict=True))
        for (name, applied), expected in zip(step.gradients.items(), gradient, strict=True):
            torch.testing.assert_close(applied, expected, msg=name)

    in_second_experience(check, MAML(steps=2, rate=0.3), plugin, probe("end", around_objective=end))


def finite_difference(step: Any, start: dict[str, Tensor], name: str, direction: Tensor) -> float:
    """The derivative of the look-ahead's s + P along ``direction`` of one parameter: central, of fourth order."""

    def value(distance: float) -> float:
        moved = start | {name: start[name] + distance * direction}
        return float(total_at(step, {n: p.detach().requires_grad_() for n, p in moved.items()}).detach())

    return (8 * (value(1e-3) - value(-1e-3)) - (value(2e-3) - value(-2e-3))) / 12e-3


def matches_differences(step: Any, start: dict[str, Tensor]) -> None:
    draw = torch.Generator().manual_seed(step.update)
    for name, applied in step.gradients.items():
        direction = torch.randn(applied.shape, generator=draw, dtype=torch.float64)
        expected = finite_difference(step, start, name, direction)
        assert abs(expected) > 1e-5, name
        assert float((applied * direction).sum()) == pytest.approx(expected, rel=1e-6), name


def test_second_order_maml_through_ewc_lwf_and_a_learned_weighting_matches_finite_differences() -> None:
    def check(step: Any) -> None:
        assert {term.split("/")[0] for term in step.objective.terms} == {"ewc", "lwf"}
        assert all(float(term.detach()) > 0 for term in step.objective.terms.values())
        assert sum(name.startswith("uncertainty_weighting/") for name in step.gradients) == 2
        matches_differences(step, leaves(step))

    in_second_experience(check, MAML(steps=2, rate=0.3), EWC(strength=7.0), LwF(), UncertaintyWeighting())


def test_sam_of_maml_is_the_finite_difference_of_maml_at_the_ascended_weights() -> None:
    def check(step: Any) -> None:
        run = step.run
        run.hooks, whole = run.restricted_hooks(frozenset({"maml", "ewc", "lwf"})), run.hooks
        start = leaves(step)
        ascent = torch.autograd.grad(total_at(step, start), list(start.values()))
        norm = torch.cat([g.flatten() for g in ascent]).norm()
        matches_differences(step, {name: p.detach() + 0.05 * g / norm for (name, p), g in zip(start.items(), ascent, strict=True)})
        run.hooks = whole

    in_second_experience(check, SAM(rho=0.05), MAML(rate=0.3), EWC(strength=7.0), LwF())


INSIDE: dict[str, list[Plugin]] = {
    "maml": [MAML(steps=2, rate=0.3, plastic=("heads.*",))],  # heads that depend on the encoder
    "la_maml": [LaMAML(rate=0.3, chunks=2, order=2)],  # weights that depend on the rates
    "reptile": [Reptile(steps=2, rate=0.3)],
}


@pytest.mark.parametrize("name", INSIDE)
def test_sam_within_a_look_ahead_ascends_from_the_fast_weights_alone(name: str) -> None:
    """At every view that it is given, against g by hand from detached weights."""
    views: list[Any] = []

    def outside(objective: Any, step: Any) -> Objective:
        views.append(step)
        return objective(step)

    def inside(objective: Any, step: Any) -> Objective:
        views.append(step)
        return objective(step)

    def check(step: Any) -> None:
        run, checked = step.run, 0
        run.hooks, whole = run.restricted_hooks(frozenset({"ewc"})), run.hooks
        for before, _, after in zip(views[0::3], views[1::3], views[2::3], strict=True):
            fast = {n: p.detach().requires_grad_() for n, p in before.parameters.items()}
            here = before.at(fast)
            found = evaluate(here)
            total = weigh(found, here) + sum(found.terms.values())
            gradient = torch.autograd.grad(total, list(fast.values()), allow_unused=True)
            given = {n: g for n, g in zip(fast, gradient, strict=True) if g is not None}
            norm = torch.cat([g.flatten() for g in given.values()]).norm()
            assert set(given) == run.model_parameter_names
            for n, p in after.parameters.items():
                expected = fast[n] + 0.05 * given[n] / norm if n in given else fast[n]
                torch.testing.assert_close(p.detach(), expected.detach(), rtol=1e-9, atol=1e-12)
            checked += 1
        run.hooks = whole
        assert checked >= 2

    def before() -> None:
        views.clear()

    clear = probe("clear", before_step=before)
    plugins = [*INSIDE[name], probe("outside", around_objective=outside), SAM(rho=0.05), probe("inside", around_objective=inside)]
    in_second_experience(check, clear, *plugins, EWC(strength=3.0))


def test_first_order_gradients_do_not() -> None:
    """The check above tells second from first order."""

    def check(step: Any) -> float:
        direction = torch.ones(5, 6, dtype=torch.float64)
        difference = finite_difference(step, leaves(step), "encoder.0.weight", direction)
        return abs(float(step.gradients["encoder.0.weight"].sum()) / difference - 1)

    assert min(in_second_experience(check, MAML(steps=2, rate=0.3, order=1), LwF())) > 1e-3
    assert max(in_second_experience(check, MAML(steps=2, rate=0.3, order=2), LwF())) < 1e-6


@pytest.mark.parametrize("around", [[MAML(steps=2, rate=0.3)], [SAM()], [SAM(), MAML(order=1)]], ids=["maml", "sam", "sam of maml"])
def test_a_sum_combiner_equals_one_backward(around: list[Plugin]) -> None:
    stream = two_task_stream(experiences=2)
    total = probe("sum", provide_gradient_combination=lambda rows: dict.fromkeys(rows.names, 1.0))

    def weights(*plugins: Plugin) -> dict[str, Tensor]:
        others = [EWC(strength=3), LwF(), Replay(capacity=10), UncertaintyWeighting()]
        return final(Engine(models.mlp(stream, (8,)), sgd(), [*around, *others, *plugins], batch_size=6), stream)[0]

    combined = weights(total)
    for name, value in weights().items():
        torch.testing.assert_close(combined[name], value, rtol=0, atol=1e-5)


def test_all_of_them_at_once() -> None:
    stream = two_task_stream(experiences=2)
    plugins = [SAM(), MAML(steps=2, rate=0.1), EWC(strength=3), LwF(), BAM(), UncertaintyWeighting(), PCGrad(), Replay(capacity=10)]
    found, events = final(Engine(models.mlp(stream, (8,)), sgd(), plugins, batch_size=6), stream)
    assert all(bool(value.isfinite().all()) for value in found.values())
    last = [event for event in events if event["event"] == "epoch"][-1]
    assert set(last["terms"]) == {"ewc", "lwf/a", "lwf/b"}
    assert set(last["losses"]) == {"a", "b"}
    assert Engine(models.mlp(stream, (8,)), sgd(), plugins).explain().count("the objective is evaluated 6 times") == 1


# ---------------------------------------------------------------------------------------------------- what it leaves alone


LOOK_AHEADS: dict[str, list[Plugin]] = {
    "maml": [MAML(steps=2, rate=0.5)],
    "first order": [MAML(steps=2, rate=0.5, order=1)],
    "sam": [SAM(rho=0.5)],
    "sam of maml": [SAM(rho=0.5), MAML(rate=0.5)],
    "maml of sam": [MAML(rate=0.5), SAM(rho=0.5)],
}


@pytest.mark.parametrize("name", LOOK_AHEADS)
def test_buffers_and_the_random_state_are_as_after_a_plain_step(name: str) -> None:
    """At learning rate 0: the first pass of a look-ahead is made at θ and moves the statistics once; later ones move copies."""

    def after(step: Any) -> None:
        states.append(torch.get_rng_state())

    states: list[Tensor] = []
    still = sgd(lr=0.0, weight_decay=0.0)
    found, _ = final(Engine(net(), still, [*LOOK_AHEADS[name], probe("after", after_step=after)], batch_size=10), class_stream())
    looked, states = states, []
    usual, _ = final(Engine(net(), still, [probe("after", after_step=after)], batch_size=10), class_stream())
    assert int(found["encoder.body.1.num_batches_tracked"]) == 6
    assert same(found, usual)
    assert same(looked, states)


@pytest.mark.parametrize("plugins", [[MAML(support="train", query="*")], [MAML(support="train", query="*"), SAM()]], ids=["maml", "of sam"])
def test_the_statistics_move_once_when_only_views_on_a_role_run(plugins: list[Plugin]) -> None:
    found, _ = final(Engine(net(), sgd(), [*plugins, Replay(capacity=10)], batch_size=10), class_stream())
    assert int(found["encoder.body.1.num_batches_tracked"]) == 6


@pytest.mark.parametrize("name", LOOK_AHEADS)
def test_every_pass_of_a_step_has_the_same_dropout_masks(name: str) -> None:
    masks: dict[int, list[Tensor]] = {}

    def look(objective: Any, step: Any) -> Objective:
        found = objective(step)
        masks.setdefault(step.update, []).append(step.tap("watch/dropped").detach() == 0)
        return found

    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.drop, self.out = nn.Linear(6, 12), nn.Dropout(0.5), nn.Linear(12, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.drop(self.hidden(x)))

    watch = probe("watch", around_objective=look, collect_taps=lambda: {"dropped": "encoder.drop"})
    final(Engine(Dropped(), sgd(), [*LOOK_AHEADS[name], watch], batch_size=10), class_stream())
    assert len(masks) == 6
    for update, found in masks.items():
        assert len(found) >= 2
        assert all(torch.equal(mask, found[0]) for mask in found), update
        assert 20 < int(found[0].sum()) < 100
    assert not torch.equal(masks[0][0], masks[1][0])


def test_what_plugins_answer_twice_at_one_view_is_equal_bit_for_bit() -> None:
    ewc, lwf, bam, weighting = EWC(strength=3), LwF(), BAM(), UncertaintyWeighting()
    seen: list[int] = []

    def answers(view: Any, losses: Any) -> list[Any]:
        records = bam.transform_supervision(view.supervision, view)
        return [ewc.collect_terms(view), lwf.collect_terms(view), weighting.provide_weighting(losses, view), [r.target for r in records]]

    def check(step: Any) -> None:
        view = step.at({name: 1.1 * p for name, p in step.parameters.items()})
        losses = view.rows.losses
        buffers, random = {n: b.clone() for n, b in step.run.model.named_buffers()}, torch.get_rng_state()
        first, second = answers(view, losses), answers(view, losses)
        assert same(first, second)
        assert same(buffers, dict(step.run.model.named_buffers()))
        assert torch.equal(random, torch.get_rng_state())
        seen.append(len(first[1]))

    in_second_experience(check, ewc, lwf, bam, weighting)
    assert seen == [2, 2]
