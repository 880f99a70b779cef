from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, Plugin, models, streams
from streamlearn.core.inner_loop import Implicit
from streamlearn.core.tuning.hypergradients import cross_slopes, implicit_slopes
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import EWC, L2Anchor, LwF, Mixup, Replay, UncertaintyWeighting
from streamlearn.plugins.tuning.hypergradient import Hypergradient
from streamlearn.plugins.tuning.implicit_hypergradient import ImplicitHypergradient
from streamlearn.streams import Stream, Task
from streamlearn.streams.data import Data, Target
from streamlearn.streams.sources import TensorSource
from tests.core.support import class_stream, growing_stream, net, probe, same, sgd, stopped_or_straight, stream_of

DOUBLE = torch.float64


def tuned(events: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [event["values"] for event in events if event["event"] == "tuning"]


# ---------------------------------------------------------------------------------------------------- ridge, in closed form


def ridge(x: Tensor, y: Tensor, decay: float, pull: Tensor | None = None) -> Tensor:
    """The minimum of mean (x w - y)² + decay/2 ‖w - pull‖²."""
    eye = torch.eye(x.shape[1], dtype=DOUBLE)
    start = torch.zeros(x.shape[1], 1, dtype=DOUBLE) if pull is None else pull
    return torch.linalg.solve(2 * x.T @ x / len(x) + decay * eye, 2 * x.T @ y / len(x) + decay * start)


def problem(rows: int = 24, features: int = 6, seed: int = 0, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=draw, dtype=DOUBLE)
    truth = torch.linspace(-1, 1, features, dtype=DOUBLE)[:, None]
    return x, x @ truth + noise * torch.randn(rows, 1, generator=draw, dtype=DOUBLE)


def exact_slope(log_decay: float, train: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor]) -> float:
    """dL_val / d log decay at the minimum, by differences of the closed solution."""

    def loss(at: float) -> float:
        return float((held[0] @ ridge(*train, math.exp(at)) - held[1]).square().mean())

    return (loss(log_decay + 1e-5) - loss(log_decay - 1e-5)) / 2e-5


@pytest.mark.parametrize(
    ("how", "tolerance"),
    [
        (Implicit(solver="cg", steps=20, tolerance=1e-14), 1e-8),
        (Implicit(solver="neumann", steps=400, rate=0.2), 1e-8),
        (Implicit(solver="neumann", steps=3, rate=0.2), None),
        (Implicit(solver="neumann", steps=0, rate=0.1), None),
    ],
    ids=["cg", "neumann", "few terms", "one step"],
)
def test_ridge(how: Implicit, tolerance: float | None) -> None:
    train, held = problem(), problem(50, seed=1)
    log_decay = torch.tensor(-0.5, dtype=DOUBLE, requires_grad=True)
    w = ridge(*train, math.exp(-0.5)).requires_grad_()
    total = (train[0] @ w - train[1]).square().mean() + 0.5 * log_decay.exp() * w.square().sum()
    outside = torch.autograd.grad((held[0] @ w - held[1]).square().mean(), w)[0]
    cross = cross_slopes(total, {"w": w}, {"decay": log_decay})
    found = implicit_slopes({"w": outside}, total, {"w": w}, cross, how)["decay"]
    expected = exact_slope(-0.5, train, held)
    assert abs(expected) > 1e-2
    if tolerance is not None:
        assert found == pytest.approx(expected, rel=tolerance)
        return
    hessian = 2 * train[0].T @ train[0] / len(train[0]) + math.exp(-0.5) * torch.eye(6, dtype=DOUBLE)
    step = torch.eye(6, dtype=DOUBLE) - how.rate * hessian
    series = sum(how.rate * torch.matrix_power(step, j) for j in range(how.steps + 1))
    assert found == pytest.approx(float(-outside.T @ series @ (math.exp(-0.5) * w.detach())), rel=1e-10)
    assert abs(found / expected - 1) > 0.02


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_damping_and_parameters_that_nothing_depends_on(damping: float) -> None:
    w, still = torch.tensor([1.0, 2.0], dtype=DOUBLE, requires_grad=True), torch.zeros(1, dtype=DOUBLE, requires_grad=True)
    h = torch.tensor(3.0, dtype=DOUBLE, requires_grad=True)
    scale = torch.tensor([1.0, 4.0], dtype=DOUBLE)
    total = 0.5 * (scale * w.square()).sum() - h * w.sum()
    cross = cross_slopes(total, {"w": w, "still": still}, {"h": h})
    held = {"w": torch.tensor([1.0, 1.0], dtype=DOUBLE)}
    found = implicit_slopes(held, total, {"w": w, "still": still}, cross, Implicit(steps=5), damping)
    assert found["h"] == pytest.approx(1 / (1 + damping) + 1 / (4 + damping), rel=1e-12)


# ---------------------------------------------------------------------------------------------------- in the engine


def regression_stream(experiences: int = 1, rows: int = 24, noise: float = 1.0, features: int = 6) -> Stream:
    """Every experience draws anew from the same distribution; a quarter of its rows is of role "validation"."""
    task, pieces = Task("r", size=1, kind="regression"), []
    for i in range(experiences):
        x, y = problem(rows, features, seed=10 + i, noise=noise)
        pieces.append((Data(TensorSource(x, {"y": y}, f"part{i}"), torch.arange(rows), (task,), {"r": Target("y")}), (task,)))
    return streams.validation(stream_of(pieces, (task,), features=features), 0.25)


def rows_of(stream: Stream, experience: int, role: str) -> tuple[Tensor, Tensor]:
    data = stream[experience].data[role]
    batch = data.batch(torch.arange(len(data)), role)
    return torch.cat([batch.x, torch.ones(len(batch), 1, dtype=DOUBLE)], 1), batch.targets["r"]


def linear(stream: Stream) -> models.Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.Model(nn.Identity(), models.Heads(stream.input_shape[0], stream.tasks)).to(DOUBLE)


@pytest.mark.parametrize(
    "options", [{"solver": "cg", "steps": 20}, {"steps": 300}, {"steps": 300, "series_rate": 0.1}], ids=["cg", "neumann", "own rate"]
)
def test_weight_decay_moves_by_the_derivative_of_the_closed_solution(options: dict[str, Any]) -> None:
    stream = regression_stream()
    plugin = ImplicitHypergradient(tune=("weight_decay",), rate=2.0, factor=1e6, **options)
    engine = Engine(linear(stream), lambda p: torch.optim.SGD(p, lr=0.2, weight_decay=0.5), [plugin], batch_size=100, epochs=400)
    result = engine.run(stream)
    slope = exact_slope(math.log(0.5), rows_of(stream, 0, "train"), rows_of(stream, 0, "validation"))
    assert abs(slope) > 1e-2
    (values,) = tuned(result.events)
    assert values["weight_decay"] == pytest.approx(0.5 * math.exp(-2.0 * slope), rel=1e-6)


def test_the_strength_of_a_penalty_moves_by_the_derivative_of_the_closed_solution() -> None:
    """The minimum is pulled towards the weights of the first experience."""
    stream, anchors = regression_stream(2), []

    def before(experience: Any, run: Any) -> None:
        anchors.append(torch.cat([p.detach().reshape(1, -1) for p in run.parameters().values()], 1).T.clone())

    plugins: list[Plugin] = [ImplicitHypergradient(tune=("l2.strength",), rate=1.0, solver="cg", steps=20, factor=1e6)]
    plugins.append(L2Anchor(strength=0.5))
    engine = Engine(
        linear(stream),
        lambda p: torch.optim.SGD(p, lr=0.2),
        [*plugins, probe("look", before_experience=before)],
        batch_size=100,
        epochs=400,
    )
    first, second = tuned(engine.run(stream).events)
    assert first["l2.strength"] == 0.5
    train, held = rows_of(stream, 1, "train"), rows_of(stream, 1, "validation")

    def loss(strength: float) -> float:
        return float((held[0] @ ridge(*train, strength, anchors[1]) - held[1]).square().mean())

    slope = (loss(0.5 + 1e-5) - loss(0.5 - 1e-5)) / 2e-5
    assert abs(slope) > 1e-2
    assert second["l2.strength"] == pytest.approx(0.5 * math.exp(-0.5 * slope), rel=1e-6)


def test_a_decay_that_is_too_small_for_noisy_rows_grows_and_generalises_better() -> None:
    def losses(start: float, *plugins: Plugin) -> tuple[list[float], list[dict[str, float]]]:
        stream = regression_stream(6, rows=28, noise=3.0, features=12)
        factory = lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=start)  # noqa: E731
        found: list[float] = []

        def after(experience: Any, run: Any) -> None:
            x, y = problem(500, 12, seed=99, noise=0.0)
            found.append(float((run.model(x, "r") - y).detach().square().mean()))

        watch = probe("look", after_experience=after)
        events = Engine(linear(stream), factory, [*plugins, watch], batch_size=100, epochs=300, evaluate="never").run(stream).events
        return found, tuned(events)

    plain, _ = losses(0.01)
    moved, values = losses(0.01, ImplicitHypergradient(tune=("weight_decay",), rate=5.0, solver="cg"))
    assert values[-1]["weight_decay"] > 0.05
    assert sum(moved[3:]) < 0.9 * sum(plain[3:])


# ---------------------------------------------------------------------------------------------------- composition, state, errors


def test_the_objective_includes_what_is_replayed() -> None:
    """Rows of the memory join those of the experience, once."""
    seen = []
    original = ImplicitHypergradient._training_rows

    class Watching(ImplicitHypergradient):
        def _training_rows(self, step: Any) -> Any:
            batch = original(self, step)
            seen.append({role: len(batch.select(role)) for role in batch.roles})
            return batch

    plugins = [Watching(tune=("ewc.strength",), rows=10), EWC(strength=3), Replay(batch_size=6, capacity=20)]
    Engine(net(), sgd(), plugins, batch_size=8, drop_last=True).run(class_stream())
    assert seen == [{"train": 10}, {"train": 10, "memory": 6}, {"train": 10, "memory": 6}]


def test_it_moves_once_an_experience_by_no_more_than_the_factor() -> None:
    plugins = [ImplicitHypergradient(tune=("l2.strength",), rate=1e9, factor=3.0), L2Anchor(strength=1.0)]
    events = Engine(net(), sgd(), plugins, batch_size=8, drop_last=True, epochs=2).run(class_stream()).events
    values = [found["l2.strength"] for found in tuned(events)]
    assert len(values) == 3
    assert values[0] == 1.0
    assert {round(abs(math.log(a / b)), 9) for a, b in zip(values[1:], values, strict=False)} == {round(math.log(3.0), 9)}


def test_it_resumes_bit_for_bit(tmp_path: Path) -> None:
    def engine(**options: Any) -> Engine:
        tuner = ImplicitHypergradient(tune=("ewc.strength", "lwf.strength", "weight_decay"), rate=30.0, rows=9)
        plugins = [tuner, EWC(strength=3), LwF(), Replay(batch_size=4, capacity=20)]
        return Engine(net(), sgd(), plugins, batch_size=4, drop_last=True, checkpoint_every=1, **options)

    straight, log = stopped_or_straight(engine, class_stream, tmp_path / "straight")
    assert len({str(values) for values in tuned([json.loads(line) for line in log.splitlines()])}) == 3
    for update in (8, 9):  # 8 is the last update of the second experience
        stopped, again = stopped_or_straight(engine, class_stream, tmp_path / f"stopped{update}", update)
        assert again == log
        assert same(stopped, straight)


@pytest.mark.parametrize("solver", ["cg", "neumann"])
def test_beside_others_on_growing_heads(solver: str) -> None:
    others: list[Plugin] = [EWC(strength=3), Replay(batch_size=4, capacity=20), UncertaintyWeighting(), Mixup(), LwF()]
    stream = growing_stream()
    model = models.Model(nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.2)), models.Heads(12, ()))
    plugin = ImplicitHypergradient(tune=("ewc.strength", "lwf.strength"), solver=solver, damping=0.1)
    events = Engine(model, sgd(momentum=0.0), [plugin, *others], batch_size=6, microbatches=2, epochs=2).run(stream).events
    values = tuned(events)
    assert len(values) == 4
    assert all(math.isfinite(value) for found in values for value in found.values())
    assert values[-1] != values[0]


def test_weights_buffers_and_draws_of_the_run_are_those_without_it() -> None:
    def end(*plugins: Plugin) -> dict[str, Tensor]:
        others = [EWC(strength=3), Replay(batch_size=4, capacity=20)]
        return dict(
            Engine(net(), sgd(), [*plugins, *others], batch_size=4).run(streams.validation(class_stream(), 0.25)).model.state_dict()
        )

    expected, found = end(), end(ImplicitHypergradient(tune=("ewc.strength",), rate=1e-300))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_what_cannot_be_right_is_refused() -> None:
    def run(*plugins: Plugin, optimizer: Any = None) -> None:
        Engine(net(), optimizer or sgd(), list(plugins), batch_size=8, drop_last=True).run(class_stream())

    with pytest.raises(ConfigurationError, match="plugin implicit_hypergradient: option 'tune' is "):
        ImplicitHypergradient()
    with pytest.raises(ConfigurationError, match="no minimum depends on learning_rate: leave it to hypergradient"):
        run(ImplicitHypergradient(tune=("learning_rate",)))
    with pytest.raises(ConfigurationError, match="weight_decay of AdamW is part of no objective: take SGD or Adam"):
        run(ImplicitHypergradient(tune=("weight_decay",)), optimizer=lambda p: torch.optim.AdamW(p, weight_decay=0.1))
    with pytest.raises(ConfigurationError, match="both move weight_decay: leave it to one of them"):
        run(ImplicitHypergradient(tune=("weight_decay",)), Hypergradient(mode="t1_t2", tune=("weight_decay",)))
    with pytest.raises(ConfigurationError, match="has no rows of role 'target' to hold out"):
        run(ImplicitHypergradient(tune=("weight_decay",), held_out="target"))
    with pytest.warns(UserWarning, match=r"the objective never depended on ewc\.strength"):
        Engine(net(), sgd(), [ImplicitHypergradient(tune=("ewc.strength",)), EWC(strength=3)], batch_size=6).run(class_stream()[:1])
