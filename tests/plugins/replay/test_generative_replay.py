from __future__ import annotations

import math
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.nn.functional import cross_entropy, log_softmax, mse_loss, softmax

from streamlearn import Engine, models, streams
from streamlearn.core.supervision import Supervision
from streamlearn.errors import ConfigurationError, DataError
from streamlearn.plugins import AGEM, ERACE, EWC, MGDA, SAM, Clipping, ExperienceWeighting, LwF, Mixup, MultiHead, PCGrad, Replay
from streamlearn.plugins.replay.generative_replay import GenerativeReplay, softened
from streamlearn.streams import Task
from streamlearn.streams.batch import StoredColumn
from streamlearn.streams.data import Data, Target
from streamlearn.streams.sources import TensorSource
from tests.core.support import Stop, blobs, class_stream, final, growing_stream, net, probe, same, sgd, stop_at, stream_of, two_task_stream

SMALL: dict[str, Any] = {"hidden": (8,), "latent": 3, "likelihood": "gaussian"}
ROLE = "memory/generative_replay"


def points(dtype: Any = torch.float32, rows: int = 60) -> tuple[Tensor, Tensor]:
    """The inputs and classes of `blobs`."""
    task = Task("t", size=6)
    batch = Data(blobs(rows, 6, dtype=dtype), torch.arange(rows), (task,), {"t": Target("y")}).batch(torch.arange(rows))
    return batch.x, batch.targets["t"]


def generative(**options: Any) -> GenerativeReplay:
    return GenerativeReplay(**(SMALL | options))


def watched(*plugins: Any, stream: Any = None, model: Any = None, **options: Any) -> list[Any]:
    """(experience, step, objective, s, outputs of the previous model) of every step."""
    seen: list[Any] = []

    def look(objective: Any, step: Any) -> Any:
        found = objective(step)
        total = sum(float(found.losses[name].detach()) * float(found.shares[name]) for name in found.losses)
        teacher = step.run.teachers.get("generative_replay/previous")
        old = None
        if teacher is not None:
            with torch.no_grad():
                features = teacher.encode(step.batch.x)
                old = {task: teacher.decode(features, task) for task in step.batch.targets if teacher.heads.has(task)}
        new = {task: step.outputs[task].detach() for task in step.batch.targets}
        terms = {name: float(value.detach()) for name, value in found.terms.items()}
        seen.append((step.run.clock.experience, step.batch, new, old, total, terms))
        return found

    watch = probe("watch", around_objective=look)
    stream = stream or class_stream()
    Engine(model or net(), sgd(), [*plugins, watch], **({"batch_size": 10} | options)).run(stream)
    return seen


# ---------------------------------------------------------------------- rows and labels


def test_generated_rows_join_every_batch_from_the_second_experience_on() -> None:
    steps = watched(generative())
    assert {batch.roles for e, batch, *_ in steps if e == 0} == {("train",)}
    for e, batch, *_ in steps:
        if e:
            assert batch.roles == ("train", ROLE)
            assert len(batch) == 20
            assert [s.source for s in batch.segments] == ["blobs", "generative_replay"]
    made = [batch.x[10:] for e, batch, *_ in steps if e]
    assert all(not torch.equal(a, b) for a, b in pairwise(made)), "new ones in every step"


def test_rows_sets_how_many() -> None:
    assert {len(batch) for e, batch, *_ in watched(generative(rows=4)) if e} == {14}


def test_hard_labels_are_the_previous_models_among_the_classes_of_the_past() -> None:
    met = set()
    for e, batch, _, old, *_ in watched(generative(generator=lambda shape: Fixed(), rows=40), epochs=4):
        if e:
            labels = batch.targets["blobs"][batch.rows(ROLE)]
            assert torch.equal(labels, old["blobs"][batch.rows(ROLE)][:, : 2 * e].argmax(1))
            met.update(labels.tolist())
    assert {0, 1} <= met <= {0, 1, 2, 3}


def test_the_loss_is_the_mean_over_incoming_and_generated_rows() -> None:
    for _, batch, new, _, total, _ in watched(generative(rows=7)):
        assert total == pytest.approx(float(cross_entropy(new["blobs"], batch.targets["blobs"])), rel=1e-5)


def test_experience_weighting_gives_the_incoming_rows_one_kth() -> None:
    for e, batch, new, _, total, _ in watched(generative(rows=7), ExperienceWeighting()):
        each = cross_entropy(new["blobs"], batch.targets["blobs"], reduction="none")
        wanted = each.mean() if not e else each[:10].mean() / (e + 1) + each[10:].mean() * e / (e + 1)
        assert total == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_soft_labels_are_compared_at_the_temperature(temperature: float) -> None:
    steps = watched(generative(labels="soft", temperature=temperature, rows=7), ExperienceWeighting())
    for e, batch, new, old, total, _ in steps:
        wanted = cross_entropy(new["blobs"][:10], batch.targets["blobs"][:10])
        if e:
            p = softmax(old["blobs"][10:, : 2 * e] / temperature, 1)
            q = log_softmax(new["blobs"][10:] / temperature, 1)[:, : 2 * e]
            wanted = wanted / (e + 1) - (p * q).sum(1).mean() * e / (e + 1)
        assert total == pytest.approx(float(wanted), rel=1e-5)


def test_soft_labels_are_another_method() -> None:
    def weights(labels: str) -> Any:
        return final(Engine(net(), sgd(), [generative(labels=labels)], batch_size=10), class_stream())[0]

    assert not same(weights("hard"), weights("soft"))


@pytest.mark.parametrize("rows", [None, slice(1, 6), torch.tensor([0, 5, 3, 4])])
def test_softened_splits_a_record_on_any_rows(rows: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    places = torch.arange(6)[rows] if isinstance(rows, slice) else torch.arange(6) if rows is None else rows
    outputs, weight = torch.randn(6, 4, generator=draw), torch.arange(6.0)
    active = torch.rand(6, 4, generator=draw) > 0.5
    record = Supervision("r", "t", outputs[places], places % 4, weight[places], active[places], rows=rows)
    values = torch.rand(2, 3, generator=draw)  # of rows 3 and 4; rows of another memory follow
    rest, soft = softened(record, 6, StoredColumn(slice(3, 5), values), 2.0)
    inside = (places == 3) | (places == 4)
    assert torch.equal(rest.rows, places[~inside])
    assert torch.equal(rest.target, places[~inside] % 4)
    assert torch.equal(rest.outputs, outputs[places[~inside]])
    assert torch.equal(soft.rows, places[inside])
    assert torch.equal(soft.outputs, outputs[places[inside]] / 2)
    assert torch.equal(soft.target[:, :3], values[places[inside] - 3])
    assert not bool(soft.target[:, 3].any())
    assert torch.equal(soft.weight, places[inside].float())
    assert torch.equal(soft.active, active[places[inside]])


# ---------------------------------------------------------------------- the generator


def unit_stream(dtype: Any = torch.float64) -> Any:
    """Three experiences of two classes, with inputs in [0, 1]."""
    x, y = points(dtype)
    scaled = TensorSource((x - x.min()) / (x.max() - x.min()), {"y": y}, "unit")
    task = Task("t", size=6)
    pieces = []
    for i in range(3):
        rows = (scaled.targets["y"] // 2 == i).nonzero().flatten()
        pieces.append((Data(scaled, rows, (task,), {"t": Target("y")}), (task,)))
    return stream_of(pieces, (task,))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_term_is_the_generators_bound_with_one_kth_for_the_incoming_rows(likelihood: str) -> None:
    seen = []
    plugin = generative(likelihood=likelihood, rows=4)

    def look(objective: Any, step: Any) -> Any:
        found = objective(step)
        x = step.batch.x.flatten(1)
        vae = step.run.modules["generative_replay/generator"]
        random = step.run.generator(plugin, f"noise {int(step.batch.index[0])}")
        with torch.no_grad():
            mean, log_variance = vae.encode(x)
            q = Normal(mean, (log_variance / 2).exp())
            output = vae.decode(q.mean + q.stddev * torch.randn(mean.shape, generator=random, dtype=x.dtype))
            if likelihood == "bernoulli":
                evidence = Bernoulli(output, validate_args=False).log_prob(x)
            else:
                evidence = Normal(output, 1.0).log_prob(x) + 0.5 * math.log(2 * math.pi)
            each = (kl_divergence(q, Normal(0.0, 1.0)).sum(1) - evidence.sum(1)) / 6
        k = step.run.clock.experience + 1
        wanted = each[:10].mean() / k + (each[10:].mean() * (1 - 1 / k) if k > 1 else 0)
        seen.append((k, float(found.terms["generative_replay"].detach()), float(wanted)))
        return found

    stream = unit_stream()
    Engine(models.mlp(stream, (8,)).double(), sgd(), [plugin, probe("watch", around_objective=look)], batch_size=10).run(stream)
    assert {k for k, *_ in seen} == {1, 2, 3}
    for _, found, wanted in seen:
        assert found == pytest.approx(wanted, rel=1e-12)


def generator_of(*plugins: Any, **options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Final weights of the generator, and of the model."""
    kept: list[Any] = []
    look = probe("look", after_experience=lambda run: kept.append(dict(run.modules["generative_replay/generator"].state_dict())))
    rate = options.pop("rate", 0.05)
    stream = options.pop("stream", None) or class_stream()
    weights, _ = final(Engine(net(), sgd(lr=rate), [*plugins, look], batch_size=10, **options), stream)
    return {name: tensor.clone() for name, tensor in kept[-1].items()}, weights


def test_model_and_generator_do_not_move_each_other() -> None:
    first = class_stream()[:1]
    made, weights = generator_of(generative(), stream=first)
    assert same(made, generator_of(generative(), stream=first, rate=0.2)[0]), "the model's rate is not the generator's"
    assert same(weights, final(Engine(net(), sgd(), [], batch_size=10), first)[0]), "in the first experience the model is as without"
    assert same(weights, generator_of(generative(learning_rate=0.1), stream=first)[1])


@pytest.mark.parametrize("combiner", [PCGrad, MGDA])
def test_a_combiner_leaves_the_generator_its_own_gradient(combiner: Any) -> None:
    stream = two_task_stream()
    plain, combined = (generator_of(generative(), *plugins, stream=stream)[0] for plugins in ((MultiHead(),), (MultiHead(), combiner())))
    for name, tensor in plain.items():
        torch.testing.assert_close(combined[name], tensor)


def test_a_projection_leaves_the_generator_its_own_gradient() -> None:
    """A-GEM's reference has no gradient of the generator; the rows generated are the same, so that its own is, too."""
    fixed = {"generator": lambda shape: Fixed(), "likelihood": "bernoulli"}
    plain, projected = (generator_of(generative(**fixed), *plugins)[0] for plugins in ((), (AGEM(capacity=20),)))
    assert same(plain, projected)
    assert float(plain["level"]) != 0.0


def test_parts_of_a_batch_have_noise_of_their_own_and_views_the_same() -> None:
    plugin, seen = generative(), []

    def look(objective: Any, step: Any) -> Any:
        found = objective(step)
        again = objective(step.at({}))
        assert float(again.terms["generative_replay"].detach()) == float(found.terms["generative_replay"].detach())
        seen.append(torch.randn(2, generator=step.run.generator(plugin, f"noise {int(step.batch.index[0])}")))
        return found

    stream = class_stream()
    Engine(models.mlp(stream, (8,)), sgd(), [plugin, probe("watch", around_objective=look)], batch_size=10, microbatches=2).run(stream)
    assert len(seen) == 12
    assert len({tuple(noise.tolist()) for noise in seen}) == 12


# ---------------------------------------------------------------------- other generators, and the oracle


class Fixed(nn.Module):
    """Gives the same rows at any time, and learns one number."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, random: Any) -> Tensor:
        return (x.flatten(1).mean(1) - self.level).square()

    def sample(self, count: int, random: Any = None) -> Tensor:
        return 2.0 * torch.randn(40, 6, generator=torch.Generator().manual_seed(9))[:count]

    def generate(self, count: int) -> Tensor:
        """As Avalanche calls it."""
        return self.sample(count)


def flat(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 6))


def mixed_stream() -> Any:
    """Three experiences with all six classes in each."""
    source, task = blobs(60, 6), Task("blobs", size=6)
    return stream_of(
        [(Data(source, torch.arange(20 * i, 20 * i + 20), (task,), {"blobs": Target("y")}), (task,)) for i in range(3)], (task,)
    )


def trained_by_avalanche(stream: Any) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        avalanche = pytest.importorskip("avalanche.training.plugins.generative_replay")
        from avalanche.benchmarks import benchmark_from_datasets
        from avalanche.benchmarks.utils.classification_dataset import _make_taskaware_tensor_classification_dataset as tensor_dataset
        from avalanche.training.supervised import Naive

        parts = []
        for experience in stream:
            batch = experience.data["train"].batch(torch.arange(20))
            parts.append(tensor_dataset(batch.x, batch.targets["blobs"], task_labels=0))

        class Strategy:
            model = Fixed()

        model = flat()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        plugin = avalanche.GenerativeReplayPlugin(generator_strategy=Strategy())
        naive = Naive(
            model=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), train_mb_size=20, train_epochs=6, plugins=[plugin],
            evaluator=None,
        )  # fmt: skip
        for experience in benchmark_from_datasets(train=parts).train_stream:
            naive.train(experience)
    return dict(model.state_dict())


def trained_here(stream: Any, *plugins: Any) -> dict[str, Tensor]:
    # one batch holds all rows of an experience: their order is of no importance
    engine = Engine(flat(), sgd(weight_decay=0.0), list(plugins), batch_size=20, epochs=6)
    return dict(engine.run(stream).model.encoder.state_dict())


def test_with_the_same_generated_rows_the_model_is_avalanches() -> None:
    theirs = trained_by_avalanche(mixed_stream())
    ours = trained_here(mixed_stream(), GenerativeReplay(generator=lambda shape: Fixed()))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-5)
    assert not torch.allclose(trained_here(mixed_stream())["2.bias"], ours["2.bias"], atol=1e-2), "it does something"


def test_avalanche_also_gives_labels_of_classes_that_have_not_come_yet() -> None:
    theirs = trained_by_avalanche(class_stream())
    ours = trained_here(class_stream(), GenerativeReplay(generator=lambda shape: Fixed()))
    assert not torch.allclose(theirs["2.bias"], ours["2.bias"], atol=1e-2)
    with torch.no_grad():
        after_one = trained_here(class_stream()[:1])
        model = flat()
        model.load_state_dict(after_one)
        assert int(model(Fixed().sample(20)).argmax(1).max()) > 1, "classes 0 and 1 are all that the first experience has"


def test_a_loss_that_is_no_number_for_each_row_is_refused() -> None:
    class Wrong(Fixed):
        def forward(self, x: Tensor, random: Any) -> Tensor:
            return super().forward(x, random).mean()

    with pytest.raises(ConfigurationError, match=r"the generator gave a loss of shape \(\) for 10 rows: give one number for each row"):
        watched(GenerativeReplay(generator=lambda shape: Wrong()))


# ---------------------------------------------------------------------- what it does


def test_it_remembers_digits_that_no_replay_forgets() -> None:
    def accuracy(*plugins: Any) -> float:
        stream = streams.class_incremental("digits", 5, grow=True)
        engine = Engine(
            models.mlp(stream, (100,)), lambda p: torch.optim.Adam(p, lr=3e-3), list(plugins), iterations=120, batch_size=32, evaluate="end"
        )
        return float(engine.run(stream).accuracy_matrix[-1].mean())

    naive = accuracy()
    hard = accuracy(GenerativeReplay(hidden=(128,), latent=16, learning_rate=3e-3), ExperienceWeighting())
    soft = accuracy(GenerativeReplay(hidden=(128,), latent=16, learning_rate=3e-3, labels="soft"), ExperienceWeighting())
    assert naive < 0.3
    assert min(hard, soft) > 0.6


@pytest.mark.parametrize("scenario", ["class", "domain"])
def test_split_mnist(data_folder: Path, scenario: str) -> None:
    def accuracy(*plugins: Any) -> float:
        options: Any = {"class": {"grow": True}, "domain": {"transform": "classes"}}[scenario]
        stream = streams.build(f"{scenario}_incremental", source="mnist", experiences=5, **options)
        engine = Engine(
            models.mlp(stream, (100,)), lambda p: torch.optim.Adam(p, lr=1e-3), list(plugins), iterations=150, batch_size=64, evaluate="end"
        )
        return float(engine.run(stream).accuracy_matrix[-1].mean())

    naive, with_replay = accuracy(), accuracy(GenerativeReplay(hidden=(200, 200), latent=40), ExperienceWeighting())
    assert with_replay > naive + 0.15


# ---------------------------------------------------------------------- beside others


def test_heads_that_grow() -> None:
    for labels in ("hard", "soft"):
        stream = growing_stream()
        steps = watched(generative(labels=labels), stream=stream, model=models.mlp(stream, (12,)))
        for e, batch, new, old, *_ in steps:
            if e in (1, 2):
                made = batch.targets["t"][batch.rows(ROLE)]
                assert (old["t"].shape[1], new["t"].shape[1]) == (2 * e, 2 * e + 2)
                assert int(made.max()) < 2 * e
        assert [s.tasks for s in steps[-1][1].segments] == [("other",), ("t",)], "labelled for the tasks of the past"


def test_every_old_head_labels_every_generated_row() -> None:
    stream = streams.task_incremental("digits", 3)
    names = [task.name for task in stream.tasks]
    steps = watched(
        generative(rows=6), ExperienceWeighting(), stream=stream, model=models.mlp(stream, (12,)), iterations=2, evaluate="never"
    )
    for e, batch, new, old, total, _ in steps:
        segments = batch.segments[1:]
        assert [s.tasks for s in segments] == ([tuple(names[:e])] if e else [])
        wanted = cross_entropy(new[names[e]][:10], batch.targets[names[e]][:10])
        for task in names[:e]:
            labels = batch.targets[task][10:]
            assert torch.equal(labels, old[task][10:].argmax(1))
        if e:
            heads = torch.stack([cross_entropy(new[task][10:], batch.targets[task][10:]) for task in names[:e]]).mean()
            spread = (10 + 6 * e) / 16  # as with all rows of several tasks: the sum of the tasks' means
            wanted = spread * (wanted / (e + 1) + (1 - 1 / (e + 1)) * heads)
        assert total == pytest.approx(float(wanted), rel=1e-5)


def test_regressed_values_are_the_previous_models() -> None:
    x, _ = points(rows=40)
    values = TensorSource(x, {"z": x[:, :2] * 3}, "values")
    task = Task("z", kind="regression", size=2)
    pieces = [(Data(values, torch.arange(20 * i, 20 * i + 20), (task,), {"z": Target("z")}), (task,)) for i in range(2)]
    stream = stream_of(pieces, (task,))
    for labels in ("hard", "soft"):
        steps = watched(generative(labels=labels), stream=stream, model=models.mlp(stream, (12,)))
        e, batch, new, old, total, _ = steps[-1]
        assert (e, len(batch)) == (1, 20)
        torch.testing.assert_close(batch.targets["z"][10:], old["z"][10:])
        assert total == pytest.approx(float(mse_loss(new["z"], batch.targets["z"])), rel=1e-5)


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize(
    "others",
    [
        lambda: [EWC(strength=1.0)],
        lambda: [LwF()],
        lambda: [Replay(capacity=12)],
        lambda: [ERACE()],
        lambda: [Mixup()],
        lambda: [SAM()],
        lambda: [PCGrad()],
        lambda: [AGEM(capacity=12)],
        lambda: [Clipping()],
        lambda: [GenerativeReplay(name="second", **SMALL)],
    ],
)
def test_it_trains_beside_others(others: Any, labels: str) -> None:
    steps = watched(*others(), generative(labels=labels), ExperienceWeighting())
    for e, batch, _, _, total, terms in steps:
        assert math.isfinite(total)
        assert math.isfinite(terms["generative_replay"])
        assert batch.rows(ROLE) == (slice(0, 0) if not e else batch.rows(ROLE))
    assert steps[-1][1].rows(ROLE).stop - steps[-1][1].rows(ROLE).start == 10


def test_beside_replay_neither_repeats_the_others_rows() -> None:
    for plugins in ([Replay(capacity=30), generative()], [generative(), Replay(capacity=30)]):
        batch = watched(*plugins)[-1][1]
        assert sorted((s.role, s.stop - s.start) for s in batch.segments) == [("memory", 10), (ROLE, 10), ("train", 10)]


def test_er_ace_and_the_memories_of_others_see_its_rows_as_those_of_a_memory() -> None:
    records: list[Any] = []

    def keep(supervision: Any, step: Any) -> Any:
        records.append((step.run.clock.experience, supervision))
        return supervision

    memories: list[Any] = []
    count = probe("count", after_experience=lambda run: memories.append(run.memories.open("main", 60, "reservoir").offered))
    stream = class_stream()
    plugins = [generative(), ERACE(), Replay(capacity=60, fill="step"), probe("look", transform_supervision=keep), count]
    Engine(net(), sgd(), plugins, batch_size=10).run(stream)
    kinds = [record.active.sum(-1).tolist() for e, found in records if e == 1 for record in found][:2]
    assert kinds[0] < kinds[1], "incoming rows are told apart among their own classes, generated ones among all met"
    assert memories[0] in (0, 20)
    assert memories[-1] in (40, 60), "no generated row is offered"


def test_mixup_leaves_soft_rows_as_they_are() -> None:
    batch = watched(generative(labels="soft"), Mixup(alpha=5.0))[-1][1]
    plain = batch.stored["generative_replay/blobs"].values
    assert torch.equal(batch.targets["blobs"][10:].max(1).values, torch.ones(10))
    assert torch.equal(batch.targets["blobs"][10:].argmax(1), plain.argmax(1))


@pytest.mark.parametrize("options", [{}, {"microbatches": 2}])
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_a_resume_in_mid_experience_equals_an_uninterrupted_run(tmp_path: Path, labels: str, options: Any) -> None:
    def engine(**more: Any) -> Engine:
        plugins = [Replay(capacity=12), generative(labels=labels), ExperienceWeighting()]
        return Engine(net(), sgd(), plugins, batch_size=10, epochs=2, checkpoint_every=1, **options, **more)

    whole, events = final(engine(), class_stream())
    folder = tmp_path / "run"
    for number, update in enumerate((3, 6, 9)):
        started = engine(progress=stop_at(update))
        with pytest.raises(Stop):
            started.resume(folder, class_stream()) if number else started.run(class_stream(), folder)
    result = engine().resume(folder, class_stream())
    assert same(whole, dict(result.model.state_dict()))
    assert [e for e in events if e["event"] == "epoch"] == [e for e in result.events if e["event"] == "epoch"]


def test_an_engine_that_runs_again_starts_without_a_past() -> None:
    engine = Engine(net, sgd(), [generative()], batch_size=10)
    first, _ = final(engine, class_stream())
    assert same(first, final(engine, class_stream())[0])


# ---------------------------------------------------------------------- what it refuses


def test_inputs_outside_the_unit_interval_are_refused_with_a_bernoulli_likelihood() -> None:
    with pytest.raises(DataError, match=r"met inputs from -\d.* to \d.* in source 'blobs', but with likelihood='bernoulli'"):
        watched(GenerativeReplay())


def test_episodes_are_refused() -> None:
    stream = streams.episodes("sinusoids", 2, shots=3, queries=3, train_episodes=4, test_episodes=2)
    with pytest.raises(ConfigurationError, match="a stream of episodes has no past to generate rows of: remove the plugin"):
        Engine(models.mlp(stream, (4,)), sgd(), [generative()], batch_size=2).run(stream)


def test_inputs_that_are_no_floating_point_numbers_are_refused() -> None:
    source, task = TensorSource(torch.randint(0, 5, (20, 6)), {"y": torch.arange(20) % 2}, "words"), Task("t", size=2)
    stream = stream_of([(Data(source, torch.arange(20), (task,), {"y": Target("y")} | {"t": Target("y")}), (task,))], (task,))
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(18, 2))
    with pytest.raises(DataError, match=r"met inputs of type torch.int64, which cannot be generated: give floating-point inputs"):
        Engine(model, sgd(), [generative()], batch_size=10).run(stream)


@pytest.mark.parametrize("options", [{"rows": 0}, {"latent": 0}, {"hidden": (0,)}, {"temperature": 0.0}, {"labels": "medium"}])
def test_options_out_of_range_are_refused(options: Any) -> None:
    with pytest.raises(ConfigurationError, match="plugin generative_replay: option"):
        GenerativeReplay(**options)
