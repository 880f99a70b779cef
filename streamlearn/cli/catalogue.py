"""What is installed: the texts of ``plugins list|info``, ``hooks``, ``streams list|show``. The three lists import nothing heavy."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

from streamlearn.cli.source import read_definition
from streamlearn.cli.text import columns, options_text, width

if TYPE_CHECKING:
    from streamlearn.streams import Stream
    from streamlearn.streams.data import Data, JoinedData

__all__ = ["list_hooks", "list_plugins", "list_streams", "show_plugin", "show_stream"]

_SHOWN = 10  # experiences that `streams show` lists


def list_plugins(as_json: bool = False) -> None:
    """List the installed plugins, without importing any of them."""
    from streamlearn.core.registry import installed

    found = []
    for plugin in installed():
        read = read_definition(plugin.reference)
        summary = read.summary or read.documentation or "-"
        family = read.family or plugin.family
        found.append({**plugin._asdict(), "family": family, "summary": summary, "hooks": list(read.hooks)})
    if as_json:
        print(json.dumps(found, indent=2))
        return
    rows = [[p["name"], p["family"], f"{p['distribution']} {p['version']}", p["summary"]] for p in found]
    print(columns(["name", "family", "distribution", "summary"], rows, width()))
    print("\nOptions of one: streamlearn plugins info NAME")


def show_plugin(name: str) -> None:
    """Show the options of a plugin, its hooks, its cost and its reference."""
    from streamlearn.cli.plugin_card import card

    print(card(name, width()))


def list_hooks() -> None:
    """List the hooks that a plugin can implement, and which installed plugins do."""
    from streamlearn.core.hooks import HOOKS, HookSpecs, kind_of
    from streamlearn.core.registry import installed

    users: dict[str, list[str]] = {}
    for plugin in installed():
        for hook in read_definition(plugin.reference).hooks:
            users.setdefault(hook, []).append(plugin.name)
    phases, rows = _phases(), []
    for hook in HOOKS:
        line = (inspect.getdoc(getattr(HookSpecs, hook)) or "").partition("\n")[0].replace("``", "")
        used = f" [{', '.join(users[hook])}]" if hook in users else ""
        rows.append([hook, kind_of(hook), phases.get(hook, "-"), line + used])
    print(columns(["hook", "kind", "phase", "what for [installed plugins that use it]"], rows, width()))
    print("\nkinds: event: all run; additive: contributions are summed; pipeline: the value goes through all; exclusive: one answers;")
    print("wrapper: nested, the first listed is outermost. The contract: streamlearn/core/hooks.py")


def _phases() -> dict[str, str]:
    """The part of a run in which each hook fires: the last marked heading above it in the source of the contract."""
    from streamlearn.core.hooks import HOOKS, HookSpecs

    phase, phases = "-", {}
    for line in inspect.getsource(HookSpecs).splitlines():
        text = line.strip()
        if text.startswith("# ---"):
            phase = text.strip("#- ")
        elif text.startswith("def ") and (hook := text[4:].partition("(")[0]) in HOOKS:
            phases[hook] = phase
    return phases


def list_streams() -> None:
    """List the installed stream builders and their options, without importing any of them."""
    from streamlearn.streams.catalogue import builders

    rows = []
    for builder in builders():
        read = read_definition(builder.value)
        options = f" Options: {', '.join(read.arguments)}." if read.arguments else ""
        rows.append([builder.name, f"{builder.distribution} {builder.version}".strip(), (read.documentation or "-") + options])
    print(columns(["name", "distribution", "what"], rows, width()))
    print("\nMore on one: streamlearn streams show NAME; with options, the stream itself: NAME:source=digits,experiences=5")


def show_stream(text: str) -> None:
    """Show a stream: its tasks and experiences. Without options: the documentation of its builder."""
    from streamlearn.cli.build import stream_builder
    from streamlearn.options import parse
    from streamlearn.streams.catalogue import build

    name, options = parse(text)
    if not options:
        builder = stream_builder(name)
        print(f"{name}{inspect.signature(builder)}\n\n{inspect.getdoc(builder) or '-'}")
        return
    print(_stream_text(build(name, **options)))


def _stream_text(stream: Stream) -> str:
    told = stream.describe()
    tasks = [f"{task['name']} ({task['kind']}, {task['size']} outputs)" for task in told["tasks"]]
    length, shape = f"{len(stream)} experience{'' if len(stream) == 1 else 's'}", "x".join(map(str, told["input_shape"]))
    lines = [
        f"{told['name']}: {length}, inputs {shape}, hash {told['hash']}",
        f"built by: {options_text(told['description'])}",
        f"tasks: {', '.join(tasks[:_SHOWN])}{', ...' if len(tasks) > _SHOWN else ''}",
        "",
        columns(
            ["experience", "rows", "test rows", "classes", "name"], [_experience_row(stream, i) for i in range(min(len(stream), _SHOWN))]
        ),
    ]
    if len(stream) > _SHOWN:
        lines.append(f"... and {len(stream) - _SHOWN} more")
    return "\n".join(lines)


def _experience_row(stream: Stream, i: int) -> list[str]:
    experience = stream[i]
    roles: dict[str, Any] = dict(experience.data)
    rows = ", ".join(_amount(data) if role == "train" else f"{role} {_amount(data)}" for role, data in roles.items())
    classes = "; ".join(dict.fromkeys(",".join(map(str, found)) for found in experience.classes.values())) or "-"
    return [str(i + 1), rows, _amount(stream.evaluation(i).data), classes, experience.name or "-"]


def _amount(data: Data | JoinedData) -> str:
    """How many rows, or how many episodes of how many rows."""
    rows = sum(len(part.indices) for part in data.parts())
    return str(rows) if rows == len(data) else f"{len(data)} episodes of {rows // len(data)} rows"
