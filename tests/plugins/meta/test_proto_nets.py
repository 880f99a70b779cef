"""Prototypical networks against a loop by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamlearn import Engine, streams
from streamlearn.models import Heads, Model
from streamlearn.plugins import EWC, LwF, PCGrad, ProtoNets, UncertaintyWeighting
from streamlearn.plugins.meta.proto_nets import prototype_logits
from streamlearn.streams import Stream
from tests.core.support import class_stream, final, net, probe, same, sgd, stopped_or_straight, two_task_stream

WAYS, SHOTS, QUERIES, BATCH = 3, 2, 4, 2


def episodes(**options: Any) -> Stream:
    sizes = {"ways": WAYS, "shots": SHOTS, "queries": QUERIES, "train_episodes": 12, "test_episodes": 20, "seed": 1}
    return streams.episodes("digits", **sizes | options)


def network(stream: Stream) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 8)), Heads(8, stream.tasks))


def by_hand(stream: Stream) -> dict[str, Tensor]:
    """One epoch in plain torch, over the same batches."""
    batches: list[Any] = []
    look = probe("look", after_step=lambda step: batches.append(step.batch))
    Engine(network(stream), sgd(lr=0.0), [look], batch_size=BATCH, seed=4).run(stream)
    model = network(stream)
    optimizer = torch.optim.SGD(model.encoder.parameters(), lr=0.1)
    (task,) = stream.tasks
    for batch in batches:
        features, y = model.encoder(batch.x), batch.targets[task.name]
        total = torch.zeros(())
        for e in range(BATCH):
            n, q = WAYS * SHOTS, WAYS * QUERIES
            inner, outer = slice(e * n, (e + 1) * n), slice(BATCH * n + e * q, BATCH * n + (e + 1) * q)
            means = torch.stack([features[inner][y[inner] == k].mean(0) for k in range(WAYS)])
            logits = torch.stack([-(features[outer] - mean).square().sum(1) for mean in means], 1)
            total = total + F.cross_entropy(logits, y[outer]) / BATCH
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


def test_it_equals_a_loop_by_hand() -> None:
    stream = episodes()
    plain = sgd(lr=0.1, momentum=0.0, weight_decay=0.0)
    found, _ = final(Engine(network(stream), plain, [ProtoNets()], batch_size=BATCH, seed=4), stream)
    start = dict(network(stream).named_parameters())
    for name, value in by_hand(stream).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
        rests = name.startswith("heads.") or name == "encoder.3.bias"  # the head has no part in it, and distances none in a shift
        assert rests == bool((value - start[name]).abs().max() < 1e-6), name


def test_logits_are_linear_in_the_features_but_for_a_constant() -> None:
    draw = torch.Generator().manual_seed(0)
    features, support = torch.randn(5, 4, generator=draw), torch.randn(6, 4, generator=draw)
    logits = prototype_logits(features, support, torch.tensor([0, 0, 1, 1, 1, 3]), 4)
    means = torch.stack([support[:2].mean(0), support[2:5].mean(0), support[5]])
    linear = 2 * features @ means.T - means.square().sum(1)
    torch.testing.assert_close(logits[:, [0, 1, 3]].softmax(1), linear.softmax(1))
    assert bool((logits[:, 2] < -1e37).all()), "a class without support rows is never chosen"
    assert bool(logits.isfinite().all())


def test_new_classes_need_no_training() -> None:
    """On episodes of digits that were never trained on, far above chance, and better than untrained features."""
    stream = streams.episodes("digits", ways=3, shots=1, queries=5, train_episodes=400, test_episodes=200, seed=3)

    def accuracy(rate: float) -> float:
        engine = Engine(network(stream), sgd(lr=rate), [ProtoNets()], batch_size=8, epochs=4, evaluate="end", seed=2)
        return float(engine.run(stream).accuracy_matrix[-1, 0])

    learnt, untrained = accuracy(0.05), accuracy(0.0)
    assert learnt > untrained + 0.02
    assert learnt > 0.7


def test_labels_of_query_rows_are_not_looked_at_in_an_evaluation() -> None:
    stream = episodes()
    seen: list[set[str]] = []

    def watch(evaluation: Any) -> None:
        seen.append(set(evaluation.run.tasks))

    result = Engine(network(stream), sgd(lr=0.0), [ProtoNets(), probe("watch", before_evaluation=watch)]).run(stream)
    model = network(stream)
    data: Any = stream.evaluation(0).data
    (task,), right, rows = stream.tasks, 0, 0
    for number in range(len(data)):
        batch = data.batch(torch.tensor([number]))
        features, y = model.encoder(batch.x).detach(), batch.targets[task.name]
        inner, outer = batch.rows("support"), batch.rows("query")
        logits = prototype_logits(features[outer], features[inner], y[inner], WAYS)
        right, rows = right + int((logits.argmax(1) == y[outer]).sum()), rows + len(logits)
    assert seen
    assert float(result.accuracy_matrix[-1, 0]) == pytest.approx(right / rows)


def test_rows_without_support_are_trained_as_ever() -> None:
    found = [final(Engine(net(), sgd(), plugins, seed=1), class_stream())[0] for plugins in ([], [ProtoNets()])]
    assert same(*found)


def test_beside_others_and_after_a_stop(tmp_path: Path) -> None:
    Engine(Model(nn.Linear(6, 5), Heads(5, [])), sgd(), [ProtoNets(), PCGrad(), EWC(), LwF()], batch_size=8).run(two_task_stream())

    def engine(**options: Any) -> Engine:
        return Engine(network(episodes()), sgd(), [ProtoNets(), UncertaintyWeighting()], batch_size=BATCH, epochs=2, **options)

    straight = stopped_or_straight(engine, episodes, tmp_path / "straight")
    stopped = stopped_or_straight(engine, episodes, tmp_path / "stopped", stop=5)
    assert same(straight[0], stopped[0])
    assert straight[1] == stopped[1]
