from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from streamlearn import Engine, streams
from streamlearn.errors import ConfigurationError, DataError, UnknownNameError
from streamlearn.plugins import EWC, Replay
from streamlearn.streams import Stream, TensorSource, augmented
from streamlearn.streams.operators.augmenting import CropAndFlip, EachBatch, EachRow
from tests.core.support import Stop, probe, same, sgd, stop_at
from tests.integration.test_resume import everything


def images(rows: int = 48, size: int = 6) -> TensorSource:
    draw = torch.Generator().manual_seed(0)
    return TensorSource(
        torch.randint(1, 256, (rows, 2, size, size), generator=draw).byte(), {"y": torch.arange(rows) % 4}, "bytes", divide_by=255
    )


def noisy(row: Tensor) -> Tensor:
    return row + 0.5 * torch.randn(row.shape)


# ---------------------------------------------------------------------- crops and flips


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 3), st.booleans(), st.integers(1, 4), st.integers(4, 7), st.integers(4, 7), st.integers(0, 99))
def test_every_row_is_a_crop_of_its_padded_image_or_of_its_mirror_image(
    crop: int, flip: bool, channels: int, height: int, width: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(6, channels, height, width, generator=draw) + 1
    torch.manual_seed(seed)
    found = CropAndFlip(crop, flip)(x)
    assert found.shape == x.shape
    for before, after in zip(x, found, strict=True):
        padded = nn.functional.pad(before, (crop,) * 4)
        crops = [
            padded[:, top : top + height, left : left + width] for top in range(2 * crop + 1) for left in range(2 * crop + 1)
        ]  # fmt: skip
        assert any(torch.equal(after, c) or (flip and torch.equal(after, c.flip(2))) for c in crops)


def test_each_place_and_each_side_come_up_equally_often() -> None:
    marked = torch.zeros(20_000, 1, 5, 5)
    marked[:, 0, 2, 1] = 1
    torch.manual_seed(1)
    places = CropAndFlip(1, True)(marked).flatten(1).argmax(1)
    found = {(int(place) // 5, int(place) % 5): int((places == place).sum()) for place in places.unique()}
    assert found.keys() == {(row, column) for row in (1, 2, 3) for column in range(5)}
    for (_, column), count in found.items():
        chance = {0: 1, 1: 1, 2: 2, 3: 1, 4: 1}[column] / 18
        assert abs(count / 20_000 - chance) < 0.01


def test_rows_have_draws_of_their_own_and_the_global_generator_decides() -> None:
    x = torch.rand(1, 1, 8, 8).expand(64, -1, -1, -1)
    torch.manual_seed(3)
    first = CropAndFlip(4, True)(x)
    assert len(first.flatten(1).unique(dim=0)) > 30
    torch.manual_seed(3)
    assert torch.equal(CropAndFlip(4, True)(x), first)
    assert not torch.equal(CropAndFlip(4, True)(x), first)


def test_the_input_is_left_as_it_was() -> None:
    x = torch.rand(8, 1, 4, 4)
    kept = x.clone()
    CropAndFlip(2, True)(x)
    assert torch.equal(x, kept)
    assert CropAndFlip(1, True)(x[:0]).shape == (0, 1, 4, 4)


# ---------------------------------------------------------------------- streams


def test_rows_of_role_train_alone_are_augmented() -> None:
    base = streams.validation(streams.class_incremental(images(), 2, test=(torch.rand(8, 2, 6, 6), torch.arange(8) % 4)), 0.25)
    stream = augmented(base, crop=2, flip=True)
    for i, experience in enumerate(stream):
        assert {role: data.parts()[0].augment for role, data in experience.data.items()} == {
            "train": CropAndFlip(2, True), "validation": None,
        }  # fmt: skip
        assert stream.evaluation(i).data.parts()[0].augment is None
        data, plain = experience.data["train"], base[i].data["train"]
        batch, clean = data.batch(torch.arange(len(data))), plain.batch(torch.arange(len(data)))
        assert torch.equal(batch.targets["bytes"], clean.targets["bytes"])
        assert torch.equal(batch.index, clean.index)
        assert batch.x.dtype == torch.float32
        assert not torch.equal(batch.x, clean.x)
        assert set(batch.x.flatten().tolist()) <= {0.0, *clean.x.flatten().tolist()}, "no pixel is made up"
        assert data.parts()[0].source is plain.parts()[0].source


def test_augmentation_comes_before_the_transform_of_a_domain() -> None:
    base = streams.domain_incremental(images(), transform=[lambda x: x.flatten(1), lambda x: 1 - x.flatten(1)])
    stream = augmented(base, crop=1)
    assert stream.input_shape == (72,)
    torch.manual_seed(1)
    found = stream[1].data["train"].batch(torch.arange(5)).x
    torch.manual_seed(1)
    clean = base[1].data["train"]
    x = clean.parts()[0].source.take(clean.parts()[0].indices[:5]).x
    assert torch.equal(found, 1 - CropAndFlip(1)(x).flatten(1))


def test_augmenting_twice_is_one_after_the_other() -> None:
    stream = augmented(augmented(streams.class_incremental(images(), 2), lambda row: row + 1), crop=2)
    x = stream[0].data["train"].batch(torch.arange(8)).x
    assert bool((x == 0).any()), "zeros of the crop come after the addition"
    assert float(x[x != 0].min()) > 1


def test_per_row_and_per_batch() -> None:
    calls: list[tuple[int, ...]] = []

    def shift(x: Tensor) -> Tensor:
        calls.append(tuple(x.shape))
        return x.roll(int(torch.randint(0, 6, ())), -1)

    base = streams.class_incremental((torch.rand(1, 1, 6, 6).expand(48, -1, -1, -1).clone(), torch.arange(48) % 4), 2)
    by_row = augmented(base, shift)[0].data["train"].batch(torch.arange(12)).x
    assert calls == [(1, 6, 6)] * 12
    calls.clear()
    by_batch = augmented(base, shift, per="batch")[0].data["train"].batch(torch.arange(12)).x
    assert calls == [(12, 1, 6, 6)]
    assert len(by_row.flatten(1).unique(dim=0)) > 1
    assert len(by_batch.flatten(1).unique(dim=0)) == 1


def test_transforms_of_torchvision() -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    stream = augmented(streams.class_incremental("digits", 5), v2.RandomCrop(8, padding=2))
    torch.manual_seed(1)
    x = stream[0].data["train"].batch(torch.arange(16)).x
    torch.manual_seed(1)
    assert torch.equal(stream[0].data["train"].batch(torch.arange(16)).x, x)
    assert x.shape == (16, 1, 8, 8)


@pytest.mark.parametrize("options", [{"crop": 2}, {"flip": True}, {"crop": 1, "flip": True}])
def test_a_stream_comes_back_from_its_description(options: dict[str, Any]) -> None:
    stream = augmented(streams.class_incremental("digits", 5), **options)
    again = streams.rebuild(json.loads(json.dumps(stream.description)))
    assert again.hash == stream.hash
    assert again[2].data["train"].parts()[0].augment == stream[2].data["train"].parts()[0].augment
    assert streams.build_chain("class_incremental:source=digits | augmented:crop=2,flip=true").description["flip"] is True


def test_a_transform_of_the_users_is_told_but_not_rebuilt() -> None:
    stream = augmented(streams.class_incremental("digits", 5), noisy)
    assert stream.description["transform"] == {"given by the user": True, "name": "noisy"}
    with pytest.raises(ConfigurationError, match=r"objects given by the user \('transform'\)"):
        streams.rebuild(json.loads(json.dumps(stream.description)))


def test_equal_augmentations_are_equal() -> None:
    assert CropAndFlip(1, True) == CropAndFlip(1, True) != CropAndFlip(2, True)
    assert EachRow(noisy) == EachRow(noisy) != EachRow(abs)
    assert EachRow(noisy) != EachBatch(noisy)
    joined = streams.joint(augmented(streams.class_incremental(images(), 2), crop=1))
    assert len(joined[0].data["train"].parts()) == 1, "experiences that differ in their rows alone melt into one"


# ---------------------------------------------------------------------- runs


def stream(**options: Any) -> Stream:
    test = (torch.rand(8, 2, 6, 6, generator=torch.Generator().manual_seed(5)), torch.arange(8) % 4)
    return augmented(streams.class_incremental(images(), 2, test=test), **(options or {"crop": 2, "flip": True}))


def engine(**options: Any) -> Engine:
    def model() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 4))

    plugins = options.pop("plugins", None) or [Replay(capacity=10), EWC(strength=2.0)]
    return Engine(model, sgd(), plugins, batch_size=8, epochs=2, checkpoint_every=1, **options)


@pytest.mark.parametrize("options", [{"crop": 2, "flip": True}, {"transform": noisy}, {"transform": noisy, "per": "batch"}])
def test_the_same_seed_gives_the_same_run(options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    first = dict(engine().run(stream(**options)).model.state_dict())  # type: ignore[attr-defined]
    torch.manual_seed(4)
    assert same(first, dict(engine().run(stream(**options)).model.state_dict()))  # type: ignore[attr-defined]
    assert not same(first, dict(engine(seed=1).run(stream(**options)).model.state_dict()))  # type: ignore[attr-defined]


@pytest.mark.parametrize("place", [1, 4, 8])
@pytest.mark.parametrize("options", [{"crop": 2, "flip": True}, {"transform": noisy}])
def test_a_resumed_run_equals_the_straight_one(
    tmp_path: Path, place: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamlearn.results.Result.figure", lambda self: None)
    monkeypatch.setattr("streamlearn.results.result.to_svg", lambda figure: b"<svg/>")
    engine().run(stream(**options), output=tmp_path / "straight")
    with pytest.raises(Stop):
        engine(progress=stop_at(place)).run(stream(**options), output=tmp_path / "broken")
    torch.manual_seed(5)
    engine().resume(tmp_path / "broken", stream(**options))
    assert same(everything(tmp_path / "straight"), everything(tmp_path / "broken"))


def test_replayed_rows_are_augmented_too() -> None:
    seen: dict[int, list[Tensor]] = {}

    def look(step: Any) -> None:
        rows = step.batch.rows("memory")
        for row, x in zip(step.batch.index[rows].tolist(), step.batch.x[rows], strict=True):
            seen.setdefault(row, []).append(x.clone())

    engine(plugins=[Replay(capacity=4), probe("look", before_step=look)]).run(stream())
    clean = images()
    assert seen
    assert all(len(found) > 2 for found in seen.values())
    assert all(not all(torch.equal(x, found[0]) for x in found) for found in seen.values()), "each time anew"
    assert all(set(x.flatten().tolist()) <= {0.0, *clean.take(torch.tensor([row])).x.flatten().tolist()} for row in seen for x in seen[row])


def test_evaluation_is_clean() -> None:
    result = engine().run(stream())
    model = result.model.eval()  # type: ignore[attr-defined]
    data = stream().evaluation(0).data
    batch = data.batch(torch.arange(len(data)))
    right = (model(batch.x, "bytes").argmax(1) == batch.targets["bytes"]).float().mean()
    assert result.accuracy_matrix[-1, 0] == pytest.approx(float(right))


# ---------------------------------------------------------------------- what is refused

FLAT = (torch.rand(8, 3), torch.arange(8) % 4)
REFUSED: list[tuple[Callable[[], Stream], str]] = [
    (lambda: augmented(streams.class_incremental("digits")), "augmented is asked for nothing: give crop (such as 4), flip=true"),
    (lambda: stream(crop=-1), "crop is -1: give a whole number of at least 0"),
    (lambda: stream(crop=1.5), "crop is 1.5: give a whole number of at least 0"),
    (lambda: stream(crop=6), "crop is 6, but images of source 'bytes' are 6 by 6: give less than 6"),
    (lambda: stream(flip="yes"), "flip is 'yes': give true or false"),
    (lambda: stream(crop=1, per="batch"), "per is 'batch', but crop and flip are drawn for each row: leave it out, or give a transform"),
    (lambda: stream(transform=noisy, flip=True), "a transform is given beside crop or flip: give one or the other, or augment twice"),
    (lambda: stream(transform="crop"), "transform is 'crop': give a callable, such as one of torchvision.transforms.v2, or crop and flip"),
    (
        lambda: augmented(streams.class_incremental(FLAT, 2), flip=True),
        "inputs of source 'data' have shape (3,), and crop and flip need images (channels, height, width): reshape them, or give a",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_what_cannot_be_is_refused_with_a_reason(build: Callable[[], Stream], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        build()


def test_transforms_that_fail_are_named() -> None:
    def failing(x: Tensor) -> Tensor:
        raise ValueError("no")

    cases = [
        (failing, "the augmentation failing fails on inputs of shape (2, 6, 6): ValueError: no"),
        (torch.sum, "the augmentation sum makes shape () of inputs of shape (2, 6, 6): let it keep the shape"),
        (len, "the augmentation len makes a int of inputs of shape (2, 6, 6): let it keep the shape"),
    ]
    for transform, message in cases:
        with pytest.raises(DataError, match=re.escape(message)):
            stream(transform=transform)[0].data["train"].batch(torch.arange(3))
    with pytest.raises(UnknownNameError, match="unknown unit of augmentation 'rows': did you mean 'row'"):
        stream(transform=noisy, per="rows")
    with pytest.raises(DataError, match="augmented changes a stream, and a str is none"):
        augmented("digits", crop=1)  # type: ignore[arg-type]


def test_vectors_may_have_a_transform() -> None:
    found = augmented(streams.class_incremental(FLAT, 2, test=(torch.rand(4, 3), [0, 1, 2, 3])), noisy)
    assert found[0].data["train"].batch(torch.arange(2)).x.shape == (2, 3)
