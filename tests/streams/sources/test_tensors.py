from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from streamlearn.errors import DataError
from streamlearn.streams.sources import TensorSource

Y = torch.tensor([0, 1, 2])


@given(st.lists(st.integers(0, 4), max_size=8))
def test_take_gives_the_rows_in_order(index: list[int]) -> None:
    source = TensorSource(torch.arange(10.0).reshape(5, 2), {"y": torch.arange(5), "z": torch.rand(5, 3)}, "s")
    x, targets = source.take(torch.tensor(index, dtype=torch.int64))
    assert x[:, 0].tolist() == [2.0 * i for i in index]
    assert targets["y"].tolist() == index
    assert targets["z"].shape == (len(index), 3)


def test_images_stay_bytes_and_equal_torchvision_bit_for_bit() -> None:
    to_tensor = pytest.importorskip("torchvision.transforms").ToTensor()
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    source = TensorSource(images, {"y": torch.arange(4)}, "s", divide_by=255)
    expected = torch.stack([to_tensor(image.permute(1, 2, 0).numpy()) for image in images])
    x = source.take(torch.arange(4)).x
    assert torch.equal(x, expected)
    assert x.dtype == torch.float32
    assert source._x.data_ptr() == images.data_ptr()
    assert source.input_shape == (1, 8, 8)


def test_tokens_stay_integers() -> None:
    assert TensorSource(torch.tensor([[5, 6]]), {"y": torch.tensor([0])}, "s").take(torch.tensor([0])).x.dtype == torch.int64


def test_arrays_of_any_layout_are_accepted() -> None:
    x = np.arange(12.0).reshape(3, 4)
    readonly = x.copy()
    readonly.flags.writeable = False
    for given_x in (x, x[::-1][::-1], np.asfortranarray(x), readonly, x.astype(">f8"), x.tolist(), torch.from_numpy(x).float()):
        source = TensorSource.from_arrays(given_x, np.array([0, 1, 2], dtype=np.uint8), "s")
        taken = source.take(torch.tensor([2]))
        assert taken.x.tolist() == [[8.0, 9.0, 10.0, 11.0]]
        assert (taken.x.dtype, taken.targets["y"].dtype) == (torch.float32, torch.int64)


def test_fingerprint_tells_content_apart() -> None:
    x = torch.arange(6, dtype=torch.uint8).reshape(3, 2)
    base = TensorSource(x, {"y": Y}, "s", divide_by=255)
    same = TensorSource(x.clone(), {"y": Y.int()}, "other name", divide_by=255)
    others = [
        TensorSource(x, {"y": Y.flip(0)}, "s", divide_by=255),
        TensorSource(x, {"z": Y}, "s", divide_by=255),
        TensorSource(x, {"y": Y}, "s", divide_by=16),
        TensorSource(x.flip(0), {"y": Y}, "s", divide_by=255),
        TensorSource(x.reshape(3, 2, 1), {"y": Y}, "s", divide_by=255),
    ]
    assert base.fingerprint() == same.fingerprint()
    assert len({base.fingerprint(), *(other.fingerprint() for other in others)}) == 6
    assert len(base.fingerprint()) == 64


def test_the_users_gradients_are_left_alone() -> None:
    x = torch.rand(3, 2, requires_grad=True)
    assert not TensorSource(x, {"y": Y}, "s").take(torch.tensor([0])).x.requires_grad


NAN, INF = torch.zeros(3, 2), torch.zeros(3, 2)
MASKED = np.ma.masked_array(np.ones((3, 2)), mask=[[False, False], [False, True], [True, True]])
NAN[1, 1], INF[2, 0] = float("nan"), float("inf")
WRONG = [
    (lambda: TensorSource(torch.zeros(3, 2), {"y": Y[:2]}, "s"), "source 's' has 3 rows of x but 2 of 'y': give one target for each row"),
    (lambda: TensorSource(torch.zeros(3, 2), {"y": Y[0]}, "s"), "source 's' has 3 rows of x but 0 of 'y': give one target for each row"),
    (lambda: TensorSource(torch.zeros(0, 2), {"y": Y[:0]}, "s"), "source 's' has no rows (x has shape (0, 2)): give at least one"),
    (lambda: TensorSource(torch.tensor(1.0), {"y": Y}, "s"), "source 's' has no rows (x has shape ()): give at least one"),
    (lambda: TensorSource(NAN, {"y": Y}, "s"), "row 1 of x of source 's' holds NaN: remove or repair such rows"),
    (lambda: TensorSource(INF, {"y": Y}, "s"), "row 2 of x of source 's' holds infinity: remove or repair such rows"),
    (lambda: TensorSource(torch.zeros(3, 2), {"y": NAN}, "s"), "row 1 of target 'y' of source 's' holds NaN: remove or repair such rows"),
    (lambda: TensorSource(torch.zeros(3, 2), {}, "s"), "source 's' has no targets: give at least one column"),
    (
        lambda: TensorSource(torch.zeros(3, 2), {"y": Y - 2}, "s"),
        "row 0 of source 's' has the negative label -2 in 'y': number classes from 0",
    ),
    (
        lambda: TensorSource(torch.zeros(3, 2, dtype=torch.uint8), {"y": Y}, "s"),
        "x of source 's' holds uint8 values: for images, give streamlearn.streams.TensorSource.from_arrays(x, y, name, divide_by=255) in "
        "place of (x, y); for other numbers, convert it with x.float(), or x.astype('float32') if it is an array",
    ),
    (
        lambda: TensorSource(torch.zeros(3, 2), {"y": Y}, "s", divide_by=255),
        "source 's' has divide_by=255 and float32 x: it is a positive number, for integer x only",
    ),
    (
        lambda: TensorSource(torch.zeros(3, 2, dtype=torch.uint8), {"y": Y}, "s", divide_by=0),
        "source 's' has divide_by=0 and uint8 x: it is a positive number, for integer x only",
    ),
    (
        lambda: TensorSource(torch.zeros(3, 2, dtype=torch.complex64), {"y": Y}, "s"),
        "x of source 's' holds complex64 values: give real numbers, for example torch.view_as_real(x)",
    ),
    (
        lambda: TensorSource(torch.zeros(3, 2, device="meta"), {"y": Y}, "s"),
        "x of source 's' lies on meta: keep sources on the CPU, batches are moved to the device",
    ),
    (
        lambda: TensorSource.from_arrays([[1.0], [1e300]], [0, 1], "s"),
        "row 1 of x of source 's' holds infinity: remove or repair such rows",
    ),
    (
        lambda: TensorSource.from_arrays(np.ones((3, 2), bool), Y, "s"),
        "x of source 's' holds bool values: convert it with x.float(), or x.astype('float32') if it is an array",
    ),
    (lambda: TensorSource.from_arrays(torch.eye(3).to_sparse(), Y, "s"), "x of source 's' is a sparse tensor: give its .to_dense()"),
    (lambda: TensorSource.from_arrays(torch.eye(3), Y.to_sparse(), "s"), "target 'y' of source 's' is a sparse tensor: give its .to_dense"),
    (lambda: TensorSource.from_arrays(csr_array(np.eye(3)), Y, "s"), "x of source 's' are a sparse csr_array: give its .toarray()"),
    (lambda: TensorSource.from_arrays(MASKED, Y, "s"), "row 1 of x of source 's' holds a masked value: remove or repair such rows"),
    (lambda: TensorSource.from_arrays(np.eye(3), MASKED[:, 1], "s"), "row 1 of the labels of source 's' holds a masked value"),
    (lambda: TensorSource(torch.zeros(3, 0), {"y": Y}, "s"), "an input of source 's' has no features (x has shape (3, 0)): give at least"),
    (
        lambda: TensorSource.from_arrays(np.zeros((1, 2)), np.array(["a"], dtype=object), "s"),
        "give numbers, or a table, whose texts are numbered, to streamlearn.streams.table_source(frame, target), or the source 'csv:path=",
    ),
    (lambda: TensorSource.from_arrays([[1.0], [1.0, 2.0]], [0, 1], "s"), "x of source 's' do not form an array ("),
    (lambda: TensorSource.from_arrays(np.zeros((3, 2)), ["a", "b", "c"], "s"), "the labels of source 's' hold <U1 values: give numbers"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_wrong_columns_are_refused(make, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        make()


def test_a_bad_row_far_down_is_named() -> None:
    x = torch.zeros(10_000, 2)
    x[9_999, 1] = float("nan")
    with pytest.raises(DataError, match="row 9999 of x"):
        TensorSource(x, {"y": torch.zeros(10_000, dtype=torch.int64)}, "s")


def test_a_masked_array_without_masked_values_is_an_array() -> None:
    x = np.ma.masked_array(np.ones((3, 2)), mask=False)
    assert TensorSource.from_arrays(x, Y, "s").take(torch.tensor([0])).x.tolist() == [[1.0, 1.0]]


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long doubles are doubles on this platform")
def test_long_doubles_are_refused() -> None:
    said = re.escape(f"hold {np.dtype(np.longdouble)} values, which torch does not know: convert them with .astype('float32')")
    with pytest.raises(DataError, match=f"x of source 's' {said}"):
        TensorSource.from_arrays(np.ones((3, 2), np.longdouble), Y, "s")
    with pytest.raises(DataError, match=f"the labels of source 's' {said}"):
        TensorSource.from_arrays(np.ones((3, 2)), np.ones(3, np.longdouble), "s")
