"""Avalanche's own penalty plugins, driven over the rows that an engine trained on, in the same order."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from streamlearn import Engine
from tests.core.support import class_stream, probe

RATE = 0.1


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))


def plain_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=RATE, momentum=0.5)


def avalanche_plugin(name: str) -> Callable[..., Any]:
    with warnings.catch_warnings(record=True):  # recorded, because Avalanche forces some through every filter
        warnings.simplefilter("ignore")
        return getattr(pytest.importorskip("avalanche.training.plugins"), name)  # type: ignore[no-any-return]


def trained(plugin: Any) -> tuple[dict[str, Tensor], list[list[tuple[Tensor, Tensor]]]]:
    """Final weights of an engine with ``plugin``, and the batches of every experience."""
    batches: list[list[tuple[Tensor, Tensor]]] = []
    watch = probe(
        "watch",
        before_experience=lambda run: batches.append([]),
        before_step=lambda step: batches[-1].append((step.batch.x.clone(), step.batch.targets["blobs"].clone())),
    )
    result = Engine(network(), plain_sgd, [plugin, watch], batch_size=10, epochs=2).run(class_stream())
    return {name.removeprefix("encoder."): value.clone() for name, value in result.model.state_dict().items()}, batches


def trained_by(theirs: Any, batches: list[list[tuple[Tensor, Tensor]]], rows_per_pass: int = 1) -> dict[str, Tensor]:
    """Weights after the same steps with Avalanche's plugin; its importance passes take ``rows_per_pass`` rows at once."""
    model = copy.deepcopy(network())
    strategy = SimpleNamespace(
        model=model, device=torch.device("cpu"), train_mb_size=rows_per_pass, _criterion=F.cross_entropy,
        optimizer=plain_sgd(model.parameters()), clock=SimpleNamespace(train_exp_counter=0),
    )  # fmt: skip
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("ignore")
        for number, steps in enumerate(batches):
            x, y = (torch.cat(parts) for parts in zip(*steps[: len(steps) // 2], strict=True))  # the first of two epochs
            strategy.clock.train_exp_counter = number
            strategy.experience = SimpleNamespace(dataset=TensorDataset(x, y, torch.zeros(len(y))))
            theirs.before_training_exp(strategy)
            for a, b in steps:
                theirs.before_training_iteration(strategy)
                strategy.optimizer.zero_grad()
                strategy.loss = F.cross_entropy(model(a), b)
                theirs.before_backward(strategy)
                strategy.loss.backward()
                strategy.optimizer.step()
                theirs.after_training_iteration(strategy)
            theirs.after_training_exp(strategy)
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def difference(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted)
