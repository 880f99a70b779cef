"""``plugins check``: the kit of `streamlearn.testing`, for a plugin that is installed."""

from __future__ import annotations

import json
from collections.abc import Iterable

import typer

from streamlearn.errors import ConfigurationError
from streamlearn.options import parse

__all__ = ["check_plugin"]


def check_plugin(text: str, beside: Iterable[str], expected: Iterable[str], as_json: bool) -> None:
    """Run every check on a plugin and print what came of it; exit code 1 if any failed.

    Raises:
        UnknownNameError: no plugin, option or check has this name.
        ConfigurationError: an expected failure is not of the form CHECK=REASON.
    """
    from functools import partial

    from streamlearn.core.registry import create
    from streamlearn.testing.kit import run_checks

    plugin = partial(create, *parse(text))
    others = [partial(create, *parse(other)) for other in beside]
    report = run_checks(plugin, beside=others, expected_failures=dict(map(_reason, expected)))
    typer.echo(json.dumps(report.to_json(), indent=1) if as_json else str(report))
    if not report.passed:
        raise typer.Exit(1)


def _reason(text: str) -> tuple[str, str]:
    check, equals, reason = text.partition("=")
    if not equals or not reason.strip():
        raise ConfigurationError(f"--expect-failure {text!r} has no reason: write CHECK=REASON, as in resumes='it keeps a cache'")
    return check.strip(), reason.strip()
