from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from streamlearn import Engine, models, streams
from streamlearn.core.evaluation import without_labels
from streamlearn.core.randomness import generator
from streamlearn.errors import ConfigurationError, TrainingError
from streamlearn.plugins import EWC, SLDA, MultiHead, Replay
from streamlearn.plugins.replay.ranpac import RIDGES, RanPAC, Sums, chosen_ridge, projected, ridge_weights, updated
from streamlearn.streams import Task
from streamlearn.streams.data import Data, Target
from tests.core.support import blobs, class_stream, final, growing_stream, net, probe, same, sgd, stopped_or_straight, stream_of


def rows_of(rows: int = 60, classes: int = 4, features: int = 5, width: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    y = torch.cat([torch.arange(classes), torch.randint(classes, (rows - classes,), generator=draw)])
    x = torch.randn(rows, features, generator=draw, dtype=torch.float64) + 2 * torch.randn(classes, features, generator=draw).double()[y]
    return x, y, torch.randn(features, width, generator=draw, dtype=torch.float64)


def learnt(x: Tensor, y: Tensor, projection: Tensor, portions: list[int], classes: int = 4) -> Sums:
    known = Sums.empty(classes, projection)
    for features, labels in zip(x.split(portions), y.split(portions), strict=True):
        known = updated(known, features, labels, projection)
    return known


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 1e4])
def test_the_weights_are_those_of_scikit_learns_ridge_regression_on_all_rows_at_once(ridge: float) -> None:
    x, y, projection = rows_of()
    known = learnt(x, y, projection, [1, 30, 0, 29])
    h = np.maximum(x.numpy() @ projection.numpy(), 0)
    expected = Ridge(alpha=ridge, fit_intercept=False, solver="svd").fit(h, np.eye(4)[y.numpy()])
    np.testing.assert_allclose(ridge_weights(known.gram, known.prototypes, ridge).T, expected.coef_, rtol=1e-6, atol=1e-10)


def test_the_order_and_the_portions_of_rows_do_not_matter() -> None:
    x, y, projection = rows_of()
    joint = learnt(x, y, projection, [60])
    for seed in range(3):
        order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
        known = learnt(x[order], y[order], projection, [5, 30, 25])
        torch.testing.assert_close(known.gram, joint.gram, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(known.prototypes, joint.prototypes, rtol=1e-12, atol=1e-12)
        assert known.counts.tolist() == torch.bincount(y).tolist()


def by_hand(x: Tensor, y: Tensor, projection: Tensor, ridge: float) -> float:
    """The error on the last fifth of a ridge regression of the rest, in the long form and by an inverse."""
    h, targets, fit = projected(x, projection), torch.nn.functional.one_hot(y, 4).double(), int(0.8 * len(x))
    weights = torch.linalg.inv(h[:fit].T @ h[:fit] + ridge * torch.eye(h.shape[1], dtype=torch.float64)) @ h[:fit].T @ targets[:fit]
    return float((h[fit:] @ weights - targets[fit:]).square().mean())


@pytest.mark.parametrize("width", [12, 48, 49, 200])  # fewer projected features than the 48 rows to fit, as many, and more
def test_the_ridge_is_the_best_of_the_candidates_on_held_out_rows(width: int) -> None:
    x, y, projection = rows_of(width=width)
    ridges = tuple(10.0**power for power in range(-2, 7))
    errors = [by_hand(x, y, projection, ridge) for ridge in ridges]
    assert len({round(error, 6) for error in errors}) > 4
    assert 0 < int(np.argmin(errors)) < len(ridges) - 1
    targets = torch.nn.functional.one_hot(y, 4)
    assert chosen_ridge(x, targets, projection, ridges) == ridges[int(np.argmin(errors))]


def test_a_ridge_too_small_for_64_bits_is_passed_over_or_raised() -> None:
    h = torch.ones(3, 3, dtype=torch.float64) * 1e9  # of rank 1: a ridge of 1e-8 is lost beside it
    weights = ridge_weights(h, torch.eye(3, dtype=torch.float64), 1e-8)
    assert bool(weights.isfinite().all())
    x, projection = torch.ones(20, 2, dtype=torch.float64) * 1e6, torch.ones(2, 3, dtype=torch.float64)
    assert chosen_ridge(x, torch.eye(2)[torch.arange(20) % 2], projection) in RIDGES
    assert chosen_ridge(x[:1], torch.ones(1, 2), projection) is None


def joined(stream: Any, task: str = "blobs") -> tuple[Tensor, Tensor]:
    batches = [data.batch(torch.arange(len(data))) for data in (experience.data["train"] for experience in stream)]
    return torch.cat([b.x for b in batches]), torch.cat([b.targets[task] for b in batches])


def scores_of(plugin: RanPAC, stream: Any, **options: Any) -> Tensor:
    """What a run predicts in the end for all training rows of its stream."""
    found: list[Tensor] = []
    batches = [data.batch(torch.arange(len(data))) for data in (experience.data["train"] for experience in stream)]

    def look(evaluation: Any) -> None:
        if evaluation.trained:
            found[:] = [plugin.provide_predictions(without_labels(batch), evaluation)["blobs"] for batch in batches]

    Engine(models.mlp(stream, ()), sgd(), [plugin, probe("look", before_evaluation=look)], **options).run(stream)
    return torch.cat(found)


def test_a_run_with_an_identity_encoder_is_the_joint_ridge_regression_in_any_order() -> None:
    stream = class_stream()
    x, y = joined(stream)
    plugin = RanPAC(dimensions=40, ridge=3.0)
    found = scores_of(plugin, stream, seed=5)
    projection = torch.randn(6, 40, generator=generator(5, "plugin", "ranpac", "projection"))
    h = np.maximum(x.numpy().astype(float) @ projection.numpy().astype(float), 0)
    expected = Ridge(alpha=3.0, fit_intercept=False, solver="svd").fit(h, np.eye(6)[y.numpy()]).predict(h)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_both_types_agree_and_the_seed_draws_the_projection() -> None:
    stream = class_stream()
    double, single = (scores_of(RanPAC(dimensions=40, ridge=1.0, dtype=dtype), stream) for dtype in ("float64", "float32"))
    torch.testing.assert_close(single, double, rtol=1e-3, atol=1e-4)
    again, other = (scores_of(RanPAC(dimensions=40, ridge=1.0), stream, seed=seed) for seed in (0, 1))
    assert torch.equal(again, double)
    assert float((other - double).abs().max()) > 1e-3


def test_it_learns_digits_without_forgetting_and_beats_the_linear_features() -> None:
    stream = streams.class_incremental("digits", 5)

    def accuracy(*plugins: Any) -> float:
        return float(Engine(models.mlp(stream, ()), sgd(), plugins, epochs=2).run(stream).metrics["average_accuracy"])

    ranpac = accuracy(RanPAC(dimensions=500))
    assert ranpac > 0.95
    assert ranpac > accuracy(SLDA()) > accuracy() + 0.3


def test_no_parameter_moves_and_each_row_is_met_once() -> None:
    before = net().state_dict()
    weights, events = final(Engine(net(), sgd(), [MultiHead(), RanPAC(dimensions=9)], batch_size=7, epochs=4), class_stream())
    assert all(torch.equal(weights[f"encoder.{name}"], value) for name, value in before.items() if name.startswith("body"))
    assert [e["updates"] for e in events if e["event"] == "experience"] == [3, 3, 3]
    assert all(not e["losses"] for e in events if e["event"] == "epoch")


def test_the_first_session_trains_the_encoder_on_the_first_experience_alone() -> None:
    def run(*plugins: Any, stream: Any) -> list[Any]:
        snapshots: list[Any] = []
        watch = probe("watch", after_experience=lambda run: snapshots.append(run.snapshot()))
        Engine(net(), sgd(), [MultiHead(), *plugins, watch], batch_size=10, epochs=3).run(stream)
        return snapshots

    stream, plugin = class_stream(), RanPAC(dimensions=9, first_session=True)
    found = run(plugin, stream=stream)
    assert same(found[0], run(stream=stream[:1])[0])
    assert same(found[1], found[0])
    assert same(found[2], found[0])
    assert plugin.state_dict()["blobs"]["counts"].tolist() == [10.0] * 6


def test_memory_rows_and_rows_without_a_label_are_not_counted() -> None:
    source, task = blobs(40, 6), Task("t", size=6)
    known = torch.arange(20) % 3 == 0
    pieces = [
        (Data(source, torch.arange(20 * i, 20 * i + 20), (task,), {"t": Target("y")}, labelled={"t": known}), (task,)) for i in range(2)
    ]
    plugin, stream = RanPAC(dimensions=8, first_session=True), stream_of(pieces, (task,))
    Engine(models.mlp(stream, (8,)), sgd(), [Replay(capacity=10), EWC(), plugin], batch_size=6).run(stream)
    rows = torch.cat([known.nonzero().flatten(), 20 + known.nonzero().flatten()])
    assert plugin.state_dict()["t"]["counts"].tolist() == torch.bincount(source.targets["y"][rows], minlength=6).tolist()


def test_growing_tasks_keep_their_places_and_classes_not_met_have_finite_losses() -> None:
    stream, plugin = growing_stream(), RanPAC(dimensions=30)
    result = Engine(models.mlp(stream, (8,)), sgd(), [plugin], batch_size=10).run(stream)
    values = [e for e in result.events if e["event"] == "evaluation" and e["value"] is not None]
    assert all(e["loss"] is None or np.isfinite(e["loss"]) for e in values)
    state = plugin.state_dict()
    assert state["t"]["counts"].tolist() == [10.0] * 6
    assert state["t"]["prototypes"].shape == (30, 6)
    assert state["other"]["counts"].shape == (3,)
    assert state["t"]["ridge"] in RIDGES
    first = [e for e in result.events if e["event"] == "evaluation" and e["trained"] == 0]
    assert all(e["value"] is None and e["reason"] for e in first)
    joint = RanPAC(dimensions=30)
    whole = stream_of([(Data(blobs(60, 6), torch.arange(60), (Task("t", size=6),), {"t": Target("y")}), (Task("t", size=6),))],
                      (Task("t", size=6),))  # fmt: skip
    Engine(models.mlp(stream, (8,)), sgd(), [joint]).run(whole)
    torch.testing.assert_close(state["t"]["gram"], joint.state_dict()["t"]["gram"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(state["t"]["prototypes"], joint.state_dict()["t"]["prototypes"], rtol=1e-6, atol=1e-6)


def test_a_class_not_met_is_never_predicted() -> None:
    stream = class_stream()
    plugin = RanPAC(dimensions=30)
    found = scores_of(plugin, stream[:1])
    assert set(found.argmax(1).tolist()) <= {0, 1}
    assert bool((found[:, 2:] < found[:, :2].amin(1, keepdim=True) - 999).all())


def test_a_regression_beside_it_is_undefined_and_says_so() -> None:
    source = blobs(20, 6)
    source.targets["r"] = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    tasks = (Task("c", size=6), Task("r", "regression", size=2))
    stream = stream_of([(Data(source, torch.arange(20), tasks, {"c": Target("y"), "r": Target("r")}), tasks)], tasks)
    lines = [e for e in Engine(models.mlp(stream, (8,)), sgd(), [RanPAC(dimensions=9)]).run(stream).events if e["event"] == "evaluation"]
    last = {e["task"]: e for e in lines if e["trained"]}
    assert last["c"]["value"] > 0.5
    assert last["r"]["value"] is None
    assert "no outputs for task 'r'" in last["r"]["reason"]


def test_features_of_more_than_one_dimension_are_flattened_and_bad_ones_refused() -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(-1, 2, 3)

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 0

    stream, plugin = class_stream(), RanPAC(dimensions=7)
    Engine(models.Model(Wide(), models.mlp(stream, ()).heads), sgd(), [plugin]).run(stream)
    assert plugin.state_dict()["blobs"]["gram"].shape == (7, 7)
    with pytest.raises(TrainingError, match="ranpac: the encoder gives features that are not finite for rows of experience 0"):
        Engine(models.Model(Broken(), models.mlp(stream, ()).heads), sgd(), [RanPAC(dimensions=7)], evaluate="never").run(stream)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("update", [2, 5, 8])
def test_stopped_and_resumed_equals_the_straight_run(update: int, first: bool, tmp_path: Path) -> None:
    def engine(**more: Any) -> Engine:
        plugins = [RanPAC(dimensions=20, first_session=first)]
        return Engine(models.mlp(growing_stream(), (8,), dropout=0.2), sgd(), plugins, batch_size=8, epochs=2, checkpoint_every=1, **more)

    broken = stopped_or_straight(engine, growing_stream, tmp_path / "broken", update)
    straight = stopped_or_straight(engine, growing_stream, tmp_path / "straight")
    assert same(broken[0], straight[0])
    assert broken[1] == straight[1]


@pytest.mark.parametrize("options", [{"dimensions": 0}, {"ridge": 0.0}, {"dtype": "float16"}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"plugin ranpac: option '{next(iter(options))}'"):
        RanPAC(**options)
