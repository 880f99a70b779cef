from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from streamlearn.errors import ConfigurationError, DataError
from streamlearn.streams import build, build_chain, rebuild
from streamlearn.streams.sources import DatasetSource, TensorSource, named, named_source
from streamlearn.streams.sources import folders as module
from streamlearn.streams.sources.folders import image_folder

pillow = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "_LOADED", {})


def write(place: Path, **counts: int) -> Path:
    """Noise in three formats, of sizes that differ, numbered in the order of their names."""
    draw = np.random.default_rng(len(place.name))
    for kind, count in counts.items():
        (place / kind).mkdir(parents=True)
        for number in range(count):
            pixels = draw.integers(0, 256, (9 + number, 12, 3), dtype=np.uint8)
            ending = ("png", "JPG", "bmp")[number % 3]
            pillow.fromarray(pixels).save(place / kind / f"{number}.{ending}", {"JPG": "jpeg"}.get(ending))
    return place


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return write(tmp_path / "pets", dog=4, cat=6)


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("size", [5, 16])
def test_images_equal_torchvisions_bit_for_bit(pets: Path, in_memory: bool, size: int) -> None:
    datasets, transforms = pytest.importorskip("torchvision.datasets"), pytest.importorskip("torchvision.transforms")
    change = transforms.Compose([transforms.Resize((size, size)), transforms.ToTensor()])
    reference = datasets.ImageFolder(pets, transform=change)
    source = image_folder(pets, size=size, in_memory=in_memory)
    assert isinstance(source, TensorSource if in_memory else DatasetSource)
    assert torch.equal(source.take(torch.arange(10)).x, torch.stack([x for x, _ in reference]))
    assert source.targets["y"].tolist() == reference.targets == [0] * 6 + [1] * 4
    assert (list(source.class_names), source.name, source.input_shape) == (reference.classes, "pets", (3, size, size))


def test_targets_are_known_without_decoding(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pets / "more").mkdir()
    for number in range(500):
        (pets / "more" / f"{number:03}.png").symlink_to(pets / "cat" / "0.png")
    decoded = []

    def counting(path: Path, *rest: object) -> np.ndarray:
        decoded.append(path)
        return np.zeros((4, 4, 3), dtype=np.uint8)

    monkeypatch.setattr(module, "read_image", counting)
    source = image_folder(pets, size=4)
    assert source.targets["y"].bincount().tolist() == [6, 4, 500]  # type: ignore[attr-defined]
    assert len(decoded) <= 36
    source.take(torch.tensor([3, 509]))
    assert [path.name for path in decoded[-2:]] == ["3.png", "499.png"]


def test_processes_give_the_same_rows(pets: Path) -> None:
    index = torch.tensor([9, 0, 4])
    assert torch.equal(image_folder(pets, size=6, workers=2).take(index).x, image_folder(pets, size=6).take(index).x)


def test_what_is_no_image_of_a_class_is_left_out(pets: Path) -> None:
    (pets / "cat" / "notes.txt").touch()
    (pets / "cat" / "._0.png").touch()
    (pets / ".cache").mkdir()
    (pets / "README.png").touch()
    (pets / "cat" / "young").mkdir()
    (pets / "cat" / "0.png").rename(pets / "cat" / "young" / "0.png")
    assert image_folder(pets, size=4).targets["y"].bincount().tolist() == [6, 4]  # type: ignore[attr-defined]


def test_test_classes_are_matched_by_name(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train", ant=3, bee=3, cow=3)
    write(tmp_path / "set" / "test", cow=2, bee=1)
    train, test = named_source(f"folder:path={tmp_path / 'set' / 'train'},test={tmp_path / 'set' / 'test'},size=4")
    assert test is not None
    assert (train.name, test.name) == ("set", "set/test")
    assert test.targets["y"].tolist() == [1, 2, 2]  # type: ignore[attr-defined]
    write(tmp_path / "set" / "test" / "..", **{"test/dog": 1})
    with pytest.raises(DataError, match=r"set/test has a sub-folder 'dog', which is no class of the training images \(ant, bee, cow\)"):
        named.named_source(f"folder:path={tmp_path / 'set' / 'train'},test={tmp_path / 'set' / 'test'},size=5")


def test_the_fingerprint_tells_files_and_size(pets: Path) -> None:
    base = image_folder(pets, size=4).fingerprint()
    assert image_folder(pets, size=4, name="other").fingerprint() == base
    assert image_folder(pets, size=5).fingerprint() != base
    with (pets / "cat" / "0.png").open("ab") as file:
        file.write(b"!")
    assert image_folder(pets, size=4).fingerprint() != base


def test_a_stream_of_a_folder_comes_back_from_its_description(pets: Path) -> None:
    chain = f'class_incremental:source="folder:path={pets},size=4",experiences=2,test_fraction=0.3 | online:rows=2'
    stream = build_chain(chain)
    again = rebuild(json.loads(json.dumps(stream.description)))
    assert again.hash == stream.hash
    assert [e.data["train"].indices.tolist() for e in again] == [e.data["train"].indices.tolist() for e in stream]  # type: ignore[union-attr]
    seen = sorted(row for e in stream for row in e.data["train"].indices.tolist())  # type: ignore[union-attr]
    held = sorted(row for k in range(2) for row in stream.evaluation_set(k).data.indices.tolist())  # type: ignore[union-attr]
    assert sorted(seen + held) == list(range(10))
    other = build("class_incremental", source=f"folder:path={pets},size=4,in_memory=true", experiences=2)
    assert other[0].data["train"].batch(torch.tensor([0])).x.shape == (1, 3, 4, 4)


def test_wrong_folders_are_explained(tmp_path: Path) -> None:
    layout = "put one sub-folder for each class in it, with the images of that class (.jpg .jpeg .png"
    place = tmp_path.resolve()
    with pytest.raises(DataError, match=re.escape(f"there is no folder {place / 'none'}: {layout}")):
        image_folder(place / "none")
    (place / "a.png").touch()
    with pytest.raises(DataError, match=re.escape(f"there is no folder {place / 'a.png'}: ")):
        image_folder(place / "a.png")
    with pytest.raises(DataError, match=re.escape(f"{place} has no sub-folders, so its images have no classes: {layout}")):
        image_folder(place)
    (place / "cat").mkdir()
    (place / "cat" / "a.txt").touch()
    with pytest.raises(DataError, match=re.escape(f"{place / 'cat'} holds no image (.jpg")) as caught:
        image_folder(place)
    assert str(caught.value).endswith("put the images of class 'cat' there, or remove it")


def test_a_folder_that_may_not_be_read_is_named(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(place: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", forbidden)
    with pytest.raises(DataError, match=r"the folder .*pets cannot be read: .*Permission denied"):
        image_folder(pets)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_when_it_is_read(pets: Path, workers: int) -> None:
    (pets / "cat" / "1.JPG").write_bytes(b"no image")
    source = image_folder(pets, size=4, workers=workers)
    path = re.escape(str(pets.resolve() / "cat" / "1.JPG"))
    with pytest.raises(DataError, match=rf"row 1 of source 'pets' cannot be read: {path} cannot be read as an image \(.*: replace it"):
        source.take(torch.tensor([0, 1, 2]))
    with pytest.raises(DataError, match=rf"{path} cannot be read as an image"):
        image_folder(pets, size=4, in_memory=True)


def test_an_image_removed_later_is_named(pets: Path) -> None:
    source = image_folder(pets, size=4)
    (pets / "dog" / "1.JPG").unlink()
    with pytest.raises(DataError, match=r"row 7 of source 'pets' cannot be read: .*dog/1\.JPG cannot be read as an image \(FileNotFound"):
        source.take(torch.tensor([7]))
    with pytest.raises(DataError, match=r"the image .*dog/1\.JPG is no longer there \(.*: put it back"):
        source.fingerprint()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ("size=0", DataError, "source 'pets' has size=0: give a whole number of at least 1"),
        ("size=big", DataError, "source 'pets' has size='big': give a whole number of at least 1"),
        ("workers=-1", DataError, "source 'pets' has workers=-1: give a whole number of at least 0"),
        ("in_memory=1", ConfigurationError, "in_memory=1 and name=None: give true or false, and a text"),
        ("name=3", ConfigurationError, "in_memory=False and name=3"),
        ("test=[1]", ConfigurationError, r"a source of images has path=\[1\]: give the name of a folder"),
    ],
)
def test_wrong_options_are_refused(pets: Path, options: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        named_source(f"folder:path={pets},{options}")


def test_the_path_is_asked_for() -> None:
    with pytest.raises(ConfigurationError, match="needs the option 'path': write folder:path="):
        named_source("folder")
    with pytest.raises(ConfigurationError, match="a source of images has path=7"):
        named_source("folder:path=7")
