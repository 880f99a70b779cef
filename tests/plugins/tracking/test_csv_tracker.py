from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from streamlearn import Engine, models
from streamlearn.errors import ConfigurationError, RunFolderError
from streamlearn.plugins import CSVTracker
from streamlearn.plugins.tracking.csv_tracker import COLUMNS, csv_lines
from tests.core.support import Stop, class_stream, growing_stream, net, probe, sgd, stop_at


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        found = list(reader)
    assert tuple(reader.fieldnames or ()) == COLUMNS
    return found


def expected(events: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The evaluations of a record as CSV has them: floats by repr, which is read back bit for bit, and nothing for ``None``."""
    chosen = [e for e in events if e["event"] == "evaluation"]
    return [{c: "" if e.get(c) is None else repr(e[c]) if isinstance(e[c], float) else str(e[c]) for c in COLUMNS} for e in chosen]


def engine_of(path: Path, *plugins: Any, **options: Any) -> Engine:
    return Engine(net(), sgd(), [CSVTracker(path=path), *plugins], **({"batch_size": 10, "evaluate_every": 4} | options))


def test_the_file_holds_every_value_measured(tmp_path: Path) -> None:
    path = tmp_path / "made" / "run.csv"
    result = engine_of(path).run(class_stream())
    found = read(path)
    assert found == expected(result.events)
    assert len(found) == 15, "three sets, before, after each of three experiences, and once within the second"
    assert [row["within"] for row in found if row["within"]] == ["1"] * 3
    assert [float(row["value"]) for row in found] == [e["value"] for e in result.events if e["event"] == "evaluation"]


def test_values_that_are_undefined_are_empty_and_their_reason_is_told(tmp_path: Path) -> None:
    stream, path = growing_stream(), tmp_path / "run.csv"
    result = Engine(models.mlp(stream, (8,)), sgd(), [CSVTracker(path=str(path))], batch_size=20).run(stream)
    found = read(path)
    assert found == expected(result.events)
    empty = [row for row in found if row["value"] == ""]
    assert empty
    assert {row["reason"] for row in empty} == {"the model has no head for task 'other' yet"}


def test_names_with_commas_quotes_and_lines_are_quoted(tmp_path: Path) -> None:
    event = {"event": "evaluation", "set_name": 'classes "a", b\nand ü', "value": 0.1}
    path = tmp_path / "a.csv"
    path.write_bytes(csv_lines([event, {"event": "epoch"}], header=True))
    assert [row["set_name"] for row in read(path)] == [event["set_name"]]


def test_it_is_there_as_soon_as_an_evaluation_is_done_and_only_added_to(tmp_path: Path) -> None:
    path, lengths, files = tmp_path / "run.csv", [], []

    def look(evaluation: Any) -> None:
        lengths.append(len(read(path)))
        files.append(path.stat().st_ino)

    # after_ hooks run in reverse order: who looks must be listed before
    Engine(net(), sgd(), [probe("look", after_evaluation=look), CSVTracker(path=path)], batch_size=10).run(class_stream())
    assert lengths == [3, 6, 9, 12]
    assert len(set(files)) == 1


@pytest.mark.parametrize("update", [1, 3, 4, 5])
def test_a_resume_has_every_line_once(update: int, tmp_path: Path) -> None:
    stream, path = class_stream(), tmp_path / "run.csv"
    settings: dict[str, Any] = {"evaluate_every": 1, "checkpoint_every": 2}
    straight = engine_of(tmp_path / "straight.csv", **settings).run(stream)
    with pytest.raises(Stop):
        engine_of(path, progress=stop_at(update), **settings).run(stream, output=tmp_path / "run")
    assert len(read(path)) == 3 * (1 + update + (update - 1) // 2), "all that was measured before it stopped"
    with path.open("a") as file:
        file.write("3,1,torn by a k")  # as a kill leaves it
    resumed = engine_of(path, **settings).resume(tmp_path / "run", stream)
    assert resumed.events == straight.events
    assert read(path) == expected(straight.events)


def test_resuming_a_finished_run_makes_a_lost_file_again(tmp_path: Path) -> None:
    stream, path = class_stream(), tmp_path / "run.csv"
    engine_of(path).run(stream, output=tmp_path / "run")
    before = path.read_bytes()
    path.unlink()
    engine_of(path).resume(tmp_path / "run", stream)
    assert path.read_bytes() == before


def test_a_run_that_fails_in_an_evaluation_leaves_what_was_measured(tmp_path: Path) -> None:
    def fail(evaluation: Any) -> None:
        if evaluation.trained == 1:
            raise Stop

    path = tmp_path / "run.csv"
    with pytest.raises(Stop):
        Engine(net(), sgd(), [CSVTracker(path=path), probe("fails", after_evaluation=fail)], batch_size=10).run(class_stream())
    assert [row["trained"] for row in read(path)] == ["0"] * 3 + ["1"] * 3


def test_a_second_run_of_the_same_engine_replaces_the_file(tmp_path: Path) -> None:
    engine = engine_of(tmp_path / "run.csv")
    engine.run(class_stream())
    result = engine.run(class_stream())
    assert read(tmp_path / "run.csv") == expected(result.events)


def test_it_does_not_overwrite_what_is_not_its_own(tmp_path: Path) -> None:
    path = tmp_path / "thesis.csv"
    path.write_text("years of work")
    with pytest.raises(ConfigurationError, match="holds something else than evaluations of a run: choose another file"):
        engine_of(path).run(class_stream())
    assert path.read_text() == "years of work"
    with pytest.raises(ConfigurationError, match="is a folder: give the name of a file"):
        engine_of(tmp_path).run(class_stream())


def test_a_file_that_cannot_be_written_is_told_and_hides_no_other_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write"):
        engine_of(tmp_path / "file" / "run.csv").run(class_stream())

    def fail(run: Any) -> None:
        (tmp_path / "run.csv").unlink()
        (tmp_path / "run.csv").mkdir()
        raise Stop

    with pytest.raises(Stop) as caught:
        engine_of(tmp_path / "run.csv", probe("fails", after_experience=fail)).run(class_stream())
    assert any("cannot write" in note for note in caught.value.__notes__)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="plugin csv_tracker: option 'path' is"):
        CSVTracker()
