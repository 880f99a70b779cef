from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, PluginInfo, models
from streamlearn.core.randomness import seed_forward
from streamlearn.errors import CompositionError, ConfigurationError
from streamlearn.plugins import MGDA, MGDAUB
from streamlearn.streams import multitask
from tests.core.support import final, probe, same, separate_task_stream, sgd, two_task_stream


def closed_form(a: Tensor, b: Tensor) -> float:
    """α_a of the point between a and b that is nearest to zero."""
    return float(((b - a).flatten() @ b.flatten() / (a - b).square().sum()).clamp(0, 1))


def by_hand(step: Any, weight: dict[str, float] | None = None) -> tuple[dict[str, Tensor], float]:
    """MGDA-UB written out: one pass through the encoder, the gradients at its output, one pass back with their combination."""
    model, batch = step.run.model, step.batch
    seed_forward(step.run.forward_seed, step.update)
    z = model.encoder(batch.x)
    at_z = z.detach().requires_grad_()
    rows = {}
    for task in batch.targets:
        loss = nn.functional.cross_entropy(model.heads(at_z, task), batch.targets[task])
        (gradient,) = torch.autograd.grad((weight or {}).get(task, 1.0) * loss, at_z)
        rows[task] = gradient
    a, b = rows.values()
    share = closed_form(a, b)
    shared = {f"encoder.{n}": p for n, p in model.encoder.named_parameters()}
    found = torch.autograd.grad(z, list(shared.values()), share * a + (1 - share) * b)
    return dict(zip(shared, found, strict=True)), share


@pytest.mark.parametrize("weight", [{}, {"a": 0.2, "b": 3.0}])
def test_it_is_mgda_ub_by_hand(weight: dict[str, float]) -> None:
    shares: list[float] = []

    def look(gradients: Any, step: Any) -> Any:
        expected, share = by_hand(step, weight)
        for name, value in expected.items():
            torch.testing.assert_close(gradients[name], value, rtol=1e-4, atol=1e-7)
        head = torch.autograd.grad(step.at().losses["a"], [step.parameters["heads.by_task.a.weight"]])[0]
        torch.testing.assert_close(gradients["heads.by_task.a.weight"], weight.get("a", 1.0) * head)
        shares.append(share)
        return gradients

    stream = two_task_stream()
    weigh = probe("weigh", provide_weighting=lambda losses: sum(weight.get(n, 1.0) * loss for n, loss in losses.items()))
    plugins = [MGDAUB(), weigh, probe("look", transform_gradients=look)]
    Engine(models.mlp(stream, (8,), dropout=0.2), sgd(), plugins, batch_size=6, epochs=2).run(stream)
    assert len(shares) == 8
    assert all(0 < share < 1 for share in shares) or weight


def test_it_is_another_method_than_mgda() -> None:
    stream = two_task_stream()
    ub, _ = final(Engine(models.mlp(stream, (8,)), sgd(), [MGDAUB()], batch_size=6), stream)
    exact, _ = final(Engine(models.mlp(stream, (8,)), sgd(), [MGDA()], batch_size=6), stream)
    assert not same(ub, exact)


def test_tasks_on_different_rows_are_weighed_by_the_inverse_squares_of_their_norms() -> None:
    found: list[tuple[list[float], list[float]]] = []
    plugin = MGDAUB()

    def combine(rows: Any, step: Any) -> Any:
        answer = plugin.provide_gradient_combination(rows, step)
        inverse = [1 / float(row.square().sum()) for row in rows.matrix]
        found.append((list(answer.values()), [value / sum(inverse) for value in inverse]))
        return answer

    probe_at_features = probe("at_features", provide_gradient_combination=combine)
    type(probe_at_features).info = PluginInfo("at_features", "test", "A probe.", "none", rows="features")
    stream = separate_task_stream()
    Engine(models.mlp(stream, (8,)), sgd(), [probe_at_features], batch_size=12).run(stream)
    both = [pair for pair in found if len(pair[0]) == 2]
    assert both
    for weights, expected in both:
        assert weights == pytest.approx(expected, rel=1e-4)


def test_both_tasks_of_overlaid_digits_are_learned() -> None:
    stream = multitask("digits", 1)
    result = Engine(models.mlp(stream, (64,)), sgd(lr=0.2), [MGDAUB()], batch_size=64, epochs=8, evaluate="end").run(stream)
    assert float(result.matrix("left")[-1, 0]) > 0.5
    assert float(result.matrix("right")[-1, 0]) > 0.5


@pytest.mark.parametrize("capability", ["inner-loop", "look-ahead"])
def test_it_is_refused_beside_a_look_ahead(capability: str) -> None:
    ahead = probe("ahead", around_objective=lambda objective, step: objective(step))
    type(ahead).info = PluginInfo("ahead", "test", "Looks ahead.", "none", provides=frozenset({capability}))
    with pytest.raises(CompositionError, match=f"mgda_ub cannot stand beside ahead \\({capability}\\): remove one of the two"):
        Engine(models.mlp(two_task_stream(), (8,)), sgd(), [MGDAUB(), ahead])


def test_it_is_refused_with_microbatches() -> None:
    stream = two_task_stream()
    with pytest.raises(ConfigurationError, match="mgda_ub combines at the features, which microbatches=2 splits"):
        Engine(models.mlp(stream, (8,)), sgd(), [MGDAUB()], microbatches=2).run(stream)
