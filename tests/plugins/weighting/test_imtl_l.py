from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchjd import scalarization as torchjd

from streamlearn import Engine, models
from streamlearn.errors import ConfigurationError
from streamlearn.plugins.weighting.imtl_l import IMTLL, impartially_scaled
from streamlearn.plugins.weighting.uncertainty_weighting import uncertainty_weighted
from tests.core.support import Spy, growing_stream, probe, sgd, two_task_stream
from tests.plugins.weighting.observed import drawn_start, loaded, split, trained_by_hand, watching


def scales_of(run: Any) -> dict[str, float]:
    return {n.removeprefix("imtl_l/"): float(m.value.detach()) for n, m in run.modules.items() if n.startswith("imtl_l/")}


def drawn(seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    losses, scales = torch.rand(3, generator=draw, dtype=torch.float64), torch.randn(3, generator=draw, dtype=torch.float64)
    named = [dict(zip("abc", (v.clone().requires_grad_() for v in values), strict=True)) for values in (losses, scales)]
    return named[0], named[1]


def test_the_formula_is_torchjds() -> None:
    losses, scales = drawn()
    oracle = torchjd.IMTLL(3).double()
    with torch.no_grad():
        oracle.log_scale.copy_(torch.stack(list(scales.values())))
    stacked = torch.stack([loss.detach() for loss in losses.values()]).requires_grad_()
    value = impartially_scaled(losses, scales)
    torch.testing.assert_close(value, oracle(stacked))
    value.backward()
    oracle(stacked).backward()
    torch.testing.assert_close(torch.stack([scales[n].grad for n in "abc"]), oracle.log_scale.grad)
    torch.testing.assert_close(torch.stack([losses[n].grad for n in "abc"]), stacked.grad)


def test_it_is_twice_uncertainty_weighting_at_the_negated_parameter() -> None:
    losses, scales = drawn(1)
    other = uncertainty_weighted(losses, {name: -scale for name, scale in scales.items()})
    torch.testing.assert_close(impartially_scaled(losses, scales), 2 * other)


def test_at_its_optimum_every_scaled_loss_is_1() -> None:
    losses = {"a": torch.tensor(4.0, dtype=torch.float64), "b": torch.tensor(0.25, dtype=torch.float64)}
    s = {name: torch.zeros((), dtype=torch.float64, requires_grad=True) for name in losses}
    optimizer = torch.optim.SGD(list(s.values()), lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        impartially_scaled(losses, s).backward()
        optimizer.step()
    assert [float(torch.exp(s[n]).detach() * losses[n]) for n in losses] == pytest.approx([1, 1], abs=1e-6)


def test_a_run_is_a_plain_loop_with_torchjds() -> None:
    """Model and scales, over two epochs: momentum, weight decay on the model alone."""
    stream = two_task_stream(torch.float64)
    start = drawn_start(stream)
    spy = Spy()
    plugins = [IMTLL(initial=0.3, learning_rate=0.2), spy]
    result = Engine(lambda: loaded(stream, start), sgd(), plugins, batch_size=8, epochs=2, seed=4).run(stream)

    oracle = torchjd.IMTLL(2).double()
    nn.init.constant_(oracle.log_scale, 0.3)
    plain = trained_by_hand(stream, start, oracle, oracle.log_scale)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value, rtol=1e-9, atol=1e-12)
    assert list(scales_of(spy.run).values()) == pytest.approx(oracle.log_scale.tolist(), rel=1e-9)
    assert all(abs(s - 0.3) > 0.05 for s in oracle.log_scale.tolist()), "they have been learned"


def test_losses_of_any_scale_come_to_one_size() -> None:
    """The loss of "b" counted 1,000-fold; the model stands still, so that the scales can be seen to settle."""
    stream, spy, losses = two_task_stream(torch.float64), Spy(), list[dict[str, float]]()
    loud = probe("loud", transform_supervision=lambda supervision: tuple(
        r.replace(scale=1000.0 if r.task == "b" else 1.0) for r in supervision))  # fmt: skip
    engine = Engine(
        models.mlp(stream, (8,)).double(), sgd(lr=0.0, momentum=0.0, weight_decay=0.0),
        [IMTLL(learning_rate=0.2, initial=-4.0), loud, watching([], losses), spy], batch_size=24, epochs=150,
    )  # fmt: skip
    engine.run(stream)
    found = scales_of(spy.run)
    assert losses[-1]["b"] > 300 * losses[-1]["a"]
    assert {task: math.exp(found[task]) * losses[-1][task] for task in found} == pytest.approx({"a": 1.0, "b": 1.0}, rel=1e-6)


def test_tasks_that_arrive_later_get_theirs_and_absent_ones_stay() -> None:
    seen: list[dict[str, float]] = []
    watch, stream = probe("watch", after_experience=lambda run: seen.append(scales_of(run))), growing_stream()
    Engine(models.mlp(stream, (8,)), sgd(), [IMTLL(initial=0.5), watch], batch_size=8, epochs=2).run(stream)
    assert [list(found) for found in seen] == [["t"], ["t"], ["t"], ["t", "other"]]
    assert seen[0]["t"] != seen[1]["t"] != seen[2]["t"]
    assert seen[3]["t"] == seen[2]["t"], "no row of it, no update: not even by momentum"
    assert seen[3]["other"] != 0.5


def test_parts_of_a_task_share_its_scale() -> None:
    weights: list[dict[str, float]] = []
    spy, stream = Spy(), two_task_stream()
    Engine(
        models.mlp(stream, (8,)),
        sgd(),
        [IMTLL(initial=0.4), probe("split", transform_supervision=split), watching(weights), spy],
        batch_size=8,
    ).run(stream)
    assert list(scales_of(spy.run)) == ["a", "b"]
    assert weights[0] == pytest.approx(dict.fromkeys(("a@x", "a/memory", "strange"), math.exp(0.4)), rel=1e-6)
    assert weights[-1]["a@x"] == weights[-1]["a/memory"] != weights[-1]["strange"]


@pytest.mark.parametrize("options", [{"initial": float("nan")}, {"learning_rate": 0.0}, {"learning_rate": -1.0}])
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=f"option '{next(iter(options))}'"):
        IMTLL(**options)
