"""Running the checks: one by one under pytest, or all of them into a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from streamlearn.core.plugin import STREAM_KINDS
from streamlearn.errors import UnknownNameError
from streamlearn.testing.checks import declared, kept, options, pure, together, trained
from streamlearn.testing.report import NotApplicable, Report, Result, Trouble
from streamlearn.testing.subject import Given, Subject

__all__ = ["CHECKS", "plugin_checks", "run_checks"]

Check = Callable[[Subject], None]

_CHECKS: dict[str, Check] = {
    "information": declared.information,
    "import_is_clean": declared.import_is_clean,
    "hooks": declared.hooks,
    "configuration": options.configuration,
    "documentation": options.documentation,
    **{f"trains[{kind}]": partial(trained.trains, kind=kind) for kind in STREAM_KINDS},
    "deterministic": trained.deterministic,
    "neutral_at_zero": trained.neutral_at_zero,
    "has_effect": trained.has_effect,
    "resumes": kept.resumes,
    "state_is_plain": kept.state_is_plain,
    "state_stays_within_memory": kept.state_stays_within_memory,
    "engines_share_nothing": kept.engines_share_nothing,
    "terms": trained.terms,
    "batch_is_not_changed": pure.batch_is_not_changed,
    "random_state_is_left_alone": pure.random_state_is_left_alone,
    "heads_grow": trained.heads_grow,
    "last_batch_of_one_row": trained.last_batch_of_one_row,
    "missing_task": trained.missing_task,
    "teardown": pure.teardown,
    "exceptions_name_the_plugin": pure.exceptions_name_the_plugin,
    "composes": together.composes,
    "order_is_declared": together.order_is_declared,
}

CHECKS: tuple[str, ...] = tuple(_CHECKS)
"""The names of all checks, in the order in which they run."""


def run_checks(
    plugin: Given,
    *,
    expected_failures: Mapping[str, str] | None = None,
    beside: Sequence[Given] = (),
    options: Mapping[str, Any] | None = None,
    only: Collection[str] | None = None,
) -> Report:
    """Check a plugin, without pytest.

    Args:
        plugin: an instance, of which copies are made from its class and its options, or a function without arguments that makes one.
        expected_failures: for each check that must fail, why. One that passes nevertheless is an ``unexpected pass``.
        beside: plugins that stand beside it in every run, given likewise. What ``info.requires`` names is added where a plugin of that
            name is installed.
        options: options of the `Engine` for every run, beyond the kit's own.
        only: names of the checks to run; ``None`` for all.

    Raises:
        UnknownNameError: ``expected_failures`` or ``only`` names a check that does not exist; the nearest is offered.
        ConfigurationError: ``plugin`` is none, or no copy of it can be made.

    Example:
        >>> from streamlearn.plugins import Clipping
        >>> run_checks(Clipping(max_norm=0.1), only=["hooks", "has_effect"]).passed
        True
    """
    expected = _known(expected_failures or {})
    chosen = list(CHECKS) if only is None else [name for name in CHECKS if name in _known(dict.fromkeys(only, ""))]
    subject = Subject(plugin, beside, options)
    return Report(subject.name, tuple(_result(name, subject, expected.get(name)) for name in chosen))


def plugin_checks(
    *plugins: Given,
    expected_failures: Mapping[str, str] | None = None,
    beside: Sequence[Given] = (),
    options: Mapping[str, Any] | None = None,
    only: Collection[str] | None = None,
) -> Any:
    """A pytest decorator: one test for each check, called after the plugin and the check, as in ``ewc-trains[multitask]``.

    The test takes ``check`` and calls it. A check that does not apply is skipped with its reason, one that is expected to fail is an
    ``xfail``, and one that passes although it was expected to fail, fails.

    Args:
        *plugins: one or several; see `run_checks` for how they, and the others, are given.
        expected_failures: as for `run_checks`, for each of the plugins.
        beside: as for `run_checks`.
        options: as for `run_checks`.
        only: as for `run_checks`.

    Raises:
        UnknownNameError: ``expected_failures`` or ``only`` names a check that does not exist; the nearest is offered.

    Example:
        >>> from streamlearn.plugins import EWC
        >>> @plugin_checks(EWC(strength=10.0), expected_failures={"resumes": "it keeps no state"})
        ... def test_conformance(check):
        ...     check()
    """
    import pytest

    expected = _known(expected_failures or {})
    chosen = list(CHECKS) if only is None else [name for name in CHECKS if name in _known(dict.fromkeys(only, ""))]
    subjects = [Subject(plugin, beside, options) for plugin in plugins]
    cases = [
        pytest.param(partial(_under_pytest, name, subject, expected.get(name)), id=f"{subject.name}-{name}")
        for subject in subjects
        for name in chosen
    ]
    return pytest.mark.parametrize("check", cases)


def _known(given: Mapping[str, str]) -> Mapping[str, str]:
    for name in given:
        if name not in _CHECKS:
            raise UnknownNameError("check", name, CHECKS)
    return given


def _result(name: str, subject: Subject, expected: str | None) -> Result:
    started = time.perf_counter()
    try:
        _run(name, subject)
    except NotApplicable as reason:
        return Result(name, "not applicable", str(reason), time.perf_counter() - started)
    except Exception as error:  # noqa: BLE001 - whatever a plugin raises is what the report is about
        seconds = time.perf_counter() - started
        if expected is not None:
            return Result(name, "expected failure", expected, seconds)
        return Result(name, "failed", _told(error), seconds)
    seconds = time.perf_counter() - started
    if expected is not None:
        return Result(name, "unexpected pass", f"it was expected to fail ({expected}): remove it from expected_failures", seconds)
    return Result(name, "passed", "", seconds)


def _under_pytest(name: str, subject: Subject, expected: str | None) -> None:
    import pytest

    __tracebackhide__ = True
    try:
        _run(name, subject)
    except NotApplicable as reason:
        pytest.skip(str(reason))
    except Exception:
        if expected is not None:
            pytest.xfail(expected)
        raise
    if expected is not None:
        pytest.fail(f"{name} was expected to fail ({expected}) and passes: remove it from expected_failures", pytrace=False)


def _run(name: str, subject: Subject) -> None:
    """Run one check; what another check is about does not count as its failure."""
    try:
        _CHECKS[name](subject)
    except Trouble as trouble:
        if name != trouble.check:
            raise NotApplicable(f"no run of it ends: see the check {trouble.check}") from trouble
        raise


def _told(error: Exception) -> str:
    """The error in one line, with the notes that say where it arose."""
    kind = "" if isinstance(error, AssertionError | Trouble) else f"{type(error).__name__}: "
    text = " ".join(str(error).split())
    notes = "; ".join(getattr(error, "__notes__", ()))
    return f"{kind}{text or 'it gave no reason'}{f' ({notes})' if notes else ''}"
