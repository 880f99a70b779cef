from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

from streamlearn import Engine, models
from streamlearn.errors import CompositionError, ConfigurationError
from streamlearn.plugins import SLDA, Joint, MultiHead, Replay
from streamlearn.plugins.replay.slda import Statistics, discriminant, updated
from streamlearn.streams import Task
from streamlearn.streams.data import Data, Target
from tests.core.support import Spy, blobs, class_stream, final, growing_stream, net, probe, same, sgd, stopped_or_straight, stream_of


class Shrunk:
    """(1 - ε) Σ + ε I, as scikit-learn wants an estimator of covariance."""

    def __init__(self, shrinkage: float) -> None:
        self.shrinkage = shrinkage

    def fit(self, x: np.ndarray) -> Shrunk:
        self.covariance_ = (1 - self.shrinkage) * np.cov(x.T, bias=True) + self.shrinkage * np.eye(x.shape[1])
        return self


def oracle(x: np.ndarray, y: np.ndarray, shrinkage: float) -> LinearDiscriminantAnalysis:
    """scikit-learn's own discriminant analysis; its shared covariance is Σ_c n_c / n Σ_c, as here."""
    return LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=Shrunk(shrinkage)).fit(x, y)


def rows_of(seed: int = 0, rows: int = 50, classes: int = 4, features: int = 5) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    y = torch.cat([torch.arange(classes), (torch.rand(rows - classes, generator=draw).square() * classes).long()])  # unequal classes
    x = torch.randn(rows, features, generator=draw, dtype=torch.float64) @ torch.randn(features, features, generator=draw).double()
    return x + 3 * torch.randn(classes, features, generator=draw).double()[y] + 100.0, y


def learnt(x: Tensor, y: Tensor, portions: list[int], classes: int = 4) -> Statistics:
    known = Statistics.empty(classes, x.shape[1])
    for features, labels in zip(x.split(portions), y.split(portions), strict=True):
        known = updated(known, features, labels)
    return known


@pytest.mark.parametrize("shrinkage", [1e-4, 0.3, 1.0])
def test_weights_and_biases_are_scikit_learns(shrinkage: float) -> None:
    x, y = rows_of()
    expected = oracle(x.numpy(), y.numpy(), shrinkage)
    weight, bias = discriminant(learnt(x, y, [1, 7, 0, 30, 12]), shrinkage)
    np.testing.assert_allclose(weight, expected.coef_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(bias, expected.intercept_ - np.log(expected.priors_), rtol=1e-6)


def test_the_order_and_the_portions_of_rows_do_not_matter() -> None:
    x, y = rows_of()
    expected = [torch.stack([x[y == c].mean(0) for c in range(4)]), sum((x[y == c] - x[y == c].mean(0)).T @ (x[y == c] - x[y == c].mean(0))
                                                                       for c in range(4))]  # fmt: skip
    for seed in range(3):
        order = torch.randperm(50, generator=torch.Generator().manual_seed(seed))
        for portions in ([1] * 50, [50], [13, 37]):
            known = learnt(x[order], y[order], portions)
            assert known.counts.tolist() == torch.bincount(y).tolist()
            torch.testing.assert_close(known.means, expected[0])
            torch.testing.assert_close(known.scatter, expected[1])


def test_one_row_at_a_time_is_the_running_mean_formula() -> None:
    x, y = rows_of(rows=20)
    mean, count = torch.zeros(4, 5, dtype=torch.float64), torch.zeros(4)
    known = Statistics.empty(4, 5)
    for z, c in zip(x, y.tolist(), strict=True):
        mean[c] = (count[c] * mean[c] + z) / (count[c] + 1)  # eq. 2 of the paper
        count[c] += 1
        known = updated(known, z.unsqueeze(0), torch.tensor([c]))
        torch.testing.assert_close(known.means, mean)


def test_a_run_with_an_identity_encoder_predicts_what_scikit_learn_predicts() -> None:
    stream = class_stream()
    result = Engine(models.mlp(stream, ()), sgd(), [SLDA()], batch_size=7, epochs=5).run(stream)
    everything = [stream[i].data["train"] for i in range(3)]
    batches = [data.batch(torch.arange(len(data))) for data in everything]
    x, y = torch.cat([b.x for b in batches]).double().numpy(), torch.cat([b.targets["blobs"] for b in batches]).numpy()
    expected = oracle(x, y, 1e-4)
    for i, batch in enumerate(batches):
        found = expected.predict(batch.x.double().numpy())
        assert result.accuracy_matrix[-1, i] == pytest.approx(np.mean(found == batch.targets["blobs"].numpy()))
    assert float(result.accuracy_matrix[-1].min()) > 0.9
    last = [e for e in result.events if e["event"] == "evaluation" and e["trained"] == 3]
    log_posterior = expected.decision_function(x) - np.log(expected.priors_)
    nll = -(log_posterior - np.logaddexp.reduce(log_posterior, 1, keepdims=True))[np.arange(60), y]
    assert np.mean([e["loss"] for e in last]) == pytest.approx(nll.mean(), rel=1e-3, abs=1e-6)


def test_no_parameter_and_no_buffer_moves_and_each_row_is_met_once() -> None:
    before = net()
    seen: list[int] = []
    watch = probe("watch", before_step=lambda step: seen.extend(step.batch.index.tolist()))
    weights, events = final(Engine(net(), sgd(), [MultiHead(), SLDA(), watch], batch_size=7, epochs=4), class_stream())
    old = before.state_dict()
    assert all(torch.equal(weights[f"encoder.{name}"], value) for name, value in old.items() if name.startswith("body"))
    assert sorted(seen) == list(range(60))
    assert all(not e["losses"] for e in events if e["event"] == "epoch")


def test_base_initialization_trains_the_encoder_on_the_first_experience_alone() -> None:
    snapshots: list[Any] = []
    watch = probe("watch", after_experience=lambda run: snapshots.append(run.snapshot()))
    spy, slda, stream = Spy(), SLDA(base_initialization=True), class_stream()
    result = Engine(net(), sgd(), [MultiHead(), slda, watch, spy], batch_size=10, epochs=3).run(stream)
    plain: list[Any] = []
    one = probe("watch", after_experience=lambda run: plain.append(run.snapshot()))
    Engine(net(), sgd(), [MultiHead(), one], batch_size=10, epochs=3).run(stream[:1])
    assert same(snapshots[0], plain[0])
    assert same(snapshots[1], snapshots[0])
    assert same(snapshots[2], snapshots[0])
    data = [stream[i].data["train"] for i in range(3)]
    batches = [d.batch(torch.arange(len(d))) for d in data]
    with torch.no_grad():
        z = result.model.eval().encode(torch.cat([b.x for b in batches]))
    expected = updated(Statistics.empty(6, z.shape[1]), z, torch.cat([b.targets["blobs"] for b in batches]))
    found = slda.state_dict()["blobs"]
    assert found["counts"].tolist() == [10.0] * 6
    torch.testing.assert_close(found["means"], expected.means, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["scatter"], expected.scatter, rtol=1e-4, atol=1e-4)


def test_memory_rows_and_rows_without_a_label_are_not_counted() -> None:
    source, task = blobs(40, 6), Task("t", size=6)
    known = torch.arange(20) % 3 == 0
    pieces = [
        (Data(source, torch.arange(20 * i, 20 * i + 20), (task,), {"t": Target("y")}, labelled={"t": known}), (task,)) for i in range(2)
    ]
    slda = SLDA()
    Engine(models.mlp(stream_of(pieces, (task,)), ()), sgd(), [Replay(capacity=10), slda], batch_size=6).run(stream_of(pieces, (task,)))
    rows = torch.cat([known.nonzero().flatten(), 20 + known.nonzero().flatten()])
    assert slda.state_dict()["t"]["counts"].tolist() == torch.bincount(source.targets["y"][rows], minlength=6).tolist()


def test_several_updates_per_batch_count_a_row_once() -> None:
    several = probe("several", transform_phases=lambda phases: tuple(p.replace(updates=(("*",), ("*",))) for p in phases))
    slda = SLDA()
    Engine(models.mlp(class_stream(), ()), sgd(), [slda, several], batch_size=7).run(class_stream())
    assert slda.state_dict()["blobs"]["counts"].tolist() == [10.0] * 6


def test_growing_tasks_and_classes_not_met_have_finite_losses() -> None:
    stream, slda = growing_stream(), SLDA()
    result = Engine(models.mlp(stream, (8,)), sgd(), [slda], batch_size=10).run(stream)
    values = [e for e in result.events if e["event"] == "evaluation" and e["value"] is not None]
    assert all(e["loss"] is None or np.isfinite(e["loss"]) for e in values)
    assert slda.state_dict()["t"]["counts"].tolist() == [10.0] * 6
    assert slda.state_dict()["other"]["counts"].shape == (3,)
    first = [e for e in result.events if e["event"] == "evaluation" and e["trained"] == 0]
    assert all(e["value"] is None and e["reason"] for e in first)


@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("update", [2, 5, 8])
def test_stopped_and_resumed_equals_the_straight_run(update: int, base: bool, tmp_path: Path) -> None:
    def engine(**more: Any) -> Engine:
        plugins = [SLDA(base_initialization=base)]
        return Engine(models.mlp(growing_stream(), (8,), dropout=0.2), sgd(), plugins, batch_size=8, epochs=2, checkpoint_every=1, **more)

    broken = stopped_or_straight(engine, growing_stream, tmp_path / "broken", update)
    straight = stopped_or_straight(engine, growing_stream, tmp_path / "straight")
    assert same(broken[0], straight[0])
    assert broken[1] == straight[1]


def test_features_of_more_than_one_dimension_are_flattened() -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(-1, 2, 3)

    stream, slda = class_stream(), SLDA()
    Engine(models.Model(Wide(), models.mlp(stream, ()).heads), sgd(), [slda]).run(stream)
    assert slda.state_dict()["blobs"]["means"].shape == (6, 6)


@pytest.mark.parametrize("shrinkage", [0.0, 1.1])
def test_bad_options_are_refused(shrinkage: float) -> None:
    with pytest.raises(ConfigurationError, match="plugin slda: option 'shrinkage'"):
        SLDA(shrinkage=shrinkage)


def test_it_does_not_stand_beside_joint_training() -> None:
    with pytest.raises(CompositionError, match="slda cannot stand beside joint"):
        Engine(net(), sgd(), [SLDA(), Joint()])
