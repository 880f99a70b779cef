from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from streamlearn import Engine, models
from streamlearn.core.supervision import Supervision
from streamlearn.errors import CompositionError, DataError
from streamlearn.plugins import ERACE, Replay
from streamlearn.plugins.replay.er_ace import present_classes
from streamlearn.streams import Batch, Task
from streamlearn.streams.batch import EVERY_ROW, Segment
from streamlearn.streams.data import Data, Target
from tests.core.support import blobs, class_stream, growing_stream, net, probe, sgd, stream_of, two_task_stream


def restricted(outputs: Tensor, target: int, classes: set[int]) -> Tensor:
    """-log of the softmax over ``classes`` alone, written without a mask."""
    chosen = sorted(classes)
    return outputs[chosen].logsumexp(0) - outputs[target]


def expected_loss(batch: Batch, outputs: Tensor, task: str, met: set[int], masks_incoming: bool) -> Tensor:
    rows = batch.labelled_rows(task)
    target = batch.targets[task]
    replayed = torch.zeros(len(batch), dtype=torch.bool)
    replayed[batch.rows("memory")] = True
    present = {int(t) for t, r, known in zip(target, replayed, rows, strict=True) if known and not r}
    everything = set(range(outputs.shape[1]))
    losses = []
    for i in rows.nonzero().flatten().tolist():
        classes = (met | present) if replayed[i] else present
        losses.append(restricted(outputs[i], int(target[i]), classes if masks_incoming else everything))
    return torch.stack(losses).mean()


def watched(*plugins: Any, stream: Any = None, model: Any = None, **options: Any) -> list[Any]:
    """(experience, batch, outputs, losses, shares) of every step, detached, as the step itself saw them."""
    seen: list[Any] = []

    def look(objective: Any, step: Any) -> Any:
        found = objective(step)
        outputs = {task: step.outputs[task].detach() for task in step.batch.targets}
        losses = {name: float(loss.detach()) for name, loss in found.losses.items()}
        seen.append((step.run.clock.experience, step.batch, outputs, losses, found.shares))
        return found

    watch = probe("watch", around_objective=look)
    Engine(model or net(), sgd(), [*plugins, watch], **({"batch_size": 5} | options)).run(stream or class_stream())
    return seen


def test_the_loss_is_the_papers_over_the_mean_of_all_rows() -> None:
    steps = watched(Replay(capacity=30), ERACE(), epochs=2)
    assert {e for e, *_ in steps} == {0, 1, 2}
    for experience, batch, outputs, losses, shares in steps:
        met = set(range(2 * experience + 2))
        expected = expected_loss(batch, outputs["blobs"], "blobs", met, masks_incoming=experience > 0)
        assert losses["blobs"] == pytest.approx(float(expected), rel=1e-5, abs=1e-6)
        assert float(shares["blobs"]) == pytest.approx(1.0)


def test_a_memory_filled_as_rows_come_is_masked_from_the_second_step_on() -> None:
    steps = watched(Replay(capacity=30, fill="step"), ERACE())
    for number, (experience, batch, outputs, losses, _) in enumerate(steps):
        expected = expected_loss(batch, outputs["blobs"], "blobs", set(range(2 * experience + 2)), masks_incoming=number > 0)
        assert losses["blobs"] == pytest.approx(float(expected), rel=1e-5, abs=1e-6)


def test_incoming_rows_leave_the_outputs_of_old_classes_alone() -> None:
    gradients: list[Tensor] = []

    def look(objective: Any, step: Any) -> Any:
        found = objective(step)
        if step.run.clock.experience == 1:
            outputs = step.outputs["blobs"]
            (gradient,) = torch.autograd.grad(found.losses["blobs"], outputs, retain_graph=True)
            gradients.append(gradient)
        return found

    Engine(net(), sgd(), [Replay(capacity=30), ERACE(), probe("watch", around_objective=look)], batch_size=20).run(class_stream())
    (gradient,) = gradients
    assert gradient.shape == (40, 6)
    incoming, memory = gradient[:20], gradient[20:]
    assert float(incoming[:, [0, 1, 4, 5]].abs().max()) == 0.0
    assert float(incoming[:, [2, 3]].abs().min()) > 0
    assert float(memory[:, :4].abs().min()) > 0
    assert float(memory[:, 4:].abs().max()) == 0.0, "classes not met yet"


def test_it_keeps_old_classes_better_than_plain_replay_does() -> None:
    def old(*plugins: Any) -> float:
        engine = Engine(net(dropout=0.0), sgd(lr=0.1), [Replay(capacity=12, batch_size=2), *plugins], batch_size=10, epochs=6)
        return float(engine.run(class_stream()).accuracy_matrix[-1, :2].mean())

    assert old(ERACE()) > old()


def test_several_tasks_keep_their_own_classes_and_rows() -> None:
    stream = two_task_stream(experiences=2)
    for experience, batch, outputs, losses, _ in watched(Replay(capacity=20), ERACE(), stream=stream, model=models.mlp(stream, (8,))):
        for task, size in (("a", 6), ("b", 3)):
            expected = expected_loss(batch, outputs[task], task, set(range(size)), masks_incoming=experience > 0)
            assert losses[task] == pytest.approx(float(expected), rel=1e-5, abs=1e-6)


def test_a_new_task_has_nothing_to_protect() -> None:
    stream = growing_stream()
    steps = watched(Replay(capacity=12), ERACE(), stream=stream, model=models.mlp(stream, (8,)))
    for experience, batch, outputs, losses, _ in steps:
        if experience == 3:
            assert set(losses) == {"t", "other"}
            fresh = batch.labelled_rows("other")
            plain = torch.nn.functional.cross_entropy(outputs["other"][fresh], batch.targets["other"][fresh])
            assert losses["other"] == pytest.approx(float(plain), rel=1e-5)
            assert losses["t"] == pytest.approx(float(expected_loss(batch, outputs["t"], "t", set(range(6)), True)), rel=1e-5)


def test_rows_without_a_label_do_not_count_and_name_no_class() -> None:
    source, task = blobs(40, 6), Task("t", size=6)
    pieces = []
    for i in range(2):
        rows = torch.arange(20 * i, 20 * i + 20)
        pieces.append((Data(source, rows, (task,), {"t": Target("y")}, labelled={"t": torch.arange(20) % 2 == 0}), (task,)))
    stream = stream_of(pieces, (task,))
    for experience, batch, outputs, losses, _ in watched(Replay(capacity=20), ERACE(), stream=stream):
        if "t" in losses:
            # the rows with a label are the even ones, and with them the even classes
            expected = expected_loss(batch, outputs["t"], "t", {0, 2, 4}, masks_incoming=experience > 0)
            assert losses["t"] == pytest.approx(float(expected), rel=1e-5, abs=1e-6)


def test_regression_is_left_alone() -> None:
    source = blobs(20, 6)
    source.targets["r"] = torch.randn(20, 2)
    task = Task("r", "regression", size=2)
    pieces = [(Data(source, torch.arange(10 * i, 10 * i + 10), (task,), {"r": Target("r")}), (task,)) for i in range(2)]
    stream = stream_of(pieces, (task,))
    for _, batch, outputs, losses, _ in watched(Replay(capacity=5), ERACE(), stream=stream, model=models.mlp(stream, (8,))):
        assert losses["r"] == pytest.approx(float((outputs["r"] - batch.targets["r"]).square().mean()), rel=1e-5)


class FakeStep:
    """Just what the hook reads of a step."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.run = batch, self
        self.tasks = {"t": Task("t", size=4)}
        self.classes_seen = {"t": (0,)}
        self.experience = None


def test_masks_weights_and_probabilities_that_are_there_already_are_kept() -> None:
    segments = (Segment("train", 0, 1, ("t",)), Segment("memory", 1, 2, ("t",)), Segment("train", 2, 3, ("t",)))
    target = torch.tensor([[0.0, 0.5, 0.5, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    batch = Batch(torch.zeros(3, 2), {"t": target}, {"t": EVERY_ROW}, segments, torch.arange(3))
    active = torch.tensor([[True] * 4, [True] * 4, [True, True, False, True]])
    record = Supervision("t/x", "t", torch.zeros(3, 4), target, weight=torch.tensor([1.0, 2.0, 3.0]), active=active, scale=0.5)
    for rows in (None, torch.arange(3)):
        found = ERACE().transform_supervision((record.replace(rows=rows),), FakeStep(batch))
        assert all((r.row, r.task, r.scale) == ("t/x", "t", 0.5) for r in found)
        first = [r.rows.start if isinstance(r.rows, slice) else int(r.rows[0]) for r in found]
        incoming = [r for r, start in zip(found, first, strict=True) if start != 1]
        memory = [r for r, start in zip(found, first, strict=True) if start == 1]
        assert torch.cat([r.weight for r in incoming]).tolist() == [1.0, 3.0]
        assert torch.cat([r.active for r in incoming]).tolist() == [[False, True, True, False], [False, True, False, False]]
        assert [r.weight.tolist() for r in memory] == [[2.0]]
        assert [r.active.tolist() for r in memory] == [[[True, True, True, False]]]


def test_present_classes_of_probabilities_and_of_nothing() -> None:
    assert present_classes([torch.tensor([[0.0, 0.2, 0.8]]), torch.tensor([0])], 3).tolist() == [True, True, True]
    assert present_classes([], 2).tolist() == [False, False]


def test_it_needs_replay() -> None:
    with pytest.raises(CompositionError, match="er_ace needs 'replay', and no listed plugin provides it"):
        Engine(net(), sgd(), [ERACE()])


def test_a_label_out_of_range_is_still_reported_by_name() -> None:
    source, task = blobs(40, 6), Task("t", size=4)
    pieces = [(Data(source, torch.arange(20 * i, 20 * i + 20), (task,), {"t": Target("y")}), (task,)) for i in range(2)]
    with pytest.raises(DataError, match="task 't' met label 5"):
        Engine(net(outputs=4), sgd(), [Replay(capacity=5), ERACE()], evaluate="never").run(stream_of(pieces, (task,)))
