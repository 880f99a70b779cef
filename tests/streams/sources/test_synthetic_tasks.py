"""Generated tasks of a chosen relatedness, and of chosen scales."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from streamlearn import Engine, models
from streamlearn.errors import DataError
from streamlearn.streams import build, multitask
from streamlearn.streams.sources import named_source
from streamlearn.streams.sources.draws import normal
from streamlearn.streams.sources.synthetic_tasks import gradnorm_toy, mmoe_pairs
from tests.core.support import sgd


def weights(**options: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What the targets are multiples of, found by least squares."""
    source = mmoe_pairs(3000, features=12, sines=0, noise=0, **options)[0]
    x, targets = source.take(torch.arange(len(source)))
    return np.stack([torch.linalg.lstsq(x.double(), y.double()).solution.numpy() for y in targets.values()])


@pytest.mark.parametrize(("tasks", "correlation"), [(2, 0.7), (3, -0.5), (4, 0.3), (5, 0.0), (4, 1.0), (2, -1.0), (3, -0.2), (12, 0.9)])
def test_any_two_tasks_have_the_asked_cosine(tasks: int, correlation: float) -> None:
    w = weights(tasks=tasks, correlation=correlation, scale=2.0, seed=tasks)
    expected = 4 * np.where(np.eye(tasks) == 1, 1.0, correlation)
    np.testing.assert_allclose(w @ w.T, expected, atol=1e-5)


def test_two_tasks_by_the_formula_of_the_paper() -> None:
    """w1 = c u1, w2 = c (p u1 + sqrt(1 - p²) u2), y = w·x + Σ sin(α w·x + β) + ε, in a loop."""
    p, c, rows = 0.4, 1.5, 30
    source = mmoe_pairs(rows, features=5, correlation=p, scale=c, sines=3, noise=0.2, seed=7)[0]
    g1, g2 = normal("mmoe-pairs directions", 7, 2, 5)
    u1 = g1 / np.linalg.norm(g1)
    u2 = g2 - (g2 @ u1) * u1
    u2 /= np.linalg.norm(u2)
    x = normal("mmoe-pairs x", 7, rows, 5)
    alpha, beta = normal("mmoe-pairs sines", 7, 2, 3)
    errors = 0.2 * normal("mmoe-pairs noise", 7, 2, rows)
    for number, w in enumerate((c * u1, c * (p * u1 + math.sqrt(1 - p * p) * u2))):
        for row in range(rows):
            z = sum(w[i] * x[row, i] for i in range(5))
            y = z + sum(math.sin(alpha[j] * z + beta[j]) for j in range(3)) + errors[number, row]
            assert float(source.targets[f"y{number + 1}"][row]) == pytest.approx(y, rel=1e-5, abs=1e-5)


def test_two_tasks_are_those_of_before_there_could_be_more() -> None:
    assert [round(v, 4) for v in mmoe_pairs(rows=20)[0].targets["y2"][:3].tolist()] == FIRST
    assert list(mmoe_pairs(rows=5, tasks=1)[0].targets) == ["y1"]


FIRST = [-2.2631, 2.2741, 0.05]


def test_the_toy_of_gradnorm_by_its_formula() -> None:
    source = gradnorm_toy(40, features=6, outputs=4, scales=[1, 50], shared=2.0, own=0.5, seed=3)[0]
    x, targets = source.take(torch.arange(40))
    torch.testing.assert_close(x.norm(dim=1), torch.ones(40))
    b = math.sqrt(2.0) * normal("gradnorm-toy shared", 3, 4, 6)
    for i, sigma in enumerate((1.0, 50.0)):
        matrix = b + math.sqrt(0.5) * normal(f"gradnorm-toy own {i}", 3, 4, 6)
        for row in range(40):
            for j in range(4):
                expected = sigma * math.tanh(sum(matrix[j, k] * float(x[row, k]) for k in range(6)))
                assert float(targets[f"y{i + 1}"][row, j]) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_matrices_have_the_variances_that_are_asked_for() -> None:
    """arctanh of a target over its scale has variance shared + own, since inputs have length 1; what two tasks share has shared."""
    source = gradnorm_toy(500, features=60, outputs=50, scales=[1, 2], shared=0.6, own=0.2)[0]
    first, second = (torch.atanh((source.targets[f"y{i}"].double() / i).clamp(-1 + 1e-7, 1 - 1e-7)).flatten() for i in (1, 2))
    assert float(first.var()) == pytest.approx(0.8, rel=0.1)
    assert float(torch.mean(first * second)) == pytest.approx(0.6, rel=0.1)
    assert torch.equal(gradnorm_toy(30, scales=[1, 2, 3])[0].targets["y2"], gradnorm_toy(30, scales=[1, 2])[0].targets["y2"])


def test_they_are_streams_of_several_regressions() -> None:
    stream = build("multitask", source="mmoe-pairs:rows=200,features=8,tasks=3,correlation=0.2", experiences=2)
    assert [(task.name, task.kind, task.size) for task in stream.tasks] == [(f"y{i}", "regression", 1) for i in (1, 2, 3)]
    stream = multitask("gradnorm-toy:rows=200,features=8,outputs=3,scales=[1,10]", 2)
    assert [(task.name, task.size) for task in stream.tasks] == [("y1", 3), ("y2", 3)]
    before, after = ([e["value"] for e in events if e["event"] == "evaluation"] for events in split(stream))
    assert len(before) == len(after) == 2
    assert after[1] < before[1]
    assert named_source("gradnorm_toy:rows=4")[0].name == "gradnorm-toy"


def split(stream: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    events = Engine(models.mlp(stream, (8,)), sgd(), batch_size=16).run(stream).events
    found = [[e for e in events if e["event"] == "evaluation" and e["trained"] == trained] for trained in (0, 2)]
    return found[0], found[1]


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: mmoe_pairs(tasks=0), "tasks is 0: give a whole number of at least 1"),
    (lambda: mmoe_pairs(features=3, tasks=4), "tasks is 4, but there are 3 features: give at most as many"),
    (lambda: mmoe_pairs(tasks=3, correlation=-0.6), "correlation is -0.6, which 3 tasks cannot all have: give at least -0.5"),
    (lambda: gradnorm_toy(1), "rows is 1: give a whole number of at least 2"),
    (lambda: gradnorm_toy(scales=[]), "scales is []: give a list of numbers above 0, one for each task"),
    (lambda: gradnorm_toy(scales=[1, -1]), "scales is [1, -1]: give a list of numbers above 0"),
    (lambda: gradnorm_toy(scales=3), "scales is 3: give a list of numbers above 0"),  # type: ignore[arg-type]
    (lambda: gradnorm_toy(own=-1), "own is -1: give a number of at least 0"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_arguments_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        make()
