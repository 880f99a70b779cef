from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from streamlearn import Engine
from streamlearn.errors import ConfigurationError
from streamlearn.models import Heads, Model
from streamlearn.plugins.sharing.cross_stitch import CrossStitch
from streamlearn.plugins.sharing.sluice import Sluice, overlap, sluice
from tests.core.support import probe, sgd, two_task_stream
from tests.plugins.sharing.architectures import A, B, C, convolutional, drifted, smooth, transformed, weights
from tests.plugins.sharing.conflict import errors

X = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("subspaces", "skips"), [(2, True), (4, True), (2, False), (1, True)])
def test_the_forward_by_hand(subspaces: int, skips: bool) -> None:
    """Subspace by subspace, tower by tower, level by level."""
    model = drifted(transformed(Sluice(subspaces=subspaces, skips=skips), smooth((A, B, C))))
    w, tasks, size = weights(model), ("a", "b", "c"), 4 // subspaces
    x = dict.fromkeys(tasks, X)
    read = {t: torch.zeros(5, 4, dtype=torch.float64) for t in tasks}
    for stage in range(3):
        own = {t: torch.tanh(F.linear(x[t], w[f"heads.towers.{t}.{stage}.0.weight"], w[f"heads.towers.{t}.{stage}.0.bias"])) for t in tasks}
        x = {t: torch.zeros(5, 4, dtype=torch.float64) for t in tasks}
        for t in tasks:
            for j in tasks:
                alpha = w[f"heads.stitches.{t}.{j}.{stage}"]
                for a in range(subspaces):
                    for b in range(subspaces):
                        x[t][:, a * size : (a + 1) * size] += alpha[a, b] * own[j][:, b * size : (b + 1) * size]
            read[t] = read[t] + w[f"heads.skips.{t}.0"][stage] * x[t] if skips else x[t]
    for t in tasks:
        expected = F.linear(read[t], w[f"heads.by_task.{t}.weight"], w[f"heads.by_task.{t}.bias"])
        torch.testing.assert_close(model(X, t).detach(), expected, rtol=1e-9, atol=1e-12)


def test_subspaces_of_maps() -> None:
    maps = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    alpha = torch.tensor([[1.0, 2.0], [0.5, 3.0]], dtype=torch.float64)
    expected = torch.cat([maps[:, :2] + 2 * maps[:, 2:], 0.5 * maps[:, :2] + 3 * maps[:, 2:]], 1)
    torch.testing.assert_close(sluice([maps], [alpha]), expected, rtol=1e-12, atol=1e-12)
    model = transformed(Sluice(skips=False), convolutional(), (1, 6, 6))
    assert model(torch.randn(3, 1, 6, 6, dtype=torch.float64), "b").shape == (3, 3)


def test_the_overlap_is_the_norm_of_the_products() -> None:
    weight = torch.randn(6, 2, 3, dtype=torch.float64)
    parts = [weight[2 * a : 2 * a + 2].flatten(1) for a in range(3)]
    expected = sum(torch.linalg.matrix_norm(parts[a] @ parts[b].T) ** 2 for a, b in ((0, 1), (0, 2), (1, 2)))
    torch.testing.assert_close(overlap(weight, 3), expected, rtol=1e-12, atol=1e-12)


def test_the_product_of_the_authors_code_is_another() -> None:
    """With units in rows, orthogonal subspaces are penalised all the same."""
    weight = torch.eye(4, dtype=torch.float64)
    assert float(overlap(weight, 2)) == 0
    assert float((weight[:2].T @ weight[2:]).square().sum()) == 2


def test_the_penalty_is_over_towers_and_stages() -> None:
    stream, seen = two_task_stream(torch.float64), []

    def look(step: Any) -> None:
        w = weights(step.run.model)
        expected = sum(
            torch.linalg.matrix_norm(w[f"heads.towers.{t}.{s}.0.weight"][:2] @ w[f"heads.towers.{t}.{s}.0.weight"][2:].T) ** 2
            for t in ("a", "b") for s in range(3)
        )  # fmt: skip
        seen.append((step.at().terms["sluice/orthogonality"], 0.25 * expected))

    plugins = [Sluice(strength=0.25), probe("look", before_step=look)]
    Engine(smooth(stream.tasks), sgd(), plugins, batch_size=12, epochs=2).run(stream)
    assert len(seen) == 4
    for found, expected in seen:
        torch.testing.assert_close(found.detach(), expected, rtol=1e-9, atol=1e-12)


def test_a_strong_penalty_keeps_subspaces_apart() -> None:
    def cosine(strength: float) -> float:
        model: Any = Engine(
            smooth(two_task_stream().tasks, torch.float32), lambda p: torch.optim.Adam(p, lr=0.01), [Sluice(strength=strength)], epochs=40
        ).run(two_task_stream()).model  # fmt: skip
        layers = [F.normalize(p.detach(), dim=1) for n, p in model.named_parameters() if n.startswith("heads.towers") and p.ndim == 2]
        return float(sum((layer[:2] @ layer[2:].T).abs().mean() for layer in layers))

    assert cosine(1.0) < 0.25 * cosine(0.0)


def test_where_alpha_and_beta_start() -> None:
    model = transformed(Sluice(own=0.7, last=0.8), smooth((A, B)))
    w = weights(model)
    row = torch.cat([w["heads.stitches.b.a.0"], w["heads.stitches.b.b.0"]], 1)
    torch.testing.assert_close(row, torch.tensor([[0.1, 0.1, 0.7, 0.1], [0.1, 0.1, 0.1, 0.7]], dtype=torch.float64))
    torch.testing.assert_close(w["heads.skips.a.0"], torch.tensor([0.1, 0.1, 0.8], dtype=torch.float64))
    model.grow([C])
    w = weights(model)
    assert not bool(w["heads.stitches.a.c.0"].any())
    torch.testing.assert_close(w["heads.stitches.c.a.0"], torch.full((2, 2), 0.06, dtype=torch.float64))


def test_the_identity_is_the_plain_model_and_one_subspace_is_cross_stitch() -> None:
    plain, one = smooth((A,)), transformed(Sluice(own=1.0, last=1.0), smooth((A,)))
    torch.testing.assert_close(one(X, "a"), plain(X, "a"), rtol=1e-12, atol=1e-12)
    crossed, sluiced = transformed(CrossStitch(per="layer"), smooth()), transformed(Sluice(subspaces=1, skips=False), smooth())
    state = {n: v.view(1, 1) if ".stitches." in n else v for n, v in drifted(crossed).state_dict().items()}
    sluiced.load_state_dict(state)
    for task in ("a", "b"):
        torch.testing.assert_close(sluiced(X, task), crossed(X, task), rtol=1e-12, atol=1e-12)


def test_towers_that_need_different_things_part() -> None:
    hard, parted = errors([]), errors([Sluice()])
    assert sum(parted.values()) < 0.5 * sum(hard.values())


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="stage 1 of the encoder has 4 channels, which do not fall into subspaces=3"):
        transformed(Sluice(subspaces=3), smooth())
    uneven = Model(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), Heads(4, (A, B)))
    with pytest.raises(ConfigurationError, match=r"the stages of the encoder give \(8,\), \(4,\), and skips mix what has one shape"):
        transformed(Sluice(), uneven)
