"""What a run costs: by hand, in real runs, and the same after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from streamlearn import Engine, models, streams
from streamlearn.core.cost import size_in_bytes
from streamlearn.plugins import EWC, SAM, LwF, Replay
from streamlearn.results import Record, Result
from streamlearn.results.costs import COSTS
from tests.core.support import Stop, blobs, class_stream, growing_stream, net, sgd, stop_at

from .conftest import MakeResult, description, experience

FROM_TIMES = ("training_seconds", "evaluation_seconds", "time_efficiency")


def cost(trained: int, size: int, rows: int | None = None, **changes: Any) -> dict[str, Any]:
    memories = {} if rows is None else {"main": {"rows": rows, "bytes": 10 * rows, "held_bytes": 32 * rows}}
    event = {"event": "cost", "trained": trained, "parameters": size // 4, "parameter_bytes": size, "buffer_bytes": 0, "helper_bytes": {}}
    event |= {"teacher_bytes": 0, "memories": memories, "plugin_bytes": {}, "forward_passes": 1, "backward_passes": 1, "teacher_passes": 0}
    return event | changes


def run_of(*costs: dict[str, Any], seconds: Any = (), rows: int = 9, **changes: Any) -> Result:
    record, times = Record(), Record()
    for index, event in enumerate(costs):
        record.append(experience(index, rows=rows))
        record.append(event)
    for what, index, taken in seconds:
        times.append({"event": "time", "what": what, "index": index, "seconds": taken})
    told = description(len(costs))
    told["stream"].update(changes)
    return Result(told, record, times)


def test_hand_computed_values() -> None:
    result = run_of(
        cost(1, 400, 10, forward_passes=2, teacher_bytes=400),
        cost(
            2, 800, 20, forward_passes=2, teacher_bytes=800, plugin_bytes={"ewc": 1600}, helper_bytes={"dann/critic": 5}, teacher_passes=1
        ),
        rows=100,
        seconds=[("experience", 0, 1.0), ("experience", 1, 4.0), ("evaluation", 0, 0.25), ("evaluation", 1, 0.25)],
    )
    expected = {
        "model_parameters": 200,
        "model_bytes": 800,
        "model_size_efficiency": (1 + 0.5) / 2,
        "memory_rows": 20,
        "memory_bytes": 200,
        "memory_held_bytes": 640,
        "samples_storage_efficiency": 1 - (10 / 200 + 20 / 200) / 2,
        "plugin_bytes": 1600 + 5 + 800,
        "updates": 20,
        "forward_passes": 2,
        "backward_passes": 1,
        "teacher_passes": 1,
        "training_seconds": 5.0,
        "evaluation_seconds": 0.5,
        "time_efficiency": (1 + 0.25) / 2,
    }
    assert list(COSTS) == list(expected)
    assert {name: float(result.measure(name)) for name in COSTS} == pytest.approx(expected)
    assert repr(result.measure("model_bytes")) == "Measure(model_bytes = 800 bytes, bytes of the parameters of the model at the end)"
    assert all("20" in measure.source or "engine" in measure.source for measure in map(result.measure, COSTS))


def test_efficiencies_are_at_most_1_and_at_least_0() -> None:
    shrinking = run_of(cost(1, 800), cost(2, 400), seconds=[("experience", 0, 4.0), ("experience", 1, 1.0)])
    assert float(shrinking.measure("model_size_efficiency")) == 1.0
    assert float(shrinking.measure("time_efficiency")) == 1.0
    assert float(shrinking.measure("samples_storage_efficiency")) == 1.0
    assert float(run_of(cost(1, 4, 50), cost(2, 4, 50), rows=9).measure("samples_storage_efficiency")) == 0.0


def test_a_part_that_was_resumed_adds_its_seconds_and_chunks_count_together() -> None:
    seconds = [("experience", 0, 1.0), ("experience", 1, 1.0), ("experience", 2, 0.5), ("experience", 2, 0.5), ("experience", 3, 3.0)]
    result = run_of(*(cost(i + 1, 4) for i in range(4)), seconds=seconds, learnt_after=[2, 4])
    assert float(result.measure("training_seconds")) == 6.0
    assert float(result.measure("time_efficiency")) == pytest.approx((1 + 0.5) / 2)


def test_why_they_are_undefined(make_result: MakeResult) -> None:
    old = make_result()
    for name in COSTS.keys() - FROM_TIMES:
        assert (old.measure(name).value, old.measure(name).reason) == (
            None,
            "the record has no costs: it was written by an earlier streamlearn, or nothing has been learnt yet",
        )
    assert float(old.measure("training_seconds")) == 1.5
    assert old.measure("evaluation_seconds").reason == "no evaluation was timed"
    assert old.measure("time_efficiency").reason == "1 of 3 experiences were timed"
    assert run_of(cost(1, 0)).measure("model_size_efficiency").reason == "the model has no parameters"
    assert run_of(cost(1, 4), rows=0).measure("samples_storage_efficiency").reason == "the stream has no rows"
    unknown = run_of(cost(1, 4, memories={"main": {"rows": 1, "bytes": None, "held_bytes": 32}}))
    assert unknown.measure("memory_bytes").reason == "how much a row takes is known of data in memory only"
    assert float(unknown.measure("memory_held_bytes")) == 32
    stopped = run_of(cost(1, 4), seconds=[("experience", 0, 0.0)])
    assert stopped.measure("time_efficiency").reason == "an experience took no time"
    together = run_of(cost(1, 4), seconds=[("experience", 0, 1.0)], learnt_after=[1, 1])
    assert together.measure("time_efficiency").reason == "its evaluation sets are not learnt one after another"


def test_the_costs_of_a_real_run() -> None:
    stream = class_stream()
    result = Engine(net(), sgd(), [Replay(capacity=12), EWC(strength=1.0), LwF()], batch_size=10).run(stream)
    weights = sum(p.nbytes for p in result.model.parameters())  # type: ignore[attr-defined]
    everything = sum(t.nbytes for t in result.model.state_dict().values())  # type: ignore[attr-defined]
    found = {name: result.measure(name).value for name in COSTS}
    assert (found["model_bytes"], found["memory_rows"]) == (weights, 12)
    assert found["memory_bytes"] == 12 * blobs().row_bytes == 12 * 6 * 4
    assert found["memory_held_bytes"] >= 12 * 3 * 8, "indices, groups and priorities"
    assert found["model_size_efficiency"] == 1.0
    assert found["samples_storage_efficiency"] == pytest.approx(1 - 12 / 60)
    assert (found["forward_passes"], found["backward_passes"], found["teacher_passes"], found["updates"]) == (1, 1, 1, 6)
    last = [event for event in result.events if event["event"] == "cost"][-1]
    assert last["teacher_bytes"] == everything
    assert "replay" not in last["plugin_bytes"], "who keeps nothing is not told"
    assert last["plugin_bytes"]["ewc"] >= 2 * weights
    assert result.measure("training_seconds").value > 0  # type: ignore[operator]


def test_growth_teachers_and_look_ahead_show() -> None:
    stream = growing_stream()
    grown = Engine(lambda: models.mlp(stream, (8,)), sgd(), batch_size=10).run(stream)
    sizes = [event["parameters"] for event in grown.events if event["event"] == "cost"]
    assert sizes == [6 * 8 + 8 + 9 * n for n in (2, 4, 6, 9)]
    assert float(grown.measure("model_size_efficiency")) == pytest.approx(sum(sizes[0] / size for size in sizes) / 4)
    ascended = Engine(net(), sgd(), [SAM(rho=0.05)], batch_size=10).run(class_stream())
    assert (ascended.measure("forward_passes").value, ascended.measure("backward_passes").value) == (2, 2)


def test_costs_are_taken_where_a_set_has_been_learnt() -> None:
    stream = streams.online(class_stream(), rows=5)
    events = Engine(net(), sgd(), [Replay(capacity=12)], batch_size=5, evaluate="never").run(stream).events
    assert [event["trained"] for event in events if event["event"] == "cost"] == list(stream.learnt_after) == [4, 8, 12]


def test_a_resumed_run_has_the_same_costs(tmp_path: Path) -> None:
    def engine(**options: Any) -> Engine:
        return Engine(net(), sgd(), [Replay(capacity=12), EWC(strength=1.0), LwF()], batch_size=5, checkpoint_every=1, **options)

    straight = engine().run(class_stream())
    for update in (3, 4, 6):
        folder = tmp_path / str(update)
        with pytest.raises(Stop):
            engine(progress=stop_at(update)).run(class_stream(), folder)
        assert engine().resume(folder, class_stream()).events == straight.events


def test_taking_the_costs_disturbs_nothing() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    Engine(net(), sgd(), [Replay(capacity=12)], batch_size=10).run(class_stream())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_size_of_a_state() -> None:
    tree = {"a": torch.zeros(3, dtype=torch.float64), "b": [1, 2.0, True, None, "abc"], "c": {"d": (torch.zeros(2, dtype=torch.int8),)}}
    assert size_in_bytes(tree) == 24 + 8 + 8 + 8 + 3 + 2
