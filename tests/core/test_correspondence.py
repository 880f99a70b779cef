from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from streamlearn import Engine
from streamlearn.core.correspondence import checked_patterns, corresponding, require_layers, stacked
from streamlearn.models import Heads, Model, mlp
from streamlearn.plugins import EWC, MultiHead
from streamlearn.plugins.regularization.soft_sharing import SoftSharing
from streamlearn.plugins.sharing.cross_stitch import CrossStitch
from streamlearn.plugins.sharing.hat import HAT
from streamlearn.plugins.sharing.separate_networks import SeparateNetworks
from streamlearn.plugins.sharing.sluice import Sluice
from streamlearn.streams import Task
from streamlearn.streams.data import Data, Target
from tests.core.support import Spy, blobs, growing_stream, net, separate_task_stream, sgd, stream_of, two_task_stream


def found_in(stream: Any, *plugins: Any, patterns: Any = None, dims: int = 0, model: Any = None) -> dict[str, tuple[str, ...]]:
    """The layers of the model that ``plugins`` make, by name, with their tasks."""
    spy = Spy()
    Engine(model or mlp(stream, (4,)), sgd(), [*plugins, spy], batch_size=8).run(stream)
    run = spy.run
    return {layer.name: layer.tasks for layer in corresponding(run.parameters(), run.tasks, patterns, dims)}


def in_turn() -> Any:
    """Task "a" and then task "b"."""
    source = blobs(48, 6)
    tasks = (Task("a", size=6), Task("b", size=6))
    pieces = [(Data(source, torch.arange(24 * i, 24 * i + 24), (t,), {t.name: Target("y")}), (t,)) for i, t in enumerate(tasks)]
    return stream_of(pieces, tasks)


def test_towers_come_before_heads_whoever_made_them() -> None:
    stream = separate_task_stream(1)  # heads of equal shape
    networks = {f"heads.networks.{{task}}.0.{which}": ("a", "b") for which in ("weight", "bias")}
    assert found_in(stream, SeparateNetworks()) == networks
    assert found_in(stream, SeparateNetworks(), dims=2) == {"heads.networks.{task}.0.weight": ("a", "b")}
    for architecture in (CrossStitch(), Sluice()):
        assert set(found_in(stream, architecture)) == {f"heads.towers.{{task}}.0.0.{which}" for which in ("weight", "bias")}
    heads = {f"heads.by_task.{{task}}.{which}": ("a", "b") for which in ("weight", "bias")}
    assert found_in(stream) == found_in(stream, EWC()) == heads
    assert found_in(in_turn(), HAT()) == heads, "gates are no towers"
    assert found_in(stream, MultiHead(layer="out"), model=net()) == heads


def test_what_stands_around_the_heads_hides_nothing() -> None:
    named = {f"heads.inner.networks.{task}.0.weight": torch.zeros(2, 3) for task in ("a", "b")}
    assert corresponding(named, ["a", "b"])[0].parameters == tuple(named)
    stream = growing_stream((2,), known=True)
    assert found_in(stream, SeparateNetworks()) == {f"heads.networks.{{task}}.0.{w}": ("t", "other") for w in ("weight", "bias")}


def test_only_equal_shapes_and_only_the_tasks_that_are_asked_for() -> None:
    heads = {f"heads.by_task.{task}.weight": torch.zeros(size, 4) for task, size in zip("abcde", (3, 2, 3, 2, 7), strict=True)}
    layers = corresponding(heads, "abcde")
    assert [layer.tasks for layer in layers] == [("a", "c"), ("b", "d")]
    assert {layer.name for layer in layers} == {"heads.by_task.{task}.weight"}
    assert [layer.tasks for layer in corresponding(heads, "abc")] == [("a", "c")]
    assert corresponding(heads, "a") == corresponding(heads, "") == corresponding({}, "ab") == ()


@pytest.mark.parametrize("tasks", [("0", "1"), ("weight", "networks"), ("a", "a.b"), ("t.0", "t.1"), ("train", "keys")])
def test_names_of_tasks_that_are_also_other_things(tasks: tuple[str, str]) -> None:
    """Numbers, words of names, prefixes of each other, dots, and what no module container takes."""
    heads = Heads(3, [Task(task, size=2) for task in tasks])
    heads.networks = nn.ModuleDict({key: nn.Sequential(nn.Linear(2, 3)) for key in heads.by_task})  # type: ignore[assignment]
    named = dict(Model(nn.Identity(), heads).named_parameters())
    layers = corresponding(named, tasks)
    assert {layer.name for layer in layers} == {"heads.networks.{task}.0.weight", "heads.networks.{task}.0.bias"}
    assert layers[0].tasks == tasks
    assert torch.equal(stacked(layers[0], named), torch.stack([named[name].flatten() for name in layers[0].parameters]))


def test_patterns() -> None:
    named = {f"encoder.{place}.{task}.{which}.weight": torch.zeros(2, 2) for place in ("own", "more") for task in "ab" for which in "xy"}
    assert corresponding(named, "ab") == ()
    assert [layer.name for layer in corresponding(named, "ab", ("encoder.own.{task}.*",))] == [
        f"encoder.own.{{task}}.{which}.weight" for which in "xy"
    ]
    assert [layer.name for layer in corresponding(named, "ab", ("encoder.own.{task}.x*", "*more.{task}.y.weight"))] == [
        "encoder.own.{task}.x.weight",
        "encoder.more.{task}.y.weight",
    ]
    assert corresponding(named, "ab", ("own.{task}.*",)) == (), "a pattern is about whole names"
    for wrong in ((), ("encoder.*",), ("{task}.{task}",)):
        with pytest.raises(ValueError, match=r"has \{task\} once"):
            checked_patterns(wrong)


def test_a_stream_in_which_nothing_ever_corresponds_is_refused_before_anything_is_trained() -> None:
    spy = Spy()
    unequal, equal_later = two_task_stream(), growing_stream((2, 3))  # 6 and 3 classes; 2, then 3, and another of 3
    Engine(mlp(unequal, (4,)), sgd(), [spy]).run(unequal)
    with pytest.raises(Exception, match=r"plugin me: no parameters of towers, .* correspond across the tasks a, b"):
        require_layers("me", spy.run, None)
    with pytest.raises(Exception, match=r"no parameters=\['encoder.{task}.\*'\] correspond"):
        require_layers("me", spy.run, ("encoder.{task}.*",))
    model = mlp(equal_later, (4,))
    before = torch.random.get_rng_state()
    Engine(model, sgd(), [SoftSharing()], batch_size=8).run(equal_later)
    assert torch.equal(before, torch.random.get_rng_state())
    with pytest.raises(Exception, match="no parameters"):
        Engine(mlp(unequal, (4,)), sgd(), [SoftSharing()]).run(unequal)
