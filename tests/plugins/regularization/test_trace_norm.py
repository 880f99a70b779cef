from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from streamlearn import Engine, streams
from streamlearn.errors import ConfigurationError, DivergenceError
from streamlearn.models import Heads, Model, mlp
from streamlearn.plugins import EWC, MGDA, PCGrad, Replay, UncertaintyWeighting
from streamlearn.plugins.regularization.trace_norm import TraceNorm, nuclear_norm, unfoldings
from streamlearn.plugins.sharing.separate_networks import SeparateNetworks
from streamlearn.streams import Task
from streamlearn.streams.data import Data, JoinedData, Target
from streamlearn.streams.sources import TensorSource
from tests.core.support import blobs, probe, resumes_bit_for_bit, separate_task_stream, sgd, stream_of, two_task_stream


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (6, 1)])
def test_the_norm_is_torchs_and_its_gradient_that_of_full_rank(shape: tuple[int, int]) -> None:
    matrix = drawn(*shape).requires_grad_()
    found = nuclear_norm(matrix)
    torch.testing.assert_close(found, torch.linalg.matrix_norm(matrix, "nuc"))
    u, _, v = torch.linalg.svd(matrix.detach(), full_matrices=False)
    torch.testing.assert_close(torch.autograd.grad(found, matrix)[0], u @ v)


def test_where_the_rank_is_not_full_the_shortest_subgradient_is_taken() -> None:
    """U_r V_rᵀ; torch's own has arbitrary directions for the singular values of 0 besides, each as long."""
    matrix = (drawn(6, 2) @ drawn(2, 4, seed=1)).requires_grad_()
    (gradient,) = torch.autograd.grad(nuclear_norm(matrix), matrix)
    u, values, v = torch.linalg.svd(matrix.detach())
    torch.testing.assert_close(gradient, u[:, :2] @ v[:2])
    assert float(values[2:].max()) < 1e-12
    (plain,) = torch.autograd.grad(torch.linalg.matrix_norm(matrix, "nuc"), matrix)
    assert float(plain.norm()) == pytest.approx(2.0)
    assert float(gradient.norm()) == pytest.approx(2**0.5)
    other = drawn(6, 4, seed=3)
    assert float(torch.linalg.matrix_norm(other, "nuc")) >= float((nuclear_norm(matrix) + (gradient * (other - matrix)).sum()).detach()), (
        "subgradient"
    )
    zeros = torch.zeros(3, 2, requires_grad=True)
    assert not torch.autograd.grad(nuclear_norm(zeros), zeros)[0].any()
    assert bool(nuclear_norm(torch.tensor([[float("inf"), 1.0]])).isnan())


def test_it_can_be_differentiated_twice() -> None:
    assert torch.autograd.gradgradcheck(nuclear_norm, drawn(4, 3).requires_grad_())


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5), (4, 3)])
def test_unfoldings_against_numpy(shape: tuple[int, ...]) -> None:
    tensor = drawn(*shape)
    array, axes = tensor.numpy(), len(shape)

    def norms(matrices: Any) -> list[float]:
        return [float(np.linalg.svd(m, compute_uv=False).sum()) for m in matrices]

    expected = {
        "last_axis": [np.moveaxis(array, -1, 0).reshape(shape[-1], -1)],
        "tucker": [np.moveaxis(array, axis, 0).reshape(shape[axis], -1) for axis in range(axes)],
        "tensor_train": [array.reshape(int(np.prod(shape[:j])), -1) for j in range(1, axes)],
    }
    for unfolding, matrices in expected.items():
        found = unfoldings(tensor, unfolding)  # type: ignore[arg-type]
        assert [float(nuclear_norm(m)) for m in found] == pytest.approx(norms(matrices), rel=1e-12)


@pytest.mark.parametrize("unfolding", ["last_axis", "tucker", "tensor_train"])
def test_the_term_of_a_run_against_numpy_with_the_axes_of_the_paper(unfolding: Any) -> None:
    """Positions, inputs, outputs, tasks: of a convolution and of a linear layer, not of biases."""
    source = TensorSource(drawn(24, 1, 4, 4), {"y": torch.arange(24) % 6}, "images")
    tasks = (Task("a", size=6), Task("b", size=6), Task("c", size=6))
    stream = stream_of([(Data(source, torch.arange(24), tasks, {t.name: Target("y") for t in tasks}), tasks)], tasks, features=16)
    encoder = nn.Sequential(nn.Conv2d(1, 3, (2, 3)), nn.Flatten(), nn.Linear(18, 5))
    seen: list[Any] = []
    look = probe("look", before_step=lambda step: seen.append((step.run.snapshot(), float(step.terms["trace_norm"].detach()))))
    model = Model(encoder, Heads(5, tasks)).double()
    Engine(model, sgd(), [SeparateNetworks(), TraceNorm(strength=0.3, unfolding=unfolding), look], batch_size=24).run(stream)
    weights, term = seen[0]
    total = 0.0
    for layer, order in (("0", (2, 3, 1, 0)), ("2", (1, 0))):
        stack = np.stack([np.transpose(weights[f"heads.networks.{t.name}.{layer}.weight"].numpy(), order) for t in tasks], -1)
        total += sum(float(np.linalg.norm(m.numpy(), "nuc")) for m in unfoldings(torch.from_numpy(stack), unfolding))
    assert term == pytest.approx(0.3 * total, rel=1e-10)


def test_it_ends_at_soft_thresholded_singular_values() -> None:
    """With an orthonormal design, the exact solution of trace-norm regularised regression: Σ ↦ (Σ - λ/2)₊."""
    tasks, strength = 4, 0.8
    ones = torch.ones(24, 1, dtype=torch.float64)
    x = torch.linalg.qr(torch.cat([ones, drawn(24, 5)], 1)).Q[:, 1:] * 24**0.5  # centred: biases are apart
    y = x @ (drawn(5, 2, seed=1) @ drawn(2, tasks, seed=2)) + 0.1 * drawn(24, tasks, seed=3)
    columns = {f"t{k}": y[:, k : k + 1] for k in range(tasks)}
    stream = streams.multitask((x, columns), test=(x[:5] + 1, {name: c[:5] for name, c in columns.items()}))
    u, values, v = np.linalg.svd((x.T @ y / 24).numpy(), full_matrices=False)
    expected = u * np.maximum(values - strength / 2, 0) @ v
    rank = int((values > strength / 2).sum())
    assert rank < tasks == int((values > 1e-6).sum())
    model = Model(nn.Identity(), Heads(5, stream.tasks)).double()
    plugins = [TraceNorm(strength=strength)]
    engine = Engine(model, lambda p: torch.optim.SGD(p, lr=0.003), plugins, batch_size=24, epochs=2000, evaluate="never")
    trained: Any = engine.run(stream).model
    found = torch.stack([head.weight[0] for head in trained.heads.by_task.values()], 1).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=5e-3)
    assert (np.linalg.svd(found, compute_uv=False)[rank:] < 5e-3).all()


def test_networks_of_related_tasks_come_to_have_weights_of_rank_one() -> None:
    """Three tasks ask for the same classes of points of the same kind; nothing is lost."""
    stream = related()

    def run(strength: float) -> tuple[float, float]:
        plugins = [SeparateNetworks(start="given"), TraceNorm(strength=strength)]
        engine = Engine(mlp(stream, (12,)), lambda p: torch.optim.SGD(p, lr=0.1), plugins, batch_size=32, epochs=30)
        result = engine.run(stream)
        model: Any = result.model
        values = torch.linalg.svdvals(torch.stack([model.heads.of(t.name)[0].weight.detach().flatten() for t in stream.tasks], 1))
        return float(values[1] / values[0]), float(result.metrics["average_accuracy"])

    (alone, usual), (low, accuracy) = run(0.0), run(0.1)
    assert low < 0.05
    assert alone > 0.2
    assert accuracy > usual - 0.02


def related() -> Any:
    source = blobs(180, 6)
    tasks = tuple(Task(name, size=6) for name in "abc")
    parts = [Data(source, torch.arange(60 * i, 60 * i + 60), (t,), {t.name: Target("y")}) for i, t in enumerate(tasks)]
    return stream_of([(JoinedData(parts), tasks)], tasks)


@pytest.mark.parametrize("combiner", [MGDA, PCGrad])
def test_beside_combiners_weightings_and_other_terms(combiner: Any) -> None:
    stream = two_task_stream(experiences=2)
    plugins = [SeparateNetworks(start="given"), TraceNorm(strength=0.1), combiner(), UncertaintyWeighting(), EWC(), Replay(capacity=8)]
    result = Engine(mlp(stream, (9,)), sgd(), plugins, batch_size=8, epochs=2).run(stream)
    terms = [event["terms"]["trace_norm"] for event in result.events if event["event"] == "epoch"]
    assert len(terms) == 4 == len(set(terms))
    assert all(bool(value.isfinite().all()) for value in result.model.state_dict().values())


def test_weights_that_are_not_finite_are_told_as_divergence() -> None:
    stream = separate_task_stream(1)
    explode = probe("explode", after_step=lambda step: step.run.model.heads.by_task["a"].weight.data.fill_(float("inf")))
    with pytest.raises(DivergenceError):
        Engine(mlp(stream, (4,)), sgd(), [TraceNorm(), explode], batch_size=8).run(stream)


@pytest.mark.parametrize("update", [2, 4])
def test_a_resume_in_mid_experience_equals_the_whole_run(update: int, tmp_path: Path) -> None:
    stream = separate_task_stream(2)

    def engine(**options: Any) -> Engine:
        plugins = [SeparateNetworks(), TraceNorm(strength=0.1, unfolding="tucker")]
        return Engine(mlp(stream, (9,)), sgd(), plugins, batch_size=8, seed=2, checkpoint_every=1, **options)

    resumes_bit_for_bit(engine, stream, update, tmp_path)


@pytest.mark.parametrize("options", [{"strength": -1}, {"unfolding": "laf"}, {"parameters": ("heads.*",)}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"plugin trace_norm: option '{next(iter(options))}"):
        TraceNorm(**options)


def test_where_nothing_but_biases_corresponds_it_says_what_to_do() -> None:
    stream = separate_task_stream(1)
    with pytest.raises(
        ConfigurationError, match=r"no parameters=\['\*.{task}.bias'\] correspond across the tasks a, b: list SeparateNetworks"
    ):
        Engine(mlp(stream, (4,)), sgd(), [TraceNorm(parameters=("*.{task}.bias",))]).run(stream)
