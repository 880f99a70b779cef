"""Several tasks in one experience."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from streamlearn.errors import DataError
from streamlearn.streams.data import Data, Target
from streamlearn.streams.experience import EvaluationSet, Experience
from streamlearn.streams.inputs import Inputs, resolve, whole_number
from streamlearn.streams.partition import chunk_edges, permutation
from streamlearn.streams.sources.tensors import TensorSource
from streamlearn.streams.stream import Stream
from streamlearn.streams.task import Task

__all__ = ["multitask"]


def multitask(
    source: Any = "digits",
    experiences: int = 1,
    *,
    shift: int = 2,
    validation: float = 0.0,
    target_domain: bool = False,
    seed: int = 0,
    test: Any = None,
    test_fraction: float = 0.2,
) -> Stream:
    """Two images laid over one another, and two tasks: which class is at the upper left, and which at the lower right.

    Protocol (after MultiMNIST; Sabour et al. 2017; Sener and Koltun 2018): row i of the stream is the pixelwise maximum of two rows of
    the source, one at the upper left of a canvas wider by ``shift`` pixels, one at its lower right. Training pairs come from training
    rows, test pairs from test rows. Rows are spread over experiences at random.

    Args:
        source: single-channel images, named or given as for `class_incremental`.
        experiences: at least 1.
        shift: pixels by which the canvas is larger, at least 0.
        validation: in [0, 1): the fraction of each experience's rows that is kept from training, in role ``validation``.
        target_domain: also give each experience unlabelled rows of role ``target``: other overlays, washed out: half way to white. The
            evaluation set then holds overlays of test rows that are made in the same way, labelled, in domain ``target``.
        seed: at least 0; of the pairs, the order, and the test split.
        test, test_fraction: what to evaluate on, as in `class_incremental`.

    Raises:
        DataError: an argument is out of its range, or the inputs are no single-channel images.

    Example:
        >>> stream = multitask("digits", 2)
        >>> [task.name for task in stream[1].tasks], len(stream[0].data["train"])
        (['left', 'right'], 719)
    """
    inputs = resolve(source, test, test_fraction, seed)
    whole_number(experiences, "the number of experiences", 1)
    whole_number(shift, "shift", 0)
    if isinstance(validation, bool) or not 0 <= validation < 1:
        raise DataError(f"validation is {validation!r}: give a fraction in [0, 1)")
    tasks = tuple(Task(side, "classification", inputs.classes, inputs.class_names) for side in ("left", "right"))
    targets = {"left": Target("left"), "right": Target("right")}
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

    return Stream(
        f"{inputs.name}/multitask",
        experiences,
        experience,
        evaluation,
        tasks=tasks,
        input_shape=truth.input_shape,
        description={
            "builder": "multitask", **inputs.described, "experiences": experiences, "shift": shift, "validation": float(validation),
            "target_domain": bool(target_domain),
        },
        fingerprints=inputs.fingerprints,
    )  # fmt: skip


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
