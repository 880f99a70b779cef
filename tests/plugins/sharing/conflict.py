"""Two tasks that need different features, and an encoder that has room for those of one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from streamlearn import Engine, Plugin, streams
from streamlearn.models import Heads, Model
from streamlearn.streams import Stream
from tests.plugins.sharing.architectures import seeded


def conflicting() -> Stream:
    """Each task asks for two inputs of its own."""
    x = torch.randn(480, 4, generator=torch.Generator().manual_seed(5))
    return streams.multitask((x, {"first": torch.tanh(x[:, :2]), "second": torch.tanh(x[:, 2:])}))


def errors(plugins: Sequence[Plugin], width: int = 2, epochs: int = 25, seed: int = 0) -> dict[str, float]:
    """Squared error by task on test rows after training."""
    stream = conflicting()
    model = seeded(
        lambda: Model(nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()), Heads(width, stream.tasks))
    )
    engine = Engine(model, lambda p: torch.optim.Adam(p, lr=0.03), plugins, batch_size=64, epochs=epochs, evaluate="end", seed=seed)
    trained = engine.run(stream).model
    batch = stream.evaluation_set(0).data.batch(torch.arange(96))
    with torch.no_grad():
        return {task.name: float((trained(batch.x, task.name) - batch.targets[task.name]).square().mean()) for task in stream.tasks}
