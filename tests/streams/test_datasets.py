from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from streamlearn.errors import DataError
from streamlearn.streams.sources import DatasetSource, TensorSource, dataset_source
from streamlearn.streams.sources.datasets import known_targets


class Images(Dataset):
    """Counts decoded rows; row i is an image of i's with label i % 3."""

    classes = ("a", "b", "c")

    def __init__(self, rows: int = 9, targets: bool = False, broken: int = -1, target_transform=None, noise: bool = False) -> None:
        self._rows, self._broken, self.decoded, self._noise = rows, broken, 0, noise
        self.target_transform = target_transform
        if targets:
            self.targets = [i % 3 for i in range(rows)]

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if i == self._broken:
            raise OSError("truncated file")
        self.decoded += 1
        label = i % 3
        noise = torch.rand(()) if self._noise else 0.0
        return torch.full((1, 2, 2), float(i)) + noise, self.target_transform(label) if self.target_transform else label


def test_targets_are_found_without_decoding() -> None:
    images = Images(1000, targets=True)
    source = DatasetSource(images, "images")
    assert source.targets["y"].tolist() == [i % 3 for i in range(1000)]
    assert images.decoded <= 4
    assert source.class_names == ("a", "b", "c")
    assert (len(source), source.input_shape) == (1000, (1, 2, 2))


def test_targets_are_read_from_rows_otherwise() -> None:
    assert DatasetSource(Images(), "images").targets["y"].tolist() == [0, 1, 2] * 3


def test_a_transform_of_targets_is_respected() -> None:
    assert DatasetSource(Images(targets=True, target_transform=lambda y: 2 - y), "images").targets["y"].tolist() == [2, 1, 0] * 3


def test_targets_that_contradict_the_rows_are_not_believed() -> None:
    images = Images(targets=True)
    images.targets = [1] * 9
    assert DatasetSource(images, "images").targets["y"].tolist() == [0, 1, 2] * 3
    images.targets = [0, 1]
    assert DatasetSource(images, "images").targets["y"].tolist() == [0, 1, 2] * 3


def test_targets_of_parts() -> None:
    inner = Images(targets=True)
    assert known_targets(Subset(inner, [8, 0])).tolist() == [2, 0]
    assert known_targets(ConcatDataset([Subset(inner, [1]), inner])).tolist() == [1, *[0, 1, 2] * 3]
    assert known_targets(ConcatDataset([inner, Images()])) is None
    assert known_targets(Images()) is None
    assert DatasetSource(Subset(inner, [8, 0]), "s").class_names == ("a", "b", "c")


@pytest.mark.parametrize("workers", [0, 2])
def test_take_keeps_the_order_asked_for(workers: int) -> None:
    source = DatasetSource(Images(targets=True), "images", workers=workers)
    for index in ([8, 0, 3, 3, 1], [2], []):
        x, targets = source.take(torch.tensor(index, dtype=torch.int64))
        assert x.shape == (len(index), 1, 2, 2)
        assert x[:, 0, 0, 0].tolist() == index
        assert targets["y"].tolist() == [i % 3 for i in index]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_row_that_cannot_be_read_is_named(workers: int) -> None:
    source = DatasetSource(Images(targets=True, broken=5), "images", workers=workers)
    with pytest.raises(DataError, match=re.escape("row 5 of source 'images' cannot be read: OSError: truncated file")) as caught:
        source.take(torch.tensor([1, 5, 2]))
    assert isinstance(caught.value.__cause__, OSError)
    assert source.take(torch.tensor([1])).x[0, 0, 0, 0] == 1, "the source stays usable"


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_follows_the_global_generator(workers: int) -> None:
    source = DatasetSource(Images(targets=True, noise=True), "images", workers=workers)

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.stack([source.take(torch.arange(4)).x for _ in range(2)])

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert not torch.equal(*draw(0))


def test_fingerprint_ignores_augmentation_and_tells_targets() -> None:
    assert DatasetSource(Images(noise=True), "a").fingerprint() == DatasetSource(Images(), "b").fingerprint()
    assert DatasetSource(Images(), "a").fingerprint() != DatasetSource(Images(8), "a").fingerprint()


def test_a_tensor_dataset_takes_the_short_cut() -> None:
    pairs = TensorDataset(torch.zeros(4, 2), torch.arange(4))
    assert isinstance(dataset_source(pairs, "t"), TensorSource)
    assert isinstance(dataset_source(Subset(pairs, [0, 1]), "t"), DatasetSource)
    with pytest.raises(DataError, match="the TensorDataset of source 't' holds 1 tensors: give two, x and y"):
        dataset_source(TensorDataset(torch.zeros(4, 2)), "t")


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


ZERO = torch.zeros(2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (Stream(), "the Stream of source 's' is not map-style: give one with __len__ and __getitem__"),
        ([], "source 's' has no rows: give at least one"),
        ([{"x": 1}], "row 0 of source 's' is a dict: the data set must give pairs (x, y)"),
        ([(ZERO, 1, 2)], "row 0 of source 's' is 3 values: the data set must give pairs (x, y)"),
        ([("pixels", 1)], "x in row 0 of source 's' is a str: give a tensor (for images, transform=ToTensor())"),
        ([(ZERO, "cat")], "row 0 of source 's' holds values that are not numbers"),
        ([(ZERO, 0), (torch.zeros(3), 1)], "row 1 of source 's' has shape (3,) but others have (2,): bring all to one shape"),
    ],
)
def test_wrong_data_sets_are_refused(rows, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        DatasetSource(rows, "s")


def test_a_negative_number_of_workers_is_refused() -> None:
    with pytest.raises(DataError, match="source 's' has workers=-1: give 0 or more"):
        DatasetSource(Images(), "s", workers=-1)
