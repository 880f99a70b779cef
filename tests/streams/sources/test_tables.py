from __future__ import annotations

import datetime
import gzip
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD

from streamlearn import Engine, models
from streamlearn.errors import ConfigurationError, DataError, MissingExtraError
from streamlearn.streams import class_incremental, data_incremental, rebuild
from streamlearn.streams.sources import TensorSource, named_source
from streamlearn.streams.sources.tables import csv_file, find_path, table_source

real_data = pytest.mark.skipif("STREAMLEARN_DATA" not in os.environ, reason="STREAMLEARN_DATA is not set: it names the folder of real data")

FRAME = pd.DataFrame(
    {
        "size": [1.0, 2.0, 3.0, 6.0],
        "colour": ["red", "blue", "red", "green"],
        "heavy": [True, False, False, True],
        "count": [4, 4, 4, 4],
        "kind": ["b", "a", "c", "a"],
        "price": [0.5, 1.5, 2.5, 3.75],
    }
)


def x_of(source: TensorSource) -> list[list[float]]:
    return source.take(torch.arange(len(source))).x.tolist()


def test_columns_are_encoded_by_their_type() -> None:
    source = table_source(FRAME, "kind", features=["colour", "size", "heavy"], standardize=False)
    assert x_of(source) == [[0, 0, 1, 1, 1], [1, 0, 0, 2, 0], [0, 0, 1, 3, 0], [0, 1, 0, 6, 1]]
    assert (source.targets["y"].tolist(), source.class_names) == ([1, 0, 2, 0], ("a", "b", "c"))


def test_numbers_alone_are_standardised() -> None:
    source = table_source(FRAME, "price", features=["size", "heavy", "count", "colour"])
    x = torch.tensor(x_of(source))
    size = (FRAME["size"] - FRAME["size"].mean()) / FRAME["size"].std(ddof=0)
    torch.testing.assert_close(x[:, 0], torch.tensor(size.to_numpy(), dtype=torch.float32))
    assert x[:, 1].tolist() == [1, 0, 0, 1]
    assert x[:, 2].tolist() == [0, 0, 0, 0], "a column of one value"
    assert set(x[:, 3:].flatten().tolist()) == {0.0, 1.0}
    assert source.targets["y"].mean().abs() < 1e-6
    assert source.targets["y"].square().mean() == pytest.approx(1, abs=1e-6)
    kept = table_source(FRAME, "price", features=["size"], standardize="inputs")
    assert kept.targets["y"].tolist() == [0.5, 1.5, 2.5, 3.75]
    assert torch.equal(torch.tensor(x_of(kept))[:, 0], x[:, 0])


@pytest.mark.parametrize(
    ("column", "numbers", "names"),
    [
        ([10, 9, 10, 2], [2, 1, 2, 0], ("2", "9", "10")),
        (["x", "y", "x", "x"], [0, 1, 0, 0], ("x", "y")),
        ([True, False, True, True], [1, 0, 1, 1], ("False", "True")),
        (pd.Categorical(["u", "t", "t", "u"], categories=["z", "u", "t"]), [1, 0, 0, 1], ("t", "u")),
        (pd.array([1, 2, 1, 1], dtype="Int64"), [0, 1, 0, 0], ("1", "2")),
        (pd.Series([1, 2, 1, 1], dtype=object), [0, 1, 0, 0], ("1", "2")),
    ],
)
def test_classes_are_numbered_in_sorted_order(column: Any, numbers: list[int], names: tuple[str, ...]) -> None:
    source = table_source(pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "y": column}), "y")
    assert (source.targets["y"].tolist(), source.class_names) == (numbers, names)


def test_several_targets_become_several_columns() -> None:
    source = table_source(FRAME, ["kind", "price"], features=["size"], standardize=False)
    assert {key: (column.dtype, column.tolist()) for key, column in source.targets.items()} == {
        "kind": (torch.int64, [1, 0, 2, 0]),
        "price": (torch.float32, [0.5, 1.5, 2.5, 3.75]),
    }
    assert source.input_shape == (1,)


def test_whole_numbers_can_be_values() -> None:
    frame = FRAME.assign(weight=[40, 41, 50, 60], grade=[1.0, 2.0, 1.0, 1.0])
    values = table_source(frame, "weight", task="regression", features=["size"])
    assert values.targets["y"].square().mean() == pytest.approx(1, abs=1e-6)
    assert table_source(frame, "grade", task="classification", features=["size"]).class_names == ("1", "2")
    with pytest.raises(DataError, match="'grade' of table 'table' holds floats that all are whole numbers: say task='classification' or"):
        table_source(frame, "grade")


@given(st.lists(st.tuples(st.floats(-100, 100), st.sampled_from("abc"), st.integers(0, 2)), min_size=2, max_size=12))
@settings(max_examples=30, deadline=None)
def test_rows_keep_their_order_and_test_rows_take_the_same_encoding(rows: list[tuple[float, str, int]]) -> None:
    frame = pd.DataFrame([*rows, (0.0, "a", 0), (1.0, "b", 1)], columns=["n", "c", "y"])
    train = table_source(frame, "y")
    again = table_source(frame.iloc[::-1].reset_index(drop=True), "y", name="table/test", like=train)
    assert x_of(again) == x_of(train)[::-1]
    assert again.targets["y"].tolist() == train.targets["y"].tolist()[::-1]
    recovered = torch.tensor(
        [train.class_names[number] == str(value) for number, value in zip(train.targets["y"], frame["y"], strict=True)]
    )
    assert bool(recovered.all())


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: table_source(FRAME, "kin"), "table 'table' has no column 'kin': did you mean 'kind'?"),
    (lambda: table_source(FRAME[["size"]], "zz"), "table 'table' has no column 'zz': it has size"),
    (lambda: table_source(FRAME, "kind", features=["sise"]), "table 'table' has no column 'sise': did you mean 'size'?"),
    (lambda: table_source(FRAME, "kind", features=["size", "kind"]), "column 'kind' of table 'table' is a target and cannot be an input"),
    (lambda: table_source(FRAME, "kind", features=["size", "size"]), "column 'size' of table 'table' is there, or asked for, twice"),
    (
        lambda: table_source(pd.concat([FRAME, FRAME["size"]], axis=1), "kind"),
        "column 'size' of table 'table' is there, or asked for, twice",
    ),
    (lambda: table_source(FRAME[:0], "kind"), "table 'table' has no rows: give at least one"),
    (lambda: table_source(FRAME[["kind"]], "kind"), "table 'table' has no inputs: name at least one column"),
    (lambda: table_source(FRAME, []), "table 'table' has no target: name at least one column"),
    (lambda: table_source(FRAME.assign(kind="a"), "kind"), "target 'kind' of table 'table' holds one class only, a: give rows of at least"),
    (
        lambda: table_source(FRAME.assign(size=[1.0, None, 2.0, 3.0]), "kind"),
        "row 1 of column 'size' of table 'table' holds no value: fill it in, or drop such rows",
    ),
    (lambda: table_source(FRAME.assign(colour=["r", "b", None, "r"]), "kind"), "row 2 of column 'colour' of table 'table' holds no value"),
    (lambda: table_source(FRAME.assign(kind=["r", None, "b", "r"]), "kind"), "row 1 of column 'kind' of table 'table' holds no value"),
    (lambda: table_source(FRAME.assign(size=[1, 2, 3, float("inf")]), "kind"), "row 3 of column 'size' of table 'table' holds infinity"),
    (lambda: table_source(FRAME.assign(size=1 + 2j), "kind"), "column 'size' of table 'table' holds complex numbers"),
    (
        lambda: table_source(FRAME.assign(size=[[1]] * 4), "kind"),
        "row 0 of column 'size' of table 'table' holds a list: give numbers, truth",
    ),
    (
        lambda: table_source(FRAME.assign(day=pd.to_datetime(["2020-01-01"] * 4)), "kind"),
        "column 'day' of table 'table' holds dates: turn them into numbers, such as the hour or days since the first, or leave the column",
    ),
    (lambda: table_source(FRAME.assign(day=["2020-01-01 10:00"] * 4), "kind"), "column 'day' of table 'table' holds dates"),
    (lambda: table_source(FRAME.assign(day=datetime.date(2020, 1, 1)), "kind"), "column 'day' of table 'table' holds dates"),
    (
        lambda: table_source(pd.DataFrame({"id": [f"n{i}" for i in range(1001)], "y": [0, 1, *[0] * 999]}), "y"),
        "column 'id' of table 'table' has 1001 different texts, too many for one-hot columns (at most 1000): leave it out",
    ),
    (
        lambda: table_source(FRAME, "price", task="classification"),
        "target 'price' of table 'table' holds fractions, which number no classes",
    ),
    (
        lambda: table_source(FRAME, "kind", task="regression"),
        "target 'kind' of table 'table' holds text: values of a regression are numbers",
    ),
    (lambda: table_source({"a": [1]}, "a"), "a dict is no table: give a pandas DataFrame"),
    (
        lambda: table_source(FRAME.assign(colour="pink"), "kind", like=table_source(FRAME, "kind")),
        "row 0 of column 'colour' of table 'table' holds 'pink', which no training row holds: drop such rows, or train on some",
    ),
    (
        lambda: table_source(FRAME.assign(kind=["a", "d", "b", "a"]), "kind", like=table_source(FRAME, "kind")),
        "target 'kind' of table 'table' holds the class 'd' in row 1, which no training row has: drop such rows, or train on some",
    ),
    (
        lambda: table_source(FRAME.assign(size=["s", "m", "l", "l"]), "kind", like=table_source(FRAME, "kind")),
        "column 'size' of table 'table' holds text where training rows hold numbers: repair the file",
    ),
    (
        lambda: table_source(FRAME.assign(price=["s", "m", "l", "l"]), "price", like=table_source(FRAME, "price")),
        "target 'price' of table 'table' holds text where training rows hold numbers: repair the file",
    ),
    (
        lambda: table_source(FRAME.drop(columns="size"), "kind", like=table_source(FRAME, "kind")),
        "table 'table' has no column 'size'",
    ),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_what_cannot_be_encoded_is_refused_with_a_reason(make: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_options_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="standardize is 'yes': give true, false, or 'inputs'"):
        table_source(FRAME, "kind", standardize="yes")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="task is 'ranking': give 'classification' or 'regression'"):
        table_source(FRAME, "kind", task="ranking")  # type: ignore[arg-type]


def test_without_pandas_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'streamlearn[tables]'")):
        table_source(FRAME, "kind")


# ---------------------------------------------------------------------- files


def test_a_file_names_a_stream_that_can_be_rebuilt_and_trained(tmp_path: Path) -> None:
    rows = pd.DataFrame({"a": np.arange(40) % 7, "b": list("xyzz") * 10, "class": ["u", "v"] * 20})
    rows.to_csv(tmp_path / "toy.csv", index=False)
    rows[:10].to_csv(tmp_path / "held.csv.gz", index=False)
    stream = class_incremental(f"csv:path={tmp_path}/toy.csv,target=class,test={tmp_path}/held.csv.gz,features=['b']".replace("'", '"'), 2)
    assert (stream.input_shape, stream.tasks[0].name, stream.tasks[0].classes) == ((3,), "toy", ("u", "v"))
    assert stream.evaluation(0).data.source.name == "toy/test"  # type: ignore[union-attr]
    assert [len(stream.evaluation(i).data) for i in range(2)] == [5, 5]
    assert rebuild(json.loads(json.dumps(stream.description))).hash == stream.hash
    Engine(models.mlp(stream, (4,)), lambda p: SGD(p, lr=0.01), evaluate="never").run(stream)


def test_regression_files_stream_in_their_order(tmp_path: Path) -> None:
    pd.DataFrame({"t": range(30), "y": np.arange(30) + 0.5}).to_csv(tmp_path / "line.csv", index=False)
    stream = data_incremental(f"csv:path={tmp_path / 'line.csv'},target=y,standardize=false", 3, shuffle=False)
    seen = torch.cat([e.data["train"].batch(torch.arange(len(e.data["train"]))).x for e in stream]).flatten()
    assert torch.equal(seen, seen.sort().values)
    assert stream.tasks[0].kind == "regression"
    first = stream[0].data["train"].batch(torch.arange(3))
    assert torch.equal(first.targets["line"], first.x + 0.5)


def test_files_are_found_below_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "train.csv").write_text("a,y\n1,0\n2,1\n")
    monkeypatch.setenv("STREAMLEARN_DATA", str(tmp_path))
    assert csv_file("deep/train.csv", "y")[0].name == "deep"
    assert csv_file("deep/train.csv", "y", name="own")[0].name == "own"
    with pytest.raises(DataError, match=re.escape("source 'csv' needs the file deep/none.csv, and there is no ")) as caught:
        find_path("deep/none.csv", "csv")
    assert f" nor {tmp_path}/deep/none.csv: check path" in str(caught.value)


FILES = [
    (b"", "toy.csv is empty: give a file with a line of column names and rows"),
    (b"a,y\n", "table 'toy' has no rows: give at least one"),
    (
        b"a,y\n1,0\n2,1,7\n",
        "toy.csv cannot be read as a table (Error tokenizing data. C error: Expected 2 fields in line 3, saw 3): each row",
    ),
    (b"a,y\n1,0,5\n2,1,7\n", "toy.csv cannot be read as a table (Length of header or names does not match length of data"),
    (b"a,y\n1,0\n2\n", "row 1 of column 'y' of table 'toy' holds no value: fill it in, or drop such rows"),
    (b"a,y\n\xff\xfe,0\n2,1\n", "toy.csv cannot be read as a table ('utf-8' codec can't decode byte 0xff"),
    (b"a,z\n1,0\n2,1\n", "table 'toy' has no column 'y'"),
]


@pytest.mark.parametrize(("content", "message"), FILES)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "toy.csv").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        csv_file(str(tmp_path / "toy.csv"), "y")
    assert "\n" not in str(caught.value)


def test_damaged_archives_and_one_file_for_both_are_refused(tmp_path: Path) -> None:
    content = b"a,y\n" + b"".join(b"%d,%d\n" % (i * 7919 % 1009, i % 2) for i in range(500))
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(content)[:-300])
    with pytest.raises(DataError, match=r"cut\.csv\.gz cannot be read as a table"):
        csv_file(str(tmp_path / "cut.csv.gz"), "y")
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"source 'csv' is given .*a\.csv for training and for testing: give another file"):
        csv_file(str(tmp_path / "a.csv"), "y", test=str(tmp_path / ".." / tmp_path.name / "a.csv"))


@pytest.mark.data
@real_data
@pytest.mark.parametrize(
    ("file", "target", "rows", "width"), [("elec", "class", 45312, 6), ("weather", "target", 18159, 8), ("sea_stream", "class", 40000, 3)]
)
def test_recorded_streams_keep_their_order(file: str, target: str, rows: int, width: int) -> None:
    text = f"csv:path=streams/{file}.csv,target={target},standardize=false"
    frame = pd.read_csv(Path(os.environ["STREAMLEARN_DATA"]).expanduser() / "streams" / f"{file}.csv")
    source, _ = named_source(text)
    x, targets = source.take(torch.arange(rows))
    assert (len(source), source.input_shape) == (rows, (width,))
    assert np.array_equal(x.numpy(), frame.drop(columns=target).to_numpy(np.float32))
    assert targets["y"].tolist() == frame[target].tolist()
    stream = data_incremental(text, 10, shuffle=False)
    indices = torch.cat([experience.data["train"].indices for experience in stream])  # type: ignore[union-attr]
    assert torch.equal(indices, indices.sort().values)


def test_whole_numbers_that_are_values_make_a_regression() -> None:
    import pandas

    from streamlearn.streams import data_incremental, table_source

    frame = pandas.DataFrame({"x": [0.1, 0.2, 0.3, 0.4, 0.5], "grams": [42.0, 40.0, 57.0, 60.0, 71.0]})
    source = table_source(frame, "grams", standardize="inputs", task="regression")
    stream = data_incremental(source, 2, shuffle=False)
    assert stream.tasks[0].kind == "regression"
    assert stream[0].data["train"].batch(torch.tensor([0])).targets["table"].shape == (1, 1)


@pytest.mark.parametrize("header", ["size,size,kind", "kind,size,kind", '"size",size,kind'])
def test_a_name_that_two_columns_of_a_file_have_is_refused(tmp_path: Path, header: str) -> None:
    for name in ("rows.csv", "rows.csv.gz"):
        path = tmp_path / name
        content = f"{header}\n1,2,a\n3,4,b\n".encode()
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        twice = "kind" if header.startswith("kind") else "size"
        with pytest.raises(DataError, match=re.escape(f"{path} has two columns called {twice!r}: give every column a name of its own")):
            csv_file(str(path), "kind")


def test_names_like_those_that_pandas_makes_up_are_no_duplicates(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("\ufeffsize,size.1,kind\n1,2,a\n3,5,b\n")
    assert [feature.name for feature in csv_file(str(path), "kind")[0].features] == ["size", "size.1"]
