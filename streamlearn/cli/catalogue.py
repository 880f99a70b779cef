"""What is installed: the texts of ``plugins list|info`` and ``hooks``. The lists import nothing heavy."""

from __future__ import annotations

import inspect
import json

from streamlearn.cli.source import read_definition
from streamlearn.cli.text import columns, width

__all__ = ["list_hooks", "list_plugins", "phases_of_hooks", "show_plugin"]


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
    phases, rows = phases_of_hooks(), []
    for hook in HOOKS:
        line = (inspect.getdoc(getattr(HookSpecs, hook)) or "").partition("\n")[0].replace("``", "")
        used = f" [{', '.join(users[hook])}]" if hook in users else ""
        rows.append([hook, kind_of(hook), phases.get(hook, "-"), line + used])
    print(columns(["hook", "kind", "phase", "what for [installed plugins that use it]"], rows, width()))
    print("\nkinds: event: all run; additive: contributions are summed; pipeline: the value goes through all; exclusive: one answers;")
    print("wrapper: nested, the first listed is outermost. The contract: streamlearn/core/hooks.py")


def phases_of_hooks() -> dict[str, str]:
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
