from __future__ import annotations

import os
from pathlib import Path

import pytest

from streamlearn.errors import ConfigurationError, UnknownNameError
from streamlearn.options import parse
from streamlearn.streams.sources import canonical_name, named_source
from streamlearn.streams.sources.named import NAMES


@pytest.mark.parametrize("path", ["rows.csv", "/tmp/a,b", "2024", "/a=b,size=3", "true", 'quo"ted', "[odd", "with space", "ä|b"])
def test_text_comes_back_as_it_was_given(path: str) -> None:
    import json

    name = canonical_name(f"csv:target=y,path={json.dumps(path)}")
    assert parse(name) == ("csv", {"path": path, "target": "y"})
    assert canonical_name(name) == name


def test_order_and_letter_case_make_no_difference() -> None:
    assert canonical_name("HyperPlane:speed=0.5,rows=10") == canonical_name("hyperplane:rows=10,speed=0.5")
    assert named_source("Moons:rows=20,seed=3")[0] is named_source("moons:seed=3,rows=20")[0]


def test_what_cannot_be_read_or_found() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown source 'digit': did you mean 'digits'\?"):
        named_source("digit")
    with pytest.raises(UnknownNameError, match=r"unknown option of source moons 'row': did you mean 'rows'\?"):
        named_source("moons:row=3")
    with pytest.raises(ConfigurationError, match="source 'csv:target=y' needs the option 'path': write csv:path="):
        named_source("csv:target=y")


def test_every_name_leads_to_a_function() -> None:
    import importlib

    for name, place in NAMES.items():
        module, _, function = place.partition(":")
        assert name == name.lower().replace("_", "-")
        assert callable(getattr(importlib.import_module(f"streamlearn.streams.sources.{module}"), function))


def test_files_that_changed_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    path = tmp_path / "rows.csv"
    name = f"csv:path={path},target=kind"
    path.write_text("size,kind\n1,a\n2,b\n")
    source = named_source(name)[0]
    assert named_source(name)[0] is source
    path.write_text("size,kind\n1,a\n2,b\n3,b\n")
    assert len(named_source(name)[0]) == 3
    path.write_text("size,kind\n1,b\n2,a\n3,a\n")  # as long as before
    os.utime(path, ns=(1, 1))
    assert named_source(name)[0].targets["y"].tolist() == [1, 0, 0]  # type: ignore[attr-defined]
    monkeypatch.setenv("STREAMLEARN_DATA", str(tmp_path))
    below = named_source("csv:path=rows.csv,target=kind")[0]
    assert named_source("csv:path=rows.csv,target=kind")[0] is below
    os.utime(path, ns=(2, 2))
    assert named_source("csv:path=rows.csv,target=kind")[0] is not below


def test_a_folder_in_which_something_changed_is_read_again(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        pillow.new("RGB", (2, 2)).save(tmp_path / kind / "1.png")
    name = f"folder:path={tmp_path},size=2"
    assert named_source(name)[0] is named_source(name)[0]
    pillow.new("RGB", (2, 2)).save(tmp_path / "dog" / "2.png")
    os.utime(tmp_path / "dog", ns=(1, 1))  # whatever the clock of the file system
    assert len(named_source(name)[0]) == 3
