from __future__ import annotations

import json

import pytest
import sklearn.datasets
import torch
from torch.optim import SGD

from streamlearn import Engine, models
from streamlearn.errors import DataError
from streamlearn.streams import Stream, class_incremental, data_incremental, rebuild
from streamlearn.streams.sources import named_source

CLASSES = [("iris", 3), ("wine", 3), ("breast-cancer", 2)]


def trained(stream: Stream) -> int:
    engine = Engine(models.mlp(stream, (8,)), lambda p: SGD(p, lr=0.01), batch_size=64, evaluate="never")
    engine.run(stream)
    return len(stream)


@pytest.mark.parametrize(("name", "classes"), CLASSES)
def test_classification_sets_are_standardised_and_named(name: str, classes: int) -> None:
    bunch = getattr(sklearn.datasets, f"load_{name.replace('-', '_')}")()
    source, test = named_source(name)
    x, targets = source.take(torch.arange(len(source)))
    assert test is None
    assert targets["y"].tolist() == bunch.target.tolist()
    expected = sklearn.preprocessing.StandardScaler().fit_transform(bunch.data)
    torch.testing.assert_close(x, torch.from_numpy(expected).float(), atol=1e-5, rtol=0)
    stream = class_incremental(name, classes)
    assert stream.tasks[0].classes == tuple(bunch.target_names)
    assert trained(stream) == classes


def test_diabetes_is_a_regression_of_one_value() -> None:
    stream = data_incremental("diabetes", 3)
    assert (stream.tasks[0].kind, stream.tasks[0].size, stream.input_shape) == ("regression", 1, (10,))
    y = named_source("diabetes")[0].targets["y"]  # type: ignore[attr-defined]
    raw = torch.from_numpy(sklearn.datasets.load_diabetes().target)
    torch.testing.assert_close(y, ((raw - raw.mean()) / raw.std(correction=0)).float())
    assert trained(stream) == 3
    assert rebuild(json.loads(json.dumps(stream.description))).hash == stream.hash


def test_linnerud_has_three_targets() -> None:
    source, test = named_source("linnerud")
    x, targets = source.take(torch.arange(20))
    raw = torch.from_numpy(sklearn.datasets.load_linnerud().target)
    assert (x.shape, list(targets), test) == ((20, 3), ["weight", "waist", "pulse"], None)
    for number, column in enumerate(targets.values()):
        assert (column.shape, column.dtype) == ((20,), torch.float32)
        assert torch.corrcoef(torch.stack([column.double(), raw[:, number]]))[0, 1] > 1 - 1e-6
    with pytest.raises(DataError, match="source 'linnerud' has the target columns weight, waist, pulse: give a source with exactly one"):
        data_incremental("linnerud")
