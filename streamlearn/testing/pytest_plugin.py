"""Fixtures for tests of plugins. Only pytest is imported when pytest loads this; the rest when a fixture is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from streamlearn.core.plugin import Plugin
    from streamlearn.streams import Stream
    from streamlearn.testing.spy import Spy

__all__ = ["isolated_registry", "spy_plugin", "tiny_stream"]


@pytest.fixture
def tiny_stream() -> Callable[..., Stream]:
    """`streamlearn.testing.tiny_stream`: ``tiny_stream("task_incremental")`` is a stream of a fraction of a second."""
    from streamlearn.testing.doubles import tiny_stream

    return tiny_stream


@pytest.fixture
def spy_plugin() -> Spy:
    """A `streamlearn.testing.Spy`: list it, and ``spy_plugin.calls`` tells which hooks were called where."""
    from streamlearn.testing.spy import Spy

    return Spy()


@pytest.fixture
def isolated_registry(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Plugin]], None]:
    """No plugin is installed but those that the test registers, as in ``isolated_registry(MyPlugin)``."""
    import importlib.metadata

    from streamlearn.core import registry

    true = importlib.metadata.entry_points
    given: dict[str, type[Plugin]] = {}

    class Entry(importlib.metadata.EntryPoint):
        def load(self) -> Any:
            return given[self.name]

    def entry_points(**selected: Any) -> Any:
        if selected.get("group") != registry.GROUP:
            return true(**selected)
        found = [Entry(name, f"{cls.__module__}:{cls.__qualname__}", registry.GROUP) for name, cls in given.items()]
        return importlib.metadata.EntryPoints(found).select(**selected)

    def register(cls: type[Plugin]) -> None:
        given[cls.info.name] = cls

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    return register
