from __future__ import annotations

import pytest
import torch

from streamlearn.core.sampling import TaskCursors, batches_per_epoch, shuffled
from streamlearn.errors import ConfigurationError
from tests.core.support import separate_task_stream


def test_an_epoch_is_a_permutation_and_skipping_is_its_tail() -> None:
    whole = shuffled(23, 5, False, 0, 1, 0, 0, 0)
    assert sorted(whole.tolist()) == list(range(23))
    assert torch.equal(shuffled(23, 5, False, 2, 1, 0, 0, 0), whole[10:])
    assert torch.equal(shuffled(23, 5, True, 0, 1, 0, 0, 0), whole[:20])
    assert len(shuffled(23, 5, False, 5, 1, 0, 0, 0)) == 0
    assert not torch.equal(whole, shuffled(23, 5, False, 0, 2, 0, 0, 0))
    assert not torch.equal(whole, shuffled(23, 5, False, 0, 1, 0, 0, 1))


@pytest.mark.parametrize(("rows", "drop", "expected"), [(10, False, 2), (11, False, 3), (11, True, 2), (3, True, 1), (3, False, 1)])
def test_batches_per_epoch(rows: int, drop: bool, expected: int) -> None:
    assert batches_per_epoch(rows, 5, drop) == expected


def test_cursors_give_each_row_once_a_pass_and_come_back() -> None:
    data = separate_task_stream(1)[0].data["train"]
    cursors = TaskCursors(data, 4, 7, 0, 0)
    first = torch.cat([cursors.next({"a": 1.0}, n) for n in range(4)])
    assert sorted(first.tolist()) == list(range(16))
    state = cursors.state_dict()
    other = TaskCursors(data, 4, 7, 0, 0)
    other.load_state_dict(state)
    assert torch.equal(cursors.next({"a": 1, "b": 3}, 9), other.next({"a": 1, "b": 3}, 9))
    draws = torch.cat([cursors.next({"a": 0.25, "b": 0.75}, n) for n in range(500)])
    assert abs(float((draws < 16).float().mean()) - 0.25) < 0.03


@pytest.mark.parametrize("wrong", [{}, {"a": -1.0, "b": 2.0}, {"a": 0.0}, {"z": 1.0}])
def test_what_is_no_distribution_is_refused(wrong: dict[str, float]) -> None:
    cursors = TaskCursors(separate_task_stream(1)[0].data["train"], 4, 7, 0, 0)
    with pytest.raises(ConfigurationError, match=r"are not a distribution over the tasks present \(a, b\): give each a number"):
        cursors.next(wrong, 0)
