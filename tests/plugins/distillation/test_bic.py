from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from streamlearn import Engine, models
from streamlearn.errors import CompositionError, ConfigurationError
from streamlearn.models import Heads
from streamlearn.plugins import BiC, Replay
from streamlearn.plugins.distillation.bic import CorrectedHeads, balanced_choice
from streamlearn.streams import Task
from tests.core.support import Stop, class_stream, final, growing_stream, net, probe, same, sgd, stop_at, two_task_stream


def replay() -> Replay:
    return Replay(capacity=18, policy="class_balanced", batch_size=6)


def test_the_correction_by_hand() -> None:
    heads = CorrectedHeads(Heads(3, [Task("t", size=6)]), {1: (2, 4), 3: (3,)})
    assert {name for name, _ in heads.named_parameters() if "bias." in name} == {
        "bias.1.alpha", "bias.1.beta", "bias.3.alpha", "bias.3.beta",
    }  # fmt: skip
    features = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    plain = heads.inner(features, "t")
    assert torch.equal(heads(features, "t"), plain), "it starts as no correction"
    with torch.no_grad():
        heads.bias["1"].alpha.fill_(2.0)
        heads.bias["1"].beta.fill_(-1.0)
        heads.bias["3"].alpha.fill_(0.5)
        heads.bias["3"].beta.fill_(3.0)
    corrected = heads(features, "t")
    assert torch.equal(corrected[:, [0, 1, 5]], plain[:, [0, 1, 5]])
    torch.testing.assert_close(corrected[:, [2, 4]], 2 * plain[:, [2, 4]] - 1)
    torch.testing.assert_close(corrected[:, 3], 0.5 * plain[:, 3] + 3)


def test_the_choice_is_balanced() -> None:
    classes = torch.tensor([0] * 9 + [1] * 5 + [2])
    chosen = balanced_choice(classes, 3, torch.Generator().manual_seed(1))
    assert classes[chosen].tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert len(balanced_choice(classes, 0, torch.Generator())) == 0


@pytest.mark.parametrize("kind", ["plain", "heads"])
def test_phases_loss_and_term(kind: str) -> None:
    """Every step of the second and third experience against the formulas; what moves in which phase; nothing held out is trained on."""
    stream = class_stream()
    seen: dict[int, set[int]] = {}
    fitted: dict[int, list[int]] = {}
    before: dict[str, torch.Tensor] = {}
    ends: list[Any] = []
    checked = []

    def start(step: Any) -> None:
        before.clear()
        before.update(step.run.snapshot() | {n: b.clone() for n, b in step.run.model.named_buffers()})

    def after(step: Any) -> None:
        run, number, batch = step.run, step.run.clock.experience, step.batch
        moved = {name for name, old in before.items() if not torch.equal(old, dict(run.model.state_dict())[name])}
        if run.phase.name == "bias":
            assert moved == {f"heads.bias.{number}.alpha", f"heads.bias.{number}.beta"}
            assert not step.terms
            assert batch.roles == ("train",)
            fitted.setdefault(number, []).extend(batch.index.tolist())
            return
        assert not any("heads.bias" in name for name in moved)
        assert moved
        held = torch.isin(batch.index, run.plugins[1]._held.get("blobs", torch.zeros(0, dtype=torch.int64)))
        train = batch.rows("train")
        assert not bool(held[train].any()), "rows of the present are taken out altogether"
        seen.setdefault(number, set()).update(batch.index[~held].tolist())
        if not number:
            assert not step.terms
            return
        lam, old = 2 * number / (2 * number + 2), list(range(2 * number))
        outputs = step.outputs["blobs"].detach()[~held]
        plain = (1 - lam) * F.cross_entropy(outputs, batch.targets["blobs"][~held])
        torch.testing.assert_close(step.losses["blobs"].detach(), plain)
        told = ends[number - 1](batch.x[~held], "blobs").detach()[:, old]
        expected = lam * F.cross_entropy(outputs[:, old] / 2, F.softmax(told / 2, 1))
        torch.testing.assert_close(step.terms["bic/blobs"].detach(), expected)
        checked.append(int(held.sum()))

    watch = probe(
        "watch", before_step=start, after_step=after, after_experience=lambda run: ends.append(copy.deepcopy(run.model).eval())
    )  # fmt: skip
    model = net() if kind == "plain" else models.mlp(stream, (8,), dropout=0.2)
    bic_phase: list[Any] = []

    def let_watch(phases: Any) -> Any:
        bic_phase.append(phases)
        return tuple(p if p.only is None else p.replace(only=p.only | {"watch"}) for p in phases)

    plugins = [replay(), BiC(fraction=0.4, epochs=3), watch, probe("let_watch", transform_phases=let_watch)]
    Engine(model, sgd(), plugins, batch_size=8, epochs=2).run(stream)
    assert [[p.name for p in phases] for phases in bic_phase] == [["main"], ["main", "bias"], ["main", "bias"]]
    assert [phases[-1].only for phases in bic_phase[1:]] == [frozenset({"bic"})] * 2
    assert sum(checked) > 0, "some rows of the memory were held out"
    labels = stream[0].data["train"].source.targets["y"]
    for number in (1, 2):
        counts = labels[torch.tensor(sorted(set(fitted[number])))].bincount()
        assert len(counts) == 2 * number + 2
        assert len(set(counts.tolist())) == 1, "as many of each class"
        assert not set(fitted[number]) & seen[number], "nothing that is fitted on was trained on"


def test_the_correction_balances_the_held_out_rows() -> None:
    """On the held-out rows the loss is at a minimum in α and β: it is lower than without, and its slope is nearly 0."""
    stream = class_stream(experiences=2, rows=240)
    held: list[Any] = []

    def last(phases: Any, experience: Any) -> Any:
        held.append(phases[-1].data)
        return phases

    plugins = [Replay(capacity=30, policy="class_balanced", batch_size=1), BiC(fraction=0.5, epochs=150, learning_rate=0.05)]
    engine = Engine(models.mlp(stream, (16,)), sgd(), [*plugins, probe("last", transform_phases=last)], batch_size=40, epochs=3)
    model = engine.run(stream).model.eval()
    batch = held[1].batch(torch.arange(len(held[1])))
    assert batch.targets["blobs"].bincount().tolist() == [5] * 6
    bias = model.heads.bias["1"]

    def state() -> tuple[torch.Tensor, float]:
        outputs = model(batch.x, "blobs")
        return F.cross_entropy(outputs, batch.targets["blobs"]), float(outputs.softmax(1)[:, 3:].sum(1).mean().detach())

    loss, share = state()
    slopes = torch.autograd.grad(loss, [bias.alpha, bias.beta])
    assert max(abs(float(slope)) for slope in slopes) < 0.02
    assert share == pytest.approx(0.5, abs=0.02), "half of the held-out rows are of new classes"
    bias.reset_parameters()
    before, _ = state()
    assert loss.item() < before.item() - 0.02


def test_stopped_and_resumed_equals_the_straight_run(tmp_path: Path) -> None:
    stream = growing_stream()[:3]  # one head that grows by two classes in each experience

    def engine(**options: Any) -> Engine:
        plugins = [Replay(capacity=9, fill="step"), BiC(fraction=0.4, epochs=3)]
        return Engine(models.mlp(stream, (8,)), sgd(), plugins, batch_size=8, epochs=2, checkpoint_every=3, **options)

    expected = final(engine(), stream)
    last = sum(e["updates"] for e in expected[1] if e["event"] == "experience")
    bias = sum(e["updates"] for e in expected[1] if e["event"] == "epoch" and e["phase"] == "bias" and e["experience"] == 2)
    assert bias >= 3
    for update in (last - 1, last - bias - 2):  # in the second phase, and in the main one
        folder = tmp_path / str(update)
        with pytest.raises(Stop):
            engine(progress=stop_at(update)).run(stream, output=folder)
        result = engine().resume(folder, stream)
        assert same(dict(result.model.state_dict()), expected[0]), update
        assert same(result.events, expected[1]), update


def test_the_users_model_keeps_its_heads() -> None:
    stream = class_stream()
    model = models.mlp(stream, (8,))
    engine = Engine(model, sgd(), [replay(), BiC(epochs=2)], batch_size=10)
    first, again = final(engine, stream), final(engine, stream)
    assert same(first, again)
    assert isinstance(model.heads, Heads)


def test_dropout_and_normalisation_rest_in_the_second_phase() -> None:
    modes: list[Any] = []

    def after(step: Any) -> None:
        modes.append((step.run.phase.name, step.run.model.training))

    def let_watch(phases: Any) -> Any:
        return tuple(p if p.only is None else p.replace(only=p.only | {"watch"}) for p in phases)

    plugins = [replay(), BiC(epochs=2), probe("watch", after_step=after, transform_phases=let_watch)]
    Engine(net(), sgd(), plugins, batch_size=10).run(class_stream())
    assert set(modes) == {("main", True), ("bias", False)}


def test_refusals() -> None:
    with pytest.raises(CompositionError, match="bic needs 'replay'"):
        Engine(net(), sgd(), [BiC()], batch_size=10).run(class_stream())
    with pytest.raises(ConfigurationError, match=r"corrects one head for all classes, but stream 'hand' has the tasks a .*b "):
        Engine(net(), sgd(), [replay(), BiC()], batch_size=10).run(two_task_stream())
    with pytest.raises(ConfigurationError, match="there is no replay memory 'other'"):
        Engine(net(), sgd(), [replay(), BiC(memory="other")], batch_size=10).run(class_stream())
    with pytest.raises(ConfigurationError, match="option 'fraction' is 1"):
        BiC(fraction=1)
