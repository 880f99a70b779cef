"""Episodes: what is drawn, what is the same every time, and what an evaluation shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, models
from streamlearn.errors import DataError
from streamlearn.streams import Batch, Data, Stream, TensorSource, episodes, rebuild
from streamlearn.streams.data import JoinedData, join
from streamlearn.streams.episodic import Episodes
from tests.core.support import Stop, final, probe, same, sgd, stop_at

FEW = {"ways": 3, "shots": 2, "queries": 4, "train_episodes": 12, "test_episodes": 5}


def digits(**options: Any) -> Stream:
    return episodes("digits", **(FEW | options))


def waves(**options: Any) -> Stream:
    return episodes("sinusoids", **({"shots": 5, "queries": 10, "train_episodes": 12, "test_episodes": 6} | options))


def of(stream: Stream, i: int = 0) -> Batch:
    data = stream[i].data["train"]
    return data.batch(torch.arange(len(data)))


def held(stream: Stream, i: int = 0) -> Batch:
    data = stream.evaluation(i).data
    return data.batch(torch.arange(len(data)))


@pytest.mark.parametrize("build", [digits, waves])
def test_the_same_seed_gives_the_same_episodes_and_another_gives_others(build: Any) -> None:
    one, other, third = build(experiences=2), build(experiences=2), build(experiences=2, seed=1)
    for i in range(2):
        for read in (of, held):
            assert torch.equal(read(one, i).x, read(other, i).x)
            assert same(dict(read(one, i).targets), dict(read(other, i).targets))
            assert not torch.equal(read(one, i).x, read(third, i).x)
    assert not torch.equal(of(one, 0).x, of(one, 1).x), "each experience has episodes of its own"
    assert not torch.equal(held(one, 0).x, held(one, 1).x)
    assert one.hash == other.hash != third.hash
    assert set(of(one, 0).domains).isdisjoint(of(one, 1).domains), "and names of their own"


def test_more_episodes_begin_with_the_same_ones() -> None:
    few, many = of(digits(train_episodes=3)).by_domain(), of(digits(train_episodes=9)).by_domain()
    for name, episode in few.items():
        assert torch.equal(episode.index, many[name].index)


def test_training_and_test_classes_are_disjoint_and_so_are_their_rows() -> None:
    stream = digits(train_episodes=60, test_episodes=60, experiences=2)
    labels, rows = {}, {}
    for purpose, read in (("train", of), ("test", held)):
        source = (stream[0].data["train"] if purpose == "train" else stream.evaluation(0).data).source
        batches = [read(stream, i) for i in range(2)]
        labels[purpose] = {int(source.targets["y"][row]) for batch in batches for row in batch.index.tolist()}
        rows[purpose] = {row.numpy().tobytes() for batch in batches for row in batch.x}
    assert len(labels["train"]) == 7
    assert len(labels["test"]) == 3
    assert labels["train"].isdisjoint(labels["test"])
    assert rows["train"].isdisjoint(rows["test"])


@pytest.mark.parametrize("read", [of, held])
def test_an_episode_has_shots_and_queries_of_each_class_numbered_anew_and_no_row_twice(read: Any) -> None:
    stream = digits(train_episodes=30)
    batch = read(stream)
    source = (stream[0].data["train"] if read is of else stream.evaluation(0).data).source
    numberings = set()
    for episode in batch.by_domain().values():
        assert len(episode) == 3 * (2 + 4)
        assert len(set(episode.index.tolist())) == len(episode)
        support, query = episode.rows("support"), episode.rows("query")
        target = episode.targets[stream.tasks[0].name]
        assert sorted(target[support].tolist()) == sorted([0, 1, 2] * 2)
        assert sorted(target[query].tolist()) == sorted([0, 1, 2] * 4)
        true = source.targets["y"][episode.index]
        numbering = {(int(own), int(label)) for own, label in zip(target, true, strict=True)}
        assert len(numbering) == 3, "one class of the source for each number, the same among support and query rows"
        numberings.add(tuple(label for _, label in sorted(numbering)))
    assert len(numberings) >= 3


def test_a_batch_holds_all_support_rows_and_then_all_query_rows() -> None:
    data = digits()[0].data["train"]
    assert len(data) == 12
    batch = data.batch(torch.tensor([7, 2]))
    assert batch.roles == ("support", "query")
    assert batch.rows("support") == slice(0, 12)
    assert batch.rows("query") == slice(12, 36)
    assert batch.domains == ("train/7", "train/2")
    assert batch.is_one_task
    assert [len(episode) for episode in batch.by_domain().values()] == [18, 18]
    alone = data.batch(torch.tensor([2]))
    assert torch.equal(batch.by_domain()["train/2"].x, alone.x)
    assert torch.equal(alone.x, data.source.take(alone.index).x)


def test_the_ways_of_reading_data_agree() -> None:
    data = digits()[0].data["train"]
    order = torch.tensor([5, 1, 8, 3])
    pieces = list(data.in_order(order, 3))
    assert [len(piece.by_domain()) for piece in pieces] == [3, 1]
    assert [name for piece in pieces for name in piece.domains] == ["train/5", "train/1", "train/8", "train/3"]
    part = data.subset(order)
    assert isinstance(part, Episodes)
    assert len(part) == 4
    assert part.batch(torch.tensor([2])).domains == ("train/8",), "an episode keeps its name"
    assert torch.equal(part.batch(torch.arange(4)).index, data.batch(order).index)
    assert torch.equal(part.batch(torch.arange(4)).targets[data.tasks[0].name], data.batch(order).targets[data.tasks[0].name])
    hidden = data.without_labels()
    assert isinstance(hidden, Episodes)
    bare = hidden.batch(order)
    assert not bare.targets
    assert torch.equal(bare.index, data.batch(order).index)
    assert bare.count_labelled() == 0
    with pytest.raises(DataError, match="rows of 'digits' are asked for one by one, but they are grouped into episodes"):
        data.fetch(torch.tensor([0]))


@pytest.mark.parametrize("build", [digits, waves])
def test_episodes_of_several_experiences_can_be_joined(build: Any) -> None:
    stream = build(experiences=2)
    every = join([stream[0].data["train"], stream[1].data["train"]])
    assert isinstance(every, Episodes if build is digits else JoinedData), "of one source they melt"
    assert len(every) == 24
    batch = every.batch(torch.tensor([1, 20, 3, 13]))
    assert batch.roles == ("support", "query")
    assert batch.rows("support").stop == batch.rows("query").start
    assert set(batch.domains) == {"train/1", "train/3", "train/13", "train/20"}
    for name, episode in batch.by_domain().items():
        number = int(name.split("/")[1])
        alone = stream[number // 12].data["train"].batch(torch.tensor([number % 12]))
        assert torch.equal(episode.x, alone.x)
        assert same(dict(episode.targets), dict(alone.targets))
    mixed = join([stream[0].data["train"], build(shots=1)[0].data["train"]])
    assert isinstance(mixed, JoinedData), "episodes of another make do not melt"


def test_sinusoids_are_sinusoids() -> None:
    """y = A sin(x + φ) = a sin x + b cos x: least squares has no residual, with A in [0.1, 5] and φ in [0, π]."""
    stream = waves(train_episodes=200)
    batch = of(stream)
    amplitudes, phases = [], []
    for episode in batch.by_domain().values():
        x, y = episode.x.double().numpy().ravel(), episode.targets["sinusoids"].double().numpy().ravel()
        assert len(x) == 15
        assert float(np.abs(x).max()) <= 5
        design = np.stack([np.sin(x), np.cos(x)], 1)
        (a, b), *_ = np.linalg.lstsq(design, y, rcond=None)
        assert np.abs(design @ [a, b] - y).max() < 1e-5
        amplitudes.append(float(np.hypot(a, b)))
        phases.append(float(np.arctan2(b, a)))
    assert 0.1 - 1e-4 <= min(amplitudes) < 0.4
    assert 4.7 < max(amplitudes) <= 5 + 1e-4
    assert -1e-4 <= min(phases) < 0.2
    assert np.pi - 0.2 < max(phases) <= np.pi + 1e-4
    assert len({round(a, 4) for a in amplitudes}) > 190
    assert batch.rows("support") == slice(0, 200 * 5)


# ---------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("size", [1024, 36, 1])
def test_an_evaluation_scores_query_rows_and_shows_support_labels_alone(size: int) -> None:
    stream, seen = digits(), []
    name = stream.tasks[0].name

    def predict(batch: Any, evaluation: Any) -> Any:
        support, query = batch.rows("support"), batch.rows("query")
        assert set(batch.targets) == {name}
        shown = batch.labelled_rows(name)
        assert bool(shown[support].all())
        assert not bool(shown[query].any())
        assert not bool(batch.targets[name][query].any()), "what is hidden is not found in the batch"
        truth = stream.evaluation(0).data
        outputs = torch.zeros(len(batch), 3)
        for domain, episode in batch.by_domain().items():
            known = truth.batch(torch.tensor([int(domain.split("/")[1])]))
            assert torch.equal(known.index, episode.index)
            assert torch.equal(known.targets[name][known.rows("support")], episode.targets[name][episode.rows("support")])
        seen.append(len(batch))
        outputs[support, 0] = 1.0
        outputs[query, 1] = 1.0
        return {name: outputs}

    events = final(Engine(models.mlp(stream, (8,)), sgd(), [probe("p", provide_predictions=predict)], evaluation_batch_size=size), stream)[
        1
    ]
    lines = [e for e in events if e["event"] == "evaluation"]
    assert [(line["value"], line["count"]) for line in lines] == [(pytest.approx(1 / 3), 5 * 3 * 4)] * 2
    assert max(seen) <= max(size, 18), "rows per pass, but an episode stays whole"


def test_a_predictor_that_learns_from_the_support_rows_is_right() -> None:
    """Nearest class mean within each episode; the query labels are never needed."""
    stream = digits(shots=5, ways=2, test_episodes=40)
    name = stream.tasks[0].name

    def predict(batch: Any) -> Any:
        outputs = torch.zeros(len(batch), 2)
        rows = {domain: [s.rows for s in batch.segments if s.domain == domain] for domain in batch.domains}
        for support, query in rows.values():
            x = batch.x.flatten(1)
            means = torch.stack([x[support][batch.targets[name][support] == c].mean(0) for c in range(2)])
            outputs[query] = -torch.cdist(x[query], means)
        return {name: outputs}

    events = final(Engine(models.mlp(stream, (8,)), sgd(), [probe("p", provide_predictions=predict)]), stream)[1]
    assert all(e["value"] > 0.85 for e in events if e["event"] == "evaluation")


def test_episodes_are_kept_between_evaluations_only_while_they_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    from streamlearn.core import evaluation

    batch = held(digits(test_episodes=20))
    whole = sum(t.nbytes for t in batch.tensors())
    asked: list[int] = []
    take = TensorSource.take
    monkeypatch.setattr(TensorSource, "take", lambda self, index: (asked.append(len(index)), take(self, index))[1])
    for room, gathered in ((2 * whole, 20 * 18), (whole // 2, 2 * 20 * 18)):
        monkeypatch.setattr(evaluation, "_KEPT_BYTES", room)
        stream = digits(test_episodes=20, train_episodes=1)
        asked.clear()
        Engine(models.mlp(stream, (8,)), sgd(), evaluation_batch_size=36).run(stream)
        assert sum(asked) - 18 == gathered, "two evaluations"


# ---------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("build", [digits, waves])
def test_a_plain_model_trains_on_all_rows(build: Any) -> None:
    stream = build()
    sizes: list[int] = []
    plugin = probe("look", before_step=lambda step: sizes.append(len(step.batch)))
    result = Engine(models.mlp(stream, (8,)), sgd(), [plugin], batch_size=5, epochs=2).run(stream)
    per = len(of(stream)) // 12
    assert sizes == [5 * per, 5 * per, 2 * per] * 2
    (experience,) = (e for e in result.events if e["event"] == "experience")
    assert experience["rows"] == 12 * per, "rows, not episodes"
    epochs = [e for e in result.events if e["event"] == "epoch"]
    assert all(np.isfinite(list(e["losses"].values())).all() for e in epochs)


def test_the_loss_is_the_mean_over_support_and_query_rows_by_hand() -> None:
    stream = waves()
    kept: list[tuple[Tensor, Batch]] = []
    plugin = probe("look", after_step=lambda step: kept.append((step.losses["sinusoids"].detach(), step.batch)))
    Engine(nn.Linear(1, 1), sgd(lr=0.0, momentum=0.0, weight_decay=0.0), [plugin], batch_size=12).run(stream)
    ((loss, batch),) = kept
    assert len(batch) == 12 * 15
    assert float(loss) > 0


@pytest.mark.parametrize("build", [digits, waves])
def test_a_named_stream_is_built_again_and_a_run_resumes_without_it(build: Any, tmp_path: Path) -> None:
    stream = build(experiences=2, seed=3)
    again = rebuild(stream.description)
    assert again.hash == stream.hash
    assert torch.equal(of(again, 1).x, of(stream, 1).x)
    assert torch.equal(held(again, 1).x, held(stream, 1).x)

    def engine(**options: Any) -> Engine:
        return Engine(models.mlp(stream, (8,), dropout=0.2), sgd(), batch_size=5, epochs=2, checkpoint_every=2, **options)

    usual, events = final(engine(), stream, output=tmp_path / "straight")
    for update in (1, 4, 9):
        with pytest.raises(Stop):
            engine(progress=stop_at(update)).run(stream, output=tmp_path / str(update))
        result = engine().resume(tmp_path / str(update))
        assert same(dict(result.model.state_dict()), usual), update
        assert same(result.events, events), update


def test_the_hash_depends_on_every_argument_and_on_the_content() -> None:
    hashes = {digits().hash}
    changes = ({"ways": 2}, {"shots": 1}, {"queries": 3}, {"train_episodes": 13}, {"test_episodes": 6}, {"held_out": 0.4}, {"seed": 2})
    for change in changes:
        hashes.add(digits(**change).hash)
    assert len(hashes) == 8
    x, y = torch.rand(80, 4), torch.arange(80) % 8
    given = [episodes(pair, ways=2, shots=1, queries=1) for pair in ((x, y), (x + 1, y), (x.clone(), y.clone()))]
    assert given[0].hash == given[2].hash != given[1].hash


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 8}, "7 classes of 'digits' train, but episodes have 8: ask for fewer ways, or change held_out"),
        ({"ways": 5}, "3 classes of 'digits' are held out, but episodes have 5"),
        ({"ways": 1}, "ways is 1: give a whole number of at least 2"),
        ({"shots": 0}, "shots is 0"),
        ({"queries": 0}, "queries is 0"),
        ({"train_episodes": 0}, "train_episodes is 0"),
        ({"test_episodes": 1.5}, "test_episodes is 1.5"),
        ({"experiences": 0}, "experiences is 0"),
        ({"held_out": 1.0}, "held_out is 1.0: give a number between 0 and 1"),
        ({"held_out": True}, "held_out is True"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        digits(**options)


def test_too_few_rows_of_a_class_are_refused_with_what_to_do() -> None:
    with pytest.raises(
        DataError, match=r"a class of 'digits' has \d+ rows, fewer than the 402 of an episode: ask for fewer shots or queries"
    ):
        _ = digits(shots=400, queries=2)[0]


def test_it_is_data() -> None:
    assert issubclass(Episodes, Data)
