from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize
from torch import Tensor, nn

from streamlearn import Engine, models
from streamlearn.errors import CompositionError, ConfigurationError
from streamlearn.plugins import MultiHead, NearestClassMean, Replay
from streamlearn.plugins.replay.nearest_class_mean import class_means, mean_distances
from streamlearn.streams import Task
from streamlearn.streams.data import Data, Target
from tests.core.support import Spy, blobs, class_stream, final, growing_stream, net, same, sgd, stream_of, two_task_stream

REPLAY = {"capacity": 17, "policy": "class_balanced"}


@pytest.mark.parametrize("unit", [True, False])
def test_it_predicts_what_scikit_learns_nearest_centroid_predicts(unit: bool) -> None:
    spy, stream = Spy(), class_stream()
    engine = Engine(net(), sgd(lr=0.02), [MultiHead(), Replay(**REPLAY), NearestClassMean(normalize=unit), spy], batch_size=10)
    result = engine.run(stream)
    model = result.model.eval()
    memory = spy.run.memories.open("main", 17, "class_balanced").all_rows()
    with torch.no_grad():
        phi = model.encode(memory.x).double().numpy()
        oracle = NearestCentroid().fit(normalize(phi) if unit else phi, memory.targets["blobs"].numpy())
        if unit:
            oracle.centroids_ = normalize(oracle.centroids_)
        for i in range(3):
            rows = stream.evaluation(i).data
            batch = rows.batch(torch.arange(len(rows)))
            x = model.encode(batch.x).double().numpy()
            found = oracle.predict(normalize(x) if unit else x)
            assert result.accuracy_matrix[-1, i] == pytest.approx(np.mean(found == batch.targets["blobs"].numpy()))
    assert float(result.accuracy_matrix[-1].mean()) > 0.7


def test_it_serves_old_classes_better_than_the_head_of_naive_training() -> None:
    def old(*plugins: Any) -> float:
        engine = Engine(net(dropout=0.0), sgd(lr=0.1), [MultiHead(), Replay(batch_size=1, **REPLAY), *plugins], batch_size=10, epochs=4)
        return float(engine.run(class_stream()).accuracy_matrix[-1, 0])

    assert old(NearestClassMean()) > old()


def test_it_changes_no_weight_and_is_pure() -> None:
    def run(*plugins: Any, **options: Any) -> Any:
        return final(Engine(net(), sgd(), [MultiHead(), Replay(**REPLAY), *plugins], batch_size=7, **options), class_stream())

    plain, _ = run()
    often, events = run(NearestClassMean(), evaluate_every=1)
    assert same(plain, often)
    _, few = run(NearestClassMean())
    measured = [e for e in events if e["event"] == "evaluation" and "within" not in e]
    assert [(e["value"], e["loss"]) for e in measured] == [(e["value"], e["loss"]) for e in few if e["event"] == "evaluation"]


def test_it_follows_a_memory_that_changes_between_two_evaluations_of_one_update() -> None:
    """The last update of an experience is measured before the memory is filled, and again after it."""
    engine = Engine(net(), sgd(), [MultiHead(), Replay(**REPLAY), NearestClassMean()], batch_size=10, evaluate_every=2)
    lines = [e for e in engine.run(class_stream()).events if e["event"] == "evaluation" and e["update"] == 2 and e["set"] == 0]
    assert [line["value"] is None for line in lines] == [True, False]


def test_without_exemplars_a_task_is_undefined_and_says_so() -> None:
    stream = two_task_stream()
    result = Engine(models.mlp(stream, (8,)), sgd(), [Replay(capacity=9), NearestClassMean()]).run(stream)
    first = [e for e in result.events if e["event"] == "evaluation" and e["trained"] == 0]
    assert {e["task"]: e["value"] for e in first} == {"a": None, "b": None}
    assert all(e["reason"].startswith("the active predictor gives no outputs for task") for e in first)
    last = [e for e in result.events if e["event"] == "evaluation" and e["trained"] == 1]
    assert all(e["value"] > 0.3 and np.isfinite(e["loss"]) for e in last)


def test_growing_tasks_and_classes_without_exemplars_have_finite_losses() -> None:
    stream = growing_stream()
    result = Engine(models.mlp(stream, (8,)), sgd(), [Replay(capacity=20), NearestClassMean()], batch_size=10).run(stream)
    values = [e for e in result.events if e["event"] == "evaluation" and e["value"] is not None]
    assert all(e["loss"] is None or np.isfinite(e["loss"]) for e in values)
    assert {e["task"] for e in values} == {"t", "other"}


def test_a_regression_keeps_the_models_outputs() -> None:
    source = blobs(20, 6)
    source.targets["r"] = torch.randn(20, 2)
    tasks = (Task("c", size=6), Task("r", "regression", size=2))
    stream = stream_of([(Data(source, torch.arange(20), tasks, {"c": Target("y"), "r": Target("r")}), tasks)], tasks)

    def errors(*plugins: Any) -> list[Any]:
        events = Engine(models.mlp(stream, (8,)), sgd(), [Replay(capacity=9), *plugins]).run(stream).events
        return [(e["value"], e["loss"]) for e in events if e["event"] == "evaluation" and e["task"] == "r" and e["trained"]]

    assert errors(NearestClassMean()) == errors()


def test_rows_without_a_label_are_no_exemplars() -> None:
    source, task = blobs(40, 6), Task("t", size=6)
    known = torch.arange(40) % 6 < 3
    stream = stream_of([(Data(source, torch.arange(40), (task,), {"t": Target("y")}, labelled={"t": known}), (task,))], (task,))
    spy, ncm = Spy(), NearestClassMean()
    Engine(net(), sgd(), [MultiHead(), Replay(capacity=40), ncm, spy]).run(stream)
    with torch.no_grad():
        means = ncm._computed(_Evaluation(spy.run))
    assert means["t"][1].tolist() == [True, True, True, False, False, False]


class _Evaluation:
    def __init__(self, run: Any) -> None:
        self.run, self.trained = run, 1


def test_image_features_are_flattened() -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(-1, 2, 3)

    stream = class_stream()
    heads = models.mlp(stream, ()).heads
    model = models.Model(Wide(), heads)
    heads.forward = lambda features, task: nn.Linear.forward(heads.by_task[task], features.flatten(1))
    result = Engine(model, sgd(), [Replay(capacity=30), NearestClassMean()]).run(stream)
    assert float(result.accuracy_matrix[-1].mean()) > 0.9


def test_means_and_distances_by_hand() -> None:
    features, labels = torch.tensor([[3.0, 4.0], [0.0, 1.0], [2.0, 0.0]]), torch.tensor([0, 0, 2])
    means, known = class_means(features, labels, 3, unit=False)
    assert means.tolist() == [[1.5, 2.5], [0.0, 0.0], [2.0, 0.0]]
    assert known.tolist() == [True, False, True]
    unit, _ = class_means(features, labels, 3)
    torch.testing.assert_close(unit[0], torch.tensor([1.5, 2.5]) / 8.5**0.5)
    found = mean_distances(torch.tensor([[2.0, 3.0]]), means, known)
    torch.testing.assert_close(found, torch.tensor([[-(0.5**0.5), -1003.0, -3.0]]))


def test_a_memory_that_nobody_fills_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="nearest_class_mean reads the replay memory 'other', but there is none of that name"):
        Engine(net(), sgd(), [Replay(), NearestClassMean(memory="other")]).run(class_stream())


def test_it_needs_replay_and_stands_alone() -> None:
    with pytest.raises(CompositionError, match="nearest_class_mean needs 'replay'"):
        Engine(net(), sgd(), [NearestClassMean()])
    with pytest.raises(CompositionError, match="claim 'provide_predictions'"):
        Engine(net(), sgd(), [Replay(), NearestClassMean(), NearestClassMean(name="second")])
