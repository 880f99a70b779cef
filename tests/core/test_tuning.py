from __future__ import annotations

import gc
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from streamlearn import Engine, Plugin, PluginConfig, PluginInfo, Tunable, hookimpl, streams
from streamlearn.core.tuning.beginnings import beginning, length_of_beginning
from streamlearn.core.tuning.search import Tuning, tune
from streamlearn.core.tuning.tunables import tunables
from streamlearn.core.tuning.tuned_engine import ranges_of, with_values
from streamlearn.errors import CompositionError, ConfigurationError, DataError, MissingExtraError, TrainingError, UnknownNameError
from streamlearn.plugins import EWC, MIR, L2Anchor, LwF, Replay
from streamlearn.streams import EvaluationSet, Experience, Stream
from tests.core.support import class_stream, growing_stream, net, probe, sgd

try:
    import optuna
except ImportError:
    optuna = None  # type: ignore[assignment]

needs_optuna = pytest.mark.skipif(optuna is None, reason="optuna is not installed: pip install 'streamlearn[tune]'")


class Bowl(Plugin):
    """Replaces the outputs of an evaluation by right ones, in a share of the rows that is largest where ``place`` is 3."""

    info = PluginInfo("bowl", "test", "A search has a known answer.", "none")

    class Config(PluginConfig):
        place: Annotated[float, Tunable(0.01, 100.0, log=True)] = Field(30.0, gt=0)
        steps: Annotated[int, Tunable(1, 4)] = Field(1, ge=1)
        fixed: float = 0.5

    @hookimpl
    def provide_predictions(self, batch: Any, evaluation: Any) -> dict[str, Tensor]:
        score = math.exp(-(math.log(self.config.place / 3.0) ** 2)) * (1.0 if self.config.steps == 3 else 0.8)
        classes = torch.arange(len(batch.x)) * 0
        rows = torch.arange(len(batch.x)) < score * len(batch.x)
        known = evaluation.run.stream[0].tasks[0].size
        return {"t": nn.functional.one_hot(torch.where(rows, classes, classes + 1), known).float()}


def zeros(experiences: int = 6) -> Stream:
    """Streams of rows that are all of class 0, so that what `Bowl` says is what is measured."""
    from streamlearn.streams import Task
    from streamlearn.streams.data import Data, Target
    from streamlearn.streams.sources import TensorSource
    from tests.core.support import stream_of

    task = Task("t", size=2)
    source = TensorSource(torch.randn(200 * experiences, 6), {"y": torch.zeros(200 * experiences, dtype=torch.int64)}, "zeros")
    pieces = [(Data(source, torch.arange(200 * i, 200 * (i + 1)), (task,), {"t": Target("y")}), (task,)) for i in range(experiences)]
    return stream_of(pieces, (task,))


def bowl(**options: Any) -> Engine:
    return Engine(lambda: nn.Linear(6, 2), sgd(), [Bowl(**options)], batch_size=100)


# ---------------------------------------------------------------------------------------------------- the beginning of a stream


def reachable(thing: Any) -> list[Any]:
    """Every object that ``thing`` leads to, closures included."""
    seen: dict[int, Any] = {}
    todo = [thing]
    while todo:
        here = todo.pop()
        if id(here) not in seen and not isinstance(here, type | type(sys)):
            seen[id(here)] = here
            found = gc.get_referents(here)
            todo.extend(item for item in found if item is not globals() and not (isinstance(item, dict) and "__builtins__" in item))
    return list(seen.values())


@pytest.mark.parametrize("on", ["validation", "evaluation"])
def test_no_later_experience_is_in_reach(on: Any) -> None:
    whole = streams.class_incremental("digits", experiences=5)
    part = beginning(whole, 2, on=on, fraction=0.2)
    assert len(part) == 2
    assert [e.name for e in part] == [e.name for e in whole[:2]]
    for wrong in (lambda: part[2], lambda: part.evaluation(2)):
        with pytest.raises(IndexError):
            wrong()
    with pytest.raises(DataError, match="has no experience 2"):
        part.reordered([2])
    found = reachable(part)
    assert not any(isinstance(thing, Stream) and thing is not part for thing in found)
    assert {thing.index for thing in found if isinstance(thing, Experience)} == {0, 1}
    assert {thing.index for thing in found if isinstance(thing, EvaluationSet)} == {0, 1}


def test_rows_to_measure_on_come_from_training_and_not_from_a_test() -> None:
    whole = streams.class_incremental("digits", experiences=5)
    part = beginning(whole, 2, fraction=0.25)
    for i in range(2):
        train, held, old = part[i].data["train"], part.evaluation_set(i).data, whole[i].data["train"]
        rows = [{int(n) for piece in data.parts() for n in piece.indices} for data in (train, held, old)]
        assert not rows[0] & rows[1]
        assert rows[0] | rows[1] == rows[2]
        assert rows[1] == {int(n) for piece in part[i].data["validation"].parts() for n in piece.indices}
    kept = streams.validation(whole, 0.5)
    assert len(beginning(kept, 2, fraction=0.1).evaluation_set(0).data) == len(kept[0].data["validation"])
    with pytest.raises(DataError, match=r"experience 0 of stream .* has no rows of role 'validation' to measure on"):
        beginning(whole, 2, fraction=0.0)
    by_test = beginning(whole, 2, on="evaluation")
    assert len(by_test.evaluation_set(1).data) == len(whole.evaluation_set(1).data)


def test_tasks_that_come_later_are_not_told() -> None:
    whole = streams.task_incremental("digits", experiences=5)
    assert [task.name for task in beginning(whole, 2).tasks] == [task.name for task in whole[:2][1].tasks + whole[0].tasks][::-1]
    joined = beginning(streams.online(whole, 50), 3, on="evaluation")
    assert len(joined) == 3
    assert len(joined.sets) == 1  # the first three chunks of what was one experience


@pytest.mark.parametrize(("given", "expected"), [(1, 1), (5, 5), (0.5, 2), (0.01, 1), (1.0, 5)])
def test_how_many_experiences(given: float, expected: int) -> None:
    assert length_of_beginning(class_stream(6, rows=60, classes=6)[:5], given) == expected


@pytest.mark.parametrize("wrong", [0, 6, -1, 0.0, 1.5, True])
def test_how_many_experiences_there_are_not(wrong: float) -> None:
    with pytest.raises(ConfigurationError, match="has 5 experiences: give a number of them of at least 1, or a share"):
        length_of_beginning(class_stream(6, rows=60, classes=6)[:5], wrong)


# ---------------------------------------------------------------------------------------------------- numbers of an engine


def test_declared_numbers_are_found_within_unions_too() -> None:
    found = tunables([EWC(name="hold"), LwF(), MIR()])
    assert found["hold.strength"] == Tunable(0.1, 1e6, log=True)
    assert found["mir.learning_rate"] == Tunable(1e-3, 1.0, log=True)
    assert "hold.decay" not in found


def test_an_engine_with_other_numbers() -> None:
    seen: list[dict[str, float]] = []

    def look(run: Any) -> None:
        seen.append({key: run.optimization.main.param_groups[0][key] for key in ("lr", "weight_decay", "momentum")})

    plugins = [EWC(name="hold", decay=0.5), Replay(capacity=10), Bowl(), probe("look", before_run=look)]
    engine = with_values(Engine(net(), sgd(), plugins), {"hold.strength": 7.0, "bowl.steps": 2, "learning_rate": 0.3, "weight_decay": 0.0})
    assert repr(engine.plugins[0]) == "EWC(decay=0.5, strength=7.0, name='hold')"
    assert engine.plugins[1] is plugins[1]
    assert (engine.plugins[2].config.steps, engine.plugins[2].config.place) == (2, 30.0)
    assert plugins[0].config.strength == 1.0
    Engine.run(
        with_values(Engine(net(), sgd(), [probe("look", before_run=look)]), {"learning_rate": 0.3, "weight_decay": 0.0}), class_stream()
    )
    assert seen == [{"lr": 0.3, "weight_decay": 0.0, "momentum": 0.9}]


def test_ranges() -> None:
    engine = Engine(net(), sgd(), [EWC(), Bowl()])
    assert list(ranges_of(None, engine)) == ["ewc.strength", "bowl.place", "bowl.steps"]
    assert ranges_of(["learning_rate", "bowl.place"], engine)["learning_rate"] == Tunable(1e-6, 10.0, log=True)
    assert ranges_of({"ewc.decay": Tunable(0.5, 1.0)}, engine) == {"ewc.decay": Tunable(0.5, 1.0)}
    with pytest.raises(UnknownNameError, match=r"unknown number to tune 'ewc\.decay'.*give others with a range"):
        ranges_of(["ewc.decay"], engine)
    with pytest.raises(UnknownNameError, match=r"unknown number to tune 'ewc\.no'"):
        ranges_of({"ewc.no": Tunable(0, 1)}, engine)
    with pytest.raises(ConfigurationError, match=r"the range of ewc\.decay is Tunable\(low=0, high=1, log=True\)"):
        ranges_of({"ewc.decay": Tunable(0, 1, log=True)}, engine)
    with pytest.raises(ConfigurationError, match="there is no number to tune"):
        ranges_of(None, Engine(net(), sgd(), []))
    with pytest.raises(UnknownNameError, match="unknown plugin 'no'"):
        with_values(engine, {"no.strength": 1.0})
    with pytest.raises(ConfigurationError, match="option 'strength' is -1"):
        with_values(engine, {"ewc.strength": -1.0})


# ---------------------------------------------------------------------------------------------------- the search


@needs_optuna
def test_it_finds_the_place_that_is_known_to_be_best() -> None:
    found = tune(bowl, zeros(), experiences=2, trials=40, seed=1, pruner=None)
    assert abs(math.log(found.values["bowl.place"] / 3.0)) < 0.5
    assert found.values["bowl.steps"] == 3
    assert isinstance(found.values["bowl.steps"], int)
    assert found.score > 0.8
    first = found.trials[0]
    assert first.values == {"bowl.place": 30.0, "bowl.steps": 1}  # as it is
    assert all(trial.state == "complete" and len(trial.scores) == 2 for trial in found.trials)
    assert found.score == max(trial.scores[-1] for trial in found.trials) > first.scores[-1]


@needs_optuna
def test_runs_get_the_beginning_alone_and_scores_are_means_over_sets_met() -> None:
    lengths: list[int] = []
    rows: list[Any] = []

    def look(run: Any) -> None:
        lengths.append(len(run.stream))

    def after(run: Any) -> None:
        events = [e for e in run.record.events if e["event"] == "evaluation"]
        rows.extend(sum(e["value"] for e in events if e["trained"] == done and e["set"] < done) / done for done in (1, 2, 3))

    def make() -> Engine:
        plugins = [L2Anchor(), Replay(capacity=10), probe("look", before_run=look, after_run=after)]
        return Engine(net(), sgd(), plugins, batch_size=4, drop_last=True, evaluate="never")

    found = tune(make, class_stream(6, rows=120, classes=6), experiences=0.5, trials=2, fraction=0.25, pruner=None)
    assert lengths == [3, 3]
    assert [score for trial in found.trials for score in trial.scores] == pytest.approx(rows, rel=1e-12)
    assert list(found.values) == ["l2.strength"]


@needs_optuna
def test_the_same_call_gives_the_same_trials_and_a_stopped_one_goes_on_to_them(tmp_path: Path) -> None:
    def options(**more: Any) -> dict[str, Any]:
        return {"experiences": 2, "trials": 14, "seed": 5} | more

    def trials(found: Tuning) -> list[Any]:
        return [trial for trial in found.trials if trial.state in ("complete", "pruned")]

    stream = zeros(3)
    straight = trials(tune(bowl, stream, **options()))
    assert trials(tune(bowl, stream, **options())) == straight
    assert trials(tune(bowl, stream, **options(seed=6))) != straight
    path = tmp_path / "search.db"
    tune(bowl, stream, **options(trials=4, storage=path))

    class Killed(BaseException):
        pass

    calls = []

    def dying() -> Engine:
        def progress(event: str, run: Any) -> None:
            calls.append(event)
            if calls.count("experience") == 5:  # in the middle of the third trial from here
                raise Killed

        return Engine(lambda: nn.Linear(6, 2), sgd(), [Bowl()], batch_size=100, progress=progress)

    with pytest.raises(Killed):
        tune(dying, stream, **options(storage=f"sqlite:///{path}"))
    assert trials(tune(bowl, stream, **options(storage=path))) == straight
    again = tune(bowl, stream, **options(storage=path))  # nothing is left to do
    assert trials(again) == straight
    for change in ({"seed": 6}, {"numbers": ["bowl.place"]}, {"experiences": 1}, {"direction": "minimize"}):
        with pytest.raises(
            (ConfigurationError, ValueError), match="the storage holds another search under the name 'streamlearn', of another"
        ):
            tune(bowl, stream, **options(storage=path, **change))
    with pytest.raises(ConfigurationError, match="of another engine"):
        tune(lambda: bowl(fixed=0.1), stream, **options(storage=path))
    assert tune(bowl, stream, **options(storage=path, study="other", experiences=1, trials=1)).trials[0].values["bowl.place"] == 30.0


@needs_optuna
@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_unpromising_trials_are_pruned_along_the_stream(pruner: str) -> None:
    ended: list[tuple[int, bool]] = []
    watch = probe("watch", after_run=lambda run: ended.append((run.clock.experience, run.error is not None)))

    def make() -> Engine:
        return Engine(lambda: nn.Linear(6, 2), sgd(), [Bowl(), watch], batch_size=100)

    found = tune(make, zeros(5), experiences=4, trials=25, seed=2, pruner=pruner)
    states = [trial.state for trial in found.trials]
    assert states.count("pruned") >= 2
    assert states.count("complete") >= 5
    for trial, (experiences, stopped) in zip(found.trials, ended, strict=True):
        assert len(trial.scores) == experiences
        assert stopped == (trial.state == "pruned") == (experiences < 4)
    assert found.score == max(trial.scores[-1] for trial in found.trials if trial.state == "complete")


@needs_optuna
def test_a_trial_that_diverges_is_no_end_of_the_search() -> None:
    def make() -> Engine:
        return Engine(net(), sgd(momentum=0.0), [], batch_size=10, epochs=20)

    numbers = {"learning_rate": Tunable(0.01, 1e20, log=True)}
    found = tune(make, class_stream(), experiences=2, numbers=numbers, trials=8, fraction=0.25)
    assert {trial.state for trial in found.trials} == {"complete", "pruned"}
    assert found.values["learning_rate"] < 1e10
    with pytest.raises(ConfigurationError, match="none of 2 trials came to its end: all diverged"):
        tune(make, class_stream(), experiences=2, numbers={"learning_rate": Tunable(1e30, 1e35)}, trials=2, fraction=0.25)


@needs_optuna
def test_a_failure_of_another_kind_ends_the_search() -> None:
    def make() -> Engine:
        return Engine(net(), sgd(), [EWC(), probe("bad", collect_terms=lambda: torch.ones(3))], batch_size=10)

    with pytest.raises(TrainingError, match="must be a scalar tensor"):
        tune(make, class_stream(), experiences=2, trials=3, fraction=0.25)


@needs_optuna
def test_heads_that_grow() -> None:
    found = tune(
        lambda: Engine(net(), sgd(), [EWC()], batch_size=8, drop_last=True), class_stream(), experiences=2, trials=3, fraction=0.25
    )
    assert len(found.trials) == 3
    model = net()  # one object for all trials: its training must not leak from one into the next
    shared = tune(
        lambda: Engine(model, sgd(), [EWC()], batch_size=8, drop_last=True), class_stream(), experiences=2, trials=3, fraction=0.25
    )
    assert len(shared.trials) == 3
    assert len(growing_stream()) == 4


@needs_optuna
def test_what_cannot_be_right_is_refused(tmp_path: Path) -> None:
    def attempt(**options: Any) -> None:
        tune(bowl, zeros(2), **({"experiences": 1, "trials": 1} | options))

    with pytest.raises(ConfigurationError, match="trials is 0, but it must be a whole number of at least 1"):
        attempt(trials=0)
    with pytest.raises(ConfigurationError, match="pruner is 'best': give one of 'median', 'halving', one of Optuna's, or None"):
        attempt(pruner="best")
    with pytest.raises(ConfigurationError, match="storage is a InMemoryStorage: give the path of an SQLite file, or the address"):
        attempt(storage=optuna.storages.InMemoryStorage())
    with pytest.raises(ConfigurationError, match="metric is 'error': say with direction"):
        attempt(metric="error")
    with pytest.raises(UnknownNameError, match="unknown metric 'error'"):
        attempt(metric="error", direction="minimize")
    with pytest.raises(ConfigurationError, match="make_engine"):
        tune(bowl(), zeros(2), experiences=1)  # type: ignore[arg-type]
    verbosity = optuna.logging.get_verbosity()
    attempt()
    assert optuna.logging.get_verbosity() == verbosity


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"streamlearn\.tune needs the package 'optuna'.*pip install 'streamlearn\[tune\]'"):
        tune(bowl, zeros(2), experiences=1)


def test_plugins_that_cannot_stand_together_are_refused_with_other_numbers_too() -> None:
    engine = Engine(net(), sgd(), [EWC()])
    assert with_values(engine, {}) is engine
    with pytest.raises(CompositionError):
        Engine(net(), sgd(), [EWC(), EWC()])
