"""Families of small tasks: each function is what its formula says, over the ranges that it says."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.errors import DataError
from streamlearn.streams import Episodes, Task, TensorSource
from streamlearn.streams.protocols.class_families import ClassFamily
from streamlearn.streams.protocols.families import FUNCTIONS, FunctionFamily, Sizes, Stretch


def points(name: str, count: int, size: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """x and y of ``count`` functions, ``(count, size)``, in double precision."""
    draw = Stretch("train", 0, torch.arange(count), "train/", seed).random()
    values = FUNCTIONS[name](draw, count)
    x = draw.uniform(-5.0, 5.0, (count, size))
    return x, values(x)


def drawn(name: str, count: int, **options: int) -> Episodes:
    family = FunctionFamily(name, Task(name, "regression"), shots=3, queries=4)
    return family.episodes(Stretch("train", options.get("experience", 0), torch.arange(count), "train/", options.get("seed", 0)))


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_an_episode_is_one_function_at_points_in_the_range(name: str) -> None:
    x, y = points(name, 6, 7)
    data = drawn(name, 6)
    source = data.source
    assert isinstance(source, TensorSource)
    assert torch.equal(source.take(torch.arange(42)).x, torch.from_numpy(x.reshape(-1, 1).astype(np.float32)))
    assert torch.equal(source.targets["y"], torch.from_numpy(y.reshape(-1, 1).astype(np.float32)))
    assert np.abs(x).max() <= 5
    assert len(data) == 6
    batch = data.batch(torch.tensor([4]))
    assert batch.domains == ("train/4",)
    assert batch.index.tolist() == list(range(28, 35))
    assert (batch.rows("support"), batch.rows("query")) == (slice(0, 3), slice(3, 7))


@given(name=st.sampled_from(sorted(FUNCTIONS)), seed=st.integers(0, 10**9), experience=st.integers(0, 10**9))
@settings(max_examples=30, deadline=None)
def test_draws_are_finite_and_a_function_of_seed_and_experience(name: str, seed: int, experience: int) -> None:
    one, again = drawn(name, 5, seed=seed, experience=experience), drawn(name, 5, seed=seed, experience=experience)
    x, y = one.source.take(one.indices)
    assert bool(x.isfinite().all())
    assert bool(y["y"].isfinite().all())
    assert torch.equal(x, again.source.take(again.indices).x)
    for other in (drawn(name, 5, seed=seed + 1, experience=experience), drawn(name, 5, seed=seed, experience=experience + 1)):
        assert not torch.equal(x, other.source.take(other.indices).x)


def test_sinusoids_stay_what_they_were() -> None:
    """The draws behind published numbers, bit for bit but for the last bit of the platform's sine."""
    x, y = points("sinusoids", 2, 2)
    key = hashlib.sha256(b"episodes/train/0/0").digest()[:16]
    draw = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    amplitude, phase = draw.uniform(0.1, 5.0, (2, 1)), draw.uniform(0.0, np.pi, (2, 1))
    inputs = draw.uniform(-5.0, 5.0, (2, 2))
    assert np.array_equal(x, inputs)
    assert np.allclose(y, amplitude * np.sin(inputs + phase), rtol=1e-15)
    assert x[0, 0] == pytest.approx(-4.575479159923582, rel=1e-12)


def spread(values: np.ndarray, low: float, high: float) -> None:
    """Values fill the range and do not leave it."""
    margin = 0.02 * (high - low)
    assert low - 1e-8 <= values.min() < low + margin
    assert high - margin < values.max() <= high + 1e-8
    assert abs(values.mean() - (low + high) / 2) < 2 * margin


def test_lines_are_lines() -> None:
    x, y = points("lines", 2000, 3)
    slope = (y[:, 1] - y[:, 0]) / (x[:, 1] - x[:, 0])
    intercept = y[:, 2] - slope * x[:, 2]
    assert np.allclose(slope[:, None] * x + intercept[:, None], y, atol=1e-6)
    far = np.abs(x[:, 1] - x[:, 0]) > 0.1
    spread(slope[far], -3, 3)
    spread(intercept[far], -3, 3)


def test_quadratics_are_quadratics() -> None:
    x, y = points("quadratics", 2000)
    found = np.array([np.polyfit(*pair, 2, full=False) for pair in zip(x, y, strict=True)])
    bend, centre = found[:, 0], -found[:, 1] / (2 * found[:, 0])
    fitted = found[:, :1] * x**2 + found[:, 1:2] * x + found[:, 2:]
    assert np.abs(fitted - y).max() < 1e-9
    spread(np.abs(bend), 0.02, 0.15)
    spread(centre, -3, 3)
    spread(found[:, 2] - bend * centre**2, -3, 3)
    assert 0.45 < (bend > 0).mean() < 0.55


def test_harmonics_are_sums_of_two_sines() -> None:
    """At the right frequency ω least squares on sin ωx, cos ωx, sin 2ωx, cos 2ωx has no residual."""
    x, y = points("harmonics", 40, 30)
    frequencies = np.linspace(5, 7, 2001)
    amplitudes = []
    for one, values in zip(x, y, strict=True):
        designs = np.stack([f(k * frequencies[:, None] * one) for k in (1, 2) for f in (np.sin, np.cos)], 2)
        weights = np.linalg.pinv(designs) @ values
        residual = np.abs((designs @ weights[:, :, None])[:, :, 0] - values).max(1)
        best = int(residual.argmin())
        assert residual[best] < 0.05 * max(1, np.abs(values).max())
        amplitudes += [np.hypot(*weights[best][:2]), np.hypot(*weights[best][2:])]
    assert 0.8 < np.sqrt(np.mean(np.square(amplitudes))) < 1.2, "standard normal"


def test_steps_begin_low_and_turn_round_three_times() -> None:
    x, y = points("steps", 300, 2000)
    order = x.argsort(1)
    x, y = np.take_along_axis(x, order, 1), np.take_along_axis(y, order, 1)
    assert set(np.unique(y)) == {-1.0, 1.0}
    assert (y[x < -2.5] == -1).all()
    assert (y[x > 2.5] == 1).all()
    turns = (np.diff(y, axis=1) != 0).sum(1)
    assert set(turns.tolist()) <= {1, 3}
    assert (turns == 3).mean() > 0.9


def test_classes_are_drawn_evenly_and_rows_of_a_class_too() -> None:
    labels = torch.arange(60) % 6
    source = TensorSource(torch.rand(60, 2), {"y": labels}, "toy")
    family = ClassFamily("toy", Task("t", size=2), 1, 2, source=source, column="y", labels=labels, classes=torch.tensor([1, 2, 5]))
    data = family.episodes(Stretch("train", 0, torch.arange(2000), "train/", 0))
    counts = torch.bincount(data.indices, minlength=60)
    assert set(labels[counts > 0].tolist()) == {1, 2, 5}
    assert (counts > 0).sum() == 30
    assert counts[counts > 0].min() > 0.8 * 12000 / 30
    assert counts.max() < 1.2 * 12000 / 30


def test_a_class_with_too_few_rows_is_named() -> None:
    labels = torch.tensor([0] * 4 + [7] * 2 + [9] * 5)
    source = TensorSource(torch.rand(11, 2), {"y": labels}, "toy")
    with pytest.raises(DataError, match="class 7 of 'toy' has 2 rows, fewer than the 3 of an episode: ask for fewer shots or queries"):
        ClassFamily("toy", Task("t", size=2), 1, 2, source=source, column="y", labels=labels, classes=torch.tensor([0, 7, 9]))


def test_sizes_are_whole_numbers() -> None:
    sizes = Sizes(np.int64(1), 2, 3, 4, np.int64(5))  # type: ignore[arg-type]
    assert type(sizes.shots) is type(sizes.seed) is int
    with pytest.raises(DataError, match="queries is 0: give a whole number of at least 1"):
        Sizes(1, 0, 1, 1, 0)
