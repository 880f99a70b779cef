from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from PIL import Image
from torch.optim import SGD

from streamlearn import Engine, models
from streamlearn.errors import DataError, MissingExtraError
from streamlearn.streams import Stream, class_incremental, data_incremental, rebuild
from streamlearn.streams.sources import DatasetSource, TensorSource
from streamlearn.streams.sources.hub import huggingface_source, saved_dataset
from streamlearn.streams.sources.sparse import SparseSource
from streamlearn.streams.sources.tables import TableSource


def made(inputs: str | list[str] = "x", target: str = "y", /, **columns: Any) -> Any:
    return huggingface_source(Dataset.from_dict(columns), x=inputs, y=target, name="toy")


def trained(stream: Stream) -> Stream:
    Engine(models.mlp(stream, (4,)), lambda p: SGD(p, lr=0.01), evaluate="never").run(stream)
    return stream


def picture(level: int, mode: str = "RGB", size: tuple[int, int] = (4, 3)) -> Image.Image:
    return Image.new(mode, size, (level, 0, 255) if mode == "RGB" else level)


def test_sequences_become_tensors() -> None:
    source = made(x=[[0.0, 1.0], [2.0, 3.5]], y=["b", "a"])
    assert isinstance(source, TensorSource)
    assert source.take(torch.tensor([1, 0])).x.tolist() == [[2.0, 3.5], [0.0, 1.0]]
    assert (source.targets["y"].tolist(), source.class_names) == ([1, 0], ("a", "b"))
    assert made(x=[[[0.0], [1.0]]] * 2, y=[0, 1]).input_shape == (2, 1)


def test_integers_stay_tokens_unless_they_are_scaled() -> None:
    tokens = Dataset.from_dict({"x": [[5, 6], [7, 8]], "y": [0, 1]})
    assert huggingface_source(tokens, x="x", y="y", name="toy").take(torch.tensor([0])).x.dtype == torch.int64
    scaled = huggingface_source(tokens, x="x", y="y", name="toy", divide_by=2)
    assert scaled.take(torch.tensor([1])).x.tolist() == [[3.5, 4.0]]
    types = {"uint8": 51, "int8": 3}
    for dtype, value in types.items():
        features = Features({"x": List(Value(dtype)), "y": Value("int64")})
        source = huggingface_source(Dataset.from_dict({"x": [[value], [0]], "y": [0, 1]}, features=features), x="x", y="y", name="toy")
        assert source.take(torch.tensor([0])).x.item() == pytest.approx({"uint8": 0.2, "int8": 3.0}[dtype])


def test_columns_of_numbers_and_texts_become_a_table() -> None:
    source = made(["a", "c"], a=[1.0, 3.0], c=["u", "v"], y=[True, False])
    assert isinstance(source, TableSource)
    assert source.take(torch.arange(2)).x.tolist() == [[-1, 1, 0], [1, 0, 1]]
    assert source.class_names == ("False", "True")
    single = made(x=[4, 8], y=[0.5, 1.25])
    assert (single.input_shape, single.targets["y"].tolist()) == ((1,), [0.5, 1.25])


def test_class_labels_keep_their_numbers_and_names() -> None:
    features = Features({"x": List(Value("float32")), "y": ClassLabel(names=["zebra", "ant"])})
    dataset = Dataset.from_dict({"x": [[0.0]] * 4, "y": [0, 1, 1, 0]}, features=features)
    source: Any = huggingface_source(dataset, x="x", y="y", name="toy")
    assert (source.targets["y"].tolist(), source.class_names) == ([0, 1, 1, 0], ("zebra", "ant"))
    assert class_incremental(source, 2, test_fraction=0.5).tasks[0].classes == ("zebra", "ant")


def test_texts_are_hashed() -> None:
    dataset = Dataset.from_dict({"x": ["good day", "bad day"], "y": [7, 3]})
    source = huggingface_source(dataset, x="x", y="y", name="toy", features=32, hashing="characters")
    assert isinstance(source, SparseSource)
    assert (source.input_shape, source.targets["y"].tolist(), source.class_names) == ((32,), [1, 0], ("3", "7"))


def test_images_are_decoded_when_they_are_asked_for() -> None:
    source = made(x=[picture(51), picture(102), picture(0, "L")], y=[0, 1, 0])
    assert isinstance(source, DatasetSource)
    x, targets = source.take(torch.tensor([1, 2]))
    assert x.shape == (2, 3, 3, 4)
    assert x[0, :, 0, 0].tolist() == pytest.approx([0.4, 0.0, 1.0])
    assert x[1].max() == 0
    assert targets["y"].tolist() == [1, 0]
    grey = made(x=[picture(255, "L"), picture(0)], y=[0, 1])
    assert grey.input_shape == (1, 3, 4)
    assert grey.take(torch.tensor([0])).x.unique().tolist() == [1.0]


def test_images_of_any_size_are_resized() -> None:
    dataset = Dataset.from_dict({"x": [picture(10, size=(5, 9)), picture(20, size=(8, 8))], "y": [0, 1]})
    for size, shape in ((4, (3, 4, 4)), ([2, 6], (3, 2, 6))):
        assert huggingface_source(dataset, x="x", y="y", name="toy", size=size).input_shape == shape
    with pytest.raises(DataError, match="row 1 of source 'toy' has shape"):
        huggingface_source(dataset, x="x", y="y", name="toy").take(torch.arange(2))


def test_a_set_format_makes_no_difference() -> None:
    dataset = Dataset.from_dict({"x": [[0.0, 1.0], [2.0, 3.0]], "y": ["b", "a"]})
    plain, formatted = (huggingface_source(d, x="x", y="y", name="toy") for d in (dataset, dataset.with_format("numpy")))
    assert plain.fingerprint() == formatted.fingerprint()


def test_values_make_a_regression() -> None:
    vectors = made(x=[[float(i)] for i in range(12)], y=[[i + 0.5, 0.25] for i in range(12)])
    stream = trained(data_incremental(vectors, 2))
    assert (stream.tasks[0].kind, stream.tasks[0].size) == ("regression", 2)


# ---------------------------------------------------------------------- folders


def rows(count: int) -> dict[str, Any]:
    return {
        "vector": [[float(i), 1.0] for i in range(count)],
        "image": [picture(i) for i in range(count)],
        "text": [f"word {i}" for i in range(count)],
        "number": [float(i) for i in range(count)],
        "label": ["even" if i % 2 == 0 else "odd" for i in range(count)],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hub") / "saved"
    DatasetDict({"train": Dataset.from_dict(rows(12)), "test": Dataset.from_dict(rows(4))}).save_to_disk(str(path))
    Dataset.from_dict(rows(6)).save_to_disk(str(path.parent / "alone"))
    (path.parent / "empty").mkdir()
    return path


@pytest.mark.parametrize(("x", "shape"), [("vector", (2,)), ("image", (3, 3, 4)), ("text", (64,)), ("number", (1,))])
def test_folders_make_streams_that_train(folder: Path, x: str, shape: tuple[int, ...]) -> None:
    stream = trained(class_incremental(f"huggingface:path={folder},x={x},y=label,features=64", 2))
    assert (stream.input_shape, stream.tasks[0].name, stream.tasks[0].classes) == (shape, "saved", ("even", "odd"))
    assert [len(stream.evaluation(i).data) for i in range(2)] == [2, 2]
    assert [len(e.data["train"]) for e in stream] == [6, 6]
    assert rebuild(json.loads(json.dumps(stream.description))).hash == stream.hash


def test_test_rows_take_the_encoding_of_training_rows(folder: Path) -> None:
    train, test = saved_dataset(str(folder), "number", "label")
    assert test is not None
    everything = train.take(torch.arange(12)).x.flatten()
    assert torch.equal(test.take(torch.arange(4)).x.flatten(), everything[:4])
    alone, none = saved_dataset(str(folder.parent / "alone"), "number", "label", name="own")
    assert (alone.name, len(alone), none) == ("own", 6, None)
    swapped, other = saved_dataset(str(folder), "number", "label", split="test", test_split="train")
    assert (len(swapped), len(other or ())) == (4, 12)


FOLDERS: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: saved_dataset(str(f / "none"), "vector", "label"), "source 'huggingface' needs the folder"),
    (lambda f: saved_dataset(str(f.parent / "empty"), "vector", "label"), "empty cannot be read by datasets.load_from_disk (Directory"),
    (lambda f: saved_dataset(str(f), "vector", "label", split="dev"), "saved has no split 'dev': it has train, test"),
    (lambda f: saved_dataset(str(f.parent / "alone"), "vector", "label", test_split="test"), "alone has no split 'test': it has train"),
    (lambda f: saved_dataset(str(f), "vector", "label", test_split="train"), "is given the split 'train' for training and for testing"),
]


@pytest.mark.parametrize(("make", "message"), FOLDERS)
def test_folders_that_cannot_be_read_are_refused(make: Callable[[Path], object], message: str, folder: Path) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        make(folder)


# ---------------------------------------------------------------------- what is refused

LABELLED = Features({"x": List(Value("float32")), "y": ClassLabel(names=["a", "b"])})
WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: made("xx", x=[[0.0]] * 2, y=[0, 1]), "source 'toy' has no column 'xx': did you mean 'x'?"),
    (lambda: made("x", "label", x=[[0.0]] * 2, y=[0, 1]), "source 'toy' has no column 'label': it has x, y"),
    (
        lambda: made("y", "y", x=[[0.0]] * 2, y=[0, 1]),
        "source 'toy' takes inputs and targets from y, y: name at least one column of inputs",
    ),
    (lambda: made([], "y", y=[0, 1]), "source 'toy' takes inputs and targets from y: name at least one column of inputs"),
    (lambda: made(x=[], y=[]), "source 'toy' has no rows: give at least one"),
    (lambda: made(x=[[0.0, 1.0], [1.0]], y=[0, 1]), "row 1 of column 'x' of source 'toy' has shape (1,), but all rows must have one shape"),
    (lambda: made(x=[[0.0, 1.0], None], y=[0, 1]), "row 1 of column 'x' of source 'toy' is missing, but all rows must have one shape"),
    (lambda: made(x=[["a"], ["b"]], y=[0, 1]), "column 'x' of source 'toy' holds sequences of texts or objects: give numbers"),
    (lambda: made(x=[{"a": 1}] * 2, y=[0, 1]), "column 'x' of source 'toy' is of type {'a': Value('int64')}: give numbers, sequences"),
    (lambda: made(x=[[0.0]] * 2, y=[0, None]), "row 1 of target 'y' of source 'toy' has no label: drop such rows"),
    (lambda: made(x=[[0.0]] * 2, y=[0, 0]), "target 'y' of source 'toy' holds one class only, 0"),
    (lambda: made(x=[[0.0]] * 2, y=[[0], [1]]), "target 'y' of source 'toy' holds sequences of whole numbers: give one class, or floats"),
    (lambda: made(x=[[0.0]] * 2, y=[{"a": 1}] * 2), "target 'y' of source 'toy' is of type {'a': Value('int64')}: give classes or floats"),
    (lambda: made(x=["a", "b"], y=[0.5, 1.5]), "target 'y' of source 'toy' holds floats, and texts are sources of classes only"),
    (lambda: made(x=["a", None], y=[0, 1]), "the texts of source 'toy' hold a NoneType in row 1: give a list of texts"),
    (lambda: made(x=[picture(1), None], y=[0, 1]).take(torch.arange(2)), "row 1 of source 'toy' cannot be read: ValueError: there is no"),
    (lambda: made(["a", "b"], a=[1.0, None], b=["u", "v"], y=[0, 1]), "row 1 of column 'a' of table 'toy' holds no value"),
    (
        lambda: huggingface_source(Dataset.from_dict({"x": [[0.0]] * 2, "y": [0, -1]}, features=LABELLED), x="x", y="y", name="toy"),
        "row 1 of target 'y' of source 'toy' has no label: drop such rows",
    ),
    (
        lambda: huggingface_source(DatasetDict({"train": Dataset.from_dict({"x": [1]})}), x="x", y="y", name="toy"),
        "source 'toy' is given all splits (train): give one, such as dataset['train']",
    ),
    (
        lambda: huggingface_source(Dataset.from_dict({"x": [1]}).to_iterable_dataset(), x="x", y="y", name="toy"),
        "a IterableDataset is no data set with random access to rows: give a datasets.Dataset",
    ),
    (
        lambda: huggingface_source(Dataset.from_dict({"x": [picture(1)] * 2, "y": [0, 1]}), x="x", y="y", name="toy", size=[1, 2, 3]),
        "size is [1, 2, 3]: give a height and a width in pixels, or one number for both",
    ),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_what_is_no_source_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        make()


def test_without_the_library_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'streamlearn[huggingface]'")):
        saved_dataset("anywhere", "x", "y")


def test_arrays_of_fixed_shape_are_read() -> None:
    features = Features({"x": datasets.Array2D((2, 3), "float32"), "y": Value("string")})
    values = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    source = huggingface_source(Dataset.from_dict({"x": values, "y": ["a", "b"]}, features=features), x="x", y="y", name="toy")
    assert np.array_equal(source.take(torch.arange(2)).x.numpy(), values)
