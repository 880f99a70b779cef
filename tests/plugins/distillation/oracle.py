"""Avalanche's own training on the rows of a stream, whole experiences at a time: the order of the rows is of no account."""

from __future__ import annotations

import copy
import functools
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn.streams import Stream


@functools.cache
def library(module: str) -> Any:
    """A module of Avalanche, whose imports warn of much that is not ours; the test is skipped where it is not installed."""
    with warnings.catch_warnings(record=True):  # recorded, because Avalanche forces some through every filter
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(f"avalanche.{module}")
        except ImportError:
            pytest.skip("avalanche-lib is not installed")


class Body(nn.Module):
    """An encoder that keeps its last output as ``features``, as Avalanche's distillation of features wants of a network."""

    def __init__(self, keeps: bool = False, outputs: int = 6) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 10), nn.Tanh())
        self.classifier = nn.Linear(10, outputs)
        self.features: Tensor | None = None
        self.keeps = keeps

    def forward(self, x: Tensor) -> Tensor:
        found = self.encoder(x)
        if self.keeps:
            self.features = found
        return self.classifier(found)


def body(keeps: bool = False, seed: int = 4) -> Body:
    """The same network each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Body(keeps)


def plain_sgd(parameters: Any, rate: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=rate)


def trained_by_avalanche(
    stream: Stream,
    model: nn.Module,
    plugins: Callable[[], Sequence[Any]],
    epochs: int,
    criterion: Callable[[], Any] = nn.CrossEntropyLoss,
    rate: float = 0.1,
) -> dict[str, Tensor]:
    """Weights of a copy of ``model`` after Avalanche's `Naive` on all experiences of ``stream``, one batch an epoch."""
    benchmarks, supervised = library("benchmarks"), library("training.supervised")
    made = library("benchmarks.utils.classification_dataset")._make_taskaware_tensor_classification_dataset
    timeline = library("benchmarks.scenarios.supervised").with_classes_timeline
    labelled = library("benchmarks.scenarios.task_aware").with_task_labels
    with warnings.catch_warnings(record=True), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        parts = []
        for experience in stream:
            rows = experience.data["train"].batch(torch.arange(len(experience.data["train"])))
            parts.append(made(rows.x, rows.targets[experience.tasks[0].name], task_labels=0))
        benchmark = labelled(timeline(benchmarks.benchmark_from_datasets(train=parts)))
        student = copy.deepcopy(model)
        lost = criterion()
        strategy = supervised.Naive(
            model=student, optimizer=plain_sgd(student.parameters(), rate), criterion=lost, train_mb_size=1000, train_epochs=epochs,
            plugins=[*plugins(), *([lost] if hasattr(lost, "after_training_exp") else [])], evaluator=None,
        )  # fmt: skip
        for experience in benchmark.train_stream:
            strategy.train(experience)
    return {name: tensor.detach().clone() for name, tensor in student.named_parameters()}


def distance(mine: nn.Module, theirs: dict[str, Tensor]) -> float:
    """The greatest difference of a parameter of our model (whose encoder is the whole network) from Avalanche's."""
    found = {name.removeprefix("encoder."): parameter.detach() for name, parameter in mine.named_parameters()}
    assert set(theirs) == set(found), (sorted(theirs), sorted(found))
    return max(float((found[name] - tensor).abs().max()) for name, tensor in theirs.items())
