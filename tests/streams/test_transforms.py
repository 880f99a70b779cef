from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams.corruptions import Corruption
from streamlearn.streams.sources import TensorSource
from streamlearn.streams.transforms import (
    Permutation,
    Resize,
    Rotation,
    check_images,
    family_permutation,
    listed_transforms,
    named_transform,
    transformed_shape,
)


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


def test_resize_repeats_the_channel_of_grey_images() -> None:
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    bigger = Resize(2, 2, channels=3)(x)
    assert bigger.shape == (2, 3, 2, 2)
    for channel in range(3):
        torch.testing.assert_close(bigger[:, channel], x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))[:, 0])
    assert torch.equal(Resize(2, 2)(x), bigger[:, :1])


@pytest.mark.parametrize(
    ("text", "name", "transform"),
    [
        ("identity", "identity", None),
        ("rotation/30.0", "rotation/30", Rotation(30.0)),
        ("rotation/-12.5", "rotation/-12.5", Rotation(-12.5)),
        ("permutation/7", "permutation/7", Permutation(4, 7)),
        ("gaussian_noise/3", "gaussian_noise/3", Corruption("gaussian_noise", 3, 4)),
        ("contrast", "contrast/2", Corruption("contrast", 2, 4)),
    ],
)
def test_names_make_transforms_and_canonical_names_make_the_same(text: str, name: str, transform: object) -> None:
    assert named_transform(text, seed=4, severity=2) == (name, transform)
    assert named_transform(name, seed=4, severity=5) == (name, transform)


@given(st.floats(-1000, 1000))
def test_canonical_names_lose_no_digit(angle: float) -> None:
    name, transform = named_transform(f"rotation/{angle!r}", seed=0)
    assert named_transform(name, seed=0)[1] == transform == Rotation(angle)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rotation", "the transform 'rotation' has no number after its name: write one, as in 'identity', 'rotation/30'"),
        ("rotation/inf", "the transform 'rotation/inf' has no number"),
        ("contrast/much", "the transform 'contrast/much' has no number"),
        ("contrast/6", "severity is 6.0: give a number from 1 to 5"),
        ("permutation/-1", "the transform 'permutation/-1' names no permutation: write its number, of at least 0"),
        ("permutation", "the transform 'permutation' names no permutation"),
    ],
)
def test_names_without_their_number_are_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        named_transform(text, seed=0)


def test_unknown_transforms_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown transform 'contrst': did you mean 'contrast'"):
        named_transform("contrst/3", seed=0)


def test_one_permutation_is_one_object() -> None:
    assert family_permutation(3, 5) is named_transform("permutation/5", seed=3)[1]


def test_images_are_checked_before_they_are_transformed() -> None:
    flat = TensorSource(torch.rand(3, 8), {"y": torch.arange(3)}, "flat")
    two = TensorSource(torch.rand(3, 2, 4, 4), {"y": torch.arange(3)}, "two")
    check_images(two, "rotation")
    with pytest.raises(DataError, match=r"rotation needs floating images .*, and source 'flat' has float32 inputs of shape \(8,\)"):
        check_images(flat, "rotation")
    with pytest.raises(DataError, match="with 1 or 3 channels, and source 'two' has float32 inputs"):
        listed_transforms(["contrast/1"], two, "shift", seed=0, severity=3)
    with pytest.raises(DataError, match="shift 1 is 3: give callables"):
        listed_transforms(["identity", 3], two, "shift", seed=0, severity=3)  # type: ignore[list-item]


def test_a_transform_that_needs_the_index_is_tried_with_it() -> None:
    class Indexed:
        needs_index = True

        def __call__(self, x: Tensor, index: Tensor) -> Tensor:
            return x.flatten(1) + index.unsqueeze(1)

    source = TensorSource(torch.rand(3, 1, 4, 4), {"y": torch.arange(3)}, "s")
    assert transformed_shape([("indexed", Indexed())], source) == (16,)


def test_permutations_are_the_same_after_many_others() -> None:
    from streamlearn.streams.partition import permutation

    x = torch.arange(12.0).reshape(1, 12)
    for number in [*range(300), 0, 5, 299, 150]:
        expected = permutation(12, seed=3, purpose="pixels", number=number)
        assert torch.equal(Permutation(3, number)(x).flatten().long(), expected)
