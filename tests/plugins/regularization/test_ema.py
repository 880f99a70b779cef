from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from streamlearn import Engine, models
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import EMA, EWC, GDumb, Replay
from streamlearn.plugins.regularization.ema import averaged
from tests.core.support import Stop, class_stream, final, growing_stream, net, probe, same, sgd, stop_at
from tests.integration.test_resume import everything


def test_the_average_is_torchs() -> None:
    model = torch.nn.Linear(3, 2)
    reference = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    mine: torch.Tensor | None = None
    for _ in range(5):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        reference.update_parameters(model)
        mine = model.weight.detach().clone() if mine is None else averaged(mine, model.weight, 0.9)
    assert mine is not None
    torch.testing.assert_close(mine, reference.module.weight.detach())


@pytest.mark.parametrize("warm_up", [False, True])
def test_in_a_run_it_follows_every_update_and_is_written_at_the_end(warm_up: bool) -> None:
    expected: dict[str, torch.Tensor] = {}
    plugin = EMA(decay=0.8, warm_up=warm_up)
    count = 0

    def after_step(step: Any) -> None:
        nonlocal count
        decay = min(0.8, (1 + count) / (10 + count)) if warm_up else 0.8
        for name, p in step.run.parameters().items():
            value = p.detach()
            expected[name] = decay * expected[name] + (1 - decay) * value if name in expected else value.clone()
            torch.testing.assert_close(plugin.average[name], expected[name])
        count += 1

    def after_experience(run: Any) -> None:
        for name, p in run.parameters().items():
            torch.testing.assert_close(p.detach(), expected[name])

    watch = probe("watch", after_step=after_step, after_experience=after_experience)
    Engine(net(), sgd(), [plugin, watch], batch_size=10).run(class_stream())
    assert count == 6


def test_at_decay_0_and_without_writing_training_is_as_without_it() -> None:
    plain, _ = final(Engine(net(), sgd(), batch_size=10), class_stream())
    for plugin in (EMA(decay=0.0), EMA(decay=0.9, write=False)):
        assert same(plain, final(Engine(net(), sgd(), [plugin], batch_size=10), class_stream())[0])
    assert not same(plain, final(Engine(net(), sgd(), [EMA(decay=0.9)], batch_size=10), class_stream())[0])


def test_it_grows_with_the_heads() -> None:
    plugin = EMA(decay=0.9, warm_up=False)
    stream = growing_stream()
    result = Engine(models.mlp(stream, (8,)), sgd(), [plugin], batch_size=30).run(stream)
    shapes = {name: tuple(p.shape) for name, p in result.model.named_parameters()}  # type: ignore[attr-defined]
    assert {name: tuple(average.shape) for name, average in plugin.average.items()} == shapes


@pytest.mark.parametrize("place", [1, 4, 7])
def test_stopped_and_resumed_equals_the_straight_run(tmp_path: Path, place: int) -> None:
    def engine(**options: Any) -> Engine:
        plugins = [Replay(capacity=9), EMA(decay=0.9), EWC(strength=2.0)]
        return Engine(net(), sgd(), plugins, epochs=2, batch_size=10, checkpoint_every=1, **options)

    engine().run(class_stream(), output=tmp_path / "straight")
    with pytest.raises(Stop):
        engine(progress=stop_at(place)).run(class_stream(), output=tmp_path / "broken")
    engine().resume(tmp_path / "broken", class_stream())
    assert same(everything(tmp_path / "straight"), everything(tmp_path / "broken"))


def test_weights_that_were_set_anew_start_a_new_average() -> None:
    first: list[bool] = []

    def after_step(step: Any) -> None:
        if step.update in (0, 2, 4):  # the first of each experience
            first.append(all(torch.equal(plugin.average[n], p) for n, p in step.run.parameters().items()))

    plugin = EMA(decay=0.9, warm_up=False)
    Engine(net(), sgd(), [plugin, GDumb(capacity=12), probe("watch", after_step=after_step)], batch_size=6).run(class_stream())
    assert first == [True, True, True]
    first.clear()
    Engine(net(), sgd(), [plugin, probe("watch", after_step=after_step)], batch_size=10).run(class_stream())
    assert first == [True, False, False]


@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ConfigurationError, match="plugin ema: option 'decay'"):
        EMA(decay=decay)
