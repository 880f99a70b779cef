"""Avalanche doing the same work, as its users run it and in its fastest form."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from loops import Make, Pairs, sgd
from torch import nn


def benchmark_of_tensors(train: Pairs, test: Pairs) -> Any:
    """Its fastest form: tensors in memory, one task label for all."""
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils.classification_dataset import _make_taskaware_tensor_classification_dataset as dataset

    return benchmark_from_datasets(
        **{name: [dataset(x, y, task_labels=0) for x, y in pairs] for name, pairs in (("train", train), ("test", test))}
    )


def classic_benchmark() -> Any:
    """SplitMNIST as in its tutorials."""
    from avalanche.benchmarks.classic import SplitMNIST

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SplitMNIST(5, return_task_id=False, fixed_class_order=list(range(10)), dataset_root=os.environ["STREAMLEARN_DATA"])


def strategy(name: str, make: Make, batch_size: int, **options: Any) -> Any:
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training import supervised
    from avalanche.training.plugins import EvaluationPlugin, MIRPlugin

    model = nn.Sequential(nn.Flatten(), make())
    classes: dict[str, Callable[..., Any]] = {
        "naive": supervised.Naive,
        "ewc": supervised.EWC,
        "replay": supervised.Replay,
        "lwf": supervised.LwF,
        "agem": supervised.AGEM,
        "mas": supervised.MAS,
        "si": supervised.SynapticIntelligence,
        "gdumb": supervised.GDumb,
        "der": supervised.DER,
    }
    if name == "mir":
        options = {"plugins": [MIRPlugin(**options)]}
    # evaluated in batches as large as those of training, which is its default in most strategies
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])
    return classes.get(name, supervised.Naive)(
        model=model,
        optimizer=sgd(model.parameters()),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=batch_size,
        eval_mb_size=batch_size,
        train_epochs=1,
        evaluator=evaluator,
        **options,
    )


def train_and_evaluate(name: str, make: Make, benchmark: Any, batch_size: int, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own deprecations, which it prints at every experience
        run = strategy(name, make, batch_size, **options)
        run.eval(benchmark.test_stream)
        for experience in benchmark.train_stream:
            run.train(experience)
            run.eval(benchmark.test_stream)


def train_only(name: str, make: Make, benchmark: Any, batch_size: int, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = strategy(name, make, batch_size, **options)
        for experience in benchmark.train_stream:
            run.train(experience)


def importance_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor, batch_size: int) -> None:
    """Avalanche's own importance pass of EWC."""
    from avalanche.benchmarks.utils.classification_dataset import _make_taskaware_tensor_classification_dataset as dataset
    from avalanche.training.plugins import EWCPlugin

    rows = dataset(x, y, task_labels=0)
    optimizer = sgd(model.parameters())
    EWCPlugin(1.0).compute_importances(model, nn.CrossEntropyLoss(), optimizer, rows, torch.device("cpu"), batch_size)
