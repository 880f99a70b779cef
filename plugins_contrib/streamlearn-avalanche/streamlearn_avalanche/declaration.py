"""What an `AvalanchePlugin` may stand beside, and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from streamlearn.core.plugin import PluginInfo
from streamlearn.errors import ConfigurationError
from streamlearn_avalanche.effects import ANYTHING, LOADERS, changes, clashes

if TYPE_CHECKING:
    from streamlearn.core.run import Run

__all__ = ["ALWAYS_REFUSED", "checked", "declared", "describe", "refuse_others", "refuse_strange_models"]

ALWAYS_REFUSED = frozenset(
    {
        *("look-ahead", "inner-loop"),  # Avalanche's loss is built at the live weights alone
        *("uncertainty_weighting", "group_dro", "pcgrad", "mgda", "mgda_ub"),  # one loss for everything leaves no rows to weigh
        *("gdumb", "joint", "slda", "temperature_sampling", "active_sampling"),  # Avalanche's loader says what is trained on
    }
)
_REFUSED_WITH_LOADER = frozenset({"replay"})
_NOBODY_ELSE = ("provide_weighting", "provide_gradient_combination", "provide_task_probabilities")


def checked(plugins: Any) -> tuple[Any, ...]:
    """``plugins`` as a tuple.

    Raises:
        ConfigurationError: it is no list of Avalanche's plugins, or what they do together is undefined.
    """
    from avalanche.core import BasePlugin

    if isinstance(plugins, BasePlugin) or not isinstance(plugins, Sequence):
        raise ConfigurationError(f"AvalanchePlugin: plugins is a {type(plugins).__name__}, but it must be a list of Avalanche's plugins")
    for plugin in plugins:
        if not isinstance(plugin, BasePlugin):
            raise ConfigurationError(f"AvalanchePlugin: {plugin!r} is no plugin of Avalanche's: list instances, as in [EWCPlugin(1.0)]")
    problems = clashes(plugins)
    if problems:
        raise ConfigurationError(f"AvalanchePlugin: {'; '.join(problems)}")
    return tuple(plugins)


def declared(info: PluginInfo, listed: Any) -> PluginInfo:
    """``info`` with what ``listed`` may change as capabilities, and with what cannot stand beside that.

    Of a function it is not known what it will give: it may change anything.
    """
    found: frozenset[str] = ANYTHING if callable(listed) else frozenset().union(*(changes(plugin) for plugin in listed))
    summary = info.summary
    if not callable(listed) and listed:
        what = f"may change {', '.join(sorted(found))}" if found else "changes nothing of the strategy"
        summary = f"Avalanche's {', '.join(type(plugin).__name__ for plugin in listed)}; {what}."
    return dataclasses.replace(
        info,
        summary=summary,
        provides=info.provides | {f"avalanche-{name.strip('_')}" for name in found},
        conflicts=info.conflicts | (_REFUSED_WITH_LOADER if found & (LOADERS | ANYTHING) else frozenset()),
    )


def describe(listed: Any) -> Any:
    """What ``run.json`` says of a list: for each plugin its class and the plain ones of its attributes, which hold its options."""
    if callable(listed):
        return getattr(listed, "__qualname__", type(listed).__name__)
    plain = (bool, int, float, str, type(None))
    return [
        {"class": type(plugin).__name__, "options": {key: value for key, value in sorted(vars(plugin).items()) if isinstance(value, plain)}}
        for plugin in listed
    ]


def refuse_others(run: Run) -> None:
    """What no declaration can tell: hooks of plugins that are not known here, and options of the engine.

    Raises:
        ConfigurationError: one of them leaves no room for Avalanche's plugins.
    """
    for hook in _NOBODY_ELSE:
        if run.implementers(hook):
            raise ConfigurationError(
                f"{', '.join(run.implementers(hook))} cannot stand beside avalanche, whose one loss and own loader leave nothing to "
                f"{hook}: remove one of the two"
            )
    if run.options.microbatches > 1:
        raise ConfigurationError(
            f"Engine: microbatches is {run.options.microbatches}, but Avalanche's plugins want whole batches: leave it at 1"
        )


def refuse_strange_models(plugins: Sequence[Any], network: nn.Module) -> None:
    """Refuse plugins that hold another model than the one that is trained.

    Raises:
        ConfigurationError: one does.
    """
    for plugin in plugins:
        held = vars(plugin).get("model")
        if isinstance(held, nn.Module) and held is not network:
            kind = type(plugin).__name__
            raise ConfigurationError(
                f"{kind} holds a model that is not the one being trained (every run but the first starts from copies): give a function, "
                f"as in AvalanchePlugin(lambda network, optimizer: [{kind}(network)])"
            )
