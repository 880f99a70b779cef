"""Rows of the Jacobian at the features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, Plugin, PluginInfo, models
from streamlearn.core.plugin import hookimpl
from streamlearn.errors import ConfigurationError, TrainingError
from streamlearn.streams import Stream
from tests.core.support import final, probe, separate_task_stream, sgd, two_task_stream


class AtFeatures(Plugin):
    """A combiner at the features: weights from the Gramian."""

    info = PluginInfo("at_features", "test", "Combines at the features.", "none", rows="features")

    def __init__(self, answer: Any = None) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.answer = answer or inverse

    @hookimpl
    def provide_gradient_combination(self, rows: Any, step: Any) -> Any:
        self.seen.append((rows, step.batch))
        return self.answer(rows)


def inverse(rows: Any) -> dict[str, Tensor]:
    """Weights in inverse proportion to the squared norms, adding up to 1."""
    weights = 1 / rows.gramian.diagonal()
    return dict(zip(rows.names, weights / weights.sum(), strict=True))


def start(stream: Stream, dtype: Any = torch.float64) -> nn.Module:
    model = models.mlp(stream, (8,)).to(dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for p in model.parameters():
            nn.init.normal_(p, std=0.4)
    return model


def plain() -> Any:
    return sgd(lr=0.1, momentum=0.0, weight_decay=0.0)


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_the_update_by_hand(penalty: float) -> None:
    """w_k ∝ 1/|∂L_k/∂Z|², ∂/∂θ_encoder = (Σ w_k ∂L_k/∂Z)ᵀ ∂Z/∂θ, heads get their plain gradient, terms come after."""
    stream = two_task_stream(torch.float64)
    model, twin = start(stream), start(stream)
    combiner = AtFeatures()
    term = probe("term", collect_terms=lambda step: penalty * sum(p.square().sum() for p in step.parameters.values())) if penalty else None
    Engine(model, plain(), [combiner, *([term] if term else [])], batch_size=24).run(stream)

    ((rows, batch),) = combiner.seen
    z = twin.encode(batch.x)
    losses = {task: nn.functional.cross_entropy(twin.decode(z, task), batch.targets[task]) for task in ("a", "b")}
    at_z = {task: torch.autograd.grad(loss, z, retain_graph=True)[0] for task, loss in losses.items()}
    norms = {task: float(g.square().sum()) for task, g in at_z.items()}
    total = 1 / norms["a"] + 1 / norms["b"]
    weights = {task: 1 / norm / total for task, norm in norms.items()}
    assert rows.names == ("a", "b")
    assert rows.matrix.shape == (2, 24 * 8)
    assert rows.features.shape == (24, 8)
    torch.testing.assert_close(rows.gramian[0, 1], (at_z["a"] * at_z["b"]).sum())
    z.backward(sum(weights[task] * at_z[task] for task in at_z), retain_graph=True)
    sum(losses.values()).backward(inputs=list(twin.heads.parameters()))
    for (name, p), q in zip(twin.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(q.detach(), (p - 0.1 * (p.grad + 2 * penalty * p)).detach(), rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind", ["two tasks a row", "tasks on rows of their own"])
def test_the_sum_at_the_features_is_the_plain_gradient(kind: str) -> None:
    stream = two_task_stream(torch.float64) if kind == "two tasks a row" else separate_task_stream()
    dtype = torch.float64 if kind == "two tasks a row" else torch.float32
    usual, _ = final(Engine(start(stream, dtype), sgd(), batch_size=8, epochs=2), stream)
    combiner = AtFeatures(lambda rows: dict.fromkeys(rows.names, 1.0))
    found, _ = final(Engine(start(stream, dtype), sgd(), [combiner], batch_size=8, epochs=2), stream)
    for name, value in usual.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=1e-6)
    vector = AtFeatures(lambda rows: rows.matrix.sum(0))
    again, _ = final(Engine(start(stream, dtype), sgd(), [vector], batch_size=8, epochs=2), stream)
    for name, value in found.items():
        torch.testing.assert_close(again[name], value)


def test_rows_of_several_roles_are_taken_at_the_activation_unsplit() -> None:
    """Rows of a role "memory" join the batch; the row of task b lives on them alone, and on no other row has it a gradient."""
    stream = two_task_stream(torch.float64)
    extra = stream[0].data["train"].batch(torch.arange(6), "memory")

    def join(batch: Any) -> Any:
        only_b = extra.replace(targets={"b": extra.targets["b"]}, labelled={"b": extra.labelled["b"]})
        only_a = batch.replace(targets={"a": batch.targets["a"]}, labelled={"a": batch.labelled["a"]})
        return only_a.with_rows("memory", only_b)

    model, combiner = start(stream), AtFeatures()
    twin = start(stream)
    taps: list[bool] = []

    def look(step: Any) -> Tensor:
        taps.append(step.tap("features", "memory").shape == (6, 8))
        return 0.5 * step.tap("features", "memory").square().mean()

    Engine(model, plain(), [probe("join", transform_batch=join, collect_terms=look), combiner], batch_size=24).run(stream)
    ((rows, batch),) = combiner.seen
    assert batch.roles == ("train", "memory")
    assert rows.features.shape == (30, 8)
    matrix = rows.matrix.view(2, 30, 8)
    assert bool(matrix[0, :24].any())
    assert not bool(matrix[0, 24:].any())
    assert bool(matrix[1, 24:].any())
    assert not bool(matrix[1, :24].any())
    z = twin.encode(batch.x)
    a = nn.functional.cross_entropy(twin.decode(z[:24], "a"), batch.targets["a"][:24]) * 24 / 30
    b = nn.functional.cross_entropy(twin.decode(z[24:], "b"), batch.targets["b"][24:]) * 6 / 30
    at_z = torch.stack([torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in (a, b)])
    torch.testing.assert_close(matrix, at_z)
    weights = inverse(rows)
    z.backward(weights["a"] * at_z[0] + weights["b"] * at_z[1], retain_graph=True)
    (0.5 * z[24:].square().mean()).backward(inputs=list(twin.encoder.parameters()))
    for (name, p), q in zip(twin.encoder.named_parameters(), model.encoder.parameters(), strict=True):
        torch.testing.assert_close(q.detach(), (p - 0.1 * p.grad).detach(), rtol=1e-9, atol=1e-12, msg=name)
    assert taps == [True]


def test_one_backward_pass_through_the_encoder_whatever_the_number_of_rows() -> None:
    passes: list[int] = []

    class Counting(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            passes.append(1)
            return gradient

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(Counting.apply(self.inner(x)))

    stream = two_task_stream()
    Engine(Counted(), plain(), [AtFeatures()], batch_size=24).run(stream)
    at_features, at_parameters = len(passes), 0
    passes.clear()
    Engine(Counted(), plain(), [probe("sum", provide_gradient_combination=lambda rows: dict.fromkeys(rows.names, 1.0))], batch_size=24).run(
        stream
    )
    at_parameters = len(passes)
    assert (at_features, at_parameters) == (1, 2)


def test_a_frozen_encoder_leaves_nothing_to_combine() -> None:
    stream = two_task_stream()
    model = start(stream, torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.encoder.parameters():
        p.requires_grad_(False)
    combiner = AtFeatures()
    Engine(model, plain(), [combiner], batch_size=24).run(stream)
    assert combiner.seen == []
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if name.startswith("heads.")}


def test_microbatches_are_refused() -> None:
    stream = two_task_stream()
    with pytest.raises(
        ConfigurationError, match="at_features combines at the features, which microbatches=2 splits: leave microbatches at 1"
    ):
        Engine(start(stream), plain(), [AtFeatures()], microbatches=2).run(stream)


def test_a_row_that_does_not_come_from_the_features_is_refused_and_not_lost() -> None:
    stream = two_task_stream()

    def elsewhere(objective: Any, step: Any) -> Any:
        return objective(step.at({name: p * 1.0 for name, p in step.parameters.items()}))

    engine = Engine(start(stream, torch.float32), plain(), [probe("look_ahead", around_objective=elsewhere), AtFeatures()], batch_size=24)
    with pytest.raises(TrainingError, match=r"row 'a' does not come from the features of the step .* where at_features combines"):
        engine.run(stream)


def test_a_vector_of_another_size_is_refused() -> None:
    stream = two_task_stream()
    with pytest.raises(TrainingError, match=r"a combiner returned a vector of shape \(3,\), the features have 192 entries"):
        Engine(start(stream, torch.float32), plain(), [AtFeatures(lambda rows: torch.zeros(3))], batch_size=24).run(stream)
