"""An engine with other numbers: which may be tuned in it, and how they are exchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from streamlearn.core.composition import compose
from streamlearn.core.plugin import Plugin, Tunable
from streamlearn.core.tuning.tunables import SETTINGS, tunables
from streamlearn.errors import ConfigurationError, UnknownNameError

if TYPE_CHECKING:
    from streamlearn.core.engine import Engine
    from streamlearn.core.optimization import OptimizerFactory

__all__ = ["Ranges", "as_it_is", "ranges_of", "with_values"]

Ranges = Mapping[str, Tunable] | Sequence[str] | None
"""Numbers to tune: ranges by name, or names of numbers whose range is known, or all that plugins declare tunable."""


def with_values(engine: Engine, values: Mapping[str, float]) -> Engine:
    """``engine`` with other numbers, changed in place and returned: its plugins are made anew from their options.

    Args:
        engine: fresh from its constructor.
        values: ``"<plugin>.<option>"``, ``"learning_rate"`` or ``"weight_decay"``, as `Tuning` has them.

    Raises:
        UnknownNameError: there is no such plugin or option.
        ConfigurationError: a value is not allowed.

    Example:
        >>> import torch
        >>> from streamlearn import Engine
        >>> from streamlearn.plugins import EWC
        >>> engine = Engine(torch.nn.Linear(2, 2), lambda p: torch.optim.SGD(p, lr=0.1), [EWC()])
        >>> with_values(engine, {"ewc.strength": 7.0, "learning_rate": 0.5}).plugins
        (EWC(strength=7.0),)
    """
    settings = {SETTINGS[name][0]: value for name, value in values.items() if name in SETTINGS}
    changes: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        if name not in SETTINGS:
            owner, _, option = name.rpartition(".")
            if owner not in {plugin.name for plugin in engine.plugins}:
                raise UnknownNameError("plugin", owner, [plugin.name for plugin in engine.plugins])
            changes.setdefault(owner, {})[option] = value
    engine.composition = compose([_rebuilt(p, changes[p.name]) if p.name in changes else p for p in engine.plugins])
    if settings:
        engine._optimizer = _with_settings(engine._optimizer, settings)
    return engine


def ranges_of(numbers: Ranges, engine: Engine) -> dict[str, Tunable]:
    """The range of each number that is meant by ``numbers``, in ``engine``.

    Raises:
        UnknownNameError: there is no such number, or none with a range.
        ConfigurationError: there is none at all, or a range is empty.
    """
    known = tunables(engine.plugins) | {name: Tunable(low, high, log=True) for name, (_, low, high) in SETTINGS.items()}
    if numbers is None:
        found = tunables(engine.plugins)
    elif isinstance(numbers, Mapping):
        options = {f"{plugin.name}.{option}" for plugin in engine.plugins for option in type(plugin).Config.model_fields}
        found = dict(numbers)
        strange = next((name for name in found if name not in options | set(SETTINGS)), None)
        if strange is not None:
            raise UnknownNameError("number to tune", strange, options | set(SETTINGS))
    else:
        strange = next((name for name in numbers if name not in known), None)
        if strange is not None:
            raise UnknownNameError("number to tune", strange, known, "give others with a range, as in {name: Tunable(low, high)}")
        found = {name: known[name] for name in numbers}
    if not found:
        raise ConfigurationError("tune: there is no number to tune: the plugins declare none, so name one, such as 'learning_rate'")
    for name, mark in found.items():
        if not mark.low <= mark.high or (mark.log and mark.low <= 0):
            raise ConfigurationError(f"tune: the range of {name} is {mark}: give low up to high, above 0 where log=True")
    return found


def as_it_is(ranges: Mapping[str, Tunable], engine: Engine) -> dict[str, float]:
    """The numbers as the engine has them, as far as they lie in their ranges."""
    present = {f"{plugin.name}.{option}": value for plugin in engine.plugins for option, value in plugin.config}
    inside = {name: present[name] for name in ranges if isinstance(present.get(name), int | float)}
    return {name: value for name, value in inside.items() if ranges[name].low <= value <= ranges[name].high}


def _rebuilt(plugin: Plugin, changes: Mapping[str, float]) -> Plugin:
    options = {name: getattr(plugin.config, name) for name in plugin.config.model_fields_set} | dict(changes)
    name = {} if plugin.name == plugin.info.name else {"name": plugin.name}
    return type(plugin)(**options, **name)


def _with_settings(factory: OptimizerFactory, settings: Mapping[str, float]) -> OptimizerFactory:
    def make(parameters: Any) -> torch.optim.Optimizer:
        optimizer = factory(parameters)
        for group in (optimizer.defaults, *optimizer.param_groups):
            for setting, value in settings.items():
                if setting not in group:
                    raise ConfigurationError(f"the optimiser has no {setting} to tune: leave it out of the numbers")
                group[setting] = value
        return optimizer

    return make
