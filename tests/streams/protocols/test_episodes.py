"""Episodes: what is drawn, what is the same every time, and what an evaluation shows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from streamlearn import Engine, models, streams
from streamlearn.errors import DataError, UnknownNameError
from streamlearn.plugins import MAML
from streamlearn.streams import Batch, Data, Stream, TensorSource, build_chain, episodes, rebuild
from streamlearn.streams.data import JoinedData, join
from streamlearn.streams.protocols.episodes import Episodes
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
        DataError, match=r"class \d of 'digits' has \d+ rows, fewer than the 402 of an episode: ask for fewer shots or queries"
    ):
        digits(shots=400, queries=2)


def test_it_is_data() -> None:
    assert issubclass(Episodes, Data)
    assert streams.Episodes is Episodes


# ---------------------------------------------------------------------------------------------------- what is drawn


def many_classes(classes: int, rows: int, name: str, start: int = 0, side: int = 4) -> TensorSource:
    """Every row holds its class and its number among the rows of the class, so that it can be told from its inputs."""
    y = (torch.arange(classes * rows) // rows)[torch.randperm(classes * rows, generator=torch.Generator().manual_seed(classes))]
    x = torch.full((len(y), 1, side, side), 0.0)
    x[:, 0, 0, 0] = torch.arange(len(y)) + start
    return TensorSource(x, {"y": y}, name)


def rows_of(data: Any) -> set[tuple[str, int]]:
    """The rows that come, with their sources."""
    return {(part.source.name, row) for part in data.parts() for row in part.indices.tolist()}


@given(
    classes=st.integers(4, 12), rows=st.integers(2, 6), ways=st.integers(2, 4), shots=st.integers(1, 3), queries=st.integers(1, 3),
    held_out=st.floats(0.1, 0.9), seed=st.integers(0, 10**6),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_classes_and_rows_of_training_and_evaluation_are_disjoint(
    classes: int, rows: int, ways: int, shots: int, queries: int, held_out: float, seed: int
) -> None:
    source = many_classes(classes, rows, "many")
    held_back = round(held_out * classes)
    options = {"ways": ways, "shots": shots, "queries": queries, "train_episodes": 6, "test_episodes": 6, "held_out": held_out}
    if rows < shots + queries or held_back < ways or classes - held_back < ways:
        with pytest.raises(DataError, match="ask for fewer"):
            episodes(source, seed=seed, **options)
        return
    stream = episodes(source, 2, seed=seed, **options)
    met: dict[str, set[int]] = {"train": set(), "test": set()}
    labels = source.targets["y"]
    for i, experience in enumerate(stream):
        for purpose, data in (("train", experience.data["train"]), ("test", stream.evaluation(i).data)):
            found = labels[data.indices].view(6, ways * (shots + queries))
            met[purpose].update(found.flatten().tolist())
            own = data.column(stream.tasks[0].name).view_as(found)
            for e in range(6):
                assert len(set(data.indices.view_as(found)[e].tolist())) == found.shape[1], "support and query rows differ"
                pairs = set(zip(own[e].tolist(), found[e].tolist(), strict=True))
                assert sorted(number for number, _ in pairs) == list(range(ways)), "one number for each class"
                assert len({label for _, label in pairs}) == ways
                assert torch.bincount(own[e][: ways * shots]).tolist() == [shots] * ways
        assert experience.classes == {f"many/{ways}-way": tuple(range(ways))}
    assert met["train"].isdisjoint(met["test"])
    assert len(met["test"]) <= held_back
    again = episodes(source, 2, seed=seed, **options)
    assert torch.equal(again[1].data["train"].indices, stream[1].data["train"].indices)
    assert torch.equal(list(stream)[1:][0].data["train"].indices, stream[1:][0].data["train"].indices)


def test_every_row_of_a_class_takes_part_and_held_out_labels_are_not_in_reach() -> None:
    source = many_classes(10, 5, "many")
    stream = episodes(source, ways=2, shots=1, queries=1, train_episodes=400, test_episodes=400)
    train, test = stream[0].data["train"], stream.evaluation(0).data
    labels = source.targets["y"]
    assert len(set(train.indices.tolist())) == 35, "all rows of seven classes"
    assert len(set(test.indices.tolist())) == 15
    hidden = torch.isin(labels, labels[test.indices])
    assert not bool(train.source.targets["y"][hidden].any())
    assert torch.equal(train.source.targets["y"][~hidden], labels[~hidden])


def test_classes_without_rows_between_others_are_no_classes() -> None:
    y = torch.arange(60) // 6 * 10**9
    stream = episodes((torch.rand(60, 3), y), ways=3, shots=1, queries=1, train_episodes=50, test_episodes=20)
    assert len(set(y[stream[0].data["train"].indices].tolist())) == 7


def test_test_classes_of_their_own_are_numbered_as_they_like() -> None:
    trained, asked = many_classes(4, 4, "few"), many_classes(9, 3, "more", start=1000)
    stream = episodes(trained, ways=4, shots=1, queries=2, train_episodes=30, test_episodes=200, test=asked, held_out=0.9)
    train, test = stream[0].data["train"], stream.evaluation(0).data
    assert set(trained.targets["y"][train.indices].tolist()) == set(range(4)), "all classes train"
    assert set(asked.targets["y"][test.indices].tolist()) == set(range(9))
    assert train.source is trained
    assert test.source is asked
    assert (train.domain, test.domain) == ("train/", "test/")
    assert len(stream.fingerprints) == 2
    with pytest.raises(DataError, match=r"4 classes of 'few' are for testing, but episodes have 5: ask for fewer ways$"):
        episodes(asked, ways=5, shots=1, queries=1, test=trained)
    with pytest.raises(DataError, match="source 'few' is given for training and for testing"):
        episodes(trained, ways=2, shots=1, queries=1, test=trained)
    with pytest.raises(DataError, match=r"'more' has inputs of shape \(1, 4, 4\), 'flat' of \(3,\): bring all to one shape"):
        episodes(TensorSource(torch.rand(8, 3), {"y": torch.arange(8) // 2}, "flat"), ways=2, shots=1, queries=1, test=asked)


def test_a_named_test_source_gives_its_test_rows() -> None:
    stream = episodes("digits", ways=3, shots=1, queries=2, train_episodes=60, test_episodes=60, test="Digits")
    assert stream.evaluation(0).data.source.name == "digits/test"
    assert stream.description["test"] == "digits"
    again = rebuild(json.loads(json.dumps(stream.description)))
    assert again.hash == stream.hash
    assert torch.equal(again.evaluation(0).data.indices, stream.evaluation(0).data.indices)


def test_a_thousand_episodes_of_twenty_ways_are_drawn_without_asking_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    source = many_classes(964, 15, "characters", side=2)
    monkeypatch.setattr(TensorSource, "take", lambda self, index: pytest.fail("inputs are read"))
    data = episodes(source, ways=20, shots=1, queries=10)[0].data["train"]
    assert len(data) == 1000
    assert len(set(source.targets["y"][data.indices].tolist())) > 600


# ---------------------------------------------------------------------------------------------------- several families


def mixed(**options: Any) -> Stream:
    return episodes(["sinusoids", "lines", "steps"], **({"train_episodes": 30, "test_episodes": 12} | options))


def test_each_episode_draws_its_family() -> None:
    stream = mixed(train_episodes=600)
    (task,) = stream.tasks
    assert (task.name, task.kind, stream.input_shape) == ("sinusoids+lines+steps", "regression", (1,))
    data = stream[0].data["train"]
    assert len(data) == 600
    counts = {part.domain: len(part) for part in data.parts()}
    assert set(counts) == {"train/sinusoids/", "train/lines/", "train/steps/"}
    assert min(counts.values()) > 150
    numbers = sorted(int(number) for part in data.parts() for number in part.numbers)
    assert numbers == list(range(600)), "one family for each episode"
    batch = data.batch(torch.arange(600))
    assert len(batch.by_domain()) == 600
    for domain, episode in batch.by_domain().items():
        values = episode.targets[task.name]
        assert episode.roles == ("support", "query")
        assert ("steps" in domain) == (set(values.flatten().tolist()) <= {-1.0, 1.0})


def test_more_episodes_of_several_families_draw_the_same_families_first() -> None:
    def families(count: int) -> dict[int, str]:
        return {int(n): part.domain for part in mixed(train_episodes=count)[0].data["train"].parts() for n in part.numbers}

    few, many = families(20), families(50)
    assert few == {number: domain for number, domain in many.items() if number < 20}


@given(seed=st.integers(0, 10**6), count=st.integers(1, 4), experiences=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_a_stream_of_several_families_is_a_function_of_its_description(seed: int, count: int, experiences: int) -> None:
    stream = mixed(seed=seed, train_episodes=count, experiences=experiences)
    again, other = rebuild(json.loads(json.dumps(stream.description))), mixed(seed=seed + 1, train_episodes=count, experiences=experiences)
    assert again.hash == stream.hash != other.hash
    walked = list(stream)
    for i in range(experiences):
        assert torch.equal(of(again, i).x, of(stream, i).x)
        assert torch.equal(of(stream[i:], 0).x, of(stream, i).x)
        assert torch.equal(walked[i].data["train"].batch(torch.arange(count)).x, of(stream, i).x)
        assert not torch.equal(of(other, i).x, of(stream, i).x)
        assert of(again, i).domains == of(stream, i).domains


def test_a_list_of_one_family_is_that_family() -> None:
    one, plain = episodes(["sinusoids"], train_episodes=5), episodes("sinusoids", train_episodes=5)
    assert one.hash == plain.hash
    assert of(one).domains == ("train/0", "train/1", "train/2", "train/3", "train/4")
    assert episodes(["digits"], **FEW).hash == digits().hash


def test_held_out_families_are_met_in_evaluations_alone() -> None:
    stream = mixed(held_out_families=["lines", "steps"], experiences=3)
    for i, experience in enumerate(stream):
        assert {part.domain for part in experience.data["train"].parts()} == {"train/sinusoids/"}
        assert {part.domain for part in stream.evaluation(i).data.parts()} == {"test/lines/", "test/steps/"}
    assert rebuild(stream.description).hash == stream.hash
    assert mixed(held_out_families="lines").description["held_out_families"] == ["lines"]
    several = [many_classes(5, 4, "a"), many_classes(6, 4, "b", start=500)]
    stream = episodes(several, ways=4, shots=1, queries=1, train_episodes=100, held_out_families=["b"])
    train, test = stream[0].data["train"], stream.evaluation(0).data
    assert (train.source, test.source) == (several[0], several[1])
    assert set(several[0].targets["y"][train.indices].tolist()) == set(range(5)), "no class of it is held out"
    assert (train.domain, test.domain) == ("train/a/", "test/b/")


def test_episodes_of_several_sources_come_in_one_shape_with_classes_held_out_of_each() -> None:
    large, small = many_classes(8, 4, "large", side=6), many_classes(8, 5, "small", side=3)
    stream = episodes([large, small], ways=2, shots=1, queries=2, train_episodes=200, test_episodes=200, held_out=0.25)
    (task,) = stream.tasks
    assert task.name == "large+small/2-way"
    met: dict[str, dict[str, set[int]]] = {"train": {}, "test": {}}
    for purpose, data in (("train", stream[0].data["train"]), ("test", stream.evaluation(0).data)):
        batch = data.batch(torch.arange(200))
        assert batch.x.shape == (200 * 6, 1, 6, 6)
        for part, source in zip(data.parts(), (large, small), strict=True):
            assert part.domain == f"{purpose}/{source.name}/"
            met[purpose][source.name] = set(source.targets["y"][part.indices].tolist())
        assert 60 < len(data.parts()[0]) < 140
    for name in ("large", "small"):
        assert len(met["train"][name]) == 6
        assert len(met["test"][name]) == 2
        assert met["train"][name].isdisjoint(met["test"][name])
    assert met["test"]["large"] != met["test"]["small"], "each source draws its own"
    assert rows_of(stream[0].data["train"]).isdisjoint(rows_of(stream.evaluation(0).data))


def test_sources_of_one_name_are_told_apart_as_they_were_written() -> None:
    stream = episodes(["moons:seed=1", "moons:seed=2"], ways=2, shots=1, queries=1, train_episodes=10, held_out_families=["moons:seed=2"])
    assert stream.evaluation(0).data.domain == "test/moons:seed=2/"
    assert rebuild(json.loads(json.dumps(stream.description))).hash == stream.hash


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ([], {}, DataError, "source is an empty list"),
        (["sinusoids", "digits"], {}, DataError, r"source lists functions \(sinusoids\) among data sets"),
        (["lines", "lines"], {}, DataError, "source lists 'lines' twice"),
        (["digits", "digits"], {}, DataError, "two sources are called 'digits'"),
        ("sinusoid", {}, UnknownNameError, "unknown source 'sinusoid': did you mean 'sinusoids'"),
        ("digits:row=3", {}, UnknownNameError, "unknown option of source digits"),
        ("lines", {"test": "digits"}, DataError, "test is for episodes of classes"),
        (["lines", "steps"], {"held_out_families": ["step"]}, UnknownNameError, "unknown family 'step': did you mean 'steps'"),
        (["lines", "steps"], {"held_out_families": ["steps", "lines"]}, DataError, "holds out all of lines, steps"),
        (["lines", "steps"], {"held_out_families": []}, DataError, r"held_out_families is \[\]: give a list of names"),
        (["digits", "usps"], {"held_out_families": ["digits"], "test": "iris"}, DataError, "give one of them"),
        (["digits", 7], {}, DataError, "source 1: a int is no source"),
        (["digits", "iris"], {"ways": 2}, DataError, r"'iris' has inputs of shape \(4,\), 'digits' of \(1, 8, 8\)"),
    ],
)
def test_families_that_do_not_fit_together_are_refused(source: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    if "usps" in source:
        source = ["digits", many_classes(10, 20, "usps")]
    with pytest.raises(error, match=message):
        episodes(source, **options)


def test_inputs_of_two_types_are_refused() -> None:
    whole = TensorSource(torch.arange(40).view(20, 2), {"y": torch.arange(20) // 5}, "tokens")
    real = TensorSource(torch.rand(20, 2), {"y": torch.arange(20) // 5}, "real")
    with pytest.raises(DataError, match="source 'tokens' has int64 inputs, 'real' float32: bring all to one type"):
        episodes([real, whole], ways=2, shots=1, queries=1)


def test_a_stream_may_be_endless() -> None:
    stream = mixed(experiences="endless")
    assert stream.endless
    far = stream[10**6]
    assert set(far.data["train"].batch(torch.arange(30)).domains).isdisjoint(of(stream).domains)
    assert torch.equal(far.data["train"].batch(torch.arange(30)).x, of(stream[10**6 : 10**6 + 2]).x)
    assert stream[5:7].evaluation(1).name == "new episodes 6"
    assert stream.description["experiences"] == "endless"
    assert rebuild(json.loads(json.dumps(stream.description))).endless


def classes_of_two_sources() -> Stream:
    return episodes([many_classes(6, 8, "a"), many_classes(7, 8, "b")], **(FEW | {"held_out": 0.5}))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("build", [mixed, classes_of_two_sources])
def test_maml_trains_on_several_families(build: Any, order: Any) -> None:
    stream, seen = build(), list[set[str]]()
    look = probe("look", before_step=lambda step: seen.append({domain.split("/")[1] for domain in step.batch.domains}))
    result = Engine(models.mlp(stream, (8,)), sgd(lr=0.001), [MAML(steps=1, rate=0.01, order=order), look], batch_size=8).run(stream)
    assert max(map(len, seen)) > 1, "a batch mixes families"
    (experience,) = (e for e in result.events if e["event"] == "experience")
    assert experience["rows"] == sum(len(part.indices) for part in stream[0].data["train"].parts())
    assert all(np.isfinite(list(e["losses"].values())).all() for e in result.events if e["event"] == "epoch")
    asked = sum(len(part) * (part.size - part.support) for part in stream.evaluation(0).data.parts())
    assert [e["count"] for e in result.events if e["event"] == "evaluation"] == [asked] * 2


def test_several_families_from_the_command_line() -> None:
    stream = build_chain('episodes:source=["sinusoids","lines"],held_out_families=["lines"],train_episodes=20 | online:rows=5')
    assert len(stream) == 4
    assert {d.split("/")[1] for experience in stream for d in experience.data["train"].batch(torch.arange(5)).domains} == {"sinusoids"}


@pytest.mark.skipif("STREAMLEARN_DATA" not in os.environ, reason="STREAMLEARN_DATA is not set: it names the folder of real data")
def test_omniglot_as_published() -> None:
    test = "omniglot:part=evaluation,test_drawers=0"
    stream = episodes("omniglot:test_drawers=0", test=test, ways=20, shots=1, queries=15, train_episodes=200, test_episodes=200)
    train, asked = stream[0].data["train"], stream.evaluation(0).data
    assert (train.source.name, asked.source.name) == ("omniglot", "omniglot/evaluation")
    assert len(set(train.source.targets["y"][train.indices].tolist())) > 900
    assert len(set(asked.source.targets["y"][asked.indices].tolist())) > 600
    assert rebuild(json.loads(json.dumps(stream.description))).hash == stream.hash
