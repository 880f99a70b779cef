"""Pixels of street scenes: their classes, and how far the next border is."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from streamlearn import Engine
from streamlearn.errors import DataError
from streamlearn.models import Heads, Model
from streamlearn.streams import multitask, rebuild
from streamlearn.streams.sources.camvid import CLASSES, PatchSource, border_distance, camvid

real_data = pytest.mark.skipif("STREAMLEARN_DATA" not in os.environ, reason="STREAMLEARN_DATA is not set: it names the folder of real data")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six scenes: bright sky (class 0) over a dark road (3) and a void corner."""
    draw = np.random.default_rng(0)
    for part, images in (("train", 4), ("test", 2)):
        for kind in (part, f"{part}annot"):
            (tmp_path / "scenes" / kind).mkdir(parents=True, exist_ok=True)
        for number in range(images):
            label = np.full((12, 16), 3, dtype=np.uint8)
            label[: 4 + number] = 0
            label[-3:, -4:] = 11
            pixels = np.where(label[..., None] == 0, 200, 40) + draw.integers(0, 40, (12, 16, 3))
            Image.fromarray(label).save(tmp_path / f"scenes/{part}annot/{number}.png")
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"scenes/{part}/{number}.png")
    return tmp_path / "scenes"


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 7), st.floats(0.5, 9))
def test_distances_by_a_loop_over_all_pairs_of_pixels(seed: int, height: int, width: int, reach: float) -> None:
    draw = np.random.default_rng(seed)
    classes = draw.choice([0, 1, 5, 11], size=(height, width), p=[0.5, 0.2, 0.1, 0.2]).astype(np.uint8)
    found = border_distance(classes, reach)
    for i in range(height):
        for j in range(width):
            if classes[i, j] == 11:
                assert math.isnan(found[i, j])
                continue
            others = [(k, m) for k in range(height) for m in range(width) if classes[k, m] not in (classes[i, j], 11)]
            nearest = min((math.hypot(k - i, m - j) for k, m in others), default=math.inf)
            assert found[i, j] == pytest.approx(min(nearest, reach) / reach, rel=1e-5)


def test_every_row_is_cut_out_around_its_pixel(folder: Path) -> None:
    train, test = camvid(size=5, stride=3, reach=4, path=str(folder))
    assert (len(train), len(test), train.input_shape, train.class_names) == (4 * 4 * 5, 2 * 4 * 5, (3, 5, 5), CLASSES)
    x, targets = train.take(torch.arange(len(train)))
    row = 0
    for number in range(4):
        image = np.array(Image.open(folder / f"train/{number}.png")).astype(np.float32) / 255
        label = np.array(Image.open(folder / f"trainannot/{number}.png"))
        far = border_distance(label, 4)
        around = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
        for i in range(1, 12, 3):
            for j in range(1, 16, 3):
                np.testing.assert_allclose(x[row], around[i : i + 5, j : j + 5].transpose(2, 0, 1), rtol=1e-6)
                assert int(targets["class"][row]) == (-1 if label[i, j] == 11 else label[i, j])
                np.testing.assert_equal(float(targets["border"][row]), float(far[i, j]))
                row += 1
    assert row == len(train)
    mixed = torch.tensor([7, 3, 7])
    assert torch.equal(train.take(mixed).x, x[mixed])


def test_void_pixels_have_no_label_of_either_task(folder: Path) -> None:
    stream = multitask(f'camvid:size=3,stride=2,path="{folder}"', 2)
    assert [(task.name, task.kind, task.size) for task in stream.tasks] == [("class", "classification", 4), ("border", "regression", 1)]
    assert rebuild(stream.description).hash == stream.hash
    void = 0
    for experience in stream:
        data = experience.data["train"]
        batch = data.batch(torch.arange(len(data)))
        assert torch.equal(batch.labelled_rows("class"), batch.labelled_rows("border"))
        void += int((~batch.labelled_rows("class")).sum())
        assert not batch.targets["border"][~batch.labelled_rows("border")].any()
    assert void == 4 * 4, "of the 3 by 4 void pixels of each of four images, four are on the grid"


def test_what_cannot_be_is_refused(folder: Path) -> None:
    for options, message in (
        ({"size": 4}, "size of source 'camvid' is 4: give an odd number"),
        ({"stride": 0}, "stride of source 'camvid' is 0"),
        ({"stride": 60}, r"stride is 60, and images of 'camvid' have 12 by 16 pixels: give a smaller one"),
        ({"reach": 0}, "reach of source 'camvid' is 0"),
    ):
        with pytest.raises(DataError, match=message):
            camvid(path=str(folder), **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="source 'camvid' needs the folder"):
        camvid(path=str(folder / "nothing"))
    Image.fromarray(np.full((12, 16), 12, dtype=np.uint8)).save(folder / "trainannot/1.png")
    with pytest.raises(DataError, match="classes up to 12: give images of one size, each with as many class numbers from 0 to 11"):
        camvid(path=str(folder))
    (folder / "trainannot/1.png").unlink()
    with pytest.raises(DataError, match=r"trainannot.1.png cannot be read as an image .* fetch it again"):
        camvid(path=str(folder))
    for file in (folder / "test").glob("*.png"):
        file.unlink()
    Image.fromarray(np.zeros((12, 16), dtype=np.uint8)).save(folder / "trainannot/1.png")
    with pytest.raises(DataError, match="finds no image"):
        camvid(path=str(folder))


def test_two_sources_of_one_content_have_one_fingerprint(folder: Path) -> None:
    first, again, other = (camvid(size=size, stride=3, path=str(folder))[0].fingerprint() for size in (3, 3, 5))
    assert first == again
    assert first != other
    images = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    labels = [torch.zeros(1, 4, 4, dtype=torch.int64), torch.ones(1, 4, 4, dtype=torch.int64)]
    one, two = (PatchSource(images, {"y": label}, "toy", size=1, stride=1).fingerprint() for label in labels)
    assert one != two


@real_data
def test_both_tasks_are_learnt() -> None:
    stream = multitask("camvid:stride=30,size=13")

    def model() -> Model:  # made by the engine, at its own seed
        body = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 32), nn.ReLU())
        return Model(body, Heads(32, stream.tasks))

    engine = Engine(model, lambda p: torch.optim.Adam(p, 5e-3), epochs=3, evaluate="end")
    kinds = {e["task"]: e for e in engine.run(stream).events if e["event"] == "evaluation"}
    assert kinds["class"]["value"] > 0.5, "the most frequent class has 0.33"
    truth = stream.evaluation(0).data.parts()[0]
    batch = truth.batch(torch.arange(len(truth)))
    known = batch.targets["border"][batch.labelled_rows("border")]
    assert kinds["border"]["value"] < float(known.var()), "always predicting the mean"
    assert kinds["class"]["count"] == kinds["border"]["count"] == len(known)
