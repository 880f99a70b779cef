from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import HashingVectorizer
from torch.optim import Adam

from streamlearn import Engine, models
from streamlearn.errors import ConfigurationError, DataError, UnknownNameError
from streamlearn.streams import Source, class_incremental, data_incremental, rebuild
from streamlearn.streams.hiding import hide_rows, without_targets
from streamlearn.streams.sources import TensorSource, named_source
from streamlearn.streams.sources.sparse import SparseSource
from streamlearn.streams.sources.text import clinc150, clinc150_domains, text_file, text_source

real_data = pytest.mark.skipif("STREAMLEARN_DATA" not in os.environ, reason="STREAMLEARN_DATA is not set: it names the folder of real data")

TEXTS = ["Where is my card?", "card card lost", "transfer money now", "", "money transfer"]
LABELS = ["card", "card", "money", "card", "money"]


def source(**options: object) -> SparseSource:
    made = text_source(TEXTS, LABELS, name="toy", **{"features": 64, **options})  # type: ignore[arg-type]
    assert isinstance(made, SparseSource)
    return made


@pytest.mark.parametrize(("hashing", "n_grams"), [("words", ("word", (1, 2))), ("characters", ("char_wb", (2, 4)))])
def test_rows_are_hashed_n_grams(hashing: str, n_grams: tuple[str, tuple[int, int]]) -> None:
    made = source(hashing=hashing)
    expected = HashingVectorizer(n_features=64, analyzer=n_grams[0], ngram_range=n_grams[1]).transform(TEXTS).toarray()
    x, targets = made.take(torch.arange(5))
    assert x.dtype == torch.float32
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-6)
    torch.testing.assert_close(x.norm(dim=1), torch.tensor([1.0, 1, 1, 0, 1]))
    assert (targets["y"].tolist(), made.class_names) == ([0, 0, 1, 0, 1], ("card", "money"))


@given(st.lists(st.integers(0, 4), max_size=8))
@settings(max_examples=20, deadline=None)
def test_any_rows_in_any_order(index: list[int]) -> None:
    made = source()
    every = made.take(torch.arange(5))
    x, targets = made.take(torch.tensor(index, dtype=torch.int64))
    assert torch.equal(x, every.x[index])
    assert torch.equal(targets["y"], every.targets["y"][index])
    assert isinstance(made, Source)
    assert made.row_bytes == 256


def test_sources_stay_sparse() -> None:
    wide = source(features=2**30)
    assert wide.input_shape == (2**30,)
    assert wide._rows.data.nbytes < 1000


def test_targets_can_be_hidden_and_shared_rows_stay() -> None:
    made = source()
    bare = without_targets(made)
    assert bare is without_targets(made)
    assert dict(bare.take(torch.tensor([1])).targets) == {}
    shown = hide_rows(made, made.targets, torch.tensor([2]))
    assert shown.take(torch.arange(5)).targets["y"].tolist() == [0, 0, 1, 0, 0]
    assert torch.equal(shown.take(torch.arange(5)).x, made.take(torch.arange(5)).x)
    assert shown.name == "toy"


def test_fingerprints_tell_content_apart() -> None:
    same, relabelled = source(), text_source(TEXTS, LABELS[::-1], name="toy", features=64)
    other = text_source([*TEXTS[:4], "money moves"], LABELS, name="toy", features=64)
    assert same.fingerprint() == source().fingerprint()
    assert len({made.fingerprint() for made in (same, relabelled, other, source(features=65), source(hashing="characters"))}) == 5


def test_embeddings_take_the_place_of_texts() -> None:
    vectors = np.arange(10.0).reshape(5, 2)
    made = text_source(None, LABELS, name="toy", embeddings=vectors)
    assert isinstance(made, TensorSource)
    assert made.take(torch.tensor([4])).x.tolist() == [[8.0, 9.0]]
    assert made.class_names == ("card", "money")
    assert text_source(TEXTS, [2, 10, 2, 2, 10], name="toy").class_names == ("2", "10")  # type: ignore[attr-defined]


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: text_source(TEXTS[:2], LABELS, name="toy"), "source 'toy' has 2 texts but 5 labels: give one label for each text"),
    (lambda: text_source(["a", 3], [0, 1], name="toy"), "the texts of source 'toy' hold a int in row 1: give a list of texts"),  # type: ignore[list-item]
    (lambda: text_source("ab", [0, 1], name="toy"), "the texts of source 'toy' hold a str in place of a list: give a list of texts"),
    (lambda: text_source(None, [0, 1], name="toy"), "source 'toy' has neither texts nor embeddings: give one of them"),
    (
        lambda: text_source(["a", "b"], ["x", None], name="toy"),
        "the label in row 1 of source 'toy' is missing: give texts or whole numbers",
    ),
    (lambda: text_source(["a", "b"], [0.5, 1], name="toy"), "the label in row 0 of source 'toy' is 0.5: give texts or whole numbers"),
    (lambda: text_source(["a", "b"], ["x", "x"], name="toy"), "the label column of source 'toy' holds one class only, x: give rows"),
    (
        lambda: text_source(["a", "b"], ["x", "z"], name="toy", classes=["x", "y"]),
        "holds the class 'z' in row 1, which no training row has",
    ),
    (lambda: text_source(["a", "b"], [0, 1], name="toy", embeddings=np.zeros((2, 2, 2))), "have inputs of shape (2, 2): give one vector"),
    (lambda: text_source(["a", "b"], [0, 1], name="toy", embeddings=np.zeros((3, 2))), "source 'toy' has 3 rows of x but 2 of 'y'"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_what_is_no_text_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        make()


def test_options_are_checked() -> None:
    with pytest.raises(UnknownNameError, match="unknown hashing 'word': did you mean 'words'"):
        source(hashing="word")
    with pytest.raises(ConfigurationError, match="features is 0: give a whole number from 1"):
        source(features=0)
    with pytest.raises(DataError, match=re.escape("source 's' has 1 rows of x but 2 of 'y'")):
        SparseSource(source()._rows[:1], {"y": torch.arange(2)}, "s")
    with pytest.raises(DataError, match="source 's' has no rows"):
        SparseSource(source()._rows[:0], {"y": torch.arange(0)}, "s")


# ---------------------------------------------------------------------- files


def test_a_file_names_a_stream_that_learns(tmp_path: Path) -> None:
    lines = [f'"{word}, number {i}",{word}' for i in range(10) for word in ("hello", "goodbye", "null")]
    (tmp_path / "train.csv").write_text("\ufefftext,category\r\n" + "\r\n".join(lines) + "\r\n\r\n", encoding="utf-8")
    (tmp_path / "test.csv").write_text("category,text\nnull,a null\nhello,hello!\ngoodbye,goodbye\n")
    text = f"text:path={tmp_path}/train.csv,test={tmp_path}/test.csv,features=128"
    stream = class_incremental(text, 3, shuffle=False)
    assert stream.tasks[0].classes == ("goodbye", "hello", "null")
    assert [len(e.data["train"]) for e in stream] == [10, 10, 10]
    assert [len(stream.evaluation(i).data) for i in range(3)] == [1, 1, 1]
    assert rebuild(json.loads(json.dumps(stream.description))).hash == stream.hash
    mixed = data_incremental(text, 2)
    result = Engine(models.mlp(mixed, (16,)), lambda p: Adam(p, lr=0.03), epochs=8, evaluate="end").run(mixed)
    assert float(result.metrics["average_accuracy"]) == 1.0


FILES = [
    ("", "has no column 'text': it has none"),
    ("texts,category\na,b\n", "has no column 'text': did you mean 'texts'?"),
    ("text,category\n", "has no rows: give a line of column names and at least one row"),
    ("text,category\na,b\nc,d,e\n", "line 3 of"),
    ("text,category\na\n", "has 1 fields, not 2: quote texts with commas"),
    ('text,category\n"a,b\n', "cannot be read as a table of texts (unexpected end of data): give a CSV file in UTF-8"),
    ("text,category\na,b\nc,\n", "the label in row 1 of source 'toy' is missing: give texts or whole numbers"),
]


@pytest.mark.parametrize(("content", "message"), FILES)
def test_damaged_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "toy.csv").write_text(content)
    with pytest.raises(DataError, match=re.escape(message)):
        text_file(str(tmp_path / "toy.csv"))


def test_bytes_that_are_no_text_and_one_file_for_both_are_refused(tmp_path: Path) -> None:
    (tmp_path / "toy.csv").write_bytes(b"text,category\n\xff,b\n")
    with pytest.raises(DataError, match="cannot be read as a table of texts"):
        text_file(str(tmp_path / "toy.csv"))
    (tmp_path / "a.csv").write_text("text,category\na,b\nc,d\n")
    with pytest.raises(DataError, match=r"source 'text' is given .*a\.csv for training and for testing"):
        text_file(str(tmp_path / "a.csv"), test=str(tmp_path / "a.csv"))
    (tmp_path / "b.csv").write_text("text,category\na,e\n")
    with pytest.raises(DataError, match="holds the class 'e' in row 0, which no training row has"):
        text_file(str(tmp_path / "a.csv"), test=str(tmp_path / "b.csv"))


# ---------------------------------------------------------------------- requests of 150 intents


@pytest.fixture
def small_clinc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "clinc150"
    folder.mkdir()
    rows = [["pay it", "pay"], ["say hello", "hello"], ["freeze it", "freeze"]]
    content = {"train": rows, "val": [], "test": rows[::-1], "oos_train": [["what", "oos"]], "oos_test": [["who", "oos"], ["why", "oos"]]}
    (folder / "data_full.json").write_text(json.dumps(content))
    (folder / "domains.json").write_text(json.dumps({"banking": ["pay", "freeze"], "talk": ["hello"]}))
    monkeypatch.setenv("STREAMLEARN_DATA", str(tmp_path))
    return folder


def test_intents_are_numbered_domain_by_domain(small_clinc: Path) -> None:
    train, test = clinc150(features=32)
    assert train.targets["y"].tolist() == [0, 2, 1]  # type: ignore[attr-defined]
    assert test.targets["y"].tolist() == [1, 2, 0]  # type: ignore[attr-defined]
    assert train.class_names == ("pay", "freeze", "hello")  # type: ignore[attr-defined]
    assert clinc150_domains() == [[0, 1], [2]]
    train, test = clinc150(out_of_scope=True)
    assert test.targets["y"].tolist() == [1, 2, 0, 3, 3]  # type: ignore[attr-defined]
    assert train.class_names[-1] == "oos"  # type: ignore[attr-defined]


def test_missing_and_damaged_files_are_explained(small_clinc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small_clinc / "data_full.json").write_text("{")
    with pytest.raises(DataError, match=r"data_full\.json is damaged"):
        clinc150()
    (small_clinc / "data_full.json").write_text('{"train": [["a"]]}')
    with pytest.raises(DataError, match="holds no pairs of text and intent under 'train': fetch it again"):
        clinc150()
    (small_clinc / "domains.json").write_text("[]")
    with pytest.raises(DataError, match="holds a list in place of an object"):
        clinc150_domains()
    (small_clinc / "domains.json").unlink()
    with pytest.raises(DataError, match=r"source 'clinc150' needs the file .*domains\.json, which is not there: set STREAMLEARN_DATA"):
        clinc150()
    monkeypatch.delenv("STREAMLEARN_DATA")
    with pytest.raises(DataError, match=r"needs the file clinc150/domains\.json below the folder STREAMLEARN_DATA, which is not set"):
        clinc150_domains()


@pytest.mark.data
@real_data
def test_real_requests_have_the_published_sizes() -> None:
    train, test = named_source("clinc150")
    assert test is not None
    assert (len(train), len(test)) == (15_000, 4_500)
    groups = clinc150_domains()
    assert sorted(number for group in groups for number in group) == list(range(150))
    stream = class_incremental("clinc150", classes=groups)
    assert [len(e.data["train"]) for e in stream] == [1500] * 10
    assert [len(stream.evaluation(i).data) for i in range(10)] == [450] * 10
    by_number = class_incremental("clinc150", 10, shuffle=False)
    assert [e.classes for e in by_number] == [e.classes for e in stream]
    whole, whole_test = named_source("clinc150:out_of_scope=true")
    assert (len(whole), len(whole_test or ())) == (15_100, 5_500)


@pytest.mark.data
@real_data
def test_real_questions_can_be_learnt() -> None:
    stream = data_incremental("text:path=banking77/train.csv,test=banking77/test.csv,features=2048", 1)
    assert (len(stream[0].data["train"]), len(stream.evaluation(0).data), stream.tasks[0].size) == (10_003, 3_080, 77)
    result = Engine(models.mlp(stream, (64,)), lambda p: Adam(p, lr=0.005), epochs=4, batch_size=64, evaluate="end").run(stream)
    assert float(result.metrics["average_accuracy"]) > 0.7


def test_a_name_that_two_columns_have_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mail.csv"
    path.write_text("text,category,text\nbuy now,spam,a\nhow are you,ham,b\n")
    with pytest.raises(DataError, match=re.escape(f"{path} has two columns called 'text': give every column a name of its own")):
        text_file(str(path))


def test_rows_without_features_are_refused() -> None:
    with pytest.raises(DataError, match="an input of source 's' has no features: give at least one"):
        SparseSource(csr_array((3, 0), dtype=np.float32), {"y": torch.arange(3)}, "s")
