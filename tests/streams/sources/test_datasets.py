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
from streamlearn.streams.sources.subsets import inputs_in_memory


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
    assert images.decoded <= 36
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


class Sized(Stream):
    def __len__(self) -> int:
        return 5


class Unfinished(Dataset):
    def __len__(self) -> int:
        return 5


ZERO = torch.zeros(2)
MASKED = np.ma.masked_array([1.0, 2.0], mask=[False, True])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (Stream(), "the Stream of source 's' is not map-style: give one with __len__ and __getitem__"),
        ([], "source 's' has no rows: give at least one"),
        ([{"x": 1}], "row 0 of source 's' is a dict: the data set must give pairs (x, y)"),
        ([(ZERO, 1, 2)], "row 0 of source 's' is 3 values: the data set must give pairs (x, y)"),
        ([("pixels", 1)], "x in row 0 of source 's' is a str: give a tensor (for images, transform=ToTensor())"),
        ([(ZERO, "cat")], "y in row 0 of source 's' is the text 'cat': give the number of its class, from 0"),
        (Sized(), "the Sized of source 's' is not map-style: give one with __len__ and __getitem__"),
        (Unfinished(), "the Unfinished of source 's' is not map-style: give one with __len__ and __getitem__"),
        ([(torch.zeros(0), 1)], "x in row 0 of source 's' has no features (its shape is (0,)): give at least one"),
        ([(MASKED, 1)], "x in row 0 of source 's' holds a masked value: remove or repair such rows"),
        ([(ZERO, MASKED)], "y in row 0 of source 's' holds a masked value: remove or repair such rows"),
        ([(ZERO, 0), (ZERO.to_sparse(), 1)], "x in row 1 of source 's' is sparse: give dense tensors on the CPU"),
        ([(ZERO, ZERO.to_sparse())], "y in row 0 of source 's' is sparse: give dense tensors on the CPU"),
        ([(ZERO, 0), (torch.zeros(3), 1)], "row 1 of source 's' has shape (3,) but others have (2,): bring all to one shape"),
    ],
)
def test_wrong_data_sets_are_refused(rows, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        DatasetSource(rows, "s")


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long doubles are doubles on this platform")
def test_long_doubles_are_refused() -> None:
    said = re.escape(f"row 0 of source 's' holds {np.dtype(np.longdouble)} values: convert them with .astype('float32')")
    for pair, what in (((np.zeros(2, np.longdouble), 1), "x"), ((ZERO, np.longdouble(1)), "y")):
        with pytest.raises(DataError, match=f"{what} in {said}"):
            DatasetSource([pair], "s")


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
        (torch.zeros(2, dtype=torch.bool), "x in row 0 of source 's' holds bool values: give floats, for example x.float()"),
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


class Relabelled(Dataset):
    """Noise on the labels of some rows, of which the attribute ``targets`` knows nothing."""

    def __init__(self, rows: int, noisy: set[int], floats: bool = False) -> None:
        self.targets, self.noisy, self._floats = [0] * rows, noisy, floats

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Tensor, float]:
        if self._floats:
            return torch.zeros(2), 0.5 if i in self.noisy else 0.0
        return torch.zeros(2), 256 if i in self.noisy else 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stale_label_that_no_probe_meets_is_refused_when_its_row_is_taken(workers: int) -> None:
    source = DatasetSource(Relabelled(1000, {7}), "s", workers=workers)
    assert source.take(torch.tensor([6, 8])).targets["y"].tolist() == [0, 0]
    message = (
        "row 7 of source 's' has the target 256, but the targets that the Relabelled keeps beside its rows say 0: bring its attribute "
        "targets (or labels) up to date, or remove it, and targets are read from the rows"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        source.take(torch.tensor([6, 7]))


def test_a_stale_label_in_one_of_twenty_rows_leads_to_reading_them_all() -> None:
    for row in range(20):
        assert DatasetSource(Relabelled(20, {row}), "s").targets["y"].nonzero().tolist() == [[row]]
    halves = DatasetSource(Relabelled(20, {7}, floats=True), "s").targets["y"]
    assert halves[7] == 0.5, "a half is not the class 0"


def test_a_label_of_the_type_of_bytes_does_not_overflow_into_agreement() -> None:
    rows = [(ZERO, torch.tensor(0, dtype=torch.uint8)) for _ in range(4)]
    images = Images(4)
    images.targets = [256] * 4
    images.__class__ = type("Bytes", (Images,), {"__getitem__": lambda self, i: rows[i]})
    assert DatasetSource(images, "s").targets["y"].tolist() == [0] * 4


def test_probing_more_rows_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    DatasetSource(Images(1000, noise=True, targets=True), "s")
    after = torch.rand(())
    torch.manual_seed(0)
    for _ in range(4):  # the first row, and three that are read as a batch is
        torch.rand(())
    assert torch.equal(torch.rand(()), after)


def test_a_label_that_changes_from_reading_to_reading_is_refused() -> None:
    pairs = [(ZERO, 0), (ZERO, 1), (ZERO, 2)]
    source = DatasetSource(pairs, "s")
    pairs[1] = (ZERO, 5)
    message = "row 1 of source 's' has the target 5, but had 1 when it was first read: let the data set give the same target"
    with pytest.raises(DataError, match=re.escape(message)):
        source.take(torch.tensor([2, 1]))


def test_more_targets_than_rows_are_refused() -> None:
    images = Images(9)
    images.targets = [0] * 12
    message = (
        "source 's' has 9 rows, says its len(), but its Images keeps 12 targets: correct its __len__, or keep only the targets of its rows"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        DatasetSource(images, "s")


X, LABELS = torch.arange(24.0).view(12, 2), torch.arange(12) % 3
PAIRS = TensorDataset(X, LABELS)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 999], "index 999 in place 1 of the Subset of source 's' does not exist: its data set has 12 rows, give numbers from 0 to 11"),
        ([0, -13], "index -13 in place 1 of the Subset of source 's' does not exist"),
        (LABELS < 1, "the indices of the Subset of source 's' are a mask: give the numbers of the rows, [row for row, kept in enumerate"),
        ((LABELS < 1).tolist(), "are a mask"),
        ((LABELS < 1).numpy(), "are a mask"),
        ([0.0, 1.0], "the indices of the Subset of source 's' are float32 of shape (2,): give a list of row numbers"),
        (torch.zeros(2, 2).long(), "are int64 of shape (2, 2): give a list of row numbers"),
    ],
)
def test_a_subset_of_rows_that_do_not_exist_is_refused(indices, message: str) -> None:
    for dataset in (Subset(PAIRS, indices), ConcatDataset([PAIRS, Subset(PAIRS, indices)]), Subset(Subset(PAIRS, indices), [0])):
        with pytest.raises(DataError, match=re.escape(message)):
            dataset_source(dataset, "s")


@pytest.mark.parametrize("indices", [[3, -1, 3], np.array([3, 11, 3]), torch.tensor([3, 11, 3]), range(3, 12, 4)])
def test_a_subset_by_any_list_of_numbers_is_taken(indices) -> None:
    source = dataset_source(Subset(PAIRS, indices), "s")
    x, targets = source.take(torch.arange(len(indices)))
    rows = torch.tensor([int(row) for row in indices])
    assert torch.equal(x, X[rows])
    assert torch.equal(targets["y"], LABELS[rows])


def test_the_fingerprint_tells_the_type_of_inputs_and_inputs_in_memory() -> None:
    def parts(x: Tensor) -> ConcatDataset:
        pairs = TensorDataset(x, LABELS)
        return ConcatDataset([Subset(pairs, [5, 2]), pairs])

    prints = [DatasetSource(parts(x), "s").fingerprint() for x in (X, X.clone(), X + 1, X.double())]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    kinds = [DatasetSource([(torch.zeros(2, dtype=kind), 0)], "s").fingerprint() for kind in (torch.float32, torch.float64, torch.int64)]
    assert len(set(kinds)) == 3


def test_inputs_in_memory_are_those_of_the_rows() -> None:
    dataset = Subset(ConcatDataset([Subset(PAIRS, [5, -2]), PAIRS, Subset(PAIRS, [1])]), [14, 0, 1, 7, 2])
    inputs = inputs_in_memory(dataset)
    assert inputs is not None
    for rows in ([4, 0, 3, 3], [2], [0, 1, 2, 3, 4]):
        assert torch.equal(inputs(torch.tensor(rows)), torch.stack([dataset[row][0] for row in rows]))
    assert inputs_in_memory(ConcatDataset([PAIRS, Images()])) is None


class Doubled(TensorDataset):
    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return 2 * x, 2 - y


def test_a_tensor_dataset_that_changes_its_rows_is_read_row_by_row() -> None:
    changed = Doubled(X, LABELS)
    x, targets = dataset_source(changed, "s").take(torch.tensor([4]))
    assert (x.tolist(), targets["y"].tolist()) == ([[16.0, 18.0]], [1])
    assert inputs_in_memory(changed) is None
