"""Numbers that may be tuned: those that plugins declare, and settings of the optimiser; found by name, read and moved in a run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from streamlearn.core.plugin import Plugin, Tunable
from streamlearn.errors import ConfigurationError, UnknownNameError

if TYPE_CHECKING:
    from streamlearn.core.run import Run

__all__ = ["SETTINGS", "Number", "groups_of_the_model", "is_decoupled", "names_in", "tunable", "tunables", "with_graph"]

SETTINGS: Mapping[str, tuple[str, float, float]] = {"learning_rate": ("lr", 1e-6, 10.0), "weight_decay": ("weight_decay", 1e-8, 1.0)}
"""Settings of the optimiser that may be moved: what torch calls them, and their bounds."""


def tunables(plugins: Sequence[Plugin]) -> dict[str, Tunable]:
    """The range of every tunable number, by ``"<plugin>.<option>"``.

    Example:
        >>> from streamlearn.plugins import EWC
        >>> tunables([EWC(name="hold")])
        {'hold.strength': Tunable(low=0.1, high=1000000.0, log=True)}
    """
    found = {}
    for plugin in plugins:
        for option, field in type(plugin).Config.model_fields.items():
            mark = next((m for m in (*field.metadata, *_nested(field.annotation)) if isinstance(m, Tunable)), None)
            if mark is not None:
                found[f"{plugin.name}.{option}"] = mark
    return found


def tunable(plugins: Sequence[Plugin], name: str, who: str) -> tuple[Plugin, str, Tunable]:
    """The plugin, the option and the range of the number called ``name``, for ``who``, which the message names.

    Raises:
        ConfigurationError: no plugin has this number, or it is not tunable.
    """
    owner, _, option = name.rpartition(".")
    plugin = next((plugin for plugin in plugins if plugin.name == owner), None)
    mine = {} if plugin is None else tunables([plugin])
    if plugin is not None and name in mine:
        return plugin, option, mine[name]
    known = tunables(plugins)
    if plugin is not None and option in type(plugin).Config.model_fields:
        raise ConfigurationError(
            f"{who}: {name!r} is not declared tunable by plugin {owner}: take one of {', '.join(known) or 'none'}, or mark it by "
            "Annotated[float, Tunable(low, high)] in its Config"
        )
    raise UnknownNameError(f"tunable number of {who}", name, known)


def _nested(annotation: Any) -> Iterator[Any]:
    """The marks within a union, as in ``Annotated[float, Tunable(1, 10)] | None``."""
    for part in get_args(annotation):
        yield from getattr(part, "__metadata__", ())


@dataclass(frozen=True, slots=True)
class Number:
    """A number that is moved during a run.

    Args:
        name: ``"<plugin>.<option>"``, or one of `SETTINGS`.
        low: it is never moved below.
        high: it is never moved above.
        log: whether it moves in log space.
        initial: its value in the configuration of the plugin; ``None`` for a setting of the optimiser.
    """

    name: str
    low: float
    high: float
    log: bool
    initial: float | None = None

    @classmethod
    def find(cls, name: str, run: Run, who: str) -> Number:
        """The number called ``name``, for the plugin ``who``.

        Raises:
            ConfigurationError: there is none, it is no number, or it starts outside its bounds.
        """
        if name in SETTINGS:
            _, low, high = SETTINGS[name]
            found = cls(name, low, high, True)
        else:
            plugin, option, mark = tunable(run.plugins, name, f"plugin {who}")
            found = cls(name, mark.low, mark.high, mark.log, getattr(plugin.config, option))
        value = found.read(run)
        if not isinstance(value, int | float) or not found.low <= value <= found.high:
            raise ConfigurationError(
                f"plugin {who}: {name} starts at {value}, but it moves between {found.low:g} and {found.high:g}: start it there"
            )
        return found

    def read(self, run: Run) -> float:
        """Its present value."""
        if self.name not in SETTINGS:
            return run.values.get(self.name, self.initial)  # type: ignore[return-value]
        setting, values = SETTINGS[self.name][0], []
        for group in groups_of_the_model(run):
            if setting not in group:
                raise ConfigurationError(f"{self.name} cannot be tuned: the optimiser has no {setting}")
            values.append(float(group[setting]))
        if len(set(values)) > 1:
            raise ConfigurationError(
                f"{self.name} cannot be tuned: the groups of the optimiser have {', '.join(f'{v:g}' for v in values)}: give all of them one"
            )
        return values[0]

    def write(self, run: Run, value: float) -> None:
        """Give it ``value``, moved into its bounds."""
        value = min(max(value, self.low), self.high)
        if self.name not in SETTINGS:
            run.values[self.name] = value
            return
        for group in groups_of_the_model(run):
            group[SETTINGS[self.name][0]] = value

    def moved(self, value: float, slope: float, rate: float, most: float = math.inf) -> float:
        """``value`` after a step of gradient descent; in log space if it is one of those, and there by ``most`` at the most."""
        if not self.log:
            return value - rate * slope
        return value * math.exp(min(max(-rate * value * slope, -most, -_LARGEST), most, _LARGEST))


_LARGEST = 700.0  # the largest power of e that a float holds


def is_decoupled(run: Run) -> bool:
    """Whether the main optimiser's decay of weights is none of an objective (AdamW's)."""
    main = run.optimization.main
    return isinstance(main, torch.optim.AdamW) or any(group.get("decoupled_weight_decay", False) for group in groups_of_the_model(run))


def groups_of_the_model(run: Run) -> list[dict[str, Any]]:
    """Groups of the main optimiser that hold parameters of the model.

    Raises:
        ConfigurationError: there are none.
    """
    main = run.optimization.main
    own = {id(p) for name, p in run.parameters().items() if name in run.model_parameter_names}
    found = [group for group in (main.param_groups if main is not None else ()) if any(id(p) in own for p in group["params"])]
    if not found:
        raise ConfigurationError("settings of the optimiser cannot be tuned: it moves no parameter of the model")
    return found


@contextlib.contextmanager
def with_graph(run: Run, numbers: Sequence[Number]) -> Iterator[dict[str, Tensor]]:
    """While this is entered, plugins read ``numbers`` as scalars that want a gradient, which are handed out by name."""
    before = dict(run.values)
    like = next(iter(run.parameters().values()))
    made = {number.name: like.new_tensor(number.read(run)).requires_grad_() for number in numbers}
    run.values.update(made)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        run.values.clear()
        run.values.update(before)


def names_in(group: Mapping[str, Any], run: Run) -> list[str]:
    """Names of the parameters of a group of an optimiser."""
    own = {id(p) for p in group["params"]}
    return [name for name, p in run.parameters().items() if id(p) in own]
