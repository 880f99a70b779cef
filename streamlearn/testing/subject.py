"""The plugin under test: fresh copies of it, and the place where it acts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from streamlearn.core import registry
from streamlearn.core.composition import compose
from streamlearn.core.dispatch import implementations
from streamlearn.core.hooks import HOOK_API_VERSION
from streamlearn.core.plugin import STREAM_KINDS, SUPERVISED, Plugin
from streamlearn.errors import CompositionError, ConfigurationError, StreamlearnError
from streamlearn.testing.bits import difference
from streamlearn.testing.doubles import NETWORKS
from streamlearn.testing.isolation import isolated
from streamlearn.testing.report import NotApplicable, Trouble
from streamlearn.testing.running import Place, Trained, train

__all__ = ["Given", "Subject", "maker"]

Given = Plugin | Callable[[], Plugin]
"""A plugin, of which copies are made from its class and its configuration, or a function without arguments that makes one."""


class Subject:
    """A plugin under test.

    Args:
        given: the plugin, or a function that makes one.
        beside: others that stand beside it in every run. What ``info.requires`` names is added where a plugin of that name is installed.
        options: options of the `Engine`, beyond the kit's own.

    Raises:
        ConfigurationError: ``given`` is no plugin, or no copy can be made of it.
    """

    def __init__(self, given: Given, beside: Sequence[Given] = (), options: Mapping[str, Any] | None = None) -> None:
        self._make = maker(given)
        self.sample = self._make()
        self.cls = type(self.sample)
        self.info = self.sample.info
        self.name = self.sample.name
        self.options = dict(options or {})
        self._beside = [*map(maker, beside)]
        self._beside += [maker(plugin) for plugin in self._required()]
        self._trained: dict[Place, Trained | Exception] = {}

    def _required(self) -> list[Plugin]:
        there = [make() for make in self._beside]
        words = {word.rstrip("!") for plugin in there for word in (plugin.info.name, plugin.name, *plugin.info.provides)}
        known = {plugin.name for plugin in registry.installed()}
        return [registry.create(need, {}) for need in sorted(self.info.requires - words) if need in known]

    # ------------------------------------------------------------------ copies

    def make(self, **options: Any) -> Plugin:
        """A fresh one; with ``options`` changed where they are given."""
        fresh = self._make()
        return _rebuilt(fresh, options) if options else fresh

    def others(self) -> list[Plugin]:
        """Fresh copies of what stands beside it."""
        return [make() for make in self._beside]

    def uses(self, hook: str) -> bool:
        """Whether it implements ``hook``."""
        return hasattr(getattr(self.cls, hook, None), "streamlearn_impl")

    # ------------------------------------------------------------------ runs

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of streams it is made for, in the order of `STREAM_KINDS`."""
        declared = self.info.streams or SUPERVISED
        return tuple(kind for kind in STREAM_KINDS if kind in declared)

    def train(self, place: Place, plugins: Sequence[Plugin] | None = None, **more: Any) -> Trained:
        """Run a fresh copy beside the others; see `running.train`. What classes keep for themselves is put back afterwards."""
        with isolated(self.cls):
            return train(place, [*self.others(), self.make()] if plugins is None else plugins, **{**self.options, **more})

    def trained(self, place: Place) -> Trained:
        """What a fresh copy leaves at ``place``; made once."""
        if place not in self._trained:
            self.check_composition()
            try:
                self._trained[place] = self.train(place)
            except Exception as error:  # noqa: BLE001 - kept, and raised at every question
                self._trained[place] = error
        found = self._trained[place]
        if isinstance(found, Exception):
            raise found
        return found

    def bare(self, place: Place) -> Trained:
        """What a run without it leaves; the others are there."""
        if place not in self._bare:
            self._bare[place] = self.train(place, self.others())
        return self._bare[place]

    @cached_property
    def _bare(self) -> dict[Place, Trained]:
        return {}

    def check_composition(self) -> None:
        """Raises:
        Trouble: its hooks cannot be registered.
        """
        try:
            implementations([self.make()])
        except CompositionError as error:
            raise Trouble("hooks", f"it cannot be registered: {error.problems[0]}") from error
        if self.info.api > HOOK_API_VERSION:
            raise Trouble("information", f"info.api is {self.info.api}, this streamlearn has version {HOOK_API_VERSION} of the hooks")
        compose([*self.others(), self.make()])

    # ------------------------------------------------------------------ where it acts

    @cached_property
    def home(self) -> Place:
        """The first place at which it trains and makes a difference, else the first at which it trains.

        Raises:
            Trouble: something stops every run.
            NotApplicable: it trains nowhere.
        """
        trains = [place for place in self.places() if self.trains_at(place)]
        if not trains:
            raise NotApplicable(f"it trains nowhere: see trains[{self.kinds[0]}]")
        return next((place for place in trains if self.effect(place) is not None), trains[0])

    def places(self) -> list[Place]:
        """Where to look, nearest first."""
        return [Place(kind, net) for net in NETWORKS for kind in self.kinds]

    def trains_at(self, place: Place) -> bool:
        """Whether a run at ``place`` ends.

        Raises:
            Trouble: something stops every run.
        """
        try:
            self.trained(place)
        except Trouble:
            raise
        except Exception:  # noqa: BLE001 - any error says the same: not here
            return False
        return True

    def effect(self, place: Place) -> str | None:
        """In what a run at ``place`` differs from one without the plugin, ``None`` if in nothing."""
        mine, bare = self.trained(place), self.bare(place)
        for what, a, b in (
            ("weights", mine.weights, bare.weights),
            ("measurements", mine.measured, bare.measured),
            ("replay memories", mine.memories, bare.memories),
        ):
            found = difference(a, b, what)
            if found is not None:
                return found
        return None

    @cached_property
    def unlike(self) -> str | None:
        """In what two equal runs differ, ``None`` if in nothing."""
        again = self.train(self.home)
        return difference_of(self.trained(self.home), again)

    def need_determinism(self) -> None:
        """Raises:
        NotApplicable: two equal runs differ, so that no comparison of runs says anything.
        """
        if self.unlike is not None:
            raise NotApplicable("two equal runs of it differ: see the check deterministic")


def difference_of(a: Trained, b: Trained) -> str | None:
    """In what two runs differ, ``None`` if in nothing."""
    return (
        difference(a.weights, b.weights, "weights") or difference(a.events, b.events, "events") or difference(a.states, b.states, "state")
    )


def maker(given: Given) -> Callable[[], Plugin]:
    """A function that makes a fresh plugin like ``given``.

    Raises:
        ConfigurationError: ``given`` is neither a plugin nor a function that makes one, or no copy of it can be made.
    """
    if isinstance(given, Plugin):
        plugin = given
        _rebuilt(plugin, {})
        return lambda: _rebuilt(plugin, {})
    if not callable(given):
        raise ConfigurationError(f"{given!r} is not a plugin: give an instance, as in EWC(strength=1.0), or a function that makes one")
    factory = given

    def make() -> Plugin:
        made = factory()
        if not isinstance(made, Plugin):
            raise ConfigurationError(f"the function given in place of a plugin returned {made!r}: it must return a new plugin at each call")
        return made

    if make() is make():
        raise ConfigurationError("the function given in place of a plugin returned the same one twice: it must make a new one at each call")
    return make


def _rebuilt(plugin: Plugin, changes: Mapping[str, Any]) -> Plugin:
    """Another of the same class, options and name, with ``changes``."""
    config = plugin.config
    options = {name: copy.deepcopy(getattr(config, name)) for name in config.model_fields_set} | dict(changes)
    name = {} if plugin.name == plugin.info.name else {"name": plugin.name}
    try:
        return type(plugin)(**options, **name)
    except StreamlearnError:
        raise
    except TypeError as error:
        cls = type(plugin).__name__
        raise ConfigurationError(
            f"no copy of {plugin!r} can be made from its options ({error}): give a function that makes one, as in lambda: {cls}(...)"
        ) from error
