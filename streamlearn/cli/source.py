"""What the source text of an entry point tells of it, without importing anything: listing plugins must not wait for torch."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Definition", "read_definition"]


@dataclass(frozen=True, slots=True)
class Definition:
    """What could be read; anything that could not is empty.

    Args:
        documentation: first line of the docstring.
        arguments: of a function, with their defaults, as they are written.
        summary: of a plugin's ``info``.
        family: of a plugin's ``info``.
        hooks: methods that a plugin marks with ``hookimpl``.
    """

    documentation: str = ""
    arguments: tuple[str, ...] = ()
    summary: str = ""
    family: str = ""
    hooks: tuple[str, ...] = ()


def read_definition(reference: str) -> Definition:
    """The definition of ``module:name``; an empty one when its source cannot be found or read.

    Example:
        >>> read_definition("streamlearn.plugins.regularization.ewc:EWC").family
        'regularization'
    """
    module, _, name = reference.partition(":")
    try:
        path = _file_of(module.strip())
        nodes = [] if path is None else ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError, ImportError):
        return Definition()
    for node in nodes:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name.strip():
            return _class(node) if isinstance(node, ast.ClassDef) else Definition(_first_line(node), tuple(_arguments(node.args)))
    return Definition()


def _file_of(module: str) -> Path | None:
    """The file of ``module``, found from its top package downwards, so that no package on the way is imported."""
    top, *rest = module.split(".")
    found = importlib.util.find_spec(top)
    name = top
    for part in rest:
        if found is None or found.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        found = importlib.machinery.PathFinder.find_spec(name, list(found.submodule_search_locations))
    return Path(found.origin) if found is not None and found.origin is not None and found.origin.endswith(".py") else None


def _class(node: ast.ClassDef) -> Definition:
    info = next((call for statement in node.body for call in _info_calls(statement)), None)
    hooks = tuple(f.name for f in node.body if isinstance(f, ast.FunctionDef) and any(map(_is_hookimpl, f.decorator_list)))
    summary, family = ("", "") if info is None else (_text_argument(info, "summary", 2), _text_argument(info, "family", 1))
    return Definition(_first_line(node), (), summary, family, hooks)


def _info_calls(statement: ast.stmt) -> Iterator[ast.Call]:
    targets: Sequence[ast.expr] = ()
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    if any(isinstance(target, ast.Name) and target.id == "info" for target in targets):
        value = statement.value  # type: ignore[attr-defined]
        if isinstance(value, ast.Call):
            yield value


def _text_argument(call: ast.Call, name: str, place: int) -> str:
    given = [keyword.value for keyword in call.keywords if keyword.arg == name] or call.args[place : place + 1]
    return given[0].value if given and isinstance(given[0], ast.Constant) and isinstance(given[0].value, str) else ""


def _is_hookimpl(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return (isinstance(called, ast.Name) and called.id == "hookimpl") or (isinstance(called, ast.Attribute) and called.attr == "hookimpl")


def _first_line(node: ast.ClassDef | ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]


def _arguments(arguments: ast.arguments) -> Iterator[str]:
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    for argument, default in [*zip(positional, defaults, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]:
        yield argument.arg if default is None else f"{argument.arg}={ast.unparse(default)}"
