from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from streamlearn import Engine, models, streams
from streamlearn.core.checkpoint import latest_checkpoint, read_checkpoint
from streamlearn.core.forward import Teacher
from streamlearn.core.optimization import Trainable
from streamlearn.core.phases import Phase
from streamlearn.plugins import EWC, Joint, LwF, MultiHead, Replay
from streamlearn.streams import Stream
from tests.core.support import (
    OPTIMIZERS,
    Stop,
    class_stream,
    growing_stream,
    net,
    probe,
    same,
    separate_task_stream,
    stop_at,
    two_task_stream,
)
from tests.integration.killed import go


def everything(folder: Path) -> tuple[Any, list[Any]]:
    """The last checkpoint (weights, optimiser, plugins, teachers, memories, clock) and every measured value."""
    state = read_checkpoint(latest_checkpoint(folder / "checkpoints")[0])
    state.pop("times")
    return state, [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def extra_phase(phases: Any, experience: Any) -> Any:
    """A second phase with an optimiser of its own, on the output layer, several updates a batch."""
    tail = Phase(
        "tail", experience.data["train"], 2, updates=(("*out.*",), ("*",)), trainable=("*out.*",),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8),
    )  # fmt: skip
    return (*phases, Phase("none", experience.data["train"], 0), tail)


def helper_modules(run: Any) -> dict[str, Trainable]:
    """One helper per experience, one of them with an optimiser of its own."""
    own = None if run.clock.experience % 2 else (lambda p: torch.optim.Adam(p, lr=0.1))
    return {f"scale_{run.clock.experience}": Trainable(nn.Linear(2, 1), optimizer=own)}


def helper_terms(step: Any) -> dict[str, Any]:
    return {name: step.module(name)(torch.ones(1, 2)).square().sum() for name in step.run.modules}


def schedule(step: Any) -> dict[str, float]:
    return {"a": 0.25, "b": 0.75}


def mean_teacher(name: str = "mean_teacher", decay: float = 0.75) -> Any:
    """Consistency with an averaged teacher on every task of the batch."""

    def terms(step: Any) -> dict[str, Any]:
        teacher = step.teacher(f"{name}/mean")
        return {task: (step.outputs[task] - teacher[task]).square().mean() for task in step.batch.tasks}

    return probe(name, collect_teachers=lambda: {"mean": Teacher("ema", decay=decay)}, collect_terms=terms)


def ramped(step: Any) -> Any:
    """A term on companions, whose strength grows with the progress of the phase."""
    rows = step.batch.rows("target")
    return step.run.clock.progress * step.tap("features")[rows].square().mean() if rows.stop > rows.start else None


def at_features() -> Any:
    """A combiner at the features."""
    plugin = probe("at_features", provide_gradient_combination=lambda rows: {n: 1 / (1 + k) for k, n in enumerate(rows.names)})
    type(plugin).info = dataclasses.replace(type(plugin).info, rows="features")
    return plugin


def moons(**options: Any) -> Stream:
    return streams.adaptation("moons", rows=30, seed=1, **options)


def few_shots() -> Stream:
    return streams.episodes("digits", 2, ways=3, shots=1, queries=2, train_episodes=20, test_episodes=4)


BALANCED = {"capacity": 9, "fill": "step", "policy": "class_balanced", "batch_size": 4}
CASES: dict[str, tuple[Callable[[], Stream], Callable[[Stream], nn.Module], Callable[[], list[Any]]]] = {
    "no plugin": (class_stream, lambda s: net(), list),
    "ewc": (class_stream, lambda s: net(), lambda: [EWC(strength=3)]),
    "ewc online empirical": (class_stream, lambda s: net(), lambda: [EWC(strength=3, mode="online", decay=0.8, fisher="empirical")]),
    "lwf": (class_stream, lambda s: net(), lambda: [LwF()]),
    "two that share a teacher": (class_stream, lambda s: net(), lambda: [LwF(), LwF(name="second", temperature=1.0)]),
    "replay": (class_stream, lambda s: net(), lambda: [Replay(capacity=9)]),
    "replay by step, balanced": (class_stream, lambda s: net(), lambda: [Replay(**BALANCED)]),
    "replay ewc lwf": (class_stream, lambda s: net(), lambda: [Replay(capacity=9), EWC(strength=3), LwF()]),
    "joint": (class_stream, lambda s: net(), lambda: [Joint()]),
    "joint restart": (class_stream, lambda s: net(), lambda: [Joint(restart=True)]),
    "growth": (growing_stream, lambda s: models.mlp(s, (8,), dropout=0.2), lambda: [Replay(capacity=9), EWC(strength=3), LwF()]),
    "multi head, growth": (growing_stream, lambda s: net(), lambda: [MultiHead(), EWC(strength=3), LwF(), Replay(capacity=9)]),
    "plain module, growth": (growing_stream, lambda s: net(), lambda: [EWC(strength=3), LwF(), Replay(capacity=9)]),
    "phases": (class_stream, lambda s: net(), lambda: [probe("phases", transform_phases=extra_phase), EWC(strength=3)]),
    "modules": (class_stream, lambda s: net(), lambda: [probe("helpers", collect_modules=helper_modules, collect_terms=helper_terms)]),
    "task scheduler": (
        lambda: separate_task_stream(3),
        lambda s: models.mlp(s, (8,), dropout=0.2),
        lambda: [probe("schedule", provide_task_probabilities=schedule), Replay(capacity=9)],
    ),
    "two tasks a row": (
        lambda: two_task_stream(experiences=2),
        lambda s: models.mlp(s, (8,)),
        lambda: [EWC(strength=3), LwF(), Replay(capacity=9)],
    ),
    "averaged teachers, growth": (
        growing_stream,
        lambda s: models.mlp(s, (8,), dropout=0.2),
        lambda: [mean_teacher(), mean_teacher("equal"), mean_teacher("other", 0.5), Replay(capacity=9)],
    ),
    "companions": (moons, lambda s: models.mlp(s, (8,), dropout=0.2), lambda: [probe("ramped", collect_terms=ramped), mean_teacher()]),
    "source free": (
        lambda: moons(source_free=True),
        lambda s: models.mlp(s, (8,), dropout=0.2),
        lambda: [mean_teacher(), probe("ramped", collect_terms=ramped)],
    ),
    "episodes": (few_shots, lambda s: models.mlp(s, (8,), dropout=0.2), lambda: [EWC(strength=3), LwF()]),
    "combiner at the features": (
        lambda: two_task_stream(experiences=2),
        lambda s: models.mlp(s, (8,), dropout=0.2),
        lambda: [at_features(), EWC(strength=3), Replay(capacity=9)],
    ),
}  # fmt: skip


IN_PARTS = ("two tasks a row", "companions", "source free", "episodes", "averaged teachers, growth")
"""Cases that are also run in parts of a batch."""


def engine_of(case: str, stream: Stream, optimizer: str = "momentum", **options: Any) -> Engine:
    name, parts, _ = case.partition(" in parts")
    _, model, plugins = CASES[name]
    options = {"microbatches": 3 if parts else 1} | options
    return Engine(
        model(stream), OPTIMIZERS[optimizer], plugins(), batch_size=8, epochs=2, seed=3, checkpoint_every=3, evaluate_every=4, **options
    )


def stream_in(case: str) -> Stream:
    return CASES[case.partition(" in parts")[0]][0]()


def stop_from(update: int, event: str) -> Callable[[str, Any], None]:
    """Stops at the first ``event`` at which so many updates are done (a batch may make several)."""

    def progress(happened: str, run: Any) -> None:
        if happened == event and run.clock.update >= update:
            raise Stop

    return progress


def straight(case: str, folder: Path, optimizer: str = "momentum") -> tuple[Any, int]:
    stream = stream_in(case)
    engine_of(case, stream, optimizer).run(stream, output=folder)
    return everything(folder), everything(folder)[0]["clock"]["update"]


def broken(case: str, folder: Path, places: list[tuple[str, int]], optimizer: str = "momentum") -> Any:
    """Stopped at each of ``places`` in turn, resumed each time by a fresh engine, to the end."""
    stream = stream_in(case)
    for number, (event, update) in enumerate(places):
        engine = engine_of(case, stream, optimizer, progress=stop_from(update, event))
        with pytest.raises(Stop):
            engine.run(stream, output=folder) if number == 0 else engine.resume(folder, stream)
    engine_of(case, stream, optimizer).resume(folder, stream)
    return everything(folder)


@pytest.mark.parametrize("case", [*CASES, *(f"{case} in parts" for case in IN_PARTS)])
def test_stopped_anywhere_and_resumed_twice_equals_the_straight_run(case: str, tmp_path: Path) -> None:
    expected, updates = straight(case, tmp_path / "straight")
    per = sorted({e["updates"] for e in expected[1] if e["event"] == "experience"})[0]
    for number, places in enumerate(
        [
            [("start", 0)],
            [("step", per - 1), ("step", updates - 1)],
            [("step", 4), ("step", 7)],  # 4 lies past the save at 3; the second stop comes after a resume
            [("experience", per), ("step", per + 2)][: 1 if per == updates else 2],  # a stream of one experience ends there
        ]
    ):
        event, update = places[0]
        folder = tmp_path / f"broken {number}"
        found = broken(case, folder, places)
        assert same(found[1], expected[1]), (event, update)
        assert same(found[0], expected[0]), (event, update)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_single_update_is_a_place_to_stop(optimizer: str, tmp_path: Path) -> None:
    case = "replay ewc lwf"
    expected, updates = straight(case, tmp_path / "straight", optimizer)
    assert updates == 18
    for update in range(1, updates + 1):
        assert same(broken(case, tmp_path / str(update), [("step", update)], optimizer), expected), update


@pytest.mark.parametrize("case", ["source free", "source free in parts", "companions", "averaged teachers, growth"])
def test_every_place_of_a_run_with_companions_scores_or_averages(case: str, tmp_path: Path) -> None:
    expected, updates = straight(case, tmp_path / "straight")
    for update in range(1, updates, 3):
        assert same(broken(case, tmp_path / str(update), [("step", update)]), expected), update


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
@pytest.mark.parametrize("case", ["growth", "multi head, growth"])
def test_growth_survives_a_stop_in_every_experience(case: str, optimizer: str, tmp_path: Path) -> None:
    expected, updates = straight(case, tmp_path / "straight", optimizer)
    for update in range(2, updates, 4):
        assert same(broken(case, tmp_path / str(update), [("step", update)], optimizer), expected), update


def test_every_step_of_phases_with_their_own_optimizer_is_a_place_to_stop(tmp_path: Path) -> None:
    expected, updates = straight("phases", tmp_path / "straight")
    stream = class_stream()
    stopped = 0
    for update in (*range(7, 13), updates - 1, updates):  # the updates of that phase, and the end; a batch makes two of them
        folder = tmp_path / str(update)
        try:
            engine_of("phases", stream, progress=stop_at(update)).run(stream, output=folder)
        except Stop:
            stopped += 1
            engine_of("phases", stream).resume(folder, stream)
        assert same(everything(folder), expected), update
    assert stopped == 4


def test_resuming_a_finished_run_gives_the_same_result(tmp_path: Path) -> None:
    stream = class_stream()
    result = engine_of("replay ewc lwf", stream).run(stream, output=tmp_path)
    before = everything(tmp_path)
    again = engine_of("replay ewc lwf", stream).resume(tmp_path, stream)
    assert same(again.model.state_dict(), result.model.state_dict())
    assert again.events == result.events
    assert same(everything(tmp_path), before)


def test_a_run_that_fails_before_its_first_measurement_can_be_resumed(tmp_path: Path) -> None:
    stream = class_stream()
    failing = [True]

    def before(evaluation: Any) -> None:
        if failing[0] and len(evaluation.run.record.events) == 0:
            raise Stop

    engine = Engine(net(), OPTIMIZERS["momentum"], [probe("fails", before_evaluation=before)], batch_size=8)
    with pytest.raises(Stop):
        engine.run(stream, output=tmp_path / "a")
    failing[0] = False
    engine.resume(tmp_path / "a", stream)
    Engine(net(), OPTIMIZERS["momentum"], [probe("fails", before_evaluation=before)], batch_size=8).run(stream, output=tmp_path / "b")
    assert same(everything(tmp_path / "a"), everything(tmp_path / "b"))


def test_a_run_that_fails_in_the_middle_of_its_first_measurement_can_be_resumed(tmp_path: Path) -> None:
    stream = class_stream()
    failing = [True]

    def predict(batch: Any, evaluation: Any) -> Any:
        if failing[0] and len(evaluation.run.record.events) == 1:
            raise Stop
        return {"blobs": evaluation.run.model(batch.x)}

    engine = Engine(net(), OPTIMIZERS["momentum"], [probe("fails", provide_predictions=predict)], batch_size=8)
    with pytest.raises(Stop):
        engine.run(stream, output=tmp_path)
    failing[0] = False
    assert engine.resume(tmp_path, stream).accuracy_matrix.shape == (4, 3)


def failing_hook(place: str, failing: list[bool]) -> Callable[..., None]:
    """An implementation of the hook ``place`` that stops the run, once it is under way, while ``failing[0]``."""

    def fail(run: Any) -> None:
        if failing[0] and run.clock.update >= 9:
            raise Stop

    def fail_in_evaluation(evaluation: Any) -> None:
        fail(evaluation.run)

    return fail_in_evaluation if place == "after_evaluation" else fail


def test_a_failure_in_after_experience_or_evaluation_is_made_good(tmp_path: Path) -> None:
    stream = class_stream()
    for place in ("before_experience", "after_experience", "before_epoch", "after_epoch", "after_evaluation"):
        failing = [True]

        plugins = [Replay(capacity=9), EWC(strength=3), LwF(), probe("fails", **{place: failing_hook(place, failing)})]
        engine = Engine(net(), OPTIMIZERS["momentum"], plugins, batch_size=8, epochs=2, seed=3, checkpoint_every=4)
        with pytest.raises(Stop):
            engine.run(stream, output=tmp_path / place)
        failing[0] = False
        engine.resume(tmp_path / place, stream)
        engine.run(stream, output=tmp_path / f"{place} straight")
        assert same(everything(tmp_path / place), everything(tmp_path / f"{place} straight")), place


def test_resuming_leaves_the_users_random_state(tmp_path: Path) -> None:
    stream = growing_stream()
    with pytest.raises(Stop):
        engine_of("growth", stream, progress=stop_at(14)).run(stream, output=tmp_path)
    engine = engine_of("growth", stream)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    engine.resume(tmp_path, stream)
    assert torch.equal(torch.get_rng_state(), before)


def test_after_run_closes_a_run_that_failed_and_before_run_is_not_fired_again(tmp_path: Path) -> None:
    heard: list[Any] = []

    def plugin() -> Any:
        return probe("tracker", before_run=lambda: heard.append("before"), after_run=lambda run: heard.append(type(run.error)))

    stream = class_stream()
    with pytest.raises(Stop):
        Engine(net(), OPTIMIZERS["momentum"], [plugin()], progress=stop_at(1)).run(stream, output=tmp_path)
    Engine(net(), OPTIMIZERS["momentum"], [plugin()]).resume(tmp_path, stream)
    assert heard == ["before", Stop, type(None)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["class", "task"])
def test_killed_with_sigkill_twice_and_resumed_twice(kind: str, tmp_path: Path) -> None:
    def killed(action: str, update: int) -> None:
        command = [sys.executable, "-m", "tests.integration.killed", kind, str(tmp_path / "killed"), action, str(update)]
        root = Path(__file__).parents[2]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, check=False, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr

    go(kind, tmp_path / "straight", "run", -1)
    state, events = everything(tmp_path / "straight")
    assert state["clock"]["update"] == 24
    killed("run", 13)  # in mid-experience, past the save at 12
    assert latest_checkpoint(tmp_path / "killed" / "checkpoints")[0].name == "step-00000012"
    killed("resume", 20)
    assert latest_checkpoint(tmp_path / "killed" / "checkpoints")[0].name == "step-00000018"
    go(kind, tmp_path / "killed", "resume", -1)
    found = everything(tmp_path / "killed")
    assert found[1] == events
    assert same(found[0], state)


def test_a_reset_goes_back_to_the_weights_of_the_first_process(tmp_path: Path) -> None:
    """A module of the user's own has other weights in a new process; those of the first are in the checkpoint."""

    def engine(model: nn.Module, **options: Any) -> Engine:
        return Engine(model, OPTIMIZERS["momentum"], [Joint(restart=True)], batch_size=8, checkpoint_every=1, **options)

    def own(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Linear(6, 6)

    engine(own(1)).run(class_stream(), output=tmp_path / "straight")
    with pytest.raises(Stop):
        engine(own(1), progress=stop_at(2)).run(class_stream(), output=tmp_path / "broken")
    engine(own(2)).resume(tmp_path / "broken", class_stream())
    assert same(everything(tmp_path / "straight"), everything(tmp_path / "broken"))


def test_lost_times_do_not_stop_a_resume(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        engine_of("no plugin", class_stream(), progress=stop_at(4)).run(class_stream(), output=tmp_path)
    (tmp_path / "times.jsonl").unlink()
    assert engine_of("no plugin", class_stream()).resume(tmp_path, class_stream()).is_complete
