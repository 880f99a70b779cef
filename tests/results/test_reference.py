"""Runs measured against others that may see more."""

from __future__ import annotations

import pytest
import torch

from streamlearn import Engine, models, streams
from streamlearn.errors import ConfigurationError
from streamlearn.results import Record, Result

from .conftest import LEARNT, ONLINE, MakeResult, description, evaluation

CUMULATIVE = [[0.1, 0.2, 0.3], [0.95, 0.3, 0.4], [0.9, 0.9, 0.5], [0.9, 0.9, 0.9]]
JOINT = [[0.1, 0.2, 0.3], [0.9, 0.8, 0.7]]


def test_hand_computed_values(make_result: MakeResult) -> None:
    result, cumulative, joint = make_result(), make_result(CUMULATIVE), make_result(JOINT, learnt=[1, 1, 1])
    assert float(result.intransigence(cumulative)) == pytest.approx(((0.95 - 0.9) + (0.9 - 1.0) + (0.9 - 0.8)) / 3)
    assert float(result.intransigence(joint)) == pytest.approx(((0.9 - 0.9) + (0.8 - 1.0) + (0.7 - 0.8)) / 3)
    assert float(result.accuracy_gap(cumulative)) == pytest.approx(0.9 - (0.5 + 0.6 + 0.8) / 3)
    assert float(result.accuracy_gap(joint)) == pytest.approx(0.8 - (0.5 + 0.6 + 0.8) / 3)
    assert float(result.intransigence(result)) == float(result.accuracy_gap(result)) == 0.0
    assert "R*[l_k, k] - R[k+1, k]" in repr(result.intransigence(joint))


def test_intransigence_and_learning_accuracy(make_result: MakeResult) -> None:
    result, reference = make_result(), make_result(CUMULATIVE)
    apart = float(reference.metrics["learning_accuracy"]) - float(result.metrics["learning_accuracy"])
    assert float(result.intransigence(reference)) == pytest.approx(apart)


def test_chunks_and_their_sets(make_result: MakeResult) -> None:
    result, joint = make_result(ONLINE, learnt=LEARNT), make_result([[0.5, 0.5], [1.0, 0.8]], learnt=[1, 1])
    assert float(result.intransigence(joint)) == pytest.approx(((1.0 - 0.9) + (0.8 - 0.7)) / 2)


def test_why_they_are_undefined(make_result: MakeResult) -> None:
    stopped = make_result(trained=2)
    assert stopped.intransigence(make_result(CUMULATIVE)).reason == (
        "it needs the accuracy of this run on set 2 when it had been learnt, which is undefined or not measured"
    )
    assert make_result().accuracy_gap(stopped).reason == (
        "it needs the accuracy of the reference on set 0 at the end, which is undefined or not measured"
    )
    record = Record()
    for trained in range(4):
        for number in range(3):
            record.append(evaluation(trained, number, 20.0, metric="mean_squared_error"))
    error = Result(description(), record)
    assert error.intransigence(make_result()).reason == "it is defined for accuracies, and mean_squared_error of this run is none"
    assert "mean_squared_error of the reference" in (make_result().intransigence(error).reason or "")


def test_a_reference_on_other_sets_is_refused(make_result: MakeResult) -> None:
    with pytest.raises(ConfigurationError, match="the reference has 2 evaluation sets and this run has 3: give a run on the same sets"):
        make_result().intransigence(make_result(ONLINE, learnt=LEARNT))
    record = Record()
    record.append(evaluation(0, 1, 0.5, set_name="letters"))
    with pytest.raises(ConfigurationError, match="set 1 is 'part 1' in this run and 'letters' in the reference: give a run on the same"):
        make_result().accuracy_gap(Result(description(), record))


def test_a_joint_run_is_a_reference() -> None:
    stream = streams.class_incremental("digits", 5)

    def run(trained_on: streams.Stream, epochs: int) -> Result:
        optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)  # noqa: E731
        return Engine(lambda: models.mlp(stream), optimizer, epochs=epochs, seed=1).run(trained_on)

    alone, joint = run(stream, 5), run(streams.joint(stream), 5)
    assert float(alone.accuracy_gap(joint)) > 0.5, "all but the last classes are forgotten"
    assert float(alone.intransigence(joint)) < 0.1, "but each was learnt"
