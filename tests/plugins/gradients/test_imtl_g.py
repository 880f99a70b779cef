from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchjd.aggregation import IMTLGWeighting

from streamlearn import Engine, models
from streamlearn.plugins.gradients.imtl_g import IMTLG, impartial_weights
from tests.core.support import final, probe, sgd, two_task_stream


def jacobian(rows: int, seed: int, columns: int = 8, spread: float = 1.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    lengths = (spread * torch.randn(rows, 1, generator=draw, dtype=torch.float64)).exp()
    return lengths * torch.randn(rows, columns, generator=draw, dtype=torch.float64)


def closed_form(matrix: Tensor) -> Tensor:
    """The paper's solution with α_1 = 1 - Σ α: α_2.. = g_1 Uᵀ (D Uᵀ)⁻¹, D of g_1 - g_k and U of u_1 - u_k."""
    units = matrix / matrix.norm(dim=1, keepdim=True)
    d, u = matrix[:1] - matrix[1:], units[:1] - units[1:]
    rest = matrix[0] @ u.T @ torch.linalg.inv(d @ u.T)
    return torch.cat([1 - rest.sum().unsqueeze(0), rest])


@pytest.mark.parametrize("rows", [2, 3, 5])
def test_it_is_the_papers_closed_form_and_torchjds(rows: int) -> None:
    for seed in range(10):
        matrix = jacobian(rows, seed)
        found, expected = impartial_weights(matrix @ matrix.T), closed_form(matrix)
        sign = float(((matrix / matrix.norm(dim=1, keepdim=True)) @ (expected @ matrix))[0].sign())
        torch.testing.assert_close(found, sign * expected, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(sign * IMTLGWeighting()(matrix @ matrix.T), found, rtol=1e-6, atol=1e-8)


def test_projections_are_equal_and_positive_also_where_torchjd_climbs() -> None:
    climbs = 0
    for seed in range(60):
        matrix = jacobian(4, seed, spread=2.0)
        units = matrix / matrix.norm(dim=1, keepdim=True)
        projections = units @ (impartial_weights(matrix @ matrix.T) @ matrix)
        torch.testing.assert_close(projections, projections[:1].expand(4), rtol=1e-7, atol=1e-9)
        assert float(projections[0]) > 0
        climbs += float((units @ (IMTLGWeighting()(matrix @ matrix.T) @ matrix))[0]) < 0
    assert climbs > 0, "its weights sum to 1 against every loss"


def test_dependent_opposite_and_zero_rows() -> None:
    a, b = jacobian(2, 4)
    for dtype in (torch.float32, torch.float64):
        equal = torch.stack([a, a]).to(dtype)
        assert impartial_weights(equal @ equal.T).tolist() == pytest.approx([0.5, 0.5], rel=1e-5)
        opposite = torch.stack([a, -3 * a]).to(dtype)
        assert impartial_weights(opposite @ opposite.T).tolist() == [0.0, 0.0]
        third = torch.stack([a, b, a + b]).to(dtype)
        found = (impartial_weights(third @ third.T) @ third.double()).to(dtype)
        units = third / third.norm(dim=1, keepdim=True)
        best = torch.linalg.lstsq(units.double(), torch.ones(3, 1, dtype=torch.float64), rcond=1e-6, driver="gelsd").solution.flatten()
        assert float(torch.cosine_similarity(found.double(), best, dim=0)) > 1 - 1e-5
    zero = torch.stack([a, torch.zeros_like(a), b])
    without = torch.stack([a, b])
    assert float(impartial_weights(zero @ zero.T)[1]) == 0
    torch.testing.assert_close(impartial_weights(zero @ zero.T) @ zero, impartial_weights(without @ without.T) @ without)


def test_in_a_run_shared_parameters_get_equal_projections_and_heads_their_own_gradient() -> None:
    def look(gradients: Any, step: Any) -> Any:
        shared = {n: p for n, p in step.parameters.items() if n.startswith("encoder.")}
        losses = step.at().losses
        rows = [torch.cat([g.flatten() for g in torch.autograd.grad(losses[t], list(shared.values()), retain_graph=True)]) for t in "ab"]
        found = torch.cat([gradients[n].flatten() for n in shared])
        first, second = (float(found @ row / row.norm()) for row in rows)
        assert first == pytest.approx(second, rel=1e-3)
        assert first > 0
        torch.testing.assert_close(found, closed_form(torch.stack(rows)) @ torch.stack(rows), rtol=1e-3, atol=1e-5)
        (head,) = torch.autograd.grad(losses["a"], [step.parameters["heads.by_task.a.weight"]])
        torch.testing.assert_close(gradients["heads.by_task.a.weight"], head)
        return gradients

    stream = two_task_stream()
    plugins = [IMTLG(), probe("look", transform_gradients=look)]
    _, events = final(Engine(models.mlp(stream, (8,)), sgd(lr=0.1), plugins, batch_size=12, epochs=15), stream)
    losses = [event["losses"] for event in events if event["event"] == "epoch"]
    assert all(losses[-1][task] < losses[0][task] for task in ("a", "b"))
