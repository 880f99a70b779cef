from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, Plugin, models, streams
from streamlearn.core.tuning.hypergradients import cross_slopes, dot, held_out_slopes, training_total
from streamlearn.core.tuning.tunables import Number, with_graph
from streamlearn.errors import ConfigurationError, UnknownNameError
from streamlearn.plugins import EWC, MAML, SAM, L2Anchor, LwF, PCGrad, Replay, UncertaintyWeighting
from streamlearn.plugins.tuning.hypergradient import Hypergradient, descended
from streamlearn.streams import Stream
from tests.core.support import class_stream, growing_stream, net, probe, same, sgd, smooth, stopped_or_straight, two_task_stream

DOUBLE = torch.float64


def held_out_stream(experiences: int = 2) -> Stream:
    return streams.validation(two_task_stream(DOUBLE, experiences=experiences), 0.25)


def tuned(events: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [event["values"] for event in events if event["event"] == "tuning"]


# ---------------------------------------------------------------------------------------------------- hypergradient descent


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    """The engine's objective on rows that are all asked on both tasks."""
    features = model.encode(batch.x)
    losses = [nn.functional.cross_entropy(model.decode(features, task), batch.targets[task]) for task in batch.targets]
    return sum(losses[1:], losses[0])


def run_and_batches(factory: Callable[..., Any], plugin: Plugin) -> tuple[list[float], list[Any], models.Model]:
    """The learning rates with which steps were made, their batches, and the trained model."""
    rates: list[float] = []
    batches: list[Any] = []

    def after(step: Any) -> None:
        rates.append(step.run.optimization.main.param_groups[0]["lr"])
        batches.append(step.batch)

    stream = two_task_stream(DOUBLE)
    result = Engine(smooth(stream.tasks), factory, [plugin, probe("watch", after_step=after)], batch_size=4, epochs=2).run(stream)
    return rates, batches, result.model


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("form", ["additive", "multiplicative"])
def test_under_sgd_the_rate_follows_the_product_of_gradients(form: str, decay: float) -> None:
    """α + β g_t · g_{t-1}, or α (1 + β cos), by hand."""
    beta = 0.02
    found, batches, trained = run_and_batches(
        lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=decay), Hypergradient(rate=beta, form=form)
    )
    model = smooth(two_task_stream(DOUBLE).tasks)
    alpha, last, rates = 0.05, None, []
    for number, batch in enumerate(batches):
        gradients = torch.autograd.grad(loss_of(model, batch), list(model.parameters()))
        now = torch.cat([(g + decay * p.detach()).flatten() for g, p in zip(gradients, model.parameters(), strict=True)])
        if last is not None and number:
            product = float(now @ last)
            alpha = alpha + beta * product if form == "additive" else alpha * (1 + beta * product / float(now.norm() * last.norm()))
        with torch.no_grad():
            nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(model.parameters()) - alpha * now, model.parameters())
        rates.append(alpha)
        last = now
    assert len(rates) == 12
    assert found == pytest.approx(rates, rel=1e-10)
    assert max(abs(rate - 0.05) for rate in rates) > 1e-4
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value, rtol=1e-9, atol=1e-12)


FACTORIES: dict[str, Callable[..., Any]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5),
}


@pytest.mark.parametrize("kind", FACTORIES)
def test_under_other_optimisers_it_is_the_derivative_by_the_rate_of_the_last_step(kind: str) -> None:
    """Finite differences: the last step made again at α ± ε, and the loss of the present batch after it."""
    beta, epsilon = 1e-3, 1e-6
    found, batches, _ = run_and_batches(FACTORIES[kind], Hypergradient(rate=beta))
    model = smooth(two_task_stream(DOUBLE).tasks)
    optimizer = FACTORIES[kind](model.parameters())
    coupled = 0.01 if kind == "adam" else 0.0
    before: tuple[Any, Any, Any] | None = None
    rates = []

    def step(model: nn.Module, optimizer: Any, batch: Any, alpha: float) -> None:
        optimizer.param_groups[0]["lr"] = alpha
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()

    alpha = optimizer.param_groups[0]["lr"]
    for batch in batches:
        if before is not None:
            values = []
            for sign in (1, -1):
                there = copy.deepcopy(before[0])
                again = FACTORIES[kind](there.parameters())
                again.load_state_dict(copy.deepcopy(before[1]))
                step(there, again, before[2], alpha + sign * epsilon)
                decay = 0.5 * coupled * sum(float(p.detach().square().sum()) for p in there.parameters())
                values.append(float(loss_of(there, batch).detach()) + decay)
            alpha -= beta * (values[0] - values[1]) / (2 * epsilon)
        before = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict()), batch
        step(model, optimizer, batch, alpha)
        rates.append(alpha)
    assert found == pytest.approx(rates, rel=1e-7)
    assert max(abs(rate - rates[0]) for rate in rates) > 1e-5


def test_the_published_adam_moves_each_tensor_at_a_rate_of_its_own() -> None:
    """AdamHD of the authors' repository adds β h_p to the rate for one tensor after the other, in the middle of a step."""
    beta = 1e-3
    rates, batches, _ = run_and_batches(lambda p: torch.optim.Adam(p, lr=0.01), Hypergradient(rate=beta))
    ends: dict[bool, dict[str, Tensor]] = {}
    for within in (True, False):
        model = smooth(two_task_stream(DOUBLE).tasks)
        alpha, moments, last = 0.01, {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in model.named_parameters()}, {}
        for number, batch in enumerate(batches[:3], start=1):
            found = dict(zip(moments, torch.autograd.grad(loss_of(model, batch), list(model.parameters())), strict=True))
            parts = {n: beta * float((g * last[n]).sum()) if last else 0.0 for n, g in found.items()}
            alpha += 0.0 if within else sum(parts.values())
            for n, p in model.named_parameters():
                alpha += parts[n] if within else 0.0
                first, second = moments[n]
                moments[n] = (0.9 * first + 0.1 * found[n], 0.999 * second + 0.001 * found[n] ** 2)
                near, far = moments[n][0] / (1 - 0.9**number), moments[n][1] / (1 - 0.999**number)
                last[n] = near / (far.sqrt() + 1e-8)
                p.data -= alpha * last[n]
            if number == 2:
                assert alpha == pytest.approx(rates[1], rel=1e-9)  # in the end it is the same
                ends[within] = {n: p.detach().clone() for n, p in model.named_parameters()}
        if not within:
            assert alpha == pytest.approx(rates[2], rel=1e-9)
    assert max(float((ends[True][n] - ends[False][n]).abs().max()) for n in ends[True]) > 1e-5


def test_the_rate_stays_within_its_bounds() -> None:
    rates, _, _ = run_and_batches(lambda p: torch.optim.SGD(p, lr=0.5), Hypergradient(rate=1e4))
    assert rates[1] == 10.0
    assert min(rates) >= 1e-6


def test_a_rate_that_is_far_too_small_grows_and_learns_more() -> None:
    stream = streams.multitask("digits", 2)

    def loss(*plugins: Plugin) -> tuple[float, list[dict[str, float]]]:
        model = models.mlp(stream, hidden=(32,))
        events = Engine(model, lambda p: torch.optim.SGD(p, lr=1e-3), list(plugins), epochs=8, seed=2, evaluate="never").run(stream).events
        return [sum(e["losses"].values()) for e in events if e["event"] == "epoch"][-1], tuned(events)

    fixed, _ = loss()
    for plugin in (Hypergradient(rate=0.01), Hypergradient(rate=0.2, form="multiplicative")):
        moved, values = loss(plugin)
        assert moved < 0.8 * fixed
        assert values[-1]["learning_rate"] > 0.005


def test_the_first_step_of_an_experience_moves_nothing() -> None:
    rates: list[tuple[int, float]] = []

    def after(step: Any) -> None:
        rates.append((step.run.clock.experience, step.run.optimization.main.param_groups[0]["lr"]))

    Engine(net(), sgd(), [Hypergradient(rate=0.01), probe("watch", after_step=after)], batch_size=10).run(class_stream())
    assert rates[0][1] == 0.05
    assert rates[2] == (1, rates[1][1])  # two steps an experience
    assert rates[1][1] != 0.05
    assert rates[3][1] != rates[2][1]


# ---------------------------------------------------------------------------------------------------- T1-T2


def old_penalty(plugin: EWC, parameters: dict[str, Tensor]) -> Tensor:
    state = plugin.state_dict()
    return sum(0.5 * (f * (parameters[n] - state["anchor"][n]).square()).sum() for n, f in state["importance"].items())


def test_the_strength_of_a_penalty_moves_by_the_derivative_through_the_step() -> None:
    """Finite differences: the step made by hand at λ ± ε, and the loss on held-out rows after it."""
    lr, beta, ewc = 0.1, 5.0, EWC(strength=20.0)
    seen: list[tuple[float, float]] = []

    def look(update: Any, gradients: Any, step: Any) -> None:
        run = step.run
        if run.clock.experience == 0:
            update(gradients)
            return
        now, epsilon = run.value(ewc, "strength"), 1e-3
        held = run.data("validation")
        rows = held.batch(torch.arange(len(held)), "validation")
        start = {name: p.detach().clone().requires_grad_() for name, p in run.parameters().items()}
        names = list(start)

        def after(strength: float) -> float:
            total = loss_of_at(run.model, start, step.batch) + strength * old_penalty(ewc, start)
            slopes = torch.autograd.grad(total, list(start.values()), allow_unused=True)
            moved = {n: start[n].detach() - (0.0 if g is None else lr * g) for n, g in zip(names, slopes, strict=True)}
            return float(loss_of_at(run.model, moved, rows))

        slope = (after(now + epsilon) - after(now - epsilon)) / (2 * epsilon)
        update(gradients)
        seen.append((run.value(ewc, "strength"), now * math.exp(-beta * now * slope)))

    plugin = Hypergradient(mode="t1_t2", tune=("ewc.strength",), rate=beta)
    stream = held_out_stream()
    engine = Engine(
        smooth(stream.tasks), lambda p: torch.optim.SGD(p, lr=lr), [probe("look", around_update=look), plugin, ewc], batch_size=6
    )
    engine.run(stream)
    assert len(seen) >= 3
    for found, expected in seen:
        assert found == pytest.approx(expected, rel=1e-7)
    assert abs(math.log(seen[-1][0] / 20.0)) > 1e-3


def loss_of_at(model: Any, parameters: dict[str, Tensor], batch: Any) -> Tensor:
    outputs = {task: torch.func.functional_call(model, parameters, (batch.x, task)) for task in batch.targets}
    losses = [nn.functional.cross_entropy(outputs[task], target) for task, target in batch.targets.items()]
    return sum(losses[1:], losses[0])


@pytest.mark.parametrize(
    ("name", "plugin"),
    [
        ("ewc.strength", EWC(strength=20.0)),
        ("l2.strength", L2Anchor(strength=2.0)),
        ("lwf.strength", LwF(strength=2.0)),
        ("maml.rate", MAML(rate=0.1, steps=2, support="train", query="*")),
        ("sam.rho", SAM(rho=0.1)),
    ],
    ids=lambda found: found if isinstance(found, str) else "",
)
def test_mixed_derivatives_against_finite_differences_of_the_gradient(name: str, plugin: Plugin) -> None:
    checked = []

    def check(gradients: Any, step: Any) -> Any:
        run = step.run
        if run.clock.experience != 1 or checked or step.update % 4 != 3:
            return gradients
        start = {n: p.detach().clone().requires_grad_() for n, p in run.parameters().items()}
        number = Number.find(name, run, "test")
        with with_graph(run, [number]) as scalars:
            found = cross_slopes(training_total(step.at(start)), start, scalars)[name]
        assert run.values == {}
        value, epsilon = number.read(run), 1e-5
        ends = []
        for sign in (1, -1):
            number.write(run, value + sign * epsilon)
            slopes = torch.autograd.grad(training_total(step.at(start)), list(start.values()), allow_unused=True)
            ends.append([torch.zeros_like(p) if g is None else g for g, p in zip(slopes, start.values(), strict=True)])
        run.values.clear()
        for n, up, down in zip(start, *ends, strict=True):
            expected = (up - down) / (2 * epsilon)
            torch.testing.assert_close(found.get(n, torch.zeros_like(expected)), expected, rtol=1e-6, atol=1e-8)
        assert sum(float(value.abs().max()) for value in found.values()) > 1e-3
        checked.append(True)
        return gradients

    stream = two_task_stream(DOUBLE, experiences=2)
    engine = Engine(
        smooth(stream.tasks), lambda p: torch.optim.SGD(p, lr=0.2), [plugin, probe("check", transform_gradients=check)], batch_size=6
    )
    engine.run(stream)
    assert checked


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("setting", ["learning_rate", "weight_decay"])
def test_settings_of_the_optimiser_against_finite_differences(setting: str, kind: str) -> None:
    """The step made again, by torch, at a setting a little larger and smaller."""
    factory: Callable[..., Any] = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.05),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.05),
    }[kind]
    word, beta = {"learning_rate": "lr", "weight_decay": "weight_decay"}[setting], 0.5
    seen: list[tuple[float, float]] = []

    def look(update: Any, gradients: Any, step: Any) -> None:
        run = step.run
        held = run.data("validation")
        rows = held.batch(torch.arange(len(held)), "validation")
        now, epsilon = run.optimization.main.param_groups[0][word], 1e-6
        values = []
        for sign in (1, -1):
            there = copy.deepcopy(run.model)
            optimizer = factory(there.parameters())
            optimizer.load_state_dict(copy.deepcopy(run.optimization.main.state_dict()))
            optimizer.param_groups[0][word] = now + sign * epsilon
            for name, p in there.named_parameters():
                p.grad = gradients[name].clone()
            optimizer.step()
            values.append(float(loss_of(there, rows).detach()))
        update({name: value.clone() for name, value in gradients.items()})
        slope = (values[0] - values[1]) / (2 * epsilon)
        seen.append((run.optimization.main.param_groups[0][word], now * math.exp(-beta * now * slope)))

    stream = held_out_stream()
    plugin = Hypergradient(mode="t1_t2", tune=(setting,), rate=beta)
    Engine(smooth(stream.tasks), factory, [probe("look", around_update=look), plugin], batch_size=6).run(stream)
    assert len(seen) >= 6
    for found, expected in seen:
        assert found == pytest.approx(expected, rel=1e-6)


def test_what_is_held_out_decides_where_the_strength_goes() -> None:
    """Rows of the present experience want less of a penalty on change than there is, rows of the past want more."""
    stream = streams.validation(streams.class_incremental("digits", experiences=5), 0.2)[:2]

    def end(held_out: str, start: float) -> float:
        plugins = [
            Hypergradient(mode="t1_t2", tune=("l2.strength",), rate=20.0, held_out=held_out),
            L2Anchor(strength=start),
            Replay(batch_size=1, capacity=100),
        ]
        engine = Engine(models.mlp(stream, hidden=(32,)), sgd(momentum=0.0, weight_decay=0.0), plugins, epochs=3, seed=1)
        return tuned(engine.run(stream).events)[-1]["l2.strength"]

    assert end("validation", 1.0) < 0.5
    assert end("memory:main", 0.01) > 0.015


# ---------------------------------------------------------------------------------------------------- composition, state, errors


def test_options_stay_within_their_declared_range_and_are_recorded() -> None:
    stream = held_out_stream(3)
    plugins = [Hypergradient(mode="t1_t2", tune=("l2.strength", "learning_rate"), rate=1e6), L2Anchor(strength=1.0)]
    events = Engine(smooth(stream.tasks), sgd(), plugins, batch_size=6).run(stream).events
    values = tuned(events)
    assert len(values) == 3
    assert values[-1]["l2.strength"] in (1e-4, 1e2)
    assert 1e-6 <= values[-1]["learning_rate"] <= 10.0


@pytest.mark.parametrize(
    "plugin",
    [
        Hypergradient(rate=0.01),
        Hypergradient(mode="t1_t2", tune=("ewc.strength", "lwf.strength", "weight_decay"), rate=2.0, rows=5),
        Hypergradient(mode="t1_t2", tune=("ewc.strength",), rate=2.0, held_out="memory:main", rows=5),
    ],
    ids=["descent", "t1_t2", "memory"],
)
def test_it_resumes_bit_for_bit(plugin: Hypergradient, tmp_path: Path) -> None:
    def engine(**options: Any) -> Engine:
        plugins = [plugin, EWC(strength=3), LwF(), Replay(batch_size=4, capacity=20)]
        return Engine(net(), sgd(), plugins, batch_size=4, checkpoint_every=1, **options)

    def stream() -> Stream:
        return streams.validation(class_stream(), 0.25)

    straight, log = stopped_or_straight(engine, stream, tmp_path / "straight")
    stopped, again = stopped_or_straight(engine, stream, tmp_path / "stopped", 6)
    assert again == log
    assert same(stopped, straight)
    assert len({str(values) for values in tuned([json.loads(line) for line in log.splitlines()])}) > 1


@pytest.mark.parametrize("mode", ["descent", "t1_t2"])
def test_beside_others_on_growing_heads(mode: str) -> None:
    """Combiner, learned weighting, replay, micro-batches, heads that grow and a task that enters."""
    tune = ("ewc.strength",) if mode == "t1_t2" else ()
    others: list[Plugin] = [EWC(strength=3), Replay(batch_size=4, capacity=20), UncertaintyWeighting(), PCGrad()]
    stream = streams.validation(growing_stream(), 0.25)
    model = models.Model(nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.2)), models.Heads(12, ()))
    plugin = Hypergradient(mode=mode, tune=tune, rate=0.01 if mode == "descent" else 10.0)
    events = Engine(model, sgd(momentum=0.0), [plugin, *others], batch_size=6, microbatches=2, epochs=2).run(stream).events
    values = [next(iter(found.values())) for found in tuned(events)]
    assert len(set(values)) >= 3
    assert all(math.isfinite(value) for value in values)


def test_buffers_and_masks_of_the_step_are_those_without_it() -> None:
    """A rate so small that nothing moves: weights and running statistics are those of a run without, bit for bit."""
    stream = streams.validation(class_stream(), 0.25)

    def end(*plugins: Plugin) -> dict[str, Tensor]:
        return dict(Engine(net(), sgd(), [*plugins, EWC(strength=3)], batch_size=4).run(stream).model.state_dict())

    expected, found = end(), end(Hypergradient(mode="t1_t2", tune=("ewc.strength",), rate=1e-300))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_number_that_the_objective_never_reads_is_told() -> None:
    stream = streams.validation(class_stream(), 0.25)
    with pytest.warns(UserWarning, match="the objective never depended on ewc.strength, which stayed where it was"):
        Engine(net(), sgd(), [Hypergradient(mode="t1_t2", tune=("ewc.strength",)), EWC(strength=3)]).run(stream[:1])


def test_values_are_put_back_when_something_fails() -> None:
    kept: list[Any] = []

    def fail(step: Any) -> None:
        with with_graph(step.run, [Number.find("ewc.strength", step.run, "test")]):
            assert isinstance(step.run.value(step.run.plugins[0], "strength"), Tensor)
            kept.append(step.run)
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        Engine(net(), sgd(), [EWC(strength=3), probe("fail", before_step=fail)]).run(class_stream())
    assert kept[0].values == {}


def test_held_out_slopes_leave_the_run_alone() -> None:
    seen = []

    def look(step: Any) -> None:
        run, before = step.run, torch.get_rng_state()
        data = run.data("validation")
        found = held_out_slopes(run, data.batch(torch.arange(len(data)), "validation"))
        assert torch.equal(before, torch.get_rng_state())
        assert run.model.training
        assert all(p.grad is None for p in run.parameters().values())
        seen.append(dot(found, found))

    Engine(net(), sgd(), [probe("look", before_step=look)]).run(streams.validation(class_stream(), 0.25))
    assert min(seen) > 0


def test_what_cannot_be_right_is_refused() -> None:
    stream = streams.validation(class_stream(), 0.25)

    def run(*plugins: Plugin, on: Stream = stream, optimizer: Any = None) -> None:
        Engine(net(), optimizer or sgd(), list(plugins)).run(on)

    with pytest.raises(ConfigurationError, match="option 'tune' is \\(\\) and mode is 't1_t2': name numbers"):
        Hypergradient(mode="t1_t2")
    with pytest.raises(ConfigurationError, match="name each number once"):
        Hypergradient(mode="t1_t2", tune=("a.b", "a.b"))
    with pytest.raises(UnknownNameError, match=r"number of plugin hypergradient 'ewc\.strenght': did you mean 'ewc\.strength'"):
        run(Hypergradient(mode="t1_t2", tune=("ewc.strenght",)), EWC())
    with pytest.raises(ConfigurationError, match=r"'ewc\.decay' is not declared tunable by plugin ewc"):
        run(Hypergradient(mode="t1_t2", tune=("ewc.decay",)), EWC())
    with pytest.raises(ConfigurationError, match=r"ewc\.strength starts at 0\.0, but it moves between 0\.1 and 1e\+06: start it there"):
        run(Hypergradient(mode="t1_t2", tune=("ewc.strength",)), EWC(strength=0))
    with pytest.raises(ConfigurationError, match="experience 0 has no rows of role 'validation' to hold out"):
        run(Hypergradient(mode="t1_t2", tune=("ewc.strength",), fraction=0), EWC(), on=class_stream())
    with pytest.raises(ConfigurationError, match="plugins hypergradient and second both move learning_rate"):
        run(Hypergradient(), Hypergradient(name="second"))
    with pytest.raises(ConfigurationError, match=r"the groups of the optimiser have 0\.1, 0\.2: give all of them one"):
        run(Hypergradient(), optimizer=lambda p: torch.optim.SGD([{"params": p[:1], "lr": 0.1}, {"params": p[1:], "lr": 0.2}]))
    with pytest.raises(ConfigurationError, match="no replay memory 'none'"):
        run(Hypergradient(mode="t1_t2", tune=("ewc.strength",), held_out="memory:none"), EWC())


def test_descended_without_lengths_stays() -> None:
    assert descended(0.1, 0.0, 0.0, 0.5, "multiplicative") == 0.1
