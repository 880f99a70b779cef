from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from streamlearn import Engine, streams
from streamlearn.errors import ConfigurationError
from streamlearn.models import Heads, Model, mlp
from streamlearn.plugins import EWC, MGDA, LwF, PCGrad, Replay, UncertaintyWeighting
from streamlearn.plugins.regularization.soft_sharing import SoftSharing, spread
from streamlearn.plugins.sharing.separate_networks import SeparateNetworks
from streamlearn.streams import Task
from streamlearn.streams.data import Data, Target
from tests.core.support import (
    blobs,
    class_stream,
    final,
    probe,
    resumes_bit_for_bit,
    same,
    separate_task_stream,
    sgd,
    stream_of,
    two_task_stream,
)

A, B = Task("a", size=6), Task("b", size=6)


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_the_formula_against_a_loop_over_pairs(tasks: int) -> None:
    values = torch.randn(tasks, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(tasks), requires_grad=True)
    pairs = sum(((values[i] - values[j]) ** 2).sum() for i in range(tasks) for j in range(i))
    mean = sum(((values[i] - values.mean(0)) ** 2).sum() for i in range(tasks))
    for found, expected in ((spread(values), pairs), (spread(values, "mean"), mean)):
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, values), torch.autograd.grad(expected, values))


def ridge_stream(tasks: int = 3) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Linear regressions, every row asked on all."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(40, 3, generator=draw, dtype=torch.float64)
    y = x @ torch.randn(3, tasks, generator=draw, dtype=torch.float64) + torch.randn(tasks, generator=draw, dtype=torch.float64)
    columns = {f"t{k}": y[:, k : k + 1] for k in range(tasks)}
    return streams.multitask((x, columns), test=(x[:9] + 1, {name: column[:9] for name, column in columns.items()})), x, y


@pytest.mark.parametrize("towards", ["each", "mean"])
def test_it_ends_at_the_exact_solution_of_mean_regularised_ridge_regression(towards: Any) -> None:
    """The normal equations of all tasks together, solved by numpy."""
    stream, x, y = ridge_stream()
    strength, tasks = 0.3, y.shape[1]
    design = np.concatenate([x.numpy(), np.ones((len(x), 1))], 1)
    pull = np.eye(tasks) - np.ones((tasks, tasks)) / tasks  # Σ_i ‖θ_i - θ̄‖² = tr(Θ pull Θᵀ)
    pull *= tasks if towards == "each" else 1.0
    system = np.kron(np.eye(tasks), design.T @ design / len(x)) + strength * np.kron(pull, np.eye(design.shape[1]))
    expected = np.linalg.solve(system, (design.T @ y.numpy() / len(x)).T.ravel()).reshape(tasks, -1)
    model = Model(nn.Identity(), Heads(3, stream.tasks)).double()
    engine = Engine(
        model, lambda p: torch.optim.SGD(p, lr=0.2), [SoftSharing(strength=strength, towards=towards)], batch_size=40, epochs=150,
        evaluate="never",
    )  # fmt: skip
    trained: Any = engine.run(stream).model
    for number, head in enumerate(trained.heads.by_task.values()):
        found = torch.cat([head.weight[0], head.bias]).detach().numpy()
        np.testing.assert_allclose(found, expected[number], rtol=1e-6, atol=1e-8)


def distance(model: Any) -> float:
    one, other = (torch.cat([p.flatten() for p in model.heads.of(task).parameters()]) for task in ("left", "right"))
    return float((one - other).norm().detach())


def test_networks_of_two_tasks_stay_near_each_other_in_proportion_to_the_strength() -> None:
    stream = streams.multitask("digits", 2)

    def run(strength: float) -> float:
        plugins = [SeparateNetworks(start="given"), SoftSharing(strength=strength)]
        engine = Engine(mlp(stream, (16,)), lambda p: torch.optim.SGD(p, lr=0.1), plugins, batch_size=32, epochs=3)
        return distance(engine.run(stream).model)

    apart, near, together = run(0.0), run(0.1), run(1.0)
    assert apart > 2 * near > 4 * together > 0


def test_few_rows_of_a_task_learn_from_the_many_of_another() -> None:
    """One function asked as two tasks, of which one has 6 rows."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=draw)
    y = (x @ torch.randn(6, 3, generator=draw)).argmax(1)
    held = (x[150:], y[150:])
    stream = streams.multitask([(x[:144], y[:144]), (x[144:150], y[144:150])], test=[held, held], tasks=["many", "few"])
    balanced = probe("both", provide_task_probabilities=lambda: {"many": 0.5, "few": 0.5})

    def accuracy(*plugins: Any) -> float:
        networks = SeparateNetworks(start="given")
        result = Engine(mlp(stream, (16,)), lambda p: torch.optim.SGD(p, lr=0.2), [networks, *plugins, balanced],
                        batch_size=16, epochs=30, evaluate="end").run(stream)  # fmt: skip
        return [float(event["value"]) for event in result.events if event["event"] == "evaluation" and event["task"] == "few"][-1]

    assert accuracy(SoftSharing(strength=0.1)) > accuracy() + 0.1


def test_a_new_task_starts_from_the_old_ones_which_rest() -> None:
    stream = separate_tasks_in_turn()
    kept: list[Any] = []
    keep = probe("keep", after_experience=lambda run: kept.append({t: run.snapshot(frozenset(n for n in run.parameters() if f".{t}." in n))
                                                                   for t in ("a", "b")}))  # fmt: skip
    result = Engine(mlp(stream, (9,)), sgd(), [SeparateNetworks(), SoftSharing(strength=0.5), keep], batch_size=8, epochs=2).run(stream)
    assert same(kept[0]["a"], kept[1]["a"])
    terms = [event["terms"] for event in result.events if event["event"] == "epoch"]
    assert terms[0] == terms[1] == {}, "with one task there is nothing to hold"
    assert terms[3]["soft_sharing"] < terms[2]["soft_sharing"]


def separate_tasks_in_turn() -> Any:
    """Task "a" and then task "b", both known beforehand."""
    source = blobs(48, 6)
    pieces = [(Data(source, torch.arange(24 * i, 24 * i + 24), (t,), {t.name: Target("y")}), (t,)) for i, t in enumerate((A, B))]
    return stream_of(pieces, (A, B))


@pytest.mark.parametrize("combiner", [MGDA, PCGrad])
def test_a_combiner_does_not_freeze_it(combiner: Any) -> None:
    """Networks that start alike: the penalty has gradient 0 there, and everything moves nevertheless."""
    stream = two_task_stream()
    plugins = [SeparateNetworks(start="given"), SoftSharing(strength=0.1), combiner(), UncertaintyWeighting()]
    model: Any = Engine(mlp(stream, (9,)), sgd(), plugins, batch_size=8, epochs=2).run(stream).model
    one, other = (model.heads.of(task)[0].weight for task in ("a", "b"))
    assert 0 < float((one - other).norm().detach()) < 1
    assert not torch.equal(one, mlp(stream, (9,)).encoder[0].weight)  # type: ignore[index]


@pytest.mark.parametrize("update", [2, 4, 7])
def test_a_resume_in_mid_experience_equals_the_whole_run(update: int, tmp_path: Path) -> None:
    stream = separate_tasks_in_turn()

    def engine(**options: Any) -> Engine:
        plugins = [SeparateNetworks(), SoftSharing(strength=0.1), EWC(strength=1.0), LwF(), Replay(capacity=8)]
        return Engine(mlp(stream, (9,)), sgd(), plugins, batch_size=8, seed=2, epochs=2, checkpoint_every=1, **options)

    resumes_bit_for_bit(engine, stream, update, tmp_path)


def test_heads_of_equal_shape_beside_one_that_differs_and_in_micro_batches() -> None:
    stream = separate_task_stream(1)
    whole, _ = final(Engine(mlp(stream, (9,)), sgd(), [SoftSharing(strength=0.5)], batch_size=24), stream)
    parts, _ = final(Engine(mlp(stream, (9,)), sgd(), [SoftSharing(strength=0.5)], batch_size=24, microbatches=3), stream)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor)


def test_one_task_is_trained_as_without_it() -> None:
    stream = class_stream()
    alone, _ = final(Engine(mlp(stream, (9,)), sgd(), [], batch_size=8), stream)
    beside, _ = final(Engine(mlp(stream, (9,)), sgd(), [SoftSharing(strength=5.0)], batch_size=8), stream)
    assert same(alone, beside)


@pytest.mark.parametrize("options", [{"strength": -1}, {"towards": "all"}, {"parameters": ("heads.*",)}, {"parameters": ()}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"plugin soft_sharing: option '{next(iter(options))}"):
        SoftSharing(**options)


def test_where_nothing_corresponds_it_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match=r"correspond across the tasks a, b: list SeparateNetworks\(\)"):
        Engine(mlp(two_task_stream(), (4,)), sgd(), [SoftSharing()]).run(two_task_stream())
