from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of runs are saved here: their figures are drawn elsewhere, and nobody waits for the disk."""
    from streamlearn.results import Result

    monkeypatch.setattr("streamlearn.results.result.to_svg", lambda figure: b"<svg/>")
    monkeypatch.setattr(Result, "figure", lambda self: None)
    monkeypatch.setattr("os.fsync", lambda handle: None)
