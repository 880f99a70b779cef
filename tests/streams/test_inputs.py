from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from streamlearn.errors import DataError
from streamlearn.streams.data import Columns
from streamlearn.streams.inputs import count_classes, plain_number, real_number, same_rows, whole_number
from streamlearn.streams.operators.deriving import checked_fraction
from streamlearn.streams.sources import TensorSource


class Counting:
    """A source that is not in memory, and counts what is read."""

    name = "counting"

    def __init__(self, x: Tensor) -> None:
        self.x, self.read = x, 0
        self.input_shape = tuple(x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor) -> Columns:
        self.read += len(index)
        return Columns(self.x[index], {"y": index % 2})

    def fingerprint(self) -> str:
        return "f"


def in_memory(x: Tensor, name: str = "s") -> TensorSource:
    return TensorSource(x, {"y": torch.arange(len(x)) % 2}, name)


def test_rows_are_the_same_whatever_the_name_type_and_targets() -> None:
    x = torch.arange(60.0).view(20, 3)
    assert same_rows(in_memory(x), TensorSource(x.double(), {"z": torch.zeros(20)}, "other"))
    assert same_rows(in_memory(x), Counting(x.clone()))
    assert not same_rows(in_memory(x), in_memory(x.flip(0)))
    assert not same_rows(in_memory(x), in_memory(x[:19]))
    assert not same_rows(in_memory(x), in_memory(x.view(20, 3, 1)))
    for row in range(20):
        other = x.clone()
        other[row, 2] += 1
        assert not same_rows(in_memory(x), in_memory(other)), row


def test_no_more_is_read_than_it_takes_to_tell() -> None:
    x = torch.rand(5000, 2)
    shorter, other, same = Counting(x[:-1]), Counting(x + 1), Counting(x.clone())
    assert [same_rows(in_memory(x), source) for source in (shorter, other, same)] == [False, False, True]
    assert (shorter.read, other.read <= 32, same.read >= 5000) == (0, True, True)


@pytest.mark.parametrize("value", [0.25, np.float32(0.25), np.float64(0.25), Fraction(1, 4)])
def test_real_numbers_become_those_of_python(value: Any) -> None:
    assert (type(plain_number(value)), checked_fraction(value, "fraction")) == (float, 0.25)


@pytest.mark.parametrize("value", [True, np.True_, "0.5", None, torch.tensor(0.5), np.array([0.5]), 0.5j])
def test_what_is_no_number_is_none(value: Any) -> None:
    assert np.isnan(real_number(value))
    with pytest.raises(DataError, match=r"fraction is .*: give a number in"):
        checked_fraction(value, "fraction")


@pytest.mark.parametrize("value", [np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)])
def test_whole_numbers_become_those_of_python(value: Any) -> None:
    assert type(whole_number(value, "rows", 1)) is int


@pytest.mark.parametrize("value", [np.True_, True, 2.0, np.float64(2), torch.tensor(2.0), np.array([1, 2]), "2", None])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"rows is .*: give a whole number of at least 1"):
        whole_number(value, "rows", 1)


def test_classes_are_counted_and_gaps_refused() -> None:
    assert count_classes(torch.tensor([2, 0, 1, 2]), "s") == 3
    with pytest.raises(DataError, match="no row of source 's' has the class 1, though labels run to 2"):
        count_classes(torch.tensor([2, 0, 2]), "s")
