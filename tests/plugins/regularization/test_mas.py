from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamlearn import Engine, models, streams
from streamlearn.plugins import EWC, LwF, MultiHead, Replay
from streamlearn.plugins.regularization.mas import MAS
from streamlearn.streams import Task
from streamlearn.streams.data import Data, JoinedData, Target
from tests.core.support import Stop, blobs, class_stream, final, growing_stream, net, probe, same, sgd, stop_at, stream_of
from tests.plugins.regularization.avalanche_oracle import avalanche_plugin, difference, network, plain_sgd, trained, trained_by


def sensitivity(model: Any, x: Tensor) -> dict[str, Tensor]:
    """1/N Σ |∂ ‖F(x_i)‖² / ∂θ|, one row at a time."""
    named = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    for row in x:
        found = torch.autograd.grad(model(row[None], "blobs").square().sum(), list(named.values()))
        for name, gradient in zip(named, found, strict=True):
            total[name] += gradient.abs() / len(x)
    return total


@pytest.mark.parametrize("accumulation", ["sum", "average"])
def test_the_term_is_the_formula_over_rows_one_by_one(accumulation: str) -> None:
    plugin = MAS(strength=0.3, accumulation=accumulation, alpha=0.7)
    omega: dict[str, Tensor] = {}
    anchors: list[dict[str, Tensor]] = []
    seen: list[int] = []

    def after(run: Any) -> None:
        fresh = sensitivity(run.model, run.data().batch(torch.arange(20)).x)
        for name, value in fresh.items():
            if name not in omega:
                omega[name] = value
            else:
                omega[name] = omega[name] + value if accumulation == "sum" else 0.7 * omega[name] + 0.3 * value
        anchors.append(run.snapshot())

    def look(gradients: Any, step: Any) -> Any:
        if anchors:
            seen.append(len(anchors))
            expected = sum(0.3 * (omega[n] * (p.detach() - anchors[-1][n]) ** 2).sum() for n, p in step.parameters.items())
            assert float(step.terms["mas"].detach()) == pytest.approx(float(expected), rel=1e-4, abs=1e-9)
        return gradients

    watch = probe("watch", transform_gradients=look, after_experience=after)
    Engine(network(), plain_sgd, [plugin, watch], batch_size=10).run(class_stream())
    assert seen == [1, 1, 2, 2]
    for name, value in plugin.state_dict()["importance"].items():
        torch.testing.assert_close(value, omega[name], rtol=1e-4, atol=1e-6)


def test_it_agrees_with_avalanche_where_that_takes_rows_one_by_one() -> None:
    """Avalanche takes the absolute value of a mini-batch's mean gradient: at batch size 1 that of the row, and less beyond."""
    plugin = MAS(strength=0.2, accumulation="average", alpha=0.5)
    weights, batches = trained(plugin)
    build = avalanche_plugin("MASPlugin")
    ones, many = build(lambda_reg=0.2, alpha=0.5), build(lambda_reg=0.2, alpha=0.5)
    assert difference(trained_by(ones, batches), weights) < 1e-5
    assert difference(trained_by(build(lambda_reg=0.0, alpha=0.5), batches), weights) > 1e-2
    importance = {name.removeprefix("encoder."): value for name, value in plugin.state_dict()["importance"].items()}
    for name, value in importance.items():
        torch.testing.assert_close(ones.importance[name].data, value, rtol=1e-4, atol=1e-5)
    assert difference(trained_by(many, batches, rows_per_pass=32), weights) > 1e-3
    theirs, ours = (sum(float(v.sum()) for v in found) for found in ([many.importance[n].data for n in importance], importance.values()))
    assert theirs < 0.8 * ours


def test_labels_are_never_read_and_rows_without_one_count() -> None:
    source, task = blobs(20), Task("blobs", size=6)
    whole = Data(source, torch.arange(20), (task,), {"blobs": Target("y")})
    partly = JoinedData([whole.subset(torch.arange(8)), whole.subset(torch.arange(8, 20)).without_labels()])

    def importance(data: Any) -> dict[str, Tensor]:
        plugin = MAS()
        still = sgd(lr=0.0)
        Engine(network(), still, [plugin], batch_size=4, evaluate="never").run(stream_of([(data, (task,))], (task,)))
        found: dict[str, Tensor] = plugin.state_dict()["importance"]
        return found

    found, expected = importance(partly), importance(whole)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_it_forgets_less_on_digits() -> None:
    def accuracy(*plugins: Any) -> float:
        stream = streams.task_incremental("digits", 5)
        engine = Engine(models.mlp(stream, (32,)), sgd(lr=0.05, weight_decay=0.0), plugins, epochs=3, seed=1)
        return float(engine.run(stream).metrics["average_accuracy"])

    assert accuracy(MAS(strength=0.01)) > accuracy() + 0.02


def test_heads_that_grow_or_are_absent_and_others_beside_it() -> None:
    plugin = MAS(strength=0.01)
    beside = [MultiHead(), plugin, EWC(strength=1.0), LwF(), Replay(capacity=10)]
    weights, _ = final(Engine(models.mlp(growing_stream(), (8,)), sgd(), beside, batch_size=10), growing_stream())
    state = plugin.state_dict()
    assert {name: tuple(state["importance"][name].shape) for name in state["importance"] if "weight" in name and "heads" in name} == {
        "heads.by_task.t.weight": (6, 8),
        "heads.by_task.other.weight": (3, 8),
    }
    assert state["importance"].keys() == state["anchor"].keys()
    assert all(bool((value >= 0).all()) for value in state["importance"].values())
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_a_run_resumed_in_mid_experience_is_the_uninterrupted_one(tmp_path: Path) -> None:
    def engine(**options: Any) -> Engine:
        return Engine(net(), sgd(), [MAS(strength=0.01)], batch_size=10, **options)

    with pytest.raises(Stop):
        engine(progress=stop_at(3), checkpoint_every=1).run(class_stream(), output=tmp_path)
    resumed = engine(checkpoint_every=1).resume(tmp_path, class_stream())
    assert same(dict(resumed.model.state_dict()), final(engine(), class_stream())[0])


def test_strength_zero_keeps_nothing() -> None:
    plugin = MAS(strength=0)
    Engine(net(), sgd(), [plugin]).run(class_stream())
    assert plugin.state_dict() == {"importance": {}, "anchor": {}}
