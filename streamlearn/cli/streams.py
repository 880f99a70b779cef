"""Streams before they are trained on: the texts of ``streams list`` and ``streams show``. The list imports nothing heavy."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamlearn.cli.source import read_definition
from streamlearn.cli.text import columns, options_text, width
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.streams import Stream
    from streamlearn.streams.overview import ExperienceOverview, Overview, RoleOverview

__all__ = ["list_streams", "show_stream"]

_SHOWN = 10  # experiences in the table of `streams show`
_CLASSES = 12  # class numbers, or domains, that are written one by one


def list_streams() -> None:
    """List the installed stream builders, and the operators that change what these build, without importing any of them."""
    from streamlearn.streams.catalogue import builders

    groups: dict[bool, list[list[str]]] = {False: [], True: []}
    for builder in builders():
        read = read_definition(builder.value)
        operator = read.arguments[:1] == ("stream",)
        options = f" Options: {', '.join(read.arguments[operator:])}." if read.arguments[operator:] else ""
        row = [builder.name, f"{builder.distribution} {builder.version}".strip(), (read.documentation or "-") + options]
        groups[operator].append(row)
    print(columns(["builder", "distribution", "what arrives"], groups[False], width()))
    print("\nOperators, which change a stream that stands before them: 'BUILDER:... | OPERATOR:...'\n")
    print(columns(["operator", "distribution", "what arrives"], groups[True], width()))
    print("\nMore on one: streamlearn streams show NAME; with options, the stream itself: NAME:source=digits,experiences=5")


def show_stream(text: str, output: Path | None = None, *, as_json: bool = False, samples: bool = True) -> None:
    """Show a stream: what arrives when. A name alone, without anything else asked for: the documentation of its builder.

    Args:
        text: a builder with its options, and operators after it.
        output: where to write a picture; its suffix says in which form.
        as_json: whether to print JSON in place of the table.
        samples: whether the picture shows sample inputs.

    Raises:
        ConfigurationError: a name or an option is wrong; a picture option is given without a picture.
        DataError: the stream cannot be built, or the picture cannot be written.
    """
    from streamlearn.options import parse_chain
    from streamlearn.streams.catalogue import build_chain, builder_named

    links = parse_chain(text)
    if not samples and output is None:
        raise ConfigurationError("--no-samples is about the picture, and none is asked for: add --output FILE.svg, or leave it out")
    name, options = links[0]
    if len(links) == 1 and not options and output is None and not as_json:
        builder = builder_named(name)
        print(f"{name}{inspect.signature(builder)}\n\n{inspect.getdoc(builder) or '-'}")
        return
    if output is not None:
        from streamlearn.streams.drawing import check_picture

        check_picture(output)  # before anything is loaded
    stream = build_chain(links)
    print(_as_json(stream) if as_json else _as_text(stream))
    if output is not None:
        from streamlearn.streams.drawing import draw, write

        write(draw(stream, samples=samples), output)
    if not as_json:
        print(f"\nwrote {output}" if output is not None else "\nA picture of it: add --output FILE.svg (or .png, .pdf)")


def _as_json(stream: Stream) -> str:
    from streamlearn.streams.overview import overview

    return json.dumps({"stream": stream.describe(), "overview": overview(stream).to_json()}, indent=2)


def _as_text(stream: Stream) -> str:
    from streamlearn.streams.overview import overview

    told = stream.describe()
    found = overview(stream if stream.endless else stream[:_SHOWN], most=_SHOWN)
    tasks = [f"{task['name']} ({task['kind']}, {task['size']} outputs)" for task in told["tasks"]]
    shape = "x".join(map(str, told["input_shape"])) or "one value"
    lines = [
        f"{told['name']}: {_length(stream)}, inputs {shape}, hash {told['hash']}",
        f"built by: {_built_by(told['description'])}",
        f"tasks: {', '.join(tasks[:_SHOWN])}{', ...' if len(tasks) > _SHOWN else ''}",
        "",
        _table(found),
    ]
    if stream.endless:
        lines.append("... and so on without end")
    elif len(stream) > _SHOWN:
        lines.append(f"... and {len(stream) - _SHOWN} more")
    return "\n".join(lines)


def _built_by(description: Mapping[str, Any]) -> str:
    """The builder and its options, and after each ``|`` an operator and its own."""
    inner = {key: value for key, value in description.items() if isinstance(value, Mapping) and "builder" in value}
    outer = options_text({key: value for key, value in description.items() if key not in inner})
    return " | ".join([*(_built_by(value) for value in inner.values()), outer])


def _length(stream: Stream) -> str:
    return "endless" if stream.endless else f"{len(stream)} experience{'' if len(stream) == 1 else 's'}"


def _table(found: Overview) -> str:
    """A row for each experience; columns that would say nothing are left out."""
    sets = {one.index: one for one in found.sets}
    names = found.experiences
    cells: dict[str, list[str]] = {
        "experience": [str(one.index + 1) for one in names],
        "rows": [_by_role(one) for one in names],
        "test rows": [_amount([sets[k].rows for k in one.sets]) for one in names],
    }
    if any(role.amount.labelled < role.amount.rows for one in names for role in one.roles.values()):
        cells["labelled"] = [str(one.whole.amount.labelled) for one in names]
    if any(one.scored for one in names):
        cells["scored first"] = [str(one.scored) for one in names]
    cells["classes"] = [_classes(one) for one in names]
    if any(domain for one in names for domain in one.whole.domains):
        cells["domains"] = [_some([domain.strip("/") or "(unnamed)" for domain in one.whole.domains]) for one in names]
    if any(one.sets != (one.index,) for one in names):
        cells["evaluated on"] = [_some([sets[k].name or str(k + 1) for k in one.sets]) for one in names]
    cells["name"] = [one.name or "-" for one in names]
    return columns(list(cells), [list(row) for row in zip(*cells.values(), strict=True)])


def _by_role(one: ExperienceOverview) -> str:
    return ", ".join(_amount([rows]) if role == "train" else f"{role} {_amount([rows])}" for role, rows in one.roles.items())


def _amount(several: Sequence[RoleOverview]) -> str:
    """How many rows, or how many episodes of how many rows."""
    rows, episodes = sum(one.amount.rows for one in several), sum(one.episodes for one in several)
    return f"{episodes} episodes of {rows // episodes} rows" if episodes else str(rows)


def _classes(one: ExperienceOverview) -> str:
    found = {task: list(rows.classes) for task, rows in one.whole.tasks.items() if rows.classes}
    return "; ".join(dict.fromkeys(_some(list(map(str, classes))) for classes in found.values())) or "-"


def _some(words: Sequence[str]) -> str:
    """All ``words``, or, of many, the first few and how many they are."""
    if len(words) <= _CLASSES:
        return ",".join(words)
    return f"{','.join(words[: _CLASSES - 4])},... ({len(words)})"
