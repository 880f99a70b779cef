from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from streamlearn import Engine, models
from streamlearn.core.supervision import Supervision
from streamlearn.core.teaching import as_probabilities
from streamlearn.errors import ConfigurationError, DataError
from streamlearn.models import Heads, Model
from streamlearn.plugins import BAM, Replay
from streamlearn.plugins.distillation.bam import annealed_target
from streamlearn.streams import Task
from streamlearn.streams.data import Data, Target
from streamlearn.streams.sources import TensorSource
from tests.core.support import (
    Stop,
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
)


def teacher_of(outputs: int, seed: int, features: int = 6) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(features, outputs)


def test_the_formula_by_hand() -> None:
    labels = as_probabilities(torch.tensor([2, 0]), torch.zeros(2, 3), "t")
    assert labels.tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    told = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.9, 0.0]])
    mixed = annealed_target(labels, told, 0.25)
    torch.testing.assert_close(mixed, torch.tensor([[0.15, 0.225, 0.625], [0.325, 0.675, 0.0]]))
    assert torch.equal(annealed_target(labels, told, 0.0), told)
    assert torch.equal(annealed_target(labels, told, 1.0), labels)
    soft = torch.tensor([[0.5, 0.5, 0.0]])
    assert as_probabilities(soft, torch.zeros(1, 3), "t") is soft


def test_a_label_that_is_no_class_is_named() -> None:
    with pytest.raises(DataError, match=r"task 't' met labels from 1 to 3, but it has 3 classes, numbered 0 to 2"):
        as_probabilities(torch.tensor([3, 1]), torch.zeros(2, 3), "t")


def test_a_run_equals_a_plain_loop() -> None:
    """Two epochs of three batches over one task, the loss written out: λ is 0, 1/6, ..., 5/6."""
    stream = class_stream(experiences=1, rows=12)
    teacher, student = teacher_of(6, 1), teacher_of(6, 2)
    loop = copy.deepcopy(student)
    batches: list[Any] = []
    watch = probe("watch", before_step=lambda step: batches.append(step.batch))
    Engine(student, sgd(), [BAM(teachers={"blobs": teacher}), watch], batch_size=4, epochs=2).run(stream)
    optimizer = sgd()(loop.parameters())
    for number, batch in enumerate(batches):
        soft = torch.softmax(teacher(batch.x).detach(), 1)
        y = F.one_hot(batch.targets["blobs"], 6).float()
        mixed = number / 6 * y + (1 - number / 6) * soft
        optimizer.zero_grad()
        (-(mixed * torch.log_softmax(loop(batch.x), 1)).sum(1).mean()).backward()
        optimizer.step()
    assert len(batches) == 6
    for mine, theirs in zip(student.parameters(), loop.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert all(p.grad is None for p in teacher.parameters())


def records_of(stream: Any, plugins: list[Any], model: nn.Module, **options: Any) -> list[tuple[Any, tuple[Supervision, ...]]]:
    """The records of every step as BAM left them, with the step's batch."""
    seen: list[tuple[Any, tuple[Supervision, ...]]] = []

    def look(supervision: Any, step: Any) -> Any:
        seen.append((step, supervision))
        return supervision

    Engine(model, sgd(), [*plugins, probe("look", transform_supervision=look)], **options).run(stream)
    return seen


@pytest.mark.parametrize("layout", ["all", "slice", "positions"])
def test_each_record_gets_its_own_teacher_on_its_own_rows(layout: str) -> None:
    teachers = {"a": teacher_of(6, 1), "b": teacher_of(6 if layout != "all" else 3, 2)}
    stream = two_task_stream() if layout == "all" else separate_task_stream(1)
    rows: list[Any] = []

    def scatter(batch: Any) -> Any:
        if layout != "positions":
            return batch
        return batch.replace(labelled={task: batch.labelled_rows(task) for task in batch.targets})

    seen = records_of(
        stream, [probe("scatter", transform_batch=scatter), BAM(teachers=teachers)], models.mlp(stream, (5,)), batch_size=24, epochs=2
    )  # fmt: skip
    assert len(seen) == 2
    for (step, records), progress in zip(seen, (0.0, 0.5), strict=True):
        assert [record.task for record in records] == ["a", "b"]
        for record in records:
            rows.append(record.rows)
            keep = step.batch.labelled_rows(record.task)
            soft = teachers[record.task](step.batch.x[keep]).detach().softmax(1)
            y = F.one_hot(step.batch.targets[record.task][keep], soft.shape[1]).float()
            torch.testing.assert_close(record.target, progress * y + (1 - progress) * soft)
    kind = {"all": type(None), "slice": slice, "positions": torch.Tensor}[layout]
    assert all(isinstance(r, kind) for r in rows)


def test_a_task_without_a_teacher_keeps_its_labels_and_probabilities_are_mixed_too() -> None:
    stream = two_task_stream()

    def soften(supervision: Any) -> Any:
        return tuple(r.replace(target=torch.full_like(r.outputs, 1 / r.outputs.shape[1]).detach()) for r in supervision)

    teacher = teacher_of(6, 1)
    plugins = [probe("soften", transform_supervision=soften), BAM(teachers={"a": teacher})]
    ((step, (a, b)),) = records_of(stream, plugins, models.mlp(stream, (5,)), batch_size=24)
    torch.testing.assert_close(a.target, teacher(step.batch.x).detach().softmax(1))
    assert torch.equal(b.target, torch.full((24, 3), 1 / 3))


def test_a_mask_excludes_classes_from_the_teachers_part_too() -> None:
    """A part of the target on an excluded class would cost about 1e38."""
    stream = class_stream(experiences=1, rows=12)
    active = torch.tensor([True, True, True, True, True, False])
    keep = probe(
        "keep",
        transform_batch=lambda batch: batch.replace(targets={"blobs": batch.targets["blobs"].clamp(max=4)}),
        transform_supervision=lambda supervision: tuple(r.replace(active=active) for r in supervision),
    )
    ((step, (record,)),) = records_of(stream, [keep, BAM(teachers={"blobs": teacher_of(6, 1)})], net(), batch_size=12)
    assert float(record.target[:, 5].abs().max()) == 0
    torch.testing.assert_close(record.target.sum(1), torch.ones(12))
    assert float(step.losses["blobs"].detach()) < 10


def test_regression_anneals_the_values() -> None:
    draw = torch.Generator().manual_seed(1)
    source = TensorSource(torch.randn(8, 6, generator=draw), {"v": torch.randn(8, 2, generator=draw)}, "values")
    task = Task("v", "regression", size=2)
    stream = stream_of([(Data(source, torch.arange(8), (task,), {"v": Target("v")}), (task,))] * 2, (task,))
    teacher = teacher_of(2, 1)
    seen = records_of(stream, [BAM(teachers={"v": teacher})], models.mlp(stream, (5,)), batch_size=4)
    for (step, (record,)), progress in zip(seen, (0.0, 0.5, 0.0, 0.5), strict=True):
        expected = progress * step.batch.targets["v"] + (1 - progress) * teacher(step.batch.x).detach()
        torch.testing.assert_close(record.target, expected)
    own = records_of(stream, [BAM()], models.mlp(stream, (5,)), batch_size=8)
    assert torch.equal(own[0][1][0].target, own[0][0].batch.targets["v"]), "the first experience has no teacher"
    previous = own[1][0].run.teachers["bam/previous"](own[1][0].batch.x, "v")
    torch.testing.assert_close(own[1][1][0].target, previous.detach())


def test_the_previous_model_speaks_of_the_classes_it_knows() -> None:
    """Rows of new classes keep their labels; for the memory's rows the old model's softmax over its classes is mixed in."""
    ends: list[Any] = []
    keep = probe("keep", after_experience=lambda run: ends.append(copy.deepcopy(run.model).eval()))
    stream = growing_stream((2, 4))
    seen = records_of(stream, [Replay(capacity=6), BAM(), keep], models.mlp(stream, (8,)), batch_size=10, epochs=2)
    second = [(step, record) for step, records in seen for record in records if record.outputs.shape[1] == 4][:4]
    for number, (step, record) in enumerate(second):
        y, progress = F.one_hot(step.batch.targets["t"], 4).float(), number / 4
        old = step.batch.targets["t"] < 2
        assert 0 < int(old.sum()) < len(old)
        assert torch.equal(record.target[~old], y[~old])
        soft = F.pad(ends[0](step.batch.x[old], "t").detach().softmax(1), (0, 2))
        torch.testing.assert_close(record.target[old], progress * y[old] + (1 - progress) * soft)
    assert all(not r.target.is_floating_point() for step, records in seen for r in records if r.task == "other")
    assert all(not r.target.is_floating_point() for step, records in seen for r in records if r.outputs.shape[1] == 2)


def test_it_acts_under_a_look_ahead() -> None:
    """At other parameters and on other rows, the target is the teacher's on those rows."""
    stream = class_stream(experiences=1, rows=12)
    teacher = teacher_of(6, 1)
    found: list[float] = []

    def around(objective: Any, step: Any) -> Any:
        zero = {name: torch.zeros_like(p).requires_grad_() for name, p in step.parameters.items()}
        half = step.batch.split(2)[1]
        there = objective(step.at(zero, batch=half))
        (record,) = step.at(zero, batch=half).supervision
        torch.testing.assert_close(record.target, teacher(half.x).detach().softmax(1))
        found.append(float(there.losses["blobs"].detach()))
        return objective(step)

    Engine(teacher_of(6, 2), sgd(), [BAM(teachers={"blobs": teacher}), probe("ahead", around_objective=around)], batch_size=12).run(stream)
    assert found == [pytest.approx(float(torch.tensor(6.0).log()))]


def test_a_good_teacher_shows_before_the_labels_count() -> None:
    """Where every label is wrong, the student follows its good teacher at first, and the labels in the end."""
    stream = class_stream(experiences=1)
    data = stream[0].data["train"].batch(torch.arange(60))
    good = teacher_of(6, 1)
    optimizer = sgd(lr=0.3)(good.parameters())
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(good(data.x), data.targets["blobs"]).backward()
        optimizer.step()
    wrong = probe("wrong", transform_batch=lambda batch: batch.replace(targets={"blobs": (batch.targets["blobs"] + 1) % 6}))
    right: list[float] = []
    watch = probe(
        "watch", after_epoch=lambda run: right.append(float((run.model(data.x).argmax(1) == data.targets["blobs"]).float().mean()))
    )
    Engine(teacher_of(6, 2), sgd(lr=0.1), [wrong, BAM(teachers={"blobs": good}), watch], batch_size=20, epochs=10).run(stream)
    assert right[3] > 0.8, "it learns what the teacher says"
    assert right[-1] < 0.3, "and in the end what the labels say"


CASES: dict[str, Any] = {
    "previous": (lambda: growing_stream((2, 4)), lambda: [Replay(capacity=6), BAM()]),
    "own teachers": (
        lambda: two_task_stream(experiences=2),
        lambda: [BAM(teachers={"a": Model(nn.Linear(6, 4), Heads(4, [Task("a", size=6)])), "b": teacher_of(3, 3)})],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_resumed_equals_the_straight_run(case: str, tmp_path: Path) -> None:
    make, plugins = CASES[case]
    stream = make()

    def engine(**options: Any) -> Engine:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            listed = plugins()
        return Engine(models.mlp(stream, (8,)), sgd(), listed, batch_size=8, epochs=2, checkpoint_every=3, **options)

    expected = final(engine(), stream)
    last = sum(e["updates"] for e in expected[1] if e["event"] == "experience")
    for update in (last // 2, last - 1):
        folder = tmp_path / str(update)
        with pytest.raises(Stop):
            engine(progress=stop_at(update)).run(stream, output=folder)
        result = engine().resume(folder, stream)
        assert same(dict(result.model.state_dict()), expected[0]), update
        assert same(result.events, expected[1]), update


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        ({"blobs": teacher_of(4, 1)}, r"the teacher of task 'blobs' gives outputs of shape \(10, 4\), the model \(10, 6\)"),
        ({"blobs": teacher_of(9, 1)}, r"the teacher of task 'blobs' gives outputs of shape \(10, 9\), the model \(10, 6\)"),
        ({"blob": teacher_of(6, 1)}, r"task 'blob', which stream 'hand' does not have; did you mean 'blobs'\?"),
        ({"blobs": Model(nn.Identity(), Heads(6, [Task("x", size=6)]))}, r"'blobs' is a model without a head for it \(it has: x\)"),
    ],
)  # fmt: skip
def test_teachers_that_do_not_fit_are_refused(teachers: dict[str, nn.Module], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Engine(net(), sgd(), [BAM(teachers=teachers)], batch_size=10).run(class_stream())


def test_a_teacher_of_a_task_that_arrives_later_is_no_mistake() -> None:
    stream = growing_stream((2, 4))
    assert [task.name for task in stream.tasks] == ["t"]
    seen = records_of(stream, [BAM(teachers={"other": teacher_of(3, 1)})], models.mlp(stream, (8,)), batch_size=60)
    assert [records[0].target.is_floating_point() for _, records in seen] == [False, False, True]


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"plugin bam: option 'teachers\.a'"):
        BAM(teachers={"a": 3})
