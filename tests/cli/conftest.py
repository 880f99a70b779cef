"""How the tests talk to the command line: in this process where they can, as a user does where they must."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from streamlearn.cli.main import main

TINY = ["--stream", "class_incremental:source=digits,experiences=2", "--batch-size", "128", "--model", "mlp:hidden=[8]"]
"""Options of a run that takes a fraction of a second."""


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        return self.out.strip().splitlines()[-1]


Call = Callable[..., Done]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str | Path) -> Done:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


def start(*words: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """Starts the program as a user does."""
    command = [sys.executable, "-c", "import sys; from streamlearn.cli.main import main; sys.exit(main())", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
