"""SARCOS and School, from small files in their layout, and the real ones where they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat

from streamlearn import Engine, models
from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams import build, multitask, rebuild
from streamlearn.streams.sources.matlab import sarcos, school
from streamlearn.streams.sources.named import canonical_name, named_source, parts_of
from tests.core.support import sgd

real_data = pytest.mark.skipif("STREAMLEARN_DATA" not in os.environ, reason="STREAMLEARN_DATA is not set: it names the folder of real data")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    (tmp_path / "sarcos").mkdir()
    for name, rows in (("sarcos_inv", 50), ("sarcos_inv_test", 20)):
        savemat(tmp_path / f"sarcos/{name}.mat", {name: draw.normal(3, 5, (rows, 28))})
    (tmp_path / "school").mkdir()
    sizes = [6 + number % 5 for number in range(139)]
    cells: dict[str, Any] = {key: np.empty((1, 139), dtype=object) for key in ("X", "Y")}
    for number, size in enumerate(sizes):
        cells["X"][0, number] = np.concatenate([draw.normal(number, 1, (size, 27)), np.ones((size, 1))], 1)
        cells["Y"][0, number] = draw.integers(1, 70, (size, 1)).astype(np.uint8)
    savemat(tmp_path / "school/school.mat", cells)
    return tmp_path


@pytest.mark.parametrize("scale", ["deviation", "quantile", "none"])
def test_torques_in_every_unit(root: Path, scale: str) -> None:
    train, test = sarcos(scale, root=str(root))
    assert test is not None
    assert (len(train), len(test), train.input_shape, train.name, test.name) == (50, 20, (21,), "sarcos", "sarcos/test")
    raw = {name: loadmat(root / f"sarcos/{name}.mat")[name] for name in ("sarcos_inv", "sarcos_inv_test")}
    mean, deviation = raw["sarcos_inv"].mean(0), raw["sarcos_inv"].std(0)
    for source, rows in ((train, raw["sarcos_inv"]), (test, raw["sarcos_inv_test"])):
        x, targets = source.take(torch.arange(len(source)))
        np.testing.assert_allclose(x, (rows - mean)[:, :21] / deviation[:21], rtol=1e-4, atol=1e-5)
        for i in range(7):
            own, known = rows[:, 21 + i], raw["sarcos_inv"][:, 21 + i]
            expected = {"deviation": (own - known.mean()) / known.std(), "quantile": own / np.quantile(known, 0.9), "none": own}[scale]
            np.testing.assert_allclose(targets[f"torque{i + 1}"], expected, rtol=1e-4, atol=1e-5)


def test_the_published_split_as_a_stream(root: Path) -> None:
    text = f'sarcos:root="{root}"'
    stream = build("multitask", source=text, experiences=2)
    assert [task.name for task in stream.tasks] == [f"torque{i}" for i in range(1, 8)]
    assert [len(experience.data["train"]) for experience in stream] == [25, 25]
    assert len(stream.evaluation(0).data) == 20
    alone = multitask(f'sarcos:part=test,root="{root}"', test_fraction=0.25)
    assert (len(alone[0].data["train"]), len(alone.evaluation(0).data), alone.name) == (15, 5, "sarcos/test-part/multitask")


def test_without_the_training_file_the_way_out_is_told(root: Path) -> None:
    (root / "sarcos/sarcos_inv.mat").unlink()
    with pytest.raises(DataError, match=r"needs the file .*sarcos_inv.mat.* or ask for the rows of the test file alone: sarcos:part=test"):
        sarcos(root=str(root))
    assert len(sarcos(part="test", root=str(root))[0]) == 20


def test_a_school_is_a_task(root: Path) -> None:
    text = f'school:root="{root}"'
    stream = multitask(text, 3, test_fraction=0.25)
    assert (stream.name, len(stream.tasks), stream.tasks[4].name) == ("school/multitask", 139, "school 5")
    assert rebuild(stream.description).hash == stream.hash
    assert stream.description["source"] == canonical_name(text)
    raw = loadmat(root / "school/school.mat")
    every = np.concatenate([cell.astype(np.float64) for cell in raw["Y"][0]])
    met: dict[str, list[float]] = {task.name: [] for task in stream.tasks}
    pieces = [part for e in stream for part in e.data["train"].parts()] + list(stream.evaluation(0).data.parts())
    for part in pieces:
        batch = part.batch(torch.arange(len(part)))
        assert len(batch.tasks) == 1, "each row is asked on the task of its own school alone"
        met[batch.tasks[0]] += batch.targets[batch.tasks[0]].flatten().tolist()
    for number, cell in enumerate(raw["Y"][0]):
        expected = (cell.astype(np.float64) - every.mean()) / every.std()
        np.testing.assert_allclose(sorted(met[f"school {number + 1}"]), sorted(expected.flatten()), rtol=1e-4, atol=1e-5)


def test_all_pupils_as_one_source_or_one_school_alone(root: Path) -> None:
    whole, own = school(root=str(root))[0], school(7, str(root))[0]
    raw = loadmat(root / "school/school.mat")["X"][0]
    before = sum(len(cell) for cell in raw[:6])
    rows = torch.arange(before, before + len(raw[6]))
    assert (len(own), own.name) == (len(raw[6]), "school 7")
    assert torch.equal(whole.take(rows).x, own.take(torch.arange(len(own))).x)
    assert torch.equal(whole.targets["y"][rows], own.targets["y"])
    assert not own.take(torch.arange(3)).x[:, 27].any(), "the input that is always 1 has no deviation"
    assert float(whole.targets["y"].square().mean()) == pytest.approx(1, abs=1e-5)
    assert parts_of("iris") == ()


def test_what_cannot_be_is_refused(root: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'quantile'"):
        sarcos("quantiles", root=str(root))
    with pytest.raises(UnknownNameError, match="part of source sarcos"):
        sarcos(part="both", root=str(root))
    with pytest.raises(DataError, match="there are 139 schools, and none is number 140: give 1 to 139"):
        school(140, str(root))
    with pytest.raises(DataError, match="number of source 'school' is 0"):
        school(0, str(root))
    (root / "sarcos/sarcos_inv.mat").write_bytes(b"rubbish" * 40)
    with pytest.raises(DataError, match="cannot be read as a file of MATLAB"):
        sarcos(root=str(root))
    savemat(root / "sarcos/sarcos_inv.mat", {"sarcos_inv": np.zeros((3, 27))})
    with pytest.raises(DataError, match=r"has shape \(3, 27\) and not 28 columns"):
        sarcos(root=str(root))
    savemat(root / "sarcos/sarcos_inv.mat", {"other": np.zeros((3, 28))})
    with pytest.raises(DataError, match="holds no variable 'sarcos_inv'"):
        sarcos(root=str(root))
    savemat(root / "school/school.mat", {"X": np.zeros((2, 2)), "Y": np.zeros((2, 2))})
    with pytest.raises(DataError, match="does not hold X and Y of 139 schools"):
        school(root=str(root))


@real_data
def test_the_real_schools() -> None:
    stream = multitask("school", test_fraction=0.25)
    sizes = [len(named_source(name)[0]) for name in parts_of("school")]
    assert (len(stream.tasks), min(sizes), max(sizes), sum(sizes)) == (139, 22, 251, 15362)
    rows = stream.evaluation(0).data
    truth = torch.cat([part.batch(torch.arange(len(part))).targets[part.tasks[0].name] for part in rows.parts()])
    assert float(truth.square().mean()) == pytest.approx(1, abs=0.1), "about what always predicting the mean has"


@real_data
def test_the_real_torques() -> None:
    stream = multitask("sarcos:part=test")
    engine = Engine(models.mlp(stream, (32,)), sgd(), batch_size=32)
    last = [event for event in engine.run(stream).events if event["event"] == "evaluation"][-7:]
    assert all(event["value"] < 0.7 for event in last), "always predicting the mean has an error of 1"
