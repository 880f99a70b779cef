"""Two images laid over one another, and two tasks on every row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamlearn import Engine, models
from streamlearn.errors import DataError
from streamlearn.streams import Batch, Stream, multitask, rebuild
from tests.core.support import Stop, final, probe, same, sgd, stop_at


def pictures(rows: int, seed: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Row i is recognisable: its values lie in (i, i + 1) / rows."""
    draw = torch.Generator().manual_seed(seed)
    x = (torch.arange(rows).view(-1, 1, 1, 1) + torch.rand(rows, 1, 2, 3, generator=draw)) / rows
    return x, torch.arange(rows) % classes


def small(shift: int = 1, **options: Any) -> Stream:
    return multitask(pictures(12, 0), shift=shift, **({"test": pictures(9, 1)} | options))


def everything(data: Any, role: str = "train") -> Batch:
    return data.batch(torch.arange(len(data)), role)


def parents(overlaid: Tensor, x: Tensor) -> tuple[int, int]:
    """Which two rows of ``x`` an overlay without inversion is made of: the corners that the other does not cover tell."""
    height, width = x.shape[-2:]
    left = int((x[:, 0, 0, 0] == overlaid[0, 0, 0]).nonzero().item())
    right = int((x[:, 0, height - 1, width - 1] == overlaid[0, -1, -1]).nonzero().item())
    return left, right


@pytest.mark.parametrize("shift", [1, 2, 3])
@pytest.mark.parametrize("kind", ["train", "test"])
def test_the_pixels_by_hand(shift: int, kind: str) -> None:
    stream = small(shift)
    x, y = pictures(12, 0) if kind == "train" else pictures(9, 1)
    batch = everything(stream[0].data["train"] if kind == "train" else stream.evaluation(0).data)
    assert stream.input_shape == tuple(batch.x.shape[1:]) == (1, 2 + shift, 3 + shift)
    seen = set()
    for image, left_label, right_label in zip(batch.x, batch.targets["left"].tolist(), batch.targets["right"].tolist(), strict=True):
        left, right = parents(image, x)
        by_hand = torch.zeros(1, 2 + shift, 3 + shift)
        by_hand[:, :2, :3] = x[left]
        by_hand[:, shift:, shift:] = torch.maximum(by_hand[:, shift:, shift:], x[right])
        assert torch.equal(image, by_hand)
        assert (left_label, right_label) == (int(y[left]), int(y[right]))
        seen.add((left, right))
    assert {left for left, _ in seen} == {right for _, right in seen} == set(range(len(x))), "each row is once left and once right"
    assert any(left != right for left, right in seen)


def test_without_a_shift_one_covers_the_other() -> None:
    stream = small(shift=0)
    x, _ = pictures(12, 0)
    for image in everything(stream[0].data["train"]).x:
        assert any(torch.equal(image, torch.maximum(a, b)) for a in x for b in x)


def test_training_and_test_images_are_disjoint() -> None:
    """Of one source that is split: no image of the test overlays is in a training overlay."""
    x, y = pictures(40, 3)
    stream = multitask((x, y), shift=1, test_fraction=0.3)
    found = {}
    for kind, batch in (("train", everything(stream[0].data["train"])), ("test", everything(stream.evaluation(0).data))):
        found[kind] = {row for image in batch.x for row in parents(image, x)}
    assert len(found["train"]) + len(found["test"]) == 40
    assert found["train"].isdisjoint(found["test"])


def test_experiences_share_the_rows_and_each_is_tested_on_all() -> None:
    stream = small(experiences=3)
    rows = [set(stream[i].data["train"].indices.tolist()) for i in range(3)]
    assert [len(r) for r in rows] == [4, 4, 4]
    assert set.union(*rows) == set(range(12))
    assert [len(stream.evaluation(i).data) for i in range(3)] == [9, 9, 9]
    assert [task.name for task in stream[2].tasks] == ["left", "right"]
    batch = everything(stream[1].data["train"])
    assert batch.tasks == ("left", "right")
    assert bool(batch.labelled_rows("left").all())
    assert bool(batch.labelled_rows("right").all())


def test_validation_rows_are_kept_from_training() -> None:
    stream = small(experiences=2, validation=0.34)
    for i in range(2):
        data = stream[i].data
        assert (len(data["train"]), len(data["validation"])) == (4, 2)
        assert set(data["train"].indices.tolist()).isdisjoint(data["validation"].indices.tolist())
        assert everything(data["validation"], "validation").count_labelled() == 2
    assert "validation" not in small()[0].data
    assert "validation" not in small(validation=0.01)[0].data
    measured: list[dict[str, float]] = []
    seen: set[str] = set()

    def look(step: Any) -> None:
        seen.update(step.batch.roles)
        measured.append(step.run.measure("validation"))

    Engine(models.mlp(stream, (8,)), sgd(), [probe("look", after_step=look)], batch_size=2).run(stream)
    assert seen == {"train"}
    assert all(m.keys() == {"left", "right"} and all(v in (0.0, 0.5, 1.0) for v in m.values()) for m in measured)


def test_measuring_validation_rows_is_counted_by_hand_and_leaves_no_trace() -> None:
    stream = small(validation=0.34)
    usual, _ = final(Engine(models.mlp(stream, (8,), dropout=0.3), sgd(), batch_size=3), stream)

    def look(step: Any) -> None:
        run = step.run
        found = run.measure("validation")
        batch = everything(run.data("validation"))
        run.model.eval()
        with torch.no_grad():
            for task in ("left", "right"):
                right = int((run.model(batch.x, task).argmax(1) == batch.targets[task]).sum())
                assert found[task] == pytest.approx(right / len(batch))
        run.model.train()

    looked, _ = final(Engine(models.mlp(stream, (8,), dropout=0.3), sgd(), [probe("look", after_step=look)], batch_size=3), stream)
    assert same(usual, looked)


def test_the_target_domain_is_washed_out_unlabelled_in_training_and_labelled_in_evaluation() -> None:
    stream = small(experiences=2, target_domain=True)
    plain = small(experiences=2)
    x, _ = pictures(12, 0)
    brightest = float(x.max())
    others = set()
    for i in range(2):
        assert torch.equal(everything(stream[i].data["train"]).x, everything(plain[i].data["train"]).x), "training rows are the same"
        target = stream[i].data["target"]
        batch = everything(target, "target")
        assert len(target) == 6
        assert not batch.targets
        assert not target.source.targets, "no label is left in reach"
        assert target.domain == "target"
        assert batch.segments[0].tasks == ("left", "right")
        others |= {parents((2 * image - brightest).round(decimals=5), x.round(decimals=5)) for image in batch.x}
    assert len(others) == 12
    assert others != {parents(image, x) for i in range(2) for image in everything(plain[i].data["train"]).x}, "other overlays"
    truth = stream.evaluation(0).data
    known = everything(truth)
    (test_x, test_y) = pictures(9, 1)
    assert truth.domain == "target"
    assert known.count_labelled() == 9
    for image, left, right in zip(known.x, known.targets["left"].tolist(), known.targets["right"].tolist(), strict=True):
        a, b = parents((2 * image - brightest).round(decimals=5), test_x.round(decimals=5))
        assert (left, right) == (int(test_y[a]), int(test_y[b]))


def test_test_rows_are_washed_out_like_training_rows() -> None:
    """Whatever the brightest test pixel is: the two domains must differ in nothing else."""
    dark = pictures(9, 1)
    stream = small(target_domain=True, test=(dark[0] * 0.1, dark[1]))
    lightest = (float(pictures(12, 0)[0].max()) + float(dark[0].max()) * 0.1) / 2
    assert float(everything(stream.evaluation(0).data).x.max()) == pytest.approx(lightest)


def test_target_rows_join_each_batch() -> None:
    stream, seen = small(target_domain=True, validation=0.2), []
    plugin = probe("look", before_step=lambda step: seen.append((step.batch.roles, len(step.batch))))
    state, events = final(Engine(models.mlp(stream, (8,)), sgd(), [plugin], batch_size=5), stream)
    assert seen == [(("train", "target"), 10)] * 2
    assert all(bool(value.isfinite().all()) for value in state.values())
    assert {e["task"] for e in events if e["event"] == "evaluation"} == {"left", "right"}


def test_built_again_and_resumed_without_the_stream(tmp_path: Path) -> None:
    stream = multitask("digits", 2, validation=0.1, target_domain=True, seed=5)[1:]
    again = rebuild(stream.description)
    assert again.hash == stream.hash
    assert torch.equal(everything(again[0].data["target"]).x, everything(stream[0].data["target"]).x)
    whole = multitask("digits", 1)

    def engine(**options: Any) -> Engine:
        return Engine(models.mlp(whole, (8,)), sgd(), batch_size=300, epochs=2, checkpoint_every=1, **options)

    usual, events = final(engine(), whole, output=tmp_path / "straight")
    with pytest.raises(Stop):
        engine(progress=stop_at(7)).run(whole, output=tmp_path / "broken")
    result = engine().resume(tmp_path / "broken")
    assert same(dict(result.model.state_dict()), usual)
    assert same(result.events, events)


def test_the_hash_depends_on_every_argument_and_on_the_content() -> None:
    changes = ({"shift": 2}, {"experiences": 2}, {"validation": 0.2}, {"target_domain": True}, {"seed": 1})
    hashes = {small().hash, *(small(**change).hash for change in changes)}
    assert len(hashes) == 6
    assert small().hash == small().hash
    assert small(test=pictures(9, 2)).hash not in hashes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experiences": 0}, "the number of experiences is 0"),
        ({"shift": -1}, "shift is -1: give a whole number of at least 0"),
        ({"validation": 1.0}, r"validation is 1.0: give a fraction in \[0, 1\)"),
        ({"validation": True}, "validation is True"),
        ({"validation": 0.99}, "validation is 0.99, which leaves experience 0 no row to train on"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _ = small(**options)[0]


@pytest.mark.parametrize("shape", [(4,), (2, 3), (3, 4, 4)])
def test_what_is_no_image_of_one_channel_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="overlays are made of images of one channel"):
        multitask((torch.rand(12, *shape), torch.arange(12) % 3))
