from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from streamlearn import Engine, Plugin, streams
from streamlearn.core.priors.prior import Prior
from streamlearn.errors import ConfigurationError, TrainingError
from streamlearn.models import Heads, Model
from streamlearn.plugins import EWC, LwF, PCGrad, Replay, UncertaintyWeighting
from streamlearn.plugins.meta.from_prior import FromPrior
from streamlearn.plugins.meta.oml import OML
from streamlearn.streams import Batch, Stream
from tests.core.support import blobs, class_stream, final, net, probe, same, sgd, stopped_or_straight, two_task_stream
from tests.plugins.meta.characters import accuracy, characters, trained, trajectories

SGD = sgd(lr=0.05, momentum=0.0, weight_decay=0.0)
TASK = "blobs/3-way"


def episodes(count: int = 6, dtype: Any = torch.float64) -> Stream:
    source = blobs(120, 12, dtype=dtype)
    return streams.episodes(source, ways=3, shots=2, queries=2, train_episodes=count, test_episodes=4, held_out=0.4)


def smooth(tasks: Any, dtype: Any = torch.float64, *layers: nn.Module) -> Model:
    """A small smooth net, so that second derivatives are not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(nn.Sequential(nn.Linear(6, 5), *layers, nn.Tanh(), nn.Linear(5, 4), nn.Tanh()), Heads(4, tasks)).to(dtype)


def error(model: Model, weights: Mapping[str, Tensor], batch: Batch, rows: slice, task: str = TASK) -> Tensor:
    return nn.functional.cross_entropy(functional_call(model, dict(weights), (batch.x[rows], task)), batch.targets[task][rows])


def outer(
    model: Model, theta: Mapping[str, Tensor], batch: Batch, support: int, *, rate: float, rows: int = 1, steps: int = 1, order: int = 2,
    plastic: str = "heads.", start: str = "learnt", task: str = TASK, asked: slice = slice(None),
) -> Tensor:  # fmt: skip
    """The outer loss of one episode as a plain loop over its first rows, and none of the library's code."""
    moving = {name: value for name, value in theta.items() if name.startswith(plastic)}
    if start == "fixed":
        moving = {name: value.detach().clone().requires_grad_() for name, value in moving.items()}
    for first in range(0, support, rows):
        for _ in range(steps):
            loss = error(model, {**theta, **moving}, batch, slice(first, min(first + rows, support)), task)
            slopes = torch.autograd.grad(loss, list(moving.values()), create_graph=order == 2)
            moving = {name: value - rate * slope for (name, value), slope in zip(moving.items(), slopes, strict=True)}
    return error(model, {**theta, **moving}, batch, asked, task)


class Watched:
    """Batch, weights and gradients of each step."""

    def __init__(self, *plugins: Plugin, stream: Stream, model: Model, batch_size: int = 2, **options: Any) -> None:
        self.steps: list[tuple[Batch, dict[str, Tensor], dict[str, Tensor]]] = []

        def look(gradients: Any, step: Any) -> Any:
            theta = {name: p.detach().clone().requires_grad_() for name, p in step.run.model.named_parameters()}
            self.steps.append((step.batch, theta, {name: g.clone() for name, g in gradients.items()}))
            return gradients

        options = {"optimizer": SGD, "seed": 4, "evaluate": "never"} | options
        self.model = model
        Engine(model, plugins=[*plugins, probe("watch", transform_gradients=look)], batch_size=batch_size, **options).run(stream)


# ------------------------------------------------------------------------------------------------ the gradient


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rows": 4},
        {"steps": 2, "rows": 2},
        {"start": "fixed"},
        {"order": 1},
        {"order": 1, "start": "fixed"},
        {"plastic": "encoder.2."},
        {"plastic": ""},
    ],
)
def test_it_equals_a_loop_by_hand(options: dict[str, Any]) -> None:
    stream = episodes()
    given = {**options, "plastic": (f"{options.get('plastic', 'heads.')}*",)}
    seen = Watched(OML(rate=0.4, **given), stream=stream, model=smooth(stream.tasks))
    assert len(seen.steps) == 3
    for batch, theta, gradients in seen.steps:
        losses = [outer(seen.model, theta, episode, 6, rate=0.4, **options) for episode in batch.by_domain().values()]
        wanted = torch.autograd.grad(torch.stack(losses).mean(), list(theta.values()), allow_unused=True)
        for name, value in zip(theta, wanted, strict=True):
            assert (value is None) == (name not in gradients)
            if value is not None:
                torch.testing.assert_close(gradients[name], value, rtol=1e-10, atol=1e-13)
    assert all(name in seen.steps[0][2] for name in theta if name.startswith("encoder.0."))


@pytest.mark.parametrize("recompute", [False, True])
def test_it_equals_finite_differences(recompute: bool) -> None:
    """Of the whole outer loss with respect to every weight, those that rest in the inner steps included; the first order does not."""
    stream = episodes(1)
    found = {}
    for order in (1, 2):
        learner = OML(rate=0.4, order=order, recompute=recompute)
        found[order] = Watched(learner, stream=stream, model=smooth(stream.tasks)).steps[0]
    batch, theta, exact = found[2]
    model, size = smooth(stream.tasks), 1e-5
    differences: dict[str, Tensor] = {}
    for name, value in theta.items():
        slope = torch.zeros_like(value)
        for place in range(value.numel()):
            ends = []
            for sign in (1, -1):
                moved = value.detach().clone()
                moved.view(-1)[place] += sign * size
                ends.append(outer(model, {**theta, name: moved.requires_grad_()}, batch, 6, rate=0.4).detach())
            slope.view(-1)[place] = (ends[0] - ends[1]) / (2 * size)
        differences[name] = slope
    for part in ("encoder.", "heads."):
        wanted, mine, first = (
            torch.cat([values[name].flatten() for name in theta if name.startswith(part)]) for values in (differences, exact, found[1][2])
        )
        assert float((mine - wanted).norm() / wanted.norm()) < 1e-6
        assert float((first - wanted).norm() / wanted.norm()) > 0.1, "what the authors' code computed until July 2020"


def test_at_once_and_one_by_one_and_computed_anew_agree() -> None:
    stream = episodes()
    ways: list[dict[str, Any]] = [{"executor": "loop"}, {"executor": "vmap"}, {"executor": "vmap", "chunk": 2}, {"recompute": True}]
    for start in ("learnt", "fixed"):
        plugins = [OML(rate=0.4, rows=2, start=start, **how) for how in ways]
        runs = [Watched(plugin, stream=stream, model=smooth(stream.tasks), batch_size=3).steps for plugin in plugins]
        for other in runs[1:]:
            for (_, _, one), (_, _, two) in zip(runs[0], other, strict=True):
                torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-13)


def test_the_order_of_the_rows_matters() -> None:
    """The trajectory is the support rows as they come, class after class."""
    stream = episodes()
    batch, theta, _ = Watched(OML(), stream=stream, model=smooth(stream.tasks), batch_size=1).steps[0]
    assert batch.targets[TASK].tolist() == [0, 0, 1, 1, 2, 2] * 2
    model = smooth(stream.tasks)
    one = outer(model, theta, batch, 6, rate=0.4)
    turned = torch.cat([torch.arange(6).flip(0), torch.arange(6, 12)])
    other = batch.replace(x=batch.x[turned], targets={TASK: batch.targets[TASK][turned]})
    assert float((outer(model, theta, other, 6, rate=0.4) - one).detach().abs()) > 1e-3


def test_incoming_rows_are_learnt_and_the_memory_is_asked_as_well() -> None:
    """On a stream beside replay: rows of the memory take the place of the paper's random rows."""
    stream = class_stream()
    seen = Watched(
        OML(rate=0.4, support="train"), Replay(capacity=12), stream=stream, model=smooth(stream.tasks, torch.float32), batch_size=5
    )
    sizes = []
    for batch, theta, gradients in seen.steps:
        rows = batch.rows("train")
        sizes.append((rows.stop, len(batch)))
        loss = outer(seen.model, theta, batch, rows.stop, rate=0.4, task="blobs")
        for (name, _), wanted in zip(theta.items(), torch.autograd.grad(loss, list(theta.values())), strict=True):
            torch.testing.assert_close(gradients[name], wanted, rtol=1e-4, atol=1e-6)
    assert sizes == [(5, 5)] * 4 + [(5, 10)] * 8


# ------------------------------------------------------------------------------------------------ edges


def test_no_steps_are_the_plain_step() -> None:
    stream = class_stream()

    def run(*plugins: Plugin) -> dict[str, Tensor]:
        return final(Engine(smooth(stream.tasks, torch.float32), SGD, list(plugins), batch_size=8), stream)[0]

    assert same(run(OML(steps=0)), run())
    assert not same(run(OML()), run())


def test_batch_norm_gets_two_rows_at_least_and_moves_once() -> None:
    """Seven rows in steps of two: the last step takes three."""
    sizes: list[int] = []

    class Counting(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x)

    stream = class_stream()
    model = smooth(stream.tasks, torch.float32, Counting(5))
    Engine(model, SGD, [OML(rate=0.1)], batch_size=7, iterations=1, evaluate="never").run(stream[:1])
    assert sizes == [2, 2, 3, 7]
    assert int(model.encoder[1].num_batches_tracked) == 1  # type: ignore[index, union-attr]
    several = smooth(episodes().tasks, torch.float64, nn.BatchNorm1d(5))
    Engine(several, SGD, [OML(rate=0.1)], batch_size=3, evaluate="never").run(episodes())
    assert int(several.encoder[1].num_batches_tracked) == 2  # type: ignore[index, union-attr]


def test_an_evaluation_learns_the_support_rows_in_their_order_and_forgets_them() -> None:
    stream, seen = episodes(), []
    plugin = OML(rate=0.3, rows=4, evaluation_steps=2)

    def look(evaluation: Any) -> None:
        model, kept = evaluation.run.model, {n: v.clone() for n, v in evaluation.run.model.state_dict().items()}
        for batch in stream.evaluation(0).data.in_order(slice(None), 2, "evaluation"):
            found = plugin.provide_predictions(batch, evaluation)[TASK]
            for number, episode in enumerate(batch.by_domain().values()):
                fast = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
                for first in (0, 4):
                    for _ in range(2):
                        names = [n for n in fast if n.startswith("heads.")]
                        slopes = torch.autograd.grad(error(model, fast, episode, slice(first, min(first + 4, 6))), [fast[n] for n in names])
                        moved = {n: (fast[n] - 0.3 * s).detach().requires_grad_() for n, s in zip(names, slopes, strict=True)}
                        fast = fast | moved
                wanted = functional_call(model, fast, (episode.x[6:], TASK))
                torch.testing.assert_close(found[12 + 6 * number : 18 + 6 * number], wanted.detach(), rtol=1e-10, atol=1e-12)
                seen.append(number)
        assert same(dict(model.state_dict()), kept)

    Engine(smooth(stream.tasks), SGD, [plugin, probe("look", before_evaluation=look)], batch_size=2).run(stream)
    assert seen == [0, 1] * 4, "before training and after it"


def test_it_says_what_it_cannot_do() -> None:
    stream = class_stream()

    def run(plugin: OML, stream: Stream = stream, model: Any = None) -> None:
        Engine(model or smooth(stream.tasks, torch.float32), SGD, [plugin], batch_size=8).run(stream)

    with pytest.raises(ConfigurationError, match=r"no parameter matches plastic=\('heads.\*',\)"):
        run(OML(), model=net())
    with pytest.raises(ConfigurationError, match="start='fixed' nothing that"):
        run(OML(start="fixed", plastic=("*",)))
    with pytest.raises(TrainingError, match="no rows of role 'asked'"):
        run(OML(query="asked"), episodes(dtype=torch.float32), smooth(episodes().tasks, torch.float32))
    for options in ({"rows": 0}, {"rule": "adam"}, {"start": "random"}, {"rate": 0.0}):
        with pytest.raises(ConfigurationError):
            OML(**options)


# ------------------------------------------------------------------------------------------------ beside others


def test_penalties_distillation_and_replay_act_in_it() -> None:
    stream = class_stream()

    def run(*plugins: Plugin) -> dict[str, Tensor]:
        return final(Engine(smooth(stream.tasks, torch.float32), SGD, [OML(rate=0.3, rows=4), *plugins], batch_size=8), stream)[0]

    alone = run()
    for plugin in (EWC(strength=100.0), LwF(strength=5.0)):
        assert not same(run(plugin), alone)
    assert not same(run(EWC(strength=100.0)), run(EWC(strength=1.0)))
    tasks = two_task_stream(experiences=2)
    for plugins in ([UncertaintyWeighting()], [PCGrad()]):
        found = final(Engine(smooth(tasks.tasks, torch.float32), SGD, [OML(rate=0.3, rows=6), *plugins], batch_size=12), tasks)[0]
        assert all(bool(value.isfinite().all()) for value in found.values())


def test_a_resumed_run_ends_as_one_that_was_not_stopped(tmp_path: Path) -> None:
    def engine(**options: Any) -> Engine:
        model: Callable[[], Model] = lambda: smooth(class_stream().tasks, torch.float32, nn.BatchNorm1d(5))  # noqa: E731
        plugins = [OML(rate=0.3, rows=4, support="train"), Replay(capacity=12)]
        return Engine(model, sgd(), plugins, batch_size=8, seed=4, checkpoint_every=1, **options)

    straight = stopped_or_straight(engine, class_stream, tmp_path / "straight")
    assert same(straight, stopped_or_straight(engine, class_stream, tmp_path / "stopped", 5))


# ------------------------------------------------------------------------------------------------ what it is for


def test_a_prior_that_it_has_learnt_forgets_less(tmp_path: Path) -> None:
    rates = (0.003, 0.01, 0.03, 0.1)
    Prior.of(trained(trajectories(), OML(rate=0.3), batch_size=8)).save(tmp_path / "characters.prior")
    learnt = accuracy(rates, FromPrior(prior=tmp_path / "characters.prior"))
    assert learnt > accuracy(rates) + 0.2, "than a random start"
    classified = Prior.of(trained(streams.class_incremental(characters(5, 60, 20), experiences=1), epochs=5))
    assert learnt > accuracy(rates, FromPrior(prior=classified, heads="skip")) + 0.2, "than features that tell the same classes apart"
