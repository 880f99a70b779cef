from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchjd.aggregation import PCGradWeighting

from streamlearn import Engine, models
from streamlearn.errors import CompositionError
from streamlearn.plugins import EWC, MGDA, PCGrad
from streamlearn.plugins.gradients.pcgrad import projected_weights
from tests.core.support import final, probe, same, sgd, two_task_stream


def jacobian(rows: int, seed: int, columns: int = 4) -> Tensor:
    """Rows many of which conflict."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def surgery(matrix: Tensor, random: torch.Generator) -> Tensor:
    """Algorithm 1 of the paper, on the gradients themselves."""
    total = torch.zeros_like(matrix[0])
    for i in range(len(matrix)):
        changed = matrix[i].clone()
        for j in torch.randperm(len(matrix), generator=random).tolist():
            if i != j and float(changed @ matrix[j]) < 0:
                changed = changed - (changed @ matrix[j]) / (matrix[j] @ matrix[j]) * matrix[j]
        total += changed
    return total


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", range(4))
def test_the_weights_are_torchjds_and_give_algorithm_1(rows: int, seed: int) -> None:
    matrix = jacobian(rows, seed)
    weights = projected_weights(matrix @ matrix.T, torch.Generator().manual_seed(seed))
    torch.testing.assert_close(weights @ matrix, surgery(matrix, torch.Generator().manual_seed(seed)))
    torch.manual_seed(seed)  # torchjd draws the same orders, from torch's own stream
    torch.testing.assert_close(weights, PCGradWeighting()(matrix @ matrix.T))


def test_two_rows_by_hand() -> None:
    """g_a = (1, 0), g_b = (-1, 1): both lose what is against the other, (½, ½) and (0, 1)."""
    matrix = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    weights = projected_weights(matrix @ matrix.T, torch.Generator())
    assert (weights @ matrix).tolist() == [0.5, 1.5]


def test_without_a_conflict_it_is_the_sum_and_a_row_of_zeros_harms_nobody() -> None:
    matrix = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert projected_weights(matrix @ matrix.T, torch.Generator()).tolist() == [1.0, 1.0, 1.0]
    tiny = torch.tensor([[1.0, 0.0], [-1e-30, 0.0]])  # its square is no float any more
    assert bool(projected_weights(tiny @ tiny.T, torch.Generator()).isfinite().all())


def test_the_order_matters_and_is_drawn() -> None:
    matrix = jacobian(4, 1)
    found = {tuple(projected_weights(matrix @ matrix.T, torch.Generator().manual_seed(s)).tolist()) for s in range(10)}
    assert len(found) > 1


def run_with(*plugins: Any, **options: Any) -> tuple[dict[str, Tensor], list[Any]]:
    stream = two_task_stream()
    return final(Engine(models.mlp(stream, (8,)), sgd(), list(plugins), **({"batch_size": 6, "seed": 2} | options)), stream)


def test_in_a_run_shared_parameters_get_the_projected_sum_and_heads_their_own_gradient() -> None:
    checked: list[float] = []

    def look(gradients: Any, step: Any) -> Any:
        shared = {n: p for n, p in step.parameters.items() if n.startswith("encoder.")}
        heads = {n: p for n, p in step.parameters.items() if n not in shared}
        losses = step.at().losses
        rows = [torch.cat([g.flatten() for g in torch.autograd.grad(f * losses[t], list(shared.values()), retain_graph=True)])
                for t, f in (("a", 2.0), ("b", -1.5))]  # fmt: skip
        a, b = rows
        product = a @ b
        checked.append(float(product))
        if product < 0:
            a, b = a - product / (b @ b) * b, b - product / (a @ a) * a
        torch.testing.assert_close(torch.cat([gradients[n].flatten() for n in shared]), a + b, rtol=1e-4, atol=1e-6)
        plain = torch.autograd.grad(2.0 * losses["a"] - 1.5 * losses["b"], list(heads.values()))
        for name, expected in zip(heads, plain, strict=True):
            torch.testing.assert_close(gradients[name], expected)
        return gradients

    weigh = probe("weigh", provide_weighting=lambda losses: 2.0 * losses["a"] - 1.5 * losses["b"])
    run_with(PCGrad(), weigh, probe("look", transform_gradients=look), epochs=2)
    assert min(checked) < 0, "there was a conflict"


def test_it_draws_from_its_own_stream_alone() -> None:
    """Same seed, same weights, whatever others draw; another seed gives other orders."""
    noise = probe("noise", before_step=lambda: torch.rand(3), transform_gradients=_draws)

    def split(supervision: Any) -> Any:
        halves = []
        for record in supervision:
            n = len(record.target) // 2
            for number, rows in enumerate((slice(0, n), slice(n, 2 * n))):
                sign = -1.0 if number else 1.0
                halves.append(record.replace(row=f"{record.row}/{number}", outputs=record.outputs[rows], target=record.target[rows],
                                             rows=rows, scale=sign))  # fmt: skip
        return tuple(halves)

    four = probe("four", transform_supervision=split)
    usual, _ = run_with(PCGrad(), four)
    assert same(run_with(PCGrad(), four, noise)[0], usual)
    assert not same(run_with(PCGrad(name="other"), four)[0], usual), "its stream is its name's"


def _draws(gradients: Any) -> Any:
    torch.rand(2)
    return gradients


def test_two_combiners_are_refused_and_a_penalty_is_welcome() -> None:
    with pytest.raises(CompositionError, match="2 plugins claim 'provide_gradient_combination'"):
        run_with(PCGrad(), MGDA())
    found, _ = run_with(PCGrad(), EWC(strength=1.0))
    assert all(bool(value.isfinite().all()) for value in found.values())
