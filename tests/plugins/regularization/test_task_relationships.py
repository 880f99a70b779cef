from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from torch import nn

from streamlearn import Engine, streams
from streamlearn.errors import ConfigurationError
from streamlearn.models import Heads, Model, mlp
from streamlearn.plugins import EWC, MGDA, UncertaintyWeighting
from streamlearn.plugins.regularization.soft_sharing import SoftSharing
from streamlearn.plugins.regularization.task_relationships import TaskRelationships, _covariance, best_covariance
from streamlearn.plugins.sharing.separate_networks import SeparateNetworks
from streamlearn.streams import Task
from streamlearn.streams.data import Data, JoinedData, Target
from tests.core.support import blobs, probe, resumes_bit_for_bit, separate_task_stream, sgd, stream_of, two_task_stream


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_the_covariance_is_scipys_square_root_and_none_is_better(tasks: int) -> None:
    weights = drawn(7, tasks, seed=tasks)
    products = (weights.T @ weights).numpy()
    root = scipy.linalg.sqrtm(products)
    found = best_covariance(torch.from_numpy(products)).numpy()
    np.testing.assert_allclose(found, root / np.trace(root), rtol=1e-9)

    def penalty(covariance: Any) -> float:
        return float(np.trace(np.linalg.solve(covariance, products)))

    assert penalty(found) == pytest.approx(float(torch.linalg.matrix_norm(weights, "nuc")) ** 2), "the square of the trace norm"

    def elsewhere(entries: Any) -> float:  # any covariance of trace 1, by its Cholesky factor
        factor = np.zeros((tasks, tasks))
        factor[np.tril_indices(tasks)] = entries
        covariance = factor @ factor.T + 1e-9 * np.eye(tasks)
        return penalty(covariance / np.trace(covariance))

    best = scipy.optimize.minimize(elsewhere, np.eye(tasks)[np.tril_indices(tasks)], tol=1e-12)
    assert penalty(found) == pytest.approx(float(best.fun), rel=1e-5)


def test_jitter_and_weights_of_zero() -> None:
    one = torch.ones(2, 2)  # two tasks with the same weights
    expected = scipy.linalg.sqrtm(np.ones((2, 2)) + 0.01 * np.eye(2))
    np.testing.assert_allclose(best_covariance(one, 0.01).numpy(), expected / np.trace(expected))
    torch.testing.assert_close(best_covariance(torch.zeros(3, 3)), torch.eye(3, dtype=torch.float64) / 3)


def test_a_task_that_is_new_is_unrelated_and_those_that_are_known_keep_their_relation() -> None:
    known = {"a": {"a": 0.7, "b": 0.2}, "b": {"a": 0.2, "b": 0.3}}
    torch.testing.assert_close(_covariance({}, "ab"), torch.eye(2, dtype=torch.float64) / 2)
    expected = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.3, 0.2], [0.0, 0.2, 0.7]], dtype=torch.float64) / 1.5
    torch.testing.assert_close(_covariance(known, "cba"), expected)
    stale = {"a": {"a": 1.0, "b": 5.0}, "b": {"b": 1.0}}  # b has been elsewhere since
    torch.testing.assert_close(_covariance(stale, "ab"), torch.eye(2, dtype=torch.float64) / 2)


def regressions(tasks: int = 3) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Task 1 is task 0 with some noise, task 2 its opposite."""
    x = drawn(30, 4)
    one = drawn(4, 1, seed=1)
    y = x @ torch.cat([one, one + 0.1 * drawn(4, 1, seed=2), -one + 0.1 * drawn(4, 1, seed=3)], 1)[:, :tasks]
    columns = {f"t{k}": y[:, k : k + 1] for k in range(tasks)}
    return streams.multitask((x, columns), test=(x[:5] + 1, {name: c[:5] for name, c in columns.items()})), x, y


def test_the_alternation_against_a_loop_of_numpy() -> None:
    """Steps of gradient descent on the weights, and after each epoch the covariance in closed form; linear models, float64."""
    stream, x, y = regressions()
    strength, rate, epochs = 0.4, 0.05, 12
    kept: list[Any] = []
    plugin = TaskRelationships(strength=strength, jitter=1e-4)
    begun: list[Any] = []
    watch = probe(
        "watch",
        before_run=lambda run: begun.append(run.snapshot()),
        before_epoch=lambda run: kept.append(plugin.covariances),
    )
    model = Model(nn.Identity(), Heads(4, stream.tasks)).double()
    engine = Engine(model, lambda p: torch.optim.SGD(p, lr=rate), [plugin, watch], batch_size=30, epochs=epochs, evaluate="never")
    trained: Any = engine.run(stream).model
    names = [f"t{k}" for k in range(3)]
    w = np.stack([begun[0][f"heads.by_task.{name}.weight"][0].numpy() for name in names], 1)
    b = np.array([float(begun[0][f"heads.by_task.{name}.bias"]) for name in names])
    omega = np.eye(3) / 3
    inputs, targets = x.numpy(), y.numpy()
    for epoch in range(epochs):
        if epoch:
            found = kept[epoch]["heads.by_task.{task}.weight"]
            np.testing.assert_allclose([[found[i][j] for j in names] for i in names], omega, rtol=1e-8)
        residual = inputs @ w + b - targets
        gradient = 2 * inputs.T @ residual / len(inputs) + strength * w @ np.linalg.inv(omega)
        w, b = w - rate * gradient, b - rate * 2 * residual.mean(0)
        root = scipy.linalg.sqrtm(w.T @ w + 1e-4 * np.trace(w.T @ w) / 3 * np.eye(3))
        omega = root / np.trace(root)
    found = np.stack([trained.heads.by_task[name].weight[0].detach().numpy() for name in names], 1)
    np.testing.assert_allclose(found, w, rtol=1e-8)
    assert kept[0] == {}


def test_it_finds_who_is_related_to_whom() -> None:
    stream, *_ = regressions()
    plugin = TaskRelationships(strength=0.05)
    model = Model(nn.Identity(), Heads(4, stream.tasks)).double()
    Engine(model, lambda p: torch.optim.SGD(p, lr=0.05), [plugin], batch_size=10, epochs=40, evaluate="never").run(stream)
    (found,) = plugin.covariances.values()

    def correlation(a: str, b: str) -> float:
        return found[a][b] / (found[a][a] * found[b][b]) ** 0.5

    assert correlation("t0", "t1") > 0.8
    assert correlation("t0", "t2") < -0.8
    assert sum(found[task][task] for task in found) == pytest.approx(1.0)


def test_few_rows_of_a_task_learn_from_the_opposite_of_another() -> None:
    """What soft sharing makes worse: one task is the negative of the other, and has 4 rows for 8 inputs."""
    x = drawn(60, 8)
    y = x @ drawn(8, 1, seed=2)
    held = x[40:]
    stream = streams.multitask(
        [(x[:36], y[:36]), (x[36:40], -y[36:40])], test=[(held, y[40:]), (held + 1e-9, -y[40:])], tasks=["many", "few"]
    )
    both = probe("both", provide_task_probabilities=lambda: {"many": 0.5, "few": 0.5})

    def error(*plugins: Any) -> float:
        model = Model(nn.Identity(), Heads(8, stream.tasks)).double()
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        engine = Engine(model, lambda p: torch.optim.SGD(p, lr=0.03), [*plugins, both], batch_size=16, epochs=150, evaluate="never")
        trained: Any = engine.run(stream).model
        with torch.no_grad():
            return float((trained(held, "few") + y[40:]).square().mean())

    alone = error()
    assert error(TaskRelationships(strength=0.1)) < 0.6 * alone
    assert error(SoftSharing(strength=0.1)) > 1.5 * alone


@pytest.mark.parametrize("per", ["layer", "network"])
def test_layers_and_networks(per: Any) -> None:
    """Each layer by itself, or the weights of all layers of a task in one column."""
    source = blobs(24, 6, dtype=torch.float64)
    tasks = (Task("a", size=6), Task("b", size=6))
    stream = stream_of([(Data(source, torch.arange(24), tasks, {t.name: Target("y") for t in tasks}), tasks)], tasks)
    model = Model(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)), Heads(4, tasks)).double()
    seen: list[Any] = []
    plugin = TaskRelationships(strength=0.3, per=per)

    def look(step: Any) -> None:
        seen.append((plugin.covariances, step.run.snapshot(), float(step.terms["task_relationships"].detach())))

    Engine(model, sgd(), [SeparateNetworks(), plugin, probe("look", before_step=look)], batch_size=24, epochs=2).run(stream)
    covariances, weights, term = seen[1]
    columns = {layer: np.stack([weights[f"heads.networks.{t}.{layer}.weight"].numpy().ravel() for t in "ab"], 1) for layer in ("0", "2")}
    groups = columns if per == "layer" else {"0": np.concatenate(list(columns.values()))}
    assert set(covariances) == {f"heads.networks.{{task}}.{layer}.weight" for layer in groups}
    total = 0.0
    for layer, w in groups.items():
        rows = covariances[f"heads.networks.{{task}}.{layer}.weight"]
        total += float(np.trace(w @ np.linalg.inv([[rows[i][j] for j in "ab"] for i in "ab"]) @ w.T))
        root = scipy.linalg.sqrtm(w.T @ w + 1e-3 * np.trace(w.T @ w) / 2 * np.eye(2))  # no step was made since the epoch ended
        np.testing.assert_allclose([[rows[i][j] for j in "ab"] for i in "ab"], root / np.trace(root), rtol=1e-9)
    assert term == pytest.approx(0.15 * total, rel=1e-10)


def come_and_go() -> Any:
    """Tasks a and b, then a and c, then c and b; all of 6 classes, on rows of their own."""
    source = blobs(72, 6)
    tasks = {name: Task(name, size=6) for name in "abc"}
    pieces = []
    for i, names in enumerate(("ab", "ac", "cb")):
        rows = torch.arange(24 * i, 24 * i + 24).split(12)  # type: ignore[no-untyped-call]
        parts = [Data(source, mine, (tasks[n],), {n: Target("y")}) for n, mine in zip(names, rows, strict=True)]
        pieces.append((JoinedData(parts), tuple(tasks[n] for n in names)))
    return stream_of(pieces, (tasks["a"],))


def test_tasks_come_and_go_and_what_is_learnt_goes_by_their_names() -> None:
    kept: list[Any] = []
    plugin = TaskRelationships(strength=0.1)
    keep = probe("keep", before_experience=lambda: kept.append(plugin.covariances))
    stream = come_and_go()
    Engine(mlp(stream, (9,)), sgd(), [plugin, keep], batch_size=8, epochs=2).run(stream)
    (layer,) = plugin.covariances
    assert [set(found.get(layer, {})) for found in kept] == [set(), {"a", "b"}, {"a", "b", "c"}]
    exact = kept[1][layer]
    embedded = _covariance(exact, "cab")
    assert float(embedded[0, 1]) == float(embedded[0, 2]) == 0.0
    assert float(embedded[1, 2] / embedded[1, 1]) == pytest.approx(exact["a"]["b"] / exact["a"]["a"])


@pytest.mark.parametrize("update", [2, 5, 8])
@pytest.mark.parametrize("per", ["layer", "network"])
def test_a_resume_in_mid_experience_equals_the_whole_run(per: Any, update: int, tmp_path: Path) -> None:
    stream = come_and_go()

    def engine(**options: Any) -> Engine:
        plugins = [SeparateNetworks(), TaskRelationships(strength=0.1, per=per), EWC(strength=1.0)]
        return Engine(mlp(stream, (9,)), sgd(), plugins, batch_size=8, seed=2, epochs=2, checkpoint_every=1, **options)

    resumes_bit_for_bit(engine, stream, update, tmp_path)


def test_beside_a_combiner_and_a_weighting_networks_that_start_alike_part() -> None:
    stream = two_task_stream()
    plugins = [SeparateNetworks(start="given"), TaskRelationships(strength=0.01), MGDA(), UncertaintyWeighting()]
    model: Any = Engine(mlp(stream, (9,)), sgd(), plugins, batch_size=8, epochs=3).run(stream).model
    assert float((model.heads.of("a")[0].weight - model.heads.of("b")[0].weight).norm().detach()) > 0


@pytest.mark.parametrize("options", [{"strength": -1}, {"per": "task"}, {"jitter": 0.0}, {"parameters": ("heads.*",)}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"plugin task_relationships: option '{next(iter(options))}"):
        TaskRelationships(**options)


def test_where_nothing_corresponds_it_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match=r"correspond across the tasks a, b: list SeparateNetworks\(\)"):
        Engine(mlp(two_task_stream(), (4,)), sgd(), [TaskRelationships()]).run(two_task_stream())
    Engine(mlp(separate_task_stream(1), (4,)), sgd(), [TaskRelationships()], batch_size=8).run(separate_task_stream(1))
