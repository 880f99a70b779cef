"""The adapter against Avalanche's own strategy: the same plugins, the same rows, the same weights bit for bit."""

from __future__ import annotations

import pytest
import torch
from avalanche.models import IncrementalClassifier
from avalanche.training import plugins as av
from torch import nn

from streamlearn.models import Heads, Model
from streamlearn.streams import Task
from streamlearn_avalanche import AvalanchePlugin

from .support import CLASSES, FEATURES, SEED, assert_identical, engine, network, stream, trained_by_avalanche, weights

CASES = {
    "nothing": lambda network, optimizer: [],
    "EWC": lambda network, optimizer: [av.EWCPlugin(5.0)],
    "EWC online": lambda network, optimizer: [av.EWCPlugin(5.0, mode="online", decay_factor=0.5)],
    "SI": lambda network, optimizer: [av.SynapticIntelligencePlugin(1000.0)],
    "LwF": lambda network, optimizer: [av.LwFPlugin(alpha=1.0, temperature=2.0)],
    "MAS": lambda network, optimizer: [av.MASPlugin(lambda_reg=0.01)],
    "RWalk": lambda network, optimizer: [av.RWalkPlugin(ewc_lambda=0.1, delta_t=2)],
    "LFL": lambda network, optimizer: [av.LFLPlugin(lambda_e=0.5)],
    "Replay": lambda network, optimizer: [av.ReplayPlugin(mem_size=12)],
    "A-GEM": lambda network, optimizer: [av.AGEMPlugin(patterns_per_experience=6, sample_size=8)],
    "GDumb": lambda network, optimizer: [av.GDumbPlugin(mem_size=12)],
    "GSS": lambda network, optimizer: [av.GSS_greedyPlugin(mem_size=48, mem_strength=2, input_size=[FEATURES])],
    "MIR": lambda network, optimizer: [av.MIRPlugin(batch_size_mem=4, mem_size=12, subsample=8)],
    "CWR*": lambda network, optimizer: [av.CWRStarPlugin(network)],
    "FeatureDistillation": lambda network, optimizer: [av.FeatureDistillationPlugin(alpha=0.5)],
    "CoPE": lambda network, optimizer: [av.CoPEPlugin(mem_size=12, n_classes=CLASSES, p_size=CLASSES, max_it_cnt=2)],
    "FromScratch": lambda network, optimizer: [av.FromScratchTrainingPlugin()],
    "EWC + Replay + A-GEM": lambda network, optimizer: [av.EWCPlugin(5.0), av.ReplayPlugin(mem_size=12), av.AGEMPlugin(6, 8)],
    "Replay + LwF + RWalk": lambda network, optimizer: [av.ReplayPlugin(12), av.LwFPlugin(), av.RWalkPlugin(0.1, delta_t=3)],
    "SI + MIR": lambda network, optimizer: [av.SynapticIntelligencePlugin(1000.0), av.MIRPlugin(4, 12, 8)],
    "StepLR": lambda network, optimizer: [av.LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5))],
}
WITHOUT_TASK_LABELS = ("nothing", "EWC", "Replay", "GSS", "MIR")


@pytest.mark.parametrize("name", CASES)
def test_weights_equal_those_of_naive(name: str) -> None:
    model, other = (network(keeps_features=name == "FeatureDistillation") for _ in range(2))
    found = engine([AvalanchePlugin(CASES[name], seed=SEED)], model).run(stream())
    assert_identical(weights(found), trained_by_avalanche(CASES[name], model=other))


@pytest.mark.parametrize("name", WITHOUT_TASK_LABELS)
def test_weights_equal_those_of_naive_without_task_labels(name: str) -> None:
    plugin = AvalanchePlugin(CASES[name], seed=SEED, task_labels=False)
    assert_identical(weights(engine([plugin]).run(stream())), trained_by_avalanche(CASES[name], task_labels=False))


@pytest.mark.parametrize("name", ["EWC", "RWalk", "LFL", "A-GEM", "GDumb", "MIR"])
def test_batch_normalisation_sees_the_same_modes(name: str) -> None:
    found = engine([AvalanchePlugin(CASES[name], seed=SEED)], network(norm=True)).run(stream())
    assert_identical(weights(found), trained_by_avalanche(CASES[name], model=network(norm=True)))


SILENT = ("nothing", "SI")


def test_avalanches_si_does_nothing_on_a_cpu() -> None:
    # what it takes for copies of weights are views of them there, so that old and new never differ: not the adapter's doing
    assert_identical(trained_by_avalanche(CASES["SI"]), trained_by_avalanche(CASES["nothing"]))


@pytest.mark.parametrize("name", [name for name in CASES if name not in SILENT])
def test_every_other_plugin_acts(name: str) -> None:
    plain = trained_by_avalanche(CASES["nothing"])
    found = trained_by_avalanche(CASES[name], model=network(keeps_features=name == "FeatureDistillation"))
    assert found.keys() != plain.keys() or any(not torch.equal(tensor, plain[key]) for key, tensor in found.items())


def test_a_short_last_batch_is_left_out_in_both() -> None:
    found = engine([AvalanchePlugin(CASES["Replay"], seed=SEED)], drop_last=True).run(stream())
    wanted = trained_by_avalanche(CASES["Replay"], drop_last=True)
    assert_identical(weights(found), wanted)
    assert any(not torch.equal(tensor, wanted[name]) for name, tensor in trained_by_avalanche(CASES["Replay"]).items())


def heads() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return Model(nn.Sequential(nn.Linear(FEATURES, 10), nn.ReLU()), Heads(10, [Task("blobs", size=CLASSES)]))


@pytest.mark.parametrize("name", ["nothing", "EWC + Replay + A-GEM", "LwF", "GDumb", "CWR*"])
def test_a_model_with_heads_by_task(name: str) -> None:
    result = engine([AvalanchePlugin(CASES[name], seed=SEED)], heads()).run(stream())
    assert_identical(dict(result.model.state_dict()), trained_by_avalanche(CASES[name], model=heads()))


def growing() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(FEATURES, 10), nn.ReLU(), IncrementalClassifier(10, initial_out_features=2))


@pytest.mark.parametrize("name", ["nothing", "EWC", "SI", "LwF", "Replay", "A-GEM", "GDumb"])
def test_a_classifier_of_avalanches_grows(name: str) -> None:
    found = engine([AvalanchePlugin(CASES[name], seed=SEED)], growing()).run(stream(lambda number: 2 * number + 2))
    wanted = trained_by_avalanche(CASES[name], model=growing())
    assert wanted["2.classifier.weight"].shape == (CLASSES, 10)
    assert_identical(weights(found), wanted)
