from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from streamlearn import Engine, models
from streamlearn.errors import DataError
from streamlearn.plugins import ICaRLLoss, Replay
from streamlearn.plugins.distillation.icarl_loss import icarl_loss
from streamlearn.streams import Task
from streamlearn.streams.data import Data, Target
from streamlearn.streams.sources import TensorSource
from tests.core.support import (
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
)
from tests.plugins.distillation.oracle import body, distance, library, plain_sgd, trained_by_avalanche


def linear(seed: int, outputs: int = 6) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(6, outputs)


def test_the_formula_by_hand() -> None:
    """Eq. 1, term by term; class 0 is old, class 1 is new."""
    outputs, teacher = torch.tensor([[0.5, -1.0]], requires_grad=True), torch.tensor([[2.0, 9.0]])
    q = 1 / (1 + math.exp(-2.0))
    g = [1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(1.0))]
    labels = torch.tensor([[0.0, 1.0]])
    expected = -(q * math.log(g[0]) + (1 - q) * math.log(1 - g[0])) - math.log(g[1])
    assert icarl_loss(outputs, labels, [0], teacher).tolist() == [pytest.approx(expected)]
    assert icarl_loss(outputs, labels).tolist() == [pytest.approx(-math.log(1 - g[0]) - math.log(g[1]))]
    assert icarl_loss(outputs, labels, [0], teacher, torch.tensor([False, True])).tolist() == [pytest.approx(-math.log(g[1]))]
    assert icarl_loss(outputs, labels, [0], teacher[:, :1]).tolist() == [pytest.approx(expected)], "a teacher whose head has grown since"
    (gradient,) = torch.autograd.grad(icarl_loss(outputs, labels, [0], teacher).sum(), outputs)
    torch.testing.assert_close(gradient, torch.tensor([[g[0] - q, g[1] - 1.0]]))


def test_the_old_models_outputs_are_softened() -> None:
    """sigmoid(o / T) in the target, and nothing else: the student's outputs and the labels are as they were."""
    outputs, teacher, labels = torch.tensor([[0.5, -1.0]]), torch.tensor([[2.0, 9.0]]), torch.tensor([[0.0, 1.0]])
    q, g = 1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(-0.5))
    expected = -(q * math.log(g) + (1 - q) * math.log(1 - g)) - math.log(1 / (1 + math.exp(1.0)))
    assert icarl_loss(outputs, labels, [0], teacher, temperature=4.0).tolist() == [pytest.approx(expected)]
    step, losses = losses_of(class_stream()[:2], [ICaRLLoss(temperature=4.0)], linear(1), batch_size=20)[1]
    target = F.one_hot(step.batch.targets["blobs"], 6).float()
    target[:, :2] = torch.sigmoid(step.outputs["blobs"][:, :2].detach() / 4.0)  # at rate 0 the old model says what the model says
    each = F.binary_cross_entropy_with_logits(step.outputs["blobs"].detach(), target, reduction="none").sum(1)
    torch.testing.assert_close(losses["blobs"], each.mean())


def test_avalanche_trains_the_same_weights_at_its_own_rate() -> None:
    """Its loss is the mean over the six outputs, ours the sum."""
    stream, lost = class_stream(), library("training.losses").ICaRLLossPlugin
    mine = Engine(body(), plain_sgd, [ICaRLLoss()], batch_size=1000, epochs=4).run(stream).model
    theirs = trained_by_avalanche(stream, body(), list, 4, lost, rate=0.6)
    assert distance(mine, theirs) < 1e-5
    other = Engine(body(), plain_sgd, [ICaRLLoss(temperature=2.0)], batch_size=1000, epochs=4).run(stream).model
    assert distance(other, theirs) > 1e-3


def algorithm_3(batches: list[Any], model: nn.Module) -> None:
    """The paper's representation update as a plain loop: exemplars are among the rows, classes come in twos."""
    optimizer, previous = sgd()(model.parameters()), model
    for number, batch in enumerate(batches):
        experience = number // (len(batches) // 3)
        if number % (len(batches) // 3) == 0:
            previous = copy.deepcopy(model)
        g, y = torch.sigmoid(model(batch.x)), batch.targets["blobs"]
        total = torch.zeros(())
        for i in range(len(batch)):
            for c in range(6):
                q = torch.sigmoid(previous(batch.x[i])[c]).detach() if c < 2 * experience else (y[i] == c).float()
                total = total - q * torch.log(g[i, c]) - (1 - q) * torch.log(1 - g[i, c])
        optimizer.zero_grad()
        (total / len(batch)).backward()
        optimizer.step()


def test_a_run_with_exemplars_equals_a_plain_loop() -> None:
    batches: list[Any] = []

    def keep(step: Any) -> None:
        batches.append(step.batch)

    student = linear(1)
    loop = copy.deepcopy(student)
    plugins = [Replay(capacity=6, policy="class_balanced", batch_size=4), ICaRLLoss(), probe("watch", before_step=keep)]
    Engine(student, sgd(), plugins, batch_size=10, epochs=1).run(class_stream())
    assert [batch.roles for batch in batches] == [("train",)] * 2 + [("train", "memory")] * 4
    algorithm_3(batches, loop)
    for mine, theirs in zip(student.parameters(), loop.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def losses_of(stream: Any, plugins: list[Any], model: nn.Module, **options: Any) -> list[tuple[Any, dict[str, torch.Tensor]]]:
    seen: list[tuple[Any, dict[str, torch.Tensor]]] = []

    def keep(step: Any) -> None:
        seen.append((step, {name: value.detach() for name, value in step.losses.items()}))

    Engine(model, sgd(lr=0.0), [*plugins, probe("watch", after_step=keep)], **options).run(stream)
    return seen


@pytest.mark.parametrize("layout", ["slice", "positions"])
def test_each_task_is_compared_on_its_own_rows(layout: str) -> None:
    stream = separate_task_stream(2)

    def scatter(batch: Any) -> Any:
        if layout == "slice":
            return batch
        return batch.replace(labelled={task: batch.labelled_rows(task) for task in batch.targets})

    seen = losses_of(stream, [probe("scatter", transform_batch=scatter), ICaRLLoss()], models.mlp(stream, (5,)), batch_size=24)
    assert len(seen) == 2
    for step, losses in seen:
        assert set(losses) == {"a", "b"}
        for task, loss in losses.items():
            rows = step.batch.labelled_rows(task)
            y = F.one_hot(step.batch.targets[task][rows], 6).float()
            each = F.binary_cross_entropy_with_logits(step.outputs[task][rows].detach(), y, reduction="none").sum(1)
            torch.testing.assert_close(loss, each.mean())


def repeated_stream() -> Any:
    """Classes 0 and 1, then 1 and 2, of two tasks: class 1 comes up again, class 0 does not."""
    source, tasks = blobs(36, 3), (Task("a", size=3), Task("b", size=3))
    pieces = []
    for number in range(2):
        rows = ((source.targets["y"] == number) | (source.targets["y"] == number + 1)).nonzero().flatten()
        pieces.append((Data(source, rows, tasks, {"a": Target("y"), "b": Target("y")}), tasks))
    return stream_of(pieces, tasks)


def test_a_class_that_comes_up_again_is_learned_from_its_labels() -> None:
    """Also: the teacher's outputs are those of the record's rows, which for task b are every third."""
    stream = repeated_stream()
    third = probe("third", transform_batch=lambda batch: batch.replace(labelled={**batch.labelled, "b": torch.arange(len(batch)) % 3 == 0}))
    seen = losses_of(stream, [third, ICaRLLoss()], models.mlp(stream, (5,)), batch_size=24)
    step, losses = seen[1]
    previous = step.run.teachers["icarl_loss/previous"]
    for task in ("a", "b"):
        rows = step.batch.labelled_rows(task)
        assert int(rows.sum()) == (24 if task == "a" else 8)
        target = F.one_hot(step.batch.targets[task][rows], 3).float()
        target[:, 0] = previous(step.batch.x[rows], task)[:, 0].sigmoid().detach()
        each = F.binary_cross_entropy_with_logits(step.outputs[task][rows].detach(), target, reduction="none").sum(1)
        torch.testing.assert_close(losses[task], each.mean())


def test_the_first_experience_has_no_teacher_and_heads_may_grow() -> None:
    stream = growing_stream((2, 4))
    model = models.mlp(stream, (5,))
    seen = losses_of(stream, [Replay(capacity=5), ICaRLLoss()], model, batch_size=60)
    assert [set(losses) for _, losses in seen] == [{"t"}, {"t"}, {"t", "other"}]
    step, losses = seen[1]
    y = F.one_hot(step.batch.targets["t"], 4).float()
    y[:, :2] = step.outputs["t"][:, :2].sigmoid().detach()  # at rate 0 the old model says what the model says
    each = F.binary_cross_entropy_with_logits(step.outputs["t"].detach(), y, reduction="none").sum(1)
    torch.testing.assert_close(losses["t"], each.mean())


def test_masks_weights_and_soft_targets_are_respected() -> None:
    active = torch.tensor([True, False, True, True, True, True])
    weight = torch.arange(20.0)
    soft = torch.full((20, 6), 1 / 6)

    def change(supervision: Any, step: Any) -> Any:
        return tuple(r.replace(active=active, weight=weight, target=soft) for r in supervision)

    plugins = [probe("change", transform_supervision=change), ICaRLLoss()]
    step, losses = losses_of(class_stream(), plugins, linear(1), batch_size=20)[0]
    each = F.binary_cross_entropy_with_logits(step.outputs["blobs"].detach(), soft, reduction="none")[:, active].sum(1)
    torch.testing.assert_close(losses["blobs"], (weight * each).sum() / weight.sum())


def test_regression_keeps_its_own_loss() -> None:
    draw = torch.Generator().manual_seed(1)
    columns = {"v": torch.randn(8, 2, generator=draw), "y": torch.arange(8) % 3}
    source = TensorSource(torch.randn(8, 6, generator=draw), columns, "values")
    tasks = (Task("v", "regression", size=2), Task("y", size=3))
    stream = stream_of([(Data(source, torch.arange(8), tasks, {"v": Target("v"), "y": Target("y")}), tasks)], tasks)
    ((step, losses),) = losses_of(stream, [ICaRLLoss()], models.mlp(stream, (5,)), batch_size=8)
    torch.testing.assert_close(losses["v"], F.mse_loss(step.outputs["v"].detach(), columns["v"][step.batch.index]))
    y = F.one_hot(step.batch.targets["y"], 3).float()
    torch.testing.assert_close(losses["y"], 3 * F.binary_cross_entropy_with_logits(step.outputs["y"].detach(), y))


def test_it_acts_under_a_look_ahead() -> None:
    """At zero weights, on half of the rows: old classes cost their entropy's cross term, the others log 2 each."""
    found: list[Any] = []

    def around(objective: Any, step: Any) -> Any:
        zero = {name: torch.zeros_like(p).requires_grad_() for name, p in step.parameters.items()}
        half = step.batch.split(2)[1]
        value = objective(step.at(zero, batch=half)).losses["blobs"]
        (gradient,) = torch.autograd.grad(value, [zero["encoder.bias"]])
        target = F.one_hot(half.targets["blobs"], 6).float()
        if step.run.clock.experience:
            target[:, :2] = step.run.teachers["icarl_loss/previous"](half.x, "blobs")[:, :2].sigmoid()
        found.append((gradient, (0.5 - target).mean(0)))
        return objective(step)

    stream = class_stream()[:2]
    Engine(linear(1), sgd(), [ICaRLLoss(), probe("ahead", around_objective=around)], batch_size=20).run(stream)
    assert len(found) == 2
    for gradient, expected in found:
        torch.testing.assert_close(gradient, expected)


def test_old_outputs_stay_near_what_they_were() -> None:
    """Against the same loss that does not know which classes are old."""
    stream = class_stream()
    x = stream[1].data["train"].batch(torch.arange(20)).x

    def forget(supervision: Any, step: Any) -> Any:
        labels = [F.one_hot(r.target, 6).float() for r in supervision]
        return [icarl_loss(r.outputs, y) for r, y in zip(supervision, labels, strict=True)]

    def drift(plugin: Any) -> float:
        ends: list[Any] = []
        keep = probe("keep", after_experience=lambda run: ends.append(run.model.eval()(x)[:, :2].sigmoid().detach()))
        Engine(net(), sgd(), [plugin, keep], batch_size=10, epochs=5).run(stream)
        return float((ends[1] - ends[0]).abs().mean())

    assert drift(ICaRLLoss()) < 0.5 * drift(probe("forget", provide_task_losses=forget))


def test_stopped_and_resumed_equals_the_straight_run(tmp_path: Path) -> None:
    stream = class_stream()

    def engine(**options: Any) -> Engine:
        return Engine(net(), sgd(), [Replay(capacity=6), ICaRLLoss()], batch_size=8, epochs=2, checkpoint_every=3, **options)

    expected = final(engine(), stream)
    for update in (8, 14):
        folder = tmp_path / str(update)
        with pytest.raises(Stop):
            engine(progress=stop_at(update)).run(stream, output=folder)
        result = engine().resume(folder, stream)
        assert same(dict(result.model.state_dict()), expected[0]), update
        assert same(result.events, expected[1]), update


def test_a_label_that_is_no_class_is_refused() -> None:
    wrong = probe("wrong", transform_batch=lambda batch: batch.replace(targets={"blobs": batch.targets["blobs"] + 5}))
    with pytest.raises(DataError, match=r"task 'blobs' met labels from 5 to 6, but it has 6 classes"):
        Engine(net(), sgd(), [wrong, ICaRLLoss()], batch_size=20).run(class_stream())
