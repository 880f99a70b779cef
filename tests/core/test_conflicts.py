"""What the record tells of the gradients that a combiner was given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from streamlearn import Engine, models
from streamlearn.core.conflicts import Conflicts
from streamlearn.core.gradients import TaskRows
from streamlearn.errors import DivergenceError
from streamlearn.plugins import MGDAUB, PCGrad
from tests.core.support import class_stream, net, probe, sgd, two_task_stream

RUN: Any = SimpleNamespace(clock="experience 0, step 3")


def rows(names: str, *vectors: list[float]) -> TaskRows:
    return TaskRows(tuple(names), torch.tensor(vectors))


def test_means_by_pair_over_the_steps_in_which_both_met() -> None:
    found = Conflicts()
    found.add(rows("ab", [1.0, 0.0], [3.0, 4.0]), RUN)  # cosine 0.6
    found.add(rows("ba", [-5.0, 0.0], [2.0, 0.0]), RUN)  # -1
    found.add(rows("ca", [0.0, 0.0], [6.0, 0.0]), RUN)  # c has no direction
    found.add(rows("b", [7.0, 0.0]), RUN)
    told = found.means()
    assert told["pairs"] == [{"rows": ["a", "b"], "updates": 2, "cosine": pytest.approx(-0.2), "conflict_rate": 0.5}]
    assert told["conflict_rate"] == 0.5
    assert told["norms"] == pytest.approx({"a": 3.0, "b": 17 / 3, "c": 0.0})
    assert found.updates == 4


def test_rows_that_never_met_tell_nothing() -> None:
    found = Conflicts()
    assert found.means() == {}
    found.add(rows("a", [1.0, 0.0]), RUN)
    assert found.means() == {}


def test_its_state_is_taken_back() -> None:
    found, other = Conflicts(), Conflicts()
    other.load_state_dict(found.state_dict())
    assert other.means() == {}
    found.add(rows("ab", [1.0, 0.1], [3.0, 4.0]), RUN)
    other.load_state_dict(found.state_dict())
    for each in (found, other):
        each.add(rows("ca", [-1.0, 0.3], [1.0, 7.0]), RUN)
    assert found.means() == other.means()
    assert found.state_dict() == other.state_dict()


def test_a_row_that_is_not_finite_is_named() -> None:
    with pytest.raises(DivergenceError, match=r"at experience 0, step 3: the gradient of row 'b', row 'c' is not finite, though the loss"):
        Conflicts().add(rows("abc", [1.0, 0.0], [float("nan"), 0.0], [0.0, float("inf")]), RUN)


@pytest.mark.parametrize("plugin", [PCGrad, MGDAUB])
def test_in_a_run_each_epoch_has_a_line(plugin: Any) -> None:
    cosines: list[float] = []

    def look(step: Any) -> None:
        losses = step.at().losses
        if plugin is PCGrad:
            wanted: list[Tensor] = [p for n, p in step.parameters.items() if n.startswith("encoder.")]
        else:
            wanted = []
        if wanted:
            a, b = (torch.cat([g.flatten() for g in torch.autograd.grad(losses[t], wanted, retain_graph=True)]) for t in "ab")
            cosines.append(float(torch.cosine_similarity(a, b, dim=0)))

    stream = two_task_stream()
    engine = Engine(models.mlp(stream, (8,)), sgd(), [plugin(), probe("look", before_step=look)], batch_size=6, epochs=2)
    result = engine.run(stream)
    told = [event for event in result.events if event["event"] == "gradients"]
    assert [(event["experience"], event["phase"], event["epoch"], event["updates"]) for event in told] == [
        (0, "main", 0, 4),
        (0, "main", 1, 4),
    ]
    assert {event["at"] for event in told} == {"parameters" if plugin is PCGrad else "features"}
    for number, event in enumerate(told):
        (pair,) = event["pairs"]
        assert pair["rows"] == ["a", "b"]
        assert event["conflict_rate"] == pair["conflict_rate"]
        if cosines:
            mine = torch.tensor(cosines[4 * number : 4 * number + 4])
            assert pair["cosine"] == pytest.approx(float(mine.mean()), rel=1e-3, abs=1e-5)
            assert pair["conflict_rate"] == float((mine < 0).float().mean())


def test_without_a_combiner_or_with_one_task_there_is_no_line() -> None:
    for plugins, stream, model in (([], two_task_stream(), None), ([PCGrad()], class_stream(), net())):
        result = Engine(model or models.mlp(stream, (8,)), sgd(), plugins, batch_size=6).run(stream)
        assert not [event for event in result.events if event["event"] == "gradients"]
