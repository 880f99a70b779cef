"""What a plugin is: an ``info``, a typed ``Config``, hook implementations, and its state."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pluggy
import pydantic

from streamlearn.core.hooks import HOOK_API_VERSION
from streamlearn.errors import ConfigurationError, UnknownNameError

__all__ = ["STREAM_KINDS", "SUPERVISED", "Passes", "Plugin", "PluginConfig", "PluginInfo", "Tunable", "hookimpl"]

hookimpl = pluggy.HookimplMarker("streamlearn")
"""Marks a method as the implementation of the hook of the same name."""

SUPERVISED: frozenset[str] = frozenset({"class_incremental", "task_incremental", "domain_incremental", "multitask"})
"""The kinds of streams whose experiences all have labelled rows of role ``"train"``: what a plugin acts on unless it says otherwise."""

STREAM_KINDS: tuple[str, ...] = (
    "class_incremental", "task_incremental", "domain_incremental", "multitask", "adaptation", "test_time", "episodes",
)  # fmt: skip
"""Every word of ``PluginInfo.streams``: the names of the stream builders after which the kinds are called."""

State = dict[str, Any]
"""What a plugin keeps: tensors, numbers, strings, booleans, ``None``, and lists and string-keyed dicts of those."""


@dataclass(frozen=True, slots=True)
class Tunable:
    """Marks a number of a `PluginConfig` that may be tuned, with the range in which a search is sensible."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True, slots=True)
class Passes:
    """Passes through the model that a plugin adds to a training step, beyond the engine's one forward and one backward.

    Args:
        forward: additional forward passes of the model.
        backward: additional backward passes.
        teachers: the teachers that it reads, one forward pass each: ``"previous"`` for a copy of the model, or any other word; plugins
            that read equal teachers share the pass.
        look_ahead: how many times the whole objective is evaluated besides the last time; what is nested multiplies.
    """

    forward: int = 0
    backward: int = 0
    teachers: frozenset[str] = frozenset()
    look_ahead: int = 0


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """What is known of a plugin without running it.

    Args:
        name: the entry-point name, lower case with underscores.
        family: the folder it would live in: ``regularization``, ``replay``, ``distillation``, ...
        summary: one line.
        reference: authors, year, title, where; equation numbers where they help.
        api: version of the hook contract it was written for.
        provides: capabilities that others may require; one marked with ``!`` (``"sharing!"``) may be provided only once.
        requires: capabilities or plugin names without which it makes no sense.
        conflicts: capabilities or plugin names it cannot stand beside.
        before: capabilities or plugin names that must come later in the order.
        after: capabilities or plugin names that must come earlier.
        needs: services of the engine that cost something, such as ``"task_gradients"``.
        passes: additional passes per step; a function of the plugin where they depend on its configuration.
        memory: what its state costs, in words such as ``"2 x parameters"``.
        ranks: behaviour over several processes.
        rows: where a combiner wants the gradients of the rows: at the shared ``"parameters"``, or at the ``"features"``, the output of
            the encoder, which costs one backward pass through it in place of one for each row.
        strength: the option that switches the method off at 0, if there is one.
        vmappable: whether what it does in the objective (masks, losses, terms, weighting) can be evaluated for many episodes at once
            by ``torch.vmap``: no value of a tensor decides what is done, and nothing but inputs and targets differs between episodes.
        streams: the kinds of streams it is made for, words of `STREAM_KINDS`; empty for any of the `SUPERVISED` ones. It tells readers
            and `streamlearn.testing` where to look; the engine does not read it.

    Raises:
        UnknownNameError: ``streams`` holds a word that is no kind of stream; the nearest is offered.
    """

    name: str
    family: str
    summary: str
    reference: str
    api: int = HOOK_API_VERSION
    provides: frozenset[str] = frozenset()
    requires: frozenset[str] = frozenset()
    conflicts: frozenset[str] = frozenset()
    before: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    passes: Passes | Callable[[Any], Passes] = field(default_factory=Passes)
    memory: str = "none"
    ranks: Literal["local", "reduced", "unsupported"] = "unsupported"
    rows: Literal["parameters", "features"] = "parameters"
    strength: str | None = None
    vmappable: bool = False
    streams: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for kind in sorted(self.streams):
            if kind not in STREAM_KINDS:
                raise UnknownNameError(f"kind of stream in the info of plugin {self.name}", kind, STREAM_KINDS)


class PluginConfig(pydantic.BaseModel):
    """Base of a plugin's options: frozen, typed, unknown keys refused."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)


class Plugin:
    """Base class of every plugin.

    Args:
        name: identity of this instance, needed when the same plugin is listed twice; default ``info.name``.
        **options: the fields of ``Config``.

    Raises:
        UnknownNameError: an option that ``Config`` does not have; the nearest one is offered.
        ConfigurationError: an option with a value that is not allowed.

    Example:
        >>> class Nudge(Plugin):
        ...     info = PluginInfo("nudge", "regularization", "Pulls every weight to zero.", "folklore", strength="strength")
        ...     class Config(PluginConfig):
        ...         strength: float = 0.1
        ...     @hookimpl
        ...     def collect_terms(self, step):
        ...         return 0.5 * self.config.strength * sum(p.square().sum() for p in step.parameters.values())
        >>> Nudge(strength=0.5)
        Nudge(strength=0.5)
        >>> Nudge(strenght=0.5)
        Traceback (most recent call last):
            ...
        streamlearn.errors.UnknownNameError: unknown option of plugin nudge 'strenght': did you mean 'strength'? (known: name, strength)
    """

    info: ClassVar[PluginInfo]
    Config: ClassVar[type[PluginConfig]] = PluginConfig
    config: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        options = inspect.signature(cls.Config).parameters.values()
        own = inspect.Parameter("name", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="str | None")
        if cls.__init__ is Plugin.__init__:
            # editors and help() show the options of the method, not **options
            cls.__signature__ = inspect.Signature([*options, own])  # type: ignore[attr-defined]

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        self.config = self._validated(options)
        self.name = name or self.info.name

    @classmethod
    def _validated(cls, options: Mapping[str, Any]) -> PluginConfig:
        for option in options:
            if option not in cls.Config.model_fields:
                raise UnknownNameError(f"option of plugin {cls.info.name}", option, [*cls.Config.model_fields, "name"])
        try:
            return cls.Config(**options)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "options"
            raise ConfigurationError(
                f"plugin {cls.info.name}: option {where!r} is {first['input']!r}, but it must be otherwise: {first['msg']}; "
                f"see 'streamlearn plugins info {cls.info.name}'"
            ) from error

    def __repr__(self) -> str:
        options = [f"{option}={getattr(self.config, option)!r}" for option in sorted(self.config.model_fields_set)]
        if self.name != self.info.name:
            options.append(f"name={self.name!r}")
        return f"{type(self).__name__}({', '.join(options)})"

    @property
    def passes(self) -> Passes:
        """The additional passes per step, resolved for this configuration."""
        declared = self.info.passes
        return declared if isinstance(declared, Passes) else declared(self)

    def state_dict(self) -> State:
        """Everything that must survive a restart; see `State` for what may be in it."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave. The default refuses a state it does not know."""
        if state:
            raise ConfigurationError(f"plugin {self.name} keeps no state, but the checkpoint holds {', '.join(sorted(state))} for it")
