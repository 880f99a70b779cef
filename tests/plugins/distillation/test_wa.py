from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from streamlearn import Engine, models
from streamlearn.core.teaching import distillation_loss
from streamlearn.errors import CompositionError, ConfigurationError
from streamlearn.plugins import EMA, EWC, BiC, LwF, Replay
from streamlearn.plugins.distillation.wa import WA, aligning_factor
from streamlearn.streams import class_incremental, domain_incremental, task_incremental
from tests.core.support import Stop, class_stream, final, growing_stream, net, probe, same, separate_task_stream, sgd, stop_at


def test_the_factor_by_hand() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0], [0.0, 2.0], [9.0, 9.0]], dtype=torch.float64)
    assert aligning_factor(weight, [0, 1], [2, 3]).item() == pytest.approx(((5 + 1) / 2) / ((10 + 2) / 2))
    assert aligning_factor(weight, [0], [2, 3, 4]).item() == pytest.approx(5 / ((10 + 2 + 162**0.5) / 3))
    assert aligning_factor(torch.tensor([[1.0], [0.0]]), [0], [1]).item() == 1.0, "nothing can lengthen a row of zeros"


@pytest.mark.parametrize("scale_bias", [False, True])
@pytest.mark.parametrize("kind", ["growing", "fixed", "plain"])
def test_the_end_of_an_experience(kind: str, scale_bias: bool) -> None:
    """New rows are γ times what the last update left, everything else is as it was; logits keep their order within both groups."""
    stream = class_stream() if kind != "growing" else growing_stream()[:3]
    (task,) = {task.name for task in stream.tasks}
    model = net() if kind == "plain" else models.mlp(stream, (8,))
    layer = "encoder.out" if kind == "plain" else f"heads.by_task.{task}"
    x = stream[0].data["train"].batch(torch.arange(9)).x
    last: dict[str, torch.Tensor] = {}
    logits: list[torch.Tensor] = []
    checked = []

    def step(step: Any) -> None:
        last.update({name: value.clone() for name, value in step.run.model.state_dict().items()})

    def before_alignment(run: Any) -> None:
        logits[:] = [run.model.eval()(x, task).detach()]

    def after(run: Any) -> None:
        number = run.clock.experience
        old, new = list(range(2 * number)), [2 * number, 2 * number + 1]
        factor = aligning_factor(last[f"{layer}.weight"].double(), old, new) if number else torch.ones(())
        expected = {name: value.clone() for name, value in last.items()}
        expected[f"{layer}.weight"][new] *= factor.float()
        if scale_bias:
            expected[f"{layer}.bias"][new] *= factor.float()
        for name, value in run.model.state_dict().items():
            torch.testing.assert_close(value, expected[name], msg=lambda text, name=name: f"{name}: {text}")
        if number:
            assert abs(float(factor) - 1) > 1e-3
            now = run.model.eval()(x, task).detach()
            torch.testing.assert_close(now[:, old], logits[0][:, old])
            if scale_bias:
                torch.testing.assert_close(now[:, new], float(factor) * logits[0][:, new])
                assert torch.equal(now[:, new].argmax(1), logits[0][:, new].argmax(1))
            checked.append(number)

    # after_ hooks run in reverse: the second watch looks at the weights before the alignment
    watch, early = probe("watch", after_step=step, after_experience=after), probe("early", after_epoch=before_alignment)
    Engine(model, sgd(), [watch, WA(scale_bias=scale_bias, clip=False), early], batch_size=10, epochs=2).run(stream)
    assert checked == [1, 2]


def test_losses_and_term() -> None:
    """(1 - λ) L_c and λ L_d on all rows, memory's too, with λ = s n / (n + m)."""
    stream, checked = class_stream(), set()

    def after(step: Any) -> None:
        number = step.run.clock.experience
        loss = nn.functional.cross_entropy(step.outputs["blobs"].detach(), step.batch.targets["blobs"])
        balance = 0.6 * 2 * number / (2 * number + 2)
        torch.testing.assert_close(step.losses["blobs"].detach(), (1 - balance) * loss)
        assert set(step.terms) == ({"wa/blobs"} if number else set())
        if number:
            old = step.run.teachers["wa/previous"](step.batch.x, "blobs")[:, : 2 * number]
            expected = balance * distillation_loss(step.outputs["blobs"].detach()[:, : 2 * number], old, 3.0)
            torch.testing.assert_close(step.terms["wa/blobs"].detach(), expected)
            checked.add((number, step.batch.roles))

    plugins = [Replay(capacity=6), WA(strength=0.6, temperature=3.0), probe("watch", after_step=after)]
    Engine(net(dropout=0.0), sgd(), plugins, batch_size=10).run(stream)
    assert checked == {(1, ("train", "memory")), (2, ("train", "memory"))}


def test_clipped_weights() -> None:
    """No weight of a head is below 0 after any update; encoder and biases are free."""
    stream, smallest = growing_stream(), []

    def after(step: Any) -> None:
        weights = {name: p.detach() for name, p in step.run.model.named_parameters()}
        assert all(float(p.min()) >= 0 for name, p in weights.items() if name.startswith("heads") and name.endswith("weight"))
        smallest.append(float(weights["encoder.0.weight"].min()))

    Engine(models.mlp(stream, (8,)), sgd(), [WA(), probe("watch", after_step=after)], batch_size=10).run(stream)
    assert max(smallest) < 0


def test_strength_0_aligns_without_a_teacher() -> None:
    stream, teachers = class_stream(), []
    watch = probe("watch", after_step=lambda step: teachers.append((set(step.run.teachers), set(step.terms))))
    aligned = final(Engine(net(), sgd(), [WA(strength=0.0, clip=False), watch], batch_size=10), stream)[0]
    assert {str(found) for found in teachers} == {"(set(), set())"}
    assert not WA(strength=0.0).passes.teachers
    assert WA().passes.teachers == {"previous"}
    plain = final(Engine(net(), sgd(), [], batch_size=10), stream)[0]
    assert not same(aligned, plain)


@pytest.mark.parametrize("kind", ["tasks", "domains", "joined tasks"])
def test_nothing_to_align(kind: str) -> None:
    """Without new classes beside old ones in a head it is not there, to the bit."""
    made = {"tasks": lambda: task_incremental("digits", 5)[:2], "domains": lambda: domain_incremental("digits", 2)}
    stream = made.get(kind, separate_task_stream)()

    def weights(plugins: list[Any]) -> dict[str, torch.Tensor]:
        return final(Engine(models.mlp(stream, (8,)), sgd(), plugins, batch_size=200), stream)[0]

    assert same(weights([WA(clip=False)]), weights([]))


@pytest.mark.parametrize("back", [0, 1])
def test_stopped_and_resumed_equals_the_straight_run(tmp_path: Path, back: int) -> None:
    """Also where the stop lies between the last update and the alignment."""
    stream = growing_stream()[:3]

    def engine(**options: Any) -> Engine:
        plugins = [Replay(capacity=9, fill="step"), WA(), LwF(strength=0.1), EWC(strength=1.0)]
        return Engine(models.mlp(stream, (8,)), sgd(), plugins, batch_size=8, epochs=2, checkpoint_every=1, **options)

    expected = final(engine(), stream)
    ends = [sum(e["updates"] for e in expected[1] if e["event"] == "experience" and e["index"] <= last) for last in (1, 2)]
    for end in ends:
        folder = tmp_path / str(end)
        with pytest.raises(Stop):
            engine(progress=stop_at(end - back)).run(stream, output=folder)
        result = engine().resume(folder, stream)
        assert same(dict(result.model.state_dict()), expected[0])
        assert same(result.events, expected[1])


def test_beside_an_average_that_is_written() -> None:
    """The average is written first, and then aligned."""
    stream, averages = class_stream(), {}

    def after(run: Any) -> None:
        ema = next(plugin for plugin in run.plugins if plugin.name == "ema")
        number = run.clock.experience
        new = [2 * number, 2 * number + 1]
        expected = ema.average["heads.by_task.blobs.weight"].clamp(min=0)
        if number:
            expected[new] *= aligning_factor(expected, list(range(2 * number)), new)
        torch.testing.assert_close(run.model.state_dict()["heads.by_task.blobs.weight"], expected)
        averages[number] = True

    plugins = [EMA(decay=0.5, write=True), WA(), probe("watch", after_experience=after)]
    Engine(models.mlp(stream, (8,)), sgd(), plugins, batch_size=10).run(stream)
    assert set(averages) == {0, 1, 2}


def test_refusals() -> None:
    stream = class_stream()
    with pytest.raises(ConfigurationError, match=r"plugin wa .*plain module.* no nn.Linear"):
        Engine(nn.Conv1d(6, 6, 1), sgd(), [WA()]).run(stream)
    with pytest.raises(CompositionError, match="bic"):
        Engine(net(), sgd(), [Replay(capacity=9), BiC(), WA()]).run(stream)
    with pytest.raises(ConfigurationError, match="strength"):
        WA(strength=1.5)


def test_it_is_fair_to_old_classes() -> None:
    """With four rows of memory beside thirty-two new ones, the head prefers the new classes; aligned, it does so less."""
    stream = class_incremental("digits", 5, grow=True)

    def accuracy(*plugins: Any) -> float:
        memory = Replay(capacity=50, policy="class_balanced", batch_size=4)
        optimizer = partial(torch.optim.Adam, lr=3e-3)
        engine = Engine(models.mlp(stream, (64,)), optimizer, [memory, *plugins], batch_size=32, epochs=6)
        return float(engine.run(stream).metrics["average_accuracy"])

    assert accuracy(WA()) > accuracy() + 0.05
