"""Rows of the Jacobian across fields: masks, memories, look-aheads and combiners on the same step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from streamlearn import Engine, Plugin, models
from streamlearn.plugins import ERACE, MAML, PCGrad, Replay
from streamlearn.streams import Task
from streamlearn.streams.data import Data, Target, join
from tests.core.support import blobs, class_stream, net, probe, sgd, stream_of, two_task_stream


@pytest.mark.parametrize("stream", [class_stream, lambda: two_task_stream(experiences=2)], ids=["one task", "two tasks a row"])
def test_er_ace_replay_maml_and_pcgrad_in_one_step(stream: Any) -> None:
    moved: list[bool] = []
    masks: list[Any] = []

    def after(step: Any) -> None:
        moved.append(step.updated)
        masks.extend(record.active for record in step.supervision if record.active is not None)
        assert all(math.isfinite(float(value.detach())) for value in step.losses.values())

    made = stream()
    plugins: list[Plugin] = [Replay(capacity=12), ERACE(), MAML(steps=1, rate=0.1), PCGrad(), probe("watch", after_step=after)]
    result = Engine(models.mlp(made, (8,)), sgd(), plugins, batch_size=6).run(made)
    assert all(moved)
    assert masks, "the incoming rows are masked once there is a past"
    assert all(bool(p.isfinite().all()) for p in result.model.parameters())  # type: ignore[attr-defined]


def ten_heads(rows: int) -> tuple[Any, tuple[Task, ...]]:
    source = blobs(rows * 10, 6)
    tasks = tuple(Task(f"head {i}", size=6) for i in range(10))
    pieces = [Data(source, torch.arange(i * rows, (i + 1) * rows), (task,), {task.name: Target("y")}) for i, task in enumerate(tasks)]
    return join(pieces), tasks


def test_a_batch_over_ten_heads_is_the_mean_over_its_rows() -> None:
    data, tasks = ten_heads(5)
    stream = stream_of([(data, tasks)], tasks)
    seen: list[tuple[float, float]] = []

    def before(step: Any) -> None:
        total = 0.0
        with torch.no_grad():
            features = step.run.model.encode(step.batch.x)
            for segment in step.batch.segments:
                (task,) = segment.tasks
                outputs, target = step.run.model.decode(features[segment.rows], task), step.batch.targets[task][segment.rows]
                total += float(F.cross_entropy(outputs, target, reduction="sum"))
        expected.append(total / len(step.batch))

    def weigh(losses: Any, step: Any) -> torch.Tensor:
        total = sum(step.rows.shares[name] * loss for name, loss in losses.items())
        seen.append((float(total.detach()), expected[-1]))
        assert isinstance(total, torch.Tensor)
        return total

    expected: list[float] = []
    Engine(models.mlp(stream, (8,)), sgd(), [probe("watch", before_step=before, provide_weighting=weigh)], batch_size=16).run(stream)
    assert len(seen) == 4
    for found, mean in seen:
        assert found == pytest.approx(mean, rel=1e-5)


def test_memory_rows_are_merged_or_rows_of_their_own() -> None:
    """Renamed, they get a loss of their own; the default objective, a mean over all rows, stays what it was."""

    def apart(supervision: Any, step: Any) -> Any:
        memory = step.batch.rows("memory")
        if memory.start == memory.stop:
            return supervision
        found = []
        for record in supervision:
            for rows, row in ((slice(0, memory.start), record.row), (memory, f"{record.row}/memory")):
                found.append(record.replace(row=row, outputs=record.outputs[rows], target=record.target[rows], rows=rows))
        return tuple(found)

    def losses(*plugins: Plugin) -> tuple[list[dict[str, float]], Any]:
        seen: list[dict[str, float]] = []
        watch = probe("watch", after_step=lambda step: seen.append({name: float(loss.detach()) for name, loss in step.losses.items()}))
        result = Engine(net(), sgd(), [Replay(capacity=12), *plugins, watch], batch_size=10).run(class_stream())
        return seen, result.model

    merged, one = losses()
    separate, other = losses(probe("apart", transform_supervision=apart))
    assert [set(step) for step in merged] == [{"blobs"}] * 6
    assert [set(step) for step in separate] == [{"blobs"}] * 2 + [{"blobs", "blobs/memory"}] * 4
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)
