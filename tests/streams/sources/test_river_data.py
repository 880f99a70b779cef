from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD

from streamlearn import Engine, models
from streamlearn.errors import ConfigurationError, DataError, MissingExtraError, UnknownNameError
from streamlearn.streams import class_incremental, data_incremental, rebuild
from streamlearn.streams.sources import named_source
from streamlearn.streams.sources.river_data import river_named, river_source

datasets: Any = importlib.import_module("river.datasets")
synth = datasets.synth


def test_rows_keep_their_order_and_features_their_names() -> None:
    source = river_source(datasets.Phishing(), standardize=False)
    pairs = list(datasets.Phishing())
    x, targets = source.take(torch.arange(1250))
    torch.testing.assert_close(x, torch.tensor([[float(value) for value in features.values()] for features, _ in pairs]))
    assert targets["y"].tolist() == [int(y) for _, y in pairs]
    assert source.class_names == ("False", "True")
    assert [feature.name for feature in source.features] == list(pairs[0][0])
    first = river_source(datasets.Phishing(), rows=100, standardize=False, name="first")
    assert torch.equal(first.take(torch.arange(100)).x, x[:100])


def test_what_the_data_set_says_decides_between_classes_and_values() -> None:
    weights = river_source(datasets.ChickWeights(), standardize="inputs")
    assert weights.targets["y"].dtype == torch.float32, "whole numbers, but of a regression"
    assert weights.targets["y"][:3].tolist() == [y for _, y in list(datasets.ChickWeights())[:3]]
    flares = river_source(datasets.SolarFlare(), standardize=False)
    assert list(flares.targets) == ["c-class-flares", "m-class-flares", "x-class-flares"]
    one = river_source(datasets.SolarFlare(), target="m-class-flares", standardize=False)
    assert torch.equal(one.targets["y"], flares.targets["m-class-flares"])
    assert "zurich-class" in {feature.name for feature in flares.features if feature.categories}
    yeast = river_source(datasets.Yeast(), rows=200, target=["Class1", "Class2"])
    assert {key: column.dtype for key, column in yeast.targets.items()} == {"Class1": torch.int64, "Class2": torch.int64}


@pytest.mark.parametrize("name", ["Bananas", "TrumpApproval", "ChickWeights,rows=100", "SP500Stocks", "synth.SEA,rows=300,seed=1"])
def test_named_data_sets_make_streams_that_train(name: str) -> None:
    stream = data_incremental(f"river:name={name}", 3, shuffle=False)
    Engine(models.mlp(stream, (4,)), lambda p: SGD(p, lr=0.01), batch_size=64, evaluate="never").run(stream)
    assert rebuild(json.loads(json.dumps(stream.description))).hash == stream.hash
    indices = torch.cat([experience.data["train"].indices for experience in stream])  # type: ignore[union-attr]
    assert torch.equal(indices, indices.sort().values)


def test_classes_come_one_after_another() -> None:
    stream = class_incremental("river:name=imagesegments", 7, shuffle=False)
    assert [experience.classes["imagesegments"] for experience in stream] == [(k,) for k in range(7)]
    assert stream.tasks[0].classes[0] == "brickface"


def test_generators_are_seeded() -> None:
    def fingerprint(**options: Any) -> str:
        return river_named("synth.RandomRBF", rows=20, **options)[0].fingerprint()

    assert fingerprint() == fingerprint() == fingerprint(seed=0)
    assert fingerprint(seed=1) != fingerprint()
    assert fingerprint(options={"seed_model": 3}) != fingerprint()
    text = 'river:name=synth.SEA,rows=200,seed=5,options={"variant":2}'
    source, test = named_source(text)
    rows = list(synth.SEA(variant=2, seed=5).take(200))
    assert source.take(torch.arange(200)).targets["y"].tolist() == [int(y) for _, y in rows]
    assert test is None


class Downloadable:
    """Like a data set of river that has not been downloaded."""

    is_downloaded = False

    def download(self) -> None:
        pytest.fail("nothing is downloaded unasked")

    def __iter__(self) -> Iterator[Any]:
        return iter([])


class Sparse(Downloadable):
    sparse = True


WRONG: list[tuple[Callable[[], object], str]] = [
    (
        lambda: river_named("Elec2"),
        "data set 'elec2' of river is not on this machine: download it with river.datasets.Elec2().download()",
    ),
    (lambda: river_source(Downloadable()), "data set 'downloadable' of river is not on this machine"),
    (lambda: river_source(Sparse()), "data set 'sparse' of river is sparse, with features that come and go"),
    (lambda: river_source(synth.SEA()), "data set 'sea' of river has no end: say how many rows to take, for example rows=10000"),
    (
        lambda: river_source(datasets.Phishing(), rows=1251),
        "data set 'phishing' of river has 1250 rows, fewer than rows=1251: ask for at most 1250",
    ),
    (lambda: river_source(datasets.Phishing(), rows=0), "rows is 0: give a whole number of at least 1, or leave it out"),
    (
        lambda: river_source(datasets.Phishing(), target="is_phishing"),
        "data set 'phishing' of river has a single output, which has no name",
    ),
    (lambda: river_source(datasets.AirlinePassengers()), "column 'month' of table 'airlinepassengers' holds dates"),
    (lambda: river_source([]), "data set 'list' of river has no rows: give at least one"),
    (lambda: river_source([({"a": 1}, 0), 5], name="own"), "row 1 of data set 'own' is a int: it must be a pair of a dictionary and a"),  # type: ignore[list-item]
    (lambda: river_source([({"a": 1.0}, 0), ({"b": 1.0}, 1)], name="own"), "row 1 of column 'a' of table 'own' holds no value"),
    (lambda: river_source(3), "a int is no data set of river: give an object of river.datasets, such as Phishing()"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_what_cannot_be_read_is_refused(make: Callable[[], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIVER_DATA", str(tmp_path / "none"))
    with pytest.raises(DataError, match=re.escape(message)):
        make()
    assert not (tmp_path / "none").exists(), "asking leaves no folder behind"


def test_names_and_arguments_are_checked() -> None:
    with pytest.raises(UnknownNameError, match="unknown data set of river 'Phising': did you mean 'Phishing'"):
        river_named("Phising")
    with pytest.raises(UnknownNameError, match="unknown output of yeast 'Class0': did you mean 'Class"):
        river_source(datasets.Yeast(), rows=10, target="Class0")
    with pytest.raises(ConfigurationError, match="seed is 1, but Phishing of river draws nothing: leave it out"):
        river_named("Phishing", seed=1)
    with pytest.raises(
        ConfigurationError, match=re.escape("synth.SEA of river cannot be made of {'variant': 9, 'seed': 0}: Unknown variant")
    ):
        river_named("synth.sea", rows=5, options={"variant": 9})


def test_without_river_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "river", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'streamlearn[river]'")):
        river_named("Phishing")
