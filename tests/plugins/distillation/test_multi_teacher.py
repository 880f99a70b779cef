from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from streamlearn import Engine, models
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import MultiTeacher
from streamlearn.plugins.distillation.multi_teacher import rows_asked, softened_divergence
from streamlearn.streams import Experience, Task
from streamlearn.streams.data import Data, Target
from streamlearn.streams.sources import TensorSource
from tests.core.support import (
    Stop,
    blobs,
    final,
    growing_stream,
    probe,
    same,
    separate_task_stream,
    sgd,
    stop_at,
    stream_of,
    two_task_stream,
)


def teacher_of(outputs: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(6, outputs)


def oracle(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """torch's own divergence."""
    log_q, p = F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    return temperature**2 * F.kl_div(log_q, p, reduction="batchmean")


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0])
def test_the_formula_is_torchs_divergence_in_value_and_gradient(temperature: float) -> None:
    draw = torch.Generator().manual_seed(1)
    student = (4 * torch.randn(5, 3, generator=draw, dtype=torch.float64)).requires_grad_()
    teacher = 4 * torch.randn(5, 3, generator=draw, dtype=torch.float64)
    mine, theirs = softened_divergence(student, teacher, temperature), oracle(student, teacher, temperature)
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(torch.autograd.grad(mine, student), torch.autograd.grad(theirs, student))
    assert float(softened_divergence(teacher, teacher, temperature)) == 0.0


def test_probabilities_that_vanish_are_no_nan() -> None:
    student = torch.tensor([[0.0, 1.0]], requires_grad=True)
    value = softened_divergence(student, torch.tensor([[1e6, 0.0]]), 1.0)
    value.backward()
    assert float(value.detach()) == pytest.approx(1.3132617)
    assert bool(student.grad.isfinite().all())


def unlabelled_stream() -> Any:
    """Task "a" has labelled rows and, in role "target", rows without labels."""
    task, source = Task("a", size=6), blobs(36)
    data = Data(source, torch.arange(12), (task,), {"a": Target("y")})
    other = Data(source, torch.arange(12, 36), (task,), {"a": Target("y")}).without_labels()
    stream = stream_of([(data, (task,))], (task,))
    whole = Experience(0, (task,), {"train": data, "target": other}, "both", {"a": tuple(range(6))})
    return type(stream)(
        "both", 1, lambda i: whole, stream._evaluation, tasks=(task,), input_shape=(6,), description={"by": "hand"}, fingerprints=("both",)
    )  # fmt: skip


STREAMS: dict[str, Any] = {
    "every row on both tasks": two_task_stream,
    "rows of their own": lambda: separate_task_stream(1),
    "rows without labels": unlabelled_stream,
}


def kept_in(seen: list[Any]) -> Any:
    def keep(step: Any) -> None:
        seen.append(step)

    return keep


def steps_of(stream: Any, plugin: Any, rate: float = 0.0, **options: Any) -> list[Any]:
    """Its steps, after the run; at rate 0 what is read from them then is what they saw."""
    seen: list[Any] = []
    watch = probe("watch", after_step=kept_in(seen))
    Engine(models.mlp(stream, (5,)), sgd(lr=rate), [plugin, watch], **options).run(stream)
    return seen


@pytest.mark.parametrize("rows", ["asked", "all"])
@pytest.mark.parametrize("layout", STREAMS)
def test_the_terms_in_a_run(layout: str, rows: Any) -> None:
    stream = STREAMS[layout]()
    teachers = {task.name: teacher_of(task.size, seed) for seed, task in enumerate(stream.tasks)}
    plugin = MultiTeacher(teachers=teachers, strength=0.5, temperature=3.0, rows=rows)
    for step in steps_of(stream, plugin, batch_size=12):
        assert set(step.terms) == {f"multi_teacher/{task}" for task in teachers if rows == "all" or task in step.batch.tasks}
        for task, teacher in teachers.items():
            asked = torch.zeros(len(step.batch), dtype=torch.bool)
            for segment in step.batch.segments:
                asked[segment.rows] = rows == "all" or task in segment.tasks
            expected = 0.5 * oracle(step.outputs[task][asked].detach(), teacher(step.batch.x[asked]).detach(), 3.0)
            torch.testing.assert_close(step.terms[f"multi_teacher/{task}"].detach(), expected)


def test_rows_that_do_not_lie_side_by_side_are_found_by_position() -> None:
    stream = separate_task_stream(1)
    a, b = (part.batch(torch.arange(3)) for part in stream[0].data["train"].parts())
    joined = a.with_rows("train", b).with_rows("memory", a)
    assert rows_asked(joined, "a").tolist() == [0, 1, 2, 6, 7, 8]
    assert rows_asked(joined, "b") == slice(3, 6)
    assert rows_asked(a, "a") is None
    assert rows_asked(a, "b") == slice(0, 0)
    teacher = teacher_of(6, 1)
    interleave = probe("interleave", transform_batch=lambda batch: joined)
    seen: list[Any] = []
    plugins = [interleave, MultiTeacher(teachers={"a": teacher}), probe("watch", after_step=kept_in(seen))]
    Engine(models.mlp(stream, (5,)), sgd(lr=0.0), plugins, batch_size=24).run(stream)
    (step,) = seen
    rows = rows_asked(joined, "a")
    expected = oracle(step.outputs["a"][rows].detach(), teacher(joined.x[rows]).detach(), 2.0)
    torch.testing.assert_close(step.terms["multi_teacher/a"].detach(), expected)


@pytest.mark.parametrize("layout", ["every row on both tasks", "rows of their own"])
def test_rows_have_the_gradient_of_the_terms_where_every_row_is_labelled(layout: str) -> None:
    """Whatever the layout: the default weighting of the rows is the mean over rows, so compare row by row."""
    stream = STREAMS[layout]()
    teachers = {"a": teacher_of(6, 1), "b": teacher_of(stream.tasks[1].size, 2)}
    (by_row,) = steps_of(stream, MultiTeacher(teachers=teachers, strength=0.5, temperature=3.0, mode="row"), 0.05, batch_size=24)
    (by_term,) = steps_of(stream, MultiTeacher(teachers=teachers, strength=0.5, temperature=3.0), 0.05, batch_size=24)
    assert set(by_row.losses) == {"a", "b", "a/teacher", "b/teacher"}
    assert not by_row.terms
    for task, teacher in teachers.items():
        rows = by_row.batch.labelled_rows(task)
        soft = F.softmax(teacher(by_row.batch.x[rows]).detach() / 3, 1)
        entropy = -(soft * soft.log()).sum(1).mean()
        row, term = by_row.losses[f"{task}/teacher"], by_term.terms[f"multi_teacher/{task}"]
        torch.testing.assert_close(row.detach(), term.detach() + 0.5 * 9 * entropy)
        torch.testing.assert_close(by_row.losses[task].detach(), by_term.losses[task].detach())
    if layout == "every row on both tasks":  # shares are 1 each, so that the two ways are one and the same step
        first, second = (dict(step.run.model.state_dict()) for step in (by_row, by_term))
        for name, value in first.items():
            torch.testing.assert_close(value, second[name])


def test_a_row_also_comes_from_rows_without_labels() -> None:
    teacher = teacher_of(6, 1)
    (step,) = steps_of(unlabelled_stream(), MultiTeacher(teachers={"a": teacher}, temperature=1.0, mode="row"), batch_size=12)
    assert len(step.batch) == 24
    assert int(step.batch.labelled_rows("a").sum()) == 12
    soft = teacher(step.batch.x).detach().softmax(1)
    expected = -(soft * step.outputs["a"].detach().log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(step.losses["a/teacher"].detach(), expected)


def test_a_combiner_sees_rows_even_where_nothing_is_labelled() -> None:
    stream = two_task_stream()
    seen: list[Any] = []

    def combine(rows: Any) -> dict[str, float]:
        seen.append((rows.names, rows.matrix.shape[0]))
        return dict.fromkeys(rows.names, 1.0)

    hide = probe("hide", transform_batch=lambda batch: batch.replace(targets={}, labelled={}))
    teachers = {"a": teacher_of(6, 1), "b": teacher_of(3, 2)}
    plugins = [hide, MultiTeacher(teachers=teachers, mode="row"), probe("combine", provide_gradient_combination=combine)]
    Engine(models.mlp(stream, (5,)), sgd(), plugins, batch_size=24).run(stream)
    assert [(set(names), count) for names, count in seen] == [({"a/teacher", "b/teacher"}, 2)]


@pytest.mark.parametrize("mode", ["term", "row"])
def test_the_student_becomes_its_teachers_on_unlabelled_rows(mode: Any) -> None:
    stream = two_task_stream()
    x = stream[0].data["train"].batch(torch.arange(24)).x
    teachers = {"a": teacher_of(6, 1), "b": teacher_of(3, 2)}
    hide = probe("hide", transform_batch=lambda batch: batch.replace(targets={}, labelled={}))

    def distance(strength: float) -> float:
        plugins = [hide, MultiTeacher(teachers=teachers, strength=strength, mode=mode)]
        model = Engine(models.mlp(stream, (16,)), sgd(weight_decay=0.0), plugins, batch_size=8, epochs=20).run(stream).model.eval()
        gaps = [(model(x, task).softmax(1) - teacher(x).softmax(1)).abs().mean() for task, teacher in teachers.items()]
        return max(float(gap.detach()) for gap in gaps)

    assert distance(1.0) < 0.2 * distance(0.0)


@pytest.mark.parametrize("mode", ["term", "row"])
def test_regression_is_compared_by_the_tasks_own_loss(mode: Any) -> None:
    draw = torch.Generator().manual_seed(1)
    source = TensorSource(torch.randn(8, 6, generator=draw), {"v": torch.randn(8, 2, generator=draw)}, "values")
    task = Task("v", "regression", size=2)
    stream = stream_of([(Data(source, torch.arange(8), (task,), {"v": Target("v")}), (task,))], (task,))
    teacher = teacher_of(2, 1)
    (step,) = steps_of(stream, MultiTeacher(teachers={"v": teacher}, strength=0.5, temperature=3.0, mode=mode), batch_size=8)
    found = step.losses["v/teacher"] if mode == "row" else step.terms["multi_teacher/v"]
    torch.testing.assert_close(found.detach(), 0.5 * F.mse_loss(step.outputs["v"], teacher(step.batch.x)).detach())


@pytest.mark.parametrize("mode", ["term", "row"])
def test_it_acts_under_a_look_ahead(mode: Any) -> None:
    """At zero weights the student's outputs are uniform: the gradient there moves the bias towards the teacher's mean prediction."""
    stream = two_task_stream()
    teacher = teacher_of(6, 1)
    found: list[Any] = []

    def around(objective: Any, step: Any) -> Any:
        zero = {name: torch.zeros_like(p).requires_grad_() for name, p in step.parameters.items()}
        half = step.batch.split(2)[1]
        there = objective(step.at(zero, batch=half))
        value = there.losses["a/teacher"] if mode == "row" else there.terms["multi_teacher/a"]
        (gradient,) = torch.autograd.grad(value, [zero["heads.by_task.a.bias"]])
        found.append((gradient, 1 / 6 - teacher(half.x).detach().softmax(1).mean(0)))
        return objective(step)

    plugins = [MultiTeacher(teachers={"a": teacher}, temperature=1.0, mode=mode), probe("ahead", around_objective=around)]
    Engine(models.mlp(stream, (5,)), sgd(), plugins, batch_size=24).run(stream)
    torch.testing.assert_close(*found[0])


@pytest.mark.parametrize("mode", ["term", "row"])
def test_strength_0_is_no_plugin_at_all(mode: Any) -> None:
    stream = two_task_stream()
    steps = steps_of(stream, MultiTeacher(teachers={"a": teacher_of(6, 1)}, strength=0, mode=mode), 0.05, batch_size=8)
    assert all(not step.terms and set(step.losses) == {"a", "b"} and not step.run.teachers for step in steps)
    without, _ = final(Engine(models.mlp(stream, (5,)), sgd(), [], batch_size=8), stream)
    assert same(dict(steps[0].run.model.state_dict()), without)


@pytest.mark.parametrize("mode", ["term", "row"])
def test_stopped_and_resumed_equals_the_straight_run(mode: Any, tmp_path: Path) -> None:
    stream = two_task_stream(experiences=2)

    def engine(**options: Any) -> Engine:
        plugin = MultiTeacher(teachers={"a": teacher_of(6, 1), "b": teacher_of(3, 2)}, mode=mode)
        return Engine(models.mlp(stream, (8,)), sgd(), [plugin], batch_size=8, epochs=2, checkpoint_every=3, **options)

    expected = final(engine(), stream)
    for update in (7,):
        folder = tmp_path / str(update)
        with pytest.raises(Stop):
            engine(progress=stop_at(update)).run(stream, output=folder)
        result = engine().resume(folder, stream)
        assert same(dict(result.model.state_dict()), expected[0]), update
        assert same(result.events, expected[1]), update


def test_a_task_that_arrives_later_has_no_term_before() -> None:
    stream = growing_stream((2,))
    steps = steps_of(stream, MultiTeacher(teachers={"other": teacher_of(3, 1)}, rows="all"), batch_size=60)
    assert [set(step.terms) for step in steps] == [set(), {"multi_teacher/other"}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teachers": {}}, r"option 'teachers' is \{\}"),
        ({"teachers": {"a": 3}}, r"option 'teachers\.a'"),
        ({"teachers": {"a": nn.Linear(6, 6)}, "temperature": 0}, r"option 'temperature' is 0"),
        ({"teachers": {"a": nn.Linear(6, 6)}, "strength": -1}, r"option 'strength' is -1"),
        ({"teachers": {"a": nn.Linear(6, 6)}, "mode": "both"}, r"option 'mode' is 'both'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MultiTeacher(**options)


@pytest.mark.parametrize("mode", ["term", "row"])
@pytest.mark.parametrize("outputs", [5, 7])
def test_teachers_that_do_not_fit_are_refused(outputs: int, mode: Any) -> None:
    message = rf"the teacher of task 'a' gives outputs of shape \(24, {outputs}\), the model \(24, 6\)"
    with pytest.raises(ConfigurationError, match=message):
        steps_of(two_task_stream(), MultiTeacher(teachers={"a": teacher_of(outputs, 1)}, mode=mode), batch_size=24)
    with pytest.raises(ConfigurationError, match=r"task 'c', which stream 'hand' does not have"):
        steps_of(two_task_stream(), MultiTeacher(teachers={"c": teacher_of(6, 1)}, mode=mode), batch_size=24)
