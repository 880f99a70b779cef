"""Wrong in how they listen. Avalanche finds hooks by ``hasattr`` and warns of an unknown one at best: a method that is never called."""

from __future__ import annotations

from typing import Any

from streamlearn import hookimpl
from streamlearn.core.run import Run
from tests.testing.wrong.control import Control


class NearlyAHook(Control):
    """Has a method that looks like a hook, is not one, and is never called.

    Nothing fails: the method that should hold the head still simply does not exist.
    """

    def before_experiense(self, run: Run) -> None:
        """Freeze what must not move."""


class UnknownHook(Control):
    """Marks a method as a hook that there is not; pluggy alone says nothing unless ``check_pending`` is called."""

    @hookimpl
    def colect_terms(self, step: Any) -> None:
        """A term that nobody would ever collect."""


class UnknownArgument(Control):
    """Asks a hook for an argument that it does not have."""

    @hookimpl
    def before_epoch(self, strategy: Any) -> None:
        """In another library the argument was called so."""


class NotMarked(Control):
    """Implements a hook and forgets to mark it."""

    def before_epoch(self, run: Run) -> None:
        """Without ``@hookimpl`` above it."""
