from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchjd.aggregation import GradDrop as TorchJDGradDrop

from streamlearn import Engine, models
from streamlearn.core.randomness import seed_forward
from streamlearn.errors import CompositionError, ConfigurationError
from streamlearn.plugins import SAM
from streamlearn.plugins.gradients.graddrop import GradDrop, kept_signs, purity
from tests.core.support import final, probe, sgd, two_task_stream


def jacobian(rows: int, seed: int, columns: int = 40) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("leak", [0.0, 0.3])
def test_the_rule_is_torchjds(rows: int, leak: float) -> None:
    for seed in range(5):
        matrix = jacobian(rows, seed)
        uniform = torch.rand(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        torch.manual_seed(seed)  # torchjd draws the same numbers, from torch's own stream
        oracle = TorchJDGradDrop(leak=torch.full((rows,), leak, dtype=torch.float64))(matrix)
        torch.testing.assert_close(((leak + (1 - leak) * kept_signs(matrix, uniform)) * matrix).sum(0), oracle)


def test_what_remains_has_one_sign_and_its_mean_is_known() -> None:
    """With the positive sum S and the negative sum T the mean is P S + (1 - P) T, P = S / (S - T)."""
    matrix = jacobian(3, 1, 6)
    uniform = torch.rand(20000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = torch.stack([kept_signs(matrix, u) for u in uniform[:50]])
    sign = matrix.sign() * kept
    assert bool(((sign > 0).any(1) != (sign < 0).any(1)).all())
    up, down = matrix.clamp(min=0).sum(0), matrix.clamp(max=0).sum(0)
    torch.testing.assert_close(purity(matrix), up / (up - down))
    chosen = uniform < purity(matrix)
    mean = torch.where(chosen, up, down).mean(0)
    torch.testing.assert_close(mean, purity(matrix) * up + (1 - purity(matrix)) * down, rtol=0.1, atol=0.05)


def test_where_signs_agree_nothing_is_dropped_whatever_is_drawn() -> None:
    matrix = torch.tensor([[1.0, -1.0, 0.0], [2.0, -3.0, 0.0]])
    for drawn in (0.0, 0.5, 1 - 2**-24):
        assert kept_signs(matrix, torch.full((3,), drawn)).tolist() == [[True, True, False], [True, True, False]]


def masks(signed: dict[str, Tensor], uniform: Tensor, leak: dict[str, float]) -> dict[str, Tensor]:
    """Lines 10 to 15 of the paper's algorithm 1, one feature at a time."""
    found = {task: torch.zeros_like(values) for task, values in signed.items()}
    for n in range(len(uniform)):
        total = sum(float(values[n]) for values in signed.values())
        size = sum(abs(float(values[n])) for values in signed.values())
        positive = float(uniform[n]) < (0.5 * (1 + total / size) if size else 0.5)
        for task, values in signed.items():
            keep = float(values[n]) > 0 if positive else float(values[n]) < 0
            found[task][n] = leak.get(task, 0.0) + (1 - leak.get(task, 0.0)) * keep
    return found


@pytest.mark.parametrize("leak", [0.0, {"b": 0.25}])
def test_at_the_features_by_hand(leak: Any) -> None:
    plugin = GradDrop(leak=leak)
    dropped: list[float] = []

    def look(gradients: Any, step: Any) -> Any:
        model, batch = step.run.model, step.batch
        seed_forward(step.run.forward_seed, step.update)
        z = model.encoder(batch.x)
        at_z = z.detach().requires_grad_()
        rows = {}
        for task in batch.targets:
            loss = nn.functional.cross_entropy(model.heads(at_z, task), batch.targets[task])
            (rows[task],) = torch.autograd.grad(loss, at_z)
        uniform = torch.rand(z.shape[1], generator=step.run.generator(plugin, "signs"))
        signed = {task: (row * at_z.detach().sign()).sum(0) for task, row in rows.items()}
        mask = masks(signed, uniform, leak if isinstance(leak, dict) else {})
        goal = sum(mask[task] * row for task, row in rows.items())
        named = {f"encoder.{n}": p for n, p in model.encoder.named_parameters()}
        for name, value in zip(named, torch.autograd.grad(z, list(named.values()), goal), strict=True):
            torch.testing.assert_close(gradients[name], value, rtol=1e-4, atol=1e-6)
        head = torch.autograd.grad(step.at().losses["a"], [step.parameters["heads.by_task.a.weight"]])[0]
        torch.testing.assert_close(gradients["heads.by_task.a.weight"], head)
        dropped.extend(torch.cat(list(mask.values())).tolist())
        return gradients

    stream = two_task_stream()
    plugins = [plugin, probe("look", transform_gradients=look)]
    Engine(models.mlp(stream, (8,), dropout=0.2), sgd(), plugins, batch_size=6, epochs=2).run(stream)
    assert min(dropped) == 0
    assert max(dropped) == 1


def test_at_the_parameters_by_hand() -> None:
    plugin = GradDrop(at="parameters", leak=0.2)

    def look(gradients: Any, step: Any) -> Any:
        shared = {n: p for n, p in step.parameters.items() if n.startswith("encoder.")}
        losses = step.at().losses
        rows = {t: torch.cat([g.flatten() for g in torch.autograd.grad(losses[t], list(shared.values()), retain_graph=True)]) for t in "ab"}
        uniform = torch.rand(len(rows["a"]), generator=step.run.generator(plugin, "signs"))
        mask = masks(rows, uniform, {"a": 0.2, "b": 0.2})
        torch.testing.assert_close(
            torch.cat([gradients[n].flatten() for n in shared]), sum(mask[t] * rows[t] for t in "ab"), rtol=1e-4, atol=1e-6
        )
        return gradients

    stream = two_task_stream()
    Engine(models.mlp(stream, (8,)), sgd(), [plugin, probe("look", transform_gradients=look)], batch_size=6).run(stream)


def test_a_leak_of_1_is_the_plain_gradient() -> None:
    stream = two_task_stream()
    plain, _ = final(Engine(models.mlp(stream, (8,)), sgd(), [], batch_size=6), stream)
    for at in ("features", "parameters"):
        found, _ = final(Engine(models.mlp(stream, (8,)), sgd(), [GradDrop(leak=1.0, at=at)], batch_size=6), stream)
        for key, value in plain.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6)


def test_beside_a_look_ahead_only_at_the_parameters() -> None:
    stream = two_task_stream()
    with pytest.raises(CompositionError, match="graddrop cannot stand beside sam"):
        Engine(models.mlp(stream, (8,)), sgd(), [GradDrop(), SAM()])
    found, _ = final(Engine(models.mlp(stream, (8,)), sgd(), [GradDrop(at="parameters"), SAM()], batch_size=6), stream)
    assert all(bool(value.isfinite().all()) for value in found.values())
    with pytest.raises(ConfigurationError, match="graddrop combines at the features, which microbatches=2 splits"):
        Engine(models.mlp(stream, (8,)), sgd(), [GradDrop()], microbatches=2).run(stream)


@pytest.mark.parametrize("options", [{"leak": 1.5}, {"leak": {"a": -1.0}}, {"at": "heads"}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"option '{next(iter(options))}"):
        GradDrop(**options)
