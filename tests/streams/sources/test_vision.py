from __future__ import annotations

import bz2
import gzip
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from streamlearn.errors import DataError
from streamlearn.streams import class_incremental, rebuild
from streamlearn.streams.sources import named, named_source
from streamlearn.streams.sources.vision import kmnist, mnist, svhn, usps

real_data = pytest.mark.skipif("STREAMLEARN_DATA" not in os.environ, reason="STREAMLEARN_DATA is not set: it names the folder of real data")


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "_LOADED", {})


def header(*sizes: int) -> bytes:
    return bytes([0, 0, 8, len(sizes)]) + b"".join(n.to_bytes(4, "big") for n in sizes)


def write_idx(root: Path, folder: str, rows: int = 10) -> Path:
    """Plain images, of which row i begins with 6 i, and zipped labels, i % 10."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header(rows, 2, 3) + bytes(range(rows * 6)))
        (raw / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header(rows) + bytes(i % 10 for i in range(rows))))
    return raw


@pytest.mark.parametrize(
    ("name", "folder", "last"), [("mnist", "MNIST", ""), ("fashion-mnist", "FashionMNIST", "Ankle boot"), ("kmnist", "KMNIST", "wo")]
)
def test_idx_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str, last: str) -> None:
    write_idx(tmp_path, folder)
    monkeypatch.setenv("STREAMLEARN_DATA", str(tmp_path))
    train, test = named_source(name.upper())
    assert test is not None
    assert (train.name, test.name, len(test), train.input_shape) == (name, f"{name}/test", 10, (1, 2, 3))
    x, targets = train.take(torch.tensor([1]))
    assert torch.equal(x, torch.arange(6, 12).reshape(1, 1, 2, 3).float().div(255))
    assert targets["y"].tolist() == [1]
    assert train is named_source(name)[0], "loaded once"
    assert (train.class_names or ("",))[-1] == last  # type: ignore[attr-defined]


def test_root_is_an_option_and_comes_back_with_the_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STREAMLEARN_DATA", raising=False)
    write_idx(tmp_path, "KMNIST")
    stream = class_incremental(f"kmnist:root={tmp_path}", 5)
    assert stream.description["source"] == f"kmnist:root={tmp_path}"
    assert rebuild(stream.description).hash == stream.hash


def test_missing_and_damaged_idx_files_are_named(tmp_path: Path) -> None:
    raw = write_idx(tmp_path, "MNIST")
    labels = raw / "t10k-labels-idx1-ubyte.gz"
    whole, root = labels.read_bytes(), tmp_path.resolve()
    labels.unlink()
    message = (
        f"source 'mnist' needs the file MNIST/raw/t10k-labels-idx1-ubyte (or MNIST/raw/t10k-labels-idx1-ubyte.gz), which is not in {root}: "
        f"put it there, e.g. by torchvision.datasets.MNIST({str(root)!r}, download=True)"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        mnist(str(tmp_path))
    labels.write_bytes(whole[:-9])
    with pytest.raises(DataError, match=re.escape("t10k-labels-idx1-ubyte.gz is damaged (")):
        mnist(str(tmp_path))
    labels.write_bytes(gzip.compress(header(10) + bytes([0] * 9 + [10])))
    with pytest.raises(DataError, match="label 10 in row 9 is not one of 0 to 9; fetch it again"):
        mnist(str(tmp_path))
    labels.write_bytes(gzip.compress(header(9) + bytes(9)))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte has 10 images and .*t10k-labels-idx1-ubyte\.gz has 9 labels: fetch both"):
        mnist(str(tmp_path))
    with pytest.raises(DataError, match=re.escape("torchvision.datasets.KMNIST(")):
        kmnist(str(tmp_path))


def usps_rows(levels: list[str], labels: list[int]) -> bytes:
    return bz2.compress("".join(f"{y} 1:{level} 256:1\n" for y, level in zip(labels, levels, strict=True)).encode())


@pytest.mark.parametrize("below", ["", "USPS"])
def test_usps_is_found_at_either_place(tmp_path: Path, below: str) -> None:
    (tmp_path / below).mkdir(exist_ok=True)
    for file in ("usps.bz2", "usps.t.bz2"):
        (tmp_path / below / file).write_bytes(usps_rows(["-1", "0.5"], [10, 1]))
    train, test = usps(str(tmp_path))
    assert (train.name, test.name, train.input_shape, train.targets["y"].tolist()) == ("usps", "usps/test", (1, 16, 16), [9, 0])
    assert train.take(torch.arange(2)).x.flatten(1)[:, [0, 1, 255]].mul(255).round().tolist() == [[0, 127, 255], [191, 127, 255]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no archive", r"usps\.bz2 is damaged \("),
        (usps_rows(["0"] * 99, [1] * 99)[:-5], r"usps\.bz2 is damaged \("),
        (bz2.compress(b"1 1:0 cat\n"), r"usps\.bz2 is damaged \("),
        (bz2.compress(b"1 300:0.5\n"), r"usps\.bz2 is damaged \("),
        (bz2.compress(b""), r"usps\.bz2 is damaged \("),
        (usps_rows(["0", "7"], [1, 2]), r"usps\.bz2 is damaged \(row 1 has a level outside of \[-1, 1\]\): fetch it again"),
        (usps_rows(["nan", "0"], [1, 2]), r"usps\.bz2 is damaged \(row 0 has a level outside"),
        (usps_rows(["0", "0"], [1, 0]), r"usps\.bz2 is damaged: label 0 in row 1 is not one of 1 to 10; fetch it again"),
        (usps_rows(["0", "0"], [11, 1]), r"label 11 in row 0 is not one of 1 to 10"),
    ],
)
def test_damaged_usps_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "usps.bz2").write_bytes(content)
    with pytest.raises(DataError, match=said):
        usps(str(tmp_path))


def test_usps_tells_where_its_files_belong(tmp_path: Path) -> None:
    message = f"source 'usps' needs the file USPS/usps.bz2 (or usps.bz2), which is not in {tmp_path.resolve()}: put it there, e.g. by"
    with pytest.raises(DataError, match=re.escape(message)):
        usps(str(tmp_path))


def write_svhn(path: Path, rows: int = 10) -> None:
    x = np.zeros((32, 32, 3, rows), dtype=np.uint8)
    x[1, 2, 0] = np.arange(rows)
    savemat(path, {"X": x, "y": np.array([[10, *range(1, 10)][i % 10] for i in range(rows)], dtype=np.uint8)[:, None]}, do_compression=True)


def test_svhn_puts_colours_first_and_calls_ten_zero(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_svhn(tmp_path / f"{part}_32x32.mat")
    train, test = named_source(f"svhn:root={tmp_path}")
    assert test is not None
    assert (train.name, test.name, train.input_shape, len(test)) == ("svhn", "svhn/test", (3, 32, 32), 10)
    x, targets = train.take(torch.arange(10))
    assert targets["y"].tolist() == list(range(10))
    assert x[:, 0, 1, 2].mul(255).round().tolist() == list(range(10))
    assert x.count_nonzero() == 9


def test_damaged_svhn_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train_32x32.mat"
    with pytest.raises(DataError, match=r"needs the file train_32x32\.mat \(or SVHN/train_32x32\.mat\), which is not in .*SVHN\("):
        svhn(str(tmp_path))
    write_svhn(path, 200)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-20], b"", b"<html></html>" * 30, whole[:200] + b"\xff" * 40 + whole[240:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{re.escape(str(path))} (is damaged|holds no array)"):
            svhn(str(tmp_path))
    images = np.zeros((32, 32, 3, 2), dtype=np.uint8)
    for made, said in (
        ({"X": images}, "holds no array 'y': fetch it again"),
        ({"X": images, "y": np.ones(3)}, r"y float64 of shape \(1, 3\), where uint8"),
        ({"X": images, "y": np.ones(3, dtype=np.uint8)}, r"is damaged: X holds uint8 of shape \(32, 32, 3, 2\) and y uint8"),
        ({"X": images.transpose(3, 0, 1, 2), "y": np.ones(2, dtype=np.uint8)}, r"X holds uint8 of shape \(2, 32, 32, 3\)"),
        ({"X": images / 2, "y": np.ones(2, dtype=np.uint8)}, "X holds float64"),
        ({"X": images, "y": np.array([1, 12])}, "label 12 in row 1 is not one of 0 to 10"),
    ):
        savemat(path, made)
        with pytest.raises(DataError, match=said):
            svhn(str(tmp_path))


@pytest.mark.data
@real_data
@pytest.mark.parametrize(("name", "cls"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_real_images_equal_torchvisions(name: str, cls: str) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    from torchvision.transforms import ToTensor

    for part, source in zip((True, False), named_source(name), strict=True):
        reference = getattr(datasets, cls)(os.environ["STREAMLEARN_DATA"], train=part, transform=ToTensor())
        assert source is not None
        assert len(source) == len(reference) == (60_000 if part else 10_000)
        rows = torch.tensor([0, 17, len(source) - 1])
        x, targets = source.take(rows)
        assert torch.equal(x, torch.stack([reference[int(row)][0] for row in rows]))
        assert torch.equal(source._x[:, 0], reference.data)  # type: ignore[attr-defined]
        assert torch.equal(source.targets["y"], reference.targets)  # type: ignore[attr-defined]
        assert targets["y"].tolist() == [reference[int(row)][1] for row in rows]


@pytest.mark.data
@real_data
def test_usps_equals_torchvisions() -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    root = os.environ["STREAMLEARN_DATA"]
    folder = os.path.join(root, "USPS") if os.path.isdir(os.path.join(root, "USPS")) else root
    for part, source in zip((True, False), named_source("usps"), strict=True):
        reference = datasets.USPS(folder, train=part)
        assert source is not None
        assert len(source) == len(reference) == (7291 if part else 2007)
        rows = torch.tensor([0, 17, len(source) - 1])
        expected = torch.stack([torch.from_numpy(reference.data[int(row)]) for row in rows]).unsqueeze(1) / 255
        # one level apart where the last bit of a parsed number decides what is cut off
        torch.testing.assert_close(source.take(rows).x, expected.float(), atol=1.01 / 255, rtol=0)
        assert source.take(rows).targets["y"].tolist() == [int(reference.targets[int(row)]) for row in rows]
