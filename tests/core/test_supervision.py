from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from streamlearn import Engine, models
from streamlearn.core.supervision import Supervision, losses_of_rows
from streamlearn.errors import DivergenceError
from streamlearn.streams import Batch, Task
from streamlearn.streams.batch import EVERY_ROW, Segment
from streamlearn.streams.data import Data, Target
from tests.core.support import blobs, net, probe, separate_task_stream, sgd, stream_of, two_task_stream

TASKS = {"a": Task("a", size=3), "b": Task("b", size=2), "r": Task("r", "regression", size=2)}
A, B = (
    torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.0], [0.0, 1.0, 3.0], [1.0, 2.0, 0.0]]),
    torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [0.0, 1.0]]),
)
YA, YB = torch.tensor([0, 2, 1, 1]), torch.tensor([1, 1, 0, 0])


def batch_of(rows: int = 4) -> Batch:
    return Batch(torch.zeros(rows, 2), {}, {}, (Segment("train", 0, rows, ("a", "b")),), torch.arange(rows))


def reduced(*records: Supervision, given: Any = None) -> tuple[dict[str, float], dict[str, float], float]:
    found = losses_of_rows(records, TASKS, batch_of(), given)
    losses = {name: float(loss) for name, loss in found.losses.items()}
    shares = {name: float(share) for name, share in found.shares.items()}
    return losses, shares, sum(losses[name] * shares[name] for name in losses)


def each(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.stack([-torch.log_softmax(o, 0)[t] for o, t in zip(outputs, target, strict=True)])


def test_every_row_of_one_task_is_the_mean_over_rows() -> None:
    losses, shares, total = reduced(Supervision("a", "a", A, YA))
    assert shares == {"a": 1.0}
    assert losses["a"] == total == pytest.approx(float(each(A, YA).mean()))


def test_each_row_of_one_of_two_tasks_is_the_mean_over_rows() -> None:
    first, rest = slice(0, 1), slice(1, 4)
    losses, shares, total = reduced(
        Supervision("a", "a", A[first], YA[first], rows=first), Supervision("b", "b", B[rest], YB[rest], rows=rest)
    )
    assert shares == {"a": 0.25, "b": 0.75}
    assert losses["b"] == pytest.approx(float(each(B[rest], YB[rest]).mean()))
    assert total == pytest.approx(float(torch.cat([each(A[first], YA[first]), each(B[rest], YB[rest])]).mean()))


def test_every_row_of_both_tasks_is_the_sum_of_task_means() -> None:
    _, shares, total = reduced(Supervision("a", "a", A, YA), Supervision("b", "b", B, YB))
    assert shares == {"a": 1.0, "b": 1.0}
    assert total == pytest.approx(float(each(A, YA).mean() + each(B, YB).mean()))


def test_partly_overlapping_labels() -> None:
    """Rows 0, 1 carry a; rows 1, 2, 3 carry b: 5 labels on 4 rows, so the total is (sum of all losses) / 4."""
    a, b = torch.tensor([0, 1]), torch.tensor([1, 2, 3])
    _, shares, total = reduced(Supervision("a", "a", A[a], YA[a], rows=a), Supervision("b", "b", B[b], YB[b], rows=b))
    assert shares == {"a": pytest.approx(2 / 5 * 5 / 4), "b": pytest.approx(3 / 5 * 5 / 4)}
    assert total == pytest.approx(float(each(A[a], YA[a]).sum() + each(B[b], YB[b]).sum()) / 4)


def test_unlabelled_rows_do_not_count() -> None:
    rows = torch.tensor([2])
    _, shares, total = reduced(Supervision("a", "a", A[rows], YA[rows], rows=rows))
    assert shares == {"a": 1.0}
    assert total == pytest.approx(float(each(A, YA)[2]))


def test_weights_scale_and_several_records_of_one_row() -> None:
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0])
    losses, shares, _ = reduced(Supervision("a", "a", A, YA, weight=weight))
    assert losses["a"] == pytest.approx(float((weight * each(A, YA)).sum() / 4))
    assert shares == {"a": 1.0}
    losses, _, _ = reduced(Supervision("a", "a", A, YA, scale=3.0))
    assert losses["a"] == pytest.approx(3 * float(each(A, YA).mean()))
    one, two = slice(0, 2), slice(2, 4)
    losses, shares, _ = reduced(
        Supervision("a", "a", A[one], YA[one], weight=torch.tensor([0.5, 0.5]), rows=one),
        Supervision("a", "a", A[two], YA[two], scale=2.0, rows=two),
    )
    loss = each(A, YA)
    assert losses == {"a": pytest.approx(float((0.5 * loss[:2].sum() + 2.0 * loss[2:].sum()) / 3))}
    assert shares == {"a": pytest.approx(1.0)}


def test_a_row_whose_weights_are_all_zero_is_zero_and_not_nan() -> None:
    losses, shares, total = reduced(Supervision("a", "a", A, YA, weight=torch.zeros(4)), Supervision("b", "b", B, YB))
    assert losses["a"] == 0.0
    assert shares["a"] == 0.0
    assert total == pytest.approx(losses["b"] * shares["b"])


def test_inactive_outputs_get_no_probability_and_no_gradient() -> None:
    outputs = A.clone().requires_grad_(True)
    active = torch.tensor([True, True, False])
    target = torch.tensor([0, 1, 1, 0])
    found = losses_of_rows([Supervision("a", "a", outputs, target, active=active)], TASKS, batch_of())
    assert float(found.losses["a"].detach()) == pytest.approx(float(each(A[:, :2], target).mean()))
    found.losses["a"].backward()
    assert bool((outputs.grad[:, 2] == 0).all())
    per_row = torch.tensor([[True, True, True], [True, False, True], [False, True, True], [True, True, True]])
    losses, _, _ = reduced(Supervision("a", "a", A, YA, active=per_row))
    expected = [float(-torch.log_softmax(A[i][per_row[i]], 0)[per_row[i].nonzero().flatten().tolist().index(int(YA[i]))]) for i in range(4)]
    assert losses["a"] == pytest.approx(sum(expected) / 4)


def test_soft_targets_also_under_a_mask() -> None:
    soft = torch.tensor([[0.5, 0.5, 0.0]]).expand(4, 3)
    losses, _, _ = reduced(Supervision("a", "a", A, soft))
    assert losses["a"] == pytest.approx(float(-(soft * torch.log_softmax(A, 1)).sum(1).mean()))
    losses, _, _ = reduced(Supervision("a", "a", A, soft, active=torch.tensor([True, True, False])))
    assert losses["a"] == pytest.approx(float(-(0.5 * torch.log_softmax(A[:, :2], 1)).sum(1).mean()))


def test_regression_is_the_squared_error_and_given_losses_replace_the_tasks_own() -> None:
    values = torch.ones(4, 2)
    losses, _, _ = reduced(Supervision("r", "r", B, values), Supervision("a", "a", A, YA))
    assert losses["r"] == pytest.approx(float(F.mse_loss(B, values)))
    losses, _, _ = reduced(Supervision("a", "a", A, YA), given=[torch.tensor([1.0, 2.0, 3.0, 6.0])])
    assert losses == {"a": 3.0}


# ------------------------------------------------------------------------------------------------ in a run


def losses_seen(stream: Any, *plugins: Any, **options: Any) -> list[dict[str, float]]:
    kept: list[dict[str, float]] = []
    watch = probe("watch", after_step=lambda step: kept.append({n: float(loss.detach()) for n, loss in step.losses.items()}))
    Engine(models.mlp(stream, (8,)), sgd(), [*plugins, watch], batch_size=8, **options).run(stream)
    return kept


def test_an_absent_task_is_a_missing_row() -> None:
    stream = separate_task_stream(1)
    seen = losses_seen(stream, probe("only_b", provide_task_probabilities=lambda: {"b": 1.0}))
    assert [set(losses) for losses in seen] == [{"b"}] * 3


def test_partly_labelled_rows_never_give_nan_and_a_batch_without_labels_makes_no_update() -> None:
    source, task = blobs(24, 6), Task("t", size=6)
    labelled = torch.zeros(24, dtype=torch.bool)
    labelled[3] = True
    data = Data(source, torch.arange(24), (task,), {"t": Target("y")}, labelled={"t": labelled})
    seen = losses_seen(stream_of([(data, (task,))], (task,)))
    assert sorted(map(set, seen), key=len) == [set(), set(), {"t"}]
    assert all(math.isfinite(value) for losses in seen for value in losses.values())


def test_renamed_rows_and_extra_rows_reach_the_record() -> None:
    def split(supervision: Any, step: Any) -> Any:
        (record,) = supervision
        half = len(step.batch) // 2
        return tuple(
            record.replace(row=f"t/{n}", outputs=record.outputs[s], target=record.target[s], rows=s)
            for n, s in (("one", slice(0, half)), ("two", slice(half, 8)))
        )

    stream = separate_task_stream(1)
    seen = losses_seen(stream, probe("only_b", provide_task_probabilities=lambda: {"b": 1.0}), probe("split", transform_supervision=split))
    assert all(set(losses) == {"t/one", "t/two"} for losses in seen)


def test_the_loss_that_is_minimised_is_the_sum_of_task_means() -> None:
    stream, kept = two_task_stream(), []

    def weigh_and_look(step: Any) -> None:
        rows = step.rows
        kept.append(dict(rows.shares))
        expected = sum(F.cross_entropy(step.outputs[t], step.batch.targets[t]) for t in ("a", "b"))
        torch.testing.assert_close(sum(rows.losses[n] * rows.shares[n] for n in rows.losses), expected)

    Engine(models.mlp(stream, (8,)), sgd(), [probe("look", collect_terms=weigh_and_look)], batch_size=8).run(stream)
    assert kept == [{"a": 1.0, "b": 1.0}] * 3


def test_a_loss_that_is_not_finite_names_row_or_term_and_place_and_moves_nothing() -> None:
    model = net()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    stream = stream_of(
        [(Data(blobs(), torch.arange(12), (Task("t", size=6),), {"t": Target("y")}), (Task("t", size=6),))], (Task("t", size=6),)
    )
    bad = probe("bad", collect_terms=lambda step: {"pull": step.parameters["encoder.out.bias"].sum() * float("nan")})
    with pytest.raises(
        DivergenceError, match=r"training diverged at experience 0, .*step 0: term 'bad/pull' is nan\. The update was not made; start again"
    ):
        Engine(model, sgd(), [bad]).run(stream)
    assert all(torch.equal(p, start[n]) for n, p in model.named_parameters())
    worse = probe("worse", transform_supervision=lambda supervision: tuple(r.replace(scale=float("inf")) for r in supervision))
    with pytest.raises(DivergenceError, match="loss of row 't' is inf"):
        Engine(model, sgd(), [worse]).run(stream)
    with pytest.raises(DivergenceError, match="no single loss or term, but their weighted sum is nan"):
        Engine(model, sgd(), [probe("weigh", provide_weighting=lambda losses: losses["t"] * float("nan"))]).run(stream)
    assert all(torch.equal(p, start[n]) for n, p in model.named_parameters())
    assert slice(None) == EVERY_ROW
