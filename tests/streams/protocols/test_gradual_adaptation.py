"""A labelled source domain, then unlabelled rows that move away from it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn import Engine, models
from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams import TensorSource, build_chain, gradual_adaptation, rebuild
from streamlearn.streams.corruptions import Corruption
from streamlearn.streams.transforms import Rotation
from tests.core.support import sgd

IMAGES = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 3


def images() -> TensorSource:
    return TensorSource(IMAGES, {"y": LABELS}, "images")


def rows(stream: Any) -> list[list[int]]:
    return [e.data[e.main_role].indices.tolist() for e in stream]


def test_angles_and_severities_rise_evenly() -> None:
    turned = gradual_adaptation("digits", amount=-90, experiences=4)
    assert [e.data[e.main_role].transform for e in turned] == [None, Rotation(-30.0), Rotation(-60.0), Rotation(-90.0)]
    assert [turned.evaluation(i).data.domain for i in range(4)] == [e.data[e.main_role].domain for e in turned]
    noisy = gradual_adaptation("digits", "shot_noise", amount=4, experiences=4, seed=2)
    assert [e.data[e.main_role].transform for e in noisy] == [None, *(Corruption("shot_noise", s, 2) for s in (1, 2.5, 4))]
    assert [e.name for e in noisy] == ["clean", "shot_noise/1", "shot_noise/2.5", "shot_noise/4"]
    assert gradual_adaptation("digits", "contrast", experiences=2)[1].name == "contrast/5"
    assert len(gradual_adaptation("digits")) == 6


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), count=st.integers(2, 48), part=st.slices(10))
def test_training_rows_are_spread_each_once(seed: int, count: int, part: slice) -> None:
    stream = gradual_adaptation(images(), experiences=count, seed=seed)
    found, test = rows(stream), set(stream.evaluation(0).data.indices.tolist())
    sizes = [len(group) for group in found]
    assert max(sizes) - min(sizes) <= 1
    assert sorted(row for group in found for row in group) == sorted(set(range(60)) - test)
    assert len(test) == 12
    if list(range(count))[part]:
        assert rows(stream[part]) == found[part]


def test_labels_are_those_of_the_first_experience_alone() -> None:
    stream = gradual_adaptation(images(), experiences=3)
    first, second, _ = stream
    train, target = first.data["train"], second.data["target"]
    (task,) = stream.tasks
    assert torch.equal(train.batch(torch.arange(len(train))).targets[task.name], LABELS[train.indices])
    others = torch.ones(60, dtype=torch.bool)
    others[train.indices] = False
    assert not train.source.targets["y"][others].any(), "what is not shown is out of reach"
    assert train.source.targets["y"][~others].any()
    assert not target.source.take(torch.arange(3)).targets
    assert (first.classes, second.classes) == ({"images": (0, 1, 2)}, {})
    assert (set(first.data), set(second.data)) == ({"train"}, {"target"})


def test_truth_is_of_the_target_rows_as_they_come() -> None:
    stream = gradual_adaptation(images(), experiences=3, amount=90)
    assert stream.truth(0) is None
    for i in (1, 2):
        truth, target = stream.truth(i), stream[i].data["target"]
        assert torch.equal(truth.indices, target.indices)
        assert (truth.domain, truth.source.name) == (target.domain, target.source.name)
        batch = truth.batch(torch.arange(4))
        assert torch.equal(batch.targets["images"], LABELS[target.indices[:4]])
        torch.testing.assert_close(batch.x, target.batch(torch.arange(4)).x)
    events = Engine(models.mlp(stream, (8,)), sgd(), batch_size=8).run(stream).events
    assert [(e["experience"], e["count"]) for e in events if e["event"] == "prequential"] == [(1, 16), (2, 16)]


def test_all_rows_come_each_time_without_a_split() -> None:
    stream = gradual_adaptation(images(), experiences=4, split=False)
    assert {tuple(group) for group in rows(stream)} == {tuple(rows(stream)[0])}
    assert [len(group) for group in rows(stream)] == [48] * 4


@pytest.mark.parametrize("shift", ["rotation", "gaussian_noise"])
def test_built_again_and_from_text(shift: str) -> None:
    stream = gradual_adaptation("digits", shift, experiences=4, seed=3)
    again = rebuild(json.loads(json.dumps(stream.description)))
    assert (again.hash, again.description) == (stream.hash, stream.description)
    assert rows(again) == rows(stream)
    assert build_chain(f"gradual_adaptation:shift={shift},experiences=4,seed=3").hash == stream.hash
    assert rows(gradual_adaptation("digits", shift, experiences=4, seed=4)) != rows(stream)


def test_regression_has_no_classes() -> None:
    stream = gradual_adaptation((IMAGES, IMAGES.mean((1, 2, 3))), experiences=3)
    assert [e.classes for e in stream] == [{}, {}, {}]
    assert stream.tasks[0].kind == "regression"
    Engine(models.mlp(stream, (8,)), sgd(), batch_size=16).run(stream)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shift": "permutation"}, UnknownNameError, "unknown shift 'permutation'"),
        ({"shift": "contrast", "amount": 6}, DataError, "severity is 6: give a number from 1 to 5"),
        ({"shift": 3}, DataError, "shift is 3: give 'rotation' or a kind .*; for the number of experiences write experiences=3"),
        ({"shift": None}, DataError, "shift is None: give 'rotation' or a kind of corruption, such as 'gaussian_noise'$"),
        ({"amount": 0}, DataError, "amount is 0: give the degrees of the last domain, from -360 to 360 but not 0"),
        ({"amount": 361}, DataError, "amount is 361"),
        ({"amount": "much"}, DataError, "amount is 'much'"),
        ({"experiences": 1}, DataError, "the number of experiences is 1: give at least 2, a source domain and one that is shifted"),
        ({"experiences": "endless"}, DataError, "the number of experiences is 'endless'"),
        ({"experiences": 49}, DataError, "source 'images' has 48 training rows, fewer than 49 experiences: ask for at most 48"),
        ({"source": (torch.rand(9, 4), LABELS[:9])}, DataError, "rotation needs floating images"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gradual_adaptation(**({"source": images()} | options))
