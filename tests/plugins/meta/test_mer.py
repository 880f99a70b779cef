from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, Plugin, streams
from streamlearn.errors import CompositionError, ConfigurationError
from streamlearn.models import Heads, Model
from streamlearn.plugins import EWC, LwF, PCGrad, Replay, Reptile, UncertaintyWeighting
from streamlearn.plugins.meta.mer import MER, towards
from streamlearn.streams import Stream, Task
from streamlearn.streams.data import Data, Target
from streamlearn.streams.sources import TensorSource
from streamlearn.streams.sources.bundled import digits
from tests.core.support import (
    blobs,
    class_stream,
    final,
    growing_stream,
    net,
    probe,
    same,
    separate_task_stream,
    sgd,
    smooth,
    stopped_or_straight,
    stream_of,
    two_task_stream,
)
from tests.plugins.meta.characters import leaves_a_head_without_rows_alone

ALGORITHM_1: dict[str, Any] = {"batches": 3, "batch_size": 4, "rate": 0.2, "within": 0.3, "across": 0.7}
ALGORITHM_6: dict[str, Any] = {"batch_size": 6, "rate": 0.2, "within": 0.3, "current": "last"}
ALGORITHM_7: dict[str, Any] = {"batch_size": 6, "rate": 0.1, "within": 0.3, "current": "anywhere", "emphasis": 3}


def plain(rate: float = 1.0) -> Any:
    return sgd(lr=rate, momentum=0.0, weight_decay=0.0)


def double_stream(rows: int = 24) -> Stream:
    """Two experiences of two classes each, in double precision."""
    source, task = blobs(rows, 4, dtype=torch.float64), Task("blobs", size=4)
    y = source.targets["y"]
    pieces = [(Data(source, (y // 2 == i).nonzero().flatten(), (task,), {"blobs": Target("y")}), (task,)) for i in range(2)]
    return stream_of(pieces, (task,))


class Watched:
    """Of each step: the weights before and after, its rows, and the rows of the inner steps in the order in which they were learnt."""

    def __init__(self, plugin: MER, *others: Plugin, optimizer: Any = None, batch_size: int = 1, stream: Stream | None = None) -> None:
        self.steps: list[dict[str, Any]] = []

        def before(step: Any) -> None:
            self.steps.append({"before": copy.deepcopy(step.run.model), "rows": step.batch, "inner": [], "memory": len_of(step)})

        def inner(objective: Any, step: Any) -> Any:
            if step.batch is not self.steps[-1]["rows"]:
                self.steps[-1]["inner"].append(step.batch)
            return objective(step)

        def after(step: Any) -> None:
            self.steps[-1]["after"] = {name: p.detach().clone() for name, p in step.run.model.named_parameters()}

        dtype = torch.float64 if stream is None else torch.float32
        stream = stream or double_stream()
        watch = probe("watch", before_step=before, around_objective=inner, after_step=after)
        self.model = smooth(stream.tasks, dtype)
        Engine(self.model, optimizer or plain(), [plugin, watch, *others], batch_size=batch_size, evaluate="never").run(stream)


def len_of(step: Any) -> int:
    return len(step.run.memories.find("main"))


def by_hand(
    step: dict[str, Any],
    *,
    rate: float,
    within: float,
    batches: int = 1,
    across: float = 1,
    emphasis: float = 1,
    decay: float = 0,
    **_: Any,
) -> dict[str, nn.Parameter]:
    """The published loop, over the rows that were learnt: an optimiser that moves a copy, whose weights are then mixed with older ones."""
    model: nn.Module = copy.deepcopy(step["before"])
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    rows = list(step["inner"])
    each = len(rows) // (batches * len(step["rows"]))
    for _ in range(len(step["rows"])):
        before = copy.deepcopy(model.state_dict())
        for _ in range(batches):
            weights_before = copy.deepcopy(model.state_dict())
            for _ in range(each):
                row = rows.pop(0)
                loss = nn.functional.cross_entropy(model(row.x, "blobs"), row.targets["blobs"])
                optimizer.zero_grad()
                weight = 1.0 if row.roles == ("memory",) else emphasis
                (weight * loss + 0.5 * decay * sum(p.square().sum() for p in model.parameters())).backward()
                optimizer.step()
            after = model.state_dict()
            model.load_state_dict({name: value + within * (after[name] - value) for name, value in weights_before.items()})
        after = model.state_dict()
        model.load_state_dict({name: value + across * (after[name] - value) for name, value in before.items()})
    assert not rows
    return dict(model.named_parameters())


# ------------------------------------------------------------------------------------------------ the step


@pytest.mark.parametrize("options", [ALGORITHM_1, ALGORITHM_6, ALGORITHM_7, {**ALGORITHM_1, "across": 1.0}])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_it_equals_the_published_loop(options: dict[str, Any], batch_size: int) -> None:
    seen = Watched(MER(**options), batch_size=batch_size)
    assert len(seen.steps) == 24 // batch_size
    for step in seen.steps:
        assert all(len(row) == 1 for row in step["inner"])
        for name, value in by_hand(step, **options).items():
            torch.testing.assert_close(step["after"][name], value.detach(), rtol=1e-10, atol=1e-13)
    assert float((step["after"]["encoder.0.weight"] - step["before"].state_dict()["encoder.0.weight"]).abs().max()) > 1e-4


def test_terms_act_in_every_inner_step_and_the_emphasis_is_on_the_losses() -> None:
    penalty = probe("pull", collect_terms=lambda step: 0.5 * 0.3 * sum(p.square().sum() for p in step.parameters.values()))
    for options in (ALGORITHM_1, ALGORITHM_7):
        for step in Watched(MER(**options), penalty).steps:
            for name, value in by_hand(step, **options, decay=0.3).items():
                torch.testing.assert_close(step["after"][name], value.detach(), rtol=1e-10, atol=1e-13)


def test_with_all_of_the_way_it_is_sgd_row_after_row() -> None:
    seen = Watched(MER(batches=2, batch_size=3, rate=0.1, within=1, across=1))
    model = smooth(double_stream().tasks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in seen.steps:
        for row in step["inner"]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(row.x, "blobs"), row.targets["blobs"]).backward()
            optimizer.step()
    for name, value in model.named_parameters():
        torch.testing.assert_close(seen.model.state_dict()[name], value.detach(), rtol=1e-10, atol=1e-13)


def test_the_rate_of_the_optimizer_multiplies_the_one_across_batches() -> None:
    ways = [Watched(MER(**{**ALGORITHM_1, "across": across}), optimizer=plain(rate)) for across, rate in ((0.5, 1.0), (1.0, 0.5))]
    for name, value in ways[0].model.state_dict().items():
        torch.testing.assert_close(ways[1].model.state_dict()[name], value, rtol=1e-10, atol=1e-13)


def test_part_of_the_way_by_hand() -> None:
    start, end = {"w": torch.tensor([1.0, 2.0]), "still": torch.ones(1)}, torch.tensor([3.0, 0.0])
    found = towards(start, {"w": end, "still": start["still"]}, 0.25)
    assert found["w"].tolist() == [1.5, 1.5]
    assert found["still"] is start["still"]


# ------------------------------------------------------------------------------------------------ the rows


@pytest.mark.parametrize("current", ["first", "last", "anywhere"])
def test_the_incoming_row_is_in_every_batch(current: str) -> None:
    places = []
    for step in Watched(MER(batches=3, batch_size=4, current=current)).steps:
        each = 1 + min(4, step["memory"])
        assert len(step["inner"]) == 3 * each
        for start in range(0, 3 * each, each):
            rows = step["inner"][start : start + each]
            here = [place for place, row in enumerate(rows) if row.roles == ("train",)]
            assert [int(rows[place].index) for place in here] == step["rows"].index.tolist()
            assert len({int(row.index) for row in rows}) == each, "without replacement, and the row itself is not remembered yet"
            places.append((here[0], each))
    if current == "anywhere":
        assert {place for place, each in places if each == 5} == {0, 1, 2, 3, 4}
    else:
        assert all(place == (0 if current == "first" else each - 1) for place, each in places)


def test_batches_are_drawn_anew_and_in_random_order() -> None:
    """Also where the memory gives the rows of one source after those of another."""
    stream = separate_task_stream(experiences=1)
    seen = Watched(MER(batches=2, batch_size=6, rate=0.01), stream=stream)
    last = [row for row in seen.steps[-1]["inner"] if row.roles == ("memory",)]
    first, second = ([(row.tasks, int(row.index)) for row in last[start : start + 6]] for start in (0, 6))
    assert set(first) != set(second)
    mixed = 0
    for step in seen.steps[8:]:
        names = [row.tasks for row in step["inner"][1:7]]
        mixed += sum(one != other for one, other in itertools.pairwise(names)) > 1
    assert mixed > 5


def test_rows_are_remembered_one_by_one_and_replayed_within_the_first_experience() -> None:
    """Avalanche fills the memory at the end of an experience, and so replays nothing in the first."""
    seen = Watched(MER(batches=2, batch_size=3, capacity=10))
    assert [step["memory"] for step in seen.steps] == [min(number, 10) for number in range(24)]
    met: set[int] = set()
    for step in seen.steps:
        drawn = {int(row.index) for row in step["inner"] if row.roles == ("memory",)}
        assert drawn <= met
        met |= set(step["rows"].index.tolist())
        assert bool(drawn) == (step is not seen.steps[0])


def test_it_shares_a_memory() -> None:
    """Rows come in once, and those that Replay adds to the batch are learnt like incoming ones."""
    offered: list[int] = []
    watch = probe("count", after_run=lambda run: offered.append(run.memories.find("main").offered))
    stream = class_stream()
    replay = Replay(capacity=20, fill="step", batch_size=3)
    seen = Watched(MER(batches=1, batch_size=2, capacity=20), replay, watch, stream=stream, batch_size=2)
    assert offered == [60]
    assert [len(step["rows"]) for step in seen.steps[:3]] == [2, 4, 5]
    assert [len(step["inner"]) for step in seen.steps[:3]] == [2, 4 * 3, 5 * 3]


# ------------------------------------------------------------------------------------------------ beside others


@pytest.mark.parametrize("other", [lambda on: EWC(strength=50.0 * on), lambda on: LwF(strength=5.0 * on)])
def test_penalties_and_distillation_act_in_the_inner_steps(other: Any) -> None:
    """In Avalanche they are silently ignored."""

    def weights(on: bool) -> dict[str, Tensor]:
        return Watched(MER(**ALGORITHM_1), other(on), batch_size=3).model.state_dict()

    with_it, without = weights(True), weights(False)
    assert float((with_it["encoder.0.weight"] - without["encoder.0.weight"]).abs().max()) > 1e-3


def test_a_learned_weighting_learns_once() -> None:
    """One row alone, and all of the way: a step of SGD, of the log-variances too."""
    stream = two_task_stream(dtype=torch.float64)

    def weights(rate: float, *plugins: Plugin) -> dict[str, Tensor]:
        runs: list[Any] = []
        watch = probe("watch", after_run=lambda run: runs.append(run.snapshot()))
        engine = Engine(
            smooth(stream.tasks), plain(rate), [*plugins, UncertaintyWeighting(), watch], batch_size=1, iterations=1, evaluate="never"
        )
        engine.run(stream)
        return runs[0]  # type: ignore[no-any-return]

    found = weights(1.0, MER(batches=1, rate=0.1, within=1))
    expected = weights(0.1)
    assert "uncertainty_weighting/a.value" in expected
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8)


def test_a_head_without_rows_is_not_touched() -> None:
    leaves_a_head_without_rows_alone(MER(batches=1, batch_size=2))


def test_the_record_keeps_losses_and_terms_beside_the_distance() -> None:
    plugins = [MER(batches=1, batch_size=2), EWC(strength=3)]
    _, events = final(Engine(net(), plain(), plugins, batch_size=10), class_stream())
    last = [event for event in events if event["event"] == "epoch"][-1]
    assert set(last["terms"]) == {"ewc", "mer"}
    assert set(last["losses"]) == {"blobs"}
    assert all(value > 0 for value in last["terms"].values())


def test_batchnorm_gets_two_rows_and_moves_once_a_step() -> None:
    sizes: set[int] = set()

    def inner(objective: Any, step: Any) -> Any:
        sizes.add(len(step.batch))
        return objective(step)

    plugins = [MER(batches=2, batch_size=3), probe("look", around_objective=inner)]
    found, _ = final(Engine(net(), plain(), plugins, batch_size=5), class_stream())
    assert sizes == {2, 3, 5}, "what would be left alone joins its neighbour"
    assert int(found["encoder.body.1.num_batches_tracked"]) == 12


def test_it_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Across growth, in the middle of an experience."""
    stream = growing_stream()

    def engine(**options: Any) -> Engine:
        plugins = [MER(batches=2, batch_size=3, capacity=9, current="anywhere"), EWC(strength=3), LwF()]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Model(nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.2)), Heads(5, stream[0].tasks))
        return Engine(model, sgd(), plugins, batch_size=8, seed=3, checkpoint_every=1, **options)

    straight = stopped_or_straight(engine, growing_stream, tmp_path / "straight")
    assert same(straight, stopped_or_straight(engine, growing_stream, tmp_path / "stopped", 7))


def test_what_cannot_be_right_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="option 'within' is 0"):
        MER(within=0)
    with pytest.raises(ConfigurationError, match="option 'across' is 2"):
        MER(across=2)
    with pytest.raises(CompositionError, match="2 plugins bring 'inner-loop'"):
        Engine(net(), sgd(), [MER(), Reptile()])
    with pytest.raises(ConfigurationError, match="the distance to adapted weights, of which pcgrad has no rows to combine: remove one"):
        Engine(net(), sgd(), [MER(), PCGrad()]).run(class_stream())
    stream = streams.episodes("sinusoids", shots=2, queries=2, train_episodes=2, test_episodes=1)
    with pytest.raises(ConfigurationError, match="learns a stream row by row, but experience 0 has episodes: take Reptile"):
        Engine(Model(nn.Linear(1, 4), Heads(4, stream.tasks)), plain(), [MER()], batch_size=1).run(stream)
    assert MER(batches=3, batch_size=4).passes.look_ahead == 15


# ------------------------------------------------------------------------------------------------ what it is for


def few_digits(seed: int) -> Stream:
    """Five experiences of two digits each, 300 rows in all."""
    rows, others = digits()
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:300]
    few = TensorSource(rows.take(chosen).x, {"y": rows.targets["y"][chosen]}, "few digits")
    return streams.class_incremental(few, 5, test=others, seed=seed)


def test_it_forgets_less_than_sgd_on_the_same_rows() -> None:
    """Row after row, once: as many rows, and a step on each that counts as much in the end, rate · within."""

    def measured(seed: int, optimizer: Any, *plugins: Plugin, epochs: int = 1) -> tuple[float, float]:
        stream = few_digits(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Model(nn.Sequential(nn.Flatten(), nn.Linear(64, 50), nn.ReLU()), Heads(50, stream.tasks))
        found = Engine(model, optimizer, list(plugins), batch_size=1, epochs=epochs).run(stream).accuracy_matrix
        return float(found[-1].mean()), float((found.max(0) - found[-1]).mean())

    shared: dict[str, Any] = {"batches": 1, "batch_size": 5, "capacity": 50}
    found = [measured(seed, plain(), MER(rate=0.3, within=0.1, **shared)) for seed in (0, 1)]
    sequential = [measured(seed, plain(), MER(rate=0.03, within=1, **shared)) for seed in (0, 1)]
    assert sum(forgotten for _, forgotten in found) < 0.6 * sum(forgotten for _, forgotten in sequential)
    assert sum(accuracy for accuracy, _ in found) > sum(accuracy for accuracy, _ in sequential) - 0.05
    accuracy, forgotten = measured(0, plain(0.03), epochs=6)
    assert forgotten > 5 * found[0][1], "6 rows for each one that comes, but none of the past"
    assert accuracy < found[0][0] - 0.4
