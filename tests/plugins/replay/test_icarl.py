"""iCaRL put together: the loss, exemplars chosen by herding, and the nearest mean of exemplars."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from streamlearn import Engine, models
from streamlearn.core.remembering import herding_order
from streamlearn.plugins import ICaRLLoss, NearestClassMean, Replay
from streamlearn.streams import class_incremental
from tests.core.support import Spy, Stop, final, growing_stream, probe, same, sgd, stop_at
from tests.plugins.distillation.oracle import library


def algorithm_4(features: Tensor, count: int) -> list[int]:
    """Rebuffi et al. 2017, algorithm 4, as it is written: exemplar k brings the mean of the first k nearest to that of the class."""
    phi = features.double().numpy()
    mean, chosen = phi.mean(0), []
    for k in range(1, count + 1):
        best, nearest = -1, float("inf")
        for i in range(len(phi)):
            if i not in chosen:
                away = float(np.linalg.norm(mean - (phi[i] + sum((phi[j] for j in chosen), np.zeros_like(mean))) / k))
                if away < nearest:
                    best, nearest = i, away
        chosen.append(best)
    return chosen


def features(rows: int, seed: int, unit: bool) -> Tensor:
    drawn = torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1.0
    return torch.nn.functional.normalize(drawn) if unit else drawn


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_order_of_herding(seed: int, unit: bool) -> None:
    """Against the algorithm in plain loops, and against Avalanche's."""
    phi = features(23, seed, unit)
    order = herding_order(phi, 23).tolist()
    assert order == algorithm_4(phi, 23)
    assert sorted(order) == list(range(23))
    assert herding_order(phi, 7).tolist() == order[:7]
    strategy = library("training.storage_policy").HerdingSelectionStrategy(torch.nn.Sequential(torch.nn.Identity()), "0")
    assert order == strategy.make_sorted_indices_from_features(phi)


def test_means_of_few_exemplars_are_near_those_of_the_class() -> None:
    phi = features(200, 4, True)
    mean = phi.mean(0)
    herded = (phi[herding_order(phi, 10)].mean(0) - mean).norm()
    draw = torch.Generator().manual_seed(1)
    drawn = [float((phi[torch.randperm(200, generator=draw)[:10]].mean(0) - mean).norm()) for _ in range(50)]
    assert float(herded) < min(drawn)


@pytest.mark.parametrize("budget", ["per_group", "total"])
def test_exemplars_of_a_run(budget: Any) -> None:
    """The first m of each class in the order of the model that ended its experience; a total budget takes from the end of each list."""
    stream, spy, orders = growing_stream()[:3], Spy(), {}
    kept: list[dict[int, list[int]]] = []

    def after(run: Any) -> None:
        data = stream[run.clock.experience].data["train"]
        rows = data.batch(torch.arange(len(data)))
        phi = torch.nn.functional.normalize(run.model.eval().encode(rows.x).detach())
        for number in rows.targets["t"].unique().tolist():
            places = (rows.targets["t"] == number).nonzero().squeeze(1)
            orders[number] = rows.index[places][algorithm_4(phi[places], len(places))].tolist()
        memory = run.memories.find("main").all_rows()
        kept.append({c: memory.index[memory.targets["t"] == c].tolist() for c in memory.targets["t"].unique().tolist()})

    # after_ hooks run in reverse: this watch sees the memory when it has been filled
    plugins = [
        probe("watch", after_experience=after),
        Replay(capacity=4 if budget == "per_group" else 12, policy="herding", budget=budget),
        ICaRLLoss(),
        spy,
    ]
    Engine(models.mlp(growing_stream(), (8,)), sgd(), plugins, batch_size=10).run(stream)
    for classes, found in zip((2, 4, 6), kept, strict=True):
        each = 4 if budget == "per_group" else 12 // classes
        assert {c: sorted(rows) for c, rows in found.items()} == {c: sorted(orders[c][:each]) for c in range(classes)}


def test_a_prediction_is_the_nearest_mean_of_exemplars() -> None:
    stream, spy = growing_stream()[:3], Spy()
    plugins = [Replay(capacity=3, policy="herding", budget="per_group"), ICaRLLoss(), NearestClassMean(), spy]
    result = Engine(models.mlp(growing_stream(), (8,)), sgd(), plugins, batch_size=10).run(stream)
    model, memory = result.model.eval(), spy.run.memories.find("main").all_rows()
    with torch.no_grad():

        def phi(x: Tensor) -> np.ndarray[Any, Any]:
            found = model.encode(x).double().numpy()
            return found / np.linalg.norm(found, axis=1, keepdims=True)

        exemplars = phi(memory.x)
        means = np.stack([exemplars[(memory.targets["t"] == c).numpy()].mean(0) for c in range(6)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        for number in range(3):
            data = stream.evaluation(number).data
            rows = data.batch(torch.arange(len(data)))
            nearest = np.linalg.norm(phi(rows.x)[:, None] - means[None], axis=2).argmin(1)
            assert result.accuracy_matrix[-1, number] == pytest.approx(np.mean(nearest == rows.targets["t"].numpy()))


def test_stopped_and_resumed_equals_the_straight_run(tmp_path: Path) -> None:
    stream = growing_stream()[:3]

    def engine(**options: Any) -> Engine:
        plugins = [Replay(capacity=3, policy="herding", budget="per_group", batch_size=4), ICaRLLoss(), NearestClassMean()]
        return Engine(models.mlp(growing_stream(), (8,)), sgd(), plugins, batch_size=8, epochs=2, checkpoint_every=1, **options)

    expected = final(engine(), stream)
    with pytest.raises(Stop):
        engine(progress=stop_at(9)).run(stream, output=tmp_path)
    result = engine().resume(tmp_path, stream)
    assert same(dict(result.model.state_dict()), expected[0])
    assert same(result.events, expected[1])


def test_it_keeps_what_replay_alone_forgets() -> None:
    """Ten exemplars a class, four of them beside each thirty-two new rows."""
    stream = class_incremental("digits", 5, grow=True)

    def accuracy(policy: Any, *plugins: Any) -> float:
        memory = Replay(capacity=10, policy=policy, budget="per_group", batch_size=4)
        optimizer = partial(torch.optim.Adam, lr=3e-3)
        engine = Engine(models.mlp(stream, (64,)), optimizer, [memory, *plugins], batch_size=32, epochs=4, evaluate="end")
        return float(engine.run(stream).metrics["average_accuracy"])

    assert accuracy("herding", ICaRLLoss(), NearestClassMean()) > accuracy("class_balanced") + 0.2
