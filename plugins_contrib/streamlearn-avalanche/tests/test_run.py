"""Runs: random streams apart, evaluations pure, one run after another, resumes refused."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from avalanche.training import plugins as av

from streamlearn import Plugin, PluginInfo
from streamlearn.core.plugin import hookimpl
from streamlearn.errors import CheckpointError, ConfigurationError
from streamlearn_avalanche import AvalanchePlugin
from streamlearn_avalanche.data import batch_of
from streamlearn_avalanche.effects import changes, changes_predictions

from .support import CLASSES, SEED, assert_identical, engine, network, stream, tensors, weights


class Stop(Exception):  # noqa: N818 - it ends a run on purpose
    """Raised to stop a run."""


def replay(**options: Any) -> AvalanchePlugin:
    return AvalanchePlugin([av.ReplayPlugin(mem_size=12)], **options)


def test_evaluations_move_nothing() -> None:
    often = engine([replay()], evaluate_every=2).run(stream())
    assert_identical(weights(often), weights(engine([replay()], evaluate="never").run(stream())))


def test_global_random_streams_and_filters_are_left_alone() -> None:
    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(), list(warnings.filters)  # noqa: NPY002

    before = states()
    engine([AvalanchePlugin([av.ReplayPlugin(12), av.AGEMPlugin(6, 8)])]).run(stream())
    assert states() == before


def test_the_seed_decides() -> None:
    first, second = (weights(engine([replay()], seed=seed).run(stream())) for seed in (1, 2))
    assert not torch.equal(first["classifier.weight"], second["classifier.weight"])
    for seed in (1, 2):  # but one that is given holds whatever that of the run is
        assert_identical(weights(engine([replay(seed=SEED)], seed=seed).run(stream())), weights(engine([replay(seed=SEED)]).run(stream())))


@pytest.mark.parametrize("plugins", [[av.ReplayPlugin(12), av.EWCPlugin(1.0), av.AGEMPlugin(6, 8)], [av.GDumbPlugin(12)]])
def test_an_engine_runs_again_to_the_same_weights(plugins: Any) -> None:
    made = engine([AvalanchePlugin(plugins)])
    first = weights(made.run(stream()))
    assert_identical(weights(made.run(stream())), first)


def test_a_plugin_that_holds_the_model() -> None:
    model = network()
    made = engine([AvalanchePlugin([av.CWRStarPlugin(model)])], model)
    first = weights(made.run(stream()))
    with pytest.raises(ConfigurationError, match=r"CWRStarPlugin holds a model that is not the one being trained.*give a function"):
        made.run(stream())
    anew = engine([AvalanchePlugin(lambda network, optimizer: [av.CWRStarPlugin(network)])])
    assert_identical(weights(anew.run(stream())), first)
    assert_identical(weights(anew.run(stream())), first)


def test_the_users_module_is_trained_in_place_even_by_gdumb() -> None:
    model = network()
    result = engine([AvalanchePlugin([av.GDumbPlugin(12)])], model).run(stream())
    assert_identical(dict(model.state_dict()), weights(result))
    assert not torch.equal(model.classifier.weight, network().classifier.weight)


def test_no_gradient_is_left_on_the_model() -> None:
    model = network()
    engine([AvalanchePlugin([av.SynapticIntelligencePlugin(1.0), av.MASPlugin(0.01)])], model).run(stream())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_predictions_of_cope_are_its_nearest_prototypes() -> None:
    cope = av.CoPEPlugin(mem_size=12, n_classes=CLASSES, p_size=CLASSES, max_it_cnt=2)
    plugin = AvalanchePlugin([cope])
    result = engine([plugin]).run(stream())
    x, y = tensors()
    with torch.no_grad():
        nearest = cope._get_nearest_neigbor_distr(result.model(x)).argmax(1)
    wanted = [float((nearest[part] == y[part]).double().mean()) for part in torch.arange(len(y)).split(20)]
    assert result.accuracy_matrix[-1].tolist() == pytest.approx(wanted)
    assert "provide_predictions" in engine([AvalanchePlugin([av.CoPEPlugin()])]).explain()
    assert "provide_predictions" not in engine([replay()]).explain()


# ---------------------------------------------------------------------- resuming


def stopping(update: int, event: str) -> Any:
    def progress(happened: str, run: Any) -> None:
        if (happened, run.clock.update) == (event, update):
            raise Stop

    return progress


@pytest.mark.parametrize(("update", "event"), [(6, "experience"), (8, "step")])
def test_a_run_that_has_trained_cannot_be_resumed(tmp_path: Path, update: int, event: str) -> None:
    with pytest.raises(Stop):
        engine([replay()], checkpoint_every=1, progress=stopping(update, event)).run(stream(), tmp_path)
    with pytest.raises(CheckpointError, match="plugin avalanche cannot be resumed after it has trained, because Avalanche's plugins keep"):
        engine([replay()], checkpoint_every=1).resume(tmp_path, stream())


def test_a_run_that_has_not_trained_yet_can(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        engine([replay()], progress=stopping(0, "start")).run(stream(), tmp_path)
    resumed = engine([replay()]).resume(tmp_path, stream())
    assert_identical(weights(resumed), weights(engine([replay()]).run(stream())))


# ---------------------------------------------------------------------- what plugins change, and where rows come from


def test_what_plugins_change_is_read_from_their_source() -> None:
    from avalanche.training.plugins import bic, generative_replay

    assert changes(av.EWCPlugin(1.0)) == {"loss"}
    assert changes(av.ReplayPlugin(12)) == {"dataloader"}
    assert changes(av.AGEMPlugin(6, 8)) == {"gradients"}
    assert changes(av.GDumbPlugin(12)) == {"model", "adapted_dataset"}
    assert changes(av.MIRPlugin(4)) == {"loss", "_criterion"}
    assert changes(av.CoPEPlugin()) == {"_criterion", "dataloader", "mb_output"}
    assert {"loss", "dataloader", "mb_output"} <= changes(bic.BiCPlugin(mem_size=12))
    assert "mbatch" in changes(object.__new__(generative_replay.GenerativeReplayPlugin))
    assert [changes_predictions(plugin) for plugin in (av.CoPEPlugin(), av.EWCPlugin(1.0), bic.BiCPlugin(mem_size=12))] == [
        True,
        False,
        True,
    ]


class Looks(Plugin):
    """Keeps the batches of a run."""

    info = PluginInfo("looks", "test", "Looks.", "none 2020")
    batches: ClassVar[list[Any]] = []

    @hookimpl
    def before_step(self, step: Any) -> None:
        self.batches.append(step.batch)


@pytest.mark.parametrize(("plugins", "roles"), [([], {("train",)}), ([av.ReplayPlugin(12)], {("train",), ("train", "memory")})])
def test_rows_keep_their_identity(plugins: Any, roles: Any) -> None:
    Looks.batches.clear()
    engine([AvalanchePlugin(plugins), Looks()]).run(stream())
    x, y = tensors()
    assert len(Looks.batches) == 24
    for number, batch in enumerate(Looks.batches):
        assert torch.equal(batch.x, x[batch.index])
        assert torch.equal(batch.targets["blobs"], y[batch.index])
        assert set(batch.index[batch.rows("train")].div(20, rounding_mode="floor").tolist()) == {number // 6}
        assert not set(batch.index[batch.rows("memory")].div(20, rounding_mode="floor").tolist()) & {number // 6}
    assert {batch.roles for batch in Looks.batches} == roles


def test_rows_that_the_loader_does_not_account_for_have_no_identity() -> None:
    x, y = tensors()
    batch = batch_of(x[:3], y[:3], "blobs", None, [], "train")
    assert batch.index.tolist() == [-1, -1, -1]
    assert batch.is_uniform
