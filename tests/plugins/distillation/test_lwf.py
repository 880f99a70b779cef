from __future__ import annotations

from typing import Any

import pytest
import torch

from streamlearn import Engine, models
from streamlearn.core.teaching import distillation_loss
from streamlearn.plugins import LwF, Replay
from tests.core.support import class_stream, growing_stream, net, probe, same, sgd


def test_the_formula_by_hand() -> None:
    student = torch.tensor([[1.0, 2.0], [0.0, -1.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 3.0], [2.0, 0.0]])
    p, log_q = [torch.softmax(row / 2, 0) for row in teacher], [torch.log_softmax(row / 2, 0) for row in student]
    expected = -sum(float(p[i][c] * log_q[i][c].detach()) for i in range(2) for c in range(2)) / 2
    value = distillation_loss(student, teacher, 2.0)
    assert float(value.detach()) == pytest.approx(expected)
    value.backward()
    assert float(student.grad.abs().min()) > 0
    at_teacher = teacher.clone().requires_grad_(True)
    distillation_loss(at_teacher, teacher, 2.0).backward()
    assert float(at_teacher.grad.abs().max()) < 1e-7


@pytest.mark.parametrize("square", [False, True])
def test_the_term_in_a_run(square: bool) -> None:
    """The teacher is the model as the last experience left it; only classes of finished experiences and incoming rows count."""
    ends: list[dict[str, Any]] = []
    seen: list[int] = []
    second = LwF(name="second")

    def before(step: Any) -> None:
        number = step.run.clock.experience
        teacher = step.run.teachers.get("lwf/previous")
        assert (teacher is None) == (number == 0)
        if teacher is not None:
            assert same(dict(teacher.state_dict()), ends[number - 1])
            assert step.run.teachers["second/previous"] is teacher, "equal teachers are one"
            assert not teacher.training
            assert step.teacher("lwf/previous") is step.teacher("second/previous")

    def after(step: Any) -> None:
        number = step.run.clock.experience
        terms = {name for name in step.terms if name.startswith("lwf/")}
        assert terms == ({"lwf/blobs"} if number else set())
        if number:
            rows, classes = step.batch.rows("train"), list(range(2 * number))
            old = step.run.teachers["lwf/previous"](step.batch.x[rows], "blobs")[:, classes].detach()
            new = step.outputs["blobs"][rows][:, classes].detach()
            expected = 1.5 * (9.0 if square else 1.0) * distillation_loss(new, old, 3.0)
            torch.testing.assert_close(step.terms["lwf/blobs"].detach(), expected)
            seen.append(number)

    watch = probe(
        "watch", before_step=before, after_step=after,
        after_experience=lambda run: ends.append({n: v.clone() for n, v in run.model.state_dict().items()}),
    )  # fmt: skip
    plugins = [Replay(capacity=9), LwF(strength=1.5, temperature=3.0, square_temperature=square), second, watch]
    Engine(net(), sgd(), plugins, batch_size=10).run(class_stream())
    assert seen == [1, 1, 2, 2]


def test_growth_and_heads_of_tasks_that_are_absent() -> None:
    terms: list[set[str]] = []
    stream = growing_stream()
    watch = probe("watch", after_step=lambda step: terms.append(set(step.terms)))
    Engine(models.mlp(stream, (8,)), sgd(), [LwF(), watch], batch_size=60).run(stream)
    assert terms == [set(), {"lwf/t"}, {"lwf/t"}, {"lwf/t"}]


def test_it_keeps_old_outputs() -> None:
    """On the second task's rows the outputs of the first head stay nearer to what they were."""
    stream = growing_stream((6,))

    def drift(strength: float) -> float:
        ends: list[Any] = []
        x = stream[1].data["train"].batch(torch.arange(20)).x
        keep = probe("keep", after_experience=lambda run: ends.append(run.model.eval()(x, "t").softmax(1).detach()))
        Engine(models.mlp(stream, (8,)), sgd(), [LwF(strength=strength), keep], batch_size=10, epochs=5).run(stream)
        return float((ends[1] - ends[0]).abs().mean())

    assert drift(5.0) < 0.5 * drift(0.0)
