"""The prior as a value: what it takes from a run, its file, and whether it fits a model."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from streamlearn import Engine, streams
from streamlearn.core.priors.prior import Prior
from streamlearn.errors import CheckpointError, ConfigurationError, RunFolderError, UnknownNameError
from streamlearn.models import Heads, Model
from streamlearn.plugins import MAML
from streamlearn.plugins.meta.meta_sgd import MetaSGD
from streamlearn.streams import Stream, Task
from tests.core.support import same, sgd

SGD = sgd(lr=0.05, momentum=0.0, weight_decay=0.0)


def sinusoids() -> Stream:
    return streams.episodes("sinusoids", shots=5, queries=4, train_episodes=8, test_episodes=3)


def net(*tasks: Task, norm: bool = True) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(1, 4), *([nn.BatchNorm1d(4)] if norm else []), nn.Tanh()]
        return Model(nn.Sequential(*layers), Heads(4, tasks or (Task("sinusoids", kind="regression"),)))


def values(prior: Prior) -> dict[str, Any]:
    return {
        "parameters": dict(prior.parameters), "buffers": dict(prior.buffers), "rates": prior.rates, "plastic": prior.plastic,
        "steps": prior.steps, "rule": prior.rule, "components": [values(part) for part in prior.components],
    }  # fmt: skip


def rich() -> Prior:
    draw = torch.Generator().manual_seed(1)
    model = net()
    rates = {name: torch.rand(p.shape, generator=draw, dtype=torch.float64) for name, p in model.named_parameters()}
    one = Prior.of(model, rates=rates, plastic=("heads.*", "encoder.0.*"), steps=5, rule="adam")
    return Prior.mixture(one, Prior.of(model.double(), rates=torch.tensor(0.3)), Prior({"w": torch.zeros(0, 2)}, rates=0.1))


# ------------------------------------------------------------------------------------------------ making one


def test_it_is_what_a_run_has_learnt() -> None:
    stream, plugin = sinusoids(), MAML(steps=2, rate=0.02, rule="momentum", plastic=("heads.*",))
    model = Engine(net(), SGD, [plugin], batch_size=2).run(stream).model
    assert isinstance(model, Model)
    prior = Prior.of(model, plugin)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    assert same({**prior.parameters, **prior.buffers}, kept)
    assert prior.buffers.keys() == {"encoder.1.running_mean", "encoder.1.running_var", "encoder.1.num_batches_tracked"}
    assert (prior.rates, prior.plastic, prior.steps, prior.rule, prior.components) == (0.02, ("heads.*",), 2, "momentum", ())
    with torch.no_grad():
        for value in model.state_dict().values():
            value.fill_(7)
    assert same({**prior.parameters, **prior.buffers}, kept), "it is a copy"
    assert Prior.of(model, plugin, steps=9, rates=None).steps == 9
    assert Prior.of(model, plugin, rates=None).rates is None
    assert set(Prior.of(nn.Linear(1, 1)).parameters) == {"encoder.weight", "encoder.bias"}, "named as in a run"


def test_rates_that_are_learnt_come_from_the_run() -> None:
    found: list[Prior] = []
    plugin = MetaSGD(steps=1, rate=0.02)

    def watch(event: str, run: Any) -> None:
        if event == "step":
            found.append(Prior.of(run, plugin))

    engine = Engine(net(norm=False), SGD, [plugin], batch_size=2, evaluate="never", progress=watch)
    model = engine.run(sinusoids()).model
    assert isinstance(model, Model)
    assert isinstance(found[-1].rates, dict)
    assert found[-1].rates.keys() == dict(model.named_parameters()).keys()
    assert all(float((rate - 0.02).abs().max()) > 0 and not rate.requires_grad for rate in found[-1].rates.values())
    assert isinstance(found[0].rates, dict)
    assert not same(found[0].rates, found[-1].rates), "copies, not the rates as they go on"
    with pytest.raises(ConfigurationError, match=r"meta_sgd keeps modules of its own in the run.*give the run"):
        Prior.of(model, plugin)
    assert Prior.of(model, plugin, rates=0.5).rates == 0.5


def test_what_makes_no_prior() -> None:
    with pytest.raises(ConfigurationError, match="steps is -1"):
        Prior({}, steps=-1)
    with pytest.raises(UnknownNameError, match="did you mean 'adam'"):
        Prior({}, rule="adan")
    with pytest.raises(ConfigurationError, match="at least one"):
        Prior.mixture()


# ------------------------------------------------------------------------------------------------ files


def test_a_file_brings_it_back_bit_for_bit(tmp_path: Path) -> None:
    prior, path = rich(), tmp_path / "new folder" / "my.prior"
    prior.save(path)
    back = Prior.load(str(path))
    assert same(values(back), values(prior))
    assert back.fingerprint() == prior.fingerprint() != prior.components[0].fingerprint()
    assert repr(back) == repr(prior)
    assert len(load_file(path)) > 10, "an ordinary safetensors file"
    assert [p.name for p in path.parent.iterdir()] == ["my.prior"], "nothing is left beside it"


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "my.prior"
    Prior({"w": torch.ones(2)}).save(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunFolderError, match="the disk is full"):
        Prior({"w": torch.zeros(2)}).save(path)
    assert Prior.load(path).parameters["w"].tolist() == [1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["my.prior"]


def test_what_is_no_prior_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "my.prior"
    with pytest.raises(CheckpointError, match=r"my\.prior is no file"):
        Prior.load(path)
    rich().save(path)
    whole = path.read_bytes()
    for damaged in (whole[:-3], whole[:20], b"", b"no tensors at all"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="no whole safetensors file"):
            Prior.load(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="SHA-256"):
        Prior.load(path)
    path.write_bytes(whole.replace(rb"\"steps\": 5", rb"\"steps\": 6", 1))
    with pytest.raises(CheckpointError, match="SHA-256"):
        Prior.load(path)
    for metadata in (None, {"streamlearn": json.dumps({"kind": "else"})}, {"streamlearn": "[]"}):
        save_file({"w": torch.ones(1)}, path, metadata)
        with pytest.raises(CheckpointError, match="holds no prior"):
            Prior.load(path)
    save_file({"w": torch.ones(1)}, path, {"streamlearn": json.dumps({"kind": "streamlearn prior", "format": 99})})
    with pytest.raises(CheckpointError, match="format 99, this streamlearn reads up to 1"):
        Prior.load(path)


# ------------------------------------------------------------------------------------------------ whether it fits


def test_heads_may_be_there_on_one_side_alone() -> None:
    a, b, c = Task("a", size=2), Task("b", size=3), Task("c", size=4)
    found = Prior.of(net(a, b)).start_of(net(b, c).double())
    assert {name for name in found if name.startswith("heads.")} == {"heads.by_task.b.weight", "heads.by_task.b.bias"}
    assert len(found) == 2 + 4 + 3
    assert found["encoder.0.weight"].dtype is torch.float64
    assert found["encoder.1.num_batches_tracked"].dtype is torch.int64


def test_other_shapes_are_named() -> None:
    prior = Prior.of(net(Task("a", size=2)))
    model = net(Task("a", size=5))
    with pytest.raises(ConfigurationError, match=r"'heads.by_task.a.weight' has shape \(5, 4\) in the model and \(2, 4\) in the prior"):
        prior.start_of(model)
    assert all(name.startswith("encoder.") for name in prior.start_of(model, "skip"))
    model.encoder[0] = nn.Linear(2, 4)
    with pytest.raises(ConfigurationError, match=r"'encoder.0.weight' has shape \(4, 2\) in the model and \(4, 1\) in the prior"):
        prior.start_of(model, "skip")
    with pytest.raises(ConfigurationError, match=r"the prior has 'encoder.1.weight' of shape \(4,\), which the model lacks"):
        prior.start_of(net(Task("a", size=2), norm=False))
    with pytest.raises(ConfigurationError, match=r"the model has 'encoder.1.weight' of shape \(4,\), which the prior lacks"):
        Prior.of(net(Task("a", size=2), norm=False)).start_of(net(Task("a", size=2)))


# ------------------------------------------------------------------------------------------------ inner steps


def loss(fast: Any, rest: Any) -> Tensor:
    both = {**fast, **rest}
    return (both["a"] ** 2 * both["b"]).sum() + both["b"].exp()


def test_inner_steps_by_hand() -> None:
    a, b = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    rates = {"a": torch.tensor([0.1, 0.3], dtype=torch.float64), "b": torch.tensor(0.2, dtype=torch.float64)}
    found = Prior({"a": a, "b": b}, rates=rates, steps=3).adapted(loss)
    x, y = a, b
    for _ in range(3):
        x, y = x - rates["a"] * 2 * x * y, y - rates["b"] * (x.square().sum() + y.exp())
    torch.testing.assert_close(found, {"a": x, "b": y}, rtol=1e-12, atol=0)

    rested = Prior({"a": a, "b": b}, rates=0.1, plastic=("a",), steps=1).adapted(loss, {"a": a + 1, "b": b})
    torch.testing.assert_close(rested["a"], (a + 1) * (1 - 0.2 * 0.5))
    assert torch.equal(rested["b"], b)
    assert a.tolist() == [1, -2]
    with pytest.raises(ConfigurationError, match="no rates"):
        Prior({"a": a}).adapted(loss)


def test_more_steps_than_it_was_trained_for_warn_once() -> None:
    prior = Prior({"a": torch.ones(1), "b": torch.ones(())}, rates=0.01, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prior.adapted(loss)
        prior.adapted(loss, steps=0)
    with pytest.warns(UserWarning, match="5 inner steps are asked of a prior that was trained for 1"):
        prior.adapted(loss, steps=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prior.adapted(loss, steps=5)
