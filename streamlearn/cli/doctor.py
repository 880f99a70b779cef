"""``plugins doctor``: which installed plugins can be used, and what to do about the others."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from streamlearn.cli.text import columns, width

if TYPE_CHECKING:
    from streamlearn.core.examination import Examined

__all__ = ["doctor"]


def doctor(as_json: bool = False) -> bool:
    """Load every installed plugin, print what is wrong with each, and return whether all can be used.

    A plugin that `STREAMLEARN_PLUGINS` keeps out is listed, not loaded, and counts as neither.
    """
    from streamlearn.core.registry import examine, unreadable

    found, damaged = examine(), unreadable()
    if as_json:
        told = {"plugins": [_entry(one) for one in found], "damaged": [{"path": path, "cause": cause} for path, cause in damaged]}
        print(json.dumps(told, indent=2))
    else:
        print(_text(found, damaged))
    return not damaged and all(one.state != "broken" for one in found)


def _entry(one: Examined) -> dict[str, Any]:
    return {**one.plugin._asdict(), "state": one.state, "problems": [problem._asdict() for problem in one.problems]}


def _text(found: list[Examined], damaged: list[tuple[str, str]]) -> str:
    rows = []
    for one in found:
        first, *more = [str(problem) for problem in one.problems] or [""]
        rows.append([one.state, one.plugin.name, f"{one.plugin.distribution} {one.plugin.version}", first])
        rows += [["", "", "", text] for text in more]
    lines = [columns(["state", "plugin", "distribution", "what is wrong: what to do"], rows, width()), ""]
    lines += [f"damaged: the entry points at {path} cannot be read ({cause}): install that distribution again" for path, cause in damaged]
    lines += _of_the_list()
    counts = {state: sum(one.state == state for one in found) for state in ("ok", "broken", "not allowed")}
    counts["damaged"] = len(damaged)
    return "\n".join([*lines, f"{len(found)} plugins: " + ", ".join(f"{n} {state}" for state, n in counts.items() if n or state == "ok")])


def _of_the_list() -> list[str]:
    from streamlearn.core.registry import ALLOWED, unknown_words

    listed = os.environ.get(ALLOWED)
    if listed is None:
        return []
    unknown = "".join(f"; nothing installed answers to {word!r}" for word in unknown_words(listed))
    return [f"{ALLOWED} is {listed!r}: only what it lists may be loaded{unknown}"]
