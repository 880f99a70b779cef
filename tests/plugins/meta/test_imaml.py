"""iMAML: the gradient of where the inner problem is solved, by both solvers, in the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, streams
from streamlearn.errors import ConfigurationError
from streamlearn.models import Heads, Model
from streamlearn.plugins import EWC, IMAML, MAML, PCGrad
from streamlearn.results import final_values
from streamlearn.streams import Stream
from tests.core.support import final, probe, same, sgd, stopped_or_straight, two_task_stream

SGD = sgd(lr=0.05, momentum=0.0, weight_decay=0.0)


def sinusoids(episodes: int = 12) -> Stream:
    return streams.episodes("sinusoids", shots=5, queries=4, train_episodes=episodes, test_episodes=7)


class Cubes(nn.Module):
    """Features x, x², x³: with a linear head the inner problem is a quadratic, whose minimum has a closed form."""

    def forward(self, x: Tensor) -> Tensor:
        scaled = x / 5
        return torch.cat([scaled, scaled**2, scaled**3], 1)


def linear() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(Cubes(), Heads(3, sinusoids(1).tasks)).double()


def doubled() -> Any:
    """Rows in double precision."""

    def change(batch: Any) -> Any:
        return batch.replace(x=batch.x.double(), targets={task: y.double() for task, y in batch.targets.items()})

    return probe("double", transform_batch=change)


def gradients(plugin: Any) -> list[dict[str, Tensor]]:
    found: list[dict[str, Tensor]] = []

    def look(gradients: Any) -> Any:
        found.append({name: g.clone() for name, g in gradients.items()})
        return gradients

    stream = sinusoids()
    Engine(linear(), SGD, [doubled(), plugin, probe("look", transform_gradients=look)], batch_size=3, evaluate="never").run(stream)
    return found


def closed_form(strength: float) -> list[dict[str, Tensor]]:
    """The same at the exact minimum: with features a = (x, x², x³, 1), φ = (2 aᵀa/n + λ)⁻¹ (2 aᵀy/n + λ θ)."""
    found: list[dict[str, Tensor]] = []

    def look(step: Any) -> None:
        head = {name: p.detach().clone().requires_grad_() for name, p in step.parameters.items()}
        theta = torch.cat([head["heads.by_task.sinusoids.weight"].view(-1), head["heads.by_task.sinusoids.bias"]])
        total = torch.zeros((), dtype=torch.float64)
        for episode in step.batch.by_domain().values():
            inner, outer = episode.rows("support"), episode.rows("query")
            a = torch.cat([Cubes()(episode.x), torch.ones(len(episode), 1, dtype=torch.float64)], 1)
            y = episode.targets["sinusoids"].view(-1)
            n = inner.stop - inner.start
            left = 2 * a[inner].T @ a[inner] / n + strength * torch.eye(4, dtype=torch.float64)
            phi = torch.linalg.solve(left, 2 * a[inner].T @ y[inner] / n + strength * theta)
            total = total + (a[outer] @ phi - y[outer]).square().mean() / 3
        found.append(dict(zip(head, torch.autograd.grad(total, list(head.values())), strict=True)))

    stream = sinusoids()
    Engine(linear(), sgd(lr=0.0), [doubled(), probe("look", before_step=look)], batch_size=3, evaluate="never").run(stream)
    return found


@pytest.mark.parametrize(
    "options", [{"solver_steps": 4}, {"solver": "neumann", "solver_steps": 300, "solver_rate": 0.3}], ids=["cg", "neumann"]
)
def test_its_gradient_is_that_of_the_minimum(options: dict[str, Any]) -> None:
    found = gradients(IMAML(steps=300, rate=0.3, strength=1.0, **options))
    for name, value in closed_form(1.0)[0].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-6, atol=1e-8)


def test_few_products_are_another_gradient_and_no_step_is_none() -> None:
    exact, rough = (gradients(IMAML(steps=300, rate=0.3, strength=1.0, solver_steps=n))[0] for n in (4, 1))
    assert max(float((exact[name] - value).abs().max()) for name, value in rough.items()) > 1e-3
    plain, none = gradients(MAML(steps=0))[0], gradients(IMAML(steps=0))[0]
    assert same(plain, none)


def test_it_learns_to_learn() -> None:
    """The same inner problem on new episodes has a better solution from the weights that were learnt than from the first ones."""
    stream = streams.episodes("sinusoids", shots=10, queries=10, train_episodes=60, test_episodes=40, seed=2)

    def error(rate: float) -> float:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Model(nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh()), Heads(40, stream.tasks))
        plugin = IMAML(steps=5, rate=0.02, strength=2.0)
        result = Engine(model, lambda p: torch.optim.Adam(p, lr=rate), [plugin], batch_size=6, epochs=4, evaluate="end", seed=1).run(stream)
        return final_values(result)["sinusoids"]["mean_squared_error"]

    assert error(1e-2) < 0.8 * error(0.0)


def test_beside_others_and_after_a_stop(tmp_path: Path) -> None:
    plugins = [IMAML(steps=2), EWC(strength=2.0), PCGrad()]
    values, _ = final(Engine(Model(nn.Linear(6, 5), Heads(5, [])), sgd(), plugins, batch_size=8), two_task_stream(experiences=2))
    assert all(bool(value.isfinite().all()) for value in values.values())

    def engine(**options: Any) -> Engine:
        model = linear().float()
        return Engine(model, sgd(), [IMAML(steps=3)], batch_size=3, epochs=2, **options)

    straight = stopped_or_straight(engine, sinusoids, tmp_path / "straight")
    stopped = stopped_or_straight(engine, sinusoids, tmp_path / "stopped", stop=3)
    assert same(straight[0], stopped[0])
    assert straight[1] == stopped[1]


def test_what_cannot_be_right_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="option 'strength' is 0"):
        IMAML(strength=0)
    with pytest.raises(ConfigurationError, match="unknown option of plugin imaml 'executor'"):
        IMAML(executor="vmap")
