"""Episodes at once are the same as one by one, for all plugins that say so; and who is not able to is gone through one by one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, Plugin, streams
from streamlearn.core import registry
from streamlearn.core.inner_loop.executors import why_one_by_one
from streamlearn.models import Heads, Model
from streamlearn.plugins import MAML, MetaSGD, SeparateNetworks, UncertaintyWeighting
from streamlearn.streams import Stream
from streamlearn.streams.data import Data
from tests.core.support import final, probe, sgd, stream_of

VMAPPABLE = sorted(
    plugin.name
    for plugin in registry.installed()
    if plugin.distribution == "streamlearn"
    and registry.load(plugin.name).info.vmappable
    and "inner-loop!" not in registry.load(plugin.name).info.provides
)
OPTIONS: dict[str, dict[str, Any]] = {"constant_weighting": {"weights": {"first": 2.0}}, "ewc": {"strength": 50.0}, "l2": {"strength": 2.0}}


def episodes() -> Stream:
    """Two experiences of two-way episodes on digits, a task each."""
    data = [streams.episodes("digits", ways=2, shots=3, queries=2, train_episodes=12, seed=seed)[0].data["train"] for seed in (1, 2)]
    tasks = [streams.Task(name, size=2) for name in ("first", "second")]
    pieces: list[Any] = []
    for part, task in zip(data, tasks, strict=True):
        assert isinstance(part, Data)
        pieces.append((replace(part, tasks=(task,), targets={task.name: next(iter(part.targets.values()))}), (task,)))
    return stream_of(pieces, tuple(tasks), features=64)


def network(stream: Stream, *layers: nn.Module) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(nn.Sequential(nn.Flatten(), nn.Linear(64, 7), *layers, nn.Tanh()), Heads(7, stream.tasks)).double()


def trained(learner: Plugin, *plugins: Plugin, model: Callable[[Stream], Any] = network, **options: Any) -> dict[str, Tensor]:
    stream = episodes()
    options = {"batch_size": 4, "seed": 3, "evaluate": "never"} | options
    return final(Engine(model(stream), sgd(lr=0.1, momentum=0.0), [learner, *plugins], **options), stream)[0]


@pytest.fixture(autouse=True)
def _in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of digits are of single precision."""
    take = streams.TensorSource.take

    def double(self: Any, index: Tensor) -> Any:
        x, columns = take(self, index)
        return x.double(), columns

    monkeypatch.setattr(streams.TensorSource, "take", double)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "options",
    [{}, {"chunk": 3}, {"order": 1}, {"rule": "adam"}, {"plastic": ("heads.*",)}, {"steps": 1, "query": "*"}],
    ids=["all", "chunks", "first order", "adam", "plastic heads", "all rows"],
)
@pytest.mark.parametrize("learner", [MAML, MetaSGD])
def test_at_once_is_one_by_one(learner: Any, options: dict[str, Any]) -> None:
    options = {"steps": 3, "rate": 0.2} | options
    slow = trained(learner(**options, executor="loop"))
    same(slow, trained(learner(**options, executor="vmap")))
    same(slow, trained(learner(**options)))
    if options.get("order", 2) == 2:
        same(slow, trained(learner(**{k: v for k, v in options.items() if k != "chunk"}, recompute=True)))
        first = trained(learner(**options | {"order": 1}))
        assert max(float((slow[name] - value).abs().max()) for name, value in first.items()) > 1e-4


@pytest.mark.parametrize("name", VMAPPABLE)
def test_a_plugin_that_says_so_is_the_same_at_once(name: str) -> None:
    def beside() -> list[Plugin]:
        return [registry.create(name, OPTIONS.get(name, {}))]

    slow = trained(MAML(steps=2, rate=0.2, executor="loop"), *beside())
    same(slow, trained(MAML(steps=2, rate=0.2, executor="vmap"), *beside()))


def test_who_says_so() -> None:
    assert VMAPPABLE == [
        "constant_weighting", "dwa", "ewc", "feature_distillation", "imtl_l", "l2", "lwf", "mas", "si", "soft_sharing",
        "task_relationships", "uncertainty_weighting",
    ]  # fmt: skip


def reason(*plugins: Plugin, model: Callable[[Stream], Any] = network, ask: bool = False, **options: Any) -> str | None:
    found: list[str | None] = []
    look = probe("look", after_step=lambda step: found.append(why_one_by_one(step.run, step.batch, ask=ask)))
    trained(MAML(steps=1), *plugins, look, model=model, **options)
    assert len(set(found)) == 1
    return found[0]


def test_why_episodes_are_gone_through_one_by_one() -> None:
    assert reason() is None
    assert reason(UncertaintyWeighting()) is None
    assert "odd may read or do what differs between episodes" in str(reason(probe("odd", collect_terms=lambda step: {})))
    assert reason(model=lambda s: network(s, nn.BatchNorm1d(7))) == "the model has buffers, such as running statistics"
    assert reason(batch_size=1) == "a batch has one episode"
    convolution = lambda s: network(s, nn.Unflatten(1, (1, 7)), nn.Conv1d(1, 1, 1), nn.Flatten())  # noqa: E731
    assert reason(model=convolution) == "the model has convolutions, of which a batch is no faster"
    assert reason(model=convolution, ask=True) is None


def test_an_operation_that_torch_cannot_batch_is_named_once_and_nothing_is_lost() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum().item() > 1e9 else 2 * x

    odd = lambda s: network(s, Odd())  # noqa: E731
    slow = trained(MAML(steps=2, rate=0.2, executor="loop"), model=odd)
    with pytest.warns(UserWarning, match="one by one from here on, because torch cannot batch them: vmap: It looks like you're") as caught:
        found = trained(MAML(steps=2, rate=0.2), model=odd)
    assert len(caught) == 1
    for name, value in slow.items():
        assert torch.equal(found[name], value)


def test_it_is_explained() -> None:
    assert "episodes of a batch: at once where the model and the batch allow it" in Engine(network(episodes()), sgd(), [MAML()]).explain()
    odd = probe("odd", collect_terms=lambda step: {})
    assert "episodes of a batch: one by one, because of odd" in Engine(network(episodes()), sgd(), [MAML(), odd]).explain()


def test_dropout_draws_the_same_masks_for_every_episode_either_way() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain, dropped = (trained(MAML(steps=1), model=lambda s, p=p: network(s, nn.Dropout(p))) for p in (0.0, 0.5))
        again = trained(MAML(steps=1), model=lambda s: network(s, nn.Dropout(0.5)))
    assert any(not torch.equal(dropped[name], value) for name, value in plain.items())
    same(dropped, again)


def test_networks_of_tasks_of_their_own() -> None:
    slow, fast = (trained(MAML(steps=1, executor=e), SeparateNetworks()) for e in ("loop", "vmap"))  # type: ignore[arg-type]
    same(slow, fast)
