"""Inputs that a model cannot read are told in terms of the stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from streamlearn import Engine, models, streams
from streamlearn.errors import DataError
from tests.core.support import sgd

X, Y = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
TEST = (X[:12] + 1, Y[:12])


def run(stream: streams.Stream, **options: Any) -> None:
    Engine(models.mlp(stream, hidden=(4,)), sgd(), **options).run(stream)


@pytest.mark.parametrize("evaluate", ["experience", "never"])
@pytest.mark.parametrize(
    ("x", "told"),
    [
        (X.double(), "float64 of shape (4,), with weights of type float32: convert them, for example with x.to(torch.float32)"),
        (X.half(), "float16 of shape (4,), with weights of type float32"),
        ((X * 10).long(), "int64 of shape (4,), with weights of type float32"),
    ],
)
def test_a_type_that_the_weights_do_not_have(x: torch.Tensor, told: str, evaluate: Any) -> None:
    with pytest.raises(DataError, match="the model cannot read the inputs of source 'data', ") as caught:
        run(streams.data_incremental((x, Y), 2), evaluate=evaluate)
    assert told in str(caught.value)
    assert isinstance(caught.value.__cause__, (RuntimeError, TypeError))


def test_a_model_that_reads_them_may() -> None:
    stream = streams.data_incremental(((X * 10).long(), Y), 2)
    Engine(nn.Sequential(nn.Embedding(100, 3), nn.Flatten(), nn.Linear(12, 3)), sgd()).run(
        streams.data_incremental(((X.abs() * 10).long(), Y), 2)
    )

    class Converts(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.float())

    Engine(Converts(4, 3), sgd()).run(stream)


def test_an_error_of_the_model_itself_is_left_alone() -> None:
    class Broken(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        Engine(Broken(4, 3), sgd()).run(streams.data_incremental((X, Y), 2))


def test_test_rows_of_another_type() -> None:
    stream = streams.class_incremental((X, Y), 2, test=(TEST[0].double(), TEST[1]))
    with pytest.raises(DataError, match=r"float64 of shape \(4,\)"):
        run(stream)


def test_a_type_that_changes_between_experiences() -> None:
    pieces = [(X[:20], Y[:20]), (X[20:40], Y[20:40])]
    first, second = (streams.joint(piece) for piece in pieces)

    def experience(i: int) -> streams.Experience:
        return (first, streams.joint((pieces[1][0].double(), pieces[1][1])))[i][0]

    odd = streams.Stream(
        "odd", 2, experience, lambda i: first.evaluation(0), tasks=first.tasks, input_shape=(4,), description={}, sets=lambda i: (0,)
    )
    with pytest.raises(DataError, match=r"inputs of experience 1 .* are float64 of shape \(4,\), but those of evaluation set 0"):
        run(odd)
    assert len(second) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: x[:2], r"makes 2 rows of float32 out of \d+ rows of float32: let it keep rows and type"),
        (lambda x: x.double(), "makes 24 rows of float64 out of"),
        (lambda x: x.numpy(), "gives a ndarray: let it give a tensor of as many rows"),
        (lambda x: x / 0, r"makes NaN or infinity out of row \d+: let it give finite values"),
        (lambda x: 1 // (len(x) < 5), r"fails on inputs of shape \(\d+, 4\): ZeroDivisionError"),
    ],
)
def test_a_transform_of_the_user_is_watched(change: Any, told: str) -> None:
    def second(x: torch.Tensor) -> Any:
        return change(x) if len(x) > 3 else x  # what a probe of a few rows does not show

    stream = streams.domain_incremental((X, Y), transform=[lambda x: x, second], test=TEST)
    with pytest.raises(DataError, match=r"the transform second of rows of source 'data', domain 'transform/1', " + told):
        run(stream, evaluate="never", batch_size=24)


def test_numbers_of_numpy_are_plain_in_descriptions() -> None:
    stream = streams.online(streams.class_incremental("digits"), np.int64(70), seed=np.int64(2))
    assert stream.hash == streams.online(streams.class_incremental("digits"), 70, seed=2).hash
    assert streams.adaptation("moons", noise=np.float64(0.1)).hash == streams.adaptation("moons", noise=0.1).hash
