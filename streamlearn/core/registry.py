"""Which plugins are installed: read from entry points, imported only when named.

Installed is not active. A plugin acts when a strategy lists it; until then it is a name, a distribution and a reference.

A plugin is named as ``name``, or as ``name@distribution`` where several distributions offer the name. The environment variable
``STREAMLEARN_PLUGINS`` restricts what may be loaded by name to the names and distributions that it lists, separated by commas:
unset, everything may be loaded; set and empty, nothing. A class that a script imports itself is the script's own affair.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from streamlearn.errors import CheckpointError, ConfigurationError, UnknownNameError

if TYPE_CHECKING:
    from streamlearn.core.examination import Examined
    from streamlearn.core.plugin import Plugin

__all__ = [
    "ALLOWED",
    "GROUP",
    "InstalledPlugin",
    "create",
    "distributions_of",
    "examine",
    "find",
    "installed",
    "is_allowed",
    "load",
    "named",
    "require_installed",
    "unknown_words",
    "unreadable",
]

GROUP = "streamlearn.plugins"
ALLOWED = "STREAMLEARN_PLUGINS"
"""The environment variable that restricts what may be loaded by name."""


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

    @property
    def address(self) -> str:
        """The name that is its own even where another distribution offers the same: ``name@distribution``."""
        return f"{self.name}@{self.distribution}"

    @property
    def plain(self) -> str:
        """The name as it is compared: ``-`` and ``_`` are the same, and so are upper and lower case."""
        return _plain(self.name)

    def answers_to(self, word: str) -> bool:
        """Whether ``word`` is its name, its distribution or its address.

        >>> plugin = InstalledPlugin("l2_anchor", "acme-plugins", "1.0", "acme:L2Anchor")
        >>> [plugin.answers_to(word) for word in ("l2-anchor", "Acme_Plugins", "l2_anchor@acme-plugins", "l2_anchor@other")]
        [True, True, True, False]
        """
        name, at, owner = word.partition("@")
        if at:
            return _plain(name) == _plain(self.name) and _plain(owner) == _plain(self.distribution)
        return _plain(word) in (_plain(self.name), _plain(self.distribution))


def _plain(name: str) -> str:
    """Distributions and plugins are the same under any of ``-``, ``_`` and ``.``, and in any case (PEP 503)."""
    return re.sub(r"[-_.]+", "_", name.strip()).lower()


def _found() -> list[tuple[InstalledPlugin, importlib.metadata.EntryPoint]]:
    try:
        entries = list(importlib.metadata.entry_points(group=GROUP))
    except Exception:  # noqa: BLE001 (one damaged entry_points.txt spoils the list of all: then they are read one by one)
        whole = [dist for dist in importlib.metadata.distributions() if _damage(dist) is None]
        entries = [entry for dist in whole for entry in dist.entry_points.select(group=GROUP)]
    owners: dict[int, tuple[str, str]] = {}  # to read the metadata of a distribution takes as long as all else
    for entry in entries:
        if entry.dist is not None and id(entry.dist) not in owners:
            owners[id(entry.dist)] = (entry.dist.name or "?", entry.dist.version or "?")
    told = [(InstalledPlugin(entry.name, *owners.get(id(entry.dist), ("?", "?")), entry.value), entry) for entry in entries]
    return sorted(told, key=lambda pair: pair[0])


def _damage(dist: importlib.metadata.Distribution) -> Exception | None:
    try:
        _ = dist.name, dist.entry_points
    except Exception as error:  # noqa: BLE001 (whatever stands in the file)
        return error
    return None


def unreadable() -> list[tuple[str, str]]:
    """Installed distributions whose entry points cannot be read: where they lie, and why."""
    found = [(dist, _damage(dist)) for dist in importlib.metadata.distributions()]
    return [(str(getattr(dist, "_path", "an unknown place")), f"{type(error).__name__}: {error}") for dist, error in found if error]


def installed() -> list[InstalledPlugin]:
    """Every installed plugin, by name; imports none of them."""
    return [plugin for plugin, _ in _found()]


def is_allowed(plugin: InstalledPlugin) -> bool:
    """Whether ``STREAMLEARN_PLUGINS`` lets ``plugin`` be loaded."""
    listed = os.environ.get(ALLOWED)
    return listed is None or any(plugin.answers_to(word) for word in listed.split(",") if word.strip())


def unknown_words(listed: str) -> list[str]:
    """Those of some names, distributions and addresses, separated by commas, to which no installed plugin answers."""
    found = installed()
    return [word.strip() for word in listed.split(",") if word.strip() and not any(plugin.answers_to(word) for plugin in found)]


def named(name: str) -> list[InstalledPlugin]:
    """The installed plugins that ``name`` or ``name@distribution`` may mean: usually one."""
    word, at, _ = name.partition("@")
    return [plugin for plugin in installed() if (plugin.answers_to(name) if at else plugin.plain == _plain(word))]


def find(name: str) -> InstalledPlugin:
    """The one plugin called ``name``, not yet imported.

    Args:
        name: a name, or ``name@distribution``; ``-`` and ``_`` are the same, and so are upper and lower case.

    Raises:
        UnknownNameError: no installed plugin has this name; the nearest is offered.
        ConfigurationError: several distributions offer it, or ``STREAMLEARN_PLUGINS`` does not let it be loaded.
    """
    found = named(name)
    if not found:
        same = named(name.partition("@")[0])  # the name is right, the distribution is not
        raise UnknownNameError("plugin", name, [plugin.address for plugin in same] or {plugin.name for plugin in installed()})
    allowed = [plugin for plugin in found if is_allowed(plugin)]
    if not allowed:
        plugin = found[0]
        raise ConfigurationError(
            f"plugin {plugin.name!r} of {_owner_text(plugin)} may not be loaded: the environment variable {ALLOWED} allows only "
            f"{os.environ.get(ALLOWED)!r}; add {plugin.name} to it, or unset it"
        )
    if len(allowed) > 1:
        raise ConfigurationError(_ambiguous(allowed))
    return allowed[0]


def _ambiguous(found: Sequence[InstalledPlugin]) -> str:
    name, addresses = found[0].name, sorted({plugin.address for plugin in found})
    if len(addresses) < len(found):
        return f"plugin {name!r} is registered {len(found)} times by {_owner_text(found[0])}: install it again, or tell its authors"
    return f"plugin {name!r} is offered by {len(found)} distributions: write {' or '.join(addresses)}, or uninstall all but one"


def _owner_text(plugin: InstalledPlugin) -> str:
    return "an unknown distribution" if plugin.distribution == "?" else f"{plugin.distribution} {plugin.version}"


def load(name: str) -> type[Plugin]:
    """The class of the plugin called ``name``; see `find` for the forms of a name.

    Raises:
        UnknownNameError: as `find`.
        ConfigurationError: as `find`; or it is there but cannot be imported, or is no plugin: says which distribution, why, and the cure.
    """
    from streamlearn.core.examination import imported

    plugin = find(name)
    cls, problem = imported(plugin, next(entry for other, entry in _found() if other == plugin))
    if problem is not None or cls is None:
        raise ConfigurationError(f"plugin {plugin.name!r} of {_owner_text(plugin)} {problem}")
    return cls


def create(name: str, options: Mapping[str, Any]) -> Plugin:
    """The plugin called ``name`` with ``options``; see `load` and `Plugin` for the errors."""
    return load(name)(**options)


def examine() -> list[Examined]:
    """Load every installed plugin that may be loaded, one by one, and tell what is wrong with each; raises nothing."""
    from streamlearn.core.examination import examined

    return examined(_found())


def distributions_of(plugins: Sequence[Plugin]) -> dict[str, str]:
    """By the name of each plugin, the distribution and version that brought it; a class of the user's own script belongs to none."""
    return {plugin.name: _owner(type(plugin).__module__, type(plugin).__qualname__, plugin.info.name) for plugin in plugins}


@functools.cache  # reading what is installed takes longer than a hundred small steps; what is imported does not change any more
def _owner(module: str, qualname: str, name: str) -> str:
    """The distribution and version that registered a class, empty if none did.

    Distributions may share a top package, so the one that registers this very class is asked first, then the one that registers its
    name from the same top package (from where it re-exports it), then any other of that package.
    """
    top = module.partition(".")[0]
    ours = [plugin for plugin in installed() if plugin.distribution != "?" and re.split(r"[.:]", plugin.reference)[0] == top]
    ranked = sorted(ours, key=lambda plugin: (plugin.reference != f"{module}:{qualname}", plugin.name != name))
    return _owner_text(ranked[0]) if ranked else ""


def require_installed(recorded: Mapping[str, str], where: object) -> None:
    """Refuse to go on with a run when a distribution that brought one of its plugins is no longer installed.

    Args:
        recorded: as `distributions_of` gave it when the run began.
        where: what the message calls the run.

    Raises:
        CheckpointError: one is missing; names it, and the line that brings it back.
    """
    for plugin, owner in recorded.items():
        distribution, _, version = owner.rpartition(" ")
        try:
            _ = distribution and importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            raise CheckpointError(
                f"{where} was made with plugin {plugin!r} of {owner}, which is not installed any more: "
                f"run  pip install {distribution}=={version}"
            ) from None
