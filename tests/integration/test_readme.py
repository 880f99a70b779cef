"""The scripts that the README shows must run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def test_the_first_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(SCRIPTS[0], names)
    result = names["result"]
    assert result.accuracy_matrix.shape == (6, 5)  # type: ignore[attr-defined]
    assert "forgetting" in capsys.readouterr().out
    assert {p.name for p in Path("runs/first").iterdir()} >= {"result.json", "events.jsonl", "figure.svg", "checkpoints"}


def test_the_plugin_acts_and_keeps_its_state() -> None:
    import torch

    from streamlearn import Engine, models, streams

    names: dict[str, object] = {}
    exec(SCRIPTS[1], names)
    anchor = names["L2Anchor"]
    stream = streams.class_incremental("digits", experiences=3)[:2]

    def matrix(*plugins: object) -> np.ndarray:
        engine = Engine(models.mlp(stream, hidden=(20,)), lambda p: torch.optim.SGD(p, lr=0.05), plugins)  # type: ignore[arg-type]
        return engine.run(stream).accuracy_matrix

    plain = matrix()
    assert np.array_equal(matrix(anchor(strength=0.0)), plain, equal_nan=True)  # type: ignore[operator]
    assert not np.array_equal(matrix(anchor(strength=1.0)), plain, equal_nan=True)  # type: ignore[operator]


def test_the_scripts_are_there() -> None:
    assert len(SCRIPTS) == 2
