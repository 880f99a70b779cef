"""What the tests of weightings look at: the weights ∂s/∂L of every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from streamlearn import models
from streamlearn.streams import Stream, Task
from streamlearn.streams.data import Data, Target
from tests.core.support import blobs, probe, stream_of


def drawn_start(stream: Stream) -> dict[str, Tensor]:
    """The same initial weights in every process, in double precision."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(models.mlp(stream, (8,)).double().state_dict())


def derivative(weighting: Any, losses: Mapping[str, Tensor], step: Any) -> dict[str, float]:
    """∂s/∂L by row, by autograd."""
    leaves = {row: loss.detach().clone().requires_grad_() for row, loss in losses.items()}
    found = torch.autograd.grad(weighting(leaves, step), list(leaves.values()), allow_unused=True)
    return {row: 0.0 if slope is None else float(slope) for row, slope in zip(leaves, found, strict=True)}


def watching(weights: list[dict[str, float]], losses: list[dict[str, float]] | None = None) -> Any:
    """A plugin that notes the weights of every step, and the losses if there is a list for them."""

    def look(gradients: Any, step: Any) -> Any:
        weights.append(derivative(step.run.hooks.provide_weighting, step.losses, step))
        if losses is not None:
            losses.append({row: float(loss.detach()) for row, loss in step.losses.items()})
        return gradients

    return probe("watching", transform_gradients=look)


def split(supervision: Any) -> Any:
    """Task "a" in two rows named after it, "b" in one that is not: 4 and 4 of the 8 rows of a batch."""
    a, b = supervision
    halves = [
        a.replace(row=name, outputs=a.outputs[rows], target=a.target[rows], rows=rows)
        for name, rows in (("a@x", slice(0, 4)), ("a/memory", slice(4, 8)))
    ]
    return (*halves, b.replace(row="strange"))


def changing_tasks(*present: str, rows: int = 16, dtype: Any = torch.float32) -> Stream:
    """One experience for each word: its letters are the tasks on every row of it, each with labels of its own."""
    source = blobs(rows * len(present), 6, dtype=dtype)
    names = sorted(set("".join(present)))
    tasks = {name: Task(name, size=6) for name in names}
    labels = {name: Target("y", (torch.arange(6) * (1 if name < "c" else 5) + shift) % 6) for shift, name in enumerate(names)}
    pieces = [
        (
            Data(source, torch.arange(i * rows, (i + 1) * rows), tuple(tasks[t] for t in word), {t: labels[t] for t in word}),
            tuple(tasks[t] for t in word),
        )
        for i, word in enumerate(present)
    ]
    return stream_of(pieces, tuple(tasks.values()))
