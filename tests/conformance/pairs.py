"""Every pair of built-in plugins on one small stream: what happens when two of them stand together.

    python -m tests.conformance.pairs        writes docs/pairs.md

The stream holds what any of them needs: two experiences with two tasks on every row, labelled training and validation rows and
unlabelled target rows of another domain; then an experience with target rows alone. The network has BatchNorm.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from streamlearn import Engine, Plugin
from streamlearn.core import registry
from streamlearn.errors import CompositionError, ConfigurationError
from streamlearn.models import Heads, Model
from streamlearn.streams import Data, EvaluationSet, Experience, Stream, Task
from streamlearn.streams.data import Target
from tests.core.support import blobs, probe, sgd

A, B = Task("a", size=4), Task("b", size=2)
FIRST, SECOND, THIRD = (Task(name, size=2) for name in ("first", "second", "third"))
KINDS: dict[str, tuple[Task, ...]] = {"two tasks a row": (A, B), "one task": (A,), "a task for each experience": (FIRST, SECOND, THIRD)}
"""Most plugins meet rows with two tasks; some are made for one."""

WANTS = {
    "bic": "one task",
    "packnet": "a task for each experience",
    "hat": "a task for each experience",
    "separate_networks": "a task for each experience",
    "soft_sharing": "a task for each experience",  # heads of equal shape, to compare
    "trace_norm": "a task for each experience",
    "task_relationships": "a task for each experience",
}
"""What kind of stream a plugin is made for, if not any."""


def kind_for(together: tuple[str, ...]) -> str:
    """The kind of stream on which some plugins meet."""
    return next((WANTS[name] for name in together if name in WANTS), "two tasks a row")


def _asked(kind: str, i: int) -> tuple[tuple[Task, ...], dict[str, Target]]:
    """The tasks of experience ``i``, and where their labels are."""
    tasks = ((FIRST, SECOND, THIRD)[i],) if kind == "a task for each experience" else KINDS[kind]
    return tasks, {task.name: Target("y") if task is A else Target("y", torch.tensor([0, 1, 0, 1])) for task in tasks}


def stream(kind: str) -> Stream:
    source, other = blobs(96, 4, name="source"), blobs(40, 4, seed=5, name="other")

    def rows(i: int) -> Tensor:
        return (source.targets["y"] // 2 == i).nonzero().flatten()

    def experience(i: int) -> Experience:
        tasks, targets = _asked(kind, i)
        hidden = Data(other, torch.arange(10 * i, 10 * i + 10), tasks, targets, domain="other").without_labels()
        if i == 2:
            return Experience(i, tasks, {"target": hidden}, "target alone")
        data = Data(source, rows(i), tasks, targets)
        roles = {"train": data.subset(torch.arange(20)), "validation": data.subset(torch.arange(20, 24)), "target": hidden}
        return Experience(i, tasks, roles, f"part {i}", {task.name: (2 * i, 2 * i + 1) if task is A else (0, 1) for task in tasks})

    def evaluation(i: int) -> EvaluationSet:
        tasks, targets = _asked(kind, i)
        if i == 2:
            return EvaluationSet(i, Data(other, torch.arange(20, 30), tasks, targets, domain="other"), "target alone")
        return EvaluationSet(i, Data(source, rows(i)[24:], tasks, targets), f"part {i}")

    described = {"by": "hand", "kind": kind}
    return Stream("pairs", 3, experience, evaluation, tasks=KINDS[kind], input_shape=(6,), description=described, fingerprints=("pairs",))


def network(kind: str) -> Model:
    torch.manual_seed(7)
    return Model(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()), Heads(8, KINDS[kind]))


def teacher(size: int) -> nn.Module:
    torch.manual_seed(size)
    return nn.Linear(6, size)


SPECIAL: Mapping[str, Callable[[Path, str], Mapping[str, Any]]] = {
    "constant_weighting": lambda folder, kind: {"weights": {KINDS[kind][0].name: 3.0}},
    "csv_tracker": lambda folder, kind: {"path": folder / "run.csv"},
    "gradient_similarity": lambda folder, kind: {"main": KINDS[kind][0].name},
    "mer": lambda folder, kind: {"batch_size": 2, "capacity": 12},
    "meta_sgd": lambda folder, kind: {"rate_learning": 1e-3},
    "multi_teacher": lambda folder, kind: {"teachers": {task.name: teacher(task.size) for task in KINDS[kind]}},
    "agem": lambda folder, kind: {"capacity": 12},
    "forward_hypergradient": lambda folder, kind: {"tune": ("weight_decay",), "every": 1},
    "implicit_hypergradient": lambda folder, kind: {"tune": ("weight_decay",)},
    "from_prior": lambda folder, kind: {"at_experience": "blend"},
    "frozen_backbone": lambda folder, kind: {"patterns": ("encoder.0.*",)},  # what learns from features has something to do
    "ranpac": lambda folder, kind: {"dimensions": 50},
    "generative_replay": lambda folder, kind: {"likelihood": "gaussian", "hidden": (8,), "latent": 3},
    "replay": lambda folder, kind: {"capacity": 12},
    "curriculum": lambda folder, kind: {"order": [1, 0, 2]},
}
"""Options of those that need some, or that would do nothing at their defaults."""

NEEDS = {"er_ace": "replay", "experience_weighting": "replay", "nearest_class_mean": "replay", "bic": "replay"}
"""What must stand beside a plugin; it is added when neither of a pair provides it."""


def names() -> list[str]:
    """The built-in plugins, by name."""
    return [plugin.name for plugin in registry.installed() if plugin.distribution == "streamlearn"]


@dataclass
class Outcome:
    """What became of some plugins together."""

    refused: str | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    terms: set[str] = field(default_factory=set)
    measured: list[Any] = field(default_factory=list)
    finite: bool = True
    updates: int = 0


@cache
def outcome(*together: str) -> Outcome:
    """Train with the plugins called ``together``, in this order, and tell what happened."""
    return _outcome(together, kind_for(together))


@cache
def plain(*together: str) -> Outcome:
    """No plugin at all, on the stream on which ``together`` meet."""
    return _outcome((), kind_for(together))


def _outcome(together: tuple[str, ...], kind: str) -> Outcome:
    found = Outcome()

    def watch(step: Any) -> None:
        found.updates += step.updated
        parts = {**step.losses, **step.terms} if step.objective is not None else {}
        found.finite &= all(math.isfinite(float(value.detach())) for value in parts.values())
        found.terms |= {name.split("/")[0] for name, term in step.terms.items() if float(term.detach()) != 0}

    with tempfile.TemporaryDirectory() as folder:
        try:
            plugins = [plugin_of(name, Path(folder), kind) for name in with_needed(together)]
            engine = Engine(network(kind), sgd(), [*plugins, probe("watch", after_step=watch)], batch_size=4, seed=1)
            result = engine.run(stream(kind))
        except CompositionError as error:
            found.refused = "; ".join(error.problems)
            return found
        except ConfigurationError as error:
            if found.updates:
                raise
            found.refused = str(error)
            return found
    found.weights = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}  # type: ignore[attr-defined]
    found.measured = [{k: v for k, v in e.items() if k != "losses"} for e in result.events if e["event"] in ("evaluation", "prequential")]
    found.finite &= all(bool(tensor.isfinite().all()) for tensor in found.weights.values())
    return found


def with_needed(together: tuple[str, ...]) -> list[str]:
    """The plugins called ``together``, and before them what they cannot do without."""
    needed = [need for need in {NEEDS[name] for name in together if name in NEEDS} if need not in together]
    return [*needed, *together]


def plugin_of(name: str, folder: Path, kind: str) -> Plugin:
    """The plugin of that name, with options that make it act on a stream of that kind."""
    options = SPECIAL.get(name, lambda folder, kind: {})(folder, kind)
    return registry.create(name, options)


def table() -> str:
    """The table of pairs as Markdown."""
    known = names()
    lines = [
        "# Every pair of plugins", "",
        "Made by `python -m tests.conformance.pairs`; do not edit. `+`: both train two experiences of five steps and one of target rows",
        "alone, finite, and each acts as it does alone. `-`: refused before training, with the reason below.",
        "", "| | " + " | ".join(str(n + 1) for n in range(len(known))) + " |", "|---|" + "---|" * len(known),
    ]  # fmt: skip
    reasons: dict[str, list[str]] = {}
    for i, first in enumerate(known):
        cells = []
        for j, second in enumerate(known):
            if i >= j:
                cells.append("")
                continue
            found = outcome(first, second)
            cells.append("+" if found.refused is None else "-")
            if found.refused is not None:
                reasons.setdefault(found.refused, []).append(f"{first} and {second}")
        lines.append(f"| {i + 1} {first} | " + " | ".join(cells) + " |")
    lines += ["", "## Why some are refused", ""]
    lines += [f"- {', '.join(pairs)}: {reason}" for reason, pairs in sorted(reasons.items())]
    return "\n".join(lines) + "\n"


def pairs() -> list[tuple[str, str]]:
    """Every pair of built-in plugins, in the order of their names."""
    return list(itertools.combinations(names(), 2))


if __name__ == "__main__":
    (Path(__file__).parents[2] / "docs" / "pairs.md").write_text(table())
