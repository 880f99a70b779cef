from __future__ import annotations

import gzip
import io
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamlearn.errors import ConfigurationError, DataError, MissingExtraError
from streamlearn.streams.sources.files import DataFolder, at_least, checked_labels, read_idx, read_image

CALL = "MNIST({root}, download=True)"


def idx(*sizes: int, kind: int = 8) -> bytes:
    values = bytes(i % 251 for i in range(math.prod(sizes)))
    return bytes([0, 0, kind, len(sizes)]) + b"".join(n.to_bytes(4, "big") for n in sizes) + values


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_is_read_plain_and_zipped(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / ("images.gz" if zipped else "images")
    path.write_bytes(gzip.compress(idx(4, 2, 3)) if zipped else idx(4, 2, 3))
    assert torch.equal(read_idx(path, 3), torch.arange(24, dtype=torch.uint8).view(4, 2, 3))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (idx(4, 2, 2)[:-3], "is damaged: its header announces 32 bytes and it has 29; fetch it again"),
        (idx(4, 2, 2) + b"!", "is damaged: its header announces 32 bytes and it has 33; fetch it again"),
        (idx(4, 2, 2)[:7], "is damaged: its header announces 16 bytes and it has 7; fetch it again"),
        (idx(0, 2, 2), "holds nothing (its header announces 0 by 2 by 2 values): fetch it again"),
        (idx(4), "is not an IDX file of 3-dimensional bytes: it begins with 00000801 instead of 00000803; fetch it again"),
        (idx(4, 2, 2, kind=9), "it begins with 00000903 instead of 00000803"),
        (b"<html>not found</html>", "it begins with 3c68746d instead of 00000803"),
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


@given(st.binary(max_size=60))
def test_rubbish_never_gets_through_as_a_bare_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("rubbish")
    for path in (folder / "a", folder / "a.gz"):
        path.write_bytes(b"\0\0\x08\x03" + content if path.suffix == "" else gzip.compress(b"\0\0\x08\x03")[:-4] + content)
        try:
            found = read_idx(path, 3)
        except DataError:
            continue  # what a user is told; any other error fails the test
        assert found.dim() == 3
        assert found.numel() > 0


def test_the_folder_is_the_one_given_or_the_one_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("STREAMLEARN_DATA", str(tmp_path))
    assert DataFolder.of("mnist", None, "a", CALL).path == tmp_path.resolve()
    assert DataFolder.of("mnist", str(tmp_path / "here"), "a", CALL).path == (tmp_path / "here").resolve()
    (tmp_path / "b").touch()
    place = DataFolder.of("mnist", tmp_path, "a", CALL)
    assert place.find("a", "b") == tmp_path.resolve() / "b"
    with pytest.raises(DataError) as caught:
        place.find("x/a", "x/a.gz")
    root = tmp_path.resolve()
    assert str(caught.value) == (
        f"source 'mnist' needs the file x/a (or x/a.gz), which is not in {root}: put it there, e.g. by "
        f"torchvision.datasets.MNIST({str(root)!r}, download=True)"
    )


def test_a_folder_that_is_not_there_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cure = "laid out as torchvision does, e.g. by torchvision.datasets.MNIST(root, download=True)"
    monkeypatch.delenv("STREAMLEARN_DATA", raising=False)
    message = (
        "source 'mnist' needs the file a below the folder STREAMLEARN_DATA, which is not set: set STREAMLEARN_DATA, or the option "
        f"root, to a folder {cure}"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        DataFolder.of("mnist", None, "a", CALL)
    gone = tmp_path.resolve() / "gone"
    monkeypatch.setenv("STREAMLEARN_DATA", str(gone))
    for root, how in ((None, "STREAMLEARN_DATA"), (str(gone), "root")):
        with pytest.raises(DataError) as caught:
            DataFolder.of("mnist", root, "a", CALL)
        assert str(caught.value) == (
            f"source 'mnist' looks for its files in {gone} (given as {how}), which is no folder: name an existing one, {cure}"
        )
    with pytest.raises(ConfigurationError, match="source 'mnist' has root=7: give the name of a folder, in double quotes if need be"):
        DataFolder.of("mnist", 7, "a", CALL)


@pytest.mark.parametrize("value", [-1, 1.0, "2", None, True])
def test_numbers_that_are_none_are_refused(value: object) -> None:
    with pytest.raises(DataError, match=re.escape(f"source 's' has size={value!r}: give a whole number of at least 0")):
        at_least(value, 0, "source 's' has size")


def test_labels_out_of_range_are_named() -> None:
    assert checked_labels(torch.tensor([1, 9], dtype=torch.uint8), 10, Path("f"), least=1).tolist() == [1, 9]
    for labels, said in (([1, 10], "label 10 in row 1 is not one of 1 to 9"), ([0, 3], "label 0 in row 0 is not one of 1 to 9")):
        with pytest.raises(DataError, match=f"f is damaged: {said}; fetch it again"):
            checked_labels(torch.tensor(labels), 10, Path("f"), least=1)


def test_images_of_every_mode_become_what_is_asked_for() -> None:
    pillow = pytest.importorskip("PIL.Image")
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16

    def read(image, mode: str, kind: str = "PNG") -> np.ndarray:
        image.save(buffer := io.BytesIO(), kind)
        return read_image(buffer, "it", mode, 4)

    assert np.array_equal(read(pillow.fromarray(grey), "L"), grey)
    assert np.array_equal(read(pillow.fromarray(grey), "RGB"), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(read(pillow.fromarray(grey.astype(np.uint16) * 257), "L"), grey), "16 bits keep their levels"
    assert read(pillow.fromarray(grey > 100), "L").tolist() == ((grey > 100) * 255).tolist()
    palette = pillow.fromarray(grey).convert("P")
    palette.info["transparency"] = bytes(range(0, 256, 1))
    assert read(palette, "RGB").shape == (4, 4, 3)
    with pytest.raises(DataError, match="it cannot be read as an image \\(ValueError: it holds floating-point levels"):
        read(pillow.fromarray(grey.astype(np.float32)), "L", "TIFF")


def test_damaged_images_are_refused(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    noise = pillow.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path = tmp_path / "a.png"
    noise.save(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"no image", b"", whole[:40] + b"\0" * 40 + whole[80:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{re.escape(str(path))} cannot be read as an image \\(.*: replace it"):
            read_image(path, str(path), "RGB", 8)
    with pytest.raises(DataError, match="nothing cannot be read as an image \\(FileNotFoundError"):
        read_image(tmp_path / "none.png", "nothing", "RGB", 8)


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=re.escape("reading images needs the package 'pillow', which is not installed: run  pip")):
        read_image("a.png", "a", "L", 8)


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    place = DataFolder.of("mnist", tmp_path, "a", CALL)
    folder = tmp_path.resolve() / "a"
    with pytest.raises(DataError, match=re.escape(f"source 'mnist' needs a file {folder}, which is a folder: put the file itself there")):
        place.find("a", "a.gz")
    (tmp_path / "a.gz").touch()
    assert place.find("a", "a.gz") == tmp_path.resolve() / "a.gz"
    with pytest.raises(DataError, match=re.escape(f"{tmp_path} cannot be read: ")):
        read_idx(tmp_path, 3)
