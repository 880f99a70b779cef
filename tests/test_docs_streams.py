"""docs/streams.md is what its script writes, shows every builder, and its examples run."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import streamlearn.streams
from streamlearn.streams.catalogue import builders

DOCS = Path(__file__).parents[1] / "docs"

pytestmark = pytest.mark.skipif(not (DOCS / "streams" / "make.py").exists(), reason="the documentation is not part of this distribution")


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_streams", DOCS / "streams" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(make: ModuleType) -> None:
    assert (DOCS / "streams.md").read_text() == make.page(), "run: python docs/streams/make.py"


def test_every_builder_is_in_it_once_and_has_a_small_picture(make: ModuleType) -> None:
    shown = [entry.name for entry in (*make.BUILDERS, *make.OPERATORS)]
    assert sorted(shown) == sorted(builder.name for builder in builders() if builder.distribution == "streamlearn")
    for name in shown:
        assert 1000 < (DOCS / "streams" / f"{name}.png").stat().st_size <= make.LARGEST
    assert {path.stem for path in (DOCS / "streams").glob("*.png")} == set(shown)


def test_text_and_python_build_the_same_stream(make: ModuleType) -> None:
    names = {name: getattr(streamlearn.streams, name) for name in streamlearn.streams.__all__}
    for entry in (*make.BUILDERS, *make.OPERATORS):
        assert eval(entry.code, dict(names)).hash == make.built(entry).hash, entry.text


def test_every_protocol_names_who_uses_it(make: ModuleType) -> None:
    assert [name for name in make.registered() if not re.search(r"\b(19|20)\d\d\b", make._source(name))] == []


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scripts = [script for script in re.findall(r"```python\n(.*?)```", (DOCS / "streams.md").read_text(), re.DOTALL) if "import" in script]
    assert len(scripts) >= 4
    for script in scripts:
        exec(script, {})
    assert (tmp_path / "stream.svg").exists()
