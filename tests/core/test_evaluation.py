from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from streamlearn import Engine, models, streams
from streamlearn.streams import Task
from streamlearn.streams.data import Data, Target
from streamlearn.streams.sources import TensorSource
from tests.core.support import class_stream, growing_stream, net, probe, sgd, stream_of


def test_accuracy_and_loss_by_hand() -> None:
    """A model that never learns: what is recorded is counted by hand."""
    stream, model = class_stream(), net()
    events = Engine(model, sgd(lr=0.0, weight_decay=0.0), evaluation_batch_size=7).run(stream).events
    model = net().eval()
    for i in range(3):
        batch = stream.evaluation(i).data.batch(torch.arange(20))
        outputs = model(batch.x)
        line = next(e for e in events if e["event"] == "evaluation" and e["set"] == i)
        assert (line["trained"], line["task"], line["metric"], line["count"]) == (0, "blobs", "accuracy", 20)
        assert line["value"] == int((outputs.argmax(1) == batch.targets["blobs"]).sum()) / 20
        assert line["loss"] == pytest.approx(float(nn.functional.cross_entropy(outputs, batch.targets["blobs"]).detach()), rel=1e-5)


def test_a_task_without_a_head_is_undefined_with_a_reason() -> None:
    result = Engine(models.mlp(growing_stream(), (8,)), sgd(), batch_size=20).run(growing_stream())
    lines = [e for e in result.events if e["event"] == "evaluation" and e["task"] == "other"]
    assert [line["value"] is None for line in lines] == [True, True, True, True, False]
    assert {line["reason"] for line in lines[:4]} == {"the model has no head for task 'other' yet"}
    grown = [e for e in result.events if e["event"] == "evaluation" and e["set"] == 2]
    assert [line["loss"] is None for line in grown] == [True, True, True, False, False], "no likelihood for classes the head lacks"


def test_regression_is_the_mean_squared_error() -> None:
    x = torch.arange(12.0).reshape(6, 2) / 10
    task = Task("r", "regression", size=2)
    data = Data(TensorSource(x, {"y": 2 * x}, "line"), torch.arange(6), (task,), {"r": Target("y")})
    stream = stream_of([(data, (task,))], (task,), features=2)
    model = nn.Linear(2, 2)
    start = float(((model(x) - 2 * x) ** 2).mean().detach())
    events = Engine(model, sgd(), epochs=20, evaluation_batch_size=4).run(stream).events
    values = [e["value"] for e in events if e["event"] == "evaluation"]
    assert values[0] == pytest.approx(start, rel=1e-5)
    assert values[1] < 0.5 * values[0]


def test_metrics_of_plugins_and_fast_weights() -> None:
    from torchmetrics.classification import MulticlassAccuracy

    def predict(batch: Any, evaluation: Any) -> Any:
        fast = {n: 0 * p for n, p in evaluation.run.parameters().items()}
        outputs = evaluation.at(fast, batch)
        assert bool((outputs["blobs"] == 0).all())
        return outputs

    metric = probe("metric", collect_metrics=lambda: {"micro": MulticlassAccuracy(6, average="micro")}, provide_predictions=predict)
    result = Engine(net(), sgd(), [metric]).run(class_stream())
    lines = [e for e in result.events if e["event"] == "evaluation" and e["metric"] == "metric/micro"]
    first = [e for e in result.events if e["event"] == "evaluation" and e["metric"] == "accuracy"]
    assert [line["value"] for line in lines] == pytest.approx([line["value"] for line in first])
    assert [line["value"] for line in first[:3]] == [0.5, 0.0, 0.0], "zeros everywhere: class 0 is half of the first set"


def test_what_was_measured_is_told_after_each_evaluation() -> None:
    seen: list[Any] = []

    def after(evaluation: Any) -> None:
        seen.append((evaluation.trained, [line["set"] for line in evaluation.measurements]))

    Engine(net(), sgd(), [probe("watch", after_evaluation=after)]).run(class_stream())
    assert seen == [(n, [0, 1, 2]) for n in range(4)]


def test_sets_are_kept_ready_while_they_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones are gathered once, large ones for every evaluation, and never all their batches at once."""
    from streamlearn.core import evaluation

    gathered: list[int] = []
    take = TensorSource.take

    def counted(self: TensorSource, index: torch.Tensor) -> Any:
        if self.name == "test":
            gathered.append(len(index))
        return take(self, index)

    monkeypatch.setattr(TensorSource, "take", counted)
    x, y = torch.randn(30, 5), torch.arange(30) % 3
    stream = streams.domain_incremental((x, y), 2, test=TensorSource(x + 1, {"y": y}, "test"))
    for room, times in ((2**20, 2), (0, 6)):  # two sets; three evaluations of each
        monkeypatch.setattr(evaluation, "_KEPT_BYTES", room)
        gathered.clear()
        Engine(nn.Linear(5, 3), sgd(), evaluation_batch_size=30).run(stream)
        assert gathered == [30] * times


def test_an_empty_set_is_undefined_with_a_reason() -> None:
    source = TensorSource(torch.randn(6, 2), {"y": torch.arange(6) % 2}, "six")
    task = Task("t", size=2)
    full = Data(source, torch.arange(6), (task,), {"t": Target("y")})
    stream = stream_of([(full, (task,))], (task,), features=2)
    stream._evaluation = lambda i: streams.EvaluationSet(i, full.subset(torch.arange(0)))
    (first, _) = [e for e in Engine(nn.Linear(2, 2), sgd()).run(stream).events if e["event"] == "evaluation"]
    assert (first["value"], first["reason"]) == (None, "the set has no row for this task")
