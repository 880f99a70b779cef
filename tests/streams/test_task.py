from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

from streamlearn.errors import DataError
from streamlearn.streams import Task


def test_classification_loss_is_torchs_own() -> None:
    outputs, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    task = Task("t", size=3)
    assert torch.equal(task.loss(outputs, target, mean=True), cross_entropy(outputs, target))
    assert task.loss(outputs, target, mean=False).shape == (5,)
    torch.testing.assert_close(task.loss(outputs, target, mean=False).mean(), cross_entropy(outputs, target))


def test_regression_loss_has_one_value_per_row() -> None:
    outputs, target = torch.randn(5, 2), torch.randn(5, 2)
    task = Task("t", "regression", size=2)
    assert task.metric == "mean_squared_error"
    torch.testing.assert_close(task.loss(outputs, target, mean=False).mean(), mse_loss(outputs, target))
    assert torch.equal(task.loss(outputs, target, mean=True), mse_loss(outputs, target))


@pytest.mark.parametrize("kind", ["classification", "regression", "probabilities"])
def test_total_loss_is_the_sum_of_the_losses(kind: str) -> None:
    outputs = 30 * torch.randn(50, 4)
    task = Task("t", "regression" if kind == "regression" else "classification", size=4)
    target = {"classification": torch.arange(50) % 4, "regression": torch.randn(50, 4), "probabilities": torch.rand(50, 4).softmax(1)}[kind]
    torch.testing.assert_close(task.total_loss(outputs, target), task.loss(outputs, target, mean=False).sum())


def test_wrong_tasks_are_refused() -> None:
    with pytest.raises(DataError, match=r"task 't' has size 0: give at least 1 output"):
        Task("t", size=0)
    with pytest.raises(DataError, match=r"task 't' has size 2 but names 1 classes: name all or none"):
        Task("t", size=2, classes=("a",))


def test_describe_is_json() -> None:
    assert Task("t", size=2, classes=("a", "b")).describe() == {"name": "t", "kind": "classification", "size": 2, "classes": ["a", "b"]}
