from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from streamlearn import Engine, models
from streamlearn.core.checkpoint import latest_checkpoint, read_checkpoint
from streamlearn.core.randomness import seed_forward, subseed
from streamlearn.core.sampling import shuffled
from streamlearn.errors import ConfigurationError, DataError
from streamlearn.plugins import ERACE, EWC, LwF, Mixup, Replay
from streamlearn.plugins.regularization.mixup import draw_share, mixed
from streamlearn.streams import Batch, Task
from streamlearn.streams.batch import EVERY_ROW, Segment, StoredColumn
from streamlearn.streams.data import Data, Target
from tests.core.support import Stop, blobs, class_stream, final, growing_stream, net, probe, same, sgd, stop_at, stream_of, two_task_stream


def changed(*plugins: Any, stream: Any = None, model: Any = None, **options: Any) -> list[tuple[Batch, Batch]]:
    """The batches before and after Mixup and whatever else is listed, in order."""
    before: list[Batch] = []
    after: list[Batch] = []
    first = probe("first", transform_batch=lambda batch: before.append(batch) or batch)
    last = probe("last", before_step=lambda step: after.append(step.batch))
    Engine(model or net(), sgd(), [first, *plugins, last], **({"batch_size": 10} | options)).run(stream or class_stream())
    return list(zip(before, after, strict=True))


def explained(before: Batch, after: Batch, task: str, size: int) -> float:
    """The λ with which every row of ``after`` is a mixture of two rows of ``before``; fails when there is none."""
    hot = torch.nn.functional.one_hot(before.targets[task], size).double()
    x, y = before.x.double(), after.x.double()
    shares = []
    for i in range(len(before)):
        errors = []
        for j in range(len(before)):
            gap = x[j] - x[i]
            share = 1.0 if i == j else 1 - float(torch.dot(y[i] - x[i], gap) / torch.dot(gap, gap))
            off = (share * x[i] + (1 - share) * x[j] - y[i]).abs().max() + (
                share * hot[i] + (1 - share) * hot[j] - after.targets[task][i].double()
            ).abs().max()
            errors.append((float(off), share))
        off, share = min(errors)
        assert off < 1e-4
        if share < 1 - 1e-6:  # else the row is its own partner
            shares.append(share)
    assert max(shares) - min(shares) < 1e-3
    return shares[0]


def test_rows_and_targets_are_mixed_with_one_share_and_a_permutation() -> None:
    shares = [explained(before, after, "blobs", 6) for before, after in changed(Mixup(alpha=1.0), epochs=2)]
    assert len({round(share, 6) for share in shares}) == len(shares) == 12
    assert all(0 <= share <= 1 for share in shares)


def test_the_batch_that_is_handed_in_is_left_as_it_is() -> None:
    copies: list[tuple[Batch, list[Any]]] = []
    first = probe("first", transform_batch=lambda batch: copies.append((batch, [t.clone() for t in batch.tensors()])) or batch)
    source = class_stream()
    Engine(net(), sgd(), [first, Mixup(alpha=1.0)], batch_size=10).run(source)
    for batch, tensors in copies:
        assert all(torch.equal(now, then) for now, then in zip(batch.tensors(), tensors, strict=True))


def test_it_equals_a_plain_loop_over_the_papers_two_losses() -> None:
    """λ CE(f(x̃), y_i) + (1 - λ) CE(f(x̃), y_j), as the authors' code has it; seeds and orders are those of the engine."""
    stream = class_stream()[:1]
    drawn: list[tuple[float, Any]] = []

    def look(step: Any) -> None:
        random = step.run.generator(plugin)
        share = draw_share(0.7, random)
        drawn.append((share, torch.randperm(len(step.batch), generator=random)))

    plugin = Mixup(alpha=0.7)
    weights, _ = final(Engine(net(), sgd(), [plugin, probe("look", before_step=look)], batch_size=10, epochs=3, seed=5), stream)
    mine = net()
    optimizer = sgd()(mine.parameters())
    data, update = stream[0].data["train"], 0
    for epoch in range(3):
        for positions in shuffled(len(data), 10, False, 0, 5, 0, 0, epoch).split(10):
            batch = data.batch(positions)
            share, order = drawn[update]
            mine.train()
            seed_forward(subseed(5, "forward"), update)
            outputs = mine(share * batch.x + (1 - share) * batch.x[order])
            y = batch.targets["blobs"]
            loss = torch.nn.functional.cross_entropy
            optimizer.zero_grad()
            (share * loss(outputs, y) + (1 - share) * loss(outputs, y[order])).backward()
            optimizer.step()
            update += 1
    for name, value in mine.state_dict().items():
        torch.testing.assert_close(weights[f"encoder.{name}"], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.2, 3.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    random = torch.Generator().manual_seed(1)
    shares = [draw_share(alpha, random) for _ in range(2000)]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_alpha_zero_returns_the_batch_itself_and_changes_nothing() -> None:
    assert all(before is after for before, after in changed(Mixup(alpha=0)))
    plain, _ = final(Engine(net(), sgd(), batch_size=10), class_stream())
    off, _ = final(Engine(net(), sgd(), [Mixup(alpha=0)], batch_size=10), class_stream())
    assert same(plain, off)


def test_it_changes_training_and_draws_from_no_other_stream() -> None:
    def orders(*plugins: Any) -> list[Any]:
        return [b.index.tolist() for _, b in changed(*plugins)]

    assert orders(Mixup()) == orders()
    plain, _ = final(Engine(net(), sgd(), batch_size=10), class_stream())
    on, _ = final(Engine(net(), sgd(), [Mixup()], batch_size=10), class_stream())
    assert not same(plain, on)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_memory_rows_are_mixed_among_themselves_wherever_replay_is_listed(order: list[int]) -> None:
    plugins = [Mixup(alpha=1.0), Replay(capacity=20)]
    engine = Engine(net(), sgd(), [plugins[i] for i in order])
    assert [p.name for p in engine.plugins] == ["replay", "mixup"]
    clean: list[Batch] = []
    watch = probe("watch", transform_batch=lambda batch: clean.append(batch) or batch)
    both = changed(Replay(capacity=20), watch, Mixup(alpha=1.0))
    for (_, after), before in zip(both, clean, strict=True):
        share = explained(before.select("train"), after.select("train"), "blobs", 6)
        if "memory" in after.roles:
            assert explained(before.select("memory"), after.select("memory"), "blobs", 6) == pytest.approx(share, abs=1e-3)
        assert after.targets["blobs"].dtype == torch.float32


def test_it_trains_with_replay_er_ace_and_others() -> None:
    stream = growing_stream()
    plugins = [Mixup(), Replay(capacity=30, fill="step"), ERACE(), EWC(strength=0.1), LwF(strength=0.1)]
    result = Engine(models.mlp(stream, (16,)), sgd(lr=0.1), plugins, batch_size=10, epochs=6).run(stream)
    assert float(np.mean(result.matrix("t")[-1, :3])) > 0.5


def test_er_ace_sees_every_class_of_a_mixture() -> None:
    masks: list[Any] = []

    def look(supervision: Any, step: Any) -> Any:
        masks.extend((r.active.clone(), r.target) for r in supervision if r.active is not None)
        return supervision

    watch = probe("watch", transform_supervision=look)
    Engine(net(), sgd(), [Replay(capacity=20), Mixup(alpha=1.0), ERACE(), watch], batch_size=10).run(class_stream())
    assert len(masks) == 8
    assert all(bool(active[(target > 0).any(0)].all()) for active, target in masks)


def test_rows_without_a_label_are_left_alone() -> None:
    source, task = blobs(40, 6), Task("t", size=6)
    known = torch.arange(20) % 2 == 0
    data = Data(source, torch.arange(20), (task,), {"t": Target("y")}, labelled={"t": known})
    stream = stream_of([(data, (task,))], (task,))
    for before, after in changed(Mixup(alpha=1.0), stream=stream, batch_size=20):
        rows = before.labelled_rows("t")
        assert torch.equal(after.labelled_rows("t"), rows)
        assert torch.equal(after.x[~rows], before.x[~rows])
        assert float((after.x[rows] - before.x[rows]).abs().max()) > 0.01
        mine = Batch.uniform(before.x[rows], "t", before.targets["t"][rows], before.index[rows])
        explained(mine, Batch.uniform(after.x[rows], "t", after.targets["t"][rows], mine.index), "t", 6)


class FakeRun:
    """Just what the hook reads of a run."""

    def __init__(self, *tasks: Task) -> None:
        self.tasks = {task.name: task for task in tasks}
        self.model = models.Model(torch.nn.Identity(), models.Heads(2, tasks))
        self.run = self

    def value(self, plugin: Any, option: str) -> float:
        return getattr(plugin.config, option)

    def generator(self, plugin: Any, purpose: str = "") -> torch.Generator:
        return torch.Generator().manual_seed(4)


def test_only_rows_with_labels_of_the_same_tasks_meet_and_stored_columns_keep_their_rows() -> None:
    a, r = Task("a", size=3), Task("r", "regression", size=1)
    segments = (Segment("train", 0, 8, ("a", "r")), Segment("memory", 8, 10, ("a",)), Segment("target", 10, 12, ("a",)))
    labelled = {"a": torch.tensor([True] * 4 + [False] * 4 + [True] * 2 + [False] * 2), "r": slice(0, 8)}
    sign = torch.tensor([1.0] * 4 + [-1.0] * 4 + [5.0] * 2 + [9.0] * 2)
    x = (sign * (1 + torch.arange(12) / 100)).unsqueeze(1).repeat(1, 2)
    targets = {"a": torch.tensor([0, 1, 2, 0, 77, 77, 77, 77, 1, 2, 77, 77]), "r": 10 * x[:, :1]}
    stored = {"logits": StoredColumn(slice(8, 10), torch.zeros(2, 3))}
    batch = Batch(x, targets, labelled, segments, torch.arange(12), stored)
    after = Mixup(alpha=1.0).transform_batch(batch, FakeRun(a, r))
    assert torch.equal(after.x[8:], x[8:]), "stored logits, and rows without labels"
    assert after.targets["a"][8:10].tolist() == [[0, 1, 0], [0, 0, 1]]
    assert torch.equal(after.x[:8].sign(), x[:8].sign()), "the two kinds of rows do not meet"
    assert float((after.x[:4] - x[:4]).abs().max()) > 0
    assert float((after.x[4:8] - x[4:8]).abs().max()) > 0
    torch.testing.assert_close(after.targets["r"][:8], 10 * after.x[:8, :1])
    torch.testing.assert_close(after.targets["a"].sum(1), torch.ones(12))
    assert after.stored is batch.stored


def test_several_tasks_share_the_mixture() -> None:
    stream = two_task_stream()
    for before, after in changed(Mixup(alpha=1.0), stream=stream, model=models.mlp(stream, (8,)), batch_size=12):
        assert explained(before, after, "a", 6) == pytest.approx(explained(before, after, "b", 3), abs=1e-3)


@pytest.mark.parametrize("update", [3, 7])
def test_stopped_and_resumed_equals_the_straight_run(update: int, tmp_path: Path) -> None:
    def run(folder: Path, stop: int | None = None) -> Any:
        def engine(**more: Any) -> Engine:
            return Engine(net(), sgd(), [Replay(capacity=9), Mixup()], batch_size=8, epochs=2, checkpoint_every=2, **more)

        if stop is None:
            engine().run(class_stream(), output=folder)
        else:
            with pytest.raises(Stop):
                engine(progress=stop_at(stop)).run(class_stream(), output=folder)
            engine().resume(folder, class_stream())
        state = read_checkpoint(latest_checkpoint(folder / "checkpoints")[0])
        state.pop("times")
        return state

    assert same(run(tmp_path / "broken", update), run(tmp_path / "straight"))


def test_a_row_that_is_its_own_partner_comes_out_bit_for_bit() -> None:
    rows = torch.randn(100, 3)
    for share in (0.1, 0.37, 0.5, 0.9):
        assert torch.equal(mixed(rows, torch.arange(100), share), rows)


def test_bad_options_inputs_and_labels_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="plugin mixup: option 'alpha'"):
        Mixup(alpha=-0.1)
    one = (Segment("train", 0, 2, ("a",)),)
    words = Batch(torch.zeros(2, 3, dtype=torch.int64), {"a": torch.tensor([0, 1])}, {"a": EVERY_ROW}, one, torch.arange(2))
    with pytest.raises(DataError, match=r"mixup met inputs of type torch\.int64, which cannot be mixed"):
        Mixup().transform_batch(words, FakeRun(Task("a", size=3)))
    for label in (3, -1):
        wrong = Batch.uniform(torch.zeros(2, 2), "a", torch.tensor([0, label]), torch.arange(2))
        with pytest.raises(DataError, match=f"task 'a' met label {label}, but it has 3 classes"):
            Mixup().transform_batch(wrong, FakeRun(Task("a", size=3)))
