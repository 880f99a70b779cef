"""Classes of which new ones come one after another, which is what a prior of the others is for; and what holds of all learners."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from streamlearn import Engine, Plugin, streams
from streamlearn.models import Heads, Model
from streamlearn.plugins import FrozenBackbone
from streamlearn.streams import Stream, Task
from streamlearn.streams.sources import TensorSource
from tests.core.support import class_stream, probe, sgd


def characters(seed: int, classes: int, rows: int) -> TensorSource:
    """Classes that differ in eight hidden numbers, seen through a fixed map and under noise."""
    draw, world = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    first, second = torch.randn(8, 24, generator=world), 0.3 * torch.randn(24, 24, generator=world)
    y = torch.arange(classes * rows) % classes
    hidden = torch.randn(classes, 8, generator=draw)[y] + 0.3 * torch.randn(classes * rows, 8, generator=draw)
    x = torch.tanh(hidden @ first) @ second + 0.5 * torch.randn(classes * rows, 24, generator=draw)
    return TensorSource(x, {"y": y}, "characters")


def start(stream: Stream) -> Model:
    """The same network each time, for these characters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()), Heads(64, stream.tasks))


def trajectories() -> Stream:
    """Episodes of sixty characters to learn from."""
    return streams.episodes(characters(5, 60, 20), ways=10, shots=3, queries=3, train_episodes=400, test_episodes=1, held_out=0.2)


def trained(stream: Stream, *plugins: Plugin, **options: Any) -> Model:
    """The network after training on ``stream``."""
    engine = Engine(start(stream), lambda p: torch.optim.Adam(p, lr=2e-3), list(plugins), evaluate="never", **options)
    model = engine.run(stream).model
    assert isinstance(model, Model)
    return model


def accuracy(rates: Iterable[float], *plugins: Plugin) -> float:
    """On ten new classes in the end, after one another, a row at a time, by plain SGD on the head of a frozen encoder, at the best rate."""
    new, found = streams.class_incremental(characters(6, 10, 30), experiences=10), []
    for rate in rates:
        optimizer = sgd(lr=rate, momentum=0.0, weight_decay=0.0)
        engine = Engine(start(new), optimizer, [*plugins, FrozenBackbone()], batch_size=1, evaluate="end")
        found.append(float(engine.run(new).accuracy_matrix[-1].mean()))
    return max(found)


def leaves_a_head_without_rows_alone(plugin: Plugin) -> None:
    """Of a task without rows in the batch there is no gradient, not one of zero."""
    absent: list[bool] = []
    watch = probe("watch", transform_gradients=lambda gradients: absent.append("heads.by_task.other.weight" not in gradients) or gradients)
    stream = class_stream()[:1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        heads = Heads(6, (*stream.tasks, Task("other", size=2)))
    Engine(Model(nn.Identity(), heads), sgd(), [plugin, watch], batch_size=10).run(stream)
    assert absent == [True, True]
