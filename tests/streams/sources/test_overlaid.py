"""Two images laid over one another: exact pixels of every construction."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from streamlearn import Engine, models
from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams import build, multitask, rebuild
from streamlearn.streams.sources import TensorSource, named_source
from streamlearn.streams.sources.bundled import digits
from streamlearn.streams.sources.overlaid import fashion_and_mnist, multi_digits, multi_fashion, multi_mnist

real_data = pytest.mark.skipif("STREAMLEARN_DATA" not in os.environ, reason="STREAMLEARN_DATA is not set: it names the folder of real data")
Levels = NDArray[np.uint8]


@pytest.fixture
def root(tmp_path: Path) -> str:
    """Small files in the layout of MNIST and FashionMNIST; no two images are alike."""
    draw = np.random.default_rng(0)
    for folder in ("MNIST", "FashionMNIST"):
        place = tmp_path / folder / "raw"
        place.mkdir(parents=True)
        for part, rows in (("train", 30), ("t10k", 12)):
            images = (draw.integers(0, 251, (rows, 28, 28)) * (draw.random((rows, 28, 28)) < 0.4)).astype(np.uint8)
            labels = (np.arange(rows) % 10).astype(np.uint8)
            (place / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(struct.pack(">4i", 2051, rows, 28, 28) + images.tobytes()))
            (place / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">2i", 2049, rows) + labels.tobytes()))
    return str(tmp_path)


def levels(source: TensorSource, scale: int = 255) -> Levels:
    x = source.take(torch.arange(len(source))).x[:, 0]
    return np.asarray(x.mul(scale).round().to(torch.uint8))


def y(source: TensorSource, key: str) -> list[int]:
    found: list[int] = source.targets[key].tolist()
    return found


def as_scipy_did(canvas: Levels) -> Levels:
    """scipy.misc.imresize(float image, (28, 28), interp="nearest"): stretched to 0..255, then Pillow's nearest pixel."""
    values = canvas.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    stretched = ((values - low) * (255.0 / ((high - low) or 1)) + 0.5).astype(np.uint8)
    return np.array(Image.fromarray(stretched).resize((28, 28), Image.Resampling.NEAREST))


def overlay(left: Levels, right: Levels, canvas: int, corner: tuple[int, int], start: tuple[int, int] = (0, 0)) -> Levels:
    side = len(left)
    made = np.zeros((canvas, canvas), dtype=np.uint8)
    for i in range(side):
        for j in range(side):
            made[start[0] + i, start[1] + j] = left[i, j]
    for i in range(side):
        for j in range(side):
            place = corner[0] + i, corner[1] + j
            made[place] = max(made[place], right[i, j])
    return made


@pytest.mark.parametrize("part", [0, 1])
def test_sener_by_hand(root: str, part: int) -> None:
    made, images = multi_mnist(root=root)[part], named_source(f'mnist:root="{root}"')[part]
    pixels, found = levels(images), levels(made)
    assert found.shape == (len(images), 28, 28)
    assert y(made, "left") == y(images, "y"), "row i has image i at the left"
    partners = []
    for row, image in enumerate(found):
        fits = [k for k in range(len(pixels)) if np.array_equal(as_scipy_did(overlay(pixels[row], pixels[k], 36, (6, 6))), image)]
        assert len(fits) == 1
        assert y(made, "right")[row] == y(images, "y")[fits[0]]
        partners += fits
    assert 1 < len(set(partners)) < len(pixels), "partners are drawn with replacement"


@pytest.mark.parametrize("part", [0, 1])
def test_lin_by_hand(root: str, part: int) -> None:
    made, images = multi_fashion("lin", root=root)[part], named_source(f'fashion-mnist:root="{root}"')[part]
    pixels, found = levels(images), levels(made)
    assert found.shape == (2 * len(images), 36, 36)
    assert y(made, "left") == 2 * y(images, "y")
    assert all(a != b for a, b in zip(y(made, "left"), y(made, "right"), strict=True)), "of different classes"
    moves = set()
    for row in range(0, len(found), 3):
        left, right_label = pixels[row % len(pixels)], y(made, "right")[row]
        moves.add(_placed(found[row], left, [p for p, label in zip(pixels, y(images, "y"), strict=True) if label == right_label]))
    assert len(moves) > 5, "moves are drawn"


def _placed(image: Levels, left: Levels, rights: list[Levels]) -> tuple[int, int, int, int]:
    """Where both lie, each 0 to 4 pixels inwards of its corner."""
    steps = [(i, j) for i in range(5) for j in range(5)]
    starts = [s for s in steps if bool((image[s[0] : s[0] + 28, s[1] : s[1] + 28] >= left).all())]
    fits = [
        (*s, *m)
        for right in rights
        for s in starts
        for m in steps
        if np.array_equal(overlay(left, right, 36, (8 - m[0], 8 - m[1]), s), image)
    ]
    assert len(fits) == 1
    return fits[0]


def test_garments_at_the_left_and_digits_at_the_right(root: str) -> None:
    train, test = fashion_and_mnist(root=root)
    assert (train.name, test.name) == ("fashion-and-mnist/lin", "fashion-and-mnist/lin/test")
    garments, numbers = (levels(named_source(f'{name}:root="{root}"')[0]) for name in ("fashion-mnist", "mnist"))
    labels = np.arange(30) % 10
    for row in (0, 31, 59):
        right = [numbers[k] for k in range(30) if labels[k] == y(train, "right")[row]]
        assert _placed(levels(train)[row], garments[row % 30], right)
    assert any(a == b for a, b in zip(y(train, "left"), y(train, "right"), strict=True)), "a garment 3 and a digit 3 are different classes"
    other = fashion_and_mnist("sener", root=root)[1]
    assert other.input_shape == (1, 28, 28)


def test_multi_digits_by_hand() -> None:
    """Training overlays are of training images, test overlays of test images, which are disjoint rows of scikit-learn's."""
    for made, source in zip(multi_digits(), digits(), strict=True):
        pixels, found = levels(source, 16), levels(made, 16)
        assert found.shape == (len(source), 12, 12)
        assert y(made, "left") == y(source, "y")
        for row in range(0, len(found), 61):
            rights = [pixels[k] for k in range(len(pixels)) if int(source.targets["y"][k]) == y(made, "right")[row]]
            starts = [(a, b, c, d) for a in (0, 1) for b in (0, 1) for c in (3, 4) for d in (3, 4)]
            assert any(np.array_equal(_max(pixels[row], right, *start), found[row]) for right in rights for start in starts)


def _max(left: Levels, right: Levels, a: int, b: int, c: int, d: int) -> Levels:
    one, two = np.zeros((12, 12), np.uint8), np.zeros((12, 12), np.uint8)
    one[a : a + 8, b : b + 8] = left
    two[c : c + 8, d : d + 8] = right
    return np.maximum(one, two)


def test_without_jitter_both_lie_in_their_corners() -> None:
    made, pixels = multi_digits(jitter=0)[1], levels(digits()[1], 16)
    found = levels(made, 16)
    assert np.array_equal(found[:, :4, :4], pixels[:, :4, :4])
    assert not found[:, :4, 8:].any()


def test_a_seed_gives_the_same_overlays_and_another_gives_others(root: str) -> None:
    assert multi_digits()[0].fingerprint() == multi_digits()[0].fingerprint()
    assert multi_digits()[0].fingerprint() != multi_digits(seed=1)[0].fingerprint()
    assert multi_mnist("lin", root=root)[0].fingerprint() != multi_mnist("lin", seed=1, root=root)[0].fingerprint()
    moved, still = (levels(multi_digits(jitter=jitter)[1], 16) for jitter in (1, 0))
    assert not np.array_equal(moved, still)


def test_by_name_as_a_stream_that_is_learnt() -> None:
    stream = build("multitask", source="multi-digits", experiences=2, validation=0.1)
    assert [(task.name, task.size) for task in stream.tasks] == [("left", 10), ("right", 10)]
    assert (stream.input_shape, len(stream[0].data["train"]), len(stream.evaluation(0).data)) == ((1, 12, 12), 647, 359)
    assert rebuild(stream.description).hash == stream.hash
    engine = Engine(models.mlp(stream, (64,)), lambda p: torch.optim.Adam(p, lr=0.005), epochs=4, evaluate="end")
    last: list[dict[str, Any]] = [e for e in engine.run(stream).events if e["event"] == "evaluation" and e["trained"] == 2]
    assert [e["task"] for e in last] == ["left", "right"]
    assert all(e["value"] > 0.4 for e in last), "chance is 0.1"


def test_what_cannot_be_is_refused(root: str) -> None:
    with pytest.raises(UnknownNameError, match=r"'sneer'.*did you mean 'sener'"):
        multi_mnist("sneer", root=root)
    with pytest.raises(UnknownNameError, match="construction"):
        multi_mnist(3, root=root)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="jitter is 3: give 0, 1 or 2"):
        multi_digits(jitter=3)
    labels = Path(root, "MNIST/raw/train-labels-idx1-ubyte.gz")
    labels.write_bytes(gzip.compress(struct.pack(">2i", 2049, 30) + bytes(30)))
    with pytest.raises(DataError, match="all 30 images of multi-mnist train are of one class, and pairs must be of two"):
        multi_mnist("lin", root=root)


@real_data
def test_the_real_sets_have_the_published_sizes() -> None:
    train, test = named_source("multi-mnist")
    assert test is not None
    assert (len(train), len(test), train.input_shape) == (60_000, 10_000, (1, 28, 28))
    assert multitask("multi-mnist").name == "multi-mnist/sener/multitask"
