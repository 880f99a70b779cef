"""What Avalanche's plugins may change, read from their source: Avalanche itself has them declare nothing."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Sequence
from typing import Any

__all__ = ["ANYTHING", "LOADERS", "changes", "changes_predictions", "clashes"]

ANYTHING = frozenset({"anything"})
"""Said of a plugin whose source cannot be read."""

LOADERS = frozenset({"dataloader", "adapted_dataset"})
"""Attributes of a strategy that say what is trained on."""

_GRADIENTS = ("after_backward", "before_update")


def changes(plugin: Any) -> frozenset[str]:
    """Attributes of the strategy that ``plugin`` assigns to in any of its methods, and ``"gradients"`` if it acts between the backward
    pass and the update.

    Example:
        >>> class Penalty:
        ...     def before_backward(self, strategy, **kwargs):
        ...         strategy.loss += 1.0
        >>> changes(Penalty())  # typed at a prompt, it has no source to read
        frozenset({'anything'})
    """
    found: set[str] = set()
    for cls in _written_by_authors(plugin):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
        except (OSError, TypeError, SyntaxError):
            return ANYTHING
        found |= {name for node in ast.walk(tree) for target in _targets(node) for name in _of_strategy(target)}
        if any(hook in vars(cls) for hook in _GRADIENTS):
            found.add("gradients")
    return frozenset(found)


def changes_predictions(plugin: Any) -> bool:
    """Whether ``plugin`` acts in evaluations after the forward pass, and changes outputs there."""
    acts = any(hook in vars(cls) for cls in _written_by_authors(plugin) for hook in ("after_eval_forward", "after_eval_iteration"))
    return acts and bool(changes(plugin) & {"mb_output", *ANYTHING})


def _written_by_authors(plugin: Any) -> list[type]:
    """The classes of ``plugin`` without those that hold nothing but empty callbacks."""
    empty = ("avalanche.core", "avalanche.training.plugins.strategy_plugin", "typing", "builtins", "abc")
    return [cls for cls in type(plugin).__mro__ if cls.__module__ not in empty]


def _targets(node: ast.AST) -> Sequence[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign) else []


def _of_strategy(target: ast.expr) -> list[str]:
    """``loss`` of ``strategy.loss``, ``strategy.loss[0]`` and ``strategy.loss.data``."""
    if isinstance(target, ast.Tuple | ast.List):
        return [name for part in target.elts for name in _of_strategy(part)]
    while isinstance(target, ast.Attribute | ast.Subscript | ast.Starred):
        inner = target.value
        if isinstance(target, ast.Attribute) and isinstance(inner, ast.Name) and inner.id == "strategy":
            return [target.attr]
        target = inner
    return []


def clashes(plugins: Sequence[Any]) -> list[str]:
    """What Avalanche leaves undefined among ``plugins``: two that say what is trained on, of which one silently wins."""
    found = [type(plugin).__name__ for plugin in plugins if changes(plugin) & LOADERS]
    if len(found) < 2:
        return []
    return [f"{' and '.join(found)} each say what is trained on, and in Avalanche the last silently wins: list one of them"]
