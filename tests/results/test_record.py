from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlearn.errors import DataError, RunFolderError
from streamlearn.results import Record

from .conftest import MATRIX, evaluation, experience, fill


def test_keeps_events_in_order_and_writes_each_at_once(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "events.jsonl"
    record = Record(path)
    for number in range(3):
        record.append(evaluation(0, number, 0.1))
        assert path.read_bytes().count(b"\n") == record.position == number + 1
    assert list(record.events[0]) == list(evaluation(0, 0, 0.1))
    assert path.read_text().splitlines()[0].startswith('{"event": "evaluation", "trained": 0, "update": 0, "set": 0')


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_round_trip_exactly(value: float) -> None:
    record = Record()
    record.append(evaluation(0, 0, value))
    there = record.events[0]["value"]
    assert there == value
    assert math.copysign(1, there) == math.copysign(1, value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan"), np.float32("inf")])
def test_what_is_not_finite_is_written_as_null(tmp_path: Path, value: float) -> None:
    record = Record(tmp_path / "events.jsonl")
    record.append({"event": "epoch", "losses": {"digit": value}, "terms": [value]})
    assert (tmp_path / "events.jsonl").read_text() == '{"event": "epoch", "losses": {"digit": null}, "terms": [null]}\n'
    assert record.events[0]["losses"] == {"digit": None}


def test_memory_holds_what_a_reader_gets(tmp_path: Path) -> None:
    record = Record(tmp_path / "events.jsonl")
    record.append({"event": "experience", "rows": np.int64(3), "tasks": ("a", "b"), "classes": {0: (1,)}, "name": "é\u2028\n"})
    assert Record.read(tmp_path / "events.jsonl").events == record.events
    assert record.events[0]["tasks"] == ["a", "b"]
    assert record.events[0]["classes"] == {"0": [1]}


def test_an_event_is_a_copy() -> None:
    record, event = Record(), experience(0)
    record.append(event)
    event["tasks"].append("later")
    assert record.events[0]["tasks"] == ["digit"]


@pytest.mark.parametrize("event", [{}, {"what": "x"}, {"event": 3}])
def test_refuses_what_is_no_event(event: dict[str, object]) -> None:
    with pytest.raises(DataError, match="must say what it is under the key 'event'"):
        Record().append(event)


def test_refuses_what_json_cannot_hold() -> None:
    record = Record()
    with pytest.raises(DataError, match="a value of type set cannot be recorded as JSON: give plain numbers"):
        record.append({"event": "epoch", "losses": {1, 2}})
    assert record.position == 0


@pytest.mark.parametrize("position", range(6))
def test_truncate_and_go_on_equals_never_stopped(tmp_path: Path, position: int) -> None:
    whole = fill(Record(tmp_path / "whole.jsonl"), MATRIX)
    fill(Record(tmp_path / "killed.jsonl"), MATRIX, trained=1)
    with open(tmp_path / "killed.jsonl", "ab") as file:
        file.write(b'{"event": "evaluation", "trai')
    resumed = Record(tmp_path / "killed.jsonl")
    resumed.truncate(position)
    for event in whole.events[position:]:
        resumed.append(event)
    assert resumed.events == whole.events
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("torn", [b"{", b'{"event": "evaluation"}', b'{"event": 0.1\n', b"\0\0\0\n", b"\xff\xfe"])
def test_a_torn_last_line_is_left_out_and_reading_changes_nothing(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "events.jsonl"
    record = fill(Record(path), MATRIX)
    with open(path, "ab") as file:
        file.write(torn)
    content = path.read_bytes()
    found = Record.read(path)
    assert found.events == record.events
    assert path.read_bytes() == content
    found.append(experience(9))
    assert Record.read(path).events == [*record.events, experience(9)]


def test_a_damaged_line_elsewhere_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    fill(Record(path), MATRIX)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = b'{"event": "eval\n'
    path.write_bytes(b"".join(lines))
    with pytest.raises(RunFolderError, match=r"events\.jsonl is damaged at line 3: it is not an event: restore the file"):
        Record.read(path)


def test_a_missing_file_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"cannot read .*nothing\.jsonl: there is no such file"):
        Record.read(tmp_path / "nothing.jsonl")


@pytest.mark.parametrize("position", [-1, 16])
def test_cannot_be_taken_back_to_where_it_never_was(position: int) -> None:
    record = fill(Record(), MATRIX)
    with pytest.raises(RunFolderError, match=f"holds 15 events and cannot be taken back to {position}"):
        record.truncate(position)
    assert record.position == 15


def test_two_runs_never_mix_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    fill(Record(path), MATRIX)
    content = path.read_bytes()
    second = Record(path)
    with pytest.raises(RunFolderError, match="already holds 15 events of a run: resume that run or choose another folder"):
        second.append(experience(0))
    assert path.read_bytes() == content
    second.truncate(0)
    second.append(experience(0))
    assert json.loads(path.read_text()) == experience(0)


@pytest.mark.parametrize("room", [0, 1, 40])
def test_a_full_disk_is_said_and_leaves_no_part_of_a_line(tmp_path: Path, full_disk, room: int) -> None:
    record = fill(Record(tmp_path / "events.jsonl"), MATRIX)
    content = (tmp_path / "events.jsonl").read_bytes()
    full_disk(room)
    with pytest.raises(RunFolderError, match="the disk is full: free some space"):
        record.append(experience(9))
    assert record.position == 15
    assert (tmp_path / "events.jsonl").read_bytes() == content


def test_a_write_that_takes_only_a_part_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    write = os.write
    monkeypatch.setattr("streamlearn.results.files.os.write", lambda descriptor, data: write(descriptor, bytes(data)[:7]))
    record = fill(Record(tmp_path / "events.jsonl"), MATRIX)
    assert Record.read(tmp_path / "events.jsonl").events == record.events


def test_save_copies_the_record_or_tidies_its_own_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    record = fill(Record(path), MATRIX)
    content = path.read_bytes()
    record.save(tmp_path / "copy" / "events.jsonl")
    with open(path, "ab") as file:
        file.write(b"torn")
    record.save(path)
    assert path.read_bytes() == (tmp_path / "copy" / "events.jsonl").read_bytes() == content


def test_repr_says_how_many_and_where(tmp_path: Path) -> None:
    assert repr(Record()) == "Record(0 events, in memory)"
    assert repr(Record(tmp_path / "e")) == f"Record(0 events, {tmp_path / 'e'})"
