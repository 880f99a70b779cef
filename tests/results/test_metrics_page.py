"""docs/metrics.md is what its script makes of the code, and its example runs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from streamlearn.results import METRICS
from streamlearn.results.anytime import ANYTIME
from streamlearn.results.costs import COSTS
from streamlearn.results.variants import VARIANTS

DOCS = Path(__file__).parents[2] / "docs"

pytestmark = pytest.mark.skipif(not (DOCS / "make_metrics.py").exists(), reason="the documentation is not part of this distribution")


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_metrics", DOCS / "make_metrics.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(make: ModuleType) -> None:
    assert (DOCS / "metrics.md").read_text(encoding="utf-8") == make.page(), "run: python docs/make_metrics.py"


def test_every_metric_is_on_it_once(make: ModuleType) -> None:
    named = re.findall(r"^\| `(\w+)`", make.page(), flags=re.MULTILINE)
    assert named == [*METRICS, *VARIANTS, *ANYTIME, *COSTS, "intransigence", "accuracy_gap"]
    assert make.PEERS.keys() <= set(named), "a peer of a metric that is not there any more"


def test_the_example_runs(make: ModuleType) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", make.page(), flags=re.DOTALL)
    space: dict[str, object] = {}
    exec(code, space)
    assert list(space["result"].metrics) == list(METRICS)  # type: ignore[attr-defined]
    assert space["result"].measure("stability_gap").value is not None  # type: ignore[attr-defined]
