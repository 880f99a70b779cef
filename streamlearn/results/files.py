"""JSON and files that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from streamlearn.errors import DataError, RunFolderError

__all__ = ["disk_errors", "encode", "plain", "read_json", "write_all", "write_atomically"]


def plain(value: Any) -> Any:
    """``value`` as JSON knows it: numpy numbers become Python's, tuples become lists, NaN and infinities become ``None``.

    Raises:
        DataError: a value that JSON cannot hold.

    Example:
        >>> plain({"loss": float("nan"), "tasks": ("a", "b"), 3: 0.1})
        {'loss': None, 'tasks': ['a', 'b'], '3': 0.1}
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    raise DataError(f"a value of type {type(value).__name__} cannot be recorded as JSON: give plain numbers, strings, lists and dicts")


def encode(value: Any, *, indent: int | None = None) -> bytes:
    r"""JSON in ASCII, ending in one newline; floats are written so that they are read back bit for bit.

    Example:
        >>> encode({"value": 0.1, "reason": None})
        b'{"value": 0.1, "reason": null}\n'
    """
    return json.dumps(plain(value), allow_nan=False, indent=indent).encode("ascii") + b"\n"


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the operating system says while writing below ``folder`` into a `RunFolderError` with its cure."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFolderError(f"cannot write to the run folder {folder}: the disk is full: free some space and save again") from error
        said = error.strerror or str(error)
        raise RunFolderError(f"cannot write to the run folder {folder}: {said}: choose a folder that you may write to") from error


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte: on a disk that is nearly full, one ``os.write`` may write only a part."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader, or a crash, finds the old file or the new one and nothing between.

    Raises:
        RunFolderError: the folder cannot be written to, or the disk is full; no partial file is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb", buffering=0) as file:
                write_all(file.fileno(), data)
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        RunFolderError: the file is missing, unreadable or damaged.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror}: give the folder of a saved run") from error
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged: it is not JSON ({error}): restore it from a copy or run again") from error
    if not isinstance(value, dict):
        raise RunFolderError(f"{path} is damaged: it holds a {type(value).__name__}, not an object: restore it from a copy or run again")
    return value
