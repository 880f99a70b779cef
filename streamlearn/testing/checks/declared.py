"""Checks of what a plugin says of itself, before anything is trained."""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import subprocess
import sys
from typing import Any

from streamlearn.core import registry
from streamlearn.core.dispatch import implementations
from streamlearn.core.hooks import HOOK_API_VERSION, HOOKS
from streamlearn.core.plugin import Plugin, PluginInfo
from streamlearn.errors import CompositionError, nearest
from streamlearn.testing.report import CheckFailed, NotApplicable
from streamlearn.testing.subject import Subject

__all__ = ["hooks", "import_is_clean", "information"]

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_CAPABILITY = re.compile(r"[a-z][a-z0-9_-]*")
_YEAR = re.compile(r"\b(18|19|20)\d\d\b")
_LONGEST_SUMMARY = 140


def information(subject: Subject) -> None:
    """``info`` is complete: a name as the entry point has it, one line of summary, author and year, family, memory, capabilities."""
    info = getattr(subject.cls, "info", None)
    if not isinstance(info, PluginInfo):
        raise CheckFailed(f"{subject.cls.__name__}.info is {info!r}: give the class a PluginInfo")
    problems = [*_identity(subject.cls, info), *_words(info), *_capabilities(info)]
    if info.strength is not None and info.strength not in subject.cls.Config.model_fields:
        problems.append(f"info.strength is {info.strength!r}, which is no option: name one of {', '.join(subject.cls.Config.model_fields)}")
    if problems:
        raise CheckFailed("; ".join(problems))


def _identity(cls: type[Plugin], info: PluginInfo) -> list[str]:
    problems = []
    if not _NAME.fullmatch(info.name):
        problems.append(f"info.name is {info.name!r}: use lower case, digits and single underscores")
    reference = f"{cls.__module__}:{cls.__qualname__}"
    names = [entry.name for entry in registry.installed() if entry.reference == reference]
    if names and info.name not in names:
        problems.append(f"info.name is {info.name!r}, but the entry point is called {names[0]!r}: give both the same name")
    elif not names and info.name in (entry.name for entry in registry.installed()):
        problems.append(f"info.name is {info.name!r}, the name of another plugin that is installed: choose another")
    if not 1 <= info.api <= HOOK_API_VERSION:
        problems.append(f"info.api is {info.api!r}, but this streamlearn has version {HOOK_API_VERSION} of the hooks")
    return problems


def _words(info: PluginInfo) -> list[str]:
    problems = []
    if not info.summary.strip() or "\n" in info.summary or len(info.summary) > _LONGEST_SUMMARY:
        problems.append(f"info.summary is {info.summary!r}: write one line of at most {_LONGEST_SUMMARY} letters")
    if not (_YEAR.search(info.reference) and re.search(r"[^\W\d]{2,}", info.reference)):
        problems.append(f"info.reference is {info.reference!r}: name author and year, such as 'Kirkpatrick et al. 2017, PNAS 114(13)'")
    if not _CAPABILITY.fullmatch(info.family):
        problems.append(f"info.family is {info.family!r}: name one in lower case, such as 'regularization'")
    if not info.memory.strip():
        problems.append("info.memory is empty: say what the state costs, such as '2 x parameters', or 'none'")
    return problems


def _capabilities(info: PluginInfo) -> list[str]:
    problems = []
    for field in ("provides", "requires", "conflicts", "before", "after", "needs"):
        words = getattr(info, field)
        if not isinstance(words, frozenset | set):
            problems.append(f"info.{field} is {words!r}: give a frozenset of words")
            continue
        for word in sorted(words, key=str):
            plain = word.removesuffix("!") if isinstance(word, str) and field == "provides" else word
            if not isinstance(plain, str) or not _CAPABILITY.fullmatch(plain):
                only = "; only what is provided may end in '!'" if field != "provides" and str(word).endswith("!") else ""
                problems.append(f"info.{field} holds {word!r}: use lower case, digits, - and _{only}")
    for one, other in (("requires", "conflicts"), ("before", "after")):
        both = getattr(info, one) & getattr(info, other)
        if both:
            problems.append(f"{', '.join(sorted(both))} stands in info.{one} and in info.{other}: remove it from one of the two")
    return problems


# ---------------------------------------------------------------------- importing

_PROBE = """
import importlib, json, random, sys, threading, warnings
import numpy, torch
import streamlearn.core.engine, streamlearn.plugins
import scipy.sparse, scipy.special, torchjd.aggregation, torchmetrics  # what our own dependencies do is no plugin's doing
def state():
    return {
        "the random state of python": repr(random.getstate()),
        "the random state of numpy": repr(numpy.random.get_state(legacy=False)),
        "the random state of torch": torch.get_rng_state().tolist(),
        "the default dtype of torch": str(torch.get_default_dtype()),
        "the default device of torch": str(torch.get_default_device()),
        "the gradient mode of torch": torch.is_grad_enabled(),
        "the number of threads of torch": torch.get_num_threads(),
        "the deterministic mode of torch": torch.get_deterministic_debug_mode(),
        "the warning filters": repr(warnings.filters),
        "the number of running threads": threading.active_count(),
    }
found = {}
for name in json.loads(sys.argv[1]):
    before, modules = state(), set(sys.modules)
    try:
        importlib.import_module(name)
    except BaseException as error:
        found[name] = [f"cannot be imported in a fresh process: {type(error).__name__}: {error}"]
        continue
    after = state()
    heavy = sorted({m.partition(".")[0] for m in set(sys.modules) - modules} & set(json.loads(sys.argv[2])))
    found[name] = [f"changes {what} when it is imported" for what in before if before[what] != after[what]]
    found[name] += [f"imports {package} when it is imported: import it within the function that needs it" for package in heavy]
print(json.dumps(found))
"""

_HEAVY = ("avalanche", "datasets", "jax", "matplotlib", "pandas", "river", "tensorflow", "torchvision", "transformers")


def import_is_clean(subject: Subject) -> None:
    """Importing its module, in a fresh process, seeds nothing, sets nothing, starts no thread and imports no heavy optional package."""
    module = subject.cls.__module__
    if module == "__main__":
        raise NotApplicable("it is defined in a script, which cannot be imported")
    found = _imported(_siblings(module))[module]
    if found:
        raise CheckFailed(f"the module {module} {found[0]}")


def _siblings(module: str) -> tuple[str, ...]:
    """The modules of all plugins that come with this one: one process, which has to import torch, does for all of them."""
    modules = {entry.reference.split(":")[0]: entry.distribution for entry in registry.installed()}
    return tuple(name for name, owner in modules.items() if owner == modules[module]) if module in modules else (module,)


@functools.cache
def _imported(modules: tuple[str, ...]) -> dict[str, list[str]]:
    """What importing each of ``modules``, one after another in one fresh process, changes."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command = [sys.executable, "-c", _PROBE, json.dumps(modules), json.dumps(_HEAVY)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {module: [f"ends the process that imports it: {last}"] for module in modules}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


# ---------------------------------------------------------------------- hooks

_PREFIXES = ("before_", "after_", "collect_", "transform_", "provide_", "around_")
_NEAR = 0.8


def hooks(subject: Subject) -> None:
    """Every method marked or named like a hook is one, is marked, and takes arguments that the hook has."""
    problems: list[str] = []
    try:
        implementations([subject.make()])
    except CompositionError as error:
        problems += error.problems
    for name, member in inspect.getmembers(subject.cls, inspect.isroutine):
        if name not in HOOKS and not hasattr(member, "streamlearn_impl") and _looks_like_a_hook(name):
            guess = nearest(name, HOOKS)
            offer = f"did you mean {guess!r}?" if guess else "'streamlearn hooks' lists them"
            problems.append(f"{subject.name}: the method {name!r} is called like a hook, and there is none ({offer}): rename it")
    if problems:
        raise CheckFailed("; ".join(problems))


def _looks_like_a_hook(name: str) -> bool:
    if name.startswith("_") or name in vars(Plugin):
        return False
    if name.startswith(_PREFIXES):
        return True
    from difflib import get_close_matches

    return bool(get_close_matches(name, HOOKS, n=1, cutoff=_NEAR))
