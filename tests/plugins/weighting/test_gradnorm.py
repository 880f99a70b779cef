from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, models, streams
from streamlearn.core.gradient_norms import chosen_layer, gradient_norm
from streamlearn.core.sampling import shuffled
from streamlearn.errors import CompositionError, ConfigurationError, DivergenceError
from streamlearn.plugins import DWA, EWC, MGDA, SAM, Clipping, LwF, PCGrad, Replay
from streamlearn.plugins.weighting.gradnorm import GradNorm, training_rates, weight_slopes
from streamlearn.streams import Task
from streamlearn.streams.data import Data, Target
from tests.core.support import (
    Spy,
    blobs,
    class_stream,
    final,
    keeps_its_state,
    net,
    probe,
    separate_task_stream,
    sgd,
    stream_of,
    two_task_stream,
)
from tests.integration.conftest import no_drawing  # noqa: F401 - nobody looks at the figures of a run that is stopped and resumed
from tests.plugins.weighting.observed import changing_tasks, derivative, split, watching
from tests.plugins.weighting.test_closed_form_weightings import left, of_tasks

both = pytest.mark.parametrize("weights", ["direct", "softmax"])


def loud(task: str, factor: float) -> Any:
    """A plugin that counts the loss of one task so many times."""
    return probe("loud", transform_supervision=lambda supervision: tuple(
        r.replace(scale=factor if r.task == task else 1.0) for r in supervision))  # fmt: skip


# ---------------------------------------------------------------------- the formula


def test_the_slopes_are_the_derivative_of_the_papers_loss() -> None:
    """Autograd through ‖w_k ∇L_k‖ as algorithm 1 has it, with the target constant."""
    draw = torch.Generator().manual_seed(0)
    for alpha in (0.0, 0.12, 1.5):
        shared = torch.randn(4, generator=draw, dtype=torch.float64, requires_grad=True)
        targets = torch.randn(3, 4, generator=draw, dtype=torch.float64)
        losses = [((shared - target) ** 2).sum() * scale for target, scale in zip(targets, (1.0, 5.0, 0.2), strict=True)]
        first = [2.0, 11.0, 0.7]
        w = torch.rand(3, generator=draw, dtype=torch.float64).requires_grad_()
        sizes = torch.stack([torch.autograd.grad(w[k] * loss, shared, create_graph=True)[0].norm() for k, loss in enumerate(losses)])
        ratios = torch.stack([loss.detach() / start for loss, start in zip(losses, first, strict=True)])
        rates = ratios / ratios.mean()
        expected = torch.autograd.grad((sizes - (sizes.mean() * rates**alpha).detach()).abs().sum(), w, retain_graph=True)[0]
        norms = torch.stack([n for loss in losses if (n := gradient_norm(loss, [shared])) is not None])
        torch.testing.assert_close(training_rates(losses, first), rates)
        torch.testing.assert_close(weight_slopes(w.detach(), norms, rates, alpha), expected)
        assert expected.ne(0).all()


def test_rates_where_nothing_can_be_said() -> None:
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    assert training_rates([zero, zero], [1.0, 2.0]).tolist() == [1.0, 1.0]
    assert training_rates([one, one], [0.0, 1.0]).tolist() == [1.0, 1.0]
    assert training_rates([one, -one], [1.0, 0.5]).tolist() == [1.0, 1.0], "no mean above 0"


def test_norms_and_layers() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.BatchNorm1d(4))
    parameters = dict(model.named_parameters())
    assert chosen_layer(parameters, "last", "p") == ["1.weight", "1.bias"]
    assert chosen_layer(parameters, "all", "p") == list(parameters)
    assert chosen_layer(parameters, "2.w*", "p") == ["2.weight"]
    model[1].requires_grad_(False)
    assert chosen_layer(parameters, "last", "p") == ["0.weight", "0.bias"], "what is frozen has no gradient"
    assert chosen_layer(parameters, "1.*", "p") == []
    assert chosen_layer({}, "last", "p") == []
    assert gradient_norm(torch.tensor(1.0), list(parameters.values())) is None
    assert gradient_norm(parameters["0.bias"].sum(), [parameters["2.bias"]]) is None
    with pytest.raises(
        ConfigurationError, match=r"plugin p: layer='3\.\*' matches no shared parameter; give one or a pattern of: 0\.weight, "
    ):
        chosen_layer(parameters, "3.*", "p")


# ---------------------------------------------------------------------- a run against a loop


def loop(stream: Any, start: Any, epochs: int, *, softmax: bool, layer: str, alpha: float, first: list[float] | None) -> Any:
    """Algorithm 1 with autograd for the weights, all of them in one vector."""
    model = models.mlp(stream, (8, 7)).double()
    model.load_state_dict(start)
    shared = [p for name, p in model.named_parameters() if name.startswith("encoder.")]
    where = {"last": shared[2:4], "all": shared, "encoder.0.weight": shared[:1]}[layer]
    logits = torch.full((2,), 0.0 if softmax else 1.0, dtype=torch.float64, requires_grad=True)
    mover, optimizer = torch.optim.Adam([logits], lr=0.05), sgd()(model.parameters())
    data, seen = stream[0].data["train"], []
    for epoch in range(epochs):
        for positions in shuffled(len(data), 8, False, 0, 4, 0, 0, epoch).split(8):
            batch = data.batch(positions)
            losses = [nn.functional.cross_entropy(model(batch.x, task), batch.targets[task]) for task in ("a", "b")]
            first = first or [float(loss.detach()) for loss in losses]
            w = 2 * torch.softmax(logits, 0) if softmax else logits
            seen.append(w.tolist())
            gradients = [torch.autograd.grad(w[k] * loss, where, create_graph=True) for k, loss in enumerate(losses)]
            sizes = torch.stack([torch.cat([g.flatten() for g in found]).norm() for found in gradients])
            ratios = torch.stack([loss.detach() / value for loss, value in zip(losses, first, strict=True)])
            target = (sizes.mean() * (ratios / ratios.mean()) ** alpha).detach()
            (slope,) = torch.autograd.grad((sizes - target).abs().sum(), logits, retain_graph=True)
            optimizer.zero_grad()
            sum(w[k].detach() * loss for k, loss in enumerate(losses)).backward()
            optimizer.step()
            logits.grad = slope
            mover.step()
            if not softmax:
                with torch.no_grad():
                    logits *= 2 / logits.sum()
    return model.state_dict(), seen


@both
@pytest.mark.parametrize(("layer", "initial"), [("last", "first"), ("all", "uniform"), ("encoder.0.weight", "first")])
def test_a_run_is_algorithm_1(weights: str, layer: str, initial: str) -> None:
    stream = two_task_stream(torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        start = models.mlp(stream, (8, 7)).double().state_dict()
    expected, weighed = loop(stream, start, 5, softmax=weights == "softmax", layer=layer, alpha=0.7,
                             first=[math.log(6), math.log(3)] if initial == "uniform" else None)  # fmt: skip

    def fresh() -> nn.Module:
        model = models.mlp(stream, (8, 7)).double()
        model.load_state_dict(start)
        return model

    found: list[dict[str, float]] = []
    plugin = GradNorm(alpha=0.7, learning_rate=0.05, layer=layer, initial_loss=initial, weights=weights)
    result = Engine(fresh, sgd(), [plugin, watching(found)], batch_size=8, epochs=5, seed=4).run(stream)
    for name, value in expected.items():
        torch.testing.assert_close(result.model.state_dict()[name], value, rtol=1e-8, atol=1e-11)
    assert [list(row.values()) for row in found] == [pytest.approx(row, rel=1e-8) for row in weighed]
    assert [sum(row) for row in weighed] == [pytest.approx(2)] * 15
    assert max(abs(row[0] - 1) for row in weighed) > 0.1, "they have been learned"


# ---------------------------------------------------------------------- what it is for


@both
def test_the_toy_of_the_paper(weights: str) -> None:
    """Alike regressions whose scales are 1 and 10: without weights the second is heard almost alone."""
    stream = streams.multitask("gradnorm-toy:rows=1200,features=20,outputs=10,scales=[1,10]", 1)

    def normalised(*plugins: Any) -> list[float]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = models.mlp(stream, (64, 64))
        options = {"batch_size": 50, "epochs": 30, "evaluate": "never"}
        _, events = final(Engine(model, lambda p: torch.optim.Adam(p, lr=1e-3), list(plugins), **options), stream)
        last = [event["losses"] for event in events if event["event"] == "epoch"][-1]
        return [last["y1"], last["y2"] / 100]

    plain, found = normalised(), normalised(GradNorm(alpha=0.12, weights=weights))
    assert plain[0] > 1.3 * plain[1]
    assert found[0] < 1.15 * found[1]
    assert found[0] < 0.9 * plain[0], "the quiet task gains"


@both
def test_gradients_come_to_one_size(weights: str) -> None:
    """α = 0; the loss of one side counts 30-fold."""
    stream = streams.multitask("digits", 1)
    ratios: list[float] = []

    def look(step: Any) -> None:
        losses = step.at().losses
        slopes = derivative(step.run.hooks.provide_weighting, losses, step)
        where = [p for name, p in step.run.parameters().items() if name.startswith("encoder.3.")]
        sizes = {side: slopes[side] * float(gradient_norm(loss, where)) for side, loss in losses.items()}
        ratios.append(sizes["right"] / sizes["left"])

    plugins = [GradNorm(alpha=0.0, weights=weights), loud("right", 30.0), probe("watch", before_step=look)]
    Engine(models.mlp(stream, (32, 16)), sgd(lr=0.02), plugins, epochs=5, evaluate="never").run(stream)
    assert ratios[0] > 15
    assert 0.5 < sorted(ratios[-60:])[30] < 2


# ---------------------------------------------------------------------- tasks


def numbers(run: Any) -> dict[str, float]:
    return {n.removeprefix("gradnorm/"): float(m.value.detach()) for n, m in run.modules.items() if n.startswith("gradnorm/")}


@both
def test_tasks_leave_and_enter(weights: str) -> None:
    """a and b, then b and c, then a and c: who is new has weight 1, who stays keeps ratios, and nobody takes over from another."""
    found, losses = list[dict[str, float]](), list[dict[str, float]]()
    plugin, spy = GradNorm(learning_rate=0.1, weights=weights), Spy()
    stream = changing_tasks("ab", "bc", "ac", dtype=torch.float64)
    plugins = [plugin, loud("a", 20.0), watching(found, losses), spy]
    Engine(models.mlp(stream, (8,)).double(), sgd(lr=0.01), plugins, batch_size=8, epochs=3).run(stream)
    assert [set(row) for row in found] == [{"a", "b"}] * 6 + [{"b", "c"}] * 6 + [{"a", "c"}] * 6
    assert [sum(row.values()) for row in found] == [pytest.approx(2)] * 18
    assert found[0] == {"a": 1.0, "b": 1.0}
    assert found[5]["a"] < 0.8
    assert found[6] == pytest.approx({"b": 1.0, "c": 1.0}), "not the weight that a left"
    assert found[12]["a"] / found[12]["c"] != pytest.approx(1, abs=0.01), "a is known: what was learned of both counts"
    assert plugin.state_dict()["first"] == pytest.approx({"a": losses[0]["a"], "b": losses[0]["b"], "c": losses[6]["c"]})
    assert list(numbers(spy.run)) == ["a", "b", "c"]


def test_a_batch_without_a_task_leaves_all_weights_where_they_are() -> None:
    met: list[tuple[int, dict[str, float]]] = []
    note = probe("note", after_step=lambda step: met.append((len(step.losses), numbers(step.run))))
    Engine(models.mlp(stream := separate_task_stream(1), (8,)), sgd(), [GradNorm(learning_rate=0.1), note], batch_size=2, epochs=3).run(
        stream
    )
    changes = [(tasks, after != before) for (_, before), (tasks, after) in itertools.pairwise(met)]
    assert {tasks for tasks, changed in changes if changed} == {2}
    assert sum(tasks == 1 for tasks, _ in changes) > 5
    assert met[-1][1]["a"] != 1.0
    assert sum(met[-1][1].values()) == pytest.approx(2)


@both
def test_the_order_of_the_tasks_does_not_count(weights: str) -> None:
    one, other = (left(of_tasks(*names), GradNorm(weights=weights)) for names in ("ab", "ba"))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-12)


@both
def test_an_absent_task_is_as_if_there_were_none(weights: str) -> None:
    plain, beside = (left(of_tasks("a", "b", unlabelled=more), GradNorm(weights=weights)) for more in ("", "z"))
    assert all(torch.equal(beside[name], value) for name, value in plain.items())


@both
def test_one_task_is_plain_training_bit_for_bit(weights: str) -> None:
    plain, _ = final(Engine(net(), sgd(), batch_size=10, epochs=3), class_stream())
    found, _ = final(Engine(net(), sgd(), [GradNorm(weights=weights)], batch_size=10, epochs=3), class_stream())
    assert all(torch.equal(found[name], value) for name, value in plain.items())


def test_parts_of_a_task_share_its_weight() -> None:
    found: list[dict[str, float]] = []
    spy, stream = Spy(), two_task_stream()
    plugins = [GradNorm(learning_rate=0.1), probe("split", transform_supervision=split), watching(found), spy]
    Engine(models.mlp(stream, (8,)), sgd(), plugins, batch_size=8, epochs=2).run(stream)
    assert list(numbers(spy.run)) == ["a", "b"]
    assert all(row["a@x"] == row["a/memory"] and row["a@x"] + row["strange"] == pytest.approx(2) for row in found)
    assert found[-1]["strange"] != 1.0


def test_a_weight_stays_above_0() -> None:
    """The weight that would be right is far below a step of Adam."""
    found: list[dict[str, float]] = []
    Engine(models.mlp(stream := two_task_stream(), (8,)), sgd(lr=1e-6), [GradNorm(learning_rate=0.3), loud("b", 1e5), watching(found)],
           batch_size=8, epochs=10).run(stream)  # fmt: skip
    assert all(row["b"] > 0 and row["a"] + row["b"] == pytest.approx(2) for row in found)
    assert min(row["b"] for row in found) < 1e-5


def test_a_regression_beside_a_classification() -> None:
    """The first loss of the regression is its own even where that of the other is the log of its classes."""
    source = blobs(16, 6)
    source.targets["value"] = 40 * torch.linspace(-1, 1, 16).view(16, 1)
    tasks = (Task("a", size=6), Task("v", "regression", size=1))
    stream = stream_of([(Data(source, torch.arange(16), tasks, {"a": Target("y"), "v": Target("value")}), tasks)], tasks)
    found: list[dict[str, float]] = []
    Engine(models.mlp(stream, (8,)), sgd(lr=1e-4), [GradNorm(initial_loss="uniform"), watching(found)], batch_size=8, epochs=6).run(stream)
    assert found[-1]["a"] > 1 > found[-1]["v"]


# ---------------------------------------------------------------------- beside others


def test_a_loss_that_is_no_number_raises() -> None:
    with pytest.raises(DivergenceError, match="loss of row 'b' is nan"):
        left(of_tasks("a", "b"), GradNorm(), loud("b", float("nan")))


def test_a_sum_combiner_changes_nothing() -> None:
    combine = probe("sum", provide_gradient_combination=lambda rows: dict.fromkeys(rows.names, 1.0))
    plain, combined = left(of_tasks("a", "b"), GradNorm()), left(of_tasks("a", "b"), GradNorm(), combine)
    for name, value in plain.items():
        torch.testing.assert_close(combined[name], value, rtol=1e-8, atol=1e-11)


def test_other_plugins_do_not_see_the_slopes() -> None:
    """Clipping, listed first, comes later: no slope makes the norm that it sees larger."""
    seen: list[set[str]] = []
    look = probe("look", transform_gradients=lambda gradients: (seen.append({n for n in gradients if "/" in n}), gradients)[1])
    found: list[dict[str, float]] = []
    left(of_tasks("a", "b"), Clipping(max_norm=1e-3), GradNorm(), look, watching(found))
    assert seen == [set()] * 8
    assert found[-1]["a"] != 1.0


@pytest.mark.parametrize("combiner", [PCGrad, MGDA])
@both
def test_beside_replay_penalties_a_teacher_and_a_combiner(combiner: Any, weights: str) -> None:
    stream, found = changing_tasks("ab", "bc", "ca"), list[dict[str, float]]()
    plugins = [
        GradNorm(weights=weights),
        Replay(capacity=12, batch_size=6),
        EWC(strength=2.0),
        LwF(strength=0.5),
        combiner(),
        watching(found),
    ]
    starts: list[dict[str, Tensor]] = []
    note = probe("note", before_experience=lambda run: starts.append(run.snapshot()))
    end, _ = final(Engine(models.mlp(stream, (8,)), sgd(weight_decay=0.0), [*plugins, note], batch_size=8, epochs=3), stream)
    assert all(bool(value.isfinite().all()) for value in end.values())
    for before, after in zip(starts, [*starts[1:], end], strict=True):
        assert any(not torch.equal(after[name], value) for name, value in before.items() if name.startswith("encoder."))
    assert {task for row in found[-6:] for task in row} == {"a", "b", "c"}


def test_under_sam_and_in_micro_batches() -> None:
    for plugins, options in (([SAM()], {}), ([], {"microbatches": 2})):
        found: list[dict[str, float]] = []
        left(of_tasks("a", "b"), GradNorm(), *plugins, watching(found), **options)
        assert [sum(row.values()) for row in found] == [pytest.approx(2)] * 8
        assert found[-1]["a"] != 1.0


def test_where_nothing_is_shared_weights_stay() -> None:
    frozen = models.mlp(stream := two_task_stream(), (8,))
    frozen.encoder.requires_grad_(False)
    found: list[dict[str, float]] = []
    Engine(frozen, sgd(), [GradNorm(), watching(found)], batch_size=8).run(stream)
    assert found == [{"a": 1.0, "b": 1.0}] * 3


@both
def test_stopped_and_resumed(weights: str, tmp_path: Path) -> None:
    stream = two_task_stream(experiences=2)

    def engine(**options: Any) -> Engine:
        plugins = [GradNorm(weights=weights)]
        return Engine(models.mlp(stream, (8,)), sgd(), plugins, batch_size=8, epochs=4, checkpoint_every=1, evaluate="end", **options)

    keeps_its_state(engine, stream, (8, 16), tmp_path)


def test_two_weightings_are_refused() -> None:
    with pytest.raises(CompositionError, match="claim 'provide_weighting', which one alone can answer: gradnorm, dwa"):
        Engine(models.mlp(two_task_stream(), (8,)), sgd(), [GradNorm(), DWA()])


@pytest.mark.parametrize("options", [{"alpha": -0.1}, {"learning_rate": 0.0}, {"layer": ""}, {"weights": "sigmoid"}, {"initial_loss": "x"}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"option '{next(iter(options))}'"):
        GradNorm(**options)


def test_a_layer_that_there_is_not() -> None:
    with pytest.raises(ConfigurationError, match=r"layer='heads\.\*' matches no shared parameter"):
        Engine(models.mlp(stream := two_task_stream(), (8,)), sgd(), [GradNorm(layer="heads.*")]).run(stream)
