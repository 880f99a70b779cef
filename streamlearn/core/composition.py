"""In which order plugins act, or why they cannot stand together.

Resolved once, before training:

1. the base order is the user's list;
2. ``info.before`` / ``info.after`` add edges, by plugin name or by capability;
3. a stable topological sort keeps the user's order wherever no edge speaks.

Duplicate names, a newer hook API, unmet requirements, conflicts, capabilities or exclusive hooks claimed twice, cycles and
unknown hooks are all reported in one error, each with its cure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streamlearn.core.deprecation import api_problem, hooks_of
from streamlearn.core.hooks import HOOKS, kind_of
from streamlearn.core.plugin import Passes, Plugin
from streamlearn.core.registration import Implementation, implementations
from streamlearn.core.registry import distributions_of
from streamlearn.errors import CompositionError

__all__ = ["Composition", "compose", "not_vmappable"]

_IN_THE_OBJECTIVE = frozenset({"transform_supervision", "provide_task_losses", "collect_terms", "provide_weighting", "around_objective"})
"""Hooks that a look-ahead calls for each episode."""


@dataclass(frozen=True, slots=True)
class Composition:
    """Plugins that may stand together, in the order in which they act.

    Attributes:
        plugins: in resolved order.
        table: for every hook who implements it, in resolved order (``after_`` hooks fire in reverse).
        reasons: why the order differs from the user's list, one sentence for each edge that counted.
    """

    plugins: tuple[Plugin, ...]
    table: Mapping[str, list[Implementation]]
    reasons: tuple[str, ...]

    @property
    def passes(self) -> Passes:
        """Passes per training step beyond one forward and one backward."""
        declared = [plugin.passes for plugin in self.plugins]
        evaluations = math.prod(1 + p.look_ahead for p in declared)
        forward, backward = (evaluations - 1 + sum(getattr(p, kind) for p in declared) for kind in ("forward", "backward"))
        return Passes(forward, backward, frozenset().union(*(p.teachers for p in declared)), evaluations - 1)

    def firing_order(self, hook: str) -> tuple[str, ...]:
        """Names of the plugins in the order in which ``hook`` calls them."""
        names = tuple(implementation.plugin for implementation in self.table[hook])
        return names[::-1] if hook.startswith("after_") else names

    def explain(self) -> str:
        """The resolved order for each hook and why, as text."""
        lines = ["plugins, in resolved order:"]
        lines += [f"  {number}. {plugin!r}: {plugin.info.summary}" for number, plugin in enumerate(self.plugins, 1)]
        if not self.plugins:
            lines.append("  none: plain training, one task after another")
        lines.append("why in this order:")
        lines += [f"  - {reason}" for reason in self.reasons] or ["  - as listed; no plugin asked for another place"]
        lines.append("hooks, in the order in which a run meets them, after_ beside before_ (a hook that is not listed costs nothing):")
        width = max(len(hook) for hook in HOOKS)
        lines += [f"  {hook:<{width}}  {_how(hook)}: {' > '.join(self.firing_order(hook))}" for hook in HOOKS if self.table[hook]]
        passes = self.passes
        lines.append(
            f"planned passes per step: {1 + passes.forward} forward, {1 + passes.backward} backward of the model"
            + (f", {len(passes.teachers)} forward of teachers ({', '.join(sorted(passes.teachers))})" if passes.teachers else "")
            + (f"; the objective is evaluated {1 + passes.look_ahead} times" if passes.look_ahead else "")
        )
        if any("inner-loop" in _answers_to(plugin) for plugin in self.plugins):
            stubborn = not_vmappable(self.plugins)
            told = f"one by one, because of {', '.join(stubborn)}" if stubborn else "at once where the model and the batch allow it"
            lines.append(f"episodes of a batch: {told}")
        return "\n".join(lines)


_HOW = {
    "event": "all run, in order",
    "additive": "contributions are added up, by name",
    "pipeline": "the value goes through, in order",
    "exclusive": "one plugin answers",
    "wrapper": "nested, the first is outermost",
}


def _how(hook: str) -> str:
    return "all run, in reverse order" if hook.startswith("after_") else _HOW[kind_of(hook)]


def compose(plugins: Sequence[Plugin]) -> Composition:
    """Order ``plugins``, or refuse them.

    Raises:
        CompositionError: they cannot stand together; it lists every reason.
    """
    problems = [*_duplicates(plugins), *_versions(plugins), *_requirements(plugins), *_conflicts(plugins)]
    order, reasons, cycle = _sorted(plugins)
    problems += cycle
    problems += _exclusive(plugins)
    table: Mapping[str, list[Implementation]] = {}
    try:
        table = implementations(list({plugin.name: plugin for plugin in order}.values()))  # duplicates are reported above
    except CompositionError as error:
        problems += error.problems
    if problems:
        raise CompositionError(problems)
    return Composition(tuple(order), table, tuple(reasons))


def not_vmappable(plugins: Sequence[Plugin]) -> list[str]:
    """Names of those that act in the objective and do not say that it can be evaluated for many episodes at once."""
    return [plugin.name for plugin in plugins if not plugin.info.vmappable and hooks_of(type(plugin)).keys() & _IN_THE_OBJECTIVE]


def _answers_to(plugin: Plugin) -> set[str]:
    """Every word by which others may refer to a plugin: its names and its capabilities."""
    return {plugin.name, plugin.info.name} | {capability.rstrip("!") for capability in plugin.info.provides}


def _duplicates(plugins: Sequence[Plugin]) -> list[str]:
    names = [plugin.name for plugin in plugins]
    return [
        f"{names.count(name)} plugins are called {name!r}: give each its own, as in {type(plugin).__name__}(..., name='{name}_2')"
        for name, plugin in {p.name: p for p in plugins}.items()
        if names.count(name) > 1
    ]


def _versions(plugins: Sequence[Plugin]) -> list[str]:
    problems = []
    for plugin in plugins:
        if api_problem(plugin.info.api) is not None:
            cause, cure = api_problem(plugin.info.api, distributions_of([plugin])[plugin.name].partition(" ")[0]) or ("", "")
            problems.append(f"{plugin.name} {cause}: {cure}")
    return problems


def _requirements(plugins: Sequence[Plugin]) -> list[str]:
    problems = []
    for plugin in plugins:
        others = set().union(*[_answers_to(other) for other in plugins if other is not plugin])
        problems += [
            f"{plugin.name} needs {need!r}, and no listed plugin provides it: add one ('streamlearn plugins list' shows them)"
            for need in sorted(plugin.info.requires - others)
        ]
    return problems


def _conflicts(plugins: Sequence[Plugin]) -> list[str]:
    problems = []
    for plugin in plugins:
        for other in plugins:
            met = sorted(plugin.info.conflicts & _answers_to(other)) if other is not plugin else []
            if met:
                problems.append(f"{plugin.name} cannot stand beside {other.name} ({', '.join(met)}): remove one of the two")
    claims: dict[str, list[str]] = {}
    for plugin in plugins:
        for capability in plugin.info.provides:
            if capability.endswith("!"):
                claims.setdefault(capability[:-1], []).append(plugin.name)
    for capability, names in claims.items():
        if len(names) > 1:
            problems.append(f"{len(names)} plugins bring {capability!r}, of which there can be one: {', '.join(names)}; remove all but one")
    return problems


def _exclusive(plugins: Sequence[Plugin]) -> list[str]:
    problems = []
    for hook in HOOKS:
        found = [plugin.name for plugin in plugins if hook in hooks_of(type(plugin))]
        if kind_of(hook) == "exclusive" and len(found) > 1:
            names = ", ".join(found)
            problems.append(f"{len(found)} plugins claim {hook!r}, which one alone can answer: {names}; remove all but one")
    return problems


def _sorted(plugins: Sequence[Plugin]) -> tuple[list[Plugin], list[str], list[str]]:
    """The stable topological order, the reasons that counted, and a description of a cycle if there is one."""
    edges = _edges(plugins)
    waiting, order = list(range(len(plugins))), []
    while waiting:
        free = next((i for i in waiting if not any(before in waiting for before, after in edges if after == i)), None)
        if free is None:
            names = ", ".join(plugins[i].name for i in waiting)
            told = "; ".join(reason for (a, b), reason in edges.items() if a in waiting and b in waiting)
            return list(plugins), [], [f"{names} each ask to come before the other ({told}): remove one of them"]
        waiting.remove(free)
        order.append(free)
    return [plugins[i] for i in order], list(edges.values()), []


def _edges(plugins: Sequence[Plugin]) -> dict[tuple[int, int], str]:
    edges: dict[tuple[int, int], str] = {}
    for i, plugin in enumerate(plugins):
        for j, other in enumerate(plugins):
            if i == j:
                continue
            for word in sorted(plugin.info.before & _answers_to(other)):
                edges[i, j] = f"{plugin.name} comes before {other.name}, because it asks to precede {word!r}"
            for word in sorted(plugin.info.after & _answers_to(other)):
                edges[j, i] = f"{other.name} comes before {plugin.name}, because the latter asks to follow {word!r}"
    return edges
