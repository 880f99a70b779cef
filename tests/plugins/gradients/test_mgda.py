from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from streamlearn import Engine, models
from streamlearn.core.solvers import min_norm_weights
from streamlearn.plugins import MGDA
from tests.core.support import final, probe, sgd, two_task_stream


def closed_form(a: Tensor, b: Tensor) -> Tensor:
    """The point of the segment from a to b that is nearest to zero (Sener & Koltun 2018, eq. 5 and figure 1)."""
    share = ((b - a) @ b / (a - b).square().sum()).clamp(0, 1)
    return share * a + (1 - share) * b


CASES = {
    "inside": ([1.0, 0.0], [0.0, 2.0]),
    "opposed": ([1.0, 0.0], [-3.0, 0.0]),
    "a is nearest": ([1.0, 0.0], [5.0, 1.0]),
    "b is nearest": ([5.0, 1.0], [1.0, 0.0]),
    "one is zero": ([0.0, 0.0], [1.0, 2.0]),
    "both are zero": ([0.0, 0.0], [0.0, 0.0]),
    "equal": ([1.0, 2.0], [1.0, 2.0]),
}


@pytest.mark.parametrize("case", CASES)
def test_two_rows_have_a_closed_form(case: str) -> None:
    matrix = torch.tensor(CASES[case], dtype=torch.float64)
    weights = min_norm_weights(matrix @ matrix.T)
    assert float(weights.sum()) == pytest.approx(1)
    assert bool((weights >= 0).all())
    expected = matrix[0] if bool((matrix[0] == matrix[1]).all()) else closed_form(*matrix)
    torch.testing.assert_close(weights @ matrix, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_more_rows_have_the_minimum_that_scipy_finds(seed: int) -> None:
    matrix = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.4
    gramian = (matrix @ matrix.T).numpy()
    found = minimize(
        lambda w: w @ gramian @ w, [0.2] * 5, jac=lambda w: 2 * gramian @ w, bounds=[(0, 1)] * 5, method="SLSQP",
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, options={"ftol": 1e-12},
    )  # fmt: skip
    assert float((min_norm_weights(torch.from_numpy(gramian)) @ matrix).square().sum()) == pytest.approx(found.fun, rel=1e-6)


def test_in_a_run_shared_parameters_get_the_shortest_combination_which_descends_on_both_losses() -> None:
    checked: list[float] = []

    def look(gradients: Any, step: Any) -> Any:
        shared = {n: p for n, p in step.parameters.items() if n.startswith("encoder.")}
        losses = step.at().losses
        rows = [torch.cat([g.flatten() for g in torch.autograd.grad(losses[t], list(shared.values()), retain_graph=True)]) for t in "ab"]
        found = torch.cat([gradients[n].flatten() for n in shared])
        torch.testing.assert_close(found, closed_form(*rows), rtol=1e-4, atol=1e-6)
        assert float(found.norm()) <= min(float(row.norm()) for row in rows) * (1 + 1e-5)
        assert all(float(found @ row) >= -1e-7 for row in rows)
        (head,) = torch.autograd.grad(losses["a"], [step.parameters["heads.by_task.a.weight"]])
        torch.testing.assert_close(gradients["heads.by_task.a.weight"], head)
        checked.append(float(found.norm()))
        return gradients

    stream = two_task_stream()
    Engine(models.mlp(stream, (8,)), sgd(), [MGDA(), probe("look", transform_gradients=look)], batch_size=6, epochs=2).run(stream)
    assert len(checked) == 8
    assert min(checked) > 0


def test_both_losses_fall() -> None:
    stream = two_task_stream()
    _, events = final(Engine(models.mlp(stream, (8,)), sgd(lr=0.2, weight_decay=0.0), [MGDA()], batch_size=24, epochs=30), stream)
    losses = [event["losses"] for event in events if event["event"] == "epoch"]
    assert all(losses[-1][task] < 0.5 * losses[0][task] for task in ("a", "b"))


def test_a_row_of_zeros_stops_what_is_shared_and_nothing_else() -> None:
    stream = two_task_stream()
    model = models.mlp(stream, (8,))
    start = {}
    watch = probe(
        "watch", before_run=lambda run: start.update(run.snapshot()), provide_weighting=lambda losses: losses["a"] + 0.0 * losses["b"]
    )
    found, _ = final(Engine(model, sgd(weight_decay=0.0), [MGDA(), watch], batch_size=6), stream)
    moved = {name for name, value in start.items() if not torch.equal(found[name], value)}
    assert moved == {"heads.by_task.a.weight", "heads.by_task.a.bias"}


def test_one_row_is_taken_as_it_is() -> None:
    assert min_norm_weights(torch.tensor([[4.0]])).tolist() == [1.0]
