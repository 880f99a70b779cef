from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from streamlearn.errors import DataError
from streamlearn.streams import Source
from streamlearn.streams.data import Columns
from streamlearn.streams.sources import TensorSource
from streamlearn.streams.sources.labels import class_labels, class_names


class Foreign:
    """A user's source that keeps no columns."""

    name, input_shape = "foreign", (1,)

    def __init__(self, labels: Tensor) -> None:
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def take(self, index: Tensor) -> Columns:
        return Columns(torch.zeros(len(index), 1), {"label": self._labels[index]})

    def fingerprint(self) -> str:
        return "f"


def test_a_foreign_source_is_read_once_in_order() -> None:
    labels = torch.arange(3000) % 7
    source = Foreign(labels)
    assert isinstance(source, Source)
    column, found = class_labels(source)
    assert column == "label"
    assert torch.equal(found, labels)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (torch.arange(4.0), "are float32 of shape (4,): class numbers are integers of shape (4,), convert them with .long()"),
        (torch.arange(4) / 3, "are float32 values of shape (4,), and this protocol needs classes: give class numbers, or take one for"),
        (torch.ones(4, 2) / 3, "needs classes: give class numbers, .argmax(1) of scores, or take one for values, which"),
        (
            torch.ones(4, 1, dtype=torch.int64),
            "are int64 of shape (4, 1): class numbers are integers of shape (4,), convert them with .squeeze(1)",
        ),
        (torch.ones(4, 1), "convert them with .squeeze(1).long()"),
        (torch.eye(4), "convert them with .argmax(1)"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused_with_the_cure(column: Tensor, said: str) -> None:
    source = TensorSource(torch.zeros(4, 2), {"y": column}, "s")
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        class_labels(source)
    assert "the labels 'y' of source 's'" in str(caught.value)


def test_other_bad_labels() -> None:
    two = TensorSource(torch.zeros(2, 1), {"a": torch.zeros(2), "b": torch.zeros(2)}, "s")
    with pytest.raises(DataError, match="source 's' has the target columns a, b: give a source with exactly one"):
        class_labels(two)
    with pytest.raises(DataError, match="row 1 of source 'foreign' has the negative label -3 in 'label': number classes from 0"):
        class_labels(Foreign(torch.tensor([0, -3])))
    with pytest.raises(DataError, match="source 'foreign' has no rows: give at least one"):
        class_labels(Foreign(torch.tensor([], dtype=torch.int64)))


def test_class_names_count_or_are_left_out() -> None:
    source = TensorSource(torch.zeros(2, 1), {"y": torch.tensor([0, 1])}, "s", class_names=["cat", "dog"])
    assert class_names(source, 2) == ("cat", "dog")
    assert class_names(source, 3) == ()
    assert class_names(Foreign(torch.tensor([0])), 1) == ()
