"""Checks of what a hook may not do: change what it is given, draw from what is everybody's, leave traces, hide errors."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from streamlearn.core.hooks import HOOKS
from streamlearn.testing.report import CheckFailed, NotApplicable, Trouble
from streamlearn.testing.running import Watch
from streamlearn.testing.snapshots import Rigged, Traces, WeakRows, context_of, global_randomness, seeded_by_the_engine
from streamlearn.testing.subject import Subject

__all__ = ["batch_is_not_changed", "exceptions_name_the_plugin", "random_state_is_left_alone", "teardown"]

_MAY_DRAW = frozenset({"transform_model", "collect_modules"})
"""Hooks that the engine calls under a seed of their own, because what they make draws its initial weights."""


def _around(name: str, before: Callable[..., Any], after: Callable[..., None]) -> Watch:
    """Call ``after(hook, before(hook, arguments by name), arguments)`` around every hook of plugin ``name``."""

    def watch(plugin: str, hook: str, function: Callable[..., Any], arguments: tuple[str, ...]) -> Callable[..., Any]:
        if plugin != name:
            return function

        def watched(*given: Any) -> Any:
            named = dict(zip(arguments, given, strict=True))
            noted = before(hook, named)
            answer = function(*given)
            if hook == "provide_task_losses":
                answer = list(answer)  # a generator would do its work later
            after(hook, noted, named)
            return answer

        return watched

    return watch


def batch_is_not_changed(subject: Subject) -> None:
    """No hook changes a batch in place, nor an attribute of the step, the run or the evaluation that it is given."""

    def after(hook: str, noted: Any, named: dict[str, Any]) -> None:
        changed = noted.change(context_of(hook, named))
        if changed is not None:
            raise Trouble(
                "batch_is_not_changed", f"{hook} changed {changed} in place: others read it too; return a new one (batch.replace)"
            )

    subject.train(subject.home, watch=_around(subject.name, context_of, after))


def random_state_is_left_alone(subject: Subject) -> None:
    """No hook moves or seeds the global random states of Python, numpy and torch."""

    def after(hook: str, noted: Any, named: dict[str, Any]) -> None:
        now = global_randomness()
        for library in ("python", "numpy"):
            if noted[library] != now[library]:
                _blame(hook, library)
        moved = noted["torch"] != now["torch"]
        if moved and hook not in _MAY_DRAW and now["torch"] not in seeded_by_the_engine(named):
            _blame(hook, "torch")

    subject.train(subject.home, watch=_around(subject.name, lambda hook, named: global_randomness(), after))


def _blame(hook: str, library: str) -> None:
    raise Trouble(
        "random_state_is_left_alone",
        f"{hook} moved the global random state of {library}, from which others draw: draw from run.generator(self), and never seed",
    )


def teardown(subject: Subject) -> None:
    """Every hook leaves module modes, gradients and torch's settings as they were; after a run no hook and no batch is held."""
    rows = WeakRows()
    plugins = [*subject.others(), subject.make()]

    def before(hook: str, named: dict[str, Any]) -> Traces:
        rows.note(named)
        return Traces(named)

    def after(hook: str, noted: Traces, named: dict[str, Any]) -> None:
        left = noted.left(hook, Traces(named))
        if left is not None:
            raise Trouble("teardown", f"{hook} {left}")

    handles: list[str] = []
    subject.train(
        subject.home,
        plugins,
        watch=_around(subject.name, before, after),
        progress=lambda event, run: handles.extend(f"{event}: {h}" for h in Traces.handles(run.model)),
    )
    if handles:
        raise CheckFailed(f"a hook is left on a module of the model ({handles[-1]}): remove the handle, or read step.tap")
    gc.collect()
    if rows.alive(plugins[-1].state_dict()):
        raise CheckFailed("the rows of a batch are still held after the run: keep copies of what is needed, or (source, index)")


def exceptions_name_the_plugin(subject: Subject) -> None:
    """An error within any of its hooks reaches the user, with a note that names the plugin."""
    _ = subject.home
    hooks = [hook for hook in HOOKS if subject.uses(hook)]
    if not hooks:
        raise NotApplicable("it implements no hook")
    for hook in hooks:
        rigged = Rigged()
        try:
            subject.train(subject.home, watch=_rigging(subject.name, hook, rigged))
        except Exception as error:
            if not rigged.raised:
                raise
            if not any(f"raised by plugin {subject.name!r}" in note for note in _all_notes(error)):
                raise CheckFailed(f"an error within {hook} reached the user without a note that names {subject.name!r}") from error
        else:
            if rigged.swallowed:
                raise CheckFailed(f"{hook} swallowed an error: what it cannot cure, it must let through")


def _all_notes(error: BaseException | None) -> list[str]:
    notes: list[str] = []
    while error is not None:
        notes += getattr(error, "__notes__", ())
        error = error.__cause__ or error.__context__
    return notes


def _rigging(name: str, wanted: str, rigged: Rigged) -> Watch:
    """Give the hook things that break when they are touched; where none is touched, call it again with the true ones."""

    def watch(plugin: str, hook: str, function: Callable[..., Any], arguments: tuple[str, ...]) -> Callable[..., Any]:
        if plugin != name or hook != wanted:
            return function

        def broken(*given: Any) -> Any:
            if rigged.swallowed:
                return function(*given)
            answer = function(*(rigged.thing() for _ in given))
            if hook == "provide_task_losses" and not rigged.raised:
                answer = list(answer)
            rigged.swallowed = rigged.raised
            return function(*given)

        return broken

    return watch
