from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamlearn.errors import ConfigurationError, RunFolderError, UnknownNameError
from streamlearn.results import Record, Result

from .conftest import LEARNT, MATRIX, ONLINE, MakeResult, description, evaluation, experience, fill


def test_accuracy_matrix_metrics_and_repr(make_result: MakeResult) -> None:
    result = make_result()
    assert result.accuracy_matrix.tolist() == MATRIX
    assert float(result.metrics["forgetting"]) == pytest.approx(0.4)
    assert result.is_complete
    assert result.experience_names == ("part 0", "part 1", "part 2")
    assert repr(result).startswith("Result(split digits: ewc, seed 7; average_accuracy 0.6333; ")
    assert result.times == [{"event": "time", "what": "experience", "index": 0, "seconds": 1.5}]
    assert result.model is None


def test_evaluations_inside_an_experience_are_no_rows(make_result: MakeResult) -> None:
    result = make_result()
    result.record.append(evaluation(1, 0, 0.123, within=1))
    assert result.accuracy_matrix.tolist() == MATRIX
    assert result.events[-1]["within"] == 1


def test_what_was_not_measured_is_nan(make_result: MakeResult) -> None:
    result = make_result(trained=1)
    assert np.array_equal(result.accuracy_matrix, [*MATRIX[:2], [np.nan] * 3, [np.nan] * 3], equal_nan=True)
    assert not result.is_complete
    assert result.metrics["average_accuracy"].reason == "the run is not complete: 1 of 3 experiences have been trained"


def test_nothing_measured_at_all() -> None:
    result = Result(description(2), Record())
    assert np.isnan(result.accuracy_matrix).all()
    assert result.accuracy_matrix.shape == (3, 2)
    assert "0 of 2 experiences" in result.table()
    assert result.to_json()["accuracy_matrix"] == [[None, None]] * 3


def test_a_run_that_lacks_only_its_last_evaluation_is_not_complete() -> None:
    record = fill(Record(), MATRIX, trained=2)
    record.append(experience(2))
    record.append(evaluation(3, 0, 0.5))
    result = Result(description(), record)
    assert not result.is_complete
    assert "the last evaluation is missing" in result.title
    assert "R[3, 1]" in (result.metrics["average_accuracy"].reason or "")


def test_a_run_that_never_evaluates_is_complete_when_it_is_trained() -> None:
    record = Record()
    record.append(experience(0))
    assert Result(description(1, strategy={"plugins": [], "evaluate": "never"}), record).is_complete
    assert not Result(description(1, strategy={"plugins": [], "evaluate": "end"}), record).is_complete


def multi_task() -> Result:
    record = Record()
    for trained in range(2):
        record.append(evaluation(trained, 0, 0.5, task="a"))
        record.append(evaluation(trained, 0, 1.0, task="b"))
        record.append(evaluation(trained, 0, 7.0, task="angle", metric="mean_squared_error"))
        record.append(evaluation(trained, 0, 0.3, task="", metric="f1"))
        record.append(experience(trained))
    return Result(description(1), record)


def test_several_tasks_are_averaged_over_those_with_an_accuracy() -> None:
    result = multi_task()
    assert result.accuracy_matrix.tolist() == [[0.75], [0.75]]
    assert result.matrix(task="b").tolist() == [[1.0], [1.0]]
    assert result.matrix(task="angle").tolist() == [[7.0], [7.0]]
    assert result.matrix(metric="mean_squared_error").tolist() == [[7.0], [7.0]]
    assert result.matrix(metric="f1").tolist() == [[0.3], [0.3]]
    result.record.append(evaluation(1, 0, None, task="b"))
    assert np.isnan(result.accuracy_matrix[1, 0])


def test_unknown_names_offer_the_nearest() -> None:
    result = multi_task()
    with pytest.raises(UnknownNameError, match="unknown task 'angel': did you mean 'angle'"):
        result.matrix(task="angel")
    with pytest.raises(UnknownNameError, match="unknown metric 'mean_square_error': did you mean 'mean_squared_error'"):
        result.matrix(metric="mean_square_error")
    with pytest.raises(UnknownNameError, match="unknown metric of task 'angle' 'accuracy'"):
        result.matrix(task="angle", metric="accuracy")


def test_a_regression_run_shows_its_errors() -> None:
    record = Record()
    for trained in range(2):
        record.append(evaluation(trained, 0, 30.0 - trained, metric="mean_squared_error"))
    record.append(experience(0))
    result = Result(description(1), record)
    assert np.isnan(result.accuracy_matrix).all()
    assert result.matrix().tolist() == [[30.0], [29.0]]
    assert "[29]" in result.table()
    assert result.metrics["average_accuracy"].reason == "it is defined for accuracies, and mean_squared_error is none"


@pytest.mark.parametrize(
    ("classes", "undefined"),
    [
        ([{"digit": [0, 1]}, {"digit": [2, 3]}], True),
        ([{"digit": [0, 1]}, {"digit": [0, 1]}], False),
        ([{"digit": [0, 1]}, {"digit": [1, 2]}], False),
        ([{"first": [0, 1]}, {"second": [2, 3]}], False),
        ([{}, {}], False),
    ],
)
def test_class_incremental_streams_are_recognised(classes: list[dict[str, list[int]]], undefined: bool) -> None:
    record = Record()
    for trained in range(3):
        for number in range(2):
            record.append(evaluation(trained, number, 0.5))
        if trained < 2:
            record.append(experience(trained, classes=classes[trained]))
    assert (Result(description(2), record).metrics["forward_transfer"].value is None) is undefined


def test_a_record_of_another_run_is_noticed() -> None:
    record = Record()
    record.append(evaluation(0, 5, 0.5))
    with pytest.raises(RunFolderError, match="measures evaluation set 5 after 0 experiences, but the run description says 2 experiences"):
        _ = Result(description(2), record).accuracy_matrix


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": None}, "lacks its format"),
        ({"format": 2}, "has format 2, and this streamlearn reads up to format 1: upgrade streamlearn"),
        ({"stream": {"experiences": 3}}, "lacks the name of the stream"),
        ({"stream": {"name": "x", "experiences": 0}}, "lacks the number of experiences, an integer of at least 1"),
        *(
            (
                {"stream": {"name": "x", "experiences": 3, "learnt_after": strange}},
                "does not say when its evaluation sets are learnt: stream.learnt_after must be a list with an integer from 1 to 3 "
                f"for each evaluation set, not {re.escape(repr(strange))}",
            )
            for strange in (None, 3, "1", [], [0, 3], [4], [1.5], [True], ["1"], {"1": 2})
        ),
    ],
)
def test_a_description_that_cannot_be_used(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Result(description(**change), Record())
    (tmp_path / "run.json").write_text(json.dumps(description(**change)))
    with pytest.raises(RunFolderError, match=message):
        Result.load(tmp_path)


def test_experiences_that_share_an_evaluation_set(make_result: MakeResult) -> None:
    result = make_result(ONLINE, learnt=LEARNT)
    assert result.accuracy_matrix.tolist() == ONLINE
    assert result.learnt_after == (3, 6)
    assert result.is_complete
    assert result.experience_names == tuple(f"part {i}" for i in range(6))
    assert result.set_names == ("part 0", "part 1")
    assert float(result.metrics["forgetting"]) == pytest.approx(0.9 - 0.6)
    assert result.to_json()["accuracy_matrix"] == ONLINE
    assert result.to_json()["stream"]["learnt_after"] == LEARNT


def test_one_evaluation_set_for_the_whole_stream(make_result: MakeResult) -> None:
    result = make_result([[0.1], [0.5], [0.7]], learnt=[2])
    assert result.accuracy_matrix.shape == (3, 1)
    assert result.is_complete
    assert float(result.metrics["average_accuracy"]) == 0.7
    assert result.metrics["forgetting"].reason == "it needs at least 2 evaluation sets, this run has 1"


def test_one_experience_with_several_evaluation_sets(make_result: MakeResult) -> None:
    result = make_result([[0.1, 0.2, 0.3], [0.7, 0.8, 0.9]], learnt=[1, 1, 1])
    assert result.accuracy_matrix.shape == (2, 3)
    assert result.is_complete
    assert (result.experience_names, result.set_names) == (("part 0",), ("part 0", "part 1", "part 2"))
    assert float(result.metrics["average_accuracy"]) == pytest.approx(0.8)
    assert result.metrics["forgetting"].reason == "its evaluation sets are not learnt one after another"


def test_a_stopped_run_over_shared_evaluation_sets(make_result: MakeResult) -> None:
    result = make_result(ONLINE, learnt=LEARNT, trained=2)  # as many experiences as there are sets
    assert not result.is_complete
    assert "not complete: 2 of 6 experiences trained" in result.title
    assert np.isnan(result.accuracy_matrix[3:]).all()
    assert result.experience_names == ("part 0", "part 1", "", "", "", "")
    result = make_result([*ONLINE[:-1], [0.6]], learnt=LEARNT)
    assert not result.is_complete
    assert "the last evaluation is missing" in result.title


def test_a_set_is_called_after_its_experience_only_where_it_is_its_own() -> None:
    for learnt, names in (([1, 2], ("part 0", "")), ([2], ("",))):
        told = description(2)
        told["stream"]["learnt_after"] = learnt
        record = Record()
        record.append(experience(0))
        result = Result(told, record)
        assert (result.experience_names, result.set_names) == (("part 0", ""), names)
        record.append(evaluation(1, 0, 0.5, set_name="test rows of 0"))
        assert (result.experience_names[0], result.set_names[0]) == ("part 0", "test rows of 0")


def test_a_record_with_more_sets_than_the_description_is_noticed(make_result: MakeResult) -> None:
    result = make_result(ONLINE, learnt=LEARNT)
    result.record.append(evaluation(6, 2, 0.5))
    with pytest.raises(RunFolderError, match="set 2 after 6 experiences, but the run description says 6 experiences and 2 evaluation sets"):
        _ = result.accuracy_matrix


@pytest.mark.parametrize(
    ("chunks", "undefined"),
    [([[0], [1], [2], [3]], True), ([[0], [1], [1], [0]], False), ([[0, 1], [2], [2, 3], [3]], False)],
)
def test_the_chunks_of_an_evaluation_set_count_as_one_experience(chunks: list[list[int]], undefined: bool) -> None:
    told, record = description(4), Record()
    told["stream"]["learnt_after"] = [2, 4]
    for trained in range(5):
        record.append(evaluation(trained, 0, 0.5))
        record.append(evaluation(trained, 1, 0.5))
        if trained < 4:
            record.append(experience(trained, classes={"digit": chunks[trained]}))
    assert (Result(told, record).metrics["forward_transfer"].value is None) is undefined


def test_shared_evaluation_sets_are_saved_and_loaded(tmp_path: Path, make_result: MakeResult) -> None:
    result = make_result(ONLINE, learnt=LEARNT)
    result.save(tmp_path)
    loaded = Result.load(tmp_path)
    assert loaded.learnt_after == (3, 6)
    assert loaded.table() == result.table()


def test_save_and_load(tmp_path: Path, make_result: MakeResult) -> None:
    result = make_result()
    result.save(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "events.jsonl", "figure.svg", "result.json", "run.json", "times.jsonl",
    ]  # fmt: skip
    loaded = Result.load(tmp_path / "run")
    assert loaded.events == result.events
    assert loaded.times == result.times
    assert loaded.description == result.description
    assert np.array_equal(loaded.accuracy_matrix, result.accuracy_matrix)
    assert loaded.table() == result.table()
    assert loaded.is_complete
    assert loaded.model is None


def test_result_json(tmp_path: Path, make_result: MakeResult) -> None:
    result = make_result([[None, 0.5], [0.9, 0.6], [0.5, 0.8]])
    result.save(tmp_path)
    text = (tmp_path / "result.json").read_text()
    content = json.loads(text)
    assert "NaN" not in text
    assert content == result.to_json()
    assert content["accuracy_matrix"] == [[None, 0.5], [0.9, 0.6], [0.5, 0.8]]
    assert content["metrics"]["learning_accuracy"] == float(result.metrics["learning_accuracy"])
    assert content["complete"] is True
    assert content["undefined"] == {}
    assert content["seed"] == 7
    assert content["stream"]["name"] == "split digits"
    assert content["definitions"]["forgetting"]["source"] == "Chaudhry et al. 2018, eq. 3"
    undefined = make_result(trained=1).to_json()
    assert undefined["metrics"]["forgetting"] is None
    assert "not complete" in undefined["undefined"]["forgetting"]
    assert undefined["complete"] is False


def test_the_same_run_saves_the_same_bytes(tmp_path: Path, make_result: MakeResult) -> None:
    make_result().save(tmp_path / "a")
    make_result().save(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_finishes_the_folder_that_the_engine_began(tmp_path: Path, make_result: MakeResult) -> None:
    (tmp_path / "run.json").write_text(json.dumps(description()))
    result = make_result(path=tmp_path / "events.jsonl")
    written = (tmp_path / "events.jsonl").read_bytes()
    result.save(tmp_path)
    result.save(tmp_path)
    assert (tmp_path / "events.jsonl").read_bytes() == written
    assert Result.load(tmp_path).events == result.events


def test_saves_the_checkpoint_into_its_folder(tmp_path: Path) -> None:
    asked: list[Path] = []
    Result(description(), fill(Record(), MATRIX), save_checkpoint=asked.append).save(tmp_path)
    assert asked == [tmp_path / "checkpoints"]


def test_refuses_the_folder_of_another_run(tmp_path: Path, make_result: MakeResult) -> None:
    make_result().save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RunFolderError, match=r"holds another run \(it differs in seed\): choose an empty folder"):
        make_result([[0, 0, 0]] * 4, seed=8).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_may_differ_when_a_run_is_resumed(tmp_path: Path, make_result: MakeResult) -> None:
    make_result(device="cuda", origin={"command": "run"}).save(tmp_path)
    make_result(versions={"numpy": "3"}, device="cpu", origin=None).save(tmp_path)
    there = Result.load(tmp_path).description
    assert (there["versions"], there["device"], there["origin"]) == ({"numpy": "2"}, "cuda", {"command": "run"})


def test_refuses_a_file(tmp_path: Path, make_result: MakeResult) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(RunFolderError, match="x is a file, not a folder: choose another name"):
        make_result().save(tmp_path / "x")


def test_a_full_disk_leaves_whole_files_only(tmp_path: Path, make_result: MakeResult, full_disk) -> None:
    result = make_result()
    result.save(tmp_path / "whole")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "whole").iterdir()}
    for room in (0, 10, sizes["run.json"] + 10, sum(sizes.values()) - 1):
        full_disk(room)
        folder = tmp_path / str(room)
        with pytest.raises(RunFolderError, match=f"cannot write to the run folder {folder}: the disk is full: free some space"):
            result.save(folder)
        assert not (folder / "result.json").exists()
        for path in folder.iterdir():
            assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    full_disk(10**9)
    result.save(folder)
    assert Result.load(folder).is_complete


def test_what_cannot_be_loaded(tmp_path: Path, make_result: MakeResult) -> None:
    with pytest.raises(RunFolderError, match=r"is not a run folder: it has no run\.json"):
        Result.load(tmp_path)
    make_result().save(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"run\.json is damaged: it is not JSON"):
        Result.load(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(RunFolderError, match=r"run\.json is damaged: it holds a list, not an object"):
        Result.load(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(description()))
    (tmp_path / "events.jsonl").unlink()
    with pytest.raises(RunFolderError, match=r"cannot read .*events\.jsonl: there is no such file"):
        Result.load(tmp_path)


def test_a_run_that_was_killed_can_be_looked_at(tmp_path: Path, make_result: MakeResult) -> None:
    (tmp_path / "run.json").write_text(json.dumps(description()))
    make_result(trained=2, path=tmp_path / "events.jsonl")
    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(b'{"event": "eval')
    result = Result.load(tmp_path)
    assert result.accuracy_matrix[2].tolist() == MATRIX[2]
    assert not result.is_complete
    assert result.times == []


def test_importing_is_light() -> None:
    code = "import sys, streamlearn.results; print(sorted({'matplotlib', 'rich', 'torch', 'scipy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names() -> None:
    from streamlearn import results

    ours = ["METRICS", "Measure", "Record", "Result", "compare_figure", "compare_table", "compute"]
    tasks = ["delta_m", "final_values", "hypervolume", "mean_ranks"]
    assert results.__all__ == [*ours, *tasks, "to_svg", "worst_task"]
    assert all(hasattr(results, name) for name in results.__all__)
