"""Corruptions: what each kind does by hand, and noise that depends on nothing but seed, row and pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams.corruptions import KINDS, NOISES, Corruption, hashed_uniforms
from streamlearn.streams.data import Data, Target
from streamlearn.streams.sources import TensorSource
from streamlearn.streams.sources.bundled import digits
from streamlearn.streams.task import Task

ROWS = torch.arange(40)
DIGITS = digits()[0].take(ROWS).x
COLOURS = torch.rand(40, 3, 9, 12, generator=torch.Generator().manual_seed(0))
ANY_KIND = pytest.mark.parametrize("kind", KINDS)


def grey(value: float, rows: int = 1, side: int = 100) -> Tensor:
    return torch.full((rows, 1, side, side), value)


@ANY_KIND
@pytest.mark.parametrize("x", [DIGITS, COLOURS, COLOURS.double()], ids=["digits", "colours", "doubles"])
def test_a_corruption_keeps_shape_type_and_range(kind: str, x: Tensor) -> None:
    before = x.clone()
    for severity in (1, 2.5, 5):
        changed = Corruption(kind, severity)(x, ROWS)
        assert (changed.shape, changed.dtype) == (x.shape, x.dtype)
        assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
        assert not torch.equal(changed, x)
    assert torch.equal(x, before), "what is given is left alone"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pixelate"])
def test_more_severe_is_farther_from_the_image(kind: str) -> None:
    distances = [float((Corruption(kind, severity)(DIGITS, ROWS) - DIGITS).abs().mean()) for severity in (1, 2, 3, 4, 5)]
    assert distances == sorted(set(distances))


@ANY_KIND
@given(rows=st.lists(st.integers(0, 39), min_size=1, max_size=12))
def test_a_row_is_corrupted_alike_in_every_batch(kind: str, rows: list[int]) -> None:
    index = torch.tensor(rows)
    for x in (DIGITS, COLOURS):
        assert torch.equal(Corruption(kind, 3)(x[index], index), Corruption(kind, 3)(x, ROWS)[index])


@pytest.mark.parametrize("kind", NOISES)
def test_noise_depends_on_the_seed_and_on_the_row(kind: str) -> None:
    x = grey(0.5, 2, 8)
    first = Corruption(kind, 3, seed=1)(x, torch.tensor([4, 9]))
    assert not torch.equal(first, Corruption(kind, 3, seed=2)(x, torch.tensor([4, 9])))
    assert not torch.equal(first[0], first[1])
    assert Corruption(kind, 3).needs_index
    with pytest.raises(DataError, match="was called without the rows' index"):
        Corruption(kind, 3)(x)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    Corruption(kind, 3)(x, torch.tensor([0, 1]))
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NOISES])
def test_other_kinds_need_no_index(kind: str) -> None:
    assert not Corruption(kind, 2).needs_index
    assert torch.equal(Corruption(kind, 2)(DIGITS), Corruption(kind, 2)(DIGITS, ROWS + 7))


def test_hashed_uniforms_are_splitmix64s() -> None:
    import hashlib

    def mixed(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    gamma, start = 0x9E3779B97F4A7C15, int.from_bytes(hashlib.sha256(b"key").digest()[:8], "little")
    rows = [0, 3, 2**40, 70_000]
    expected = [[((mixed((mixed((i * gamma + start) % 2**64) + j * gamma) % 2**64) >> 12) + 0.5) / 2**52 for j in range(5)] for i in rows]
    assert hashed_uniforms("key", torch.tensor(rows), 5).tolist() == expected


def test_hashed_uniforms_are_uniform_and_independent() -> None:
    from scipy import stats

    drawn = hashed_uniforms("uniform", torch.arange(200), 100).numpy()
    assert stats.kstest(drawn.ravel(), "uniform").pvalue > 1e-3
    for lag in (drawn[1:] - drawn[:-1], drawn[:, 1:] - drawn[:, :-1]):
        assert float(np.var(lag)) == pytest.approx(1 / 6, rel=0.05)


@pytest.mark.parametrize(("severity", "scale"), [(1, 0.08), (3, 0.18), (1.5, 0.10)])
def test_gaussian_noise_is_normal(severity: float, scale: float) -> None:
    noise = Corruption("gaussian_noise", severity)(grey(0.5, 2), torch.arange(2)) - 0.5
    for deviations, share in ((0.5, 0.6915), (1.0, 0.8413), (2.0, 0.9772)):  # of the normal distribution, on either side
        assert float((noise < deviations * scale).double().mean()) == pytest.approx(share, abs=0.01)
        assert float((noise > -deviations * scale).double().mean()) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(("severity", "photons"), [(1, 60), (3, 12), (5, 3)])
def test_shot_noise_is_poissons_by_inversion(severity: int, photons: int) -> None:
    from scipy import stats

    x = torch.rand(3, 1, 30, 30, generator=torch.Generator().manual_seed(1)).double()
    uniforms = hashed_uniforms("shot_noise/0", torch.arange(3), 900).view(x.shape)
    expected = stats.poisson.ppf(uniforms.numpy(), (x * photons).numpy()) / photons
    np.testing.assert_allclose(Corruption("shot_noise", severity)(x, torch.arange(3)).numpy(), expected.clip(0, 1), atol=1e-12)
    assert torch.equal(Corruption("shot_noise", severity)(grey(0.0), torch.tensor([0])), grey(0.0)), "no light, no photons"


@pytest.mark.parametrize(("severity", "share"), [(1, 0.03), (5, 0.27)])
def test_impulse_noise_makes_as_much_salt_as_pepper(severity: int, share: float) -> None:
    changed = Corruption("impulse_noise", severity)(grey(0.5, 4), torch.arange(4))
    for value in (0.0, 1.0):
        assert float((changed == value).float().mean()) == pytest.approx(share / 2, rel=0.1)
    assert set(changed.flatten().tolist()) == {0.0, 0.5, 1.0}


def dot(side: int = 21) -> Tensor:
    x = torch.zeros(1, 1, side, side, dtype=torch.float64)
    x[0, 0, side // 2, side // 2] = 1
    return x


def test_blurs_spread_a_dot_and_keep_its_light() -> None:
    for kind in ("defocus_blur", "motion_blur", "gaussian_blur"):
        spread = Corruption(kind, 5)(dot())[0, 0]
        assert float(spread.sum()) == pytest.approx(1)
        torch.testing.assert_close(Corruption(kind, 5)(grey(0.7, 1, 8)), grey(0.7, 1, 8))
    line = Corruption("motion_blur", 1)(dot())[0, 0]
    assert set(line.nonzero()[:, 0].tolist()) == {10}, "a horizontal line"
    assert float(line[10, 9] / line[10, 10]) == pytest.approx(math.exp(-0.5))
    disk = Corruption("defocus_blur", 5)(dot())[0, 0]
    torch.testing.assert_close(disk[9:12, 9:12], torch.full((3, 3), 1 / 9, dtype=torch.float64), atol=1e-6, rtol=0)


def test_gaussian_blur_is_scipys() -> None:
    from scipy.ndimage import gaussian_filter

    for severity, sigma in ((1, 0.4), (5, 1.0)):
        expected = gaussian_filter(
            COLOURS.double().numpy(), (0, 0, sigma, sigma), mode="nearest", radius=(0, 0, *[math.ceil(4 * sigma)] * 2)
        )
        np.testing.assert_allclose(Corruption("gaussian_blur", severity)(COLOURS.double()).numpy(), expected, atol=1e-12)


def test_lengths_grow_with_large_images() -> None:
    widths = {side: int((Corruption("motion_blur", 1)(dot(side))[0, 0] > 0).sum()) for side in (9, 31, 65)}
    assert widths == {9: 4, 31: 4, 65: 8}


def test_brightness_keeps_the_hue() -> None:
    colour = torch.tensor([0.1, 0.2, 0.4]).view(1, 3, 1, 1)
    brighter = Corruption("brightness", 2)(colour).flatten()
    torch.testing.assert_close(brighter, torch.tensor([0.15, 0.3, 0.6]))
    torch.testing.assert_close(Corruption("brightness", 2)(grey(0.4, 1, 2)), grey(0.6, 1, 2))
    torch.testing.assert_close(Corruption("brightness", 2)(grey(0.0, 1, 2)), grey(0.2, 1, 2))
    torch.testing.assert_close(Corruption("brightness", 5)(grey(0.9, 1, 2)), grey(1.0, 1, 2))


def test_contrast_shrinks_towards_the_mean_of_each_channel() -> None:
    mean = COLOURS.mean((2, 3), keepdim=True)
    torch.testing.assert_close(Corruption("contrast", 2)(COLOURS), (COLOURS - mean) * 0.3 + mean)


def test_pixelate_makes_blocks() -> None:
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    blocks = Corruption("pixelate", 2)(x)
    expected = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(blocks, expected)


def test_it_works_as_a_transform_of_data() -> None:
    source = TensorSource(DIGITS, {"y": ROWS % 10}, "d")
    data = Data(source, torch.tensor([5, 30, 7]), (Task("t", size=10),), {"t": Target("y")}, Corruption("shot_noise", 2, seed=3))
    alone = data.batch(torch.tensor([1]))
    assert alone.index.tolist() == [30]
    assert torch.equal(data.batch(torch.arange(3)).x[1:2], alone.x)
    assert torch.equal(data.fetch(torch.tensor([30])).x, alone.x)
    assert data.batch(torch.tensor([], dtype=torch.int64)).x.shape == (0, 1, 8, 8)


def test_names_are_canonical() -> None:
    assert [Corruption("contrast", s).name for s in (3, 3.0, 2.25)] == ["contrast/3", "contrast/3", "contrast/2.25"]
    assert Corruption("contrast", 3) == Corruption("contrast", 3.0)


@pytest.mark.parametrize("severity", [0, 5.1, True, "3", float("nan"), None])
def test_severity_is_from_1_to_5(severity: object) -> None:
    with pytest.raises(DataError, match=r"severity is .*: give a number from 1 to 5"):
        Corruption("contrast", severity)  # type: ignore[arg-type]


def test_what_cannot_be_corrupted_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown corruption 'contrst': did you mean 'contrast'"):
        Corruption("contrst", 1)
    for seed in (-1, 1.5, True):
        with pytest.raises(DataError, match="the seed of corruption 'contrast' is"):
            Corruption("contrast", 1, seed)  # type: ignore[arg-type]
    for x in (torch.rand(2, 8), torch.rand(2, 2, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.int64)):
        with pytest.raises(DataError, match=r"needs floating images of 1 or 3 channels, .* and met .* inputs of shape"):
            Corruption("contrast", 1)(x)
    with pytest.raises(DataError, match=r"needs images in \[0, 1\], and met values from -0.5 to 0.5: rescale the source"):
        Corruption("contrast", 1)(torch.tensor([[[[-0.5, 0.5]]]]))
