"""Writing the distribution of a new plugin or stream: everything that a stranger needs to begin, and nothing that he must undo."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from streamlearn.errors import ConfigurationError, RunFolderError, UnknownNameError
from streamlearn.scaffold.kinds import KINDS

__all__ = ["KINDS", "create"]

_LONGEST = 40
_FORM = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")
_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    ".gitignore": "gitignore",
    "src/{package}/__init__.py": "__init__.py",
    "src/{package}/py.typed": "py.typed",
    "src/{package}/{module}.py": "{kind}.py",
    "tests/test_conformance.py": "test_conformance.py",
    "tests/test_{name}.py": "test_{kind}.py",
}
"""What is written, and the template that it is made of."""


def create(name: str, kind: str, folder: str | Path = ".") -> Path:
    """Write a distribution with one working method, its tests and its card, into ``folder``/streamlearn-NAME.

    Args:
        name: of the plugin or stream builder: lower-case words of letters and digits, joined by ``-`` or ``_``; at most 40 characters.
        kind: one of `KINDS`.
        folder: where the new folder is made; made itself if it is not there.

    Returns:
        The new folder.

    Raises:
        UnknownNameError: there is no such kind.
        ConfigurationError: the name cannot be used, or is taken; others are offered.
        RunFolderError: the new folder holds something already, or cannot be written.

    Example:
        >>> import tempfile
        >>> made = create("my-method", "loss", tempfile.mkdtemp())
        >>> made.name, sorted(path.name for path in made.rglob("*.py"))
        ('streamlearn-my-method', ['__init__.py', 'method.py', 'test_conformance.py', 'test_my_method.py'])
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of plugin", kind, KINDS)
    chosen = _checked(name, kind)
    target = Path(folder) / f"streamlearn-{chosen.replace('_', '-')}"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunFolderError(f"{target} is there already, and nothing in it is overwritten: choose another name or another --folder")
    _write(target, _rendered(chosen, kind))
    return target


def _checked(name: str, kind: str) -> str:
    """``name`` in the form of an entry point; refused when it is none, or taken."""
    wanted = name.replace("-", "_")
    if not _FORM.fullmatch(name) or len(name) > _LONGEST or keyword.iskeyword(wanted):
        offer = _mended(name)
        raise ConfigurationError(
            f"{name!r} cannot be the name of a plugin: give words of lower-case letters and digits, joined by '-', at most {_LONGEST} "
            f"characters and no word of Python{f', such as {offer!r}' if offer else ''}"
        )
    if wanted.startswith("streamlearn_"):
        raise ConfigurationError(
            f"{name!r} begins with 'streamlearn', which is put before the name of the distribution anyway: "
            f"write {name.removeprefix('streamlearn')[1:]!r}"
        )
    owners = _taken(kind)
    if wanted in owners:
        free = [other for other in (f"my_{wanted}", f"{wanted}_plus", f"{wanted}_2") if other not in owners]
        what = "stream builder" if kind == "stream" else "plugin"
        raise ConfigurationError(
            f"there is a {what} {wanted!r} already, in {owners[wanted]}: choose another name, such as {' or '.join(map(repr, free))}"
        )
    return wanted


def _mended(name: str) -> str:
    """The nearest name that has the right form, empty if there is none."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name)  # MyMethod is two words
    mended = "-".join(re.findall(r"[a-z0-9]+", spaced.lower())).lstrip("0123456789-")[:_LONGEST].rstrip("-")
    return f"my-{mended}" if keyword.iskeyword(mended) else mended


def _taken(kind: str) -> dict[str, str]:
    """Which distribution brought each name that is installed."""
    if kind == "stream":
        from streamlearn.streams.catalogue import builders

        return {builder.name.replace("-", "_"): builder.distribution for builder in builders()}
    from streamlearn.core.registry import installed

    return {plugin.name: plugin.distribution for plugin in installed()}


def _rendered(name: str, kind: str) -> dict[str, str]:
    """The text of every file, by its path."""
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("streamlearn.scaffold"), undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    templates.filters["in_order"] = _in_order
    words = name.split("_")
    context = {
        "name": name,
        "dashed": "-".join(words),
        "package": f"streamlearn_{name}",
        "class_name": "".join(word.capitalize() for word in words),
        "title": " ".join(words).capitalize(),
        "module": "builder" if kind == "stream" else "method",
        "kind": kind,
        "card": KINDS[kind],
    }
    return {
        path.format(**context): templates.get_template(f"{template.format(**context)}.j2").render(context)
        for path, template in _FILES.items()
    }


def _in_order(names: list[str]) -> list[str]:
    """As tools sort ``__all__``: constants, then classes, then functions; a class called X2 passes for a constant."""
    return sorted(names, key=lambda name: (not name.isupper(), name))


def _write(target: Path, files: dict[str, str]) -> None:
    try:
        for path, text in files.items():
            file = target / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"cannot write {target}: {error.strerror or error}; choose another --folder") from error
