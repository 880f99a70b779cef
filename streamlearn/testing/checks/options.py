"""Checks of a plugin's options, and of what its documentation says of them."""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Iterator
from typing import Any, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from torch import nn

from streamlearn.core.plugin import PluginConfig, Tunable
from streamlearn.errors import ConfigurationError
from streamlearn.testing.report import CheckFailed
from streamlearn.testing.subject import Subject

__all__ = ["configuration", "documentation"]


# ---------------------------------------------------------------------- configuration


def configuration(subject: Subject) -> None:
    """Defaults build, options survive JSON, unknown ones are refused, and so is every number outside its bounds."""
    cls = subject.cls
    if not issubclass(cls.Config, PluginConfig):
        raise CheckFailed(f"{cls.__name__}.Config is no PluginConfig: derive it from streamlearn.PluginConfig")
    _defaults_build(subject)
    _survives_json(subject)
    _refuses(subject, {"no_such_option": 1}, "no_such_option=1, which is no option")
    described = arguments_of(inspect.getdoc(cls) or "")
    for name, field in cls.Config.model_fields.items():
        kind = _number_type(field.annotation)
        if kind is None:
            continue
        for value, why in [*_outside(field, kind), *_outside_documented(described.get(name, ""), kind), *_of_strength(subject, name)]:
            _refuses(subject, {name: value}, f"{name}={value!r}, {why}")
        _accepts_tunable(subject, name, field, kind)


def _defaults_build(subject: Subject) -> None:
    if any(field.is_required() for field in subject.cls.Config.model_fields.values()):
        return  # the options that were given have built it
    try:
        subject.cls()
    except Exception as error:
        raise CheckFailed(f"{subject.cls.__name__}() fails, though every option has a default: {error}") from error


def _survives_json(subject: Subject) -> None:
    """Options that are modules or functions are objects of the user's, and left out."""
    config = subject.sample.config
    own = {name for name in type(config).model_fields if _is_object(getattr(config, name))}
    try:
        text = json.dumps(config.model_dump(mode="json", exclude=own), allow_nan=False)
    except Exception as error:
        raise CheckFailed(f"its options cannot be written as JSON, so that no run could tell what it was: {error}") from error
    objects = {name: getattr(config, name) for name in own}
    try:
        again = type(config)(**json.loads(text), **objects)
    except Exception as error:
        raise CheckFailed(f"its options, written as JSON and read again, are refused: {error}") from error
    if again != config:
        raise CheckFailed(f"its options come back from JSON as {again!r}, they were {config!r}: use numbers, strings, lists and dicts")


def _is_object(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_is_object(inner) for inner in value.values())
    return isinstance(value, nn.Module) or inspect.isroutine(value)


def _refuses(subject: Subject, changes: dict[str, Any], what: str) -> None:
    try:
        subject.make(**changes)
    except ConfigurationError:
        return
    except Exception as error:
        raise CheckFailed(f"{what}, is refused by {type(error).__name__}: raise ConfigurationError, as Plugin does by itself") from error
    raise CheckFailed(f"it accepts {what}: refuse it with a bound of the field, as in Field(1.0, ge=0)")


def _number_type(annotation: Any) -> type[int] | type[float] | None:
    """``int`` or ``float`` where a field takes numbers, and nothing else but ``None``."""
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = {_number_type(part) for part in get_args(annotation) if part is not type(None)}
        return next(iter(kinds)) if len(kinds) == 1 else None
    return annotation if annotation in (int, float) else None


def _outside(field: FieldInfo, kind: type) -> Iterator[tuple[Any, str]]:
    """Values just outside the declared bounds."""
    for mark in field.metadata:
        for bound, step, sign in (("ge", -1, ">="), ("gt", 0, ">"), ("le", 1, "<="), ("lt", 0, "<")):
            limit = getattr(mark, bound, None)
            if limit is not None:
                yield kind(limit + step), f"outside its bound {sign} {limit}"


def _accepts_tunable(subject: Subject, name: str, field: FieldInfo, kind: type) -> None:
    for mark in field.metadata:
        if isinstance(mark, Tunable):
            for value in (mark.low, mark.high):
                try:
                    subject.make(**{name: kind(value)})
                except ConfigurationError as error:
                    raise CheckFailed(
                        f"{name} may be tuned from {mark.low:g} to {mark.high:g}, but {value:g} is refused: {error}"
                    ) from error


def _of_strength(subject: Subject, name: str) -> Iterator[tuple[Any, str]]:
    if name == subject.info.strength:
        yield -1, "a strength below 0"


# ---------------------------------------------------------------------- documentation

_NUMBER = r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)"
_INTERVAL = re.compile(rf"\bin\s+([\[(])\s*{_NUMBER}\s*,\s*{_NUMBER}\s*([\])])")
_AT_LEAST, _ABOVE = re.compile(rf"\bat least\s+{_NUMBER}", re.I), re.compile(rf"\babove\s+{_NUMBER}", re.I)
_RANGE_WORDS = re.compile(
    r"\b(at least|at most|above|below|between|in [\[(]|any|finite|positive|non-negative|of either sign|from\s+-?\d)", re.I
)


class _Documented(NamedTuple):
    """The parts of a docstring that the kit looks for."""

    summary: str
    body: str
    arguments: dict[str, str]


def documentation(subject: Subject) -> None:
    """The docstring has a line of summary, a description or formula, every option with its range, cost, reference and an example."""
    text = inspect.getdoc(subject.cls) if subject.cls.__doc__ else ""
    if not text:
        raise CheckFailed(f"{subject.cls.__name__} has no docstring: say what it does, and what it costs")
    found = _Documented(*_head(text), arguments_of(text))
    problems = []
    if not found.summary.endswith("."):
        problems.append(f"the first line, {found.summary!r}, is no sentence: write a summary of one line that ends with a full stop")
    if not found.body:
        problems.append("there is nothing between summary and Args: give the formula, or say what is done")
    for name, field in subject.cls.Config.model_fields.items():
        told = found.arguments.get(name)
        if told is None:
            problems.append(f"the option {name!r} is not described under Args")
        elif _number_type(field.annotation) is not None and not _RANGE_WORDS.search(told):
            problems.append(f"the range of the option {name!r} is not told: write 'at least 0', 'in [0, 1]' or the like")
    unknown = sorted(set(found.arguments) - set(subject.cls.Config.model_fields) - _own_arguments(subject.cls))
    problems += [f"Args describes {name!r}, which is no option" for name in unknown]
    problems += [f"it has no section {word!r}" for word in ("Cost:", "Reference:") if word not in text]
    if ">>> " not in text:
        problems.append("there is no example: add one of the form >>> ...")
    if problems:
        raise CheckFailed(f"the docstring of {subject.cls.__name__}: {'; '.join(problems)}")


def _head(text: str) -> tuple[str, str]:
    """The first paragraph, which is to be one line, and what lies between it and the sections."""
    first, _, rest = text.partition("\n\n")
    body = re.split(r"^(?:Args|Raises|Attributes|Cost|Reference|Example)\b.*:", rest, maxsplit=1, flags=re.M)[0]
    summary = first if "\n" not in first.strip() or first.splitlines()[0].endswith(".") else first.splitlines()[0]
    summary_line, *more = summary.splitlines() or [""]
    return summary_line.strip(), ("\n".join(more) + body).strip()


def arguments_of(text: str) -> dict[str, str]:
    r"""What a docstring says of each argument, by name.

    Example:
        >>> arguments_of("Summary.\n\nArgs:\n    rate: above 0;\n        small.\n    a, b: two.\n\nCost: none.")
        {'rate': 'above 0; small.', 'a': 'two.', 'b': 'two.'}
    """
    _, found, rest = text.partition("\nArgs:\n")
    described: dict[str, str] = {}
    names: list[str] = []
    for line in rest.splitlines() if found else []:
        if line.strip() and not line.startswith(" "):
            break
        entry = re.match(r"    ([A-Za-z_]\w*(?:, [A-Za-z_]\w*)*):(?: (.*)|$)", line)
        if entry:
            names = entry[1].split(", ")
            described |= dict.fromkeys(names, entry[2] or "")
        else:
            described |= {name: f"{described[name]} {line.strip()}".strip() for name in names}
    return described


def _own_arguments(cls: type) -> set[str]:
    """Arguments of a constructor of the plugin's own, beside its options."""
    return set(inspect.signature(cls.__init__).parameters) | {"name"}  # type: ignore[misc]


def _outside_documented(told: str, kind: type) -> Iterator[tuple[Any, str]]:
    """Values outside the range that the documentation tells; the first range counts."""
    ranges = [found for pattern in (_INTERVAL, _AT_LEAST, _ABOVE) if (found := pattern.search(told))]
    if not ranges:
        return
    first = min(ranges, key=lambda found: found.start())
    why = f"though the documentation says {first[0]!r}"
    if first.re is _INTERVAL:
        low, high = float(first[2]), float(first[3])
        yield kind(low if first[1] == "(" else low - 1), why
        yield kind(high if first[4] == ")" else high + 1), why
    else:
        yield kind(float(first[1]) - (first.re is _AT_LEAST)), why
