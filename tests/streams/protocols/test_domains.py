"""Domains by name, mixed domains, corruptions, and streams of permutations without end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn import Engine, models
from streamlearn.errors import ConfigurationError, DataError, UnknownNameError
from streamlearn.streams import Stream, TensorSource, build_chain, domain_incremental, rebuild
from streamlearn.streams.corruptions import KINDS, Corruption
from streamlearn.streams.stream import EndlessStreamError
from streamlearn.streams.transforms import Permutation, Rotation
from tests.core.support import sgd

NAMES = ["identity", "rotation/30", "permutation/7", "gaussian_noise/2", "contrast"]


def inputs(stream: Stream, i: int, rows: int = 6) -> torch.Tensor:
    return stream[i].data["train"].batch(torch.arange(rows)).x


def test_every_corruption_is_a_domain() -> None:
    stream = domain_incremental("digits", transform="corruption", severity=2, seed=5)
    assert [e.name for e in stream] == [f"{kind}/2" for kind in KINDS]
    plain = stream[0].data["train"].source.take(torch.arange(6)).x
    for i, kind in enumerate(KINDS):
        assert torch.equal(inputs(stream, i), Corruption(kind, 2, 5)(plain, torch.arange(6)))
        assert stream.evaluation(i).data.transform == Corruption(kind, 2, 5)
    assert len(domain_incremental("digits", 3, transform="corruption")) == 3


def test_names_and_callables_mix() -> None:
    stream = domain_incremental("digits", transform=["identity", flip, "rotation/90"])
    plain = inputs(stream, 0)
    assert [e.name for e in stream] == ["identity", "transform/1", "rotation/90"]
    assert torch.equal(inputs(stream, 1), plain.flip(3))
    torch.testing.assert_close(inputs(stream, 2), torch.rot90(plain, 1, (2, 3)), atol=1e-5, rtol=0)
    with pytest.raises(ConfigurationError, match="built from objects given by the user"):
        rebuild(stream.description)


def flip(x: torch.Tensor) -> torch.Tensor:
    return x.flip(3)


def test_names_alone_are_built_again_from_text() -> None:
    stream = domain_incremental("digits", transform=NAMES, seed=3)
    changes = [None, Rotation(30.0), Permutation(3, 7), Corruption("gaussian_noise", 2, 3), Corruption("contrast", 3, 3)]
    assert [e.data["train"].transform for e in stream] == changes
    again = rebuild(json.loads(json.dumps(stream.description)))
    assert again.hash == stream.hash
    assert [e.data["train"].transform for e in again] == changes
    told = build_chain(f"domain_incremental:source=digits,seed=3,transform={json.dumps(NAMES)}")
    assert told.hash == stream.hash


@pytest.mark.parametrize("transform", ["permutation", "corruption", NAMES])
def test_another_seed_gives_another_stream(transform: Any) -> None:
    streams = [domain_incremental("digits", 4 if transform != NAMES else None, transform=transform, seed=seed) for seed in (0, 1)]
    assert streams[0].hash != streams[1].hash
    assert not all(torch.equal(inputs(streams[0], i), inputs(streams[1], i)) for i in range(4))


def test_permutations_never_end() -> None:
    stream = domain_incremental("digits", "endless", seed=2)
    assert stream.endless
    with pytest.raises(EndlessStreamError, match="is endless and has no length"):
        len(stream)
    assert (stream[0].name, stream[10**9].name) == ("permutation/0", "permutation/1000000000")
    finite = domain_incremental("digits", 4, seed=2)
    for i in range(4):
        assert torch.equal(inputs(stream, i), inputs(finite, i))
    part = stream[1:3]
    assert [e.name for e in part] == ["permutation/1", "permutation/2"]
    again = rebuild(json.loads(json.dumps(part.description)))
    assert again.hash == part.hash
    assert torch.equal(inputs(again, 1), inputs(stream, 2))
    assert Engine(models.mlp(part, (8,)), sgd(), batch_size=64).run(part).accuracy_matrix.shape == (3, 2)


def test_a_thousand_domains_cost_nothing_until_they_are_used() -> None:
    class Counting(TensorSource):
        taken = 0

        def take(self, index: torch.Tensor) -> Any:
            type(self).taken += len(index)
            return super().take(index)

    source = Counting(torch.rand(50, 9), {"y": torch.arange(50) % 5}, "counting")
    stream = domain_incremental(source, "endless")
    assert [stream[i].name for i in (1, 500)] == ["permutation/1", "permutation/500"]
    assert Counting.taken == 0


@settings(max_examples=20)
@given(st.integers(0, 100), st.slices(6))
def test_slices_are_what_a_walk_gives(seed: int, part: slice) -> None:
    stream = domain_incremental("digits", 6, seed=seed)
    expected = [(e.name, e.data["train"].transform) for e in stream][part]
    if expected:
        assert [(e.name, e.data["train"].transform) for e in stream[part]] == expected


def test_regression_has_domains_without_classes() -> None:
    x = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    stream = domain_incremental((x, x.mean((1, 2, 3))), transform=["identity", "rotation/45", "contrast"])
    assert (stream.tasks[0].kind, [e.classes for e in stream]) == ("regression", [{}, {}, {}])
    train, test = (set(stream[1].data["train"].indices.tolist()), set(stream.evaluation(1).data.indices.tolist()))
    assert (len(train), len(test), train & test) == (48, 12, set())
    Engine(models.mlp(stream, (8,)), sgd(), batch_size=16).run(stream)


REFUSED: list[tuple[Callable[[], Stream], type[Exception], str]] = [
    (
        lambda: domain_incremental("digits", "endless", transform="rotation"),
        DataError,
        "experiences is 'endless' and transform is",
    ),
    (lambda: domain_incremental("digits", "endless", transform=["identity"]), DataError, "or transform='permutation', which never ends"),
    (lambda: domain_incremental("digits", 10, transform="corruption"), DataError, "there are 9 kinds of corruption, fewer than 10"),
    (lambda: domain_incremental("digits", transform="corruption", severity=6), DataError, "severity is 6: give a number from 1 to 5"),
    (lambda: domain_incremental("digits", transform=["turn/3"]), DataError, "transform 0 is 'turn/3': give callables that map"),
    (lambda: domain_incremental("digits", transform=["contrast/9"]), DataError, "severity is 9.0"),
    (lambda: domain_incremental("digits", 1, transform=NAMES), DataError, "transform lists 5 transforms but 1 experiences are asked for"),
    (lambda: domain_incremental("digits", transform="corruptions"), UnknownNameError, "did you mean 'corruption'"),
    (
        lambda: domain_incremental((torch.rand(9, 4), torch.arange(9) % 3), transform="corruption"),
        DataError,
        "corruption needs floating images of shape (channels, height, width) with 1 or 3 channels, and source 'data'",
    ),
]


@pytest.mark.parametrize(("build", "kind", "message"), REFUSED)
def test_what_cannot_be_is_refused_with_a_reason(build: Callable[[], Stream], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        build()
