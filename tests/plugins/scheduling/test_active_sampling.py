from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import softmax

from streamlearn import Engine, models, streams
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import ActiveSampling, TemperatureSampling
from streamlearn.plugins.scheduling.active_sampling import gap_probabilities, relative_gap, upper_bounds
from streamlearn.streams import EvaluationSet, Experience, Stream, Task
from streamlearn.streams.data import Data, JoinedData, Target
from streamlearn.streams.sources import TensorSource
from tests.core.support import Stop, blobs, probe, same, separate_task_stream, sgd

A, B = Task("a", size=6), Task("b", size=6)


def two(experiences: int = 2, validation: str = "ab") -> Stream:
    """Task "a" and task "b" on different rows, 16 and 8 to train on, 8 each to validate on; the test rows are labelled wrongly."""
    source = blobs(60 * experiences, 6)
    wrong = {"y": Target("y", (torch.arange(6) + 1) % 6)}

    def piece(task: Task, start: int, stop: int, i: int) -> Data:
        return Data(source, torch.arange(60 * i + start, 60 * i + stop), (task,), {task.name: Target("y")})

    def experience(i: int) -> Experience:
        held = [piece(task, start, start + 8, i) for task, start in ((A, 24), (B, 32)) if task.name in validation]
        roles: dict[str, Any] = {"train": JoinedData([piece(A, 0, 16, i), piece(B, 16, 24, i)])}
        return Experience(i, (A, B), roles | ({"validation": JoinedData(held)} if held else {}))

    def evaluation(i: int) -> EvaluationSet:
        return EvaluationSet(i, Data(source, torch.arange(60 * i + 40, 60 * i + 60), (A, B), {"a": wrong["y"], "b": wrong["y"]}))

    return Stream("two", experiences, experience, evaluation, tasks=(A, B), input_shape=(6,), description={}, fingerprints=("two",))


def engine_of(stream: Stream, *plugins: Any, **options: Any) -> Engine:
    return Engine(models.mlp(stream, (8,), dropout=0.3), sgd(), list(plugins), **({"batch_size": 8, "epochs": 2, "seed": 3} | options))


def test_the_gap_and_its_softmax() -> None:
    assert relative_gap(0.6, 0.8) == pytest.approx(0.25)
    assert relative_gap(0.9, 0.8) < 0
    assert relative_gap(4.0, 1.0, error=True) == pytest.approx((1 / 1.0 - 1 / 4.0) / (1 / 1.0)), "the gap of the inverse"
    gaps = {"a": relative_gap(0.2, 0.8), "b": relative_gap(0.75, 0.8), "c": relative_gap(0.0, 1.0)}
    expected = softmax(torch.tensor(list(gaps.values()), dtype=torch.float64) / 0.3, 0)
    assert list(gap_probabilities(gaps, 0.3).values()) == pytest.approx(expected.tolist(), rel=1e-12)
    assert gap_probabilities({"a": 1.0, "b": relative_gap(0.0, 5.0, error=True)}, 1e-3) == {"a": 1.0, "b": 0.0}, "nothing overflows"


def watched(plugin: Any, stream: Stream, monkeypatch: Any, **options: Any) -> tuple[list[tuple[int, Any, Any]], list[Any]]:
    """(update, role, validation accuracies by a loop of our own) at each measurement, and (update, probabilities) at each batch."""
    from streamlearn.core.run import Run

    measured: list[Any] = []
    asked: list[Any] = []
    ask = type(plugin).provide_task_probabilities

    def plain(self: Run) -> dict[str, float]:
        found = {}
        mode = self.model.training
        self.model.eval()
        for part in self.experience.data["validation"].parts():  # type: ignore[union-attr]
            batch = part.batch(torch.arange(len(part)))
            (task,) = batch.targets
            with torch.no_grad():
                outputs = self.model.decode(self.model.encode(batch.x), task)
            found[task] = float((outputs.argmax(1) == batch.targets[task]).float().mean())
        self.model.train(mode)
        return found

    before = Run.measure

    def measure(self: Run, role: str = "validation") -> dict[str, float]:
        measured.append((self.clock.update, role, plain(self)))
        return before(self, role)

    monkeypatch.setattr(Run, "measure", measure)

    def provide(self: Any, step: Any) -> Any:
        found = ask(self, step)
        asked.append((step.run.clock.update, found))
        return found

    provide.streamlearn_impl = ask.streamlearn_impl  # type: ignore[attr-defined]
    monkeypatch.setattr(type(plugin), "provide_task_probabilities", provide)
    engine_of(stream, plugin, **options).run(stream)
    return measured, asked


@pytest.mark.parametrize(("every", "when"), [(None, [0, 3, 6, 9]), (2, [0, 2, 4, 6, 8, 10]), (4, [0, 4, 6, 10])])
def test_it_measures_validation_rows_when_it_says_and_draws_by_the_last_measurement(every: Any, when: list[int], monkeypatch: Any) -> None:
    targets = {"a": 0.9, "b": 0.5}
    measured, asked = watched(ActiveSampling(targets=targets, temperature=0.4, every=every), two(), monkeypatch)
    assert [update for update, *_ in measured] == when, "six updates an experience, three an epoch"
    assert {role for _, role, _ in measured} == {"validation"}
    assert [update for update, _ in asked] == list(range(12))
    for update, found in asked:
        accuracy = next(found for at, _, found in reversed(measured) if at <= update)
        gaps = torch.tensor([(targets[t] - accuracy[t]) / targets[t] for t in ("a", "b")], dtype=torch.float64)
        assert [found["a"], found["b"]] == pytest.approx(softmax(gaps / 0.4, 0).tolist(), rel=1e-6)


def test_the_task_behind_its_target_is_drawn_more() -> None:
    def share(targets: dict[str, float]) -> float:
        drawn = {"a": 0, "b": 0}

        def look(step: Any) -> None:
            for task in step.batch.tasks if step.run.clock.epoch >= 3 else ():  # once each has been right on some row
                drawn[task] += int(step.batch.labelled_rows(task).sum())

        stream = two(1)
        engine_of(stream, ActiveSampling(targets=targets, temperature=0.1), probe("look", before_step=look), epochs=10).run(stream)
        return drawn["a"] / (drawn["a"] + drawn["b"])

    assert share({"a": 1.0, "b": 0.01}) > 0.95
    assert share({"a": 0.01, "b": 1.0}) < 0.05


def test_a_regression_counts_by_its_error() -> None:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    source = TensorSource(x, {"y": x[:, :1] + 1.0, "z": x[:, :1] + 2.0}, "lines")
    tasks = (Task("y", "regression", size=1), Task("z", "regression", size=1))

    def rows(start: int, stop: int) -> JoinedData:
        return JoinedData([Data(source, torch.arange(start, stop), (t,), {t.name: Target(t.name)}) for t in tasks])

    stream = Stream(
        "r", 1, lambda i: Experience(i, tasks, {"train": rows(0, 20), "validation": rows(20, 40)}),
        lambda i: EvaluationSet(i, rows(20, 40)), tasks=tasks, input_shape=(3,), description={}, fingerprints=("r",),
    )  # fmt: skip
    plugin = ActiveSampling(targets={"y": 0.5, "z": 0.25})
    model = models.mlp(stream, ())
    kept: list[Any] = []
    Engine(model, sgd(lr=0.0), [plugin, probe("look", before_step=lambda: kept.append(dict(plugin.state_dict()["gaps"])))]).run(stream)
    with torch.no_grad():
        errors = {t: float((model.decode(model.encode(x[20:]), t) - source.targets[t][20:]).square().mean()) for t in ("y", "z")}
    assert kept[0] == pytest.approx({"y": 1 - 0.5 / errors["y"], "z": 1 - 0.25 / errors["z"]}, rel=1e-5)


def stop_from(update: int) -> Callable[[str, Any], None]:
    def progress(happened: str, run: Any) -> None:
        if happened == "step" and run.clock.update == update:
            raise Stop

    return progress


@pytest.mark.parametrize("rule", ["softmax", "ucb"])
@pytest.mark.parametrize("every", [None, 2])
def test_a_resume_in_mid_epoch_draws_what_it_would_have_drawn(every: int | None, rule: Any, tmp_path: Path) -> None:
    stream = two()
    settings = {"checkpoint_every": 1}

    def plugin() -> ActiveSampling:
        return ActiveSampling(targets=0.9, temperature=0.3, every=every, rule=rule)

    straight = engine_of(stream, plugin(), **settings).run(stream, output=tmp_path / "straight")
    for update in (2, 4, 7):
        folder = tmp_path / str(update)
        with pytest.raises(Stop):
            engine_of(stream, plugin(), progress=stop_from(update), **settings).run(stream, output=folder)
        again = plugin()
        resumed = engine_of(stream, again, **settings).resume(folder, stream)
        assert same(resumed.model.state_dict(), straight.model.state_dict()), update
        assert resumed.events == straight.events, update


def test_state_comes_back_whole() -> None:
    plugin, other = ActiveSampling(every=2, rule="ucb"), ActiveSampling(every=2, rule="ucb")
    stream = two(1)
    engine_of(stream, plugin).run(stream)
    other.load_state_dict(plugin.state_dict())
    assert other.state_dict() == plugin.state_dict()
    assert plugin.state_dict()["place"] == [0, 0, 0]
    assert plugin.state_dict()["update"] == 4


def test_rows_with_several_tasks_are_all_right() -> None:
    stream = streams.multitask("digits", validation=0.1)
    tasks: list[Any] = []
    Engine(models.mlp(stream, (4,)), sgd(), [ActiveSampling(), probe("look", before_step=lambda step: tasks.append(step.batch.tasks))],
           batch_size=256).run(stream)  # fmt: skip
    assert set(tasks) == {("left", "right")}


def test_without_labels_tasks_are_drawn_equally_and_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = two(1)
    hidden = JoinedData([part.without_labels() for part in stream[0].data["train"].parts()])
    blind = Stream("blind", 1, lambda i: Experience(i, (A, B), {"target": hidden}), stream.evaluation, tasks=(A, B), input_shape=(6,),
                   description={}, fingerprints=("blind",))  # fmt: skip
    plugin = ActiveSampling()
    Engine(models.mlp(blind, (8,)), sgd(), [plugin], batch_size=8, evaluate="never").run(blind)
    assert plugin.state_dict()["gaps"] == {"a": 0.0, "b": 0.0}


def test_no_validation_rows_is_an_error_that_says_what_to_do() -> None:
    stream = separate_task_stream(1)
    with pytest.raises(ConfigurationError, match=r"active_sampling: experience 0 has no validation rows .*its roles: train\): keep some"):
        Engine(models.mlp(stream, (4,)), sgd(), [ActiveSampling()]).run(stream)
    with pytest.raises(ConfigurationError, match="no validation row is labelled for task 'b', which is trained: keep some for it"):
        engine_of(two(validation="a"), ActiveSampling()).run(two(validation="a"))


@pytest.mark.parametrize(
    ("targets", "said"),
    [({"a": 0.9}, "targets has none for task 'b'"), ({"a": 90.0, "b": 0.5}, "the target of task 'a' is 90.0, but it is an accuracy")],
)
def test_targets_that_do_not_fit_the_tasks(targets: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        engine_of(two(1), ActiveSampling(targets=targets)).run(two(1))


def test_one_number_is_no_target_for_a_regression() -> None:
    source = TensorSource(torch.randn(12, 2), {"y": torch.randn(12, 1)}, "line")
    data = Data(source, torch.arange(12), (Task("r", "regression"),), {"r": Target("y")})
    stream = Stream("r", 1, lambda i: Experience(i, data.tasks, {"train": data, "validation": data}), lambda i: EvaluationSet(i, data),
                    tasks=data.tasks, input_shape=(2,), description={}, fingerprints=("r",))  # fmt: skip
    with pytest.raises(ConfigurationError, match="task 'r' is a regression: give targets by task"):
        Engine(nn.Linear(2, 1), sgd(), [ActiveSampling()]).run(stream)


@pytest.mark.parametrize(
    "options",
    [
        {"targets": 0.0},
        {"targets": 90},
        {"targets": {"a": -1.0}},
        {"temperature": 0},
        {"every": 0},
        {"targets": float("nan")},
        {"rule": "thompson"},
        {"exploration": -1},
        {"discount": 0.0},
        {"discount": 1.1},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"plugin active_sampling: option '{next(iter(options))}"):
        ActiveSampling(**options)


def bandit(gaps: list[dict[str, float]], exploration: float, discount: float) -> list[str]:
    """The rule of Garivier & Moulines, from the whole history at every round."""
    history: list[tuple[str, float]] = []
    for round_, found in enumerate(gaps):
        best: tuple[float, str] | None = None
        ages = [discount ** (round_ - 1 - s) for s in range(round_)]
        total = sum(ages)
        for task in found:
            count = sum(age for age, (drawn, _) in zip(ages, history, strict=True) if drawn == task)
            gained = sum(age * gain for age, (drawn, gain) in zip(ages, history, strict=True) if drawn == task)
            bound = gained / count + exploration * math.sqrt(math.log(max(total, 1.0)) / count) if count else math.inf
            if best is None or bound > best[0] + 1e-12:
                best = (bound, task)
        assert best is not None
        history.append((best[1], max(found[best[1]], 0.0)))
    return [task for task, _ in history]


@pytest.mark.parametrize(("exploration", "discount"), [(0.1, 0.9), (0.5, 1.0), (0.0, 0.99)])
def test_the_bandit_against_its_whole_history(exploration: float, discount: float, monkeypatch: Any) -> None:
    options = {"targets": {"a": 0.9, "b": 0.5}, "every": 1, "rule": "ucb", "exploration": exploration, "discount": discount}
    plugin = ActiveSampling(**options)
    measured, asked = watched(plugin, two(), monkeypatch, epochs=6)
    gaps = [{task: relative_gap(found[task], plugin.config.targets[task]) for task in ("a", "b")} for *_, found in measured]
    drawn = [next(iter(found)) for _, found in asked]
    assert [list(found.values()) for _, found in asked] == [[1.0]] * 36
    assert drawn == bandit(gaps, exploration, discount)
    assert set(drawn) == {"a", "b"}


def test_bounds() -> None:
    assert upper_bounds({"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, 1.0) == {"a": math.inf, "b": 0.0}
    found = upper_bounds({"a": 3.0, "b": 1.0}, {"a": 6.0, "b": 4.0}, 0.5)
    assert found == pytest.approx({"a": 0.5 + 0.5 * (math.log(10) / 6) ** 0.5, "b": 0.25 + 0.5 * (math.log(10) / 4) ** 0.5})


def test_what_the_bandit_knows_goes_by_the_names_of_tasks() -> None:
    plugin = ActiveSampling(rule="ucb", discount=1.0)
    plugin.load_state_dict({"gaps": {"a": 0.5, "b": 0.1}, "place": [0, 0, 0], "update": 0, "sums": {"a": 5.0, "b": 1.0},
                            "counts": {"a": 10.0, "b": 10.0}, "drawn": ["b", 19]})  # fmt: skip
    assert plugin._draw(0.0) == "a"
    plugin._gaps = {"c": 0.0, "b": 0.1}
    assert plugin._draw(0.0) == "c", "a new task comes first"
    assert plugin._draw(0.0) == "b"
    assert plugin.state_dict()["counts"] == {"a": 11.0, "b": 11.0, "c": 1.0}, "those of an absent task rest"


def of_unequal_sizes(seed: int) -> Stream:
    """Ten tasks with 200 to 8 rows on inputs of their own; 60 test rows each."""
    draw = torch.Generator().manual_seed(seed)
    sources: list[Any] = []
    tests: list[Any] = []
    for number in range(10):
        rows = round(200 * 0.7**number)
        x, y = torch.randn(rows + 60, 16, generator=draw), torch.arange(rows + 60) % 4
        x += 1.5 * torch.randn(4, 16, generator=draw)[y]
        sources.append((x[60:], y[60:]))
        tests.append((x[:60], y[:60]))
    return streams.multitask(sources, test=tests, tasks=[f"t{number}" for number in range(10)], validation=0.25, seed=seed)


@pytest.mark.parametrize("rule", ["softmax", "ucb"])
def test_at_equal_steps_it_lifts_the_worst_of_ten_tasks_over_proportional_sampling(rule: Any) -> None:
    def worst(plugin: Any, seed: int) -> float:
        stream = of_unequal_sizes(seed)
        engine = Engine(models.mlp(stream, (32,)), lambda p: torch.optim.SGD(p, lr=0.1), [plugin], batch_size=16, epochs=8, seed=seed,
                        evaluate="end")  # fmt: skip
        last = {line["task"]: float(line["value"]) for line in engine.run(stream).events if line["event"] == "evaluation"}
        return min(last.values())

    for seed in (0, 1):
        active = worst(ActiveSampling(rule=rule, temperature=0.2), seed)
        assert active > worst(TemperatureSampling(temperature=1.0), seed) + 0.1
