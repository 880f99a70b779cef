from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamlearn import Engine, models, streams
from streamlearn.core.checkpoint import latest_checkpoint, read_checkpoint
from streamlearn.core.supervision import Supervision, losses_of_rows
from streamlearn.errors import CompositionError, ConfigurationError
from streamlearn.plugins import ERACE, EWC, SAM, ExperienceWeighting, LwF, Replay, UpdatesPerBatch
from streamlearn.plugins.replay.der import DER, _added, known_error
from streamlearn.streams import Batch, Task
from streamlearn.streams.data import Data, Target
from tests.core.support import (
    Spy,
    Stop,
    blobs,
    class_stream,
    final,
    growing_stream,
    net,
    probe,
    same,
    separate_task_stream,
    sgd,
    stop_at,
    stream_of,
    two_task_stream,
)  # fmt: skip
from tests.integration.conftest import no_drawing  # noqa: F401 - nobody looks at the figures of a run that is stopped and resumed

RATE, NAN = 0.1, float("nan")


def network(dtype: Any = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)).to(dtype)


def plain_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=RATE)


def doubles(experiences: int = 3) -> Any:
    source, task = blobs(60, 6, dtype=torch.float64), Task("t", size=6)
    pieces = []
    for i in range(experiences):
        wanted = (source.targets["y"] // 2 == i).nonzero().flatten()
        pieces.append((Data(source, wanted, (task,), {"t": Target("y")}), (task,)))
    return stream_of(pieces, (task,))


# ---------------------------------------------------------------------------------------------------- parts


def test_the_error_is_the_mean_over_what_is_known() -> None:
    draw = torch.Generator().manual_seed(0)
    outputs, stored = torch.randn(2, 5, 4, generator=draw, dtype=torch.float64)
    assert float(known_error([(outputs, stored)])) == pytest.approx(float(F.mse_loss(outputs, stored)), rel=1e-12)
    stored[1, 2:] = NAN
    stored[4] = NAN
    found = [(float(outputs[i, j]) - float(stored[i, j])) ** 2 for i in range(5) for j in range(4) if not bool(stored[i, j].isnan())]
    assert len(found) == 14
    assert float(known_error([(outputs, stored)])) == pytest.approx(sum(found) / 14, rel=1e-12)
    narrow = [(float(outputs[i, j]) - float(stored[i, j])) ** 2 for i in range(3) for j in range(2)]
    both = float(known_error([(outputs, stored), (outputs[:3], stored[:3, :2])]))
    assert both == pytest.approx((sum(found) + sum(narrow)) / 20, rel=1e-12)
    unknown = outputs.clone().requires_grad_()
    error = known_error([(unknown, torch.full((5, 4), NAN))])
    error.backward()
    assert (float(error.detach()), float(unknown.grad.abs().max())) == (0.0, 0.0)
    assert known_error([]) is None


@pytest.mark.parametrize("beta", [0.0, 0.3, 2.0])
def test_the_weights_give_one_mean_plus_beta_times_the_other(beta: float) -> None:
    draw = torch.Generator().manual_seed(1)
    tasks = {"a": Task("a", size=4), "b": Task("b", size=4)}
    outputs, target = torch.randn(12, 4, generator=draw, dtype=torch.float64), torch.randint(4, (12,), generator=draw)
    inside = torch.arange(12) % 3 == 1
    batch = Batch.uniform(torch.zeros(12, 1), "a", target, torch.arange(12))
    given = torch.rand(12, generator=draw, dtype=torch.float64)
    for weight in (None, given):
        # the first seven rows are of one task, the others of another
        parts = [
            Supervision(name, name, outputs[rows], target[rows], None if weight is None else weight[rows], rows=rows, scale=0.5)
            for name, rows in (("a", slice(0, 7)), ("b", slice(7, 12)))
        ]
        found = losses_of_rows(_added(tuple(parts), inside, beta), tasks, batch)
        total = sum(found.shares[name] * loss for name, loss in found.losses.items())
        each, counts = F.cross_entropy(outputs, target, reduction="none"), torch.ones(12).double() if weight is None else weight
        means = [(counts * each)[rows].sum() / counts[rows].sum() for rows in (~inside, inside)]
        assert float(total) == pytest.approx(0.5 * float(means[0] + beta * means[1]), rel=1e-12)


def test_rows_of_one_kind_alone() -> None:
    record = Supervision("a", "a", torch.zeros(3, 4), torch.tensor([0, 1, 2]))
    assert _added((record,), torch.zeros(3, dtype=torch.bool), 0.5) == (record,)
    (found,) = _added((record,), torch.ones(3, dtype=torch.bool), 0.5)
    assert (found.weight.tolist(), found.scale) == ([1.0] * 3, 0.5)


# ---------------------------------------------------------------------------------------------------- the authors' algorithm


@pytest.mark.parametrize(("alpha", "beta"), [(0.7, 0.0), (0.3, 0.5), (0.0, 0.5)])
@pytest.mark.parametrize("fill", ["step", "experience"])
def test_training_is_that_of_a_loop_by_hand(alpha: float, beta: float, fill: Any) -> None:
    """Which rows are offered, kept and drawn is taken from the run; their outputs, the losses and the updates are made anew."""
    steps: list[Any] = []
    watch = probe("watch", before_step=lambda step: steps.append((step.run.clock.experience, step.batch)))
    der = DER(alpha=alpha, beta=beta, capacity=15, fill=fill, batch_size=7)
    result = Engine(network(), plain_sgd, [der, watch], batch_size=5).run(doubles())

    model = network()
    optimizer = plain_sgd(model.parameters())
    stored: dict[int, Tensor] = {}
    arrived: list[tuple[Tensor, Tensor]] = []
    compared = last = 0
    for experience, batch in steps:
        if experience != last and fill == "experience":
            for index, x in arrived:
                stored |= dict(zip(index.tolist(), model(x).detach(), strict=True))
            arrived = []
        last = experience
        x, y, index = batch.x, batch.targets["t"], batch.index
        now, logits, labels = (batch.rows(role) for role in ("train", "memory/der/logits", "memory/der/labels"))
        outputs = model(x[now])
        loss = F.cross_entropy(outputs, y[now])
        if logits.start < logits.stop:
            compared += 1
            loss = loss + alpha * F.mse_loss(model(x[logits]), torch.stack([stored[i] for i in index[logits].tolist()]))
        if labels.start < labels.stop:
            loss = loss + beta * F.cross_entropy(model(x[labels]), y[labels])
        optimizer.zero_grad()
        loss.backward()
        if fill == "step":
            stored |= dict(zip(index[now].tolist(), outputs.detach(), strict=True))
        else:
            arrived.append((index[now], x[now]))
        optimizer.step()
    assert compared == (0 if alpha == 0 else 11 if fill == "step" else 8)
    mine = {name.removeprefix("encoder."): value for name, value in result.model.state_dict().items()}
    for name, value in model.state_dict().items():
        torch.testing.assert_close(mine[name], value, rtol=0, atol=2e-7)  # outputs are kept as float32


def test_the_draws_are_two_and_their_rows_have_their_outputs_or_their_labels() -> None:
    batches: list[Batch] = []
    watch = probe("watch", before_step=lambda step: batches.append(step.batch))
    Engine(net(), sgd(), [DER(beta=0.5, capacity=40, fill="experience"), watch], batch_size=10).run(class_stream())
    assert [b.roles for b in batches[:2]] == [("train",)] * 2
    differ = 0
    for batch in batches[2:]:
        assert batch.roles == ("train", "memory/der/labels", "memory/der/logits")
        assert len(batch) == 30
        logits, labels = batch.rows("memory/der/logits"), batch.rows("memory/der/labels")
        differ += batch.index[logits].tolist() != batch.index[labels].tolist()
        known = batch.labelled_rows("blobs")
        assert not bool(known[logits].any())
        assert bool(known[labels].all())
        assert bool(known[batch.rows("train")].all())
        assert batch.stored["der/logits/blobs"].rows == logits
        assert not bool(batch.targets["blobs"][logits].any()), "labels are nowhere to be found"
    assert differ == 4


def test_outputs_are_those_before_the_update_in_training_mode() -> None:
    seen: dict[int, Tensor] = {}

    def look(objective: Any, step: Any) -> Any:
        found = objective(step)
        rows = step.batch.rows("train")
        seen.update(zip(step.batch.index[rows].tolist(), step.outputs["blobs"][rows].detach().clone(), strict=True))
        return found

    spy = Spy()
    Engine(net(), sgd(), [DER(capacity=60), spy, probe("watch", around_objective=look)], batch_size=10).run(class_stream())
    memory = spy.run.memories.find("main")
    kept = memory.all_rows()
    assert len(kept) == 60
    assert torch.equal(kept.stored["der/logits/blobs"].values, torch.stack([seen[i] for i in kept.index.tolist()]))


def test_outputs_are_those_of_theta_where_the_objective_looks_elsewhere() -> None:
    """SAM never evaluates θ's own outputs after its first look: they are still there, and from before the update."""
    snapshots: dict[int, Tensor] = {}
    model = network(torch.float32)

    def look(step: Any) -> None:
        with torch.no_grad():
            rows = step.batch.rows("train")
            found = step.run.model(step.batch.x[rows], "blobs")
        snapshots.update(zip(step.batch.index[rows].tolist(), found, strict=True))

    spy = Spy()
    Engine(model, plain_sgd, [DER(capacity=60), SAM(rho=0.5), spy, probe("watch", before_step=look)], batch_size=10).run(class_stream())
    kept = spy.run.memories.find("main").all_rows()
    torch.testing.assert_close(kept.stored["der/logits/blobs"].values, torch.stack([snapshots[i] for i in kept.index.tolist()]))


def test_outputs_of_the_end_of_an_experience_are_those_of_evaluation() -> None:
    spy = Spy()
    result = Engine(net(), sgd(), [DER(capacity=12, fill="experience"), spy], batch_size=10).run(class_stream(1))
    kept = spy.run.memories.find("main").all_rows()
    model = result.model.eval()
    with torch.no_grad():
        assert torch.equal(kept.stored["der/logits/blobs"].values, model(kept.x, "blobs"))


# ---------------------------------------------------------------------------------------------------- Avalanche


def test_one_step_of_avalanches_der_is_ours_on_the_same_rows() -> None:
    """Avalanche has one draw for both parts and no hook that could stand alone: its own epoch runs over one batch."""
    with warnings.catch_warnings(record=True):  # recorded, because Avalanche forces some through every filter
        warnings.simplefilter("ignore")
        strategy_of = pytest.importorskip("avalanche.training.supervised.der").DER
    seen: list[Any] = []

    def look(step: Any) -> None:
        column = step.batch.stored.get("der/logits/blobs")
        seen.append((step.batch, None if column is None else column.values.clone(), copy.deepcopy(step.run.model.state_dict())))

    der = DER(alpha=0.4, beta=0.7, capacity=20, fill="experience", batch_size=20)  # both draws are all twenty rows
    model = network(torch.float32)
    result = Engine(model, plain_sgd, [der, probe("watch", before_step=look)], batch_size=20).run(class_stream()[:2])
    batch, values, state = seen[-1]
    ours = {name.removeprefix("encoder."): value for name, value in result.model.state_dict().items()}
    theirs = network(torch.float32)
    theirs.load_state_dict({name.removeprefix("encoder."): value for name, value in state.items()})
    logits, labels, now = (batch.rows(role) for role in ("memory/der/logits", "memory/der/labels", "train"))
    order = [batch.index[logits].tolist().index(i) for i in batch.index[labels].tolist()]
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("ignore")
        strategy = strategy_of(
            model=theirs, optimizer=plain_sgd(theirs.parameters()), mem_size=20, batch_size_mem=20, alpha=0.4, beta=0.7, train_mb_size=20,
            evaluator=None,
        )  # fmt: skip
        zeros = torch.zeros(20, dtype=torch.int64)
        strategy.dataloader = [[batch.x[now], batch.targets["blobs"][now], zeros]]
        strategy.replay_loader = iter([(batch.x[labels], batch.targets["blobs"][labels], zeros, values[order])])
        strategy._stop_training, strategy.is_training = False, True
        theirs.train()
        strategy.training_epoch()
    moved = max(float((theirs.state_dict()[name] - state[f"encoder.{name}"]).abs().max()) for name in theirs.state_dict())
    assert moved > 1e-3
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------------------- effect


@pytest.mark.parametrize("settings", [{"alpha": 2.0}, {"alpha": 0.5, "beta": 1.0}, {"alpha": 0.5, "fill": "experience"}])
def test_it_remembers_digits(settings: dict[str, Any]) -> None:
    def accuracy(*plugins: Any) -> float:
        stream = streams.class_incremental("digits", 5)
        engine = Engine(models.mlp(stream, (64,)), plain_sgd, list(plugins), batch_size=10, seed=1, evaluate="end")
        return float(engine.run(stream).metrics["average_accuracy"])

    assert accuracy(DER(capacity=200, **settings)) > accuracy() + 0.2


# ---------------------------------------------------------------------------------------------------- beside others


def run_with(*plugins: Any, stream: Any = None, model: Any = None, **options: Any) -> tuple[Any, list[Any]]:
    spy, steps = Spy(), []

    def look(objective: Any, step: Any) -> Any:
        found = objective(step)
        steps.append((step.batch, {n: float(t.detach()) for n, t in {**found.losses, **found.terms}.items()}))
        return found

    stream = stream or class_stream()
    engine = Engine(model or net(), sgd(), [*plugins, spy, probe("eye", around_objective=look)], **({"batch_size": 10} | options))
    engine.run(stream)
    return spy.run, steps


@pytest.mark.parametrize("fill", ["step", "experience"])
def test_heads_grow_and_what_did_not_exist_is_not_compared(fill: Any) -> None:
    stream, columns = growing_stream(), []

    def look(step: Any) -> None:
        if "der/logits/t" in step.batch.stored:
            column = step.batch.stored["der/logits/t"]
            columns.append((step.run.clock.experience, step.batch.index[column.rows], column.values.clone()))

    watch = probe("watch", before_step=look)
    run, _ = run_with(DER(beta=0.5, capacity=60, fill=fill), watch, stream=stream, model=models.mlp(stream, (8,)))
    assert columns
    for experience, index, values in columns:
        if experience < 3:
            known = (~values.isnan()).sum(1)
            assert known.tolist() == [2 * (i % 6 // 2) + 2 for i in index.tolist()], "as many as the head had when the row came"
    kept = run.memories.find("main").all_rows()
    assert {name: c.values.shape[1] for name, c in kept.stored.items()} == {"der/logits/t": 6, "der/logits/other": 3}


@pytest.mark.parametrize("fill", ["step", "experience"])
@pytest.mark.parametrize("make", [two_task_stream, separate_task_stream])
def test_outputs_are_kept_by_task(fill: Any, make: Any) -> None:
    stream = make(experiences=2)
    run, steps = run_with(DER(beta=0.5, capacity=20, fill=fill), stream=stream, model=models.mlp(stream, (8,)))
    kept = run.memories.find("main").all_rows()
    for segment in kept.segments:
        for task in ("a", "b"):
            unknown = kept.stored[f"der/logits/{task}"].values[segment.rows].isnan()
            assert bool(unknown.all() if task not in segment.tasks else ~unknown.any())
    assert any("der/logits" in found for _, found in steps)


def test_regression_and_domains() -> None:
    source = blobs(40, 6)
    source.targets["r"] = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    task = Task("r", "regression", size=2)
    pieces = [(Data(source, torch.arange(20 * i, 20 * i + 20), (task,), {"r": Target("r")}, domain=f"d{i}"), (task,)) for i in range(2)]
    stream = stream_of(pieces, (task,))
    for fill in ("step", "experience"):
        run, _ = run_with(DER(beta=0.5, capacity=15, fill=fill), stream=stream, model=models.mlp(stream, (8,)))
        assert not bool(run.memories.find("main").all_rows().stored["der/logits/r"].values.isnan().any())


def test_beside_other_plugins() -> None:
    stream = growing_stream()
    ders = [DER(beta=0.5, capacity=20), DER(capacity=9, memory="c", name="b")]
    plugins = [EWC(strength=1.0), LwF(), Replay(capacity=20, memory="other"), *ders]
    _, steps = run_with(*plugins, stream=stream, model=models.mlp(stream, (8,)), epochs=2)
    batch, found = steps[-1]
    assert {"memory", "memory/der/logits", "memory/der/labels", "memory/b/logits"} <= set(batch.roles)
    assert set(batch.stored) >= {"der/logits/t", "b/logits/t"}
    assert {"der", "b", "ewc", "lwf"} <= {name.partition("/")[0] for name in found}


def test_masks_of_er_ace_hold_for_the_labelled_draw() -> None:
    seen: list[Any] = []

    def look(supervision: Any, step: Any) -> Any:
        seen.append((step.batch, supervision))
        return supervision

    run_with(ERACE(), DER(beta=0.5, capacity=30), probe("late", transform_supervision=look))
    batch, records = seen[-1]
    labels = batch.rows("memory/der/labels")
    assert [torch.arange(len(batch))[r.rows].tolist() for r in records] == [list(range(10)), list(range(labels.start, labels.stop))]
    assert int(records[0].active.sum()) == 2, "the classes of the batch"
    assert bool(records[1].active.all())
    assert records[1].weight.unique().tolist() == pytest.approx([0.5])
    with pytest.raises(CompositionError, match="der cannot stand beside experience_weighting"):
        Engine(net(), sgd(), [DER(), ExperienceWeighting()])


def test_with_microbatches_of_equal_size_nothing_changes() -> None:
    model = lambda: network(torch.float32)  # noqa: E731 - without dropout or BatchNorm
    weights = []
    for count in (1, 5):
        engine = Engine(model(), plain_sgd, [DER(alpha=0.3, beta=0.5, capacity=30, batch_size=10)], batch_size=10, microbatches=count)
        weights.append(final(engine, class_stream())[0])
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", [0, 1])
def test_another_plugin_may_fill_the_memory_for_outputs_at_the_end_only(order: int) -> None:
    both = [DER(capacity=30, fill="experience"), Replay(capacity=30, fill="step")]
    run, steps = run_with(*both[:: 1 - 2 * order])
    memory = run.memories.find("main")
    assert (memory.owner, memory.offered, len(memory.lacking("der/logits/blobs"))) == ("replay", 60, 0)
    assert all("memory/der/logits" not in batch.roles for batch, _ in steps[:2]), "no row has outputs before the first experience ends"
    assert all("memory/der/logits" in batch.roles for batch, _ in steps[2:])
    both = [DER(capacity=30), Replay(capacity=30, fill="step")]
    run, _ = run_with(*both[:: 1 - 2 * order])
    memory = run.memories.find("main")
    assert (memory.owner, memory.offered, len(memory.lacking("der/logits/blobs"))) == ("der", 60, 0)
    with pytest.raises(ConfigurationError, match="plugin der: memory 'main' is filled by second, which does not keep the outputs"):
        run_with(DER(capacity=30, name="second"), DER(capacity=30))


def test_a_batch_that_makes_several_updates_is_offered_once_with_its_first_outputs() -> None:
    first: dict[int, Tensor] = {}

    def look(step: Any) -> None:
        rows = step.batch.rows("train")
        with torch.no_grad():
            found = step.run.model(step.batch.x[rows], "blobs")
        for i, value in zip(step.batch.index[rows].tolist(), found, strict=True):
            first.setdefault(i, value)

    plugins = [DER(capacity=60), UpdatesPerBatch(updates=3), probe("watch", before_step=look)]
    run, _ = run_with(*plugins, model=network(torch.float32), epochs=2)
    memory = run.memories.find("main")
    assert memory.offered == 60
    kept = memory.all_rows()
    torch.testing.assert_close(kept.stored["der/logits/blobs"].values, torch.stack([first[i] for i in kept.index.tolist()]))


def test_rows_without_a_label_and_batches_without_any() -> None:
    source, task = blobs(40, 6), Task("t", size=6)
    pieces = []
    for i in range(2):
        labelled = {"t": torch.arange(20) % 4 == 0} if i else {"t": torch.zeros(20, dtype=torch.bool)}
        pieces.append((Data(source, torch.arange(20 * i, 20 * i + 20), (task,), {"t": Target("y")}, labelled=labelled), (task,)))
    run, _ = run_with(DER(beta=0.5, capacity=40), stream=stream_of(pieces, (task,)))
    memory = run.memories.find("main")
    assert memory.offered == 40
    assert len(memory.lacking("der/logits/t")) == 0


def test_strength_zero_is_plain_training() -> None:
    bare = final(Engine(net(), sgd(), [], batch_size=10), class_stream())[0]
    mine = final(Engine(net(), sgd(), [DER(alpha=0, beta=0, fill="experience")], batch_size=10), class_stream())[0]
    assert same(bare, mine)


@pytest.mark.parametrize("fill", ["step", "experience"])
def test_episodes_are_refused(fill: Any) -> None:
    stream = streams.episodes("digits", ways=2, shots=1, queries=1, train_episodes=5, test_episodes=1)
    with pytest.raises(ConfigurationError, match="memory 'main' keeps rows, but experience 0 has episodes"):
        Engine(models.mlp(stream, (8,)), sgd(), [DER(fill=fill)]).run(stream)


def test_herding_needs_whole_experiences() -> None:
    with pytest.raises(ConfigurationError, match="use fill='experience', or another policy"):
        run_with(DER(policy="herding"))
    run, _ = run_with(DER(policy="herding", capacity=12, fill="experience"))
    assert len(run.memories.find("main").lacking("der/logits/blobs")) == 0


@pytest.mark.parametrize("fill", ["step", "experience"])
@pytest.mark.parametrize("stop", [3, 7])
def test_stopped_and_resumed_equals_the_straight_run(fill: Any, stop: int, tmp_path: Path, no_drawing: None) -> None:  # noqa: F811
    stream = growing_stream()

    def engine(**options: Any) -> Engine:
        plugins = [EWC(strength=1.0), DER(alpha=0.4, beta=0.5, capacity=15, fill=fill)]
        return Engine(models.mlp(stream, (8,)), sgd(), plugins, batch_size=6, epochs=2, checkpoint_every=1, **options)

    expected = final(engine(), stream, output=tmp_path / "straight")
    with pytest.raises(Stop):
        engine(progress=stop_at(stop)).run(stream, output=tmp_path / "stopped")
    result = engine().resume(tmp_path / "stopped", stream)
    assert same(dict(result.model.state_dict()), expected[0])
    assert same(result.events, expected[1])
    states = [read_checkpoint(latest_checkpoint(tmp_path / where / "checkpoints")[0]) for where in ("straight", "stopped")]
    kept = [state["memories"]["main"]["state"] for state in states]
    columns = [{name: column.nan_to_num(12345.0) for name, column in memory.pop("stored").items()} for memory in kept]
    assert columns[0].keys() == {"der/logits/t", "der/logits/other"}
    assert same(columns[0], columns[1])
    assert same(kept[0], kept[1])
