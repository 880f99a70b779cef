"""Two images laid over one another, and a task on each: MultiMNIST (Sabour et al. 2017; Sener and Koltun 2018)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from streamlearn.errors import DataError
from streamlearn.streams.data import Data, Target
from streamlearn.streams.experience import EvaluationSet, Experience
from streamlearn.streams.inputs import Inputs
from streamlearn.streams.partition import chunk_edges, permutation
from streamlearn.streams.sources.tensors import TensorSource
from streamlearn.streams.stream import Stream
from streamlearn.streams.task import Task

__all__ = ["overlaid"]


def overlaid(inputs: Inputs, experiences: int, shift: int, validation: float, target_domain: bool, sides: tuple[str, str]) -> Stream:
    """The overlays of `streamlearn.streams.multitask`, whose docstring says what its checked arguments mean.

    Args:
        inputs: single-channel images of classes.
        experiences, shift, validation, target_domain: as there.
        sides: names of the two tasks, that of the image at the upper left first.

    Raises:
        DataError: the inputs are no single-channel images, or validation leaves an experience no row.
    """
    columns = ("left", "right")
    tasks = tuple(Task(side, "classification", inputs.classes, inputs.class_names) for side in sides)
    targets = {side: Target(column) for side, column in zip(sides, columns, strict=True)}
    test_kind, domain = ("test target", "target") if target_domain else ("test", "")
    truth = _overlaid(inputs, test_kind, shift)
    # what training may meet: the labels of target rows stay behind
    known = {"train": Data(_overlaid(inputs, "train", shift), torch.arange(len(inputs.train.indices)), tasks, targets)}
    if target_domain:
        every_target = Data(_overlaid(inputs, "target", shift), torch.arange(len(inputs.train.indices)), tasks, targets, domain="target")
        known["target"] = every_target.without_labels()
    orders = {kind: permutation(len(data), seed=inputs.seed, purpose=kind) for kind, data in known.items()}

    def rows(kind: str, i: int) -> Data:
        data = known[kind]
        return data.subset(orders[kind][slice(*chunk_edges(len(data), experiences)[i])])

    def experience(i: int) -> Experience:
        every = rows("train", i)
        kept = round(validation * len(every))
        if kept == len(every):
            raise DataError(f"validation is {validation!r}, which leaves experience {i} no row to train on: it has {len(every)} in all")
        data: dict[str, Any] = {"train": every.subset(torch.arange(kept, len(every)))}
        if kept:
            data["validation"] = every.subset(torch.arange(kept))
        if target_domain:
            data["target"] = rows("target", i)
        return Experience(i, tasks, data, f"overlays {i}", {task.name: tuple(range(task.size)) for task in tasks})

    def evaluation(i: int) -> EvaluationSet:
        found = Data(truth, torch.arange(len(truth)), tasks, targets, domain=domain)
        return EvaluationSet(i, found, "overlays of the target domain" if target_domain else "overlays")

    described: dict[str, Any] = {
        "builder": "multitask", **inputs.described, "experiences": experiences, "shift": shift, "validation": validation,
        "target_domain": bool(target_domain),
    }  # fmt: skip
    return Stream(
        f"{inputs.name}/multitask",
        experiences,
        experience,
        evaluation,
        tasks=tasks,
        input_shape=truth.input_shape,
        description=described if sides == columns else {**described, "tasks": list(sides)},
        fingerprints=inputs.fingerprints,
    )


def _overlaid(inputs: Inputs, kind: str, shift: int) -> TensorSource:
    rows = inputs.test if kind.startswith("test") else inputs.train
    pairs = permutation(len(rows.indices), seed=inputs.seed, purpose=f"pairs {kind}")
    columns = rows.source.take(rows.indices)
    x = columns.x
    if x.ndim != 4 or x.shape[1] != 1:
        raise DataError(f"inputs of {inputs.name!r} have shape {tuple(x.shape[1:])}: overlays are made of images of one channel")
    left, right = pad(x, (0, shift, 0, shift)), pad(x[pairs], (shift, 0, shift, 0))
    overlaid: Tensor = torch.maximum(left, right)
    if kind.endswith("target"):
        train = inputs.train
        brightest = x if rows is train else train.source.take(train.indices).x
        overlaid = (brightest.max() + overlaid) / 2  # of the training rows: test rows must be washed out in the same way
    return TensorSource(overlaid, {"left": rows.labels, "right": rows.labels[pairs]}, f"{inputs.name}/overlaid/{kind}")
