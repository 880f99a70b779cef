"""Progress: a bar on a terminal, lines elsewhere, and numbers that are the measured ones."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from streamlearn.cli.build import build
from streamlearn.cli.progress import experience_line, fraction_done, progress
from streamlearn.cli.strategy import Strategy, validated
from streamlearn.results import Result
from streamlearn.streams import Stream, class_incremental, domain_incremental


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def tiny(**options: Any) -> Strategy:
    stream = {"name": "class_incremental", "source": "digits", "experiences": 2}
    return validated({"stream": stream, "batch_size": 128, "epochs": 2, **options}, "a test")


def run_on(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    with progress(quiet=False) as tell:
        engine, stream = build(tiny(), tell)
        engine.run(stream)
    return terminal.getvalue()


def test_on_a_terminal_a_bar_moves_and_the_lines_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = run_on(Terminal(), monkeypatch)
    assert "\x1b[" in text
    assert text.count("updates: accuracy %") == 2


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[38" not in run_on(Terminal(), monkeypatch)


def test_quiet_is_silent() -> None:
    with progress(quiet=True) as tell:
        assert tell is None


def test_the_fraction_grows_to_one_and_the_lines_hold_the_measured_values() -> None:
    fractions, lines = [], []

    def tell(event: str, run: Any) -> None:
        fractions.append(fraction_done(run))
        if event == "experience":
            lines.append(experience_line(run))

    engine, stream = build(tiny(), tell)
    result = engine.run(stream)
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    final = result.accuracy_matrix[-1]
    assert lines[-1].endswith(f"{100 * final[0]:5.1f} {100 * final[1]:5.1f}, mean so far {100 * final.mean():.1f}")


def test_a_run_that_is_not_evaluated_says_so() -> None:
    lines = []
    engine, stream = build(
        tiny(evaluate="never", epochs=1), lambda event, run: lines.append(experience_line(run)) if event == "experience" else None
    )
    engine.run(stream)
    assert all(line.endswith("not evaluated") for line in lines)


def test_of_a_long_stream_only_the_newest_accuracy_is_shown() -> None:
    lines = []
    stream = {"name": "domain_incremental", "source": "digits", "experiences": 11}
    engine, built = build(
        tiny(stream=stream, epochs=1), lambda event, run: lines.append(experience_line(run)) if event == "experience" else None
    )
    matrix = engine.run(built).accuracy_matrix
    assert lines[-1].endswith(f"accuracy % ... {100 * matrix[-1, -1]:.1f}, mean so far {100 * matrix[-1].mean():.1f}")
    assert lines[0].endswith(f"accuracy % ... {100 * matrix[1, 0]:.1f}, mean so far {100 * matrix[1, 0]:.1f}")


def lines_of(stream: Stream) -> tuple[list[str], Result]:
    lines: list[str] = []
    engine, _ = build(tiny(epochs=1), lambda event, run: lines.append(experience_line(run)) if event == "experience" else None)
    return lines, engine.run(stream)


def test_where_experiences_share_an_evaluation_set_the_mean_is_over_the_sets_that_have_been_learnt() -> None:
    whole = class_incremental("digits", 2)
    chunks = Stream(
        "halves", 4, lambda i: whole[i // 2], whole.evaluation_set, tasks=whole.tasks, input_shape=whole.input_shape,
        description={}, sets=lambda i: (i // 2,),
    )  # fmt: skip
    lines, result = lines_of(chunks)
    matrix = 100 * result.accuracy_matrix
    assert matrix.shape == (5, 2)
    means = ["-", *(f"{matrix[i, 0]:.1f}" for i in (2, 3)), f"{matrix[4].mean():.1f}"]
    for i, mean in enumerate(means, start=1):
        assert lines[i - 1].startswith(f"experience {i}/4 ")
        assert lines[i - 1].endswith(f"accuracy % {matrix[i, 0]:5.1f} {matrix[i, 1]:5.1f}, mean so far {mean}")


def test_of_an_experience_with_many_evaluation_sets_the_last_is_shown() -> None:
    whole = domain_incremental("digits", 11)
    everything = Stream(
        "all at once", 1, lambda i: whole[i], whole.evaluation_set, tasks=whole.tasks, input_shape=whole.input_shape,
        description={}, sets=lambda i: tuple(range(11)),
    )  # fmt: skip
    lines, result = lines_of(everything)
    final = 100 * result.accuracy_matrix[-1]
    assert lines == [lines[0]]
    assert lines[0].endswith(f"accuracy % ... {final[-1]:.1f}, mean so far {final.mean():.1f}")
