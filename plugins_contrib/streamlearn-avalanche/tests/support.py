"""The same rows for both libraries, and Avalanche's own strategy as the oracle."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.scenarios.supervised import with_classes_timeline
from avalanche.benchmarks.scenarios.task_aware import with_task_labels
from avalanche.benchmarks.utils.classification_dataset import _make_taskaware_tensor_classification_dataset as tensor_dataset
from avalanche.models.base_model import BaseModel
from avalanche.training.supervised import Naive
from torch import Tensor, nn

from streamlearn import Engine
from streamlearn.streams import Data, EvaluationSet, Experience, Stream, Task
from streamlearn.streams.data import Target
from streamlearn.streams.sources import TensorSource
from streamlearn_avalanche.randomness import quiet

CLASSES, FEATURES, EXPERIENCES, ROWS, EPOCHS, BATCH, SEED = 8, 6, 4, 20, 2, 8, 11

Make = Callable[[nn.Module, torch.optim.Optimizer], Sequence[Any]]


def tensors() -> tuple[Tensor, Tensor]:
    """Blobs, two classes an experience."""
    draw = torch.Generator().manual_seed(3)
    y = torch.arange(EXPERIENCES * ROWS) // ROWS * 2 + torch.arange(EXPERIENCES * ROWS) % 2
    centres = 2.0 * torch.randn(CLASSES, FEATURES, generator=draw)
    return centres[y] + 0.5 * torch.randn(len(y), FEATURES, generator=draw), y


def stream(size: Callable[[int], int] = lambda number: CLASSES) -> Stream:
    """The rows as a streamlearn stream; ``size`` is that of the task in each experience."""
    x, y = tensors()
    source = TensorSource(x, {"y": y}, "blobs")

    def data(number: int) -> tuple[Data, Task]:
        task = Task("blobs", size=size(number))
        return Data(source, torch.arange(number * ROWS, (number + 1) * ROWS), (task,), {"blobs": Target("y")}), task

    def experience(number: int) -> Experience:
        rows, task = data(number)
        return Experience(number, (task,), {"train": rows}, f"part {number}", {"blobs": (2 * number, 2 * number + 1)})

    return Stream(
        "blobs", EXPERIENCES, experience, lambda number: EvaluationSet(number, data(number)[0], f"part {number}"), tasks=(data(0)[1],),
        input_shape=(FEATURES,), description={"by": "hand"}, fingerprints=("blobs",),
    )  # fmt: skip


def benchmark(task_labels: bool) -> Any:
    """The rows as Avalanche's benchmark."""
    x, y = tensors()
    parts = [tensor_dataset(a, b, task_labels=0) for a, b in zip(x.split(ROWS), y.split(ROWS), strict=True)]
    made = with_classes_timeline(benchmark_from_datasets(train=parts))
    return with_task_labels(made) if task_labels else made


class Net(nn.Module, BaseModel):
    """A small network without dropout, with what LFL and FeatureDistillation want of one."""

    def __init__(self, outputs: int = CLASSES, norm: bool = False, keeps_features: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 10), *([nn.BatchNorm1d(10)] if norm else []), nn.ReLU())
        self.classifier = nn.Linear(10, outputs)
        self.features: Tensor | None = None
        self.keeps_features = keeps_features  # they carry a graph, and LwF and others copy the network with all that it holds

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        if self.keeps_features:
            self.features = features
        return self.classifier(features)

    def get_features(self, x: Tensor) -> Tensor:
        return self.body(x)


def network(**options: Any) -> Net:
    """The same `Net` each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return Net(**options)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def trained_by_avalanche(make: Make, task_labels: bool = True, model: nn.Module | None = None, **options: Any) -> dict[str, Tensor]:
    """Weights after Avalanche's `Naive` with the plugins that ``make`` gives."""
    model = network() if model is None else model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        random.seed(SEED)
        np.random.seed(SEED)  # noqa: NPY002 - the generator that Avalanche draws from
        with quiet():
            optimizer = sgd(model.parameters())
            strategy = Naive(
                model=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), train_mb_size=BATCH, train_epochs=EPOCHS,
                eval_mb_size=64, plugins=list(make(model, optimizer)), evaluator=None,
            )  # fmt: skip
            for experience in benchmark(task_labels).train_stream:
                strategy.train(experience, **options)
    return {name: tensor.detach().clone() for name, tensor in strategy.model.state_dict().items()}


def engine(plugins: Sequence[Any], model: nn.Module | None = None, **options: Any) -> Engine:
    settings = {"epochs": EPOCHS, "batch_size": BATCH, "seed": 1} | options
    return Engine(network() if model is None else model, sgd, list(plugins), **settings)


def weights(result: Any) -> dict[str, Tensor]:
    """Weights and buffers of the network, by the names that it gives them."""
    return {name.removeprefix("encoder."): tensor.detach().clone() for name, tensor in result.model.state_dict().items()}


def assert_identical(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    different = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert not different, {name: float((found[name] - wanted[name]).abs().max()) for name in different}
    assert all(bool(tensor.isfinite().all()) for tensor in wanted.values())
