from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from streamlearn import Engine, Plugin, streams
from streamlearn.core.inner_loop.outcome import half_squared_distance
from streamlearn.core.sampling import shuffled
from streamlearn.errors import CompositionError, ConfigurationError
from streamlearn.models import Heads, Model
from streamlearn.plugins import EWC, MAML, LwF, PCGrad, Reptile, UncertaintyWeighting
from streamlearn.streams import Stream
from tests.core.support import Stop, class_stream, final, net, probe, same, sgd, stop_at, two_task_stream
from tests.plugins.meta.characters import leaves_a_head_without_rows_alone


def outer(rate: float) -> Any:
    return sgd(lr=rate, momentum=0.0, weight_decay=0.0)


def sinusoids(episodes: int = 12) -> Stream:
    return streams.episodes("sinusoids", shots=5, queries=4, train_episodes=episodes, test_episodes=3)


def small_net(stream: Stream, *layers: nn.Module) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(nn.Sequential(nn.Linear(1, 8), *layers, nn.Tanh()), Heads(8, stream.tasks))


def led_to(model: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float) -> dict[str, Tensor]:
    """Plain gradient descent from the model's weights, which stay where they are."""
    fast = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(steps):
        fast = {name: value.requires_grad_() for name, value in fast.items()}
        found = torch.autograd.grad(nn.functional.mse_loss(functional_call(model, fast, (x, "sinusoids")), y), list(fast.values()))
        fast = {name: (value - rate * g).detach() for (name, value), g in zip(fast.items(), found, strict=True)}
    return fast


@pytest.mark.parametrize(("episodes", "rate"), [(1, 1.0), (1, 0.3), (3, 1.0)])
def test_the_outer_step_goes_to_where_the_inner_steps_lead(episodes: int, rate: float) -> None:
    """θ + ε (mean φ - θ): at ε = 1 and one episode θ becomes φ."""
    stream = sinusoids()
    plugin = Reptile(steps=3, rate=0.1)
    found, _ = final(Engine(small_net(stream), outer(rate), [plugin], batch_size=episodes, seed=4), stream)
    model = small_net(stream)
    data = stream[0].data["train"]
    for positions in shuffled(12, episodes, False, 0, 4, 0, 0, 0).split(episodes):
        rows = [data.batch(torch.tensor([number])) for number in positions.tolist()]
        ends = [led_to(model, batch.x, batch.targets["sinusoids"], 3, 0.1) for batch in rows]
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.add_(rate * (torch.stack([end[name] for end in ends]).mean(0) - p))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def test_the_distance_by_hand() -> None:
    theta = {"w": torch.tensor([1.0, 2.0], requires_grad=True), "still": torch.ones(1, requires_grad=True)}
    value = half_squared_distance(theta, {"w": torch.tensor([0.0, 4.0])})
    assert float(value.detach()) == 2.5
    value.backward()
    assert theta["w"].grad.tolist() == [1.0, -2.0]
    assert theta["still"].grad is None


def test_one_inner_step_is_the_ordinary_gradient() -> None:
    stream = two_task_stream(experiences=2)
    others: list[Plugin] = [EWC(strength=3), LwF()]

    def weights(rate: float, *plugins: Plugin) -> dict[str, Tensor]:
        return final(Engine(_two(stream), outer(rate), [*plugins, *others], batch_size=6), stream)[0]

    found = weights(0.5, Reptile(steps=1, rate=0.1))  # 0.5 times a distance of 0.1 gradients
    for name, value in weights(0.05).items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-5)


def _two(stream: Stream) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(nn.Sequential(nn.Linear(6, 8), nn.Tanh()), Heads(8, stream.tasks))


def test_terms_and_a_learned_weighting_act_in_the_inner_steps() -> None:
    """One step of rate α and an outer SGD of lr 1 are one step of lr α, of the log-variances too: they learn once, not twice."""
    stream = two_task_stream()

    def weights(rate: float, *plugins: Plugin) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        runs: list[Any] = []
        watch = probe("watch", after_run=lambda run: runs.append(run.snapshot()))
        found, _ = final(Engine(_two(stream), outer(rate), [*plugins, UncertaintyWeighting(), watch], batch_size=6), stream)
        return found, runs[0]

    (found, named), (expected, others) = weights(1.0, Reptile(steps=1, rate=0.1)), weights(0.1)
    for name, value in {**expected, **others}.items():
        torch.testing.assert_close((found | named)[name], value, rtol=0, atol=1e-6)
    assert abs(float(named["uncertainty_weighting/a.value"])) > 1e-3


def test_a_head_without_rows_is_not_touched() -> None:
    leaves_a_head_without_rows_alone(Reptile())


def test_the_record_keeps_losses_and_terms_beside_the_distance() -> None:
    _, events = final(Engine(net(), outer(0.5), [Reptile(), EWC(strength=3)], batch_size=10), class_stream())
    last = [event for event in events if event["event"] == "epoch"][-1]
    assert set(last["terms"]) == {"ewc", "reptile"}
    assert set(last["losses"]) == {"blobs"}
    assert all(value > 0 for value in last["terms"].values())


@pytest.mark.parametrize("episodes", [1, 3])
def test_batchnorm_moves_once_a_step(episodes: int) -> None:
    stream, means = sinusoids(), []

    def before(step: Any) -> None:
        layer = step.run.model.encoder[1]
        count = int(layer.num_batches_tracked)
        means.append((count, 0.9 * layer.running_mean + 0.1 * step.run.model.encoder[0](step.batch.x).detach().mean(0)))

    def after(step: Any) -> None:
        layer, (count, expected) = step.run.model.encoder[1], means[-1]
        assert int(layer.num_batches_tracked) == count + 1
        torch.testing.assert_close(layer.running_mean, expected)

    plugins = [Reptile(steps=2), probe("watch", before_step=before, after_step=after)]
    Engine(small_net(stream, nn.BatchNorm1d(8)), outer(1.0), plugins, batch_size=episodes).run(stream)
    assert len(means) == 12 // episodes


def test_it_resumes_bit_for_bit(tmp_path: Path) -> None:
    def engine(**options: Any) -> Engine:
        return Engine(net(), sgd(), [Reptile(steps=2), EWC(strength=3), LwF()], batch_size=10, checkpoint_every=2, **options)

    expected, events = final(engine(), class_stream())
    with pytest.raises(Stop):
        engine(progress=stop_at(3)).run(class_stream(), output=tmp_path)
    result = engine().resume(tmp_path, class_stream())
    assert same(dict(result.model.state_dict()), expected)
    assert result.events == events


def test_what_cannot_be_right_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="option 'steps' is 0"):
        Reptile(steps=0)
    with pytest.raises(CompositionError, match="2 plugins bring 'inner-loop'"):
        Engine(net(), sgd(), [MAML(), Reptile()])
    with pytest.raises(ConfigurationError, match="the distance to adapted weights, of which pcgrad has no rows to combine: remove one"):
        Engine(net(), sgd(), [Reptile(), PCGrad()]).run(class_stream())
    assert (Reptile(steps=1).passes.look_ahead, Reptile(steps=5).passes.look_ahead) == (0, 4)
