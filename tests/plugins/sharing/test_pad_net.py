from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from streamlearn import Engine, models, streams
from streamlearn.plugins import ERACE, PCGrad, Replay
from streamlearn.plugins.sharing.pad_net import PADNet
from tests.core.support import class_stream, final, probe, separate_task_stream, sgd, two_task_stream
from tests.plugins.sharing.architectures import A, B, C, drifted, smooth, transformed, weights

X = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def by_hand(model: Any, x: torch.Tensor, task: str, tasks: tuple[str, ...], attention: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """First and final outputs, from the weights by name."""
    w = weights(model)

    def layer(path: str, z: torch.Tensor) -> torch.Tensor:
        return F.linear(z, w[f"heads.{path}.weight"], w[f"heads.{path}.bias"])

    z = model.encoder(x).detach()
    own = {t: F.relu(layer(f"own.{t}", z)) for t in tasks}
    message = sum(layer(f"messages.{task}.{t}", own[t]) for t in tasks if t != task)
    gate = 1 / (1 + torch.exp(-layer(f"attentions.{task}", own[task]))) if attention else 1.0
    return layer(f"first.by_task.{task}", own[task]), layer(f"by_task.{task}", own[task] + gate * message)


@pytest.mark.parametrize("distillation", ["attention", "message"])
def test_the_forward_by_hand(distillation: str) -> None:
    model = drifted(transformed(PADNet(distillation=distillation), smooth((A, B, C))))
    for t in ("a", "b", "c"):
        _, expected = by_hand(model, X, t, ("a", "b", "c"), distillation == "attention")
        torch.testing.assert_close(model(X, t).detach(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("supervision", [0.0, 1.0, 0.3])
def test_first_predictions_learn_from_the_same_labels(supervision: float) -> None:
    """The objective is Σ_k L_k + λ L̂_k, on rows that are asked on both tasks and on rows of one."""
    for stream in (two_task_stream(torch.float64), separate_task_stream(1)):
        checked: list[tuple[torch.Tensor, Any]] = []
        dtype = stream[0].data["train"].batch(torch.arange(1)).x.dtype
        plugins = [PADNet(supervision=supervision), probe("look", before_step=looker(supervision, checked))]
        Engine(smooth(stream.tasks, dtype), sgd(), plugins, batch_size=7, epochs=2).run(stream)
        assert len(checked) > 3
        for found, expected in checked:
            torch.testing.assert_close(found.detach(), expected)


def looker(supervision: float, checked: list[tuple[torch.Tensor, Any]]) -> Any:
    """Keeps the objective of each step beside that from the weights by name."""

    def look(step: Any) -> None:
        model, batch, whole = step.run.model, step.batch, 0.0
        for task in ("a", "b"):
            rows = batch.labelled_rows(task) if task in batch.targets else torch.zeros(len(batch), dtype=torch.bool)
            if bool(rows.any()):
                first, last = by_hand(model, batch.x[rows], task, ("a", "b"), True)
                y = batch.targets[task][rows]
                part = F.cross_entropy(last, y) + supervision * F.cross_entropy(first, y)
                whole += part * int(rows.sum()) / len(batch)  # type: ignore[assignment]
        found = step.at().rows
        checked.append((sum(share * found.losses[k] for k, share in found.shares.items()), whole))  # type: ignore[arg-type]

    return look


def test_masks_and_row_weights_hold_for_first_predictions() -> None:
    """What ER-ACE hides from the final outputs it hides from the first ones."""
    seen: list[Any] = []

    def look(supervision: Any, step: Any) -> Any:
        seen.append(supervision)
        return supervision

    plugins = [Replay(capacity=12), ERACE(), PADNet(supervision=0.5), probe("look", transform_supervision=look)]
    stream = class_stream()
    Engine(smooth(stream.tasks, torch.float32), sgd(), plugins, batch_size=5).run(stream)
    records = seen[-1]
    half = len(records) // 2
    assert half > 0
    assert any(record.active is not None for record in records)
    for final_, first in zip(records[:half], records[half:], strict=True):
        assert first.active is final_.active
        assert first.target is final_.target
        assert first.scale == 0.5 * final_.scale
        assert not torch.equal(first.outputs, final_.outputs)


def test_first_predictions_are_good_ones_with_supervision_alone() -> None:
    stream = streams.multitask("digits", 2)
    good = {}
    for supervision in (0.0, 1.0):
        engine = Engine(
            models.mlp(stream, (64,)), lambda p: torch.optim.Adam(p, lr=0.005), [PADNet(supervision=supervision)], epochs=8, evaluate="end"
        )
        model: Any = engine.run(stream).model
        batch = stream.evaluation_set(0).data.batch(torch.arange(150))
        first, last = by_hand(model, batch.x, "left", ("left", "right"), True)
        good[supervision] = [float((y.argmax(1) == batch.targets["left"]).float().mean()) for y in (first, last)]
    assert good[1.0][0] > 0.7
    assert good[0.0][0] < 0.3
    assert good[1.0][1] > 0.7


def test_a_combiner_sees_one_row_for_each_task() -> None:
    names: list[Any] = []

    def combine(rows: Any) -> dict[str, float]:
        names.append(rows.names)
        return dict.fromkeys(rows.names, 1.0)

    stream = two_task_stream()
    model = smooth(stream.tasks, torch.float32)
    Engine(model, sgd(), [PADNet(), probe("combine", provide_gradient_combination=combine)], batch_size=12).run(stream)
    assert set(names) == {("a", "b")}
    ended, _ = final(Engine(smooth(stream.tasks, torch.float32), sgd(), [PADNet(), PCGrad()], batch_size=12), stream)
    assert all(bool(value.isfinite().all()) for value in ended.values())


def test_a_single_task_has_no_messages() -> None:
    model = transformed(PADNet(), smooth((A,)))
    w = weights(model)
    own = F.relu(F.linear(model.encoder(X), w["heads.own.a.weight"], w["heads.own.a.bias"]))
    expected = F.linear(own, w["heads.by_task.a.weight"], w["heads.by_task.a.bias"])
    torch.testing.assert_close(model(X, "a"), expected, rtol=1e-12, atol=1e-12)
