from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from streamlearn.errors import ConfigurationError, DataError
from streamlearn.streams.sources import named, named_source
from streamlearn.streams.sources.omniglot import omniglot

pillow = pytest.importorskip("PIL.Image")
real_data = pytest.mark.skipif("STREAMLEARN_DATA" not in os.environ, reason="STREAMLEARN_DATA is not set: it names the folder of real data")
CHARACTERS = {"background": ("B/character01", "A/character02", "A/character01"), "evaluation": ("A_/character01",)}


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "_LOADED", {})


def drawing(character: int, drawer: int) -> np.ndarray:
    """Ten by ten, white but for one black pixel that tells the drawing."""
    paper = np.ones((10, 10), dtype=bool)
    paper.reshape(-1)[character * 20 + drawer] = False
    return paper


def write(root: Path, zipped: bool = False) -> Path:
    place = root / "omniglot-py"
    place.mkdir()
    for half, characters in CHARACTERS.items():
        for number, character in enumerate(characters):
            folder = place / f"images_{half}" / character
            folder.mkdir(parents=True)
            for drawer in range(1, 21):
                pillow.fromarray(drawing(number, drawer)).save(folder / f"{number + 1:04}_{drawer:02}.png")
        if zipped:
            top = place / f"images_{half}"
            with zipfile.ZipFile(place / f"images_{half}.zip", "w") as archive:
                for file in sorted(top.rglob("*"), reverse=True):
                    archive.write(file, file.relative_to(place))
            top.rename(root / f"unpacked {half}")
    return place


@pytest.mark.parametrize("zipped", [False, True])
def test_the_last_five_drawers_are_the_test_rows(tmp_path: Path, zipped: bool) -> None:
    place = write(tmp_path, zipped)
    if not zipped:
        (place / "images_background" / "A" / "character01" / "._0709_01.png").touch()
    train, test = named_source(f"omniglot:root={tmp_path},size=10")
    assert test is not None
    assert (train.name, test.name, train.input_shape, len(train), len(test)) == ("omniglot", "omniglot/test", (1, 10, 10), 45, 15)
    assert train.class_names == ("A/character01", "A/character02", "B/character01")  # type: ignore[attr-defined]
    number = {0: 2, 1: 1, 2: 0}
    for source, drawers in ((train, range(1, 16)), (test, range(16, 21))):
        x, targets = source.take(torch.arange(len(source)))
        expected = [(kind, drawer) for kind in range(3) for drawer in drawers]
        assert targets["y"].tolist() == [kind for kind, _ in expected]
        assert x.flatten(1).argmax(1).tolist() == [number[kind] * 20 + drawer for kind, drawer in expected]
        assert torch.equal(x.sum((1, 2, 3)), torch.ones(len(x))), "one bright pixel on a dark ground"


def test_parts_are_told_apart_and_joined(tmp_path: Path) -> None:
    write(tmp_path)
    root = str(tmp_path)
    evaluation, held_out = omniglot("evaluation", 10, 1, root)
    assert held_out is not None
    assert (evaluation.name, held_out.name, len(evaluation), len(held_out)) == ("omniglot/evaluation", "omniglot/evaluation/test", 19, 1)
    both, none = omniglot("all", 10, 0, root)
    assert none is None
    assert (both.name, len(both)) == ("omniglot/all", 80)
    assert both.class_names == ("A/character01", "A/character02", "B/character01", "A_/character01")
    assert both.targets["y"].bincount().tolist() == [20] * 4
    assert omniglot("background", 4, root=root)[0].input_shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ("part=foreground", ConfigurationError, "source 'omniglot' has part='foreground': give background, evaluation or all"),
        ("size=0", DataError, "source 'omniglot' has size=0: give a whole number of at least 1"),
        ("test_drawers=20", DataError, "has test_drawers=20: there are 20 drawers, leave one or more to train on"),
        ("test_drawers=-1", DataError, "has test_drawers=-1: give a whole number of at least 0"),
    ],
)
def test_wrong_options_are_refused(options: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        named_source(f"omniglot:{options}")


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    message = (
        "source 'omniglot' needs the folder omniglot-py/images_background (or the file omniglot-py/images_background.zip), which is not "
        f"in {root}: put it there, e.g. by torchvision.datasets.Omniglot({str(root)!r}, True, download=True), and again with False"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        omniglot(root=str(tmp_path))
    place = write(tmp_path)
    (place / "images_background" / "A" / "character02" / "0002_03.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"images_background/A/character02/0002_03\.png cannot be read as an image \(.*: replace it"):
        omniglot(root=str(tmp_path))
    for drawer in range(1, 16):
        (place / "images_background" / "A" / "character02" / f"0002_{drawer:02}.png").unlink()
    with pytest.raises(DataError, match="source 'omniglot' has no training drawing of A/character02: fetch its files again"):
        omniglot(root=str(tmp_path))
    (place / "images_background" / "A" / "character02" / "0002_21.png").touch()
    with pytest.raises(DataError, match=r"holds A/character02/0002_21\.png, but drawers are numbered 01 to 20"):
        omniglot(root=str(tmp_path))


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, zipped=True) / "images_background.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=rf"{re.escape(str(path.resolve()))} is damaged \(File is not a zip file\): fetch it again"):
        omniglot(root=str(tmp_path))
    signature = whole.index(b"IDAT")
    path.write_bytes(whole[: signature + 6] + b"\xff\xff" + whole[signature + 8 :])
    with pytest.raises(DataError, match=r"\.zip/.*\.png is damaged \(Bad CRC-32 .*: fetch the archive again"):
        omniglot(root=str(tmp_path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images_background/readme.txt", "nothing")
    with pytest.raises(DataError, match=r"images_background\.zip holds no drawings"):
        omniglot(root=str(tmp_path))


@pytest.mark.data
@pytest.mark.slow
@real_data
def test_real_omniglot() -> None:
    train, test = named_source("omniglot")
    assert test is not None
    assert (len(train), len(test), train.input_shape) == (964 * 15, 964 * 5, (1, 28, 28))
    for source, drawers in ((train, 15), (test, 5)):
        assert torch.equal(source.targets["y"].bincount(), torch.full((964,), drawers))  # type: ignore[attr-defined]
    path = Path(os.environ["STREAMLEARN_DATA"]) / "omniglot-py" / "images_background" / train.class_names[700]  # type: ignore[attr-defined]
    first = sorted(path.glob("*_01.png"))[0]
    with pillow.open(first) as image:
        expected = 255 - np.asarray(image.convert("L").resize((28, 28), pillow.Resampling.LANCZOS)).astype(np.float32)
    row = int((train.targets["y"] == 700).nonzero()[0, 0])  # type: ignore[attr-defined]
    assert torch.equal(train.take(torch.tensor([row])).x[0, 0], torch.from_numpy(expected) / 255)
    assert 0.02 < float(train.take(torch.arange(2000)).x.mean()) < 0.2, "strokes are bright and thin"
