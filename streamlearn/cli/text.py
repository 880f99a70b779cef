"""Plain text in columns: as fast to make as it is to read, and the same in a terminal, a file and a pipe."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["columns", "options_text", "say", "width"]

_WIDEST = 10_000
_NARROWEST = 24  # characters that the last column gets in any case


def width() -> int:
    """Columns of the terminal, at most 140; elsewhere as wide as the text is, so that grep finds whole lines."""
    return min(shutil.get_terminal_size((100, 24)).columns, 140) if sys.stdout.isatty() else _WIDEST


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], total: int = 100) -> str:
    """``rows`` under ``head``; the last column is wrapped so that lines have at most ``total`` characters.

    Example:
        >>> print(columns(["name", "what"], [["ewc", "holds parameters"], ["replay", "mixes in rows"]]))
        name    what
        ----    ----
        ewc     holds parameters
        replay  mixes in rows
    """
    lines = [list(head), ["-" * len(title) for title in head], *map(list, rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(head) - 1)]
    indent = sum(widths) + 2 * len(widths)
    room = max(total - indent, _NARROWEST)
    text = []
    for *cells, last in lines:
        first, *more = textwrap.wrap(last, room) or [""]
        text.append("".join(cell.ljust(size + 2) for cell, size in zip(cells, widths, strict=True)) + first)
        text += [" " * indent + line for line in more]
    return "\n".join(line.rstrip() for line in text)


def options_text(options: Mapping[str, Any]) -> str:
    """``key=value, key=value``.

    Example:
        >>> options_text({"capacity": 500, "policy": "reservoir"})
        'capacity=500, policy=reservoir'
    """
    return ", ".join(f"{key}={value}" for key, value in options.items())


def say(text: str) -> None:
    """Print ``text`` at once, also into a pipe; above the bar while one moves (which is why it is not ``typer.echo``)."""
    print(text, flush=True)
