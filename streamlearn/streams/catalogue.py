"""Finding stream builders by name: ours and those of installed distributions come through the same door.

A builder is a function that returns a `Stream`, registered in the entry-point group ``streamlearn.streams``. One that takes a stream as
its first argument, called ``stream``, is an operator. Listing them reads metadata only; a builder's module is imported when it is called.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from streamlearn.errors import ConfigurationError, UnknownNameError
from streamlearn.options import parse, parse_chain

if TYPE_CHECKING:
    from streamlearn.streams.stream import Stream

__all__ = ["GROUP", "Builder", "build", "build_chain", "builder_named", "builders", "parse", "rebuild"]

GROUP = "streamlearn.streams"


class Builder(NamedTuple):
    """A registered builder, as metadata tells of it."""

    name: str
    distribution: str
    version: str
    value: str


def builders() -> list[Builder]:
    """Every registered builder, by name. Imports none of them.

    Example:
        >>> [builder.value for builder in builders() if builder.name == "online"]
        ['streamlearn.streams.operators.cutting:online']
    """
    return sorted(
        Builder(entry.name, entry.dist.name if entry.dist else "unknown", entry.dist.version if entry.dist else "", entry.value)
        for entry in importlib.metadata.entry_points(group=GROUP)
    )


def build(name: str, /, **options: Any) -> Stream:
    """The stream that builder ``name`` makes of ``options``; ``-`` and ``_`` in names make no difference.

    Raises:
        UnknownNameError: no builder, or no option of this builder, is called so; offers the nearest name.
        ConfigurationError: the builder cannot be loaded, an option is missing or of a wrong type, or two distributions
            register the name.
        DataError: as the builder does.

    Example:
        >>> build("class-incremental", source="digits", experiences=2)
        Stream('digits/class_incremental', 2 experiences, tasks digits)
    """
    from streamlearn.streams.stream import Stream

    found = _find(name)
    builder = _load(found)
    _check_options(found.name, builder, options)
    try:
        stream = builder(**options)
    except TypeError as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise ConfigurationError(f"stream builder {found.name!r} does not accept ({given}): {error}") from error
    if not isinstance(stream, Stream):
        raise ConfigurationError(
            f"stream builder {found.name!r} ({found.value}) gave a {type(stream).__name__} instead of a Stream: report it"
        )
    return stream


def build_chain(links: str | Sequence[tuple[str, Mapping[str, Any]]], seed: int | None = None) -> Stream:
    """A builder and the operators that follow it: each operator is given the stream made so far.

    Args:
        links: ``"class_incremental:source=digits | online:rows=10"``, or names and options one after another.
        seed: the ``seed`` of every link that takes one and has none.

    Raises:
        ConfigurationError: a link that is not the first takes no stream, or the first needs one; and as `build`.

    Example:
        >>> build_chain("class_incremental:source=digits | recurring:times=2")
        Stream('digits/class_incremental/recurring', 10 experiences, tasks digits)
    """
    stream: Stream | None = None
    for name, options in parse_chain(links) if isinstance(links, str) else links:
        parameters = list(inspect.signature(builder_named(name)).parameters)
        given = dict(options)
        if seed is not None and "seed" in parameters:
            given.setdefault("seed", seed)
        first = parameters[0] if parameters else ""
        if first == "stream" and stream is None and "stream" not in given:
            raise ConfigurationError(f"{name!r} is an operator and needs a stream before it: write BUILDER:... | {name}:...")
        if stream is not None:
            if first not in ("stream", "source") or first in given:
                raise ConfigurationError(f"{name!r} builds a stream of its own and cannot follow another: only operators stand after '|'")
            given[first] = stream
        stream = build(name, **given)
    if stream is None:
        raise ConfigurationError("there is no stream builder here: give at least one")
    return stream


def rebuild(description: Mapping[str, Any]) -> Stream:
    """The stream of which ``description`` is the `Stream.description`, built again.

    Raises:
        ConfigurationError: it names no builder, or a part of it, such as the data, was given by the user as an object.

    Example:
        >>> stream = build("data_incremental", source="digits", experiences=3)
        >>> rebuild(stream.description).hash == stream.hash
        True
        >>> rebuild(stream[:2].description).hash == stream[:2].hash
        True
    """
    if not isinstance(description.get("builder"), str):
        raise ConfigurationError(f"this description names no stream builder, so the stream cannot be built again: {dict(description)!r}")
    given = [key for key, value in description.items() if isinstance(value, Mapping) and value.get("given by the user")]
    if given:
        parts = " and ".join(repr(key) for key in given)
        raise ConfigurationError(
            f"this stream was built from objects given by the user ({parts}), which no name brings back: pass the stream itself"
        )
    options = {key: _rebuilt(value) for key, value in description.items() if key not in ("builder", "part")}
    whole = build(description["builder"], **options)
    return whole if description.get("part") is None else whole.reordered(description["part"])


def _rebuilt(value: Any) -> Any:
    """``value``, with the streams that it describes built again."""
    if isinstance(value, Mapping):
        return rebuild(value) if "builder" in value else value
    return [_rebuilt(item) for item in value] if isinstance(value, list) else value


def builder_named(name: str) -> Callable[..., Any]:
    """The function that is registered under ``name``.

    Raises:
        UnknownNameError: none is; the nearest name is offered.
        ConfigurationError: it cannot be loaded, or two distributions register the name.
    """
    return _load(_find(name))


def _find(name: str) -> Builder:
    known = builders()
    found = [builder for builder in known if builder.name.replace("-", "_") == name.replace("-", "_")]
    if not found:
        raise UnknownNameError("stream builder", name, {builder.name for builder in known})
    if len(found) > 1:
        owners = " and ".join(f"{builder.distribution} ({builder.value})" for builder in found)
        raise ConfigurationError(f"the stream builder {name!r} is registered by {owners}: uninstall one of them")
    return found[0]


def _load(found: Builder) -> Callable[..., Any]:
    entry = importlib.metadata.EntryPoint(found.name, found.value, GROUP)
    try:
        builder = entry.load()
    except (ImportError, AttributeError) as error:
        origin = f"{found.value} of {found.distribution} {found.version}".rstrip()
        raise ConfigurationError(f"stream builder {found.name!r} ({origin}) cannot be loaded: {error}") from error
    if not callable(builder):
        raise ConfigurationError(f"stream builder {found.name!r} ({found.value}) is not callable: report it to {found.distribution}")
    return builder  # type: ignore[no-any-return]


def _check_options(name: str, builder: Callable[..., Any], options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(builder).parameters.values()
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for option in () if takes_any else options:
        if option not in known:
            raise UnknownNameError(f"option of {name}", option, known)
    for p in parameters:
        if isinstance(p.default, bool) and p.name in options and not isinstance(options[p.name], bool):
            raise ConfigurationError(f"option {p.name} of {name} is {options[p.name]!r}: give true or false")
    missing = [p.name for p in parameters if p.name in known and p.default is p.empty and p.name not in options]
    if missing:
        raise ConfigurationError(f"stream builder {name!r} needs the option {missing[0]!r}: add it, for example {name}:{missing[0]}=...")
