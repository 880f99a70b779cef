from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from streamlearn.core.task_weights import LearnedNumber, learned_numbers, task_of, weighted_sum
from streamlearn.errors import TrainingError


def step_of(*tasks: str, supervision: Any = ()) -> Any:
    return SimpleNamespace(run=SimpleNamespace(tasks=dict.fromkeys(tasks)), supervision=supervision)


def test_a_row_belongs_to_the_task_of_its_name() -> None:
    step = step_of("a", "a/x", "ab", supervision=[SimpleNamespace(row="strange", task="ab")])
    found = {row: task_of(row, step, "p") for row in ("a", "a@d", "a/y", "a/x", "a/x@d", "a/x/memory", "ab", "ab@a", "strange")}
    assert found == {
        "a": "a", "a@d": "a", "a/y": "a", "a/x": "a/x", "a/x@d": "a/x", "a/x/memory": "a/x", "ab": "ab", "ab@a": "ab", "strange": "ab",
    }  # fmt: skip


def test_a_row_of_no_task_is_refused() -> None:
    with pytest.raises(TrainingError, match="plugin p met the row 'ghost', which belongs to none of the tasks a, b: name it after its"):
        task_of("ghost", step_of("a", "b"), "p")


def test_the_sum_and_its_gradient() -> None:
    losses = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in {"a": 3.0, "b": 2.0, "c": 5.0}.items()}
    total = weighted_sum(losses, {"a": 0.5, "b": 1.0, "c": 0.0})
    assert total.item() == 3.5
    slopes = torch.autograd.grad(total, list(losses.values()), allow_unused=True)
    assert [None if s is None else s.item() for s in slopes] == [0.5, 1.0, None], "no gradient at all where the weight is 0"


def test_one_row_of_weight_1_is_that_loss_itself_and_nothing_weighs_nothing() -> None:
    loss = torch.tensor(2.0, requires_grad=True)
    assert weighted_sum({"a": loss}, {"a": 1.0}) is loss
    nothing = weighted_sum({"a": loss}, {"a": 0.0})
    assert nothing.item() == 0.0
    assert not nothing.requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_even_at_weight_0(bad: float) -> None:
    losses = {"a": torch.tensor(1.0), "b": torch.tensor(bad)}
    assert not weighted_sum(losses, {"a": 1.0, "b": 0.0}).isfinite()


def test_learned_numbers_take_the_type_of_the_model_and_no_decay() -> None:
    model = torch.nn.Linear(2, 1).double()
    run: Any = SimpleNamespace(model=model, tasks={"a": None, "v1.2": None})
    found = learned_numbers(run, 0.25, 0.1)
    assert list(found) == ["a", "v1\N{ONE DOT LEADER}2"], "a dot would end the module's name within a parameter's name"
    for trainable in found.values():
        assert isinstance(trainable.module, LearnedNumber)
        assert (trainable.module().item(), trainable.module().dtype) == (0.25, torch.float64)
        assert (trainable.learning_rate, trainable.weight_decay, trainable.optimizer) == (0.1, 0.0, None)
    assert LearnedNumber(1.0)().dtype == torch.float32
