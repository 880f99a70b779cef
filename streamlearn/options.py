"""Options written as text, ``NAME:key=value,key=value``: the form that the command line uses for streams and plugins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from streamlearn.errors import ConfigurationError

__all__ = ["parse", "parse_chain"]

_CLOSES = {"]": "[", "}": "{"}
_PYTHON_WORDS = {"True": True, "False": False, "None": None}


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Read ``NAME`` or ``NAME:key=value,key=value`` as a name and its options.

    A value is read as JSON where it is JSON (Python's ``True``, ``False`` and ``None`` are understood too), else it is a
    string. Commas inside brackets, braces and double quotes belong to the value.

    Args:
        text: what the user wrote.

    Returns:
        The name and the options, in the order written.

    Raises:
        ConfigurationError: the text does not have this form; the message shows the text.

    Example:
        >>> parse("class_incremental:source=digits,classes=[[0,1],[2,3]],shuffle=false")
        ('class_incremental', {'source': 'digits', 'classes': [[0, 1], [2, 3]], 'shuffle': False})
        >>> parse("ewc")
        ('ewc', {})
    """
    name, colon, rest = text.partition(":")
    name = name.strip()
    if not name or "=" in name:
        _refuse(text, "it does not begin with a name")
    options: dict[str, Any] = {}
    if not colon:
        return name, options
    for part in _parts(rest, text):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not key or not equals or not value:
            _refuse(text, f"{part.strip()!r} is not of the form key=value")
        if key in options:
            _refuse(text, f"option {key!r} is given twice")
        options[key] = _value(value, key, text)
    return name, options


def parse_chain(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Read ``NAME:key=value | NAME:key=value | ...`` as names and their options, in order; ``|`` inside quotes belongs to the value.

    Raises:
        ConfigurationError: a piece does not have the form that `parse` reads.

    Example:
        >>> parse_chain("class_incremental:source=digits | online:rows=10")
        [('class_incremental', {'source': 'digits'}), ('online', {'rows': 10})]
    """
    parts = [part.strip() for part in _parts(text, text, "|")]
    if not all(parts):
        _refuse(text, "there is nothing on one side of a '|'")
    return [parse(part) for part in parts]


def _parts(rest: str, text: str, separator: str = ",") -> Iterator[str]:
    """The pieces of ``rest`` between those separators that lie outside brackets and quotes."""
    start, open_brackets, quoted, escaped = 0, list[str](), False, False
    for place, letter in enumerate(rest):
        if quoted:
            quoted = escaped or letter != '"'
            escaped = letter == "\\" and not escaped
        elif letter == '"':
            quoted = True
        elif letter in "[{":
            open_brackets.append(letter)
        elif letter in _CLOSES and (not open_brackets or open_brackets.pop() != _CLOSES[letter]):
            _refuse(text, f"{letter!r} closes nothing")
        elif letter == separator and not open_brackets:
            yield rest[start:place]
            start = place + 1
    if quoted or open_brackets:
        _refuse(text, f"""{'"' if quoted else open_brackets[-1]!r} is never closed""")
    yield rest[start:]


def _value(value: str, key: str, text: str) -> Any:
    if value in _PYTHON_WORDS:
        return _PYTHON_WORDS[value]
    try:
        return json.loads(value, parse_constant=_not_json)
    except ValueError:
        if value[0] in '[{"':
            _refuse(text, f"the value of {key!r} looks like JSON and is not: {value}")
        return value


def _not_json(word: str) -> NoReturn:
    raise ValueError(word)  # NaN and Infinity are Python's extension of JSON


def _refuse(text: str, why: str) -> NoReturn:
    raise ConfigurationError(
        f"cannot read {text!r}: {why}; write NAME:key=value,key=value, for example class_incremental:source=digits,experiences=5"
    )
