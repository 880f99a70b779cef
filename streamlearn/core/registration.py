"""From plugins to their parts: who implements which hook, with which arguments, and what is wrong with how it is written.

pluggy declares, registers and validates; this module says in sentences what it refuses, and keeps its order equal to the user's.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pluggy

from streamlearn.core.deprecation import hooks_of, old_argument, old_arguments, old_hook, warn_of_old_names
from streamlearn.core.hooks import HOOKS, HookSpecs
from streamlearn.core.plugin import Plugin
from streamlearn.errors import CompositionError, nearest

__all__ = ["Implementation", "arguments_of", "implementations"]


class Implementation(NamedTuple):
    """One plugin's part in one hook; ``function`` takes exactly ``arguments``."""

    plugin: str
    function: Callable[..., Any]
    arguments: tuple[str, ...]


def implementations(plugins: Sequence[Plugin]) -> dict[str, list[Implementation]]:
    """Register ``plugins`` with pluggy and return, for every hook, who implements it in the order of ``plugins``.

    Raises:
        CompositionError: an unknown hook or argument, or a hook written without ``@hookimpl``; all problems at once.
    """
    manager = _manager()
    problems = [problem for plugin in plugins for problem in (*_misspelt(plugin), *_unknown_arguments(plugin))]
    if problems:
        raise CompositionError(problems)
    for plugin in reversed(plugins):  # pluggy calls the last registered first; registered in reverse, its order is ours
        try:
            manager.register(plugin, name=plugin.name)
        except pluggy.PluginValidationError as error:
            problems.append(f"{plugin.name}: {' '.join(str(error).split())}")
    if problems:
        raise CompositionError(problems)
    manager.check_pending()
    for plugin in plugins:
        warn_of_old_names(plugin.name, type(plugin))
    table: dict[str, list[Implementation]] = {}
    for hook in HOOKS:
        found = getattr(manager.hook, hook).get_hookimpls()
        table[hook] = [Implementation(impl.plugin_name, impl.function, _asked(hook, impl)) for impl in reversed(found)]
    return table


def _asked(hook: str, impl: pluggy.HookImpl) -> tuple[str, ...]:
    """What an implementation asks for, under present names; an argument of the hook is given also where it has a default."""
    old = old_arguments(hook)
    known = {*arguments_of(hook), *old}
    names = (*impl.argnames, *itertools.takewhile(known.__contains__, impl.kwargnames))
    return tuple(old[name].new if name in old else name for name in names)


class _Manager(pluggy.PluginManager):
    """Takes an implementation under a former name of its hook for one of the hook, unless the plugin has both."""

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        options = super().parse_hookimpl_opts(plugin, name)
        renamed = None if options is None else old_hook(name)
        if options is None or renamed is None:
            return options
        return {**options, "specname": renamed.new} if hooks_of(type(plugin)).get(renamed.new) == name else None


def _manager() -> pluggy.PluginManager:
    """A manager that knows the contract, and the arguments' former names."""
    manager = _Manager("streamlearn")
    manager.add_hookspecs(HookSpecs)
    for hook in HOOKS:
        spec = getattr(manager.hook, hook).spec
        spec.argnames = (*spec.argnames, *old_arguments(hook))
    return manager


def _misspelt(plugin: Plugin) -> list[str]:
    problems = []
    for name in dir(type(plugin)):
        function = getattr(type(plugin), name)
        marked = hasattr(function, "streamlearn_impl")
        renamed = old_hook(name)
        if marked and renamed is not None:
            if renamed.has_ended and renamed.new not in hooks_of(type(plugin)):
                problems.append(renamed.told_of(plugin.name))
        elif marked and name not in HOOKS:
            guess = nearest(name, HOOKS)
            problems.append(
                f"{plugin.name}: there is no hook {name!r}{f'; did you mean {guess!r}?' if guess else ''} ('streamlearn hooks' lists them)"
            )
        if not marked and name in HOOKS:
            problems.append(f"{plugin.name}: {name!r} has the name of a hook but is not marked; put @hookimpl above it")
    return problems


def _unknown_arguments(plugin: Plugin) -> list[str]:
    problems = []
    for hook, name in hooks_of(type(plugin)).items():
        known = arguments_of(hook)
        for argument, by_keyword in _required(getattr(plugin, name)).items():
            renamed, guess = old_argument(hook, argument), nearest(argument, known)
            if by_keyword:
                problems.append(f"{plugin.name}: hook {hook!r} gives its arguments by place; take the * out before {argument!r}")
            elif renamed is not None and renamed.has_ended:
                problems.append(renamed.told_of(plugin.name))
            elif renamed is None and argument not in known:
                offer = f"; did you mean {guess!r}?" if guess else ""
                problems.append(f"{plugin.name}: hook {hook!r} has no argument {argument!r}{offer} (it has: {', '.join(known)})")
    return problems


def _required(method: Callable[..., Any]) -> dict[str, bool]:
    """The arguments that whoever calls ``method`` must give, and whether only by keyword."""
    parameters = inspect.signature(method).parameters.values()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name: p.kind is p.KEYWORD_ONLY for p in parameters if p.default is p.empty and p.kind not in variable}


def arguments_of(hook: str) -> tuple[str, ...]:
    """The arguments of ``hook``, in the order of the contract.

    >>> arguments_of("transform_batch")
    ('batch', 'step')
    """
    code = getattr(HookSpecs, hook).__code__
    return tuple(code.co_varnames[1 : code.co_argcount])
