from __future__ import annotations

import inspect
from typing import Any

import pytest
from pydantic import Field, ValidationError

from streamlearn import Engine, Plugin, PluginConfig, PluginInfo
from streamlearn.core.plugin import Passes
from streamlearn.errors import CheckpointError, ConfigurationError, UnknownNameError
from streamlearn.plugins import EWC, LwF
from tests.core.support import class_stream, net, sgd


class Toy(Plugin):
    info = PluginInfo("toy", "test", "A toy.", "none", passes=lambda plugin: Passes(forward=plugin.config.looks))

    class Config(PluginConfig):
        looks: int = Field(1, ge=1)
        kind: str = "plain"


def test_options_are_typed_frozen_and_shown() -> None:
    toy = Toy(looks=3)
    assert (toy.name, toy.config.looks, toy.config.kind) == ("toy", 3, "plain")
    assert repr(Toy(kind="x", name="mine")) == "Toy(kind='x', name='mine')"
    assert list(inspect.signature(Toy).parameters) == ["looks", "kind", "name"]
    with pytest.raises(ValidationError):
        toy.config.looks = 4
    with pytest.raises(UnknownNameError, match=r"unknown option of plugin toy 'loks': did you mean 'looks'\? \(known: kind, looks, name\)"):
        Toy(loks=1)
    with pytest.raises(ConfigurationError, match=r"plugin toy: option 'looks' is 'many', but .*; see 'streamlearn plugins info toy'"):
        Toy(looks="many")


def test_passes_may_depend_on_the_options() -> None:
    assert Toy(looks=4).passes == Passes(forward=4)
    assert LwF().passes == Passes(teachers=frozenset({"previous"}))


def test_a_plugin_without_state_refuses_one() -> None:
    toy = Toy()
    assert toy.state_dict() == {}
    toy.load_state_dict({})
    with pytest.raises(ConfigurationError, match="plugin toy keeps no state, but the checkpoint holds a, b for it"):
        toy.load_state_dict({"b": 1, "a": 2})


def test_state_that_cannot_be_saved_is_refused_with_plugin_and_path(tmp_path: Any) -> None:
    class Odd(Plugin):
        info = PluginInfo("odd", "test", "s", "r")

        def state_dict(self) -> dict[str, Any]:
            return {"inner": [object()]}

    with pytest.raises(CheckpointError, match="the state at 'plugins/odd/inner/0' is a object: keep tensors, numbers"):
        Engine(net(), sgd(), [Odd()]).run(class_stream(), output=tmp_path)


def test_state_is_what_the_checkpoint_kept() -> None:
    ewc, other = EWC(strength=2), EWC(strength=2)
    Engine(net(), sgd(), [ewc]).run(class_stream())
    other.load_state_dict(ewc.state_dict())
    assert other.state_dict().keys() == ewc.state_dict().keys() == {"importance", "anchor", "constant"}
    assert all((other.state_dict()["importance"][n] == v).all() for n, v in ewc.state_dict()["importance"].items())
