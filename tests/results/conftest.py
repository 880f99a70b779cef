"""Runs made by hand: no engine, no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamlearn.results import Record, Result

MATRIX = [[0.1, 0.2, 0.3], [0.9, 0.3, 0.4], [0.7, 1.0, 0.5], [0.5, 0.6, 0.8]]

# six experiences, of which each three share an evaluation set
ONLINE = [[0.5, 0.4], [0.7, 0.3], [0.8, 0.2], [0.9, 0.5], [0.8, 0.7], [0.2, 0.8], [0.6, 0.7]]
LEARNT = [3, 6]


def description(experiences: int = 3, **changes: Any) -> dict[str, Any]:
    plugins = [{"name": "ewc", "instance": "ewc", "config": {"strength": 0.1}}]
    stream = {"name": "split digits", "experiences": experiences, "tasks": [], "hash": "0123", "description": {}}
    return {"format": 1, "stream": stream, "strategy": {"plugins": plugins}, "seed": 7, "versions": {"numpy": "2"}, **changes}


def evaluation(trained: int, number: int, value: float | None, **changes: Any) -> dict[str, Any]:
    event = {"event": "evaluation", "trained": trained, "update": 10 * trained, "set": number, "set_name": f"part {number}"}
    reason = None if value is not None else "the model has no head yet"
    event |= {"task": "digit", "metric": "accuracy", "value": value, "count": 100, "loss": 0.5, "reason": reason}
    return event | changes


def experience(index: int, **changes: Any) -> dict[str, Any]:
    classes = {"digit": [0, 1]}
    return {
        "event": "experience",
        "index": index,
        "name": f"part {index}",
        "rows": 9,
        "updates": 10,
        "tasks": ["digit"],
        "classes": classes,
    } | changes


def fill(record: Record, matrix: list[list[float | None]], trained: int | None = None) -> Record:
    """Append the events of a run that measured ``matrix``; stop after ``trained`` experiences."""
    for i, row in enumerate(matrix[: None if trained is None else trained + 1]):
        if i:
            record.append(experience(i - 1))
        for j, value in enumerate(row):
            record.append(evaluation(i, j, value))
    return record


MakeResult = Callable[..., Result]


@pytest.fixture
def make_result() -> MakeResult:
    def make(matrix: Any = MATRIX, *, trained: int | None = None, path: Path | None = None, learnt: Any = None, **changes: Any) -> Result:
        times = Record()
        times.append({"event": "time", "what": "experience", "index": 0, "seconds": 1.5})
        told = description(len(matrix) - 1, **changes)
        if learnt is not None:
            told["stream"]["learnt_after"] = learnt
        return Result(told, fill(Record(path), matrix, trained), times)

    return make


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Call it with a number of bytes: the disk then takes so many more and is full."""
    import errno
    import os

    write = os.write

    def limit(room: int) -> None:
        left = [room]

        def limited(descriptor: int, data: Any) -> int:
            if not left[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = write(descriptor, bytes(data)[: left[0]])
            left[0] -= written
            return written

        monkeypatch.setattr("streamlearn.results.files.os.write", limited)

    return limit
