"""The compiled hook table.

A pluggy call costs about a microsecond even with nobody listening; a training step has a dozen hook sites. So pluggy declares,
registers and validates, and this module then turns what it knows (``get_hookimpls()``) into one plain function per hook, once
per run. A hook that nobody implements is ``None`` in the table, and the engine skips it.

Each compiled function binds the arguments an implementation asked for, combines the results as the hook's kind demands, and
adds the plugin's name, the hook and the place in the run to any exception that passes through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamlearn.core.hooks import HOOKS, kind_of
from streamlearn.core.registration import Implementation, arguments_of, implementations
from streamlearn.errors import ConfigurationError

__all__ = ["HookTable", "Implementation", "implementations"]

Where = Callable[[], str]


_STEP_HOOKS = HOOKS[HOOKS.index("transform_batch") : HOOKS.index("after_step") + 1]


class HookTable:
    """One attribute per hook: ``None`` when nobody implements it, else a function to call.

    Args:
        found: who implements what, in resolved order, as `implementations` returns it.
        where: says where the run is, for the notes on exceptions.

    ``step_is_plain`` says that nobody implements any hook of a training step but the choice of tasks.
    """

    __slots__ = (*HOOKS, "step_is_plain")

    def __init__(self, found: Mapping[str, Sequence[Implementation]], where: Where) -> None:
        for hook in HOOKS:
            impls = found.get(hook, ())
            setattr(self, hook, _compile(hook, list(impls), where) if impls else None)
        self.step_is_plain = all(getattr(self, hook) is None for hook in _STEP_HOOKS)

    def __getattr__(self, name: str) -> Any:  # only reached for names that are no hooks; tells mypy that hooks are Any
        raise AttributeError(f"there is no hook {name!r}")


def _compile(hook: str, impls: list[Implementation], where: Where) -> Callable[..., Any]:
    arguments = arguments_of(hook)
    if hook.startswith("after_"):
        impls = impls[::-1]
    calls = [(impl.plugin, _bound(impl, arguments)) for impl in impls]
    kind = kind_of(hook)
    if kind == "event":
        return _event(hook, calls, where)
    if kind == "additive":
        return _additive(hook, calls, where)
    if kind == "pipeline":
        return _pipeline(hook, calls, where)
    if kind == "exclusive":
        return _exclusive(hook, calls, where)
    return _wrapper(hook, calls, where)


def _bound(impl: Implementation, arguments: tuple[str, ...]) -> Callable[..., Any]:
    """``impl.function`` called with the hook's full argument list, whatever subset it asked for."""
    function = impl.function
    if impl.arguments == arguments:
        return function
    places = tuple(arguments.index(name) for name in impl.arguments)
    if not places:
        return lambda *given: function()
    if len(places) == 1:
        only = places[0]
        return lambda *given: function(given[only])
    return lambda *given: function(*[given[place] for place in places])


def _noted(error: Exception, plugin: str, hook: str, where: Where) -> None:
    note = f"raised by plugin {plugin!r} in hook {hook!r} at {where()}"
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def _event(hook: str, calls: list[tuple[str, Callable[..., Any]]], where: Where) -> Callable[..., None]:
    def event(*given: Any) -> None:
        plugin = ""
        try:
            for plugin, call in calls:  # noqa: B007 - the name is wanted when the call raises
                call(*given)
        except Exception as error:
            _noted(error, plugin, hook, where)
            raise

    return event


def _additive(hook: str, calls: list[tuple[str, Callable[..., Any]]], where: Where) -> Callable[..., dict[str, Any]]:
    def additive(*given: Any) -> dict[str, Any]:
        contributions: dict[str, Any] = {}
        plugin = ""
        try:
            for plugin, call in calls:
                contribution = call(*given)
                if contribution is None:
                    continue
                if isinstance(contribution, Mapping):
                    for name, value in contribution.items():
                        contributions[f"{plugin}/{name}"] = value
                else:
                    contributions[plugin] = contribution
        except Exception as error:
            _noted(error, plugin, hook, where)
            raise
        return contributions

    return additive


def _pipeline(hook: str, calls: list[tuple[str, Callable[..., Any]]], where: Where) -> Callable[..., Any]:
    def pipeline(value: Any, *rest: Any) -> Any:
        plugin = ""
        try:
            for plugin, call in calls:
                value = call(value, *rest)
                if value is None:
                    raise ConfigurationError(f"plugin {plugin!r} returned nothing from {hook!r}: return the value, changed or not")
        except Exception as error:
            _noted(error, plugin, hook, where)
            raise
        return value

    return pipeline


def _exclusive(hook: str, calls: list[tuple[str, Callable[..., Any]]], where: Where) -> Callable[..., Any]:
    ((plugin, call),) = calls

    def exclusive(*given: Any) -> Any:
        try:
            answer = call(*given)
            if answer is None:
                raise ConfigurationError(f"plugin {plugin!r} returned nothing from {hook!r}: return the value")
            return answer
        except Exception as error:
            _noted(error, plugin, hook, where)
            raise

    return exclusive


def _wrapper(hook: str, calls: list[tuple[str, Callable[..., Any]]], where: Where) -> Callable[..., Any]:
    """``wrapper(inner, value, *context)``: each plugin receives the next layer as a function of ``value`` alone."""

    def layer(plugin: str, call: Callable[..., Any], inside: Callable[..., Any], context: tuple[Any, ...]) -> Callable[..., Any]:
        def wrapped(value: Any) -> Any:
            try:
                answer = call(inside, value, *context)
                if answer is None and hook == "around_objective":
                    raise ConfigurationError(f"plugin {plugin!r} returned nothing from {hook!r}: return the objective")
                return answer
            except Exception as error:
                _noted(error, plugin, hook, where)
                raise

        return wrapped

    def wrapper(inner: Callable[..., Any], value: Any, *context: Any) -> Any:
        function = inner
        for plugin, call in reversed(calls):
            function = layer(plugin, call, function, context)
        return function(value)

    return wrapper
