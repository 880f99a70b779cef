from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from streamlearn import Engine, models
from streamlearn.errors import ConfigurationError
from streamlearn.plugins.sharing.task_routing import TaskRouting, route
from tests.core.support import final, probe, separate_task_stream, sgd, two_task_stream
from tests.plugins.sharing.architectures import A, B, C, convolutional, drifted, smooth, transformed, weights

X = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_the_forward_by_hand() -> None:
    model = drifted(transformed(TaskRouting(), smooth()))
    w = weights(model)
    for t in ("a", "b"):
        x = X
        for stage in range(3):
            mask = route(4, 0.5, 5, t, stage)
            x = torch.tanh(F.linear(x, w[f"encoder.{stage}.0.weight"], w[f"encoder.{stage}.0.bias"]))
            for unit in range(4):
                x[:, unit] = x[:, unit] if mask[unit] else 0.0
        expected = F.linear(x, w[f"heads.by_task.{t}.weight"], w[f"heads.by_task.{t}.bias"])
        torch.testing.assert_close(model(X, t).detach(), expected, rtol=1e-9, atol=1e-12)


def test_channels_of_maps_are_closed_whole() -> None:
    model = transformed(TaskRouting(), convolutional(), (1, 6, 6))
    x = torch.randn(3, 1, 6, 6, dtype=torch.float64)
    mask = route(4, 0.5, 5, "a", 1)
    (gradient,) = torch.autograd.grad(model(x, "a").sum(), model.heads.by_task["a"].weight)
    assert bool((gradient[:, mask == 0] == 0).all())
    assert bool((gradient[:, mask == 1] != 0).all())


def test_everything_open_is_hard_sharing() -> None:
    stream = two_task_stream()
    plain, _ = final(Engine(models.mlp(stream, (7, 5)), sgd(), batch_size=6, epochs=2), stream)
    routed, _ = final(Engine(models.mlp(stream, (7, 5)), sgd(), [TaskRouting(ratio=1.0)], batch_size=6, epochs=2), stream)
    for stage, place in enumerate(("0", "2")):
        for part in ("weight", "bias"):
            torch.testing.assert_close(routed[f"encoder.{stage}.0.{part}"], plain[f"encoder.{place}.{part}"], rtol=1e-5, atol=1e-7)


def test_masks_are_a_function_of_seed_task_and_stage() -> None:
    assert torch.equal(route(40, 0.3, 1, "a", 0), route(40, 0.3, 1, "a", 0))
    others = [route(40, 0.3, 2, "a", 0), route(40, 0.3, 1, "b", 0), route(40, 0.3, 1, "a", 1)]
    assert not any(torch.equal(route(40, 0.3, 1, "a", 0), other) for other in others)
    assert all(int(mask.sum()) == 12 for mask in others)
    assert int(route(3, 0.01, 1, "a", 0).sum()) == 1
    late = transformed(TaskRouting(), smooth((A,)))
    late.grow([B, C])
    early = transformed(TaskRouting(), smooth((C, B, A)))
    for task in ("a", "b", "c"):
        found, expected = (m.heads.masks_of(task, torch.device("cpu")) for m in (late, early))
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_each_unit_is_as_likely_and_two_tasks_share_as_many_as_said() -> None:
    masks = torch.stack([route(10, 0.6, seed, "a", 0) for seed in range(2000)])
    others = torch.stack([route(10, 0.6, seed, "b", 0) for seed in range(2000)])
    assert float((masks.mean(0) - 0.6).abs().max()) < 0.05  # 4.5 standard deviations
    assert abs(float((masks * others).mean()) - 0.36) < 0.02


def test_a_closed_unit_learns_nothing_from_a_task() -> None:
    """The authors' code masks past the graph, and lets it learn."""
    stream = separate_task_stream(1)
    start: dict[str, torch.Tensor] = {}
    still = sgd(momentum=0.0, weight_decay=0.0)

    def only_b(losses: Any) -> torch.Tensor:
        return losses["b"] if "b" in losses else 0.0 * sum(losses.values())

    begin = probe("begin", before_run=lambda run: start.update({n: p.detach().clone() for n, p in run.model.named_parameters()}))
    weigh = probe("weigh", provide_weighting=only_b)
    engine = Engine(models.mlp(stream, (12,)), still, [TaskRouting(), begin, weigh], batch_size=8, epochs=3, seed=4)
    ended, _ = final(engine, stream)
    mask = route(12, 0.5, 4, "b", 0)
    moved = (ended["encoder.0.0.weight"] != start["encoder.0.0.weight"]).any(1)
    assert not bool(moved[mask == 0].any())
    assert bool(moved[mask == 1].any())


def test_ratios_outside_are_refused() -> None:
    for ratio in (0.0, 1.1):
        with pytest.raises(ConfigurationError, match="option 'ratio'"):
            TaskRouting(ratio=ratio)
