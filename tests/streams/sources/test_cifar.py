from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamlearn.errors import ConfigurationError, DataError
from streamlearn.streams.sources import named, named_source
from streamlearn.streams.sources.cifar import cifar_10, cifar_100, read_pickle

real_data = pytest.mark.skipif("STREAMLEARN_DATA" not in os.environ, reason="STREAMLEARN_DATA is not set: it names the folder of real data")


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "_LOADED", {})


def pixels(rows: int) -> np.ndarray:
    return (np.arange(rows * 3072) % 251).astype(np.uint8).reshape(rows, 3072)


def dump(path: Path, content: Any, protocol: int = 2) -> None:
    path.write_bytes(pickle.dumps(content, protocol))


def write_ten(root: Path, **changes: Any) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    dump(folder / "batches.meta", {"label_names": [f"kind {i}" for i in range(10)]})
    for number, file in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        dump(folder / file, {"data": pixels(10) + np.uint8(number), "labels": list(range(10)), "filenames": ["a"] * 10, **changes})
    return folder


def write_hundred(root: Path, protocol: int = 2) -> Path:
    folder = root / "cifar-100-python"
    folder.mkdir()
    names = {"fine_label_names": [f"f{i}" for i in range(100)], "coarse_label_names": [f"c{i}" for i in range(20)]}
    dump(folder / "meta", names, protocol)
    for file in ("train", "test"):
        labels = {"fine_labels": list(range(100)), "coarse_labels": [i // 5 for i in range(100)]}
        dump(folder / file, {"data": pixels(100), **labels}, protocol)
    return folder


def test_ten_is_five_batches_in_order(tmp_path: Path) -> None:
    write_ten(tmp_path)
    train, test = named_source(f"cifar-10:root={tmp_path}")
    assert test is not None
    assert (train.name, test.name, len(train), len(test), train.input_shape) == ("cifar-10", "cifar-10/test", 50, 10, (3, 32, 32))
    x, targets = train.take(torch.tensor([0, 13, 49]))
    assert targets["y"].tolist() == [0, 3, 9]
    for row, (batch, place) in enumerate([(0, 0), (1, 3), (4, 9)]):
        assert torch.equal(x[row].flatten(), torch.from_numpy(pixels(10)[place] + np.uint8(batch)).float() / 255)
    assert train.class_names[3] == "kind 3"  # type: ignore[attr-defined]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_hundred_has_fine_and_coarse_labels(tmp_path: Path, protocol: int) -> None:
    write_hundred(tmp_path, protocol)
    fine, fine_test = cifar_100(root=str(tmp_path))
    coarse, coarse_test = cifar_100("coarse", str(tmp_path))
    assert [source.name for source in (fine, fine_test, coarse, coarse_test)] == [
        "cifar-100",
        "cifar-100/test",
        "cifar-100/coarse",
        "cifar-100/coarse/test",
    ]
    assert fine.targets["y"].tolist() == list(range(100))
    assert coarse.targets["y"].tolist() == [i // 5 for i in range(100)]
    assert (fine.class_names[99], coarse.class_names[19], len(coarse.class_names)) == ("f99", "c19", 20)
    assert torch.equal(fine.take(torch.tensor([7])).x.flatten(), torch.from_numpy(pixels(100)[7]).float() / 255)


def test_a_word_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="source 'cifar-100' has labels='medium': give fine \\(100 classes\\) or coarse"):
        cifar_100("medium")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (write_ten(tmp_path) / "data_batch_4").unlink()
    root = tmp_path.resolve()
    message = (
        f"source 'cifar-10' needs the file cifar-10-batches-py/data_batch_4, which is not in {root}: put it there, e.g. by "
        f"torchvision.datasets.CIFAR10({str(root)!r}, download=True)"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        cifar_10(str(tmp_path))
    with pytest.raises(DataError, match=r"needs the file cifar-100-python/meta, .*CIFAR100\("):
        cifar_100(root=str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": pixels(9)}, "'labels' is 10 values, where a whole number for each of 9 rows belongs"),
        ({"data": pixels(10)[:, :3000]}, r"'data' is uint8 of shape \(10, 3000\), where uint8 of shape \(rows, 3072\) belongs"),
        ({"data": pixels(10).astype(np.int64)}, r"'data' is int64 of shape \(10, 3072\)"),
        ({"data": pixels(10).astype(np.float32)}, r"an array of type <f4, which holds no whole numbers"),
        ({"data": np.asfortranarray(pixels(10))}, "an array stored column by column"),
        ({"data": pixels(10).tolist()}, "'data' is a list"),
        ({"labels": list(range(9))}, "'labels' is 9 values, where a whole number for each of 10 rows"),
        ({"labels": [0.5] * 10}, "'labels' is 10 values, where a whole number"),
        ({"labels": [2**70] * 10}, "'labels' is 10 values, where a whole number"),
        ({"labels": "cats"}, "'labels' is a str"),
        ({"labels": [*range(9), 10]}, "label 10 in row 9 is not one of 0 to 9"),
        ({"labels": [*range(9), -1]}, "label -1 in row 9 is not one of 0 to 9"),
    ],
)
def test_wrong_contents_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    write_ten(tmp_path, **changes)
    with pytest.raises(DataError, match=rf"data_batch_1 is damaged.*{said}.*fetch it again"):
        cifar_10(str(tmp_path))


def test_missing_keys_are_named(tmp_path: Path) -> None:
    folder = write_ten(tmp_path)
    for file, content, said in (
        ("data_batch_2", {"data": pixels(10)}, "data_batch_2 is damaged: it holds no 'labels' (it has data); fetch it again"),
        ("data_batch_1", [1, 2], "data_batch_1 is damaged: it holds no 'data' (it is a list); fetch it again"),
        ("batches.meta", {}, "batches.meta is damaged: it holds no 'label_names' (it has nothing); fetch it again"),
        ("batches.meta", {"label_names": ["a"]}, "batches.meta is damaged: 'label_names' is 1 entries, where the names of 10 classes"),
        ("batches.meta", {"label_names": [1] * 10}, "'label_names' is 10 entries, where the names of 10 classes belong"),
    ):
        dump(folder / file, content)
        with pytest.raises(DataError, match=re.escape(said)):
            cifar_10(str(tmp_path))


class Wicked:
    """Runs a command when a trusting reader unpickles it."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        function, *arguments = self.call
        return function, tuple(arguments)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    path, sign = tmp_path / "data_batch_1", tmp_path / "it was run"
    dump(path, {"data": Wicked(os.system, f"touch '{sign}'")}, protocol)
    with pytest.raises(DataError) as caught:
        read_pickle(path)
    assert str(caught.value) == (
        f"{path} is refused: it asks to run {os.system.__module__}.system, which plain data never does; do not trust it, fetch it again"
    )
    assert not sign.exists()
    pickle.loads(path.read_bytes())
    assert sign.exists(), "a trusting reader does run it, so this test can fail"


@pytest.mark.parametrize(
    "call", [(eval, "1"), (getattr, dict, "get"), (exec, ""), (np.load, "a"), (np.array, [1]), (open, "a"), (bytearray, 9)]
)
def test_no_other_function_is_called(tmp_path: Path, call: tuple[Any, ...]) -> None:
    dump(tmp_path / "a", {"data": Wicked(*call)})
    with pytest.raises(DataError, match=rf"a is refused: it asks to run [\w.]*{call[0].__name__}, which"):
        read_pickle(tmp_path / "a")


@pytest.mark.parametrize(
    "program",
    [
        b"cnumpy\nndarray\n}S'__setstate__'\nNsb.",  # changes a stand-in for all readers after this one
        b"cnumpy.core.numeric\n_frombuffer\nN}S'__doc__'\nNs\x86b.",
        b"c_codecs\nencode\n}S'a'\nNsb.",
        b"\x82\x01.",  # from the registry of extensions
        b"Pabc\n.",  # a persistent reference
        b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01(K\x05\x85NNNtb.",
    ],
)
def test_tricks_with_the_stand_ins_are_refused(tmp_path: Path, program: bytes) -> None:
    (tmp_path / "a").write_bytes(program)
    with pytest.raises(DataError, match=r"a is (damaged|refused)"):
        read_pickle(tmp_path / "a")
    dump(tmp_path / "b", {"data": pixels(2)})
    assert np.array_equal(read_pickle(tmp_path / "b")["data"], pixels(2))


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    path = write_hundred(tmp_path) / "train"
    whole = path.read_bytes()
    for stop in (0, 1, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:stop])
        with pytest.raises(DataError, match=rf"{re.escape(str(path))} is damaged \(.*\): fetch it again"):
            cifar_100(root=str(tmp_path))
    with pytest.raises(DataError, match="none cannot be read: "):
        read_pickle(tmp_path / "none")


@given(st.binary(max_size=40))
def test_rubbish_never_gets_through_as_a_bare_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("rubbish") / "a"
    path.write_bytes(content)
    try:
        found = read_pickle(path)
    except DataError:
        return  # what a user is told; any other error fails the test
    assert not callable(found)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.sampled_from(["u1", "<i8", ">i4", "<i2"]), st.integers(2, 5))
def test_arrays_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, shape: list[int], kind: str, protocol: int) -> None:
    path = tmp_path_factory.mktemp("arrays") / "a"
    array = np.arange(int(np.prod(shape))).astype(kind).reshape(shape)
    dump(path, {"a": array, "b": ["x", 1]}, protocol)
    found = read_pickle(path)
    assert np.array_equal(found["a"], array)
    assert (found["a"].shape, found["b"]) == (tuple(shape), ["x", 1])


@pytest.mark.data
@real_data
def test_real_hundred_equals_a_plain_reading() -> None:
    train, test = named_source("cifar-100")
    coarse, _ = named_source("cifar-100:labels=coarse")
    for source, file in ((train, "train"), (test, "test")):
        with (Path(os.environ["STREAMLEARN_DATA"]) / "cifar-100-python" / file).open("rb") as stream:
            plain = pickle.load(stream, encoding="latin1")
        assert source is not None
        assert len(source) == len(plain["fine_labels"])
        assert torch.equal(source._x, torch.from_numpy(plain["data"]).view(-1, 3, 32, 32))  # type: ignore[attr-defined]
        assert source.targets["y"].tolist() == plain["fine_labels"]  # type: ignore[attr-defined]
        if file == "train":
            assert coarse.targets["y"].tolist() == plain["coarse_labels"]  # type: ignore[attr-defined]
    assert (len(train.class_names), train.class_names[0], coarse.class_names[0]) == (100, "apple", "aquatic_mammals")  # type: ignore[attr-defined]
    assert set(train.targets["y"].tolist()) == set(range(100))  # type: ignore[attr-defined]
