"""The README keeps its word, and importing the package costs no import of Avalanche."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any


def test_the_example_runs() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    block = re.search(r"\n\n((?:    .*\n|\n)+)", text)
    assert block is not None
    made: dict[str, Any] = {}
    exec(textwrap.dedent(block[1]), made)
    assert made["engine"].plugins == (made["plugin"],)


def test_importing_does_not_import_avalanche() -> None:
    code = "import sys, streamlearn_avalanche; assert 'avalanche' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=Path(__file__).parents[1])
