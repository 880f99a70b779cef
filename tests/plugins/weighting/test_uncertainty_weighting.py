from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchjd.scalarization import UW

from streamlearn import Engine, models
from streamlearn.core.checkpoint import latest_checkpoint, read_checkpoint
from streamlearn.errors import ConfigurationError, TrainingError
from streamlearn.plugins import UncertaintyWeighting
from streamlearn.plugins.weighting.uncertainty_weighting import uncertainty_weighted
from streamlearn.streams import Task
from streamlearn.streams.data import Data, Target
from tests.core.support import (
    Spy,
    Stop,
    blobs,
    growing_stream,
    probe,
    same,
    separate_task_stream,
    sgd,
    stop_at,
    stream_of,
    two_task_stream,
)
from tests.integration.conftest import no_drawing  # noqa: F401 - nobody looks at the figures of a run that is stopped and resumed
from tests.plugins.weighting.observed import drawn_start, loaded, trained_by_hand


def log_variances(run: Any, plugin: str = "uncertainty_weighting") -> dict[str, float]:
    prefix = f"{plugin}/"
    return {name.removeprefix(prefix): float(m.value.detach()) for name, m in run.modules.items() if name.startswith(prefix)}


def run_with(plugin: Any, *others: Any, stream: Any = None, **options: Any) -> Any:
    spy, stream = Spy(), stream or two_task_stream()
    Engine(models.mlp(stream, (8,)), sgd(), [plugin, *others, spy], **({"batch_size": 8, "epochs": 2} | options)).run(stream)
    return spy.run


def test_the_formula_is_torchjds() -> None:
    draw = torch.Generator().manual_seed(0)
    losses, s = torch.rand(3, generator=draw, dtype=torch.float64), torch.randn(3, generator=draw, dtype=torch.float64)
    oracle = UW(3).double()
    with torch.no_grad():
        oracle.log_var.copy_(s)
    names = ("a", "b", "c")
    mine = {n: v.clone().requires_grad_() for n, v in zip(names, s, strict=True)}
    value = uncertainty_weighted(dict(zip(names, losses, strict=True)), mine)
    torch.testing.assert_close(value, oracle(losses))
    value.backward()
    oracle(losses).backward()
    torch.testing.assert_close(torch.stack([mine[n].grad for n in names]), oracle.log_var.grad)


def test_a_run_is_a_plain_loop_with_torchjds_uncertainty_weighting() -> None:
    """Weights and log-variances, over two epochs: two tasks on every row, momentum, weight decay on the model alone."""
    stream = two_task_stream(torch.float64)
    start = drawn_start(stream)
    spy = Spy()
    uncertainty = UncertaintyWeighting(initial=0.3, learning_rate=0.2)
    result = Engine(lambda: loaded(stream, start), sgd(), [uncertainty, spy], batch_size=8, epochs=2, seed=4).run(stream)

    oracle = UW(2).double()
    nn.init.constant_(oracle.log_var, 0.3)
    plain = trained_by_hand(stream, start, oracle, oracle.log_var)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value, rtol=1e-9, atol=1e-12)
    assert list(log_variances(spy.run).values()) == pytest.approx(oracle.log_var.tolist(), rel=1e-9)
    assert all(abs(s - 0.3) > 0.05 for s in oracle.log_var.tolist()), "they have been learned"


def test_the_log_variance_finds_the_loss() -> None:
    """At fixed losses the optimum is σ² = L, and every task adds ½ to the objective but for the logarithm."""
    losses = {"a": torch.tensor(4.0, dtype=torch.float64), "b": torch.tensor(0.25, dtype=torch.float64)}
    s = {name: torch.zeros((), dtype=torch.float64, requires_grad=True) for name in losses}
    optimizer = torch.optim.SGD(list(s.values()), lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        uncertainty_weighted(losses, s).backward()
        optimizer.step()
    assert float(s["a"].detach()) == pytest.approx(math.log(4.0), abs=1e-6)
    assert float(s["b"].detach()) == pytest.approx(math.log(0.25), abs=1e-6)


def test_tasks_that_arrive_later_get_theirs_and_absent_ones_stay() -> None:
    seen: list[dict[str, float]] = []
    watch = probe("watch", after_experience=lambda run: seen.append(log_variances(run)))
    run_with(UncertaintyWeighting(initial=0.5), watch, stream=growing_stream())
    assert [list(found) for found in seen] == [["t"], ["t"], ["t"], ["t", "other"]]
    assert seen[0]["t"] != seen[1]["t"] != seen[2]["t"]
    assert seen[3]["t"] == seen[2]["t"], "no row of it, no update: not even by momentum"
    assert seen[3]["other"] != 0.5


def test_weight_decay_does_not_touch_them() -> None:
    run = run_with(UncertaintyWeighting(learning_rate=0.3))
    groups = run.optimization.main.param_groups
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in groups[1:]] == [(0.3, 0.0, 1)] * 2


def test_parts_of_a_task_share_its_log_variance() -> None:
    """Rows "a@x", "a/y" and one named otherwise, whose supervision says its task."""
    seen: list[tuple[dict[str, float], float, dict[str, float]]] = []

    def renamed(supervision: Any) -> Any:
        a, b = supervision
        halves = [a.replace(row=name, outputs=a.outputs[rows], target=a.target[rows], rows=rows)
                  for name, rows in (("a@x", slice(0, 4)), ("a/y", slice(4, 8)))]  # fmt: skip
        return (*halves, b.replace(row="strange"))

    def look(gradients: Any, step: Any) -> Any:
        losses = {n: float(v.detach()) for n, v in step.losses.items()}
        value = float(step.run.hooks.provide_weighting(step.losses, step).detach())
        seen.append((losses, value, log_variances(step.run)))
        return gradients

    run = run_with(UncertaintyWeighting(), probe("split", transform_supervision=renamed), probe("look", transform_gradients=look))
    assert list(log_variances(run)) == ["a", "b"]
    for losses, value, s in seen:
        assert list(losses) == ["a@x", "a/y", "strange"]
        tasks = {"a@x": "a", "a/y": "a", "strange": "b"}
        assert value == pytest.approx(sum(0.5 * math.exp(-s[tasks[r]]) * v + 0.5 * s[tasks[r]] for r, v in losses.items()), rel=1e-5)


def test_a_row_of_no_task_is_refused() -> None:
    engine = Engine(models.mlp(two_task_stream(), (8,)), sgd(), [UncertaintyWeighting(), probe("adds", around_objective=_with_a_ghost)])
    with pytest.raises(TrainingError, match="met the row 'ghost', which belongs to none of the tasks a, b: name it after its task"):
        engine.run(two_task_stream())


def _with_a_ghost(objective: Any, step: Any) -> Any:
    found = objective(step)
    return type(found)({**found.losses, "ghost": next(iter(found.losses.values()))}, found.terms, found.shares)


def test_names_of_tasks_that_look_like_paths() -> None:
    source = blobs(24)
    tasks = tuple(Task(name, size=6) for name in ("v1", "v1.value", "v1/x", "v1/x@y"))
    data = Data(source, torch.arange(24), tasks, {task.name: Target("y") for task in tasks})

    def look(step: Any) -> None:
        moved = step.at({n: p.detach() + 1 for n, p in step.parameters.items() if n.startswith("uncertainty_weighting/")})
        again = moved.run.hooks.provide_weighting(step.losses, moved)
        here = step.run.hooks.provide_weighting(step.losses, step)
        expected = sum(0.5 * math.exp(-s - 1) * float(loss.detach()) + 0.5 * (s + 1) for s, loss in pairs(step))
        assert float(again.detach()) == pytest.approx(expected, rel=1e-5)
        assert float(here.detach()) != pytest.approx(expected, rel=1e-3)

    def pairs(step: Any) -> list[tuple[float, Tensor]]:
        return list(zip(log_variances(step.run).values(), step.losses.values(), strict=True))

    run = run_with(UncertaintyWeighting(), probe("look", collect_terms=look), stream=stream_of([(data, tasks)], tasks))
    assert len(log_variances(run)) == 4


def test_at_fast_weights_the_fast_log_variance_counts_and_gradients_flow_through_it() -> None:
    checked: list[int] = []

    def around(objective: Any, step: Any) -> Any:
        name = "uncertainty_weighting/a.value"
        fast = (step.parameters[name] * 3 + 1).detach().requires_grad_()
        view = step.at({name: fast})
        found = objective(view)
        value = step.run.hooks.provide_weighting(found.losses, view)
        (slope,) = torch.autograd.grad(value, fast, retain_graph=True)
        expected = -0.5 * math.exp(-float(fast.detach())) * float(found.losses["a"].detach()) + 0.5
        assert float(slope) == pytest.approx(expected, rel=1e-5)
        checked.append(1)
        return objective(step)

    run_with(UncertaintyWeighting(), probe("around", around_objective=around))
    assert checked


def test_rows_of_separate_tasks() -> None:
    run = run_with(UncertaintyWeighting(), stream=separate_task_stream())
    found = log_variances(run)
    assert set(found) == {"a", "b"}
    assert all(value != 0 for value in found.values())


def test_stopped_and_resumed(tmp_path: Path) -> None:
    stream = growing_stream()

    def engine(**options: Any) -> Engine:
        return Engine(models.mlp(stream, (8,)), sgd(), [UncertaintyWeighting(initial=0.2)], batch_size=8, checkpoint_every=2, **options)

    engine().run(stream, output=tmp_path / "straight")
    with pytest.raises(Stop):
        engine(progress=stop_at(7)).run(stream, output=tmp_path / "broken")
    engine().resume(tmp_path / "broken", stream)
    states = [read_checkpoint(latest_checkpoint(tmp_path / name / "checkpoints")[0]) for name in ("straight", "broken")]
    assert same(states[0]["model"], states[1]["model"])
    assert same(states[0]["modules"], states[1]["modules"])
    assert same(states[0]["optimization"], states[1]["optimization"])


@pytest.mark.parametrize("options", [{"initial": float("nan")}, {"learning_rate": 0.0}, {"learning_rate": -1.0}])
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=f"option '{next(iter(options))}'"):
        UncertaintyWeighting(**options)
