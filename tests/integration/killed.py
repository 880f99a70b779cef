"""A run that kills itself: ``python -m tests.integration.killed KIND FOLDER run|resume UPDATE``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from streamlearn import Engine, models, streams
from streamlearn.plugins import EWC, LwF, MultiHead, Replay
from tests.core.support import blobs


def go(kind: str, folder: Path, action: str, kill_at: int) -> None:
    """Train, and end by SIGKILL after update ``kill_at``; it is never reached when negative."""

    def progress(event: str, run: Any) -> None:
        if event == "step" and run.clock.update == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    source = blobs(360, 6)
    if kind == "class":
        stream = streams.class_incremental(source, 3)
        model: nn.Module = models.mlp(stream, hidden=(16,), dropout=0.2)
        plugins = [Replay(capacity=20), EWC(strength=5.0), LwF()]
    else:
        stream = streams.task_incremental(source, 3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
        plugins = [MultiHead(), Replay(capacity=20, fill="step", policy="class_balanced"), EWC(strength=5.0, mode="online"), LwF()]
    engine = Engine(
        model,
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        plugins,
        batch_size=12,
        seed=2,
        checkpoint_every=3,
        progress=progress,
    )
    if action == "run":
        engine.run(stream, output=folder)
    else:
        engine.resume(folder, stream)


if __name__ == "__main__":
    torch.set_num_threads(1)
    go(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
