from __future__ import annotations

import numpy as np
import pytest

from streamlearn.errors import ConfigurationError
from streamlearn.results import Result, compare_table, compute
from streamlearn.results.table import WIDTH, fit, matrix_table, metrics_table

from .conftest import LEARNT, MATRIX, ONLINE, MakeResult


def check_plain(text: str) -> None:
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "\x1b" not in text
    assert text.isascii()
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_a_table_of_a_whole_run(make_result: MakeResult) -> None:
    text = make_result().table()
    check_plain(text)
    assert text.splitlines()[0] == "split digits: ewc, seed 7"
    assert "before training   10.0    20.0    30.0" in text
    assert "after 1: part 0  [90.0]   30.0    40.0" in text
    assert "after 3: part 2   50.0    60.0   [80.0]" in text
    assert "| average accuracy             |  63.33 |" in text
    assert "| backward transfer            | -40.00 |" in text
    assert "undefined" not in text.replace("- undefined or not measured", "")


def test_the_diagonal_and_nothing_else_is_marked() -> None:
    rows = matrix_table(np.array(MATRIX), ["a", "b", "c"]).splitlines()[-4:]
    assert [[cell.startswith("[") for cell in row.split()[-3:]] for row in rows] == (np.eye(4, 3, k=-1) > 0).tolist()


def test_undefined_entries_and_metrics_say_why(make_result: MakeResult) -> None:
    result = make_result([[None, None], [0.9, None], [0.5, 0.8]])
    text = result.table()
    assert "undefined: the model has no head yet" in text
    assert "before training      -       -" in text
    assert "undefined: it needs R[0, 1], the accuracy on set 1" in text
    assert "forgetting                   |  40.00" in text


def test_a_run_that_was_stopped_says_so(make_result: MakeResult) -> None:
    text = make_result(trained=1).table()
    assert "split digits: ewc, seed 7, not complete: 1 of 3 experiences trained" in text
    assert text.count("undefined: the run is not complete: 1 of 3") == 6


@pytest.mark.parametrize("experiences", [1, 2, 10, 11, 12, 40, 100])
def test_any_number_of_experiences_fits(experiences: int) -> None:
    matrix = np.ones((experiences + 1, experiences))
    text = matrix_table(matrix, ["a very long name of an experience, and unbreakabl" + "e" * 50] * experiences)
    check_plain(text)
    assert f"after {experiences}:" in text
    assert f"exp. {experiences}" in text
    assert ("the middle ones are left out" in text) == (experiences > 10)


@pytest.mark.parametrize("experiences", [11, 100, 1000, 2000])
def test_headings_do_not_run_together(experiences: int) -> None:
    text = matrix_table(np.ones((experiences + 1, experiences)), [])
    check_plain(text)
    heading = next(line for line in text.splitlines() if line.startswith("trained so far"))
    assert heading.split()[-2:] == ["exp.", str(experiences)]
    assert heading.count(" exp. ") == 8


def test_shared_evaluation_sets_are_marked_where_they_have_been_learnt(make_result: MakeResult) -> None:
    text = make_result(ONLINE, learnt=LEARNT).table()
    check_plain(text)
    assert "accuracy in % on the test rows of each evaluation set" in text
    assert "[ ] the evaluation set just learnt" in text
    assert "sets: 1: part 0; 2: part 1\n" in text
    assert "trained so far    set 1   set 2\n" in text
    assert "after 2: part 1   80.0    20.0\n" in text
    assert "after 3: part 2  [90.0]   50.0\n" in text
    assert "after 6: part 5   60.0   [70.0]\n" in text
    assert text.count("[90.0]") + text.count("[70.0]") == 2
    assert "T is the number of sets" in " ".join(text.split())
    assert "exp." not in text
    assert "left out" not in text


def test_what_the_rows_of_the_metrics_are_is_said_only_where_it_is_needed(make_result: MakeResult) -> None:
    for result in (
        make_result(),
        make_result(ONLINE, learnt=LEARNT, trained=3),
        make_result([[0.1], [0.5], [0.7]], learnt=[2]),
        make_result([[0.1, 0.2], [0.7, 0.8]], learnt=[1, 1]),
    ):
        assert "number of sets" not in " ".join(result.table().split())


def test_of_many_experiences_the_rows_that_tell_most_are_shown() -> None:
    matrix = np.full((601, 5), 0.25)
    text = matrix_table(matrix, [], learnt=[120, 240, 360, 480, 600])
    check_plain(text)
    rows = text.splitlines()[-6:]
    assert [row.split("  ")[0] for row in rows] == ["before training", *(f"after {i}" for i in (120, 240, 360, 480, 600))]
    assert [row.split().index("[25.0]") - 2 for row in rows[1:]] == [0, 1, 2, 3, 4]
    assert "600 experiences: most are left out here, the matrix itself has them all" in text


def test_when_those_rows_do_not_fit_both_ends_are_shown() -> None:
    text = matrix_table(np.ones((41, 20)), [], learnt=range(2, 42, 2))
    check_plain(text)
    assert "40 experiences: the middle ones are left out here" in text
    assert "20 evaluation sets: the middle ones are left out here" in text
    assert [line.split("  ")[0] for line in text.splitlines()[-11:]] == [
        "before training", *(f"after {i}" for i in range(1, 5)), "...", *(f"after {i}" for i in range(36, 41)),
    ]  # fmt: skip


def test_sets_learnt_together_and_a_stream_that_goes_on() -> None:
    together = matrix_table(np.array([[0.0, 0.0, 0.0], [0.5, 0.6, 0.7]]), ["all"], learnt=[1, 1, 1], sets=["a", "", "c"])
    assert together.splitlines()[-1] == "after 1: all     [50.0]  [60.0]  [70.0]"
    assert "sets: 1: a; 3: c\n" in together
    longer = matrix_table(np.full((31, 1), 0.5), [], learnt=[20])
    assert [line.split()[-1] for line in longer.splitlines()[-3:]] == ["50.0", "[50.0]", "50.0"]


def test_markup_in_names_is_text(make_result: MakeResult) -> None:
    assert "[red]x[/red] :smile:" in compare_table({"[red]x[/red] :smile:": make_result()})


def test_what_is_no_accuracy_is_no_percentage() -> None:
    text = matrix_table(np.array([[12345.678], [0.25]]), [], "mean_squared_error")
    assert "mean squared error on the test rows" in text
    assert "%" not in text
    assert "1.235e+04" in text
    assert "[0.25]" in text


def test_metrics_keep_their_sign_and_formula() -> None:
    text = metrics_table(compute(MATRIX))
    check_plain(text)
    for name in ("Chaudhry et al. 2018", "Rebuffi et al. 2017", "Riemer et al. 2019", "Lopez-Paz and"):
        assert name in text


def test_comparison_side_by_side(make_result: MakeResult) -> None:
    worse = make_result([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    text = compare_table({"ewc": make_result(), "fine-tuning, with a name that is far too long for the table": worse})
    check_plain(text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in next(row for row in rows if "ewc" in row).split("|")[1:-1]] == [
        "ewc", "63.33", "79.44", "40.00", "-40.00", "15.00", "90.00",
    ]  # fmt: skip
    assert any("33.33" in row and "-100.00" in row for row in rows)
    assert "lower is better" in text


def test_comparison_gives_reasons_once(make_result: MakeResult) -> None:
    results: dict[str, Result] = {"one": make_result([[0.5], [0.9]]), "two": make_result([[0.5], [0.8]])}
    text = compare_table(results)
    assert text.count("forgetting is undefined: it needs at least 2 experiences") == 1
    assert "transfer |" not in text
    mixed = compare_table({"whole": make_result(), "stopped": make_result(trained=1)})
    assert "forgetting of stopped is undefined: the run is not complete: 1 of 3" in mixed


def test_nothing_to_compare() -> None:
    with pytest.raises(ConfigurationError, match="there is no result to compare"):
        compare_table({})


def test_fit_wraps_long_lines_only() -> None:
    assert fit("a  b\n\nc") == "a  b\n\nc"
    assert max(map(len, fit("word " * 60).splitlines())) <= WIDTH
