from __future__ import annotations

import importlib.metadata
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from streamlearn.core import registry
from streamlearn.errors import ConfigurationError, UnknownNameError
from streamlearn.plugins import EWC


def test_built_ins_come_through_entry_points() -> None:
    assert {"ewc", "joint", "lwf", "multi_head", "replay"} <= {plugin.name for plugin in registry.installed()}
    assert registry.load("EWC") is EWC
    assert repr(registry.create("multi-head", {"layer": "x"})) == "MultiHead(layer='x')"
    assert registry.distributions_of([EWC()])["ewc"].startswith("streamlearn ")
    assert next(plugin.family for plugin in registry.installed() if plugin.name == "lwf") == "distillation"


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown plugin 'ecw': did you mean 'ewc'\? \(known: .*replay"):
        registry.load("ecw")


def test_a_broken_entry_point_does_not_break_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [
        EntryPoint("broken", "no_such_module_anywhere:Plugin", registry.GROUP),
        EntryPoint("nameless", "streamlearn.plugins:NoSuchPlugin", registry.GROUP),
        EntryPoint("ewc", "streamlearn.plugins:EWC", registry.GROUP),
        EntryPoint("twice", "streamlearn.plugins:EWC", registry.GROUP),
        EntryPoint("twice", "streamlearn.plugins:LwF", registry.GROUP),
    ]

    def entry_points(**selected: Any) -> list[EntryPoint]:
        assert selected == {"group": registry.GROUP}
        return given

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    assert registry.load("ewc") is EWC
    assert len(registry.installed()) == 5
    with pytest.raises(
        ConfigurationError, match="plugin 'broken' of an unknown distribution cannot be imported from 'no_such_module_anywhere:Plugin'"
    ):
        registry.load("broken")
    with pytest.raises(ConfigurationError, match=r"plugin 'nameless' .* cannot be imported"):
        registry.load("nameless")
    with pytest.raises(ConfigurationError, match=r"plugin 'twice' is offered by 2 distributions .*: uninstall all but one"):
        registry.load("twice")
