from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamlearn.streams.transforms import Permutation, Rotation


@given(st.integers(0, 100), st.integers(0, 100))
def test_a_permutation_moves_every_row_alike_and_loses_nothing(seed: int, number: int) -> None:
    x = torch.arange(3 * 2 * 4 * 4, dtype=torch.float32).reshape(3, 2, 4, 4)
    changed = Permutation(seed, number)(x)
    assert changed.shape == x.shape
    assert torch.equal(changed.flatten(1).sort().values, x.flatten(1))
    assert torch.equal(changed[1] - x[1, 0, 0, 0], changed[0])
    assert torch.equal(changed, Permutation(seed, number)(x))


def test_permutations_of_a_family_differ() -> None:
    x = torch.arange(64.0).reshape(1, 64)
    assert len({tuple(Permutation(seed, number)(x)[0].tolist()) for seed in (0, 1) for number in (0, 1, 2)}) == 6


def test_a_thousand_permutations_weigh_nothing() -> None:
    assert not any(isinstance(getattr(Permutation(0, 1), name), torch.Tensor) for name in Permutation.__slots__)


def test_quarter_turns_are_exact() -> None:
    x = torch.rand(2, 3, 5, 5)
    for turns in (1, 2, 3):
        torch.testing.assert_close(Rotation(90 * turns)(x), torch.rot90(x, turns, (2, 3)), atol=1e-5, rtol=0)
    assert Rotation(0)(x) is x
    assert Rotation(360)(x) is x


@pytest.mark.parametrize("shape", [(2, 1, 9, 9), (2, 3, 8, 8), (1, 1, 6, 11)])
@pytest.mark.parametrize("angle", [12.5, 45.0, 200.0])
def test_rotation_equals_torchvisions(shape: tuple[int, ...], angle: float) -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    x = torch.rand(shape)
    expected = functional.rotate(x, angle, interpolation=functional.InterpolationMode.BILINEAR)
    turned = Rotation(angle)(x)
    # torchvision blends with the fill colour at the border in its own way: compare where a pixel lies fully inside
    inside = Rotation(angle)(torch.ones(shape)) > 0.999
    assert inside.float().mean() > 0.4
    torch.testing.assert_close(turned[inside], expected[inside], atol=1e-4, rtol=0)


def test_rotation_keeps_the_type_and_the_rows() -> None:
    x = torch.rand(4, 1, 6, 6, dtype=torch.float64)
    turned = Rotation(33)(x)
    assert turned.dtype == torch.float64
    torch.testing.assert_close(turned[2:3], Rotation(33)(x[2:3]))
