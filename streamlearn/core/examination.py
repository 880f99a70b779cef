"""What can be wrong with an installed plugin: the causes, and a cure for each. Nothing here raises; one broken plugin hides no other."""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from streamlearn.core.deprecation import api_problem
from streamlearn.core.plugin import Plugin, PluginInfo
from streamlearn.core.registry import InstalledPlugin, is_allowed
from streamlearn.errors import CompositionError, ConfigurationError, MissingExtraError

__all__ = ["Examined", "Problem", "State", "examined", "imported"]

State = Literal["ok", "broken", "not allowed"]
_WORDS = ("provides", "requires", "conflicts", "before", "after", "needs")


class Problem(NamedTuple):
    """What is wrong, and what to do."""

    cause: str
    cure: str

    def __str__(self) -> str:
        return f"{self.cause}: {self.cure}"


@dataclass(frozen=True, slots=True)
class Examined:
    """An installed plugin and what is wrong with it.

    Attributes:
        plugin: what its entry point tells.
        state: ``"ok"``, ``"broken"``, or ``"not allowed"`` by ``STREAMLEARN_PLUGINS``, in which case it was not loaded.
        problems: every reason why it is broken.
    """

    plugin: InstalledPlugin
    state: State
    problems: tuple[Problem, ...] = ()


def examined(found: Sequence[tuple[InstalledPlugin, importlib.metadata.EntryPoint]]) -> list[Examined]:
    """Load and judge each of ``found``; see `streamlearn.core.registry.examine`."""
    classes: dict[int, type[Plugin]] = {}
    problems: dict[int, list[Problem]] = {}
    allowed = [place for place, (plugin, _) in enumerate(found) if is_allowed(plugin)]
    for place in allowed:
        plugin, entry = found[place]
        cls, problem = imported(plugin, entry)
        problems[place] = [*_shared_name(plugin, [found[i][0] for i in allowed]), *([problem] if problem else [])]
        if cls is not None:
            classes[place] = cls
            problems[place] += _of_contract(plugin, cls)
    infos = {place: cls.info for place, cls in classes.items() if not _words_problems(cls.info)}
    for place, info in infos.items():
        built_in = found[place][0].distribution == "streamlearn"  # ours are not at fault when a stranger uses their words otherwise
        rivals = [other for i, other in infos.items() if not built_in or found[i][0].distribution == "streamlearn"]
        problems[place] += _of_words(info, list(infos.values()), rivals)
    return [
        Examined(plugin, "not allowed")
        if place not in problems
        else Examined(plugin, "broken" if problems[place] else "ok", tuple(problems[place]))
        for place, (plugin, _) in enumerate(found)
    ]


# ------------------------------------------------------------------------------------------------ loading


def imported(plugin: InstalledPlugin, entry: importlib.metadata.EntryPoint) -> tuple[type[Plugin] | None, Problem | None]:
    """The class behind an entry point, or why there is none."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a module prints when it is imported must not end up in our output
            cls = entry.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 (a stranger's module may raise anything, and must not take us with it)
        return None, _of_import(plugin, entry, error)
    if not (inspect.isclass(cls) and issubclass(cls, Plugin)):
        return None, Problem(f"is {cls!r}, which is no plugin", "let the entry point name a class derived from streamlearn.Plugin")
    info = getattr(cls, "info", None)
    if not isinstance(info, PluginInfo):
        return None, Problem(f"has {'no info' if info is None else f'info = {info!r}'}", "give the class  info = PluginInfo(...)")
    if info.name != plugin.name:
        return None, Problem(
            f"calls itself {info.name!r} in its info", f"rename one of the two: they must agree (the entry point says {plugin.name!r})"
        )
    return cls, None


def _of_import(plugin: InstalledPlugin, entry: importlib.metadata.EntryPoint, error: BaseException) -> Problem:
    first = str(error).partition("\n")[0]
    cause = f"cannot be imported from {plugin.reference!r} ({type(error).__name__}{f': {first}' if first else ''})"
    if isinstance(error, MissingExtraError):
        return Problem(f"needs the package {error.package!r}, which is not installed", f"run  pip install 'streamlearn[{error.extra}]'")
    again = f"run  pip install --upgrade --force-reinstall {plugin.distribution}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return Problem(cause, _line_for(error.name.split(".")[0], plugin, entry, again))
    if isinstance(error, ImportError) and (error.name or "").split(".")[0] == "streamlearn":
        return Problem(cause, "it was written for another release: run  pip install --upgrade streamlearn " + plugin.distribution)
    if isinstance(error, AttributeError) and ":" in plugin.reference:
        return Problem(cause, f"{again}, or tell its authors that the entry point names what is not there")
    return Problem(cause, f"{again}, or tell its authors")


def _line_for(package: str, plugin: InstalledPlugin, entry: importlib.metadata.EntryPoint, again: str) -> str:
    """The line that brings a missing package; through an extra of the distribution, if one of its extras names it."""
    if package == "streamlearn":
        return f"it was written for another release: run  pip install --upgrade streamlearn {plugin.distribution}"
    if package == re.split(r"[.:]", plugin.reference)[0]:
        return again
    for requirement in (entry.dist.requires or []) if entry.dist else []:
        name, extra = re.match(r"[\w.-]*", requirement), re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", requirement)
        if name and extra and re.sub(r"[-.]", "_", name[0]).lower() == package.lower():
            return f"run  pip install '{plugin.distribution}[{extra[1]}]'"
    return f"run  pip install {package}"


# ------------------------------------------------------------------------------------------------ judging


def _shared_name(plugin: InstalledPlugin, all_of_them: Sequence[InstalledPlugin]) -> list[Problem]:
    others = [other for other in all_of_them if other.plain == plugin.plain]
    owners = sorted({other.distribution for other in others} - {plugin.distribution})
    if owners:
        return [Problem(f"is offered by {', '.join(owners)} too", f"write {plugin.address} to mean this one, or uninstall all but one")]
    if len(others) > 1:
        return [Problem(f"is registered {len(others)} times by {plugin.distribution}", "install it again, or tell its authors")]
    return []


def _of_contract(plugin: InstalledPlugin, cls: type[Plugin]) -> Iterator[Problem]:
    from streamlearn.core.registration import implementations

    version = api_problem(cls.info.api, plugin.distribution)
    if version is not None:
        yield Problem(*version)
    try:
        shell = object.__new__(cls)  # hooks are looked up on the class: no option needs to be known
        shell.name = cls.info.name
        implementations([shell])
    except CompositionError as error:
        yield from (_as_problem(text, cls.info.name) for text in error.problems)
    except Exception as error:  # noqa: BLE001 (as above)
        yield Problem(f"cannot be registered ({type(error).__name__}: {error})", "tell its authors")
    yield from (Problem(text, f"write it as info.{field} = frozenset({{...}})") for field, text in _words_problems(cls.info))
    yield from _of_construction(plugin, cls)


def _as_problem(text: str, name: str) -> Problem:
    """A sentence of the composition, which begins with the plugin's name, as cause and cure."""
    cause, _, cure = text.removeprefix(f"{name}: ").removeprefix(f"plugin {name!r} ").partition("; ")
    if not cure:
        cause, _, cure = cause.rpartition(": ")
    return Problem(cause, cure) if cause else Problem(cure, "see docs/hooks.md")


def _of_construction(plugin: InstalledPlugin, cls: type[Plugin]) -> Iterator[Problem]:
    """Whether it can be made, if it needs no option: some ask for their dependencies only then."""
    try:
        arguments = inspect.signature(cls).parameters.values()
        asked = [p for p in arguments if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if not asked and not any(field.is_required() for field in cls.Config.model_fields.values()):
            cls()
    except MissingExtraError as error:
        yield Problem(f"needs the package {error.package!r}, which is not installed", f"run  pip install 'streamlearn[{error.extra}]'")
    except ModuleNotFoundError as error:
        yield Problem(f"needs the package {error.name!r}, which is not installed", f"run  pip install {(error.name or '?').split('.')[0]}")
    except ConfigurationError:
        pass  # it wants options that only a user can give
    except Exception as error:  # noqa: BLE001 (as above)
        yield Problem(f"cannot be made with its defaults ({type(error).__name__}: {error})", f"tell the authors of {plugin.distribution}")


def _words_problems(info: PluginInfo) -> list[tuple[str, str]]:
    found = []
    for field in _WORDS:
        words: Any = getattr(info, field)
        if isinstance(words, str) or not (isinstance(words, frozenset | set) and all(isinstance(word, str) and word for word in words)):
            found.append((field, f"has info.{field} = {words!r}, which is no set of words"))
    return found


def _of_words(info: PluginInfo, infos: Sequence[PluginInfo], rivals: Sequence[PluginInfo]) -> Iterator[Problem]:
    """Capabilities that contradict each other, within one plugin or between those installed."""
    own = {info.name} | {word.rstrip("!") for word in info.provides}
    for field in _WORDS[1:-1]:
        for word in sorted(word for word in getattr(info, field) if word.endswith("!")):
            yield Problem(
                f"has {word!r} in info.{field}, which no capability matches", f"write {word.rstrip('!')!r}: the mark belongs to provides"
            )
    for first, second in (("requires", "conflicts"), ("before", "after")):
        for word in sorted(getattr(info, first) & getattr(info, second)):
            yield Problem(f"has {word!r} both in info.{first} and in info.{second}", "leave it in one of the two")
    for word in sorted(info.requires & own):
        yield Problem(f"requires {word!r}, which it is itself", f"take {word!r} out of info.requires")
    offered = {word for other in infos for word in ({other.name} | {w.rstrip("!") for w in other.provides})}
    for word in sorted(info.requires - offered - own):
        yield Problem(f"requires {word!r}, which no installed plugin provides", "install one that does")
    for word in sorted(info.provides):
        twin = word[:-1] if word.endswith("!") else f"{word}!"
        others = sorted(other.name for other in rivals if twin in other.provides)
        if others:
            what = "one alone may have" if word.endswith("!") else "several may have"
            yield Problem(
                f"provides {word!r}, a capability that {what}, and {', '.join(others)} provides {twin!r}", "write it alike in all of them"
            )
