"""The program ``streamlearn``: its commands, and how it fails."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from streamlearn.errors import ConfigurationError, RunInterrupted, StreamlearnError

__all__ = ["main"]

_FAILED, _MISUSED, _INTERRUPTED = 1, 2, 130
_TRACEBACK = "--traceback"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program on ``arguments`` (default: those of the process); returns its exit code.

    0: done. 1: it failed. 2: the command, its options or a strategy is wrong. 130: interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    full = _TRACEBACK in words
    words = [word for word in words if word != _TRACEBACK]
    try:
        with _plain_warnings(full):
            _invoke(words)
            sys.stdout.flush()
    except BrokenPipeError:
        _let_go_of_stdout()
        return _FAILED
    except KeyboardInterrupt as error:
        return _tell_interrupted(error)
    except Exception as error:  # noqa: BLE001 (the outermost place: everything ends here as a message and an exit code)
        code = getattr(error, "exit_code", None)  # of typer.Exit and of usage errors
        if isinstance(code, int):
            return _tell_usage(error, code)
        return _tell(error, full)
    return 0


def _invoke(words: list[str]) -> None:
    from streamlearn.cli import catalogue, streams

    # typer reads the parameters of all commands through pydantic, which takes longer than a list may take
    lists: dict[tuple[str, ...], Callable[[], None]] = {
        ("plugins", "list"): catalogue.list_plugins,
        ("plugins", "list", "--json"): lambda: catalogue.list_plugins(as_json=True),
        ("hooks",): catalogue.list_hooks,
        ("streams", "list"): streams.list_streams,
    }
    listing = lists.get(tuple(words))
    if listing is not None:
        listing()
        return
    from streamlearn.cli.app import command

    whole = command()
    with whole.make_context("streamlearn", words) as context:
        whole.invoke(context)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _tell(error: Exception, full: bool) -> int:
    """One clear line for what a user, a plugin or the machine did wrong; a traceback for our own mistakes, or when asked."""
    notes: list[str] = getattr(error, "__notes__", [])
    known = isinstance(error, StreamlearnError | OSError)
    if full or not (known or notes):
        traceback.print_exception(error)
        return _MISUSED if isinstance(error, ConfigurationError) else _FAILED
    kind = "" if isinstance(error, StreamlearnError) else f"{type(error).__name__}: "
    _say("\n  ".join([f"error: {kind}{error}", *notes]))
    if not known:
        _say(f"  (add {_TRACEBACK} to see where it arose)")
    return _MISUSED if isinstance(error, ConfigurationError) else _FAILED


def _tell_usage(error: Any, code: int) -> int:
    if hasattr(error, "format_message"):
        context = getattr(error, "ctx", None)
        message = error.format_message().strip()
        if message.startswith("Usage:"):  # a group of commands without a command
            _say(message)
        elif message:
            _say(f"error: {message[0].lower() + message[1:]}{'' if context is None else f' (see {context.command_path} --help)'}")
    return code


def _tell_interrupted(error: KeyboardInterrupt) -> int:
    message = str(error) if isinstance(error, RunInterrupted) else "interrupted"
    _say("\n  ".join([f"\n{message}", *getattr(error, "__notes__", [])]))
    return _INTERRUPTED


@contextmanager
def _plain_warnings(full: bool) -> Iterator[None]:
    """Show a warning as one line, without the line of code that gave it."""
    usual = warnings.showwarning

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None
    ) -> None:
        _say(f"warning: {message}")

    if not full:
        warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual


def _let_go_of_stdout() -> None:
    """Who read our output is gone: nothing may be written to it any more, not even when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
