from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from streamlearn import Engine, models, streams
from streamlearn.core.gradients import TaskRows
from streamlearn.errors import CompositionError, ConfigurationError, DivergenceError, UnknownNameError
from streamlearn.plugins import EWC, ConstantWeighting, GroupDRO, LwF, PCGrad, Replay, UncertaintyWeighting
from streamlearn.plugins.gradients.gradient_similarity import GradientSimilarity, similarity_weights
from streamlearn.streams import Task
from streamlearn.streams.data import Data, JoinedData, Target
from tests.core.support import Stop, blobs, final, probe, same, separate_task_stream, sgd, stop_at, stream_of, two_task_stream

RULES = ("gate", "weighted")


def jacobian(rows: int, seed: int, columns: int = 12) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 1, generator=draw, dtype=torch.float64).exp() * torch.randn(rows, columns, generator=draw, dtype=torch.float64)


def combined(matrix: Tensor, names: str, **options: Any) -> Tensor:
    run = SimpleNamespace(tasks=dict.fromkeys(names), experience=SimpleNamespace(tasks=()))
    rows = TaskRows(tuple(names), matrix)
    return rows.combine(GradientSimilarity(**options).provide_gradient_combination(rows, SimpleNamespace(run=run)))[0]


def by_hand(matrix: Tensor, main: list[int], rule: str) -> Tensor:
    """Gradient by gradient."""
    total = matrix[main].sum(0)
    g = total.clone()
    for k in range(len(matrix)):
        if k not in main:
            cosine = torch.cosine_similarity(total, matrix[k], dim=0)
            g += (float(cosine >= 0) if rule == "gate" else cosine.clamp(min=0)) * matrix[k]
    return g


@pytest.mark.parametrize("rule", RULES)
def test_the_formula_gradient_by_gradient(rule: Any) -> None:
    used = []
    for seed in range(20):
        matrix = jacobian(4, seed)
        for main, names in (([0], "a"), ([2], "c"), ([1, 3], ("b", "d"))):
            found = combined(matrix, "abcd", main=names, rule=rule)
            torch.testing.assert_close(found, by_hand(matrix, main, rule))
            assert float(found @ matrix[main].sum(0)) >= float(matrix[main].sum(0).square().sum()) * (1 - 1e-12), (
                "never against the main task"
            )
            used.append(float((found - matrix[main].sum(0)).norm()) > 0)
    assert any(used)


@pytest.mark.parametrize("rule", RULES)
def test_order_names_and_scales(rule: Any) -> None:
    matrix, order = jacobian(4, 3), torch.tensor([2, 0, 3, 1])
    usual = combined(matrix, "abcd", main="a", rule=rule)
    torch.testing.assert_close(combined(matrix[order], "cadb", main="a", rule=rule), usual)
    torch.testing.assert_close(combined(matrix, "zyxw", main="z", rule=rule), usual)
    torch.testing.assert_close(combined(1e-3 * matrix, "abcd", main="a", rule=rule), 1e-3 * usual)


@pytest.mark.parametrize("rule", RULES)
def test_a_row_alone_an_absent_main_task_and_rows_of_zeros(rule: Any) -> None:
    matrix = jacobian(3, 4)
    assert torch.equal(combined(matrix[:1], "a", main="a", rule=rule), matrix[0])
    assert torch.equal(combined(matrix[:1], "b", main="a", rule=rule), matrix[0])
    torch.testing.assert_close(combined(matrix, "bcd", main="a", rule=rule), matrix.sum(0))
    zero, options = torch.zeros_like(matrix[:1]), {"main": "a", "rule": rule}
    torch.testing.assert_close(combined(torch.cat([matrix, zero]), "abcd", **options), combined(matrix, "abc", **options))
    none = combined(torch.cat([zero, matrix]), "abcd", main="a", rule=rule)
    torch.testing.assert_close(none, matrix.sum(0) if rule == "gate" else zero[0])
    assert not combined(torch.zeros(3, 4), "abc", main="a", rule=rule).any()


def test_a_product_of_exactly_zero_opens_the_gate() -> None:
    """[cos ≥ 0]; with (sign(cos) + 1) / 2 in its place half of the gradient would be taken."""
    gramian = torch.eye(2)
    assert similarity_weights(gramian, [True, False]).tolist() == [1.0, 1.0]
    assert similarity_weights(gramian, [True, False], "weighted").tolist() == [1.0, 0.0]


@pytest.mark.parametrize("rule", RULES)
def test_a_run_moves_shared_parameters_by_it_and_heads_by_their_own_gradient(rule: Any) -> None:
    stream, met = two_task_stream(torch.float64), []

    def compare(gradients: Any, step: Any) -> Any:
        shared = sorted(step.run.model.shared_names())
        each = [torch.autograd.grad(step.losses[t] * step.objective.shares[t], [step.parameters[n] for n in shared], retain_graph=True)
                for t in ("a", "b")]  # fmt: skip
        rows = torch.stack([torch.cat([g.flatten() for g in row]) for row in each])
        found = torch.cat([gradients[name].flatten() for name in shared])
        torch.testing.assert_close(found, by_hand(rows, [1], rule))
        head = torch.autograd.grad(step.losses["a"], step.parameters["heads.by_task.a.weight"], retain_graph=True)[0]
        torch.testing.assert_close(gradients["heads.by_task.a.weight"], head)
        met.append(float(rows[0] @ rows[1]) < 0)
        return gradients

    model = models.mlp(stream, (3,)).double()
    look = probe("look", transform_gradients=compare)
    Engine(model, sgd(lr=0.2), [GradientSimilarity(main="b", rule=rule), look], batch_size=6, epochs=6).run(stream)
    assert 0 < sum(met) < len(met), "some conflict and some do not"


def conflicting() -> Any:
    """The auxiliary task asks for the same features of the same inputs with random answers."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=draw)
    y = (x @ torch.randn(8, 1, generator=draw)).flatten().gt(0).long()
    noise = torch.randint(10, (400,), generator=draw)
    return streams.multitask((x, {"main": y, "noise": noise}), seed=1)


def test_a_harmful_auxiliary_task_harms_less() -> None:
    stream = conflicting()

    def accuracy(*plugins: Any) -> float:
        plugins = (*plugins, ConstantWeighting(weights={"noise": 10.0}))
        engine = Engine(models.mlp(stream, (4,)), lambda p: torch.optim.SGD(p, lr=0.05), plugins, batch_size=20, epochs=10, evaluate="end")
        lines = [event for event in engine.run(stream).events if event["event"] == "evaluation" and event["task"] == "main"]
        return float(lines[-1]["value"])

    plain = accuracy()
    assert min(accuracy(GradientSimilarity(main="main", rule=rule)) for rule in RULES) > plain


def test_without_a_name_the_task_of_the_experience_is_the_main_one() -> None:
    """Replayed rows of the task before are auxiliary."""
    source = blobs(48, 6)
    tasks = (Task("a", size=6), Task("b", size=6))
    stream = stream_of([(Data(source, torch.arange(24 * i, 24 * i + 24), (t,), {t.name: Target("y")}), (t,))
                        for i, t in enumerate(tasks)], tasks)  # fmt: skip
    plugin, answers = GradientSimilarity(), []
    ask = GradientSimilarity.provide_gradient_combination

    class Watched(GradientSimilarity):
        @probe_of(ask)
        def provide_gradient_combination(self, rows: Any, step: Any) -> Any:
            answers.append((step.run.clock.experience, ask(self, rows, step), rows.gramian))
            return answers[-1][1]

    Engine(models.mlp(stream, (9,)), sgd(), [Watched(), Replay(capacity=12), EWC(), LwF()], batch_size=8, epochs=3).run(stream)
    assert plugin.config.main is None
    for experience, weights, gramian in answers:
        if experience == 0:
            assert weights == {"a": 1.0}
        else:
            assert weights["b"] == 1.0
            assert weights["a"] == float(gramian[0, 1] >= 0)
    assert {weights["a"] for experience, weights, _ in answers if experience} == {0.0, 1.0}


def probe_of(hook: Any) -> Any:
    """Mark a method as the implementation of the same hook."""

    def mark(method: Any) -> Any:
        method.streamlearn_impl = hook.streamlearn_impl
        return method

    return mark


def test_groups_of_rows_belong_to_their_task_and_a_weighting_weighs_them() -> None:
    stream = two_task_stream(experiences=2)
    plugins = [GradientSimilarity(main="a"), GroupDRO(), Replay(capacity=8)]
    result = Engine(models.mlp(stream, (9,)), sgd(), plugins, batch_size=8).run(stream)
    assert all(bool(value.isfinite().all()) for value in result.model.state_dict().values())


def test_some_rows_without_labels_and_micro_batches() -> None:
    source = blobs(48, 6)
    a, b = Task("a", size=6), Task("b", size=3)
    parts = [
        Data(source, torch.arange(12), (a, b), {"a": Target("y"), "b": Target("y", torch.arange(6) % 3)}),
        Data(source, torch.arange(12, 32), (a,), {"a": Target("y")}),
        Data(source, torch.arange(32, 48), (b,), {"b": Target("y", torch.arange(6) % 3)}),
    ]
    stream = stream_of([(JoinedData(parts), (a, b))] * 2, (a, b))
    for options in ({"batch_size": 5}, {"batch_size": 8, "microbatches": 2}):
        plugins = [GradientSimilarity(main="a"), UncertaintyWeighting()]
        weights, _ = final(Engine(models.mlp(stream, (9,)), sgd(), plugins, **options), stream)
        assert all(bool(value.isfinite().all()) for value in weights.values())


@pytest.mark.parametrize("rule", RULES)
def test_a_resume_in_mid_experience_equals_the_whole_run(rule: Any, tmp_path: Path) -> None:
    stream = two_task_stream(experiences=2)

    def engine(**options: Any) -> Engine:
        plugins = [GradientSimilarity(main="a", rule=rule), UncertaintyWeighting(), EWC(strength=1.0), Replay(capacity=8)]
        return Engine(models.mlp(stream, (9,)), sgd(), plugins, batch_size=8, seed=2, checkpoint_every=1, **options)

    straight, events = final(engine(), stream, output=tmp_path / "straight")
    with pytest.raises(Stop):
        engine(progress=stop_at(4)).run(stream, output=tmp_path / "cut")
    resumed = engine().resume(tmp_path / "cut", stream)
    assert same(dict(resumed.model.state_dict()), straight)
    assert resumed.events == events


def test_what_is_refused() -> None:
    stream = separate_task_stream(1)
    with pytest.raises(UnknownNameError, match="unknown task in the main of plugin gradient_similarity 'A' "):
        Engine(models.mlp(stream, (4,)), sgd(), [GradientSimilarity(main="A")]).run(stream)
    with pytest.raises(ConfigurationError, match=r"which of the tasks a, b is the main one\? Name it, as in Gradient"):
        Engine(models.mlp(stream, (4,)), sgd(), [GradientSimilarity()]).run(stream)
    with pytest.raises(CompositionError, match="2 plugins claim 'provide_gradient_combination'"):
        Engine(models.mlp(stream, (4,)), sgd(), [GradientSimilarity(main="a"), PCGrad()])
    for options in ({"main": ""}, {"main": ()}, {"rule": "sign"}):
        with pytest.raises(ConfigurationError, match=f"plugin gradient_similarity: option '{next(iter(options))}"):
            GradientSimilarity(**options)


def test_a_row_that_is_not_finite_raises() -> None:
    stream = two_task_stream()
    explode = probe("explode", after_step=lambda step: step.run.model.heads.by_task["a"].weight.data.fill_(float("nan")))
    with pytest.raises(DivergenceError):
        Engine(models.mlp(stream, (4,)), sgd(), [GradientSimilarity(main="b"), explode], batch_size=8).run(stream)
