from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from streamlearn import Engine, models, streams
from streamlearn.errors import CompositionError, ConfigurationError, UnknownNameError
from streamlearn.plugins import EWC, PCGrad, Replay, TemperatureSampling
from streamlearn.plugins.scheduling.round_robin import RoundRobin, next_task
from streamlearn.streams import Stream, Task
from streamlearn.streams.data import Data, JoinedData, Target
from tests.core.support import blobs, class_stream, probe, resumes_bit_for_bit, separate_task_stream, sgd, stream_of

TASKS = {name: Task(name, size=6) for name in "abcd"}


def stream_with(*experiences: str, rows: int = 12) -> Stream:
    """In each experience the tasks of these names, on ``rows`` rows each, but for "d", which has 3."""
    source = blobs(rows * 4 * len(experiences), 6)
    pieces = []
    for i, names in enumerate(experiences):
        start, parts = i * 4 * rows, []
        for number, name in enumerate(names):
            mine = torch.arange(start + number * rows, start + number * rows + (3 if name == "d" else rows))
            parts.append(Data(source, mine, (TASKS[name],), {name: Target("y")}))
        pieces.append((JoinedData(parts), tuple(TASKS[name] for name in names)))
    return stream_of(pieces, tuple(TASKS[name] for name in dict.fromkeys("".join(experiences))))


def drawn(stream: Stream, *plugins: Any, **options: Any) -> str:
    """The tasks of the batches, one letter each."""
    met: list[str] = []
    look = probe("look", before_step=lambda step: met.append("".join(step.batch.tasks)))
    Engine(models.mlp(stream, (4,)), sgd(lr=0.01), [*plugins, look], **({"batch_size": 4} | options)).run(stream)
    assert all(len(tasks) == 1 for tasks in met), "a batch is of one task"
    return "".join(met)


def test_the_rule() -> None:
    tasks, last, done, order = ["a", "b", "c"], None, 0, ""
    for _ in range(12):
        task = next_task(tasks, last, done, {"b": 2}.get(last or "", 1))
        done = done + 1 if task == last else 1
        last, order = task, order + task
    assert order == "abbcabbcabbc"
    assert next_task(["b"], "b", 1, 1) == "b"
    assert next_task(["b", "c"], "gone", 1, 5) == "b"


def test_tasks_come_in_turn_whatever_their_sizes_and_the_turn_goes_on() -> None:
    assert drawn(stream_with("abd"), RoundRobin(), epochs=2) == "abdabdabdabdab"  # 27 rows make 7 batches an epoch
    assert drawn(stream_with("abc", "abc"), RoundRobin(), batch_size=7) == "abcabcabcabc"
    assert drawn(stream_with("abc", "abc", rows=4), RoundRobin(), batch_size=6) == "abca"
    assert drawn(stream_with("abc"), RoundRobin(turns=2)) == "aabbccaab"
    assert drawn(stream_with("abc"), RoundRobin(turns={"b": 3})) == "abbbcabbb"
    assert drawn(stream_with("abc"), RoundRobin(order=("c", "a", "b"))) == "cabcabcab"


def test_a_task_that_is_absent_is_passed_over_and_one_that_is_new_gets_its_turn() -> None:
    assert drawn(stream_with("ab", "bc", "ca", rows=8), RoundRobin()) == "abab" + "cbcb" + "caca"
    assert drawn(stream_with("ab", "bc", rows=8), RoundRobin(order=("a", "b", "c"))) == "abab" + "cbcb"


def test_other_names_change_nothing() -> None:
    one, other = stream_with("abc"), stream_with("cba")  # the same rows under permuted names
    assert drawn(other, RoundRobin()) == drawn(one, RoundRobin()).translate(str.maketrans("abc", "cba"))


def test_a_task_without_labels_is_passed_over() -> None:
    parts = stream_with("abc")[0].data["train"].parts()
    some = JoinedData([parts[0], parts[1].without_labels(), parts[2]])
    tasks = tuple(TASKS[name] for name in "abc")
    met: list[Any] = []
    look = probe("look", before_step=lambda step: met.append(step.batch.index.tolist()))
    stream = stream_of([(some, tasks)], tasks)
    Engine(models.mlp(stream, (4,)), sgd(), [RoundRobin(), look], batch_size=4, evaluate="never").run(stream)
    assert not {row for rows in met for row in rows} & set(range(12, 24))


def test_within_a_task_every_row_comes_before_any_comes_again() -> None:
    met: list[int] = []
    stream = stream_with("ab")
    look = probe("look", before_step=lambda step: met.extend(step.batch.index.tolist()))
    Engine(models.mlp(stream, (4,)), sgd(), [RoundRobin(), look], batch_size=4).run(stream)
    assert sorted(met) == list(range(24))


def test_one_task_and_rows_with_several_tasks_are_all_right() -> None:
    assert set(drawn_any(class_stream())) == {("blobs",)}
    assert set(drawn_any(streams.multitask("digits"))) == {("left", "right")}


def drawn_any(stream: Stream) -> list[Any]:
    met: list[Any] = []
    look = probe("look", before_step=lambda step: met.append(step.batch.tasks))
    Engine(models.mlp(stream, (4,)), sgd(), [RoundRobin(), look], batch_size=200).run(stream)
    return met


@pytest.mark.parametrize("update", [1, 4, 6, 9])
def test_a_resume_in_mid_experience_goes_on_with_the_turn(update: int, tmp_path: Path) -> None:
    stream = stream_with("abd", "bcd", rows=8)

    def engine(**options: Any) -> Engine:
        plugins = [RoundRobin(turns={"a": 2}), EWC(strength=1.0), Replay(capacity=8), PCGrad()]
        return Engine(models.mlp(stream, (9,)), sgd(), plugins, batch_size=4, seed=2, epochs=2, checkpoint_every=1, **options)

    resumes_bit_for_bit(engine, stream, update, tmp_path)


def test_what_is_refused() -> None:
    stream = stream_with("abc")
    with pytest.raises(UnknownNameError, match="unknown task in the order of plugin round_robin 'x'"):
        drawn(stream, RoundRobin(order=("a", "b", "c", "x")))
    with pytest.raises(UnknownNameError, match="unknown task in the turns of plugin round_robin 'A' "):
        drawn(stream, RoundRobin(turns={"A": 2}))
    with pytest.raises(ConfigurationError, match=r"round_robin, experience 0: order does not name 'b' \(it names: a, c\): add it"):
        drawn(stream, RoundRobin(order=("a", "c")))
    with pytest.raises(CompositionError, match="2 plugins claim 'provide_task_probabilities'"):
        Engine(torch.nn.Linear(6, 6), sgd(), [TemperatureSampling(), RoundRobin()])
    for options in ({"order": ("a", "a")}, {"order": ()}, {"turns": 0}, {"turns": {"a": 0}}):
        with pytest.raises(ConfigurationError, match=f"plugin round_robin: option '{next(iter(options))}"):
            RoundRobin(**options)


def test_a_task_of_few_rows_gets_as_many_batches_as_one_of_many() -> None:
    batches = drawn(separate_task_stream(1), RoundRobin(), epochs=4)
    assert batches.count("a") == batches.count("b")
