"""Writes ``docs/hooks.md`` and ``docs/plugins.md`` from the code: the contract, and a card for each built-in plugin.

    python docs/make_reference.py

A test compares the files with what this makes of the code, so neither is edited by hand.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from streamlearn.cli.catalogue import phases_of_hooks
from streamlearn.cli.plugin_card import example, option_row, passes_text, relations
from streamlearn.core import hooks, registry
from streamlearn.core.deprecation import hooks_of
from streamlearn.core.hooks import HOOK_API_VERSION, HOOKS, OLDEST_HOOK_API_VERSION, HookSpecs, kind_of, since_of
from streamlearn.core.plugin import Plugin

DOCS = Path(__file__).parent
MADE = "<!-- Made by docs/make_reference.py; do not edit. -->"
SECTION = re.compile(r"(Args|Cost|References?|Raises|Example|Returns|Source):")


def built_in() -> dict[str, type[Plugin]]:
    """The plugins of this distribution, by name."""
    return {p.name: registry.load(p.address) for p in registry.installed() if p.distribution == "streamlearn"}


# ------------------------------------------------------------------------------------------------ hooks.md


def hooks_page() -> str:
    """The contract as Markdown."""
    users = implementers()
    accepted = " to ".join(map(str, sorted({OLDEST_HOOK_API_VERSION, HOOK_API_VERSION})))
    lines = [
        MADE, "", "# The hooks", "",
        f"Everything that a plugin can do to a run is one of these {len(HOOKS)} methods. This is version {HOOK_API_VERSION} of the",
        f"contract; plugins written for version {accepted} are accepted. The source, in the order in which a run meets them, is",
        "[`streamlearn/core/hooks.py`](../streamlearn/core/hooks.py); how to write a plugin: [write-a-plugin.md](write-a-plugin.md).", "",
        "The prefix of a hook's name is its kind, and the kind says how several plugins combine:", "",
        "| prefix | kind | how several plugins combine |", "|---|---|---|", *_kinds(), "",
        "An implementation is marked with `@hookimpl` and may name any subset of the arguments, in any order. A mistyped hook or argument",
        "is refused before training, with the nearest name.", "",
        "| hook | phase | kind | since |", "|---|---|---|---|",
    ]  # fmt: skip
    phases = phases_of_hooks()
    lines += [f"| [`{hook}`](#{hook}) | {phases[hook]} | {kind_of(hook)} | {since_of(hook)} |" for hook in HOOKS]
    for phase in dict.fromkeys(phases.values()):
        lines += ["", f"## {phase.capitalize()}"]
        for hook in (hook for hook in HOOKS if phases[hook] == phase):
            lines += ["", *_hook_section(hook, phase, users[hook])]
    return "\n".join(lines) + "\n"


def implementers() -> dict[str, list[str]]:
    """For every hook, the built-in plugins that implement it."""
    users: dict[str, list[str]] = {hook: [] for hook in HOOKS}
    for name, cls in built_in().items():
        for hook in hooks_of(cls):
            users[hook].append(name)
    return users


def _kinds() -> Iterator[str]:
    """The table in the docstring of the contract, row by row."""
    doc = (hooks.__doc__ or "").splitlines()
    rules = [number for number, line in enumerate(doc) if line.startswith("=====")]
    rule, rows = doc[rules[1]], doc[rules[1] + 1 : rules[2]]
    ends = [place.end() for place in re.finditer("=+", rule)]
    for row in rows:
        cells = (row[start:end].strip() for start, end in zip([0, *ends[:-1]], [*ends[:-1], None], strict=True))
        yield "| " + " | ".join(map(_inline, cells)) + " |"


def _hook_section(hook: str, phase: str, users: list[str]) -> list[str]:
    signature = inspect.signature(getattr(HookSpecs, hook))
    arguments = [parameter for name, parameter in signature.parameters.items() if name != "self"]
    shown = str(signature.replace(parameters=arguments)).replace("'", "")
    used = ", ".join(f"[`{name}`](plugins.md#{name})" for name in users)
    return [
        f"### {hook}", "", "```python", f"def {hook}{shown.replace('(', '(self, ', 1)}", "```", "",
        f"*{phase}, {kind_of(hook)}, since {since_of(hook)}.* {_text(inspect.getdoc(getattr(HookSpecs, hook)) or '')}", "",
        f"Implemented by {used}.",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ plugins.md


def plugins_page() -> str:
    """A card for each built-in plugin as Markdown."""
    found = built_in()
    families = sorted({cls.info.family for cls in found.values()})
    lines = [
        MADE, "", "# The built-in plugins", "",
        "`streamlearn plugins info NAME` shows the same of every installed plugin, yours included. What a pair of them does together:",
        "[pairs.md](pairs.md).", "", "| plugin | family | what it does |", "|---|---|---|",
    ]  # fmt: skip
    for family in families:
        members = {name: cls for name, cls in found.items() if cls.info.family == family}
        lines += [f"| [`{name}`](#{name}) | {family} | {_cell(cls.info.summary)} |" for name, cls in members.items()]
    for family in families:
        lines += ["", f"## {family.capitalize()}"]
        for name, cls in found.items():
            if cls.info.family == family:
                lines += ["", *_card(name, cls)]
    return "\n".join(lines) + "\n"


def _card(name: str, cls: type[Plugin]) -> list[str]:
    info, told = cls.info, sections(inspect.getdoc(cls) or "")
    lines = [f"### {name}", "", f"{info.summary} `streamlearn.plugins.{cls.__name__}`", "", told[""], ""]
    meanings = arguments(told.get("Args", ""))
    if cls.Config.model_fields:
        lines += ["| option | type | default | allowed | meaning |", "|---|---|---|---|---|"]
        for option, field in cls.Config.model_fields.items():
            option_name, *cells = option_row(option, field)
            lines.append("| " + " | ".join([f"`{option_name}`", *map(_cell, cells), _cell(meanings.get(option, "-"))]) + " |")
        lines.append("")
    facts = {
        "Hooks": ", ".join(f"[`{hook}`](hooks.md#{hook})" for hook in hooks_of(cls)),
        **{field.capitalize(): f"`{value}`" for field, value in relations(info).items()},
        "Cost": _text(told["Cost"]) if "Cost" in told else f"{passes_text(info)}; memory: {info.memory}",
        "Reference": _text(told.get("Reference", info.reference)),
        "Use it": f"`--plugin {example(name, cls)}`",
    }
    return lines + [f"- **{label}**: {value}" for label, value in facts.items()]


def sections(doc: str) -> dict[str, str]:
    """A docstring by its sections; what stands before the first, and any paragraph of its own, under ``""``."""
    found: dict[str, list[str]] = {"": []}
    for paragraph in doc.split("\n\n"):
        head = SECTION.match(paragraph)
        if head is None:
            found[""].append(_paragraph(paragraph))
        else:
            found.setdefault(head[1].removesuffix("s") if head[1].startswith("Ref") else head[1], []).append(
                paragraph[head.end() :].lstrip(" ")
            )
    return {name: "\n\n".join(part for part in parts if part) for name, parts in found.items()}


def arguments(text: str) -> dict[str, str]:
    """The ``Args:`` of a docstring, by name."""
    found: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc("\n" + text).splitlines():
        begun = re.match(r"(\w+): (.*)", line)
        if begun is not None:
            name = begun[1]
            found[name] = begun[2]
        elif name:
            found[name] += " " + line.strip()
    return {key: _text(value) for key, value in found.items()}


def _paragraph(paragraph: str) -> str:
    formula = re.match(r"\.\. math::\s*(.*)", paragraph, flags=re.DOTALL)
    if formula is not None:
        return f"```math\n{inspect.cleandoc(formula[1])}\n```"
    return _inline(paragraph)


def _text(text: str) -> str:
    return _inline(" ".join(text.split()))


def _inline(text: str) -> str:
    return text.replace("``", "`")


def _cell(text: str) -> str:
    return _text(text).replace("|", "\\|")


PAGES = {"hooks.md": hooks_page, "plugins.md": plugins_page}
"""What is made, and by which function."""

if __name__ == "__main__":
    for page, make in PAGES.items():
        (DOCS / page).write_text(make(), encoding="utf-8")
