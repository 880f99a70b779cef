"""The raw record of a run: everything that was measured, one JSON object a line.

Metrics, tables and figures are computed from it and from nothing else. The events, with their keys in this order:

    {"event": "evaluation", "trained", "set", ...}   one measured value; ``trained`` is a row, ``set`` a column of the matrix;
                                                     with a last key ``within`` it was taken inside an experience: no row
    {"event": "experience", "index", "name", ...}    an experience has been trained
    {"event": "prequential", "experience", ...}      one value of the outputs made before each update, where there are ``target`` rows alone
    {"event": "cost", "trained", ...}                what the run held when an evaluation set had been learnt, and passes per update
    {"event": "epoch", "experience", "phase", ...}   the mean losses of an epoch
    {"event": "gradients", "experience", ...}        where a combiner acted: how the rows' gradients stood to each other in an epoch
    {"event": "tuning", "experience", ...}           the numbers that a plugin has moved in an epoch, by ``"<plugin>.<option>"``
    {"event": "time", "what", "index", "seconds"}    kept in a record of its own: times differ between equal runs
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamlearn.errors import DataError, RunFolderError
from streamlearn.results.files import disk_errors, encode, write_all, write_atomically

__all__ = ["Record"]


class Record:
    """A list of events, also kept in a file when ``path`` is given.

    What is in ``events`` is what a reader of the file gets: floats are equal bit for bit; NaN and infinities are ``None``.

    Args:
        path: file to write to, a line per event. Events that are already in it are loaded, and must be taken back to a
            position with `truncate` before anything is appended: two runs never mix in one file by accident.

    A line counts once its newline is written: a last line that a kill has torn is left out, and is cut off by the next
    `append` or `truncate` (reading changes no file).

    Raises:
        RunFolderError: the file cannot be read, or a line other than the last is damaged.

    Example:
        >>> record = Record()
        >>> record.append({"event": "time", "what": "experience", "index": 0, "seconds": float("nan")})
        >>> record.position, record.events[0]["seconds"]
        (1, None)
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.events: list[dict[str, Any]] = []
        self._ends: list[int] = []  # where the line of each event ends in the file, in bytes
        if self.path is not None and self.path.exists():
            self._load(self.path)
        self._unclaimed = bool(self.events)  # whose these events are has not been said yet

    @classmethod
    def read(cls, path: str | Path) -> Record:
        """The record kept in ``path``; appending to it continues the file.

        Raises:
            RunFolderError: there is no such file, or as for `Record`.
        """
        if not Path(path).exists():
            raise RunFolderError(f"cannot read {path}: there is no such file; give the folder of a run that has begun")
        record = cls(path)
        record._unclaimed = False
        return record

    def _load(self, path: Path) -> None:
        try:
            lines = path.read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise RunFolderError(f"cannot read {path}: {error.strerror}: give the folder of a saved run") from error
        end = 0
        for number, line in enumerate(lines, start=1):
            event = _parse(line)
            if event is None:
                if number == len(lines):
                    break
                raise RunFolderError(f"{path} is damaged at line {number}: it is not an event: restore the file from a copy or run again")
            end += len(line)
            self.events.append(event)
            self._ends.append(end)

    @property
    def position(self) -> int:
        """Number of events so far; what a checkpoint stores for `truncate`."""
        return len(self.events)

    def append(self, event: Mapping[str, Any]) -> None:
        """Add ``event``, and write its line at once when there is a file.

        Raises:
            DataError: ``event`` has no ``"event"`` key, or holds a value that JSON cannot hold.
            RunFolderError: the file cannot be written, or began with events of an earlier run; the event is in neither place.
        """
        if self._unclaimed:
            raise RunFolderError(f"{self.path} already holds {self.position} events of a run: resume that run or choose another folder")
        if not isinstance(event.get("event"), str):
            raise DataError(f"an event must say what it is under the key 'event', this one has the keys {sorted(map(str, event))}")
        line = encode(event)
        self._write(line)
        self._ends.append(self._end + len(line))
        self.events.append(json.loads(line))

    def truncate(self, position: int) -> None:
        """Drop the events from ``position`` on, in memory and in the file, and what a kill has torn.

        Raises:
            RunFolderError: there are fewer than ``position`` events.
        """
        if not 0 <= position <= self.position:
            where = "the record" if self.path is None else str(self.path)
            raise RunFolderError(
                f"{where} holds {self.position} events and cannot be taken back to {position}: "
                "it was cut, or the checkpoint belongs to another run; start again in a new folder"
            )
        self._unclaimed = False
        del self.events[position:], self._ends[position:]
        if self.path is not None and self.path.exists():
            with disk_errors(self.path.parent):
                os.truncate(self.path, self._end)

    def sync(self) -> None:
        """Have the operating system put on disk what has been written; a checkpoint that counts on these events comes after."""
        if self.path is not None and self.path.exists():
            with disk_errors(self.path.parent), open(self.path, "ab") as file:
                os.fsync(file.fileno())

    def save(self, path: str | Path) -> None:
        """Write the record to ``path``, whole or not at all; when it is already kept there, only cut what a kill has torn.

        Raises:
            RunFolderError: the file cannot be written.
        """
        path = Path(path)
        if self.path is not None and path.exists() and path.samefile(self.path):
            self.truncate(self.position)
        else:
            write_atomically(path, b"".join(encode(event) for event in self.events))

    @property
    def _end(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _write(self, line: bytes) -> None:
        """The file is opened for each line: nothing stays open, and no line waits in a buffer when the process is killed."""
        if self.path is None:
            return
        with disk_errors(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab", buffering=0) as file:
                file.truncate(self._end)
                try:
                    write_all(file.fileno(), line)
                except OSError:
                    file.truncate(self._end)
                    raise

    def __repr__(self) -> str:
        return f"Record({self.position} events, {'in memory' if self.path is None else self.path})"


def _parse(line: bytes) -> dict[str, Any] | None:
    """The event on ``line``, or ``None`` when the line is torn or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None
