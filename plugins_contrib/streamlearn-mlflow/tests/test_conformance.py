"""The rules that every plugin must keep."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("mlflow", reason="mlflow is not installed")

from streamlearn.testing import plugin_checks

from streamlearn_mlflow import MLflowTracker

REASONS = {
    "deterministic": "MLflow gives every run an identity of its own, which is state",
    "has_effect": "what it writes lies outside of the run; test_tracker.py reads it",
}


@pytest.mark.filterwarnings("ignore")
@plugin_checks(MLflowTracker(uri=Path(tempfile.mkdtemp()).as_uri()), expected_failures=REASONS)
def test_conformance(check: Callable[[], None]) -> None:
    check()
