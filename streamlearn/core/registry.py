"""Which plugins are installed: read from entry points, imported only when named.

Installed is not active. A plugin acts when a strategy lists it; until then it is a name, a distribution and a reference.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from streamlearn.errors import ConfigurationError, UnknownNameError

if TYPE_CHECKING:
    from streamlearn.core.plugin import Plugin

__all__ = ["GROUP", "InstalledPlugin", "create", "distributions_of", "installed", "load"]

GROUP = "streamlearn.plugins"


class InstalledPlugin(NamedTuple):
    """What the entry point of a plugin tells without importing it."""

    name: str
    distribution: str
    version: str
    reference: str

    @property
    def family(self) -> str:
        """The folder of a built-in plugin, such as ``regularization``; ``contributed`` for all others."""
        parts = self.reference.split(":")[0].split(".")
        return parts[2] if parts[:2] == ["streamlearn", "plugins"] and len(parts) > 3 else "contributed"


def _entry_points() -> list[importlib.metadata.EntryPoint]:
    return sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name)


def installed() -> list[InstalledPlugin]:
    """Every installed plugin, by name; imports none of them."""
    return [
        InstalledPlugin(entry.name, entry.dist.name if entry.dist else "?", entry.dist.version if entry.dist else "?", entry.value)
        for entry in _entry_points()
    ]


def load(name: str) -> type[Plugin]:
    """The class of the plugin called ``name``.

    Raises:
        UnknownNameError: no installed plugin has this name; the nearest is offered.
        ConfigurationError: it is there but cannot be imported; says which distribution and why.
    """
    wanted = name.replace("-", "_").lower()
    found = [entry for entry in _entry_points() if entry.name == wanted]
    if not found:
        raise UnknownNameError("plugin", name, [entry.name for entry in _entry_points()])
    if len(found) > 1:
        owners = ", ".join(entry.dist.name if entry.dist else "?" for entry in found)
        raise ConfigurationError(f"plugin {wanted!r} is offered by {len(found)} distributions ({owners}): uninstall all but one")
    entry = found[0]
    try:
        return entry.load()  # type: ignore[no-any-return]
    except (ImportError, AttributeError) as error:
        owner = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"
        raise ConfigurationError(f"plugin {wanted!r} of {owner} cannot be imported from {entry.value!r}: {error}") from error


def create(name: str, options: Mapping[str, Any]) -> Plugin:
    """The plugin called ``name`` with ``options``; see `load` and `Plugin` for the errors."""
    return load(name)(**options)


def distributions_of(plugins: Sequence[Plugin]) -> dict[str, str]:
    """By the name of each plugin, the distribution and version that brought it; a class of the user's own script belongs to none."""
    return {plugin.name: _owner(type(plugin).__module__.split(".")[0]) for plugin in plugins}


@functools.cache  # reading what is installed takes longer than a hundred small steps; what is imported does not change any more
def _owner(package: str) -> str:
    """The distribution and version that registered plugins of ``package``, empty if none did."""
    for entry in _entry_points():
        if entry.dist and entry.value.split(".")[0].split(":")[0] == package:
            return f"{entry.dist.name} {entry.dist.version}"
    return ""
