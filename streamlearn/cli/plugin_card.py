"""All there is to know of one plugin, as text."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from streamlearn.cli.text import columns
from streamlearn.core.deprecation import hooks_of
from streamlearn.core.plugin import Passes, Plugin, PluginInfo, Tunable
from streamlearn.core.registry import find, load

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

__all__ = ["card", "example", "option_row", "passes_text", "relations"]

_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "length >=", "max_length": "length <=", "multiple_of": "multiple of"}


def card(name: str, total: int = 100) -> str:
    """The card of the plugin called ``name``.

    Raises:
        UnknownNameError: no installed plugin is called so.
    """
    cls = load(name)
    info = cls.info
    entry = find(name)
    facts = {
        "family": info.family,
        "from": f"{entry.distribution} {entry.version}, {entry.reference}",
        "reference": info.reference,
        "hooks": ", ".join(hooks_of(cls)) or "none",
        **relations(info),
        "cost": f"{passes_text(info)}; memory: {info.memory}",
        "processes": info.ranks,
    }
    label = max(map(len, facts)) + 2
    lines = [f"{entry.name}: {info.summary}", "", *(f"{f'{key}:':<{label}} {value}" for key, value in facts.items()), ""]
    options = [option_row(option, field) for option, field in cls.Config.model_fields.items()]
    lines.append(columns(["option", "type", "default", "allowed"], options, total) if options else "It has no options.")
    lines += ["", f"Use it: --plugin {example(entry.name, cls)}", "", inspect.getdoc(cls) or ""]
    return "\n".join(lines).rstrip()


def relations(info: PluginInfo) -> dict[str, str]:
    """What the plugin says of others, by field."""
    names = ("provides", "requires", "conflicts", "before", "after", "needs")
    return {name: ", ".join(sorted(getattr(info, name))) for name in names if getattr(info, name)}


def passes_text(info: PluginInfo) -> str:
    """The passes that it adds to a step."""
    if not isinstance(info.passes, Passes):
        return "additional passes per step depend on the options ('streamlearn explain' counts them)"
    added = info.passes
    parts = [
        (added.forward, "forward"),
        (added.backward, "backward"),
        (len(added.teachers), "teacher forward"),
        (added.look_ahead, "look-ahead"),
    ]
    named = [f"{count} {what}" for count, what in parts if count]
    return f"{', '.join(named)} pass(es) more per step" if named else "no additional pass per step"


def option_row(name: str, field: FieldInfo) -> list[str]:
    """Name, type, default and allowed values of an option."""
    default = "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
    return [name, _type_text(field.annotation), default, "; ".join(_allowed(field)) or "-"]


def _allowed(field: FieldInfo) -> list[str]:
    parts = [
        f"{sign} {getattr(mark, key)}" for mark in field.metadata for key, sign in _BOUNDS.items() if getattr(mark, key, None) is not None
    ]
    ranges = [mark for mark in field.metadata if isinstance(mark, Tunable)]
    parts += [f"may be tuned from {mark.low:g} to {mark.high:g}{' (log scale)' if mark.log else ''}" for mark in ranges]
    return [*parts, *([field.description] if field.description else [])]


def _type_text(annotation: Any) -> str:
    return annotation.__name__ if inspect.isclass(annotation) else str(annotation).replace("typing.", "").replace("Literal", "one of ")


def example(name: str, cls: type[Plugin]) -> str:
    """The plugin as it may be written after ``--plugin``."""
    for option, field in cls.Config.model_fields.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(default, int | float | str) and not isinstance(default, bool):
            return f"{name}:{option}={default}"
    return name
