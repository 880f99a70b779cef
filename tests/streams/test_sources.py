from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

import pytest
import torch

from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams.sources import named_source
from streamlearn.streams.sources.files import read_idx, usps

real_data = pytest.mark.skipif("STREAMLEARN_DATA" not in os.environ, reason="STREAMLEARN_DATA is not set: it names the folder of real data")


def idx(*sizes: int, kind: int = 8, values: bytes | None = None) -> bytes:
    count = int(torch.tensor(sizes).prod())
    return (
        bytes([0, 0, kind, len(sizes)])
        + b"".join(n.to_bytes(4, "big") for n in sizes)
        + (bytes(range(count)) if values is None else values)
    )


def write_set(raw: Path, rows: int = 4) -> None:
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(rows, 2, 3))
        (raw / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(rows)))


def test_digits_is_a_fixed_stratified_split() -> None:
    train, test = named_source("DIGITS")
    assert (len(train), len(test), train.input_shape) == (1438, 359, (1, 8, 8))
    assert train is named_source("digits")[0]
    x, targets = test.take(torch.arange(359))
    assert (x.min(), x.max()) == (0.0, 1.0)
    assert torch.bincount(targets["y"]).min() >= 35
    rows = {row.numpy().tobytes() for row in train.take(torch.arange(1438)).x}
    assert not any(row.numpy().tobytes() in rows for row in x)


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(
        UnknownNameError, match=re.escape("unknown source 'mnits': did you mean 'mnist'? (known: digits, fashion-mnist, mnist, usps)")
    ):
        named_source("mnits")


def test_files_are_read_plain_and_zipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path / "FashionMNIST" / "raw")
    monkeypatch.setenv("STREAMLEARN_DATA", str(tmp_path))
    train, test = named_source("fashion_mnist")
    assert (train.name, test.name, len(test), train.input_shape) == ("fashion-mnist", "fashion-mnist/test", 4, (1, 2, 3))
    x, targets = train.take(torch.tensor([1]))
    assert torch.equal(x, torch.arange(6, 12).reshape(1, 1, 2, 3).float().div(255))
    assert targets["y"].tolist() == [1]
    assert train is named_source("Fashion-MNIST")[0], "loaded once"
    assert train.class_names[9] == "Ankle boot"


def test_unset_folder_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STREAMLEARN_DATA", raising=False)
    message = (
        "source 'mnist' needs the file MNIST/raw/train-images-idx3-ubyte below the folder STREAMLEARN_DATA, which is not set: set "
        "STREAMLEARN_DATA to a folder laid out as torchvision does, e.g. by torchvision.datasets.MNIST(root, download=True)"
    )
    with pytest.raises(DataError, match=re.escape(message)):
        named_source("mnist")


def test_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setenv("STREAMLEARN_DATA", str(tmp_path))
    raw = tmp_path.resolve() / "MNIST" / "raw"
    with pytest.raises(
        DataError, match=re.escape(f"needs the file t10k-labels-idx1-ubyte, which is not in {raw} (nor is t10k-labels-idx1-ubyte.gz)")
    ):
        named_source("mnist")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (idx(4, 2, 2)[:-3], "is damaged: its header announces 32 bytes and it has 29; fetch it again"),
        (idx(4, 2, 2) + b"!", "is damaged: its header announces 32 bytes and it has 33; fetch it again"),
        (idx(4, 2, 2)[:7], "is damaged: its header announces 16 bytes and it has 7; fetch it again"),
        (idx(4), "is not an IDX file of 3-dimensional bytes: it begins with 00000801 instead of 00000803; fetch it again"),
        (idx(4, 2, 2, kind=9), "it begins with 00000903 instead of 00000803"),
        (b"", "it begins with nothing instead of 00000803"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, said: str, zipped: bool) -> None:
    path = tmp_path / ("images.gz" if zipped else "images")
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(DataError, match=re.escape(f"{path} ")) as caught:
        read_idx(path, 3)
    assert said in str(caught.value)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    cut, wrong = tmp_path / "cut.gz", tmp_path / "wrong.gz"
    cut.write_bytes(gzip.compress(idx(4, 2, 2))[:-12])
    wrong.write_bytes(b"no archive")
    for path in (cut, wrong):
        with pytest.raises(DataError, match=re.escape(f"{path} is damaged (")):
            read_idx(path, 3)
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'none'} cannot be read: ")):
        read_idx(tmp_path / "none", 3)


@pytest.mark.data
@real_data
@pytest.mark.parametrize(("name", "cls"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_real_images_equal_torchvisions(name: str, cls: str) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    from torchvision.transforms import ToTensor

    for part, source in zip((True, False), named_source(name), strict=True):
        reference = getattr(datasets, cls)(os.environ["STREAMLEARN_DATA"], train=part, transform=ToTensor())
        assert len(source) == len(reference) == (60_000 if part else 10_000)
        rows = torch.tensor([0, 17, len(source) - 1])
        x, targets = source.take(rows)
        assert torch.equal(x, torch.stack([reference[int(row)][0] for row in rows]))
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
        assert len(source) == len(reference) == (7291 if part else 2007)
        rows = torch.tensor([0, 17, len(source) - 1])
        expected = torch.stack([torch.from_numpy(reference.data[int(row)]) for row in rows]).unsqueeze(1) / 255
        # one level apart where the last bit of a parsed number decides what is cut off
        torch.testing.assert_close(source.take(rows).x, expected.float(), atol=1.01 / 255, rtol=0)
        assert source.take(rows).targets["y"].tolist() == [int(reference.targets[int(row)]) for row in rows]


def test_usps_tells_where_its_files_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMLEARN_DATA", str(tmp_path))
    usps.cache_clear()
    with pytest.raises(DataError, match=r"source 'usps' needs the file usps\.bz2, which is neither in .*USPS nor in "):
        named_source("usps")
    (tmp_path / "usps.bz2").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"usps\.bz2 is damaged"):
        named_source("usps")
