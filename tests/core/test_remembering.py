from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from streamlearn import Engine, models
from streamlearn.core.remembering import brought, herding_order
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import AGEM, Replay
from streamlearn.streams import Batch, Task
from streamlearn.streams.batch import EVERY_ROW, Segment
from streamlearn.streams.data import Data, Target
from tests.core.support import Spy, blobs, class_stream, net, probe, sgd, stream_of


def naive_order(features: Tensor, count: int) -> list[int]:
    """Algorithm 4 of iCaRL, each mean made anew."""
    mean, chosen = features.mean(0), []
    while len(chosen) < min(count, len(features)):
        best = min(
            (i for i in range(len(features)) if i not in chosen),
            key=lambda i: float((mean - features[[*chosen, i]].mean(0)).norm()),
        )
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_herding_is_that_of_the_algorithm(seed: int) -> None:
    features = torch.randn(17, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for count in (1, 6, 17, 30):
        assert herding_order(features, count).tolist() == naive_order(features, count)
    assert sorted(herding_order(features, 17).tolist()) == list(range(17))


def test_the_order_of_few_rows_and_of_equal_ones() -> None:
    assert herding_order(torch.zeros(0, 3), 4).tolist() == []
    assert herding_order(torch.zeros(1, 3), 4).tolist() == [0]
    assert sorted(herding_order(torch.ones(4, 3), 4).tolist()) == [0, 1, 2, 3]


def test_rows_of_any_memory_are_not_brought() -> None:
    segments = tuple(Segment(role, 2 * i, 2 * i + 2, ("t",)) for i, role in enumerate(("train", "memory", "target", "memory/der/logits")))
    batch = Batch(torch.zeros(8, 1), {"t": torch.zeros(8)}, {"t": EVERY_ROW}, segments, torch.arange(8))
    assert brought(batch) == 4


def run_with(*plugins: Any, stream: Any = None, model: Any = None, **options: Any) -> Any:
    spy = Spy()
    Engine(model or net(dropout=0.0), sgd(), [*plugins, spy], **({"batch_size": 10} | options)).run(stream or class_stream())
    return spy.run


def test_one_plugin_owns_a_memory_and_offers_each_row_once() -> None:
    for plugins, owner in (
        ([Replay(capacity=60), AGEM(capacity=60)], "agem"),
        ([AGEM(capacity=60), Replay(capacity=60)], "replay"),
        ([AGEM(capacity=60), Replay(capacity=60, fill="step")], "replay"),
        ([Replay(capacity=60, fill="step"), AGEM(capacity=60)], "replay"),
    ):
        memory = run_with(*plugins, epochs=2).memories.find("main")
        assert (memory.owner, memory.offered) == (owner, 60)
        assert sorted(memory.all_rows().index.tolist()) == list(range(60))
    run = run_with(Replay(capacity=60), AGEM(capacity=60, memory="own"))
    for name, owner in (("main", "replay"), ("own", "agem")):
        assert (run.memories.find(name).owner, run.memories.find(name).offered) == (owner, 60)


def test_herding_in_a_run_keeps_what_is_nearest_to_the_mean_of_each_class() -> None:
    """By the features of the end of the experience in which a class came, though the memory shrinks later."""
    found: dict[int, list[int]] = {}

    def look(experience: Any, run: Any) -> None:
        rows = run.data().batch(torch.arange(len(run.data())))
        run.model.eval()
        with torch.no_grad():
            features = normalize(run.model.encode(rows.x)).double()
        run.model.train()
        for c in experience.classes["t"]:
            here = (rows.targets["t"] == c).nonzero().flatten()
            found[c] = rows.index[here[torch.tensor(naive_order(features[here], 10))]].tolist()

    source, task = blobs(60, 6), Task("t", size=6)
    pieces = []
    for i in range(3):
        wanted = (source.targets["y"] // 2 == i).nonzero().flatten()
        pieces.append((Data(source, wanted, (task,), {"t": Target("y")}), (task,)))
    stream = stream_of(pieces, (task,))
    plugins = [Replay(capacity=18, policy="herding"), probe("eye", after_experience=look)]
    memory = run_with(*plugins, stream=stream, model=models.mlp(stream, (8,)), epochs=3).memories.find("main")
    assert memory.groups() == dict.fromkeys(range(6), 3)
    for c in range(6):
        assert sorted(memory.rows_of(c).index.tolist()) == sorted(found[c][:3])


def test_herding_sees_no_hidden_label() -> None:
    source, task = blobs(40, 6), Task("t", size=6)
    shown = torch.arange(40) % 12 < 6
    rows = Data(source, torch.arange(40), (task,), {"t": Target("y")}, labelled={"t": shown})
    stream = stream_of([(rows, (task,))], (task,))
    run = run_with(Replay(capacity=4, policy="herding", budget="per_group"), stream=stream, model=models.mlp(stream, (8,)))
    memory = run.memories.find("main")
    kept = memory.all_rows()
    assert memory.groups() == {-1: 4, 0: 4, 1: 4, 2: 4, 3: 4, 4: 3, 5: 3}
    assert set(memory.rows_of(-1).index.tolist()) <= set((~shown).nonzero().flatten().tolist())
    assert not bool(kept.labelled_rows("t")[kept.index % 12 >= 6].any())


def test_herding_of_rows_without_labels_is_refused() -> None:
    source, task = blobs(40, 6), Task("t", size=6)
    stream = stream_of([(Data(source, torch.arange(40), (task,)), (task,))], (task,))
    with pytest.raises(ConfigurationError, match="memory 'main' is herded by class, but rows have no labels: use 'reservoir'"):
        run_with(Replay(policy="herding"), stream=stream)
