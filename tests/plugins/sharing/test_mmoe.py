from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from streamlearn import Engine, models
from streamlearn.errors import CompositionError, ConfigurationError, DataError
from streamlearn.models import Heads, Model
from streamlearn.plugins import EWC, MGDAUB, LwF, MMoE, MultiHead, PCGrad, Replay
from streamlearn.plugins.sharing.mmoe import mix
from tests.core.support import Stop, final, growing_stream, net, probe, same, separate_task_stream, sgd, stop_at, two_task_stream
from tests.integration.test_resume import everything


def test_the_mixture_by_hand() -> None:
    experts, scores = torch.randn(5, 3, 4), torch.randn(5, 3)
    weights = torch.exp(scores) / torch.exp(scores).sum(1, keepdim=True)
    expected = torch.stack([sum(weights[r, i] * experts[r, i] for i in range(3)) for r in range(5)])  # type: ignore[misc]
    torch.testing.assert_close(mix(experts, scores), expected)


def test_the_forward_of_a_trained_model_by_hand() -> None:
    """Experts, gates and heads from the weights by name; both tasks mix the same experts differently."""
    stream = two_task_stream()
    model: Any = Engine(models.mlp(stream, (7,)), sgd(), [MMoE(experts=3)], batch_size=6, epochs=3).run(stream).model
    w = {name: p.detach() for name, p in model.named_parameters()}
    x = stream[0].data["train"].batch(torch.arange(9)).x
    outputs = [F.relu(F.linear(x, w[f"encoder.{i}.0.weight"], w[f"encoder.{i}.0.bias"])) for i in range(3)]
    assert not torch.equal(outputs[0], outputs[1])
    gates = {}
    for task in ("a", "b"):
        gates[task] = torch.softmax(x @ w[f"heads.gates.{task}.weight"].T, 1)
        mixed = sum(gates[task][:, i : i + 1] * outputs[i] for i in range(3))
        expected = F.linear(mixed, w[f"heads.by_task.{task}.weight"], w[f"heads.by_task.{task}.bias"])
        torch.testing.assert_close(model(x, task).detach(), expected)
        torch.testing.assert_close(model.decode(model.encode(x)[2:5], task).detach(), expected[2:5])
    assert float((gates["a"] - gates["b"]).abs().max()) > 0.01
    with pytest.raises(DataError, match="no head for task 'c'"):
        model(x, "c")


def test_one_expert_is_the_plain_model() -> None:
    stream = two_task_stream()
    plain, _ = final(Engine(models.mlp(stream, (7,)), sgd(), batch_size=6, epochs=2), stream)
    one, _ = final(Engine(models.mlp(stream, (7,)), sgd(), [MMoE(experts=1)], batch_size=6, epochs=2), stream)
    for name, value in plain.items():
        torch.testing.assert_close(one[name.replace("encoder.", "encoder.0.")], value)


def start_of(plugin: MMoE, module: Any, **options: Any) -> dict[str, torch.Tensor]:
    """Weights before the first update."""
    kept: dict[str, torch.Tensor] = {}
    look = probe("look", before_run=lambda run: kept.update({n: p.detach().clone() for n, p in run.model.named_parameters()}))
    Engine(module, sgd(), [plugin, look], batch_size=24, **options).run(two_task_stream())
    return kept


def test_experts_are_drawn_from_the_seed_or_start_from_what_was_given() -> None:
    stream = two_task_stream()
    first, again, other = [start_of(MMoE(experts=3), models.mlp(stream, (7,)), seed=seed) for seed in (1, 1, 2)]
    assert same(first, again)
    assert not torch.equal(first["encoder.2.0.weight"], other["encoder.2.0.weight"])
    assert len({float(first[f"encoder.{i}.0.weight"].sum()) for i in range(3)}) == 3
    module = models.mlp(stream, (7,))
    with torch.no_grad():
        module.encoder[0].weight.fill_(0.125)  # type: ignore[index, operator]
    kept = start_of(MMoE(experts=2, redraw=False), module)
    assert bool((kept["encoder.0.0.weight"] == 0.125).all())
    assert torch.equal(kept["encoder.1.0.weight"], kept["encoder.0.0.weight"])


def test_combiners_act_on_the_experts_alone_and_nothing_is_in_their_way() -> None:
    """The Jacobian has the experts' columns; at the features, the input's columns are zero."""
    stream, sizes, names = two_task_stream(), [], []

    def combine(rows: Any, step: Any) -> dict[str, float]:
        sizes.append(rows.matrix.shape[1])
        names.append(step.run.model.shared_names())
        return dict.fromkeys(rows.names, 1.0)

    look = probe("look", provide_gradient_combination=combine)
    with_combiner, _ = final(Engine(models.mlp(stream, (7,)), sgd(), [MMoE(experts=2), look], batch_size=24), stream)
    assert sizes == [2 * (6 * 7 + 7)]
    assert names[0] == {f"encoder.{i}.0.{p}" for i in range(2) for p in ("weight", "bias")}
    plain, _ = final(Engine(models.mlp(stream, (7,)), sgd(), [MMoE(experts=2)], batch_size=24), stream)
    for name, value in plain.items():
        torch.testing.assert_close(with_combiner[name], value, rtol=1e-4, atol=1e-6)
    model: Any = Engine(models.mlp(stream, (7,)), sgd(), [MMoE(experts=2)]).run(stream).model
    features = model.encode(torch.randn(4, 6)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.decode(features, "a").square().sum(), features)
    assert bool(gradient[:, :14].any())
    assert not bool(gradient[:, 14:].any())


def test_a_gate_rests_while_its_task_is_absent_and_later_tasks_get_one() -> None:
    """Momentum and weight decay do not move the gate of a task without rows."""
    stream, ends = growing_stream(), []
    keep = probe("keep", after_experience=lambda run: ends.append({n: p.detach().clone() for n, p in run.model.named_parameters()}))
    Engine(models.mlp(stream, (7,)), sgd(), [MMoE(experts=2), keep], batch_size=10, epochs=2).run(stream)
    gate = "heads.gates.{}.weight"
    assert gate.format("other") not in ends[2]
    assert ends[3][gate.format("other")].shape == (2, 6)
    assert not torch.equal(ends[1][gate.format("t")], ends[2][gate.format("t")])
    assert torch.equal(ends[2][gate.format("t")], ends[3][gate.format("t")])


def test_every_expert_gate_and_head_learns() -> None:
    stream = separate_task_stream(1)
    start: dict[str, torch.Tensor] = {}
    look = probe("look", before_run=lambda run: start.update({n: p.detach().clone() for n, p in run.model.named_parameters()}))
    trained, _ = final(Engine(models.mlp(stream, (7,)), sgd(), [MMoE(experts=2), look], batch_size=24, epochs=10), stream)
    moved = {name for name, value in start.items() if not torch.equal(trained[name], value)}
    assert moved == set(start)


def per_row_fisher(model: Any, x: torch.Tensor, task: str) -> dict[str, torch.Tensor]:
    """F = 1/N Σ_i Σ_c p_ic (∂ log p_ic / ∂θ)², one backward pass for each row and class."""
    named = dict(model.named_parameters())
    total: dict[str, torch.Tensor] = {}
    for row in x:
        logs = model(row[None], task).log_softmax(1)[0]
        for c, log in enumerate(logs):
            found = torch.autograd.grad(log, list(named.values()), retain_graph=c + 1 < len(logs), allow_unused=True)
            for name, gradient in zip(named, found, strict=True):
                if gradient is not None:
                    total[name] = total.get(name, 0) + log.detach().exp() * gradient.square() / len(x)
    return total


@pytest.mark.parametrize("in_place", [False, True])
def test_importance_reaches_experts_and_gates_and_holds_them(in_place: bool) -> None:
    """In closed form, and by vmap: an in-place ReLU overwrites what its layer gave out."""
    stream, kept = growing_stream(), []

    def compare(run: Any) -> None:
        (task,) = run.experience.tasks
        x = run.data().batch(torch.arange(len(run.data()))).x
        kept.append((run.importance(), per_row_fisher(run.model, x, task.name), run.snapshot()))

    def ends(strength: float) -> list[Any]:
        kept.clear()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = Model(nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=in_place)), Heads(5, stream.tasks))
        plugins = [MMoE(experts=2), EWC(strength=strength), probe("compare", after_experience=compare)]
        Engine(model, sgd(lr=0.02, weight_decay=0.0), plugins, batch_size=10, epochs=5).run(stream)
        return list(kept)

    free, held = ends(0.0), ends(30.0)
    for found, expected, _ in held:
        assert {name for name in found if name.startswith("encoder.")} == {
            f"encoder.{i}.0.{p}" for i in range(2) for p in ("weight", "bias")
        }
        assert set(found) == set(expected)  # the gate and head of an absent task are left out
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-7)
    assert float(held[0][0]["heads.gates.t.weight"].max()) > 0

    def moved(history: list[Any]) -> float:
        (_, fisher, start), (*_, end) = history[0], history[1]
        return float(sum((fisher[n] * (end[n] - start[n])[: len(fisher[n])] ** 2).sum() for n in fisher if n.startswith("encoder.")))

    assert moved(held) < 0.7 * moved(free)


def test_gradient_surgery_leaves_gates_and_heads_their_own_gradient() -> None:
    checked: list[float] = []

    def look(gradients: Any, step: Any) -> Any:
        own = {n: p for n, p in step.parameters.items() if not n.startswith("encoder.")}
        shared = {n: p for n, p in step.parameters.items() if n.startswith("encoder.")}
        losses = step.at().losses
        a, b = (torch.cat([g.flatten() for g in torch.autograd.grad(f * losses[t], list(shared.values()), retain_graph=True)])
                for t, f in (("a", 1.0), ("b", 0.9)))  # fmt: skip
        product = float(a @ b)
        checked.append(product)
        expected = a + b if product >= 0 else a + b - product / float(b @ b) * b - product / float(a @ a) * a
        torch.testing.assert_close(torch.cat([gradients[n].flatten() for n in shared]), expected, rtol=1e-3, atol=1e-6)
        plain = torch.autograd.grad(losses["a"] + 0.9 * losses["b"], list(own.values()), retain_graph=True)
        for name, gradient in zip(own, plain, strict=True):
            torch.testing.assert_close(gradients[name], gradient)
        assert {n.split(".")[1] for n in own} == {"gates", "by_task"}
        return gradients

    stream = two_task_stream()
    weigh = probe("weigh", provide_weighting=lambda losses: losses["a"] + 0.9 * losses["b"], transform_gradients=look)
    Engine(models.mlp(stream, (7,)), sgd(), [MMoE(experts=2), PCGrad(), weigh], batch_size=6).run(stream)
    assert min(checked) < 0


def test_shapes_taps_and_a_combiner_at_the_features() -> None:
    stream, seen = two_task_stream(), []

    def look(step: Any) -> None:
        run = step.run
        seen.append((run.shape_of("features"), run.shape_of("encoder"), step.tap("features"), step.tap("look/second"), step.batch.x))

    plugin = probe("look", collect_taps=lambda run: {"second": "encoder.1"}, before_step=look)
    trained, _ = final(Engine(models.mlp(stream, (7,)), sgd(), [MMoE(experts=2), MGDAUB(), plugin], batch_size=12, seed=1), stream)
    for features, encoder, activation, second, x in seen:
        assert (features, encoder) == ((2 * 7 + 6,), (14,))
        assert torch.equal(activation[:, 7:14], second)
        assert torch.equal(activation[:, 14:], x)
    assert len(seen) == 2
    assert all(bool(value.isfinite().all()) for value in trained.values())


def test_stopped_and_resumed_equals_the_straight_run(tmp_path: Path) -> None:
    """With growth, a teacher, importance and a memory."""
    stream = growing_stream()

    def engine(**options: Any) -> Engine:
        plugins = [MultiHead(), MMoE(experts=2), EWC(strength=3.0), LwF(), Replay(capacity=9)]
        return Engine(net(), sgd(), plugins, batch_size=8, epochs=2, seed=3, checkpoint_every=3, **options)

    straight = engine().run(stream, output=tmp_path / "straight")
    for number, place in enumerate((4, straight.events[-1].get("update", 20) - 2)):
        folder = tmp_path / f"broken {number}"
        with pytest.raises(Stop):
            engine(progress=stop_at(place)).run(stream, output=folder)
        engine().resume(folder, stream)
        assert same(everything(folder), everything(tmp_path / "straight"))


def test_the_same_engine_runs_twice_alike() -> None:
    stream = growing_stream()
    engine = Engine(models.mlp(stream, (7,)), sgd(), [MMoE(experts=2)], batch_size=10)
    assert same(final(engine, stream), final(engine, stream))


def test_what_cannot_be_mixed_is_refused() -> None:
    stream = two_task_stream()
    with pytest.raises(ConfigurationError, match=r"a plain module: take one of streamlearn.models, or list MultiHead\(\) before it"):
        Engine(net(), sgd(), [MMoE()]).run(stream)
    with pytest.raises(ConfigurationError, match=r"gives \(1, 5\) and not \(1, 4\)"):
        Engine(Model(nn.Linear(6, 5), Heads(4, stream.tasks)), sgd(), [MMoE()]).run(stream)
    with pytest.raises(ConfigurationError, match="option 'experts' is 0"):
        MMoE(experts=0)
    with pytest.raises(CompositionError, match="sharing"):
        Engine(net(), sgd(), [MMoE(), MMoE(name="second")])
    # whatever the order in the list, the trunk is found first
    assert [plugin.name for plugin in Engine(net(), sgd(), [MMoE(), MultiHead()]).plugins] == ["multi_head", "mmoe"]
