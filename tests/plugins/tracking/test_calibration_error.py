from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, models
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import CalibrationError
from streamlearn.plugins.tracking.calibration_error import BinnedCalibration, bin_sums, expected_calibration_error
from streamlearn.streams import Task
from streamlearn.streams.data import Data, Target
from streamlearn.streams.sources import TensorSource
from tests.core.support import class_stream, growing_stream, net, probe, same, sgd, stream_of, two_task_stream

NAME = "calibration_error/expected"


def by_torchmetrics(outputs: Tensor, target: Tensor, bins: int = 15) -> float:
    from torchmetrics.functional.classification import multiclass_calibration_error

    return float(multiclass_calibration_error(outputs.double().softmax(1), target, outputs.shape[1], n_bins=bins, norm="l1"))


def lines(result: Any) -> list[dict[str, Any]]:
    return [e for e in result.events if e["event"] == "evaluation" and e["metric"] == NAME]


def test_by_hand() -> None:
    # bins (0, 1/2] and (1/2, 1]: 0.4 and 0.5, one right of two; 0.9, wrong
    sums = bin_sums(torch.tensor([0.4, 0.5, 0.9]), torch.tensor([True, False, False]), 2)
    assert expected_calibration_error(sums) == pytest.approx(2 / 3 * abs(0.5 - 0.45) + 1 / 3 * 0.9)
    assert sums[0].tolist() == [2, 1]
    edges = bin_sums(torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([False, True]), 4)
    assert edges[0].tolist() == [1, 0, 0, 1], "0 and 1 lie in the outermost bins"


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("scale", [0.3, 4.0])
def test_it_is_that_of_torchmetrics_whatever_the_batches(bins: int, scale: float) -> None:
    draw = torch.Generator().manual_seed(2)
    outputs, target = scale * torch.randn(200, 5, generator=draw), torch.randint(5, (200,), generator=draw)
    metric = BinnedCalibration(bins)
    for start in range(0, 200, 33):
        metric.update(outputs[start : start + 33], target[start : start + 33])
    assert metric.compute() == pytest.approx(by_torchmetrics(outputs, target, bins), rel=1e-5)  # it sums in float32
    metric.reset()
    assert math.isnan(metric.compute())


def test_logits_that_look_like_probabilities_are_logits() -> None:
    outputs, target = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 1])
    metric = BinnedCalibration(15)
    metric.update(outputs, target)
    assert metric.compute() == pytest.approx(1 - float(outputs.softmax(1).max(1).values.mean()), rel=1e-6)


def test_a_perfectly_calibrated_predictor_has_none_and_a_confident_one_all() -> None:
    outputs = torch.tensor([[math.log(3.0), 0.0]]).repeat(8, 1)  # confident by 0.75
    metric = BinnedCalibration(10)
    metric.update(outputs, torch.tensor([0, 0, 0, 1] * 2))
    assert metric.compute() == pytest.approx(0.0, abs=1e-7)
    metric.reset()
    metric.update(50 * outputs, torch.ones(8, dtype=torch.int64))
    assert metric.compute() == pytest.approx(1.0)


def test_in_a_run_it_is_recorded_for_each_set_and_after_each_experience() -> None:
    stream, seen = class_stream(), []

    def look(evaluation: Any) -> None:
        with torch.no_grad():
            for i in range(3):
                rows = stream.evaluation(i).data.batch(torch.arange(20))
                seen.append(by_torchmetrics(evaluation.run.model(rows.x), rows.targets["blobs"], 7))

    plugins = [CalibrationError(bins=7), probe("look", after_evaluation=look)]
    result = Engine(net(), sgd(), plugins, batch_size=10, evaluation_batch_size=6).run(stream)
    found = lines(result)
    assert [(e["trained"], e["set"], e["task"], e["count"]) for e in found] == [(t, s, "", 20) for t in range(4) for s in range(3)]
    assert [e["value"] for e in found] == pytest.approx(seen, rel=1e-5)
    assert result.matrix(metric=NAME).shape == (4, 3)
    plain = Engine(net(), sgd(), batch_size=10, evaluation_batch_size=6).run(stream)
    assert same(plain.model.state_dict(), result.model.state_dict()), "it only looks"
    assert plain.metrics["average_accuracy"].value == result.metrics["average_accuracy"].value


def test_tasks_with_other_numbers_of_classes_are_pooled() -> None:
    stream = two_task_stream()
    result = Engine(models.mlp(stream, (8,)), sgd(), [CalibrationError()]).run(stream)
    rows = stream.evaluation(0).data.batch(torch.arange(24))
    model: Any = result.model
    metric = BinnedCalibration(15)
    with torch.no_grad():
        features = model.eval().encode(rows.x)
        both = [(model.decode(features, task).double().softmax(1).max(1), rows.targets[task]) for task in ("a", "b")]
        confidence = torch.cat([top.values for top, _ in both])
        right = torch.cat([top.indices == target for top, target in both])
    from torchmetrics.functional.classification import binary_calibration_error

    expected = float(binary_calibration_error(confidence, right.int(), n_bins=15, norm="l1"))
    assert lines(result)[-1]["value"] == pytest.approx(expected, rel=1e-5)
    assert math.isnan(metric.compute())


def test_heads_that_have_not_grown_and_tasks_without_a_head() -> None:
    stream = growing_stream()
    result = Engine(models.mlp(stream, (8,)), sgd(), [CalibrationError()], batch_size=20).run(stream)
    value = {(e["trained"], e["set"]): e["value"] for e in lines(result)}
    assert value[1, 3] is None, "the set of a task that has no head has no value"
    assert 0 <= value[4, 3] <= 1
    assert value[1, 2] >= 0.5 - 1e-6, "classes that two outputs cannot name are all wrong, and confidence is at least 1/2"


def test_a_regression_has_no_value_and_is_no_failure() -> None:
    task = Task("r", "regression", size=2)
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    data = Data(TensorSource(x, {"y": x}, "l"), torch.arange(8), (task,), {"r": Target("y")})
    result = Engine(nn.Linear(2, 2), sgd(lr=0.01), [CalibrationError()]).run(stream_of([(data, (task,))], (task,), features=2))
    assert [e["value"] for e in lines(result)] == [None, None]


def test_predictions_of_a_plugin_are_measured() -> None:
    def predict(batch: Any) -> Any:
        return {"blobs": torch.zeros(len(batch.x), 6)}

    result = Engine(net(), sgd(), [CalibrationError(), probe("predict", provide_predictions=predict)]).run(class_stream())
    first = lines(result)[:3]  # class 0 is half of the first set and in no other
    assert [e["value"] for e in first] == pytest.approx([0.5 - 1 / 6, 1 / 6, 1 / 6], rel=1e-6)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="plugin calibration_error: option 'bins' is 0"):
        CalibrationError(bins=0)
