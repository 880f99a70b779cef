"""The run folder: whose it is, and whether this version can read it."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamlearn.errors import RunFolderError
from streamlearn.results.files import encode, plain, read_json, write_atomically

__all__ = ["FORMAT", "claim", "problem_of", "read_description", "title_of"]

FORMAT = 1  # of the description; a reader refuses what is newer than itself
_IDENTITY = ("format", "stream", "strategy", "seed")  # what makes two descriptions the same run


def problem_of(description: Mapping[str, Any]) -> str | None:
    """What is missing in the description of a run, as the end of a sentence; ``None`` when it can be used.

    Example:
        >>> problem_of({"format": 1, "stream": {"name": "digits"}})
        'lacks the number of experiences, an integer of at least 1 under stream.experiences'
    """
    version, stream = description.get("format"), description.get("stream")
    if not isinstance(version, int) or isinstance(version, bool):
        return f"lacks its format, an integer such as {FORMAT} under format"
    if version > FORMAT:
        return f"has format {version}, and this streamlearn reads up to format {FORMAT}: upgrade streamlearn"
    if not isinstance(stream, Mapping) or not isinstance(stream.get("name"), str):
        return "lacks the name of the stream, a text under stream.name"
    experiences = stream.get("experiences")
    if not isinstance(experiences, int) or isinstance(experiences, bool) or experiences < 1:
        return "lacks the number of experiences, an integer of at least 1 under stream.experiences"
    if "learnt_after" in stream and not _is_learnt_after(stream["learnt_after"], experiences):
        return (
            "does not say when its evaluation sets are learnt: stream.learnt_after must be a list with an integer "
            f"from 1 to {experiences} for each evaluation set, not {reprlib.repr(stream['learnt_after'])}"
        )
    return None


def _is_learnt_after(found: object, experiences: int) -> bool:
    if not isinstance(found, list) or not found:
        return False
    return all(isinstance(after, int) and not isinstance(after, bool) and 1 <= after <= experiences for after in found)


def title_of(description: Mapping[str, Any]) -> str:
    """What was run, in one line.

    Example:
        >>> title_of({"stream": {"name": "digits"}, "strategy": {"plugins": [{"name": "ewc"}, {"name": "replay"}]}, "seed": 0})
        'digits: ewc, replay, seed 0'
    """
    plugins = (description.get("strategy") or {}).get("plugins") or []
    names = [str(plugin.get("instance") or plugin.get("name")) for plugin in plugins]
    seed = description.get("seed")
    return f"{description['stream']['name']}: {', '.join(names) or 'no plugin'}{'' if seed is None else f', seed {seed}'}"


def read_description(folder: Path) -> dict[str, Any]:
    """The description of the run kept in ``folder``.

    Raises:
        RunFolderError: ``folder`` is no run folder, its ``run.json`` is damaged, or a newer streamlearn wrote it.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise RunFolderError(f"{folder} is not a run folder: it has no run.json; give a folder that Result.save or a run has written")
    description = read_json(path)
    problem = problem_of(description)
    if problem:
        raise RunFolderError(f"{path} cannot be used: it {problem}")
    return description


def claim(folder: Path, description: Mapping[str, Any]) -> None:
    """Make ``folder`` the run folder of ``description``, or see that it already is.

    A run may be resumed under other versions, on another device or by another caller: those do not make it another run, and
    ``run.json`` keeps what it was started with.

    Raises:
        RunFolderError: the folder holds another run, is a file, or cannot be written.
    """
    path = folder / "run.json"
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file, not a folder: choose another name for the run folder")
    if not path.exists():
        write_atomically(path, encode(description, indent=2))
        return
    there, mine = read_json(path), plain(description)
    differing = [key for key in _IDENTITY if there.get(key) != mine.get(key)]
    if differing:
        raise RunFolderError(
            f"{folder} holds another run (it differs in {', '.join(differing)}): choose an empty folder or remove that one"
        )
