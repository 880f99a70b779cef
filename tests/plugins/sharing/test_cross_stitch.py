from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from streamlearn import Engine
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import SeparateNetworks
from streamlearn.plugins.sharing.cross_stitch import CrossStitch, stitch
from tests.core.support import final, probe, sgd, two_task_stream
from tests.plugins.sharing.architectures import A, B, C, convolutional, drifted, smooth, transformed, weights
from tests.plugins.sharing.conflict import conflicting, errors

X = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("per", ["channel", "layer"])
def test_the_forward_by_hand(per: str) -> None:
    """x_i = Σ_j α_ij x_j behind each stage, the last one too."""
    model = drifted(transformed(CrossStitch(per=per), smooth((A, B, C))))
    w, tasks = weights(model), ("a", "b", "c")
    x = dict.fromkeys(tasks, X)
    for stage in range(3):
        own = {t: torch.tanh(F.linear(x[t], w[f"heads.towers.{t}.{stage}.0.weight"], w[f"heads.towers.{t}.{stage}.0.bias"])) for t in tasks}
        x = {t: sum(w[f"heads.stitches.{t}.{j}.{stage}"] * own[j] for j in tasks) for t in tasks}  # type: ignore[misc]
    for t in tasks:
        expected = F.linear(x[t], w[f"heads.by_task.{t}.weight"], w[f"heads.by_task.{t}.bias"])
        torch.testing.assert_close(model(X, t).detach(), expected, rtol=1e-9, atol=1e-12)
    assert w["heads.stitches.a.b.0"].shape == ((4,) if per == "channel" else (1,))


def test_channels_of_maps() -> None:
    maps, alpha = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    expected = torch.empty_like(maps)
    for channel in range(3):
        expected[:, channel] = alpha[0, channel] * maps[:, channel] + alpha[1, channel] * maps.flip(0)[:, channel]
    torch.testing.assert_close(stitch([maps, maps.flip(0)], list(alpha)), expected, rtol=1e-12, atol=1e-12)
    model = transformed(CrossStitch(), convolutional(), (1, 6, 6))
    assert [tuple(p.shape) for p in model.heads.stitches["a"]["b"]] == [(4,), (4,)]
    assert model(torch.randn(3, 1, 6, 6, dtype=torch.float64), "b").shape == (3, 3)


def test_where_alpha_starts() -> None:
    w = weights(transformed(CrossStitch(own=0.7), smooth((A, B, C))))
    assert w["heads.stitches.b.b.1"].tolist() == [0.7] * 4
    torch.testing.assert_close(w["heads.stitches.b.c.1"], torch.full((4,), 0.15, dtype=torch.float64))
    alone = transformed(CrossStitch(), smooth((A,)))
    assert weights(alone)["heads.stitches.a.a.0"].tolist() == [1.0] * 4
    alone.grow([B])
    w = weights(alone)
    assert not bool(w["heads.stitches.a.b.0"].any())
    assert float(w["heads.stitches.b.b.0"][0]) == 0.9
    torch.testing.assert_close(w["heads.stitches.b.a.0"], torch.full((4,), 0.1, dtype=torch.float64))


def test_a_single_task_has_the_plain_model() -> None:
    plain, one = smooth((A,)), transformed(CrossStitch(own=0.2), smooth((A,)))
    assert torch.equal(one(X, "a"), plain(X, "a"))


def test_the_identity_is_separate_networks() -> None:
    """With α fixed at the identity, the run is that of separate networks from the same weights."""
    stream = two_task_stream()
    fixed = probe("fixed", transform_gradients=lambda gradients: {n: g for n, g in gradients.items() if ".stitches." not in n})
    options: dict[str, Any] = {"batch_size": 6, "epochs": 3}
    towers, _ = final(Engine(smooth(stream.tasks, torch.float32, 2), sgd(), [CrossStitch(own=1.0, redraw=False), fixed], **options), stream)
    networks, _ = final(Engine(smooth(stream.tasks, torch.float32, 2), sgd(), [SeparateNetworks(start="given")], **options), stream)
    for task in ("a", "b"):
        for stage in range(2):
            for part in ("weight", "bias"):
                found = towers[f"heads.towers.{task}.{stage}.0.{part}"]
                torch.testing.assert_close(found, networks[f"heads.networks.{task}.{2 * stage}.{part}"], rtol=1e-4, atol=1e-6)


def test_towers_are_drawn_from_seed_and_name() -> None:
    def first_layers(seed: int, **options: Any) -> dict[str, torch.Tensor]:
        w = weights(transformed(CrossStitch(**options), smooth(), seed=seed))
        return {t: w[f"heads.towers.{t}.0.0.weight"] for t in ("a", "b")}

    one, again, other, given = first_layers(1), first_layers(1), first_layers(2), first_layers(1, redraw=False)
    assert torch.equal(one["a"], given["a"])
    assert torch.equal(one["b"], again["b"])
    assert not torch.equal(one["b"], other["b"])
    assert torch.equal(given["b"], given["a"])


def test_towers_that_need_different_things_part() -> None:
    """Two tasks that a narrow encoder cannot serve at once: the error of hard sharing is several times as large."""
    hard, stitched = errors([]), errors([CrossStitch()])
    assert max(stitched.values()) < 0.5 * max(hard.values())
    assert set(hard) == {task.name for task in conflicting().tasks}


def test_stages_that_are_not_there_are_named() -> None:
    with pytest.raises(ConfigurationError, match="no stage can end at '7'"):
        transformed(CrossStitch(stages=("7",)), smooth())
    with pytest.raises(ConfigurationError, match=r"option 'own' is 1\.5"):
        CrossStitch(own=1.5)
    assert len(transformed(CrossStitch(stages=()), smooth()).heads.shapes) == 2
    assert len(transformed(CrossStitch(stages=("1",)), smooth()).heads.shapes) == 3
