"""What the tests of weightings look at: the weights ∂s/∂L of every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from streamlearn import models
from streamlearn.core.sampling import shuffled
from streamlearn.streams import Stream, Task
from streamlearn.streams.data import Data, Target
from tests.core.support import blobs, probe, stream_of


def drawn_start(stream: Stream) -> dict[str, Tensor]:
    """The same initial weights in every process, in double precision."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(models.mlp(stream, (8,)).double().state_dict())


def loaded(stream: Stream, state: Mapping[str, Tensor]) -> nn.Module:
    """The model of `drawn_start` with such weights."""
    model = models.mlp(stream, (8,)).double()
    model.load_state_dict(state)
    return model


def trained_by_hand(stream: Stream, start: Mapping[str, Tensor], oracle: nn.Module, numbers: nn.Parameter) -> nn.Module:
    """A plain loop over two epochs in batches of 8, seed 4, tasks "a" and "b": ``oracle`` weighs the losses and learns its ``numbers``.

    Momentum for all, weight decay for the model alone; the numbers have a learning rate of 0.2.
    """
    plain = loaded(stream, start)
    optimizer = torch.optim.SGD(
        [{"params": list(plain.parameters())}, {"params": [numbers], "lr": 0.2, "weight_decay": 0.0}],
        lr=0.05, momentum=0.9, weight_decay=0.01,
    )  # fmt: skip
    data = stream[0].data["train"]
    for epoch in range(2):
        for positions in shuffled(len(data), 8, False, 0, 4, 0, 0, epoch).split(8):
            batch = data.batch(positions)
            losses = torch.stack([nn.functional.cross_entropy(plain(batch.x, task), batch.targets[task]) for task in ("a", "b")])
            optimizer.zero_grad()
            oracle(losses).backward()
            optimizer.step()
    return plain


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
