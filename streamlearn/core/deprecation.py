"""How the hook contract changes without breaking plugins that were written for it.

- A hook that is *added* breaks nobody: it is declared with its release, and no version rises.
- A hook or an argument that is *renamed* goes into `RENAMED`. Its old name is accepted for two minor releases, with a warning that
  names the plugin, the old name, the new one and the release in which the old one ends; from that release on it is refused by the
  same facts. A plugin for several releases may implement both names: the new one acts, and nothing is warned of.
- A hook whose *meaning changes*, or that goes, raises ``HOOK_API_VERSION``; ``OLDEST_HOOK_API_VERSION`` follows when the versions
  before can no longer be served.

Old names are looked up when the plugins of a strategy are composed. A training step never meets one.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import streamlearn
from streamlearn.core.hooks import HOOK_API_VERSION, HOOKS, OLDEST_HOOK_API_VERSION

__all__ = [
    "RENAMED",
    "Renamed",
    "StreamlearnDeprecationWarning",
    "api_problem",
    "hooks_of",
    "old_argument",
    "old_arguments",
    "old_hook",
    "warn_of_old_names",
]

_WINDOW = 2  # minor releases


class StreamlearnDeprecationWarning(FutureWarning):
    """A name that a plugin uses will no longer be understood.

    A ``FutureWarning``, which Python shows by default: who runs a plugin is rarely who wrote it, and must hear of it in time.
    """


@dataclass(frozen=True, slots=True)
class Renamed:
    """A hook, or an argument of one, has got another name.

    Args:
        old: the former name.
        new: the present one.
        since: the release that renamed it, as ``"major.minor"``.
        hook: of an argument, the present name of its hook; ``None`` for a hook.

    Example:
        >>> Renamed("collect_losses", "collect_terms", since="0.3").ends
        '0.5'
    """

    old: str
    new: str
    since: str
    hook: str | None = None

    @property
    def ends(self) -> str:
        """The first release that no longer understands the old name."""
        major, minor = _numbers(self.since)
        return f"{major}.{minor + _WINDOW}"

    @property
    def has_ended(self) -> bool:
        """Whether this release is that one, or a later one."""
        return _numbers(streamlearn.__version__) >= _numbers(self.ends)

    def told_of(self, plugin: str) -> str:
        """What the author of ``plugin`` has to do, and until when."""
        what = f"the hook {self.old!r}" if self.hook is None else f"the argument {self.old!r} of the hook {self.hook!r}"
        state = "is no longer understood" if self.has_ended else f"will not be understood from streamlearn {self.ends} on"
        return (
            f"plugin {plugin!r} implements {what}, which has been called {self.new!r} since streamlearn {self.since} and {state}: rename it"
        )


RENAMED: tuple[Renamed, ...] = ()
"""Every name that has changed. An entry stays after its end, so that the refusal can still say what the new name is."""


def _numbers(release: str) -> tuple[int, int]:
    major, minor, *_ = release.split(".")
    return int(major), int(minor)


def old_hook(name: str) -> Renamed | None:
    """What became of a hook that was once called ``name``."""
    return next((renamed for renamed in RENAMED if renamed.hook is None and renamed.old == name), None)


def old_argument(hook: str, name: str) -> Renamed | None:
    """What became of an argument of ``hook`` that was once called ``name``."""
    return next((renamed for renamed in RENAMED if renamed.hook == hook and renamed.old == name), None)


def old_arguments(hook: str) -> dict[str, Renamed]:
    """The former names of arguments of ``hook`` that are still understood."""
    return {renamed.old: renamed for renamed in RENAMED if renamed.hook == hook and not renamed.has_ended}


def hooks_of(cls: type) -> dict[str, str]:
    """The hooks that a plugin class implements, in the order of the contract, each with the name of the method that does.

    Example:
        >>> from streamlearn.plugins import EWC
        >>> hooks_of(EWC)
        {'after_experience': 'after_experience', 'collect_terms': 'collect_terms'}
    """
    found = {
        renamed.new: renamed.old for renamed in RENAMED if renamed.hook is None and not renamed.has_ended and _marked(cls, renamed.old)
    }
    found |= {hook: hook for hook in HOOKS if _marked(cls, hook)}
    return {hook: found[hook] for hook in HOOKS if hook in found}


def _marked(cls: type, name: str) -> bool:
    return hasattr(getattr(cls, name, None), "streamlearn_impl")


def warn_of_old_names(plugin: str, cls: type) -> None:
    """Warn of every old name that the class of ``plugin`` uses and that is still understood.

    The warning points at the method that is to be changed, not at whoever composed the plugins.
    """
    for renamed, method in _used(cls):
        module = sys.modules.get(method.__module__)
        warnings.warn_explicit(
            renamed.told_of(plugin),
            StreamlearnDeprecationWarning,
            method.__code__.co_filename,
            method.__code__.co_firstlineno,
            method.__module__,
            vars(module).setdefault("__warningregistry__", {}) if module is not None else None,
        )


def _used(cls: type) -> Iterator[tuple[Renamed, Any]]:
    for hook, name in hooks_of(cls).items():
        method: Any = inspect.unwrap(getattr(cls, name))  # as pluggy does
        if name != hook and (renamed := old_hook(name)) is not None:
            yield renamed, method
        arguments = method.__code__.co_varnames[: method.__code__.co_argcount]
        yield from ((renamed, method) for old, renamed in old_arguments(hook).items() if old in arguments)


def api_problem(api: Any, distribution: str = "") -> tuple[str, str] | None:
    """Why a plugin written for version ``api`` of the hooks is refused, and the cure; ``None`` when it is accepted.

    Args:
        api: ``info.api``.
        distribution: name of the distribution that brought the plugin, if one did.

    Example:
        >>> api_problem(1)
        >>> api_problem(2)
        ('was written for version 2 of the hooks, this streamlearn has version 1', 'run  pip install --upgrade streamlearn')
    """
    if not isinstance(api, int) or isinstance(api, bool):
        return f"has info.api = {api!r}, which is no version of the hooks", f"write a whole number, or leave it out for {HOOK_API_VERSION}"
    if api > HOOK_API_VERSION:
        told = f"was written for version {api} of the hooks, this streamlearn has version {HOOK_API_VERSION}"
        return told, "run  pip install --upgrade streamlearn"
    if api < OLDEST_HOOK_API_VERSION:
        told = f"was written for version {api} of the hooks, this streamlearn accepts none older than {OLDEST_HOOK_API_VERSION}"
        return told, f"run  pip install --upgrade {distribution}" if distribution else "rewrite it after docs/hooks.md"
    return None
