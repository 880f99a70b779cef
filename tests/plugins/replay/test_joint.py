from __future__ import annotations

from typing import Any

import torch

from streamlearn import Engine
from streamlearn.plugins import Joint
from tests.core.support import class_stream, final, net, probe, same, separate_task_stream, sgd


def test_it_sees_all_rows_so_far_each_once_an_epoch() -> None:
    seen: dict[int, list[int]] = {}
    watch = probe("watch", before_step=lambda step: seen.setdefault(step.run.clock.experience, []).extend(step.batch.index.tolist()))
    stream = class_stream()
    Engine(net(), sgd(), [Joint(), watch], batch_size=7, epochs=2).run(stream)
    for i in range(3):
        rows = torch.cat([stream[k].data["train"].indices for k in range(i + 1)]).tolist()
        assert sorted(seen[i]) == sorted(rows * 2)


def test_restart_begins_from_the_initial_weights() -> None:
    def run(restart: bool) -> Any:
        return final(Engine(net(), sgd(), [Joint(restart=restart)], batch_size=7, evaluate="end"), class_stream()[:2])[0]

    starts: list[Any] = []
    watch = probe("watch", transform_phases=lambda phases, run: starts.append((run.snapshot(), len(run.optimization.main.state))) or phases)
    Engine(net(), sgd(), [Joint(restart=True), watch], batch_size=7).run(class_stream())
    assert same(starts[0], starts[1])
    assert same(starts[0], starts[2])
    assert starts[0][1] == 0
    assert not same(run(True), run(False))


def test_tasks_of_their_own_share_a_batch() -> None:
    tasks: list[Any] = []
    watch = probe("watch", before_step=lambda step: tasks.append(step.batch.tasks))
    Engine(net(), sgd(), [Joint(), watch], batch_size=100).run(separate_task_stream(2))
    assert tasks == [("a", "b"), ("a", "b")]
