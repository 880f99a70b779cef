from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchjd.aggregation import AlignedMTL as TorchJDAlignedMTL

from streamlearn import Engine, models
from streamlearn.errors import ConfigurationError
from streamlearn.plugins.gradients.aligned_mtl import AlignedMTL, aligned_weights
from tests.core.support import final, probe, sgd, two_task_stream


def jacobian(rows: int, seed: int, columns: int = 8) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randn(rows, 1, generator=draw, dtype=torch.float64).exp()
    return lengths * torch.randn(rows, columns, generator=draw, dtype=torch.float64)


def aligned(matrix: Tensor, scale: str) -> Tensor:
    """Ĵ from the singular value decomposition of J: its polar factor, times one of its singular values."""
    left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    size = {"min": sizes.min(), "median": sizes.square().median().sqrt(), "rmse": sizes.square().mean().sqrt()}[scale]
    return size * left @ right


@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_it_is_the_polar_factor_and_torchjds(rows: int, scale: Any) -> None:
    for seed in range(5):
        matrix = jacobian(rows, seed)
        equal = torch.full((rows,), 1 / rows, dtype=torch.float64)
        found = aligned_weights(matrix @ matrix.T, equal, scale) @ matrix
        torch.testing.assert_close(found, equal @ aligned(matrix, scale), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(found, TorchJDAlignedMTL(scale_mode=scale)(matrix), rtol=1e-6, atol=1e-8)


def test_aligned_rows_are_orthogonal_equally_long_and_descend() -> None:
    matrix = jacobian(4, 3)
    rows = torch.stack([aligned_weights(matrix @ matrix.T, unit) for unit in torch.eye(4, dtype=torch.float64)]) @ matrix
    smallest = torch.linalg.svdvals(matrix)[-1]
    torch.testing.assert_close(rows @ rows.T, smallest**2 * torch.eye(4, dtype=torch.float64), rtol=1e-6, atol=1e-9)
    assert bool((rows @ (aligned_weights(matrix @ matrix.T, torch.ones(4)) @ matrix) > 0).all())


def test_a_dependent_row_is_left_out_with_its_component() -> None:
    """Of g and 2 g there is one component, of length √5 ‖g‖; a row of zeros has none."""
    line = torch.tensor([[1.0, 2.0, 2.0]])
    for dtype in (torch.float32, torch.float64):
        matrix = torch.cat([line, 2 * line, 0 * line]).to(dtype)
        found = aligned_weights(matrix @ matrix.T, torch.ones(3)) @ matrix
        torch.testing.assert_close(found, 3 * line[0].to(dtype), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "importance"),
    [
        ({}, [0.5, 0.5]),
        ({"reduction": "sum"}, [1.0, 1.0]),
        ({"preference": {"a": 3.0}}, [0.75, 0.25]),
        ({"preference": {"a": 3.0, "gone": 9.0}, "reduction": "sum", "scale": "rmse"}, [1.5, 0.5]),
    ],
)
def test_in_a_run(options: dict[str, Any], importance: list[float]) -> None:
    def look(gradients: Any, step: Any) -> Any:
        shared = {n: p for n, p in step.parameters.items() if n.startswith("encoder.")}
        losses = step.at().losses
        rows = [torch.cat([g.flatten() for g in torch.autograd.grad(losses[t], list(shared.values()), retain_graph=True)]) for t in "ab"]
        expected = torch.tensor(importance) @ aligned(torch.stack(rows), options.get("scale", "min"))
        found = torch.cat([gradients[n].flatten() for n in shared])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.norm()))
        (head,) = torch.autograd.grad(losses["a"], [step.parameters["heads.by_task.a.weight"]])
        torch.testing.assert_close(gradients["heads.by_task.a.weight"], head)
        return gradients

    stream = two_task_stream()
    final(Engine(models.mlp(stream, (8,)), sgd(), [AlignedMTL(**options), probe("look", transform_gradients=look)], batch_size=6), stream)


@pytest.mark.parametrize("options", [{"scale": "max"}, {"reduction": "none"}, {"preference": {"a": -1.0}}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"option '{next(iter(options))}"):
        AlignedMTL(**options)


def test_a_preference_for_nobody_is_refused() -> None:
    stream = two_task_stream()
    with pytest.raises(ConfigurationError, match=r"preference= gives 0 to every row of a batch \(a, b\)"):
        Engine(models.mlp(stream, (8,)), sgd(), [AlignedMTL(preference={"a": 0.0, "b": 0.0})], batch_size=6).run(stream)
