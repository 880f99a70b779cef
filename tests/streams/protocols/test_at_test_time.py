"""Test rows under shifts, in every order: counts, labels, scores."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from streamlearn import Engine, models, streams
from streamlearn.errors import ConfigurationError, DataError, UnknownNameError
from streamlearn.plugins import Tent
from streamlearn.streams import Stream, TensorSource, rebuild
from streamlearn.streams.corruptions import KINDS
from streamlearn.streams.protocols.at_test_time import ORDERS, _dirichlet
from tests.core.support import sgd

SHIFTS = ["contrast", "gaussian_noise/1", "rotation/90"]
IMAGES = torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(50) % 5


def build(shifts: Any = SHIFTS, **options: Any) -> Stream:
    """30 training rows and 20 test rows."""
    source, test = TensorSource(IMAGES[:30], {"y": LABELS[:30]}, "images"), TensorSource(IMAGES[30:], {"y": LABELS[30:]}, "images/test")
    return streams.test_time(source, shifts, test=test, **options)


def met(stream: Stream) -> list[list[tuple[str, int]]]:
    """Domain and row of everything that comes, experience by experience."""
    return [[(part.domain, row) for part in e.data[e.main_role].parts() for row in part.indices.tolist()] for e in stream]


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, [30, 20, 20, 20]),
        ({"rows": 8}, [30, *[8, 8, 4] * 3]),
        ({"train": False}, [20] * 3),
        ({"passes": 2}, [30, *[20] * 6]),
        ({"order": "gradual", "shifts": ["contrast", "pixelate"]}, [30, *[20] * 18]),
        ({"order": "mixed"}, [30, 60]),
        ({"order": "mixed", "rows": 25, "passes": 2}, [30, 25, 25, 10, 25, 25, 10]),
        ({"order": "correlated"}, [30, 20, 20, 20]),
        ({"order": "correlated", "rows": 6}, [30, *[6, 6, 6, 2] * 3]),
        ({"order": "mixed_correlated"}, [30, 60]),
        ({"order": "mixed_correlated", "rows": 50}, [30, 50, 10]),
    ],
)
def test_sizes_of_experiences(options: dict[str, Any], sizes: list[int]) -> None:
    assert [len(group) for group in met(build(**options))] == sizes


@settings(max_examples=40, deadline=None)
@given(
    order=st.sampled_from(ORDERS), rows=st.none() | st.integers(1, 70), passes=st.integers(1, 3), seed=st.integers(0, 999),
    train=st.booleans(), part=st.slices(12), concentration=st.sampled_from([1e-3, 0.1, 5.0]),
)  # fmt: skip
def test_every_pass_brings_every_test_row_once_in_every_domain(
    order: str, rows: int | None, passes: int, seed: int, train: bool, part: slice, concentration: float
) -> None:
    shifts = ["contrast"] if order == "gradual" else SHIFTS
    options = {"order": order, "rows": rows, "passes": passes, "seed": seed, "train": train, "concentration": concentration}
    stream = build(shifts, **options)
    found = met(stream)
    if train:
        assert found[0] == [("clean", row) for row in range(30)]
    counts = Counter(row for group in found[train:] for row in group)
    domains = ["contrast/1", "contrast/2", "contrast/3", "contrast/4", "contrast/5"] if order == "gradual" else ["contrast/3", *SHIFTS[1:]]
    times = {domain: passes * (2 if order == "gradual" and domain != "contrast/5" else 1) for domain in domains}
    assert counts == {(domain, row): times[domain] for domain in domains for row in range(20)}
    assert [e.data[e.main_role].tasks for e in stream] == [stream.tasks] * len(stream)
    if list(range(len(stream)))[part]:
        assert met(stream[part]) == found[part]


def test_orders_of_shifts() -> None:
    assert [e.name for e in build(passes=2)] == ["clean", *["contrast/3", "gaussian_noise/1", "rotation/90"] * 2]
    gradual = build(["contrast", "pixelate"], order="gradual")
    assert [e.name for e in gradual[1:]] == [f"{kind}/{s}" for kind in ("contrast", "pixelate") for s in (1, 2, 3, 4, 5, 4, 3, 2, 1)]
    assert [e.name for e in streams.test_time("digits")] == ["clean", *(f"{kind}/3" for kind in KINDS)]
    (name,) = {e.name for e in build(order="mixed", rows=7)[1:]}
    assert name == "contrast/3, gaussian_noise/1, rotation/90"
    mixed = met(build(order="mixed", rows=30))[1]
    assert len({domain for domain, _ in mixed}) == 3, "shifts come together"


def test_passes_differ_in_order_and_not_in_the_images() -> None:
    stream = build(["gaussian_noise"], rows=5, passes=2)
    found = met(stream)
    assert found[1:5] != found[5:]
    row = found[1][0][1]
    images = [
        data.batch(torch.tensor([place])).x
        for experience, group in zip(stream[1:], found[1:], strict=True)
        for data in [experience.data["target"]]
        for place, (_, number) in enumerate(group)
        if number == row
    ]
    assert len(images) == 2
    assert torch.equal(*images)


def test_labels_of_test_rows_are_never_in_training() -> None:
    for order in ("continual", "mixed"):
        for source in ((IMAGES, LABELS), "digits"):
            stream = streams.test_time(source, SHIFTS, order=order)
            for experience in stream[1:]:
                assert experience.classes == {}
                for part in experience.data["target"].parts():
                    assert not part.targets
                    assert not part.source.take(part.indices[:3]).targets
                    assert not part.batch(torch.arange(3)).targets
    train, target = (
        streams.test_time((IMAGES, LABELS), SHIFTS)[0].data["train"],
        streams.test_time((IMAGES, LABELS), SHIFTS)[1].data["target"],
    )
    assert not set(train.indices.tolist()) & set(target.indices.tolist())
    assert not train.source.targets["y"][target.indices].any()


def test_evaluation_sets_are_clean_and_one_for_each_domain() -> None:
    stream = build()
    assert [stream.evaluation_set(k).name for k in range(4)] == ["clean", "contrast/3", "gaussian_noise/1", "rotation/90"]
    assert [stream.evaluation(i).index for i in range(4)] == [0, 1, 2, 3]
    assert [len(stream.evaluation_set(k).data) for k in range(4)] == [20] * 4
    assert stream.evaluation_set(2).data.transform == stream[2].data["target"].transform
    mixed = build(order="mixed", rows=10)
    assert [mixed.sets_of(i) for i in (0, 1, 6)] == [(0,), (1, 2, 3), (1, 2, 3)]
    gradual = build(["contrast"], order="gradual")
    assert [gradual.sets_of(i) for i in range(10)] == [(k,) for k in (0, 1, 2, 3, 4, 5, 4, 3, 2, 1)]
    assert build(train=False).sets_of(2) == (2,)
    assert build(train=False).evaluation_set(0).name == "contrast/3"


@pytest.mark.parametrize("order", ["correlated", "mixed_correlated"])
def test_correlated_orders_bring_fewer_classes_at_once(order: str) -> None:
    def classes(**options: Any) -> float:
        stream = streams.test_time("digits", ["contrast", "pixelate"], rows=16, **options)
        found = [torch.cat([p.column("digits") for p in stream.truth(i).parts()]) for i in range(1, len(stream))]
        return sum(len(set(labels.tolist())) for labels in found) / len(found)

    usual = classes(order="mixed")
    assert classes(order=order, concentration=0.01) < classes(order=order, concentration=0.3) < usual - 0.3
    assert classes(order=order, concentration=100.0) > classes(order=order, concentration=0.3)


@pytest.mark.parametrize("concentration", [0.05, 0.5, 3.0])
def test_shares_are_dirichlets(concentration: float) -> None:
    shares = _dirichlet(4000, 5, concentration, "key")
    assert shares.sum(1) == pytest.approx(1)
    assert shares.mean(0) == pytest.approx(0.2, abs=0.02)
    assert shares.var(0) == pytest.approx(0.2 * 0.8 / (5 * concentration + 1), rel=0.1)


@pytest.mark.parametrize("options", [{}, {"order": "mixed", "rows": 20}, {"order": "correlated", "rows": 7}, {"passes": "endless"}])
def test_built_again(options: dict[str, Any]) -> None:
    stream = streams.test_time("digits", SHIFTS, seed=3, **options)
    part = stream[:6]
    again = rebuild(json.loads(json.dumps(part.description)))
    assert again.hash == part.hash
    assert met(again) == met(part)
    other = streams.test_time("digits", SHIFTS, seed=4, **options)
    assert other.hash != stream.hash
    assert met(other[:6]) != met(part)


def test_built_from_text_and_by_default() -> None:
    told = streams.build_chain('test_time:shifts=["contrast","rotation/90"],order=mixed,rows=64')
    assert told.hash == streams.test_time("digits", ["contrast/3", "rotation/90.0"], order="mixed", rows=64).hash
    assert (
        streams.build_chain("test_time:shifts=contrast,order=gradual").hash
        == streams.test_time("digits", ["contrast"], order="gradual").hash
    )
    default = streams.test_time()
    assert rebuild(default.description).hash == default.hash


def test_users_transforms_are_told() -> None:
    stream = build([torch.neg, "identity"])
    assert [e.name for e in stream] == ["clean", "shift/0", "identity"]
    with pytest.raises(ConfigurationError, match="built from objects given by the user"):
        rebuild(stream.description)


def test_without_an_end() -> None:
    stream = build(passes="endless")
    assert stream.endless
    assert [e.name for e in stream[301:304]] == ["contrast/3", "gaussian_noise/1", "rotation/90"]
    assert stream[:10].sets == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("options", "counts"), [({}, [20, 20, 20]), ({"order": "mixed"}, [60]), ({"order": "mixed", "rows": 40}, [40, 20])]
)
def test_all_target_rows_are_scored(options: dict[str, Any], counts: list[int]) -> None:
    stream = build(**options)
    events = Engine(models.mlp(stream, (8,)), sgd(), batch_size=8, evaluate="end").run(stream).events
    scores = [event for event in events if event["event"] == "prequential"]
    assert [(score["experience"], score["count"]) for score in scores] == [(i + 1, count) for i, count in enumerate(counts)]


def test_tent_adapts_to_what_it_meets() -> None:
    stream = streams.test_time("digits", ["contrast/4", "brightness/4"])

    def score(*plugins: Any) -> float:
        torch.manual_seed(0)
        body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU())
        engine = Engine(models.Model(body, models.Heads(32, stream.tasks)), sgd(lr=0.05), plugins, batch_size=64, epochs=5, evaluate="end")
        values = [event["value"] for event in engine.run(stream).events if event["event"] == "prequential"]
        return sum(values) / len(values)

    assert score(Tent()) > score() + 0.1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"order": "random"}, UnknownNameError, "unknown order 'random'"),
        ({"shifts": []}, DataError, r"shifts is \[\]: give a list of names"),
        ({"shifts": 3}, DataError, "shifts is 3: give a list of names"),
        ({"shifts": ["contrst"]}, DataError, "shift 0 is 'contrst': give callables .* did you mean 'contrast'"),
        ({"shifts": ["contrast", "contrast/3"]}, DataError, "shifts has 'contrast/3' twice: name each shift once"),
        ({"order": "gradual", "shifts": ["contrast/3"]}, DataError, "order 'gradual' takes a corruption .* shifts has 'contrast/3'"),
        ({"severity": 0}, DataError, "severity is 0: give a number from 1 to 5"),
        ({"rows": 0}, DataError, "rows is 0: give a whole number of at least 1"),
        ({"passes": 0}, DataError, "passes is 0: give a whole number of at least 1"),
        ({"passes": "forever"}, DataError, "passes is 'forever'"),
        ({"concentration": 0}, DataError, "concentration is 0: give a number above 0"),
        ({"concentration": float("nan")}, DataError, "concentration is nan"),
        ({"shifts": [lambda x: x.flatten(1)]}, DataError, "the transforms give inputs of different shapes"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(**options)


def test_what_is_no_image_cannot_be_corrupted() -> None:
    with pytest.raises(DataError, match="needs floating images of shape"):
        streams.test_time((torch.rand(12, 4), torch.arange(12) % 3))
