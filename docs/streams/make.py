"""Writes docs/streams.md and its pictures: ``python docs/streams/make.py``, or ``--text`` for the text alone.

What a builder does and who uses its protocol is read from its docstring; here stands only with which options it is shown.
"""

from __future__ import annotations

import inspect
import io
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from streamlearn.cli.source import read_definition
from streamlearn.options import parse_chain
from streamlearn.streams import Stream, build_chain
from streamlearn.streams.catalogue import builder_named
from streamlearn.streams.sources import NAMES

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "streams.md"
LARGEST = 60_000  # bytes of a picture


class Entry(NamedTuple):
    """How a builder is shown: in text form, and, where that is not written by machine, as Python."""

    text: str
    python: str = ""

    @property
    def name(self) -> str:
        """Of the builder: the last of the chain."""
        return parse_chain(self.text)[-1][0]

    @property
    def code(self) -> str:
        """The call in Python."""
        return self.python or in_python(self.text)


BUILDERS = [
    Entry("class_incremental:source=digits,experiences=5"),
    Entry("task_incremental:source=digits,experiences=5"),
    Entry("domain_incremental:source=digits,experiences=6,transform=rotation"),
    Entry("data_incremental:source=digits,experiences=8"),
    Entry("class_incremental:source=digits | joint"),
    Entry("multitask:source=digits,experiences=2"),
    Entry("adaptation:source=moons"),
    Entry("gradual_adaptation:source=digits,experiences=6"),
    Entry('test_time:source=digits,shifts=["gaussian_noise","contrast"],order=gradual'),
    Entry("episodes:source=sinusoids,train_episodes=100"),
    Entry(
        'concatenated:streams=["task_incremental:source=digits,experiences=2","domain_incremental:source=digits,experiences=3"]',
        'concatenated([task_incremental("digits", experiences=2), domain_incremental("digits", experiences=3)])',
    ),
    Entry('from_datasets:train=["moons:noise=0.05","moons:seed=1,noise=0.3"],names=["clean","noisy"]'),
]
OPERATORS = [
    Entry("class_incremental:source=digits | online:rows=10"),
    Entry("class_incremental:source=digits | blurry:fraction=0.3"),
    Entry("class_incremental:source=digits | gradual:width=0.5,experiences=40"),
    Entry("class_incremental:source=digits | recurring:times=3"),
    Entry("class_incremental:source=digits | imbalanced:factor=0.02"),
    Entry("class_incremental:source=digits | validation:fraction=0.2"),
    Entry("class_incremental:source=digits | label_policy:policy=delayed,steps=1"),
    Entry("class_incremental:source=digits | augmented:crop=1,flip=true"),
    Entry("domain_incremental:source=digits,experiences=3 | online:rows=100 | task_free"),
    Entry("multitask:source=digits | single_task:task=left"),
]


def in_python(text: str) -> str:
    """A chain as the call that builds the same stream.

    Example:
        >>> in_python("class_incremental:source=digits,experiences=5 | online:rows=10")
        'online(class_incremental("digits", experiences=5), rows=10)'
    """
    code = ""
    for name, options in parse_chain(text):
        first = next(iter(inspect.signature(builder_named(name)).parameters))
        inner = [code] if code else [_literal(options[first])] if first in options else []
        outer = [f"{key}={_literal(value)}" for key, value in options.items() if key != first]
        code = f"{name}({', '.join(inner + outer)})"
    return code


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return f"[{', '.join(map(_literal, value))}]" if isinstance(value, list) else repr(value)


# ---------------------------------------------------------------------- text


def page() -> str:
    """The whole of docs/streams.md."""
    start = (HERE / "introduction.md").read_text().rstrip()
    parts = [start.replace("SOURCES", _sources()).replace("BUILDERS", _table(BUILDERS)).replace("OPERATORS", _table(OPERATORS))]
    parts.append(
        "## Builders in pictures\n\nExperiences run to the right. Blue rows have labels that training sees, orange ones have none."
    )
    parts += [_section(entry) for entry in BUILDERS]
    parts.append("## Operators in pictures")
    parts += [_section(entry) for entry in OPERATORS]
    return "\n\n".join(parts) + "\n"


def _table(entries: list[Entry]) -> str:
    rows = [f"| [`{entry.name}`](#{entry.name}) | {_cell(_summary(entry.name))} |" for entry in entries]
    return "\n".join(["| name | what arrives |", "|---|---|", *rows])


def _section(entry: Entry) -> str:
    return "\n".join(
        [
            f"### {entry.name}",
            "",
            _summary(entry.name),
            f"Used by: {_source(entry.name)}",
            "",
            "```python",
            entry.code,
            "```",
            "```text",
            entry.text,
            "```",
            "",
            f"![{entry.code.replace('[', '(').replace(']', ')')}: what arrives when](streams/{entry.name}.png)",
        ]
    )


def _sources() -> str:
    rows = []
    for name in sorted(NAMES):
        reference = f"streamlearn.streams.sources.{NAMES[name]}"
        module, _, function = reference.partition(":")
        made = getattr(__import__(module, fromlist=[function]), function)
        options = ", ".join(f"`{argument}`" for argument in read_definition(reference).arguments) or "none"
        rows.append(f"| `{name}` | {_cell(_first_sentence(made))} | {_cell(options)} |")
    return "\n".join(["| name | rows | options |", "|---|---|---|", *rows])


def _first_sentence(function: Callable[..., Any]) -> str:
    paragraph = " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())
    text = re.sub(r'^``"[^"]*"``: ', "", paragraph)
    return text[:1].upper() + text[1:]


def _summary(name: str) -> str:
    return (inspect.getdoc(builder_named(name)) or "").partition("\n")[0]


def _source(name: str) -> str:
    """What the docstring says of the papers or peers that use the protocol."""
    found = re.search(r"^Source: (.*?)(?:\n\s*\n|\Z)", inspect.getdoc(builder_named(name)) or "", flags=re.DOTALL | re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# ---------------------------------------------------------------------- pictures


def built(entry: Entry) -> Stream:
    """The stream that an entry shows."""
    return build_chain(entry.text)


def drawn(entry: Entry) -> bytes:
    """Its picture: a PNG of few colours, which is smaller than an SVG with sample images in it."""
    from PIL import Image

    from streamlearn.streams.drawing import draw, picture

    out = io.BytesIO()
    with Image.open(io.BytesIO(picture(draw(built(entry)), ".png"))) as image:
        image.convert("RGB").quantize(96, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def main(words: list[str]) -> None:
    """Write the page and, unless ``--text`` is given, the pictures."""
    if "--text" not in words:
        for entry in (*BUILDERS, *OPERATORS):
            content = drawn(entry)
            (HERE / f"{entry.name}.png").write_bytes(content)
            print(f"{entry.name}.png: {len(content):,} bytes{' TOO LARGE' if len(content) > LARGEST else ''}")
    PAGE.write_text(page())
    print(f"wrote {PAGE}")


def registered() -> Mapping[str, str]:
    """The entries by the name of their builder."""
    return {entry.name: entry.text for entry in (*BUILDERS, *OPERATORS)}


if __name__ == "__main__":
    main(sys.argv[1:])
