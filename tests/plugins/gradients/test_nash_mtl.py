from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from streamlearn import Engine, models
from streamlearn.core.solvers import min_norm_weights
from streamlearn.errors import ConfigurationError, TrainingError
from streamlearn.plugins.gradients import nash_mtl
from streamlearn.plugins.gradients.nash_mtl import NashMTL, bargaining_weights
from tests.core.support import final, probe, same, sgd, two_task_stream


def jacobian(rows: int, seed: int, columns: int = 12) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    lengths = (2 * torch.randn(rows, 1, generator=draw, dtype=torch.float64)).exp()
    return lengths * torch.randn(rows, columns, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(6))
def test_two_rows_have_a_closed_form(seed: int) -> None:
    matrix = jacobian(2, seed)
    cosine = torch.cosine_similarity(matrix[0], matrix[1], dim=0)
    torch.testing.assert_close(bargaining_weights(matrix @ matrix.T), 1 / (matrix.norm(dim=1) * (1 + cosine).sqrt()), rtol=1e-10, atol=0)


@pytest.mark.parametrize("angle", [1e-2, 1e-4])
def test_two_rows_that_are_almost_opposite(angle: float) -> None:
    matrix = torch.tensor([[1.0, 0.0], [-2.0, 2.0 * angle]], dtype=torch.float64)
    cosine = -1 / (1 + angle**2) ** 0.5
    found = bargaining_weights(matrix @ matrix.T)
    torch.testing.assert_close(found, 1 / (matrix.norm(dim=1) * (1 + cosine) ** 0.5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rows", [1, 3, 6, 12])
def test_more_rows_satisfy_the_equation_and_maximise_the_product_of_utilities(rows: int) -> None:
    for seed in range(5):
        matrix = jacobian(rows, seed, columns=20)
        weights = bargaining_weights(matrix @ matrix.T)
        assert bool((weights > 0).all())
        torch.testing.assert_close(weights * (matrix @ (weights @ matrix)), torch.ones(rows, dtype=torch.float64), rtol=1e-9, atol=1e-9)
        assert float((weights @ matrix).norm()) == pytest.approx(rows**0.5)
    units = (matrix / matrix.norm(dim=1, keepdim=True)).numpy()

    def lost(d: Any) -> float:
        gains = units @ (d / (d @ d) ** 0.5)
        return float(-sum(torch.tensor(gains).clamp(min=1e-12).log()))

    start = (weights @ matrix).numpy()
    better = minimize(lost, start + 0.01 * jacobian(1, 9, 20)[0].numpy(), method="BFGS")
    assert lost(start) <= better.fun + 1e-7


def test_where_no_direction_serves_all_the_weights_are_zero_and_never_equal() -> None:
    for dtype in (torch.float32, torch.float64):
        a, b = jacobian(2, 1, 500).to(dtype)
        for matrix in (torch.stack([a, -3 * a]), torch.stack([a, b, -a - b]), torch.stack([a, b, -a])):
            assert bargaining_weights(matrix @ matrix.T).tolist() == [0.0] * len(matrix)
    assert bargaining_weights(torch.zeros(2, 2)).tolist() == [0.0, 0.0]


def test_a_row_of_zeros_does_not_bargain() -> None:
    matrix = jacobian(3, 2)
    with_zero = torch.cat([matrix[:1], torch.zeros(1, 12, dtype=torch.float64), matrix[1:]])
    found = bargaining_weights(with_zero @ with_zero.T)
    assert float(found[1]) == 0
    torch.testing.assert_close(found[[0, 2, 3]], bargaining_weights(matrix @ matrix.T))


def test_a_solver_that_does_not_end_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nash_mtl, "range", lambda count: range(1), raising=False)
    stream = two_task_stream()
    with pytest.raises(TrainingError, match="nash_mtl found no equilibrium of 2 gradients with the cosines"):
        Engine(models.mlp(stream, (8,)), sgd(), [NashMTL()], batch_size=6).run(stream)


def seen(plugin: NashMTL, epochs: int = 1, shared_only: bool = True) -> list[tuple[Tensor, Tensor]]:
    """(gradient of what is shared, rows) of each step."""
    found: list[tuple[Tensor, Tensor]] = []

    def look(gradients: Any, step: Any) -> Any:
        shared = {n: p for n, p in step.parameters.items() if n.startswith("encoder.")}
        losses = step.at().losses
        rows = [torch.cat([g.flatten() for g in torch.autograd.grad(losses[t], list(shared.values()), retain_graph=True)]) for t in "ab"]
        found.append((torch.cat([gradients[n].flatten() for n in shared]), torch.stack(rows)))
        (head,) = torch.autograd.grad(losses["b"], [step.parameters["heads.by_task.b.weight"]])
        torch.testing.assert_close(gradients["heads.by_task.b.weight"], head)
        return gradients

    stream = two_task_stream()
    engine = Engine(models.mlp(stream, (8,)), sgd(), [plugin, probe("look", transform_gradients=look)], batch_size=4, epochs=epochs)
    engine.run(stream)
    return found


@pytest.mark.parametrize(("max_norm", "length"), [(None, 2**0.5), (1.0, 1.0), (0.3, 0.3), (5.0, 2**0.5)])
def test_in_a_run_the_angle_is_halved_and_the_length_cut(max_norm: float | None, length: float) -> None:
    for gradient, rows in seen(NashMTL(max_norm=max_norm)):
        assert float(gradient.norm()) == pytest.approx(length, rel=1e-4)
        bisector = (rows / rows.norm(dim=1, keepdim=True)).sum(0)
        assert float(torch.cosine_similarity(gradient, bisector, dim=0)) > 1 - 1e-5


def test_weights_are_used_for_some_steps() -> None:
    steps = seen(NashMTL(every=3, max_norm=None))
    assert len(steps) == 6
    for number, (gradient, rows) in enumerate(steps):
        found_on = steps[number - number % 3][1].double()
        weights = bargaining_weights(found_on @ found_on.T)
        torch.testing.assert_close(gradient.double(), weights @ rows.double(), rtol=1e-3, atol=1e-4)


def test_both_losses_fall() -> None:
    stream = two_task_stream()
    engine = Engine(models.mlp(stream, (8,)), sgd(lr=0.05, weight_decay=0.0), [NashMTL()], batch_size=24, epochs=40)
    _, events = final(engine, stream)
    losses = [event["losses"] for event in events if event["event"] == "epoch"]
    assert all(losses[-1][task] < 0.5 * losses[0][task] for task in ("a", "b"))


def test_no_factor_of_a_loss_changes_what_is_shared() -> None:
    stream = two_task_stream()
    weigh = probe("weigh", provide_weighting=lambda losses: 100.0 * losses["a"] + losses["b"])
    found = [final(Engine(models.mlp(stream, (8,)), sgd(), [NashMTL(), *more], batch_size=24), stream)[0] for more in ([], [weigh])]
    torch.testing.assert_close(found[0]["encoder.0.weight"], found[1]["encoder.0.weight"], rtol=1e-4, atol=1e-6)
    assert not same(found[0]["heads.by_task.a.weight"], found[1]["heads.by_task.a.weight"])


def test_the_shortest_combination_bounds_what_counts_as_none() -> None:
    """Zero weights are given only where a convex combination of directions is all but zero."""
    for seed in range(40):
        matrix = jacobian(4, seed, columns=3)
        units = matrix / matrix.norm(dim=1, keepdim=True)
        shortest = float((min_norm_weights(units @ units.T) @ units).norm())
        assert (float(bargaining_weights(matrix @ matrix.T).sum()) == 0) == (shortest < 1e-6)


@pytest.mark.parametrize("options", [{"every": 0}, {"max_norm": 0.0}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"option '{next(iter(options))}'"):
        NashMTL(**options)
