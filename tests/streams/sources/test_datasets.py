from __future__ import annotations

import re

import numpy as np
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


@pytest.mark.parametrize("workers", [-1, 1.5, "two", True, None])
def test_a_number_of_workers_that_is_none_is_refused(workers: object) -> None:
    with pytest.raises(DataError, match=f"source 's' has workers={workers!r}: give a whole number of at least 0"):
        DatasetSource(Images(), "s", workers=workers)  # type: ignore[arg-type]


class Rows(Dataset):
    """Rows of zeros with label 0, but for those that are given; the labels are kept beside them."""

    def __init__(self, length: object, **odd: object) -> None:
        self._length, self._odd = length, {int(key[1:]): row for key, row in odd.items()}
        if isinstance(length, int) and 0 < length < 1000:
            self.targets = [0] * length

    def __len__(self) -> int:
        if isinstance(self._length, Exception):
            raise self._length
        return self._length  # type: ignore[return-value]

    def __getitem__(self, i: int) -> object:
        row = self._odd.get(i, (torch.zeros(2), 0))
        if isinstance(row, Exception):
            raise row
        return row


@pytest.mark.parametrize("workers", [0, 2])
def test_a_length_that_lies_is_said_to_lie(workers: int) -> None:
    source = DatasetSource(Rows(100, r60=IndexError("list index out of range")), "s", workers=workers)
    message = (
        "source 's' has 100 rows, says its len(), but row 60 does not exist (IndexError: list index out of range): correct its __len__"
    )
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        source.take(torch.arange(55, 65))
    assert isinstance(caught.value.__cause__, IndexError)


@pytest.mark.parametrize(
    ("length", "cause"),
    [
        (-1, "ValueError: __len__() should return >= 0"),
        (2.5, "TypeError: 'float' object cannot be interpreted as an integer"),
        (None, "TypeError: 'NoneType' object"),
        (2**80, "OverflowError"),
        (NotImplementedError("no idea"), "NotImplementedError: no idea"),
    ],
)
def test_a_length_that_is_none_is_refused(length: object, cause: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"len() of the Rows of source 's' fails ({cause}")) as caught:
        DatasetSource(Rows(length), "s")
    assert str(caught.value).endswith("it must give a whole number of at least 1")


HALF_NAN = torch.tensor([0.0, float("nan")])
ODD = [
    ((HALF_NAN, 0), "x in row 7 of source 's' holds NaN: remove or repair such rows"),
    ((torch.tensor([float("-inf"), 0.0]), 0), "x in row 7 of source 's' holds infinity: remove or repair such rows"),
    ((np.array([0.0, 1e300]), 0), "x in row 7 of source 's' holds infinity: remove or repair such rows"),
    ((torch.zeros(2).double(), 0), "row 7 of source 's' holds float64 values but others hold float32: bring all to one type"),
    ((torch.zeros(2).byte(), 0), "row 7 of source 's' holds uint8 values but others hold float32: bring all to one type"),
    ((torch.zeros(3), 0), "row 7 of source 's' has shape (3,) but others have (2,): bring all to one shape"),
    ((torch.zeros(2), 0.5), "y in row 7 of source 's' is a float but others are whole numbers: bring all to one type"),
    ((torch.zeros(2), [0, 1]), "y in row 7 of source 's' has shape (2,) but others have (): bring all to one shape"),
    ((torch.zeros(2), None), "row 7 of source 's' holds values that are not numbers"),
    (DataError("a.png is damaged"), "row 7 of source 's' cannot be read: a.png is damaged"),
    (KeyError("x"), "row 7 of source 's' cannot be read: KeyError: 'x'"),
]


@pytest.mark.parametrize(("row", "message"), ODD)
def test_a_row_unlike_the_others_is_named_alone_or_among_others(row: object, message: str) -> None:
    source = DatasetSource(Rows(20, r7=row), "s")
    for index in ([7], [1, 2, 7, 3], [7, 7, 0]):
        with pytest.raises(DataError, match=re.escape(message)):
            source.take(torch.tensor(index))
    assert source.take(torch.tensor([6, 8])).x.shape == (2, 2)


def test_a_row_unlike_the_others_is_named_by_a_process_too() -> None:
    source = DatasetSource(Rows(20, r7=(HALF_NAN, 0)), "s", workers=2)
    with pytest.raises(DataError, match="x in row 7 of source 's' holds NaN"):
        source.take(torch.arange(20))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, dtype=torch.uint8), "x in row 0 of source 's' holds uint8 values: give floats, for example x.float() / 255, or"),
        (torch.zeros(2, dtype=torch.complex64), "holds complex64 values: give floats, for example torch.view_as_real(x)"),
        (torch.zeros(2, device="meta"), "x in row 0 of source 's' lies on meta: give dense tensors on the CPU"),
        (torch.eye(2).to_sparse(), "x in row 0 of source 's' is sparse: give dense tensors on the CPU"),
        ([0.0, 1.0], "x in row 0 of source 's' is a list: give a tensor"),
    ],
)
def test_inputs_that_no_model_reads_are_refused(x: object, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        DatasetSource([(x, 0)], "s")


def test_a_label_that_is_not_finite_is_refused() -> None:
    with pytest.raises(DataError, match="y in row 1 of source 's' holds NaN"):
        DatasetSource([(ZERO, 0.5), (ZERO, float("nan"))], "s")


def test_pictures_are_refused_with_the_cure() -> None:
    pillow = pytest.importorskip("PIL.Image")
    with pytest.raises(DataError, match=re.escape("is a Image: give a tensor (for images, transform=ToTensor())")):
        DatasetSource([(pillow.new("L", (2, 2)), 0)], "s")


def test_arrays_and_tensors_of_any_layout_are_taken() -> None:
    doubles = np.arange(6.0).reshape(2, 3)
    readonly = doubles.astype(np.float32)
    readonly.flags.writeable = False
    rows = [doubles, doubles[::-1][::-1], np.asfortranarray(doubles), readonly, doubles.astype(">f8"), torch.from_numpy(doubles).float()]
    source = DatasetSource([(x, 0) for x in [*rows, rows[-1].clone().requires_grad_()]], "s")
    x = source.take(torch.arange(7)).x
    assert (x.dtype, x.requires_grad) == (torch.float32, False)
    assert torch.equal(x, rows[-1].expand(7, 2, 3))


def test_tokens_stay_integers() -> None:
    source = DatasetSource([(torch.tensor([5, 6]), 0), (torch.tensor([7, 8]), 1)], "s")
    assert source.take(torch.tensor([1])).x.tolist() == [[7, 8]]
    assert source.take(torch.tensor([], dtype=torch.int64)).x.dtype == torch.int64


def test_a_data_set_may_tell_its_content() -> None:
    told = Images(targets=True)
    plain = DatasetSource(told, "s").fingerprint()
    told.fingerprint = lambda: "1"  # type: ignore[attr-defined]
    one = DatasetSource(told, "s").fingerprint()
    told.fingerprint = lambda: "2"  # type: ignore[attr-defined]
    assert len({plain, one, DatasetSource(told, "s").fingerprint()}) == 3


def test_large_values_whose_sum_overflows_are_finite() -> None:
    largest = torch.full((2,), torch.finfo(torch.float32).max)
    assert torch.equal(DatasetSource([(largest, 0)], "s").take(torch.tensor([0, 0])).x, largest.expand(2, 2))
