from __future__ import annotations

import json
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.errors import DataError
from streamlearn.streams import data_incremental, rebuild
from streamlearn.streams.sources import TensorSource, named_source
from streamlearn.streams.sources.draws import normal, uniform
from streamlearn.streams.sources.synthetic import hyperplane, moons, sea
from streamlearn.streams.sources.synthetic_tasks import mmoe_pairs

SEEDS = st.integers(0, 10**6)
MAKERS: list[Callable[..., tuple[TensorSource, None]]] = [moons, hyperplane, sea, mmoe_pairs]


def everything(source: TensorSource) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    x, targets = source.take(torch.arange(len(source)))
    return x, dict(targets)


@pytest.mark.parametrize("maker", MAKERS)
def test_a_seed_gives_the_same_rows_and_another_gives_others(maker: Callable[..., tuple[TensorSource, None]]) -> None:
    first, again, other = (maker(rows=50, seed=seed)[0].fingerprint() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_draws_are_fixed_for_ever() -> None:
    assert uniform("test", 0, 3).tolist() == pytest.approx([0.8590100782506186, 0.4660557643208362, 0.9084363862074101], abs=1e-15)
    values = normal("test", 3, 20_000)
    assert abs(values.mean()) < 0.03
    assert values.std() == pytest.approx(1, abs=0.03)


@given(rows=st.integers(2, 40), seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_moons_without_noise_lie_on_their_circles(rows: int, seed: int) -> None:
    x, targets = everything(moons(rows, noise=0, seed=seed)[0])
    assert targets["y"].tolist() == [row % 2 for row in range(rows)]
    centre = torch.stack([targets["y"].float(), targets["y"].float() / 2], 1)
    torch.testing.assert_close((x - centre).norm(dim=1), torch.ones(rows))
    assert bool((x[::2, 1] >= -1e-6).all())
    assert bool((x[1::2, 1] <= 0.5 + 1e-6).all())


@given(rows=st.integers(4, 400), seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_sea_follows_its_thresholds_block_by_block(rows: int, seed: int) -> None:
    x, targets = everything(sea(rows, noise=0, seed=seed)[0])
    assert bool(((x >= 0) & (x <= 10)).all())
    for block, threshold in zip(np.array_split(np.arange(rows), 4), (8, 9, 7, 9.5), strict=True):
        total = x[block, 0].double() + x[block, 1].double()
        clear = (total - threshold).abs() > 1e-5
        assert torch.equal((total > threshold)[clear], targets["y"][block].bool()[clear])


def test_noise_flips_its_share_of_labels() -> None:
    for maker in (sea, hyperplane):
        clean, noisy = (maker(rows=20_000, noise=noise)[0].targets["y"] for noise in (0, 0.1))
        assert (clean != noisy).float().mean().item() == pytest.approx(0.1, abs=0.01)


def fitted(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Direction that best tells the two classes apart, by least squares."""
    direction: torch.Tensor = torch.linalg.lstsq(x.double() - 0.5, 2 * y.double() - 1).solution
    return direction


def test_hyperplane_turns_where_it_should() -> None:
    x, targets = everything(hyperplane(8000, features=6, drifting=2, speed=0.3, noise=0, seed=4)[0])
    y = targets["y"]
    assert 0.4 < y.float().mean() < 0.6
    assert bool(((x >= 0) & (x <= 1)).all())
    early, late = fitted(x[:1000], y[:1000]), fitted(x[-1000:], y[-1000:])
    turned = torch.dot(early, late) / early.norm() / late.norm()
    steady = torch.dot(early[2:], late[2:]) / early[2:].norm() / late[2:].norm()
    assert steady > 0.97
    assert turned < steady - 0.1


def test_a_hyperplane_without_drift_stands_still() -> None:
    x, targets = everything(hyperplane(4000, features=3, drifting=0, noise=0, seed=1)[0])
    direction = fitted(x, targets["y"])
    assert (((x.double() - 0.5) @ direction > 0) == targets["y"].bool()).float().mean() > 0.97


@pytest.mark.parametrize("correlation", [-1.0, 0.0, 0.6, 1.0])
def test_pairs_have_weights_of_the_asked_cosine(correlation: float) -> None:
    x, targets = everything(mmoe_pairs(4000, features=8, correlation=correlation, sines=0, noise=0, scale=2.0)[0])
    first, second = (torch.linalg.lstsq(x, targets[key]).solution for key in ("y1", "y2"))
    assert torch.dot(first, second) / first.norm() / second.norm() == pytest.approx(correlation, abs=1e-4)
    assert first.norm() == pytest.approx(2, abs=1e-4)


def test_related_pairs_share_their_sines() -> None:
    _, targets = everything(mmoe_pairs(500, correlation=1, noise=0)[0])
    assert torch.equal(targets["y1"], targets["y2"])
    _, noisy = everything(mmoe_pairs(5000, correlation=1, noise=0.1)[0])
    assert (noisy["y1"] - noisy["y2"]).std() == pytest.approx(0.1 * 2**0.5, rel=0.05)
    _, linear = everything(mmoe_pairs(500, correlation=1, noise=0, sines=0)[0])
    assert not torch.allclose(linear["y1"], targets["y1"], atol=0.1)


def test_drifting_streams_keep_their_time() -> None:
    stream = data_incremental("sea:rows=400,seed=3", 4, shuffle=False)
    indices = torch.cat([experience.data["train"].indices for experience in stream])  # type: ignore[union-attr]
    assert torch.equal(indices, indices.sort().values)
    assert rebuild(json.loads(json.dumps(stream.description))).hash == stream.hash
    assert named_source("mmoe_pairs:rows=10")[0].name == "mmoe-pairs"


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: moons(1), "rows is 1: give a whole number of at least 2"),
    (lambda: moons(noise=-0.1), "noise is -0.1: give a number of at least 0"),
    (lambda: moons(seed=-1), "seed is -1: give a whole number of at least 0"),
    (lambda: moons(noise=float("nan")), "noise is nan: give a number of at least 0"),
    (lambda: hyperplane(features=2, drifting=3), "drifting is 3, but there are 2 features: give at most as many"),
    (lambda: hyperplane(speed="fast"), "speed is 'fast': give a number of at least 0"),  # type: ignore[arg-type]
    (lambda: hyperplane(noise=1), "noise is 1, which would turn every label round: give a probability below 1"),
    (lambda: sea(3), "rows is 3: give a whole number of at least 4"),
    (lambda: sea(noise=1.5), "noise is 1.5: give a number of at least 0 and at most 1"),
    (lambda: mmoe_pairs(correlation=2), "correlation is 2: give a number of at least -1 and at most 1"),
    (lambda: mmoe_pairs(features=1), "features is 1: give a whole number of at least 2"),
    (lambda: mmoe_pairs(scale=0), "scale is 0: give a number above 0"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_arguments_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        make()
