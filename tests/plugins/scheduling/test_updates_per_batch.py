from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from streamlearn import Engine
from streamlearn.core.phases import Phase
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import Replay, UpdatesPerBatch
from tests.core.support import Spy, Stop, class_stream, net, probe, same, sgd, stop_at


def test_it_is_a_plain_loop_with_an_inner_loop() -> None:
    stream, seen = class_stream(), []
    watch = probe("watch", before_step=lambda step: seen.append((step.batch.x, step.batch.targets["blobs"], step.run.clock.batch)))
    found = Engine(net(dropout=0.0), sgd(), [UpdatesPerBatch(updates=3), watch], batch_size=10, evaluate="never").run(stream)
    assert [batch for *_, batch in seen] == [0, 0, 0, 1, 1, 1] * 3
    assert all(torch.equal(seen[i][0], seen[i - i % 3][0]) for i in range(len(seen))), "the same rows each time"
    model = net(dropout=0.0).train()
    optimizer = sgd()(model.parameters())
    for x, y, _ in seen[::3]:
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    ours = {name.removeprefix("encoder."): value for name, value in found.model.state_dict().items()}
    assert ours.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(ours[name], value)
    assert [e["updates"] for e in found.events if e["event"] == "experience"] == [6, 6, 6]


def test_one_update_changes_nothing() -> None:
    stream = class_stream()
    plain = Engine(net(), sgd(), batch_size=10).run(stream)
    one = Engine(net(), sgd(), [UpdatesPerBatch(updates=1)], batch_size=10).run(stream)
    assert same(one.model.state_dict(), plain.model.state_dict())


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_memory_is_offered_each_row_once_and_gives_other_rows_to_each_update(epochs: int) -> None:
    spy, drawn = Spy(), []

    def look(step: Any) -> None:
        if step.batch.roles == ("train", "memory") and step.run.clock.experience == 2:
            drawn.append(step.batch.index[step.batch.rows("memory")].tolist())

    plugins = [UpdatesPerBatch(updates=3), Replay(capacity=60, fill="step", batch_size=5), spy, probe("look", before_step=look)]
    Engine(net(), sgd(), plugins, batch_size=10, epochs=epochs).run(class_stream())
    memory = spy.run.memories.open("main", 60, "reservoir")
    assert memory.offered == 60
    assert sorted(memory.all_rows().index.tolist()) == list(range(60))
    assert len(drawn) == 6 * epochs
    assert len({tuple(rows) for rows in drawn}) == len(drawn)


def test_only_the_main_phase_and_a_series_of_updates_as_a_whole() -> None:
    data = class_stream()[0].data["train"]
    phases = (Phase("main", data, 1, updates=(("*out*",), ("*",))), Phase("tail", data, 1))
    main, tail = UpdatesPerBatch(updates=2).transform_phases(phases)
    assert main.updates == (("*out*",), ("*",), ("*out*",), ("*",))
    assert tail is phases[1]
    assert phases[0].updates == (("*out*",), ("*",)), "what came in is as it was"


def test_stopped_between_batches_and_resumed(tmp_path: Path) -> None:
    stream = class_stream()

    def engine(**options: Any) -> Engine:
        plugins = [UpdatesPerBatch(updates=3), Replay(capacity=9, fill="step")]
        return Engine(net(), sgd(), plugins, batch_size=10, checkpoint_every=1, epochs=2, **options)

    straight = engine().run(stream)
    for update in (3, 15):
        folder = tmp_path / str(update)
        with pytest.raises(Stop):
            engine(progress=stop_at(update)).run(stream, output=folder)
        assert same(engine().resume(folder, stream).model.state_dict(), straight.model.state_dict())


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="plugin updates_per_batch: option 'updates' is 0"):
        UpdatesPerBatch(updates=0)
