from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchjd import scalarization as torchjd

from streamlearn import Engine, models, streams
from streamlearn.core.optimization import Optimization, Trainable
from streamlearn.core.sampling import shuffled
from streamlearn.errors import CompositionError, ConfigurationError, DivergenceError, TrainingError
from streamlearn.models import Heads, Model
from streamlearn.plugins import EWC, MAML, MGDA, SAM, LwF, PCGrad, Replay
from streamlearn.plugins.weighting.famo import FAMO, balanced_logarithms, logit_slopes
from streamlearn.streams import Stream, Task
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
from tests.plugins.weighting.observed import changing_tasks, drawn_start, split, watching
from tests.plugins.weighting.test_closed_form_weightings import left, of_tasks


def logits(run: Any) -> dict[str, float]:
    return {n.removeprefix("famo/"): float(m.value.detach()) for n, m in run.modules.items() if n.startswith("famo/")}


def loud(task: str, factor: float) -> Any:
    """A plugin that counts the loss of one task so many times."""
    return probe("loud", transform_supervision=lambda supervision: tuple(
        r.replace(scale=factor if r.task == task else 1.0) for r in supervision))  # fmt: skip


# ---------------------------------------------------------------------- the formula


def test_the_formulas_are_torchjds() -> None:
    """With bounds, over ten steps of drawn losses."""
    draw = torch.Generator().manual_seed(0)
    bounds = torch.tensor([0.0, 0.5, -1.0], dtype=torch.float64)
    oracle = torchjd.FAMO(3, bounds, lr=0.1, weight_decay=0.01).double()
    own = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    adam = torch.optim.Adam([own], lr=0.1, weight_decay=0.01)
    for _ in range(10):
        before, after = (torch.rand(3, generator=draw, dtype=torch.float64) + 0.6 for _ in range(2))
        one, other = before.clone().requires_grad_(), before.clone().requires_grad_()
        value = balanced_logarithms(dict(zip("abc", one - bounds + 1e-8, strict=True)), dict(zip("abc", own, strict=True)))
        expected = oracle(other)
        torch.testing.assert_close(value, expected)
        value.backward()
        expected.backward()
        torch.testing.assert_close(one.grad, other.grad)
        assert float(one.grad.sum()) == pytest.approx(1), "a convex combination"
        oracle.update(after)
        own.grad = logit_slopes(own.detach(), (before - bounds + 1e-8).log() - (after - bounds + 1e-8).log())
        adam.step()
        torch.testing.assert_close(own.detach(), oracle._w.detach())
    assert own.abs().max() > 0.1


def test_the_slopes_are_the_jacobian_of_the_softmax() -> None:
    draw = torch.Generator().manual_seed(1)
    xi, falls = (torch.randn(4, generator=draw, dtype=torch.float64) for _ in range(2))
    jacobian: Any = torch.func.jacrev(lambda v: torch.softmax(v, 0))(xi)
    torch.testing.assert_close(logit_slopes(xi, falls), jacobian.T @ falls)


def test_the_scale_of_a_loss_changes_no_direction() -> None:
    draw = torch.Generator().manual_seed(2)
    at, targets = (torch.randn(size, generator=draw, dtype=torch.float64) for size in ((4,), (2, 4)))
    found = []
    for scale in (1.0, 1000.0):
        here = at.clone().requires_grad_()
        losses = {"a": (here - targets[0]).square().sum(), "b": scale * (here - targets[1]).square().sum()}
        balanced_logarithms(losses, {"a": torch.tensor(0.3), "b": torch.tensor(-0.3)}).backward()
        found.append(here.grad / here.grad.norm())
    torch.testing.assert_close(*found)


# ---------------------------------------------------------------------- a run against a loop


@pytest.mark.parametrize("decay", [1e-3, 0.1])
def test_a_run_is_a_plain_loop_with_torchjds(decay: float) -> None:
    stream = two_task_stream(torch.float64)
    start = drawn_start(stream)

    def fresh() -> nn.Module:
        model = models.mlp(stream, (8,)).double()
        model.load_state_dict(start)
        return model

    weights: list[dict[str, float]] = []
    spy = Spy()
    plugins = [FAMO(learning_rate=0.1, decay=decay), watching(weights), spy]
    result = Engine(fresh, sgd(), plugins, batch_size=8, epochs=4, seed=4).run(stream)
    plain, oracle = fresh(), torchjd.FAMO(2, lr=0.1, weight_decay=decay).double()
    optimizer, data, expected = sgd()(plain.parameters()), stream[0].data["train"], []
    for epoch in range(4):
        for positions in shuffled(len(data), 8, False, 0, 4, 0, 0, epoch).split(8):
            batch = data.batch(positions)

            def losses(batch: Any = batch) -> Tensor:
                return torch.stack([nn.functional.cross_entropy(plain(batch.x, task), batch.targets[task]) for task in ("a", "b")])

            found = losses()
            leaves = found.detach().requires_grad_()
            expected.append(torch.autograd.grad(oracle(leaves), leaves)[0].tolist())
            optimizer.zero_grad()
            oracle(found).backward()
            optimizer.step()
            with torch.no_grad():
                oracle.update(losses())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value, rtol=1e-8, atol=1e-11)
    assert list(logits(spy.run).values()) == pytest.approx(oracle._w.tolist(), rel=1e-7)
    assert [list(row.values()) for row in weights] == [pytest.approx(row, rel=1e-7) for row in expected]
    assert all(abs(w) > 0.05 for w in oracle._w.tolist()), "they have been learned"


# ---------------------------------------------------------------------- the same rows, the same masks


class Noisy(nn.Module):
    """Dropout and BatchNorm; counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5))
        self.passes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append(len(x))
        return self.body(x)


def noisy() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(Noisy(), Heads(12, [Task("a", size=6), Task("b", size=3)]))


@pytest.mark.parametrize("others", [[], [SAM(rho=0.5)], [Replay(capacity=8, batch_size=4)]], ids=["alone", "sam", "replay"])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_where_the_model_stands_still_no_loss_falls(others: Any, microbatches: int) -> None:
    """Other masks, other rows, other statistics or an ascended point would show."""
    spy, stream = Spy(), two_task_stream(experiences=2)
    plugins = [FAMO(decay=0.0), *others, spy]
    still = sgd(lr=0.0, momentum=0.0, weight_decay=0.0)
    Engine(noisy, still, plugins, batch_size=8, epochs=2, microbatches=microbatches).run(stream)
    assert logits(spy.run) == {"a": 0.0, "b": 0.0}


def test_the_statistics_of_batchnorm_move_once() -> None:
    stream, still = two_task_stream(), sgd(lr=0.0, momentum=0.0, weight_decay=0.0)
    plain, found = (final(Engine(noisy, still, plugins, batch_size=8), stream)[0] for plugins in ([], [FAMO()]))
    assert all(torch.equal(found[name], value) for name, value in plain.items())


@pytest.mark.parametrize(("options", "passes"), [({}, [8, 8]), ({"microbatches": 2}, [4, 4, 8, 8])])
def test_the_passes_that_are_declared(options: dict[str, Any], passes: list[int]) -> None:
    engine = Engine(noisy, sgd(), [FAMO()], batch_size=8, evaluate="never", **options)
    result = engine.run(two_task_stream())
    assert result.model.encoder.passes == 3 * passes
    assert FAMO().passes.forward == 1


def test_a_batch_of_one_task_costs_nothing_and_moves_nothing() -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    note = probe("note", after_step=lambda step: seen.append((len(step.losses), logits(step.run))))
    stream = separate_task_stream(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model(Noisy(), Heads(12, [Task("a", size=6), Task("b", size=6)]))
    result = Engine(model, sgd(), [FAMO(), note], batch_size=2, epochs=3, evaluate="never").run(stream)
    both = sum(tasks == 2 for tasks, _ in seen)
    assert 5 < both < len(seen) - 5
    assert len(result.model.encoder.passes) == len(seen) + both
    for (_, before), (tasks, after) in itertools.pairwise(seen):
        assert (before == after) is (tasks == 1)


# ---------------------------------------------------------------------- what it is for


def test_a_task_that_is_heard_faintly_learns() -> None:
    """The loss of the right side counts 30-fold: alone, the left one is hardly learned."""
    stream = streams.multitask("digits", 1)

    def last(*plugins: Any) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = models.mlp(stream, (64,))
        engine = Engine(model, lambda p: torch.optim.Adam(p, lr=1e-3), [*plugins, loud("right", 30.0)], epochs=8, evaluate="never")
        _, events = final(engine, stream)
        return [event["losses"] for event in events if event["event"] == "epoch"][-1]

    plain, found = last(), last(FAMO())
    assert found["left"] < 0.6 * plain["left"]
    assert 0.5 < found["left"] / (found["right"] / 30) < 2


# ---------------------------------------------------------------------- tasks


def test_tasks_leave_and_enter() -> None:
    """a and b, then b and c, then a and c: who is new gets the share of those beside it, and nobody takes over from another."""
    weights, losses, spy = list[dict[str, float]](), list[dict[str, float]](), Spy()
    starts: list[dict[str, float]] = []
    note = probe("note", before_experience=lambda run: starts.append(logits(run)))
    stream = changing_tasks("ab", "bc", "ac", dtype=torch.float64)
    plugins = [FAMO(learning_rate=0.3), watching(weights, losses), note, spy]
    Engine(models.mlp(stream, (8,)).double(), sgd(), plugins, batch_size=8, epochs=3).run(stream)
    assert [list(found) for found in starts] == [["a", "b"], ["a", "b", "c"], ["a", "b", "c"]]
    assert starts[0] == {"a": 0.0, "b": 0.0}
    assert abs(starts[1]["a"] - starts[1]["b"]) > 0.1
    assert starts[1]["c"] == pytest.approx(starts[1]["b"])
    assert weights[6]["b"] * losses[6]["b"] == pytest.approx(weights[6]["c"] * losses[6]["c"], rel=1e-6), "equal shares z"
    assert starts[2]["a"] == starts[1]["a"], "what is away stays where it is"
    assert logits(spy.run)["b"] == starts[2]["b"]
    assert [sum(row.values()) for row in weights] == [pytest.approx(1, abs=1e-6)] * 18


def test_the_order_of_the_tasks_does_not_count() -> None:
    one, other = (left(of_tasks(*names), FAMO(learning_rate=0.1)) for names in ("ab", "ba"))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-12)


def test_an_absent_task_is_as_if_there_were_none() -> None:
    plain, beside = (left(of_tasks("a", "b", unlabelled=more), FAMO(learning_rate=0.1)) for more in ("", "z"))
    assert all(torch.equal(beside[name], value) for name, value in plain.items())


def test_one_task_is_plain_training() -> None:
    """Up to rounding, as c D log D has it."""
    plain, found = (final(Engine(net(), sgd(), plugins, batch_size=10), class_stream())[0] for plugins in ([], [FAMO()]))
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


def test_parts_of_a_task_share_its_number() -> None:
    """The loss of a task is the mean over its rows."""
    weights, losses, spy, stream = list[dict[str, float]](), list[dict[str, float]](), Spy(), two_task_stream(torch.float64)
    plugins = [FAMO(), probe("split", transform_supervision=split), watching(weights, losses), spy]
    Engine(models.mlp(stream, (8,)).double(), sgd(), plugins, batch_size=8).run(stream)
    assert list(logits(spy.run)) == ["a", "b"]
    first, w = losses[0], weights[0]
    mean = (first["a@x"] + first["a/memory"]) / 2
    scale = 1 / (0.5 / mean + 0.5 / first["strange"])
    assert w == pytest.approx({"a@x": scale / mean / 4, "a/memory": scale / mean / 4, "strange": scale / first["strange"] / 2}, rel=1e-6)


def regression_beside_a_classification() -> Stream:
    source = blobs(16, 6)
    source.targets["value"] = torch.linspace(-1, 1, 16).view(16, 1)
    tasks = (Task("a", size=6), Task("v", "regression", size=1))
    return stream_of([(Data(source, torch.arange(16), tasks, {"a": Target("y"), "v": Target("value")}), tasks)], tasks)


def test_a_regression_beside_a_classification() -> None:
    stream = regression_beside_a_classification()
    _, events = final(Engine(models.mlp(stream, (8,)), sgd(), [FAMO()], batch_size=8, epochs=8), stream)
    means = [event["losses"] for event in events if event["event"] == "epoch"]
    assert all(means[-1][task] < means[0][task] for task in ("a", "v"))


# ---------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(("bound", "when"), [(30.0, ""), (3.0, " after the update")])
def test_a_loss_below_its_bound_is_refused(bound: float, when: str) -> None:
    told = rf"famo: the loss of task 'b' is \d\.\d+{when}, below its bound {bound:g}, and has no logarithm then: give a lower one"
    with pytest.raises(TrainingError, match=told):
        left(of_tasks("a", "b"), FAMO(bounds={"b": bound}))
    found = left(of_tasks("a", "b"), FAMO(bounds={"b": -3.0}))
    assert not torch.equal(found["encoder.0.weight"], left(of_tasks("a", "b"), FAMO())["encoder.0.weight"])


def test_a_loss_of_0_has_a_logarithm() -> None:
    assert balanced_logarithms({"a": torch.tensor(1e-8)}, {"a": torch.tensor(0.0)}).isfinite()
    found = left(of_tasks("a", "b"), FAMO(), loud("b", 0.0))
    assert all(bool(value.isfinite().all()) for value in found.values())


def test_a_loss_that_is_no_number_raises() -> None:
    with pytest.raises(DivergenceError, match="loss of row 'b' is nan"):
        left(of_tasks("a", "b"), FAMO(), loud("b", float("nan")))


def test_an_update_that_goes_astray_raises_at_once() -> None:
    leap = probe("leap", transform_gradients=lambda gradients: {name: g + float("inf") for name, g in gradients.items()})
    with pytest.raises(DivergenceError, match=r"at experience 0.*the loss of task 'a' is nan after the update; start again"):
        left(of_tasks("a", "b"), FAMO(), leap)


def test_an_inner_loop_and_a_second_weighting_are_refused() -> None:
    with pytest.raises(CompositionError, match=r"famo cannot stand beside maml \(inner-loop\)"):
        Engine(models.mlp(two_task_stream(), (8,)), sgd(), [FAMO(), MAML()])


@pytest.mark.parametrize("options", [{"learning_rate": 0.0}, {"decay": -1.0}, {"bounds": {"a": float("nan")}}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"option '{next(iter(options))}"):
        FAMO(**options)


# ---------------------------------------------------------------------- beside others


def test_a_sum_combiner_changes_nothing() -> None:
    combine = probe("sum", provide_gradient_combination=lambda rows: dict.fromkeys(rows.names, 1.0))
    plain, combined = left(of_tasks("a", "b"), FAMO()), left(of_tasks("a", "b"), FAMO(), combine)
    for name, value in plain.items():
        torch.testing.assert_close(combined[name], value, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("combiner", [PCGrad, MGDA])
def test_beside_replay_penalties_a_teacher_and_a_combiner(combiner: Any) -> None:
    stream, weights = changing_tasks("ab", "bc", "ca"), list[dict[str, float]]()
    plugins = [FAMO(), Replay(capacity=12, batch_size=6), EWC(strength=2.0), LwF(strength=0.5), combiner(), watching(weights)]
    starts: list[dict[str, Tensor]] = []
    note = probe("note", before_experience=lambda run: starts.append(run.snapshot()))
    end, _ = final(Engine(models.mlp(stream, (8,)), sgd(weight_decay=0.0), [*plugins, note], batch_size=8, epochs=3), stream)
    assert all(bool(value.isfinite().all()) for value in end.values())
    for before, after in zip(starts, [*starts[1:], end], strict=True):
        assert any(not torch.equal(after[name], value) for name, value in before.items() if name.startswith("encoder."))
    assert {task for row in weights[-6:] for task in row} == {"a", "b", "c"}


def test_stopped_and_resumed(tmp_path: Path) -> None:
    stream = two_task_stream(experiences=2)

    def engine(**options: Any) -> Engine:
        return Engine(noisy, sgd(), [FAMO()], batch_size=8, epochs=4, checkpoint_every=1, evaluate="end", **options)

    keeps_its_state(engine, stream, (8, 16), tmp_path)


def test_a_module_moves_by_its_own_optimiser_alone() -> None:
    """What FAMO needs of the engine: `Optimization.move`."""
    model, helper = nn.Linear(1, 1), nn.Linear(1, 1)
    optimization = Optimization(lambda p: torch.optim.SGD(p, lr=1.0), model)
    optimization.add("p/m", Trainable(helper, optimizer=lambda p: torch.optim.SGD(p, lr=0.5)))
    helper.bias.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in optimization.parameters().items()}
    optimization.move("p/m", {"weight": torch.ones(1, 1), "bias": torch.ones(1)})
    moved = {name: float(before[name] - p.detach()) for name, p in optimization.parameters().items()}
    assert moved == pytest.approx({"weight": 0, "bias": 0, "p/m.weight": 0.5, "p/m.bias": 0})
    assert all(p.grad is None for p in optimization.parameters().values())
