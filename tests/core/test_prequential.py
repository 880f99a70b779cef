"""Test, then train: what was predicted for target rows before the model learnt from them."""

from __future__ import annotations

import gc
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, models
from streamlearn.core.phases import Phase
from streamlearn.errors import DataError
from streamlearn.plugins import Replay
from streamlearn.streams import EvaluationSet, Experience, Stream, Task, adaptation
from streamlearn.streams.batch import StoredColumn
from streamlearn.streams.data import Data, JoinedData, Target
from streamlearn.streams.sources import TensorSource
from tests.core.support import Stop, blobs, class_stream, final, net, probe, same, sgd, stop_at

T = Task("t", size=6)
EVERY = torch.arange(30)


def target_stream(indices: Tensor = EVERY, experiences: int = 1, **truth: Any) -> Stream:
    """Unlabelled target rows only; evaluation knows their labels."""
    source = blobs(30 * experiences, 6, name="target")

    def known(i: int) -> Data:
        return Data(source, indices + 30 * i, (T,), {"t": Target("y")}, domain="there", **truth)

    hidden = [known(i).without_labels() for i in range(experiences)]
    return Stream(
        "target", experiences, lambda i: Experience(i, (T,), {"target": hidden[i]}, f"e{i}"),
        lambda i: EvaluationSet(i, known(i)), tasks=(T,), input_shape=(6,), description={}, fingerprints=("x",),
    )  # fmt: skip


def entropy(step: Any) -> Tensor:
    """Makes the model move on rows without labels."""
    logits = step.outputs["t"]
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()


def mover(**hooks: Any) -> Any:
    return probe("mover", **({"collect_terms": entropy} | hooks))


def scored(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == "prequential"]


def run(stream: Stream, *plugins: Any, model: nn.Module | None = None, **options: Any) -> list[dict[str, Any]]:
    return scored(final(Engine(model or net(), sgd(lr=0.5), list(plugins), **({"batch_size": 8} | options)), stream)[1])


def by_hand(outputs: list[tuple[Tensor, Tensor]]) -> tuple[float, float, int]:
    """Accuracy and mean loss of (outputs, index) pairs against the labels, which are index mod 6."""
    rows = sum(len(index) for _, index in outputs)
    right = sum(int((o.argmax(1) == index % 6).sum()) for o, index in outputs)
    loss = sum(float(nn.functional.cross_entropy(o, index % 6, reduction="sum")) for o, index in outputs)
    return right / rows, loss / rows, rows


def test_what_is_scored_are_the_outputs_before_the_update_by_hand() -> None:
    kept: list[tuple[Tensor, Tensor]] = []
    later: list[tuple[Tensor, Tensor]] = []

    def before(gradients: Any, step: Any) -> Any:
        kept.append((step.outputs["t"].detach().clone(), step.batch.index))
        return gradients

    def after(step: Any) -> None:
        assert step.updated
        with torch.no_grad():
            later.append((step.run.model.eval()(step.batch.x, "t").clone(), step.batch.index))
        step.run.model.train()

    (line,) = run(target_stream(), mover(transform_gradients=before, after_step=after))
    value, loss, rows = by_hand(kept)
    assert (line["value"], line["count"]) == (value, rows) == (value, 30)
    assert line["loss"] == pytest.approx(loss, rel=1e-5)
    assert line["loss"] != pytest.approx(by_hand(later)[1], rel=1e-3), "not those after it"
    assert (line["experience"], line["task"], line["metric"], line["reason"]) == (0, "t", "accuracy", None)


def test_a_model_that_never_moves_is_scored_in_evaluation_mode() -> None:
    model = net()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (line,) = run(target_stream(), model=model)
    batch = target_stream().evaluation(0).data.batch(EVERY)
    assert same(dict(model.state_dict()), start), "no statistic has moved"
    model.eval()
    value, loss, _ = by_hand([(model(batch.x).detach(), batch.index)])
    assert line["value"] == pytest.approx(value)
    assert line["loss"] == pytest.approx(loss, rel=1e-5)


def twice(phases: Any) -> Any:
    return tuple(p.replace(updates=(("*",), ("*",))) for p in phases)


def around(phases: Any) -> Any:
    """A phase that does nothing comes first, one that meets some of the rows second, and the main one last."""
    (main,) = phases
    half = main.data.subset(torch.arange(18))
    return (Phase("none", main.data, 0), Phase("half", half, 1, role="target"), main)


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize(("phases", "epochs"), [(None, 1), (None, 3), (twice, 1), (twice, 2), (around, 1)])
def test_each_row_is_scored_once_when_it_is_met(phases: Any, epochs: int, microbatches: int) -> None:
    first: dict[int, Tensor] = {}

    def look(step: Any) -> Tensor:
        for row, outputs in zip(step.batch.index.tolist(), step.outputs["t"].detach().clone(), strict=True):
            first.setdefault(row, outputs)
        return entropy(step)

    plugin = mover(collect_terms=look, **({} if phases is None else {"transform_phases": phases}))
    (line,) = run(target_stream(), plugin, epochs=epochs, batch_size=10, microbatches=microbatches)
    rows = torch.tensor(list(first))
    value, loss, _ = by_hand([(torch.stack(list(first.values())), rows)])
    assert (line["count"], len(first)) == (30, 30)
    assert line["value"] == pytest.approx(value)
    assert line["loss"] == pytest.approx(loss, rel=1e-5)


def test_a_row_that_comes_twice_in_a_batch_counts_once() -> None:
    (line,) = run(target_stream(torch.tensor([0, 1, 2, 1, 0, 3])), mover())
    assert line["count"] == 4


def test_rows_that_evaluation_does_not_label_are_not_scored() -> None:
    labelled = torch.arange(30) % 3 == 0
    (line,) = run(target_stream(labelled={"t": labelled}), mover())
    assert line["count"] == 10
    stream = target_stream()
    part = Stream(
        "part", 1, lambda i: stream[0], lambda i: EvaluationSet(0, stream.evaluation(0).data.subset(torch.arange(7))), tasks=(T,),
        input_shape=(6,), description={}, fingerprints=("x",),
    )  # fmt: skip
    assert [event["count"] for event in run(part, mover())] == [7]
    elsewhere = Stream(
        "elsewhere", 1, lambda i: stream[0], lambda i: class_stream().evaluation(0), tasks=(T,), input_shape=(6,), description={},
        fingerprints=("x",),
    )  # fmt: skip
    (line,) = run(elsewhere, mover(), evaluate="end")
    assert (line["value"], line["count"], line["reason"]) == (None, 0, "the set has no row for this task")


def test_other_roles_in_the_batch_are_not_scored_and_training_experiences_have_no_score() -> None:
    stream = adaptation("moons", rows=20, source_free=True)
    stream_tasks = [task.name for task in stream.tasks]

    def look(step: Any) -> None:
        roles.append(step.batch.roles)

    roles: list[tuple[str, ...]] = []

    lines = run(
        stream, Replay(capacity=10, memory="default"), probe("look", before_step=look), model=models.mlp(stream, (8,)), batch_size=8
    )
    assert [(line["experience"], line["task"], line["count"]) for line in lines] == [(1, stream_tasks[0], 20)]
    assert ("target", "memory") in roles


def test_evaluate_never_scores_nothing() -> None:
    assert run(target_stream(), mover(), evaluate="never") == []
    assert len(run(target_stream(), mover(), evaluate="end")) == 1


def test_a_predictor_is_scored_in_place_of_the_model_and_sees_no_labels() -> None:
    seen: list[Any] = []
    updates: list[int] = []

    def predict(batch: Any, evaluation: Any) -> Any:
        assert not evaluation.run.model.training
        assert evaluation.run.experience is None or evaluation.run.clock.inside
        if evaluation.run.clock.inside:
            seen.append((dict(batch.targets), dict(batch.labelled), dict(batch.stored), batch.roles))
            updates.append(evaluation.run.clock.update)
        torch.rand(3)
        return {"t": nn.functional.one_hot((batch.index + batch.index % 2) % 6, 6).float()}

    def labels(batch: Any) -> Any:
        """A plugin joins rows that have labels, and stores something."""
        extra = class_stream()[0].data["train"].batch(torch.arange(3), "memory")
        extra = extra.replace(targets={"t": extra.targets["blobs"]}, labelled={"t": extra.labelled["blobs"]})
        joined = batch.with_rows("memory", extra)
        return joined.replace(stored={"labels": StoredColumn(joined.rows("memory"), joined.targets["t"][joined.rows("memory")])})

    plugin = mover(provide_predictions=predict, transform_batch=labels)
    (line,) = run(target_stream(), plugin, epochs=2)
    assert line["value"] == 0.5, "rows with an even number are right"
    assert line["count"] == 30
    assert seen == [({}, {}, {}, ("target", "memory"))] * 4
    assert updates == [0, 1, 2, 3], "asked once a batch, and not at all when no row is new"


def test_a_predictor_changes_no_weight() -> None:
    plain, _ = final(Engine(net(), sgd(), [mover()], batch_size=8, epochs=2), target_stream())

    def predict(batch: Any, evaluation: Any) -> Any:
        torch.rand(5)
        return {"t": evaluation.run.model(batch.x, "t")}

    other, events = final(Engine(net(), sgd(), [mover(provide_predictions=predict)], batch_size=8, epochs=2), target_stream())
    never, _ = final(Engine(net(), sgd(), [mover()], batch_size=8, epochs=2, evaluate="never"), target_stream())
    assert same(plain, other)
    assert same(plain, never)
    assert len(scored(events)) == 1


def test_a_predictor_without_outputs_for_the_task_is_a_reason() -> None:
    (line,) = run(target_stream(), mover(provide_predictions=lambda batch: {}))
    assert (line["value"], line["reason"]) == (None, "the active predictor gives no outputs for task 't' yet")


def test_labels_in_several_pieces_and_regression() -> None:
    source = blobs(20, 6, name="s")
    r = Task("r", "regression", 6)
    values = {"r": Target("x2")}
    x = source.take(torch.arange(20)).x
    other = TensorSource(x, {"x2": 2 * x}, "regress")
    pieces = [Data(other, torch.arange(n, n + 10), (r,), values, domain=f"d{n}") for n in (0, 10)]
    hidden = JoinedData([piece.without_labels() for piece in pieces])
    stream = Stream(
        "r", 1, lambda i: Experience(0, (r,), {"target": hidden}), lambda i: EvaluationSet(0, JoinedData(pieces)), tasks=(r,),
        input_shape=(6,), description={}, fingerprints=("x",),
    )  # fmt: skip
    model = nn.Linear(6, 6)
    (line,) = run(stream, model=model, batch_size=7)
    assert line["metric"] == "mean_squared_error"
    assert line["value"] == pytest.approx(float((model(x) - 2 * x).square().mean().detach()), rel=1e-5)
    assert line["count"] == 20


# ---------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("update", [1, 2, 4, 6, 9, 11])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_resume_in_mid_experience_gives_the_same_score(update: int, microbatches: int, tmp_path: Path) -> None:
    def engine(**options: Any) -> Engine:
        return Engine(
            net(), sgd(lr=0.5), [mover()], batch_size=10, epochs=2, checkpoint_every=2, microbatches=microbatches, **options
        )  # fmt: skip

    stream = target_stream(experiences=2)
    usual, events = final(engine(), stream, output=tmp_path / "straight")
    assert len(scored(events)) == 2
    with pytest.raises(Stop):
        engine(progress=stop_at(update)).run(stream, output=tmp_path / "broken")
    result = engine().resume(tmp_path / "broken", stream)
    assert same(dict(result.model.state_dict()), usual)
    assert same(result.events, events), "to the last bit"


# ---------------------------------------------------------------------------------------------------- hidden labels


def tensors_within(start: Any, beyond: tuple[Any, ...] = ()) -> list[Tensor]:
    """Every tensor that can be reached from ``start`` by attributes, containers and closures."""
    found, seen, todo = [], {id(item) for item in beyond}, [start]
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, types.ModuleType | type | types.FrameType | str | bytes | int | float):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            found.append(item)
            continue
        if isinstance(item, types.FunctionType):
            todo += [cell.cell_contents for cell in item.__closure__ or () if _full(cell)]
            todo += [*(item.__defaults__ or ())]
            continue
        todo += gc.get_referents(item)
    return found


def _full(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def test_the_walk_over_objects_finds_what_there_is() -> None:
    secret = torch.tensor([5, 3, 1])
    holder = {"a": [lambda: secret]}
    assert any(t is secret for t in tensors_within(holder))
    stream = target_stream()
    assert any(torch.equal(t, EVERY % 6) for t in tensors_within(stream)), "the stream itself knows the labels"


def pair(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, generator=draw), torch.randint(0, 3, (rows,), generator=draw)


@pytest.mark.parametrize("source_free", [False, True])
@pytest.mark.parametrize("predictor", [False, True])
def test_hidden_labels_cannot_be_reached_from_the_run_or_a_step(source_free: bool, predictor: bool) -> None:
    (x, y), (there, secret) = pair(24, 0), pair(18, 1)
    y[:3] = torch.arange(3)
    stream = adaptation((x, y), (there, secret), source_free=source_free)
    task = stream.tasks[0].name
    met: list[int] = []

    def forbidden(tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() == secret.untyped_storage().data_ptr() or (
            tensor.numel() == len(secret) and not tensor.is_floating_point() and torch.equal(tensor.flatten().long(), secret)
        )

    def look(step: Any) -> None:
        if "target" not in step.batch.roles:
            return
        met.append(step.update)
        for place in (step, step.run, step.run.experience, step.run.stream):
            reached = tensors_within(place)
            assert not [t for t in reached if forbidden(t)]
        assert any(torch.equal(t, there) for t in tensors_within(step.run) if t.shape == there.shape), "the walk is no fake"

    def after_evaluation(evaluation: Any) -> None:
        assert not [t for t in tensors_within(evaluation) if forbidden(t)]

    hooks = {"provide_predictions": lambda batch, evaluation: {task: evaluation.run.model(batch.x, task)}} if predictor else {}
    spy = probe("spy", before_step=look, after_step=look, after_evaluation=after_evaluation, **hooks)
    Engine(models.mlp(stream, (8,)), sgd(), [spy], batch_size=9).run(stream)
    assert len(met) >= 4


def test_evaluation_sets_are_out_of_reach_of_plugins() -> None:
    def look(run: Any) -> None:
        with pytest.raises(DataError, match="out of reach of training: steer by rows of role 'validation'"):
            run.stream.evaluation(0)
        with pytest.raises(DataError, match="out of reach"):
            run.stream[1:].evaluation(0)

    stream = class_stream()
    result = Engine(net(), sgd(), [probe("look", before_run=look)]).run(stream)
    assert result.accuracy_matrix.shape == (4, 3)
    assert len(stream.evaluation(0).data) == 20, "the user's own stream is as it was"
    assert stream.hash == stream.for_training().hash
