from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, models
from streamlearn.core.checkpoint import latest_checkpoint, read_checkpoint
from streamlearn.core.sampling import shuffled
from streamlearn.core.supervision import Supervision
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import GroupDRO, Replay
from streamlearn.plugins.weighting.group_dro import admitted, raised, split_by_domain
from streamlearn.streams import Stream, Task
from streamlearn.streams.batch import Batch, Segment
from streamlearn.streams.data import Data, JoinedData, Target
from streamlearn.streams.sources import TensorSource
from tests.core.support import Stop, blobs, class_stream, final, net, probe, same, sgd, stop_at, stream_of
from tests.integration.conftest import no_drawing  # noqa: F401 - nobody looks at the figures of a run that is stopped and resumed


def photos_and_sketches(dtype: Any = torch.float32, experiences: int = 1) -> Stream:
    """One task; 36 rows of an easy domain and 12 of a hard one, in which the classes are others. Later experiences add "paint"."""
    easy, hard = blobs(36, 6, seed=1, name="photo", dtype=dtype), blobs(12, 6, seed=2, name="sketch", dtype=dtype)
    task = Task("kind", size=6)
    pieces: list[Any] = []
    for i in range(experiences):
        third = [Data(blobs(24, 6, seed=5, name="paint", dtype=dtype), torch.arange(24), (task,), {"kind": Target("y")}, domain="paint")]
        both = [Data(source, torch.arange(len(source)), (task,), {"kind": Target("y")}, domain=source.name) for source in (easy, hard)]
        pieces.append((JoinedData([*both, *(third if i else [])]), (task,)))
    return stream_of(pieces, (task,))


# ---------------------------------------------------------------------------------------------------- the formulas


def test_exponentiated_gradient_by_hand() -> None:
    """q = (½, ½), losses 2 and 1, η = 0.1: q ∝ (e^0.2, e^0.1)."""
    found = raised({"a": math.log(0.5), "b": math.log(0.5)}, {"a": 2.0, "b": 1.0}, 0.1)
    expected = math.exp(0.2) / (math.exp(0.2) + math.exp(0.1))
    assert math.exp(found["a"]) == pytest.approx(expected)
    assert sum(map(math.exp, found.values())) == pytest.approx(1)
    assert raised({"a": math.log(0.5), "b": math.log(0.5)}, {"a": 1e5}, 0.1)["b"] == pytest.approx(-1e4), "no overflow, and a way back"


def test_new_groups_enter_with_an_equal_share() -> None:
    assert admitted({}, ["a", "b"]) == pytest.approx({"a": math.log(0.5), "b": math.log(0.5)})
    found = admitted({"a": math.log(0.9), "b": math.log(0.1)}, ["b", "c"])
    assert {name: math.exp(value) for name, value in found.items()} == pytest.approx({"a": 0.6, "b": 0.2 / 3, "c": 1 / 3})


def batch_of(*domains: str, each: int = 2) -> Batch:
    segments = tuple(Segment("train", each * i, each * (i + 1), ("t",), domain) for i, domain in enumerate(domains))
    n = each * len(domains)
    return Batch(torch.arange(n).float().view(n, 1), {"t": torch.arange(n)}, {"t": slice(None)}, segments, torch.arange(n))


def record_of(batch: Batch, rows: slice | Tensor | None, **columns: Any) -> Supervision:
    chosen = slice(None) if rows is None else rows
    return Supervision("t", "t", batch.x[chosen], batch.targets["t"][chosen], rows=rows, **columns)


def told(parts: list[Supervision], batch: Batch) -> dict[str, list[int]]:
    """Targets by row name; checks that every column and ``rows`` speak of the same rows of the batch (target i belongs to row i)."""
    found: dict[str, list[int]] = {}
    for part in parts:
        chosen = slice(None) if part.rows is None else part.rows
        for column in (part.target, part.outputs.flatten().long(), torch.arange(len(batch))[chosen]):
            assert column.tolist() == part.target.tolist()
        if part.weight is not None:
            assert part.weight.tolist() == part.target.tolist()
        found.setdefault(part.row, []).extend(part.target.tolist())
    return found


@pytest.mark.parametrize("kind", ["all", "slice", "positions"])
def test_records_are_split_by_domain(kind: str) -> None:
    batch = batch_of("photo", "sketch", "photo", "")
    rows = {"all": None, "slice": slice(1, 7), "positions": torch.tensor([6, 1, 2, 4])}[kind]
    count = {"all": 8, "slice": 6, "positions": 4}[kind]
    weight = torch.arange(8).float()[slice(None) if rows is None else rows]
    record = record_of(batch, rows, weight=weight, active=torch.ones(count, 1, dtype=torch.bool), scale=2.0)
    parts = split_by_domain(record, batch)
    assert (
        told(parts, batch)
        == {
            "all": {"t@photo": [0, 1, 4, 5], "t@sketch": [2, 3], "t": [6, 7]},
            "slice": {"t@photo": [1, 4, 5], "t@sketch": [2, 3], "t": [6]},
            "positions": {"t@photo": [1, 4], "t@sketch": [2], "t": [6]},
        }[kind]
    )
    assert all(part.task == "t" and part.scale == 2.0 and len(part.active) == len(part.target) for part in parts)


def test_one_domain_copies_nothing_and_a_renamed_row_keeps_its_name() -> None:
    batch = batch_of("photo", "photo")
    record = record_of(batch, None, active=torch.ones(1, dtype=torch.bool)).replace(row="t/memory")
    (part,) = split_by_domain(record, batch)
    assert part.row == "t/memory@photo"
    assert part.outputs is record.outputs
    assert part.active is record.active
    plain = batch_of("", "")
    assert [found.row for found in split_by_domain(record_of(plain, slice(0, 3)), plain)] == ["t"]
    mixed = batch_of("a", "b")
    shared = record_of(mixed, None, active=torch.ones(1, dtype=torch.bool))
    assert all(found.active is shared.active for found in split_by_domain(shared, mixed)), "one mask for all rows is not split"


# ---------------------------------------------------------------------------------------------------- runs


def test_a_run_is_algorithm_1_in_a_plain_loop() -> None:
    """The step uses the q of the step before; every batch is split by the domain of its rows."""
    stream = photos_and_sketches(torch.float64)
    start = models.mlp(stream, (8,)).double().state_dict()

    def fresh() -> nn.Module:
        model = models.mlp(stream, (8,)).double()
        model.load_state_dict(start)
        return model

    dro = GroupDRO(step_size=0.3)
    result = Engine(fresh, sgd(), [dro], batch_size=12, epochs=3, seed=6).run(stream)

    model, data, q = fresh(), stream[0].data["train"], {"photo": 0.5, "sketch": 0.5}
    optimizer = sgd()(model.parameters())
    for epoch in range(3):
        for positions in shuffled(len(data), 12, False, 0, 6, 0, 0, epoch).split(12):
            losses = {}
            for domain, rows in data.batch(positions).by_domain().items():
                losses[domain] = nn.functional.cross_entropy(model(rows.x, "kind"), rows.targets["kind"])
            optimizer.zero_grad()
            (sum(q[d] * loss for d, loss in losses.items()) / sum(q[d] for d in losses)).backward()
            optimizer.step()
            q = {d: v * math.exp(0.3 * float(losses[d].detach())) if d in losses else v for d, v in q.items()}
            q = {d: v / sum(q.values()) for d, v in q.items()}
    for name, value in model.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value, rtol=1e-8, atol=1e-11)
    kept = {name: math.exp(value) for name, value in dro.state_dict()["log_weights"].items()}
    assert kept == pytest.approx({f"kind@{d}": v for d, v in q.items()}, rel=1e-9)
    assert abs(kept["kind@sketch"] - 0.5) > 1e-3, "q has moved"


def worst(*plugins: Any) -> tuple[float, float]:
    """Losses of the two domains after a run of a model too small for both."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(100, 2, generator=draw)
    y = (x[:, 0] > 0).long()
    y[80:] = (x[80:, 0] < 0).long()  # in the small domain it is the other way round
    source, task = TensorSource(x, {"y": y}, "two"), Task("t", size=2)
    parts = [
        Data(source, torch.arange(*edges), (task,), {"t": Target("y")}, domain=d) for d, edges in (("big", (0, 80)), ("small", (80, 100)))
    ]
    stream = stream_of([(JoinedData(parts), (task,))], (task,), features=2)
    model = Engine(models.mlp(stream, ()), sgd(lr=0.1, momentum=0.0), list(plugins), batch_size=50, epochs=30).run(stream).model
    losses = [nn.functional.cross_entropy(model(x[rows], "t"), y[rows]) for rows in (slice(0, 80), slice(80, 100))]
    return float(losses[0].detach()), float(losses[1].detach())


def test_the_worst_group_is_served() -> None:
    usual, robust = worst(), worst(GroupDRO(step_size=0.5))
    assert max(robust) < max(usual) - 0.3
    assert max(robust) == pytest.approx(math.log(2), abs=0.1), "nobody can serve both: the fair answer is to say nothing"


def test_the_record_and_a_combiner_see_groups() -> None:
    names: list[tuple[str, ...]] = []
    combine = probe("sum", provide_gradient_combination=lambda rows: names.append(rows.names) or dict.fromkeys(rows.names, 1.0))
    stream = photos_and_sketches()
    _, events = final(Engine(models.mlp(stream, (8,)), sgd(), [GroupDRO(), combine], batch_size=24), stream)
    assert set(names) == {("kind@photo", "kind@sketch")}
    (epoch,) = [event for event in events if event["event"] == "epoch"]
    assert set(epoch["losses"]) == {"kind@photo", "kind@sketch"}


def test_a_domain_that_arrives_later_and_memory_rows_that_keep_theirs() -> None:
    rows: list[set[str]] = []
    dro = GroupDRO(step_size=0.1)
    watch = probe("watch", after_step=lambda step: rows.append(set(step.losses)))
    stream = photos_and_sketches(experiences=2)
    Engine(models.mlp(stream, (8,)), sgd(), [dro, Replay(capacity=20), watch], batch_size=24).run(stream)
    assert rows[0] == {"kind@photo", "kind@sketch"}
    assert rows[-1] == {"kind@photo", "kind@sketch", "kind@paint"}
    found = dro.state_dict()["log_weights"]
    assert set(found) == rows[-1]
    assert sum(map(math.exp, found.values())) == pytest.approx(1)


def test_without_domains_and_with_one_task_it_is_plain_training() -> None:
    plain, _ = final(Engine(net(), sgd(), batch_size=10), class_stream())
    found, _ = final(Engine(net(), sgd(), [GroupDRO()], batch_size=10), class_stream())
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value)


def test_the_weighting_is_pure() -> None:
    dro = GroupDRO(step_size=0.5)

    def look(gradients: Any, step: Any) -> Any:
        before = dro.state_dict()
        again = [step.run.hooks.provide_weighting(step.at().losses, step) for _ in range(2)]
        assert torch.equal(*again)
        assert dro.state_dict() == before
        return gradients

    stream = photos_and_sketches()
    Engine(models.mlp(stream, (8,)), sgd(), [dro, probe("look", transform_gradients=look)], batch_size=24).run(stream)


def test_stopped_and_resumed(tmp_path: Path) -> None:
    stream = photos_and_sketches(experiences=2)

    def engine(**options: Any) -> Engine:
        return Engine(models.mlp(stream, (8,)), sgd(), [GroupDRO(step_size=0.2)], batch_size=12, checkpoint_every=2, **options)

    engine().run(stream, output=tmp_path / "straight")
    for update in (3, 5):
        folder = tmp_path / str(update)
        with pytest.raises(Stop):
            engine(progress=stop_at(update)).run(stream, output=folder)
        engine().resume(folder, stream)
        states = [read_checkpoint(latest_checkpoint(f / "checkpoints")[0]) for f in (tmp_path / "straight", folder)]
        assert same(states[0]["model"], states[1]["model"]), update
        assert same(states[0]["plugins"], states[1]["plugins"]), update
        assert set(states[0]["plugins"]["group_dro"]["log_weights"]) == {"kind@photo", "kind@sketch", "kind@paint"}


@pytest.mark.parametrize("step_size", [0.0, -1.0, float("inf")])
def test_bad_options(step_size: float) -> None:
    with pytest.raises(ConfigurationError, match="option 'step_size'"):
        GroupDRO(step_size=step_size)
