"""``plugins new``: the distribution of a new plugin, written and explained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamlearn.scaffold.kinds import KINDS

__all__ = ["new_plugin"]

_KINDS = "; ".join(f"{name}: {kind.what}" for name, kind in KINDS.items())


def new_plugin(
    name: Annotated[str, typer.Argument(help="Its name: lower-case words, joined by '-'.")],
    kind: Annotated[str, typer.Option(help=f"What it does. {_KINDS}.")] = "loss",
    folder: Annotated[Path, typer.Option(metavar="DIR", help="Where to make the folder streamlearn-NAME.")] = Path(),
) -> None:
    """Write the distribution of a new plugin: one small method that works, its tests, and its card.

    Example: streamlearn plugins new my-method --kind loss
    """
    from streamlearn.scaffold import create

    made = create(name, kind, folder)
    known = name.replace("-", "_")
    print(f"{made}: a plugin of kind {kind} that works; put your method in its place")
    for path in sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file()):
        print(f"  {path}")
    print(f"\nNext:\n  pip install --editable {made}\n  pytest {made}")
    print(f"  streamlearn {'streams show' if kind == 'stream' else 'plugins info'} {known}")
