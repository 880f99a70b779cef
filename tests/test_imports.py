"""What an import costs: listing names must not wait for torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"avalanche", "matplotlib", "pandas", "scipy", "sklearn", "torch", "torchjd", "torchmetrics", "torchvision", "wandb"}


@pytest.mark.parametrize(
    "module",
    ["streamlearn", "streamlearn.errors", "streamlearn.models", "streamlearn.plugins", "streamlearn.results", "streamlearn.streams"],
)
def test_importing_a_package_and_listing_its_names_loads_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}; dir({module}); print(*sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
