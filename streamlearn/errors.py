"""Every error that a user of streamlearn can cause.

    StreamlearnError
    ├── ConfigurationError        an option, a name or a combination of options is wrong
    │   ├── UnknownNameError      no plugin, stream, source or option has this name (the nearest one is offered)
    │   ├── CompositionError      the plugins cannot be composed; lists every reason at once
    │   └── MissingExtraError     an optional dependency is not installed (names the pip command)
    ├── DataError                 a stream, an experience or a batch is not what it claims to be
    ├── TrainingError             a run failed while training; it can be resumed from its last checkpoint
    │   └── DivergenceError       a loss or a term stopped being finite
    ├── CheckpointError           a checkpoint is missing, damaged, or belongs to another run
    └── RunFolderError            an output folder is unusable: it holds another run, the disk is full, ...
    RunInterrupted                a KeyboardInterrupt after which the run lies saved

Each message is one sentence that says what was wrong, where, which value, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = [
    "CheckpointError",
    "CompositionError",
    "ConfigurationError",
    "DataError",
    "DivergenceError",
    "MissingExtraError",
    "RunFolderError",
    "RunInterrupted",
    "StreamlearnError",
    "TrainingError",
    "UnknownNameError",
    "nearest",
]


class StreamlearnError(Exception):
    """Base of every error that streamlearn raises on purpose."""


class ConfigurationError(StreamlearnError):
    """An option, a name or a combination of options is wrong; nothing has been trained."""


class UnknownNameError(ConfigurationError):
    """No ``kind`` is called ``name``; the message offers the nearest known name.

    >>> str(UnknownNameError("plugin", "ecw", ["ewc", "lwf"]))
    "unknown plugin 'ecw': did you mean 'ewc'? (known: ewc, lwf)"
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        guess = nearest(name, self.known)
        offer = f": did you mean {guess!r}?" if guess else ""
        known_text = f"(known: {', '.join(self.known)})" if self.known else "(none is known)"
        super().__init__(f"unknown {kind} {name!r}{offer} {known_text}{'; ' + hint if hint else ''}")


class CompositionError(ConfigurationError):
    """The listed plugins cannot be composed; ``problems`` holds every reason, each with its cure."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        super().__init__(f"the plugins cannot be composed, for {len(self.problems)} reason(s):{lines}")


class MissingExtraError(ConfigurationError):
    """``package`` is needed by ``user`` and is not installed; ``extra`` of streamlearn brings it."""

    def __init__(self, user: str, package: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(f"{user} needs the package {package!r}, which is not installed: run  pip install 'streamlearn[{extra}]'")


class DataError(StreamlearnError):
    """A stream, an experience, a data set or a batch is not what it claims to be."""


class TrainingError(StreamlearnError):
    """A run failed while training; what it has measured and its last checkpoint are kept."""


class DivergenceError(TrainingError):
    """A loss, a term or a gradient stopped being finite."""


class CheckpointError(StreamlearnError):
    """A checkpoint is missing, damaged, of a newer format, or of another run."""


class RunFolderError(StreamlearnError):
    """An output folder cannot be used: it holds another run, or the disk refuses to write."""


class RunInterrupted(KeyboardInterrupt):
    """The run was asked to stop; it finished its step and saved itself in ``folder``.

    ``command_line`` says whether the command line started it and can resume it, or a script.
    """

    def __init__(self, folder: Path, command_line: bool) -> None:
        self.folder = folder
        how = f"streamlearn run --resume {folder}" if command_line else f"engine.resume({str(folder)!r})"
        super().__init__(f"interrupted; a checkpoint was written. Resume with: {how}")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to ``name``, or ``None`` when nothing comes close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None
