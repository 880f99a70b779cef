"""After adaptation in an evaluation, parameters, buffers, optimiser state and random state are what they were."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from streamlearn import Engine, Plugin, streams
from streamlearn.models import Heads, Model
from streamlearn.plugins import ANML, IMAML, MAML, OML, MetaSGD, ProtoNets, Reptile
from tests.core.support import probe, same

LEARNERS: dict[str, Any] = {
    "maml": lambda: MAML(steps=2, evaluation_steps=3),
    "recomputed": lambda: MAML(steps=2, recompute=True),
    "anil": lambda: MAML(plastic=("heads.*",)),
    "meta_sgd": MetaSGD,
    "imaml": lambda: IMAML(steps=2),
    "reptile": Reptile,
    "proto_nets": ProtoNets,
    "oml": OML,
    "anml": ANML,
}


def network(stream: streams.Stream) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2))
        return Model(encoder, Heads(8, stream.tasks))


@pytest.mark.parametrize("name", LEARNERS)
def test_an_evaluation_leaves_no_trace(name: str) -> None:
    stream = streams.episodes("digits", ways=3, shots=2, queries=2, train_episodes=6, test_episodes=4, seed=1)
    model = network(stream)
    taken: list[Any] = []

    def take(evaluation: Any) -> None:
        run = evaluation.run
        state = {
            "model": run.model.state_dict(),
            "parameters": run.parameters(),
            "optimiser": run.optimization.state_dict(),
            "mode": torch.tensor([module.training for module in run.model.modules()]),
        }
        taken.append(copy.deepcopy(state))
        assert all(p.grad is None for p in run.parameters().values())

    watch: Plugin = probe("watch", before_evaluation=take, after_evaluation=take)
    adam = lambda p: torch.optim.Adam(p, lr=0.01)  # noqa: E731
    often = Engine(model, adam, [LEARNERS[name](), watch], batch_size=3, epochs=2, evaluate_every=1).run(stream).model
    assert len(taken) >= 8
    for before, after in zip(taken[::2], taken[1::2], strict=True):
        assert same(before, after)
    # nor in the random state, from which dropout draws
    never = Engine(network(stream), adam, [LEARNERS[name]()], batch_size=3, epochs=2, evaluate="never").run(stream).model
    assert often is not None
    assert never is not None
    assert same(dict(often.state_dict()), dict(never.state_dict()))
    assert not same(dict(never.state_dict()), dict(network(stream).state_dict())), "training leaves one"
