from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from streamlearn import Engine, models
from streamlearn.core.supervision import Supervision
from streamlearn.errors import CompositionError
from streamlearn.plugins import ERACE, Replay
from streamlearn.plugins.replay.experience_weighting import ExperienceWeighting, mixing_factors
from streamlearn.streams import Task
from streamlearn.streams.data import Data, Target
from tests.core.support import blobs, class_stream, final, net, probe, same, separate_task_stream, sgd, stream_of


def watched(*plugins: Any, stream: Any = None, model: Any = None, **options: Any) -> list[Any]:
    """(experience, batch, outputs, losses, s) of every step."""
    seen: list[Any] = []

    def look(objective: Any, step: Any) -> Any:
        found = objective(step)
        total = sum(float(found.losses[name].detach()) * float(found.shares[name]) for name in found.losses)
        seen.append((step.run.clock.experience, step.batch, {t: step.outputs[t].detach() for t in step.batch.targets}, total))
        return found

    watch = probe("watch", around_objective=look)
    Engine(model or net(), sgd(), [*plugins, watch], **({"batch_size": 10} | options)).run(stream or class_stream())
    return seen


def expected(batch: Any, outputs: Any, k: int) -> float:
    """1/k mean of the incoming losses + (1 - 1/k) mean of the memory's, over all tasks."""
    incoming, memory = [], []
    for task, target in batch.targets.items():
        each = cross_entropy(outputs[task], target, reduction="none")
        rows = batch.labelled_rows(task)
        old = torch.zeros(len(batch), dtype=torch.bool)
        for segment in batch.segments:
            old[segment.rows] = segment.role == "memory"
        incoming.append(each[rows & ~old])
        memory.append(each[rows & old])
    if not len(torch.cat(memory)):
        return float(torch.cat(incoming).mean())
    return float(torch.cat(incoming).mean() / k + (1 - 1 / k) * torch.cat(memory).mean())


@pytest.mark.parametrize("rows", [4, 10, 25])
def test_incoming_rows_make_up_one_kth_whatever_the_number_of_memory_rows(rows: int) -> None:
    steps = watched(Replay(capacity=40, batch_size=rows), ExperienceWeighting())
    for experience, batch, outputs, total in steps:
        assert total == pytest.approx(expected(batch, outputs, experience + 1), rel=1e-5)
    assert {len(batch) for _, batch, *_ in steps} >= {10, 10 + min(rows, 20)}


def test_in_the_second_experience_equal_numbers_of_rows_are_the_plain_mean() -> None:
    def weights(*plugins: Any) -> Any:
        return final(Engine(net(), sgd(), [Replay(capacity=40, batch_size=10), *plugins], batch_size=10), class_stream()[:2])[0]

    plain, weighted = weights(), weights(ExperienceWeighting())
    for name, value in plain.items():
        torch.testing.assert_close(weighted[name], value)


def test_it_changes_training_from_the_third_experience_on() -> None:
    def weights(*plugins: Any) -> Any:
        return final(Engine(net(), sgd(), [Replay(capacity=40), *plugins], batch_size=10), class_stream())[0]

    plain, weighted = weights(), weights(ExperienceWeighting())
    assert any(not torch.allclose(plain[name], weighted[name], atol=1e-3) for name in plain)


def test_several_tasks_share_it() -> None:
    stream = separate_task_stream(3)
    for experience, batch, outputs, total in watched(
        Replay(capacity=20, batch_size=7), ExperienceWeighting(), stream=stream, model=models.mlp(stream, (8,))
    ):
        assert total == pytest.approx(expected(batch, outputs, experience + 1), rel=1e-5)


def test_rows_without_a_label_have_no_part() -> None:
    source, task = blobs(60, 6), Task("t", size=6)
    pieces = []
    for i in range(3):
        rows = torch.arange(20 * i, 20 * i + 20)
        pieces.append((Data(source, rows, (task,), {"t": Target("y")}, labelled={"t": torch.arange(20) % 3 == 0}), (task,)))
    for experience, batch, outputs, total in watched(Replay(capacity=20), ExperienceWeighting(), stream=stream_of(pieces, (task,))):
        if batch.count_labelled():
            assert total == pytest.approx(expected(batch, outputs, experience + 1), rel=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_it_stands_beside_er_ace_in_either_order(reverse: bool) -> None:
    records: list[Supervision] = []

    def look(supervision: Any, step: Any) -> Any:
        if step.run.clock.experience == 2:
            records.extend(supervision)
        return supervision

    watch = probe("watch", transform_supervision=look)
    both = [ERACE(), ExperienceWeighting()]
    plugins = [Replay(capacity=40, batch_size=5), *(both[::-1] if reverse else both), watch]
    Engine(net(), sgd(), plugins, batch_size=20).run(class_stream())
    incoming, memory = records
    assert (len(incoming.target), len(memory.target)) == (20, 5)
    torch.testing.assert_close(incoming.weight, torch.full((20,), 25 / 3 / 20))
    torch.testing.assert_close(memory.weight, torch.full((5,), 25 * 2 / 3 / 5))
    assert int(incoming.active.sum()) == 2


def test_weights_that_are_there_already_hold_within_each_kind() -> None:
    records: list[Any] = []
    weigh = probe(
        "weigh",
        transform_supervision=lambda supervision: tuple(r.replace(weight=1.0 + torch.arange(len(r.target))) for r in supervision),
    )
    watch = probe("watch", transform_supervision=lambda supervision: records.append(supervision[0].weight) or supervision)
    Engine(net(), sgd(), [Replay(capacity=40, batch_size=20), weigh, ExperienceWeighting(), watch], batch_size=20).run(class_stream())
    first, _, third = records
    torch.testing.assert_close(first, 1.0 + torch.arange(20))
    torch.testing.assert_close(third[:20] / third[0], 1.0 + torch.arange(20))
    torch.testing.assert_close(third[20:] / third[20], (21.0 + torch.arange(20)) / 21)
    assert float(third[:20].sum() / third.sum()) == pytest.approx(1 / 3)
    assert float(third.sum()) == pytest.approx(40 * 41 / 2)


def test_factors_keep_the_total() -> None:
    a, b = mixing_factors(7.0, 2.0, 5)
    assert 7 * a == pytest.approx(9 / 5)
    assert 7 * a + 2 * b == pytest.approx(9)
    assert mixing_factors(3.0, 1.0, 1) == (pytest.approx(4 / 3), 0.0)


def test_without_a_memory_row_nothing_changes_bit_for_bit() -> None:
    def weights(*plugins: Any) -> Any:
        return final(Engine(net(), sgd(), [Replay(capacity=40), *plugins], batch_size=10), class_stream()[:1])[0]

    assert same(weights(), weights(ExperienceWeighting()))


def test_it_needs_replay() -> None:
    with pytest.raises(CompositionError, match="experience_weighting needs 'replay'"):
        Engine(net(), sgd(), [ExperienceWeighting()])
