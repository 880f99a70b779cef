"""Progress: a bar on a terminal, lines elsewhere, and numbers that are the measured ones."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from streamlearn.cli.build import build
from streamlearn.cli.progress import experience_line, fraction_done, progress
from streamlearn.cli.strategy import Strategy, validated


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
    stream = {"name": "data_incremental", "source": "digits", "experiences": 11}
    engine, built = build(
        tiny(stream=stream, epochs=1), lambda event, run: lines.append(experience_line(run)) if event == "experience" else None
    )
    engine.run(built)
    assert "accuracy % ... " in lines[-1]
