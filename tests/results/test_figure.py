from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from streamlearn.errors import ConfigurationError
from streamlearn.results import Result, compare_figure, to_svg
from streamlearn.results.figure import matrix_figure
from streamlearn.results.panels import _places, _spread

from .conftest import LEARNT, MATRIX, ONLINE, MakeResult, evaluation


def texts(figure: Figure, axes: int) -> list[str]:
    return [text.get_text() for text in figure.axes[axes].texts]


def test_says_what_was_run_and_what_is_drawn(make_result: MakeResult) -> None:
    figure = make_result().figure()
    heat, lines = figure.axes[:2]
    assert figure.get_suptitle() == "split digits: ewc, seed 7"
    assert heat.get_xlabel() == "accuracy on the test rows of experience ..."
    assert heat.get_ylabel() == "after training experience ..."
    assert [label.get_text() for label in heat.get_yticklabels()] == ["none yet", "1: part 0", "2: part 1", "3: part 2"]
    assert lines.get_xlabel().startswith("number of experiences trained")
    assert all(axes.get_legend() is None for axes in figure.axes)


def test_cells_hold_the_numbers_and_the_diagonal_is_outlined() -> None:
    figure = matrix_figure(np.array(MATRIX), [], title="x")
    assert texts(figure, 0) == [f"{100 * value:.0f}" for row in MATRIX for value in row]
    assert np.array_equal(figure.axes[0].images[0].get_array(), MATRIX)
    corners = [patch.get_xy() for patch in figure.axes[0].patches]
    assert corners == [(-0.5, 0.5), (0.5, 1.5), (1.5, 2.5)]


def test_lines_are_named_at_their_ends_in_their_colours() -> None:
    figure = matrix_figure(np.array(MATRIX), ["a", "b", "c"], title="x")
    lines = figure.axes[1]
    assert sorted(texts(figure, 1)) == ["1: a", "2: b", "3: c"]
    by_end = {
        tuple(line.get_ydata())[-1]: line.get_color() for line in lines.lines if len(line.get_ydata()) == 1 or line.get_xdata()[-1] == 3
    }
    for text in lines.texts:
        end = MATRIX[-1][int(text.get_text()[0]) - 1]
        assert text.get_color() == by_end[end]


def lines_drawn(figure: Figure) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[1].lines]


def test_shared_evaluation_sets_are_outlined_and_dotted_where_they_have_been_learnt(make_result: MakeResult) -> None:
    figure = make_result(ONLINE, learnt=LEARNT).figure()
    heat, lines = figure.axes[:2]
    assert [patch.get_xy() for patch in heat.patches] == [(-0.5, 2.5), (0.5, 5.5)]
    assert heat.get_title() == "outlined: the evaluation set just learnt"
    assert heat.get_xlabel() == "accuracy on the test rows of evaluation set ..."
    assert [label.get_text() for label in heat.get_xticklabels()] == ["1: part 0", "2: part 1"]
    assert [label.get_text() for label in heat.get_yticklabels()] == ["none yet", *(f"{i + 1}: part {i}" for i in range(6))]
    assert texts(figure, 0) == [f"{100 * value:.0f}" for row in ONLINE for value in row]
    first, second = [row[0] for row in ONLINE], [row[1] for row in ONLINE]
    assert lines_drawn(figure) == [
        ([0, 1, 2, 3], first[:4]), ([3, 4, 5, 6], first[3:]), ([3], [0.9]),
        ([0, 1, 2, 3, 4, 5, 6], second), ([6], [0.7]), ([6], [0.7]),
    ]  # fmt: skip
    assert lines.lines[0].get_linewidth() < lines.lines[1].get_linewidth()
    assert lines.get_xlim() == (0, 6)
    assert "the line's evaluation set has just been learnt" in lines.get_xlabel()


def test_the_mean_is_over_the_sets_that_have_been_learnt() -> None:
    rng = np.random.default_rng(0)
    matrix, learnt = rng.random((21, 9)), [2, 4, 6, 8, 10, 12, 14, 16, 20]
    mean = lines_drawn(matrix_figure(matrix, [], title="x", learnt=learnt))[-1][1]
    assert np.isnan(mean[:2]).all()
    assert mean[2:] == pytest.approx([matrix[i, [after <= i for after in learnt]].mean() for i in range(2, 21)])


def test_the_rows_of_a_long_stream_stay_readable() -> None:
    figure = matrix_figure(np.full((601, 5), 0.5), [""] * 600, title="x", learnt=[120, 240, 360, 480, 600], sets=list("abcde"))
    figure.savefig(io.BytesIO(), format="png")
    heat = figure.axes[0]
    assert [label.get_text() for label in heat.get_xticklabels()] == [f"{j + 1}: {name}" for j, name in enumerate("abcde")]
    labels = heat.get_yticklabels()
    assert [label.get_text() for label in labels] == ["none yet", *(str(i) for i in range(50, 601, 50))]
    boxes = [label.get_window_extent() for label in labels]
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
    assert texts(figure, 0) == []


@pytest.mark.parametrize(("shape", "learnt"), [((2, 3), [1, 1, 1]), ((7, 1), [6]), ((31, 12), [30] * 12)])
def test_any_number_of_sets_can_be_drawn(shape: tuple[int, int], learnt: list[int]) -> None:
    figure = matrix_figure(np.full(shape, 0.5), [], title="x", learnt=learnt)
    assert [patch.get_xy() for patch in figure.axes[0].patches] == [(j - 0.5, i - 0.5) for j, i in enumerate(learnt)]
    assert to_svg(figure).startswith(b"<?xml")


def test_runs_with_and_without_shared_sets_side_by_side(make_result: MakeResult) -> None:
    figure = compare_figure({"batch": make_result(), "online": make_result(ONLINE, learnt=LEARNT)})
    assert [len(axes.patches) for axes in figure.axes[:2]] == [3, 2]
    assert figure.get_suptitle().endswith("(outlined: the experience just trained or the evaluation set just learnt)")


def test_undefined_cells_say_so() -> None:
    figure = matrix_figure(np.array([[np.nan, np.nan], [1, np.nan], [0.5, 1]]), [], title="x")
    assert texts(figure, 0).count("no\nvalue") == 3


def test_nothing_measured_yet_can_be_drawn() -> None:
    figure = matrix_figure(np.full((3, 2), np.nan), [], title="x")
    assert texts(figure, 1) == []
    assert to_svg(figure).startswith(b"<?xml")


@pytest.mark.parametrize("experiences", [1, 2, 7, 8, 13, 100])
def test_no_two_texts_overlap(experiences: int) -> None:
    rng = np.random.default_rng(0)
    matrix = 0.5 + 0.01 * rng.random((experiences + 1, experiences))  # lines that end close together
    figure = matrix_figure(matrix, [f"a rather long name {i}" for i in range(experiences)], title="x")
    figure.savefig(io.BytesIO(), format="png")
    for axes in figure.axes[:2]:
        for group in (axes.texts, axes.get_yticklabels()):
            boxes = [Text.get_window_extent(text).shrunk(0.98, 0.98) for text in group if text.get_text()]  # without arrows
            assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
    if experiences > 10:
        assert texts(figure, 0) == []
    assert len(figure.axes[1].texts) <= 7


def test_the_same_run_gives_the_same_bytes(make_result: MakeResult) -> None:
    import matplotlib

    first = to_svg(make_result().figure())
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        second = to_svg(make_result().figure())
    assert first == second
    assert b"<dc:date>" not in first


def test_drawing_leaves_matplotlib_as_it_was(make_result: MakeResult) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 30}):
        make_result().figure()
        assert matplotlib.rcParams["font.size"] == 30


def test_comparison_has_a_column_for_each_run_on_one_scale(make_result: MakeResult) -> None:
    figure = compare_figure({"ewc": make_result(), "stopped": make_result(trained=1), "short": make_result([[0.5], [0.9]])})
    titles = [axes.get_title() for axes in figure.axes[:3]]
    assert titles == ["ewc\naverage accuracy 63.3 %, forgetting 40.0 %", "stopped", "short\naverage accuracy 90.0 %"]
    assert {axes.images[0].get_clim() for axes in figure.axes[:3]} == {(0.0, 1.0)}
    assert figure.get_suptitle().startswith("split digits: ewc, stopped, short")


def test_errors_have_a_scale_of_their_own(make_result: MakeResult) -> None:
    result = error_run(make_result)
    heat = result.figure().axes[0]
    assert heat.images[0].get_clim() == (0.0, 4.0)
    assert heat.get_xlabel() == "mean squared error on the test rows of experience ..."
    with pytest.raises(ConfigurationError, match="cannot share a scale: accuracy, mean_squared_error; compare them apart"):
        compare_figure({"a": make_result(), "b": result})


def error_run(make_result: MakeResult) -> Result:
    result = make_result([[0.5], [0.9]], trained=-1)
    for trained, value in enumerate((4.0, 1.0)):
        result.record.append(evaluation(trained, 0, value, metric="mean_squared_error"))
    return result


def test_nothing_to_compare() -> None:
    with pytest.raises(ConfigurationError, match="there is no result to compare"):
        compare_figure({})


def test_names_are_spread_inside_the_axes() -> None:
    places = _spread([0.9, 0.95, 0.99, 1.0], [0.1] * 4, (0.0, 1.0))
    assert places == pytest.approx([0.7, 0.8, 0.9, 1.0])
    assert _spread([0.5] * 3, [0.1, 0.2, 0.1], (0.0, 1.0)) == pytest.approx([0.35, 0.5, 0.65])
    assert _spread([0.0] * 3, [0.1] * 3, (0.0, 1.0)) == pytest.approx([0.0, 0.1, 0.2])
    assert _spread([0.2, 0.8], [0.1, 0.1], (0.0, 1.0)) == [0.2, 0.8]


@pytest.mark.parametrize("experiences", [1, 12, 13, 100, 1000])
def test_axes_carry_few_numbers(experiences: int) -> None:
    places = _places(experiences)
    assert 1 <= len(places) <= 12
    assert places[-1] < experiences
