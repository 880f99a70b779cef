from __future__ import annotations

import pytest
import torch

from streamlearn.core.gradients import TaskRows, named_gradients
from streamlearn.errors import TrainingError

W = torch.tensor([1.0, 2.0], requires_grad=True)
V = torch.tensor([3.0], requires_grad=True)
U = torch.tensor([5.0], requires_grad=True)


def rows() -> TaskRows:
    return TaskRows(("a", "b"), torch.tensor([[2.0, 4.0, 0.0, 0.0], [6.0, 6.0, 6.0, 0.0]]))


def test_a_parameter_on_which_nothing_depends_is_left_out() -> None:
    found = named_gradients((W * V).sum(), {"w": W, "v": V, "u": U})
    assert {name: value.tolist() for name, value in found.items()} == {"w": [3.0, 3.0], "v": [3.0]}
    assert named_gradients(torch.tensor(1.0), {"w": W}) == {}
    assert named_gradients(W.sum(), {}) == {}


def test_the_gramian_holds_the_products_of_rows() -> None:
    assert rows().gramian.tolist() == [[20.0, 36.0], [36.0, 108.0]]


def test_weights_by_name_or_a_vector_become_a_vector() -> None:
    for answer in ({"a": 0.5, "b": 1.0}, {"b": torch.tensor(1.0), "a": 0.5}, torch.tensor([7.0, 8.0, 6.0, 0.0])):
        (found,) = rows().combine(answer)
        assert found.tolist() == [7.0, 8.0, 6.0, 0.0]
        pieces = TaskRows(rows().names, rows().matrix.split([1, 3], 1)).combine(answer)
        assert [piece.tolist() for piece in pieces] == [[7.0], [8.0, 6.0, 0.0]]
    (found,) = rows().combine({"b": 1.0})
    assert found.tolist() == [6.0, 6.0, 6.0, 0.0]


def test_strange_answers_are_refused() -> None:
    with pytest.raises(TrainingError, match="gave weights for rows c, d, but the rows are a, b"):
        rows().combine({"a": 1.0, "d": 1.0, "c": 1.0})
    with pytest.raises(TrainingError, match=r"a vector of shape \(2,\), the shared parameters have 4 entries"):
        rows().combine(torch.zeros(2))
