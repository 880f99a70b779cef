from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlearn.errors import ConfigurationError
from streamlearn.options import parse, parse_chain


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("n", {}),
        ("n:a=1", {"a": 1}),
        (" n : a = 1 , b = x ", {"a": 1, "b": "x"}),
        ("n:a=1e-3,b=-2,c=true,d=null", {"a": 1e-3, "b": -2, "c": True, "d": None}),
        ("n:a=True,b=False,c=None", {"a": True, "b": False, "c": None}),
        ("n:classes=[[0,1],[2,3]],seed=4", {"classes": [[0, 1], [2, 3]], "seed": 4}),
        ('n:a={"b":[1,2],"c":"x,]y"},d=2', {"a": {"b": [1, 2], "c": "x,]y"}, "d": 2}),
        (r'n:a="say \"hi, you\"",b=1', {"a": 'say "hi, you"', "b": 1}),
        ("n:path=/data/a:b=c", {"path": "/data/a:b=c"}),
        ("n:a=NaN,b=Infinity", {"a": "NaN", "b": "Infinity"}),
        ("n:source=fashion-mnist", {"source": "fashion-mnist"}),
    ],
)
def test_values_are_json_or_text(text: str, options: dict[str, object]) -> None:
    assert parse(text) == ("n", options)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it does not begin with a name"),
        (":a=1", "it does not begin with a name"),
        ("a=1", "it does not begin with a name"),
        ("n:", "'' is not of the form key=value"),
        ("n:a", "'a' is not of the form key=value"),
        ("n:a=", "'a=' is not of the form key=value"),
        ("n:=1", "'=1' is not of the form key=value"),
        ("n:a=1,", "'' is not of the form key=value"),
        ("n:a=1,a=2", "option 'a' is given twice"),
        ("n:a=[1,2", "'[' is never closed"),
        ("n:a=[1,2}", "'}' closes nothing"),
        ("n:a=1]", "']' closes nothing"),
        ('n:a="b', "'\"' is never closed"),
        ("n:a=[x,y]", "the value of 'a' looks like JSON and is not: [x,y]"),
    ],
)
def test_bad_syntax_shows_the_text(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"cannot read {text!r}: {why}; write NAME:key=value,key=value, for example ")):
        parse(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), VALUES, max_size=4))
def test_whatever_is_written_as_json_is_read_back(options: dict[str, object]) -> None:
    written = ",".join(f"{key}={json.dumps(value)}" for key, value in options.items())
    assert parse(f"name:{written}" if options else "name") == ("name", options)


def test_parsing_needs_no_torch() -> None:
    code = "import sys, streamlearn.options; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_chains_are_cut_at_bars_outside_quotes_and_brackets() -> None:
    assert parse_chain('a:x="p|q",y=[1,2] |b|  c:z=3') == [("a", {"x": "p|q", "y": [1, 2]}), ("b", {}), ("c", {"z": 3})]
    with pytest.raises(ConfigurationError, match="there is nothing on one side of a"):
        parse_chain("a | ")
