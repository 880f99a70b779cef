"""A step in parts is the same step: same gradients, same record, one graph at a time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, models
from streamlearn.errors import ConfigurationError, DivergenceError
from streamlearn.plugins import EWC, Replay
from streamlearn.streams import Stream, Task, episodes
from streamlearn.streams.batch import StoredColumn
from streamlearn.streams.data import Data, JoinedData, Target
from tests.core.support import (
    Stop,
    blobs,
    class_stream,
    final,
    net,
    probe,
    same,
    separate_task_stream,
    sgd,
    stop_at,
    stream_of,
    two_task_stream,
)

SUM = {"provide_gradient_combination": lambda rows: dict.fromkeys(rows.names, 1.0)}


def one_task(dtype: Any = torch.float32) -> Stream:
    source, task = blobs(48, 6, dtype=dtype), Task("blobs", size=6)
    pieces = [(Data(source, torch.arange(24 * i, 24 * i + 24), (task,), {"blobs": Target("y")}), (task,)) for i in range(2)]
    return stream_of(pieces, (task,))


def uneven(dtype: Any = torch.float32) -> Stream:
    """Rows of task a, rows of task b, rows of both: 13, 5 and 6 of them, in one batch."""
    source, a, b = blobs(48, 6, dtype=dtype), Task("a", size=6), Task("b", size=6)
    both = {"a": Target("y"), "b": Target("y")}
    pieces = []
    for base in (0, 24):
        parts = [
            Data(source, torch.arange(base, base + 13), (a,), {"a": Target("y")}),
            Data(source, torch.arange(base + 13, base + 18), (b,), {"b": Target("y")}),
            Data(source, torch.arange(base + 18, base + 24), (a, b), both),
        ]
        pieces.append((JoinedData(parts), (a, b)))
    return stream_of(pieces, (a, b))


def anchored(step: Any) -> Tensor:
    """A penalty on the parameters."""
    return 0.1 * sum(p.square().sum() for p in step.parameters.values())


def uncertain(run: Any) -> dict[str, Any]:
    from streamlearn.core.optimization import Trainable

    class Logs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.s = nn.Parameter(torch.tensor([0.3, -0.2], dtype=next(run.model.parameters()).dtype))

    return {"logs": Trainable(Logs())}


def weighting(losses: Any, step: Any) -> Tensor:
    """Homoscedastic uncertainty: linear in the losses, with parameters of its own."""
    logs = step.parameters["weighting/logs.s"]
    return sum((-s).exp() * loss + s for s, loss in zip(logs, losses.values(), strict=True))


CASES: dict[str, tuple[Callable[..., Stream], Callable[[], list[Any]]]] = {
    "one task": (one_task, list),
    "two tasks": (two_task_stream, list),
    "rows of one task, of the other, of both": (uneven, list),
    "penalty": (two_task_stream, lambda: [probe("anchored", collect_terms=anchored)]),
    "ewc": (one_task, lambda: [EWC(strength=10.0)]),
    "sum combiner": (two_task_stream, lambda: [probe("sum", **SUM)]),
    "sum combiner, uneven, penalty": (uneven, lambda: [probe("sum", **SUM), probe("anchored", collect_terms=anchored)]),
    "weighting": (two_task_stream, lambda: [probe("weighting", provide_weighting=weighting, collect_modules=uncertain)]),
    "weighting and combiner": (
        two_task_stream,
        lambda: [probe("weighting", provide_weighting=weighting, collect_modules=uncertain), probe("sum", **SUM)],
    ),
    "replay": (one_task, lambda: [Replay(capacity=10, batch_size=7)]),
}  # fmt: skip


def trained(case: str, microbatches: int, dtype: Any, plugins: tuple[Any, ...] = (), **options: Any) -> tuple[Any, list[Any]]:
    stream_in, listed = CASES[case]
    stream = stream_in(dtype)
    model = models.mlp(stream, (8,)).to(dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        for p in model.parameters():
            nn.init.normal_(p, std=0.5)
    given = {"batch_size": 24, "epochs": 4, "microbatches": microbatches} | options
    return final(Engine(model, sgd(), [*listed(), *plugins], **given), stream)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_parts_make_the_update_of_the_whole(case: str, dtype: Any) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    whole, events = trained(case, 1, dtype)
    assert {p.dtype for p in whole.values()} == {dtype}
    for number in (2, 5):
        parts, found = trained(case, number, dtype)
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, rtol=tolerance, atol=tolerance, msg=f"{name}, {number} parts")
        epochs, again = ([e for e in log if e["event"] == "epoch"] for log in (events, found))
        assert len(epochs) == len(again) >= 4
        for one, other in zip(epochs, again, strict=True):
            assert one["updates"] == other["updates"], "an update in parts is one update"
            for kind in ("losses", "terms"):
                assert other[kind] == pytest.approx(one[kind], rel=1e-4 if dtype == torch.float32 else 1e-10, abs=1e-9), (number, kind)


def test_losses_terms_and_outputs_after_the_step_are_those_of_the_whole_batch() -> None:
    seen: dict[int, list[Any]] = {1: [], 3: []}

    def look(number: int) -> Any:
        def after(step: Any) -> None:
            assert step.updated
            read = {"a": slice(0, 24), "b": slice(13, 24)}  # on which rows the loss read them
            outputs = {task: step.outputs.on(task, rows).detach().clone() for task, rows in read.items()}
            losses = {name: loss.detach().clone() for name, loss in step.losses.items()}
            shares = {name: float(share) for name, share in step.objective.shares.items()}
            tapped = step.tap("features").detach().clone()
            assert len(tapped) == len(step.batch)
            seen[number].append((losses, {n: t.detach().clone() for n, t in step.terms.items()}, shares, outputs, tapped))

        return (probe("anchored", collect_terms=anchored), probe("look", after_step=after))

    for number in seen:
        trained("rows of one task, of the other, of both", number, torch.float64, look(number))
    assert len(seen[1]) == len(seen[3]) == 8
    for one, other in zip(seen[1], seen[3], strict=True):
        assert one[2] == pytest.approx({"a": 19 / 24, "b": 11 / 24})
        for left, right in zip(one[:4], other[:4], strict=True):
            assert left.keys() == right.keys()
            for name in left:
                torch.testing.assert_close(torch.as_tensor(right[name]), torch.as_tensor(left[name]), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(other[4], one[4], rtol=1e-9, atol=1e-12)


def test_outputs_after_the_step_are_those_from_before_its_update_and_buffers_are_left_alone() -> None:
    found: list[Any] = []

    def before(step: Any) -> None:
        with torch.no_grad():
            found.append([b.clone() for b in step.run.model.buffers()])

    def after(step: Any) -> None:
        buffers = [b.clone() for b in step.run.model.buffers()]
        outputs = step.outputs["blobs"]
        assert outputs.shape == (len(step.batch), 6)
        assert not outputs.requires_grad
        assert same(buffers, [b.clone() for b in step.run.model.buffers()]), "reading afterwards moves no statistics"
        assert int(buffers[2]) == int(found[-1][2]) + 3, "one movement for each part"

    Engine(net(), sgd(), [probe("look", before_step=before, after_step=after)], batch_size=10, microbatches=3).run(class_stream())
    assert len(found) == 6


def test_the_guard_names_the_place_the_row_and_the_plugin() -> None:
    def poison(step: Any) -> Any:
        return torch.tensor(float("nan")) if step.update == 1 and int(step.batch.index.max()) > 0 else torch.tensor(0.0)

    model = net(dropout=0.0)
    with pytest.raises(DivergenceError, match=r"at experience 0, .* step 1: term 'poison' is nan"):
        Engine(model, sgd(), [probe("poison", collect_terms=poison)], batch_size=8, microbatches=2).run(class_stream())
    assert all(p.grad is None for p in model.parameters())
    assert all(bool(p.isfinite().all()) for p in model.parameters())

    def log(losses: Any) -> Tensor:
        return sum(loss * float("inf") for loss in losses.values())

    with pytest.raises(DivergenceError, match="no single loss or term"):
        Engine(net(), sgd(), [probe("inf", provide_weighting=log)], batch_size=8, microbatches=2).run(class_stream())


def test_each_part_has_masks_of_its_own_and_they_are_repeatable() -> None:
    """The same row in every part: what dropout leaves of it differs from part to part, not from run to run."""
    source, task = blobs(6, 6), Task("blobs", size=6)
    stream = stream_of([(Data(source, torch.zeros(8, dtype=torch.int64), (task,), {"blobs": Target("y")}), (task,))], (task,))

    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.dropout(x, 0.5, True))

    def masks() -> list[Tensor]:
        kept: list[Tensor] = []

        def look(step: Any) -> dict[str, Any]:
            kept.append(step.outputs["blobs"].detach().clone())
            assert torch.equal(step.at(dict(step.parameters)).outputs["blobs"], step.outputs["blobs"]), "a view has the masks of its part"
            return {}

        torch.manual_seed(0)
        Engine(Dropping(), sgd(lr=0.0), [probe("look", collect_terms=look)], batch_size=8, microbatches=4).run(stream)
        return kept

    first, again = masks(), masks()
    assert [len(part) for part in first] == [2, 2, 2, 2]
    assert same(first, again)
    assert all(not torch.equal(first[i], first[j]) for i in range(4) for j in range(i))


@pytest.mark.parametrize("microbatches", [13, 100])
def test_more_parts_than_rows_leave_the_batch_whole(microbatches: int) -> None:
    whole, events = trained("two tasks", 1, torch.float32, batch_size=12)
    parts, found = trained("two tasks", microbatches, torch.float32, batch_size=12)
    assert same(whole, parts)
    assert [e for e in events if e["event"] == "epoch"] == [e for e in found if e["event"] == "epoch"]


def test_a_row_for_each_part() -> None:
    sizes: list[int] = []

    def look(step: Any) -> dict[str, Any]:
        sizes.append(len(step.batch))
        return {}

    trained("two tasks", 12, torch.float32, (probe("look", collect_terms=look),), batch_size=12, epochs=1)
    assert sizes == [1] * 24


def test_unlabelled_rows_in_some_parts_give_neither_nan_nor_weight() -> None:
    source, task = blobs(24, 6, dtype=torch.float64), Task("a", size=6)
    labelled = torch.zeros(24, dtype=torch.bool)
    labelled[[3, 17, 20]] = True
    data = Data(source, torch.arange(24), (task,), {"a": Target("y")}, labelled={"a": labelled})
    stream = stream_of([(data, (task,))], (task,))
    found = []
    for number in (1, 8):
        model = nn.Linear(6, 6).double()
        nn.init.constant_(model.weight, 0.1), nn.init.zeros_(model.bias)
        found.append(final(Engine(model, sgd(), batch_size=24, epochs=3, microbatches=number), stream)[0])
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-12, atol=1e-12)
        assert bool(value.isfinite().all())


def test_one_graph_at_a_time_also_under_a_combiner() -> None:
    """No cycle either: what is left of a part is its numbers."""
    alive: list[int] = []
    outputs: list[Any] = []

    def look(step: Any) -> dict[str, Any]:
        gc.disable()
        alive.append(sum(ref() is not None for ref in outputs))
        outputs.append(weakref.ref(step.outputs["a"]))
        return {}

    def clear() -> None:
        outputs.clear()

    try:
        trained("two tasks", 4, torch.float32, (probe("look", collect_terms=look, before_step=clear), probe("sum", **SUM)))
    finally:
        gc.enable()
    assert len(alive) == 16
    assert max(alive) == 0, "the graph of an earlier part was still there"


def test_a_combiner_answers_once_a_step_on_the_rows_of_the_whole() -> None:
    matrices: dict[int, list[Tensor]] = {1: [], 3: []}
    for number, kept in matrices.items():

        def answer(rows: Any, step: Any) -> dict[str, float]:
            order = [rows.names.index(name) for name in ("a", "b")]
            kept.append(rows.matrix[order].clone())  # noqa: B023 - used up before the next turn
            assert set(step.losses) == {"a", "b"}
            return dict.fromkeys(rows.names, 1.0)

        trained("rows of one task, of the other, of both", number, torch.float64, (probe("sum", provide_gradient_combination=answer),))
    assert len(matrices[1]) == len(matrices[3]) == 8
    for one, other in zip(matrices[1], matrices[3], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)


def test_stored_columns_follow_their_rows_into_the_parts() -> None:
    pairs: list[tuple[float, float]] = []

    def mark(batch: Any) -> Any:
        return batch.replace(stored={"twice": StoredColumn(slice(3, len(batch)), 2 * batch.x[3:, 0])})

    def look(step: Any) -> dict[str, Any]:
        for rows, values in step.batch.stored.values():
            pairs.extend(zip((2 * step.batch.x[rows, 0]).tolist(), values.tolist(), strict=True))
        return {}

    stream = separate_task_stream()
    Engine(models.mlp(stream, (8,)), sgd(), [probe("mark", transform_batch=mark, collect_terms=look)], batch_size=24, microbatches=3).run(
        stream
    )
    assert len(pairs) == 2 * 21, "both tasks' rows, which are two segments, carry the column"
    assert all(one == other for one, other in pairs)


def test_episodes_stay_whole() -> None:
    stream = episodes("digits", ways=2, shots=2, queries=3, train_episodes=10, test_episodes=2, held_out=0.3)
    seen: list[tuple[int, tuple[int, ...]]] = []

    def look(step: Any) -> dict[str, Any]:
        seen.append((step.update, tuple(len(episode) for episode in step.batch.by_domain().values())))
        assert all(episode.roles == ("support", "query") for episode in step.batch.by_domain().values())
        return {}

    Engine(models.mlp(stream, (8,)), sgd(), [probe("look", collect_terms=look)], batch_size=5, microbatches=2, evaluate="never").run(stream)
    assert seen == [(0, (10, 10, 10)), (0, (10, 10)), (1, (10, 10, 10)), (1, (10, 10))]


def test_a_run_in_parts_resumes_bit_for_bit(tmp_path: Path) -> None:
    def engine(**options: Any) -> Engine:
        plugins = [Replay(capacity=9, batch_size=5), EWC(strength=3)]
        return Engine(net(), sgd(), plugins, batch_size=10, epochs=2, microbatches=3, checkpoint_every=2, **options)

    stream = class_stream()
    usual, events = final(engine(), stream, output=tmp_path / "straight")
    for update in (3, 7, 10):
        with pytest.raises(Stop):
            engine(progress=stop_at(update)).run(stream, output=tmp_path / str(update))
        result = engine().resume(tmp_path / str(update), stream)
        assert same(dict(result.model.state_dict()), usual), update
        assert same(result.events, events), update


def test_another_number_of_parts_is_another_run(tmp_path: Path) -> None:
    from streamlearn.errors import CheckpointError

    stream = class_stream()
    with pytest.raises(Stop):
        Engine(net(), sgd(), batch_size=8, microbatches=2, progress=stop_at(2)).run(stream, output=tmp_path)
    with pytest.raises(CheckpointError, match="microbatches was 2 and is None now"):
        Engine(net(), sgd(), batch_size=8).resume(tmp_path, stream)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_a_number_of_parts_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"microbatches is .*, but it must be a whole number of at least 1"):
        Engine(net(), sgd(), microbatches=value)
