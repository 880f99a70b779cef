"""Rows of other roles that join each batch of the main phase."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamlearn import Engine, models
from streamlearn.core.clock import Clock
from streamlearn.core.options import Options
from streamlearn.core.phases import Phase
from streamlearn.core.sampling import Rounds
from streamlearn.core.training import Walk
from streamlearn.streams import EvaluationSet, Experience, Stream, Task
from streamlearn.streams.data import Data, JoinedData, Target
from tests.core.support import Stop, blobs, final, net, probe, same, separate_task_stream, sgd, stop_at

T = Task("t", size=6)
U = Task("u", size=6)


def companion_stream(train: int = 20, target: int = 14, extra: int = 0, experiences: int = 1, validation: bool = True) -> Stream:
    """Labelled training rows, unlabelled target rows of another source, and perhaps rows of a role "extra", of another task."""
    source, other, third = blobs(100, 6), blobs(100, 6, seed=5, name="other"), blobs(100, 6, seed=6, name="third")

    def experience(i: int) -> Experience:
        data: dict[str, Any] = {"train": Data(source, torch.arange(20 * i, 20 * i + train), (T,), {"t": Target("y")})}
        data["target"] = Data(other, torch.arange(20 * i, 20 * i + target), (T,), {"t": Target("y")}, domain="there").without_labels()
        tasks: tuple[Task, ...] = (T,)
        if validation:
            data["validation"] = Data(source, torch.arange(90, 100), (T,), {"t": Target("y")})
        if extra:
            data["extra"] = Data(third, torch.arange(extra), (U,), {"u": Target("y")})
            tasks = (T, U)
        return Experience(i, tasks, data, f"e{i}", {"t": tuple(range(6))})

    def evaluation(i: int) -> EvaluationSet:
        return EvaluationSet(i, Data(source, torch.arange(60, 90), (T,), {"t": Target("y")}))

    return Stream("companions", experiences, experience, evaluation, tasks=(T, U), input_shape=(6,), description={}, fingerprints=("x",))


def watched(stream: Stream, *plugins: Any, **options: Any) -> tuple[list[Any], dict[str, Any], list[Any]]:
    seen: list[Any] = []
    watch = probe("watch", before_step=lambda step: seen.append((step.batch, step.run.clock.epoch, step.run.phase.name)))
    state, events = final(Engine(models.mlp(stream, (8,)), sgd(), [*plugins, watch], **({"batch_size": 8} | options)), stream)
    return seen, state, events


def test_other_roles_join_every_main_batch_with_as_many_rows_as_a_batch_has() -> None:
    seen, state, _ = watched(companion_stream(extra=30), epochs=2)
    assert len(seen) == 6
    for batch, _, _ in seen:
        assert batch.roles == ("train", "target", "extra"), "validation rows stay out"
        assert [len(batch.index[batch.rows(role)]) for role in ("target", "extra")] == [8, 8]
        target = batch.segments[1]
        assert (target.domain, target.source, target.tasks) == ("there", "other", ("t",))
        expected = blobs(100, 6, seed=5, name="other").take(batch.index[batch.rows("target")]).x
        assert torch.equal(batch.x[batch.rows("target")], expected)
    assert [len(batch.index[batch.rows("train")]) for batch, _, _ in seen] == [8, 8, 4] * 2
    assert all(bool(value.isfinite().all()) for value in state.values())


def test_each_row_joins_once_a_round() -> None:
    seen, _, _ = watched(companion_stream(target=14), epochs=7)
    drawn = [row for batch, _, _ in seen for row in batch.index[batch.rows("target")].tolist()]
    assert len(drawn) == 21 * 8 == 12 * 14
    rounds = [drawn[start : start + 14] for start in range(0, len(drawn), 14)]
    assert all(sorted(found) == list(range(14)) for found in rounds)
    assert len({tuple(found) for found in rounds}) == 12, "every round has an order of its own"


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 40))
def test_rounds_are_a_pure_function_of_the_number(rows: int, size: int, number: int) -> None:
    straight = Rounds(rows, size, 3, 0, 0, "target")
    expected = [straight.positions(n).tolist() for n in range(number + 1)]
    assert Rounds(rows, size, 3, 0, 0, "target").positions(number).tolist() == expected[-1]
    assert all(len(found) == min(size, rows) for found in expected)
    drawn = [row for found in expected for row in found]
    for start in range(0, len(drawn) - rows + 1, rows):
        assert sorted(drawn[start : start + rows]) == list(range(rows))
    assert straight.positions(0).tolist() == expected[0], "also backwards"


def test_roles_and_places_have_orders_of_their_own() -> None:
    first = Rounds(20, 20, 3, 0, 0, "target").positions(0).tolist()
    for place in ((0, 0, "extra"), (1, 0, "target"), (0, 1, "target")):
        assert Rounds(20, 20, 3, *place).positions(0).tolist() != first
    assert Rounds(20, 20, 4, 0, 0, "target").positions(0).tolist() != first


def test_a_companion_with_fewer_rows_than_a_batch_joins_whole() -> None:
    seen, _, _ = watched(companion_stream(target=3), epochs=2)
    assert [sorted(batch.index[batch.rows("target")].tolist()) for batch, _, _ in seen] == [[0, 1, 2]] * 6


def test_a_companion_without_rows_stays_away() -> None:
    seen, _, _ = watched(companion_stream(target=0))
    assert all(batch.roles == ("train",) for batch, _, _ in seen)


def test_unlabelled_rows_change_no_loss_and_no_weight() -> None:
    """A model without layers that mix rows learns the same with and without them."""
    losses: dict[bool, list[float]] = {True: [], False: []}
    states = {}
    for joined, kept in losses.items():
        plugins = [] if joined else [probe("alone", transform_phases=lambda phases: tuple(p.replace(companions={}) for p in phases))]

        def after(step: Any) -> None:
            assert set(step.losses) == {"t"}
            assert step.rows.shares == {"t": 1.0}
            kept.append(float(step.losses["t"].detach()))  # noqa: B023 - used up before the next turn

        _, states[joined], _ = watched(companion_stream(), *plugins, probe("after", after_step=after), epochs=3)
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    for name, value in states[True].items():
        torch.testing.assert_close(value, states[False][name], rtol=1e-5, atol=1e-6)


def test_labelled_companions_are_trained_on() -> None:
    rows: list[set[str]] = []
    shares: list[dict[str, float]] = []

    def after(step: Any) -> None:
        rows.append(set(step.losses))
        shares.append({name: float(share) for name, share in step.rows.shares.items()})

    watched(companion_stream(extra=30), probe("after", after_step=after))
    assert rows == [{"t", "u"}] * 3
    assert shares[0] == pytest.approx({"t": 0.5, "u": 0.5})
    assert shares[2] == pytest.approx({"t": 4 / 12, "u": 8 / 12})


def test_only_the_main_phase_has_companions_unless_others_are_given_some() -> None:
    def phases(phases: Any, experience: Any) -> Any:
        (main,) = phases
        assert set(main.companions) == {"target"}
        own = Phase("own", experience.data["train"], 1, companions={"target": experience.data["target"]}, batch_size=5)
        return (Phase("before", experience.data["train"], 1), main, own)

    seen, _, _ = watched(companion_stream(), probe("phases", transform_phases=phases))
    assert [(name, batch.roles, len(batch.index[batch.rows("target")])) for batch, _, name in seen] == [
        *[("before", ("train",), 0)] * 3,
        *[("main", ("train", "target"), 8)] * 3,
        *[("own", ("train", "target"), 5)] * 4,
    ]


def test_with_a_task_scheduler() -> None:
    base = separate_task_stream()
    other = blobs(40, 6, seed=5, name="other")
    hidden = Data(other, torch.arange(10), base.tasks, domain="there")

    def experience(i: int) -> Experience:
        found = base[i]
        return Experience(i, found.tasks, {**found.data, "target": hidden}, found.name, found.classes)

    stream = Stream("both", 2, experience, base.evaluation, tasks=base.tasks, input_shape=(6,), description={}, fingerprints=("x",))
    schedule = probe("schedule", provide_task_probabilities=lambda: {"a": 0.0, "b": 1.0})
    seen, state, _ = watched(stream, schedule)
    for batch, _, _ in seen:
        assert [(s.role, s.tasks) for s in batch.segments] == [("train", ("b",)), ("target", ("a", "b"))]
        assert len(batch) == 16
    drawn = [row for batch, _, _ in seen[:3] for row in batch.index[batch.rows("target")].tolist()]
    assert sorted(drawn[:10]) == list(range(10))
    assert all(bool(value.isfinite().all()) for value in state.values())


def test_companions_may_be_several_pieces() -> None:
    base = companion_stream()
    pieces = [Data(blobs(30, 6, seed=n, name=f"s{n}"), torch.arange(6), (T,), domain=f"d{n}") for n in (7, 8)]

    def experience(i: int) -> Experience:
        return Experience(i, (T,), {**base[i].data, "target": JoinedData(pieces)}, "e", {})

    stream = Stream("j", 1, experience, base.evaluation, tasks=(T,), input_shape=(6,), description={}, fingerprints=("x",))
    seen, _, _ = watched(stream, epochs=2)
    drawn = [(s.domain, row) for batch, _, _ in seen for s in batch.segments if s.role == "target" for row in batch.index[s.rows].tolist()]
    assert Counter(drawn) == dict.fromkeys(((f"d{n}", row) for n in (7, 8) for row in range(6)), 4), (
        "six batches of 8 are four rounds of 12"
    )
    assert all(batch.rows("target") == slice(len(batch) - 8, len(batch)) for batch, _, _ in seen)


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_resume_in_mid_epoch_finds_the_same_rows(scheduled: bool, microbatches: int, tmp_path: Path) -> None:
    def term(step: Any) -> torch.Tensor:
        return 0.1 * step.tap("features", "target").square().mean()

    def engine(**options: Any) -> Engine:
        plugins = [probe("term", collect_terms=term)]
        if scheduled:
            plugins.append(probe("schedule", provide_task_probabilities=lambda: {"t": 1.0}))
        return Engine(
            net(), sgd(), plugins, batch_size=8, epochs=3, checkpoint_every=2, seed=2, microbatches=microbatches, **options
        )  # fmt: skip

    stream = companion_stream(target=14, experiences=2)
    usual, events = final(engine(), stream, output=tmp_path / "straight")
    for update in (1, 5, 12, 16):
        with pytest.raises(Stop):
            engine(progress=stop_at(update)).run(stream, output=tmp_path / str(update))
        result = engine().resume(tmp_path / str(update), stream)
        assert same(dict(result.model.state_dict()), usual), update
        assert same(result.events, events), update


def test_progress_goes_from_zero_to_one_through_a_phase() -> None:
    steps: list[float] = []
    around: list[float] = []

    def note(run: Any) -> None:
        around.append(run.clock.progress)

    plugin = probe("p", before_step=lambda step: steps.append(step.run.clock.progress), before_epoch=note, after_epoch=note)
    two = probe("two", transform_phases=lambda phases: (*phases, Phase("more", phases[0].data, 1, batch_size=2)))
    watched(companion_stream(), plugin, two, epochs=2)
    assert steps == pytest.approx([n / 6 for n in range(6)] + [n / 10 for n in range(10)])
    assert around == pytest.approx([0.0, 0.5, 0.5, 1.0, 0.0, 1.0])


def test_companions_move_to_the_device_with_their_batch() -> None:
    stream = companion_stream()

    class Elsewhere:
        """Enough of a run to draw its batches on a device that computes nothing."""

        device = torch.device("meta")
        seed = 0
        hooks = None

    run: Any = Elsewhere()
    run.stream = stream
    run.clock, run.options = Clock(batches=3, epochs=1, iterations=3), Options(batch_size=8)
    walk = Walk(run, None, lambda event: None)  # type: ignore[arg-type]
    data = stream[0].data
    for batch in walk._batches(Phase("main", data["train"], 1, companions={"target": data["target"]})):
        run.clock.batch += 1
        assert batch.x.is_meta
        assert batch.targets["t"].is_meta
        assert batch.index.device.type == "cpu"
        assert batch.roles == ("train", "target")
    assert run.clock.batch == 3
