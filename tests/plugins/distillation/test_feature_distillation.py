from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from streamlearn import Engine, models
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import LwF, Replay
from streamlearn.plugins.distillation.feature_distillation import FeatureDistillation, feature_distance
from streamlearn.streams import Task, domain_incremental
from streamlearn.streams.data import Data, Target
from streamlearn.streams.sources import TensorSource
from tests.core.support import Stop, class_stream, final, growing_stream, net, probe, same, sgd, stop_at, stream_of
from tests.plugins.distillation.oracle import body, distance, library, plain_sgd, trained_by_avalanche

KINDS = ("squared", "mean_squared", "cosine")


def by_hand(student: torch.Tensor, teacher: torch.Tensor, kind: str) -> float:
    """Row by row, entry by entry, in double precision."""
    total = 0.0
    for f, g in zip(student.flatten(1).double().tolist(), teacher.flatten(1).double().tolist(), strict=True):
        square = sum((a - b) ** 2 for a, b in zip(f, g, strict=True))
        dot = sum(a * b for a, b in zip(f, g, strict=True))
        lengths = (sum(a * a for a in f) * sum(b * b for b in g)) ** 0.5
        total += {"squared": square / 2, "mean_squared": square / len(f), "cosine": 1 - dot / max(lengths, 1e-300)}[kind]
    return total / len(student)


@pytest.mark.parametrize("kind", KINDS)
def test_the_formula(kind: Any) -> None:
    draw = torch.Generator().manual_seed(1)
    a, b = (torch.randn(5, 3, 2, generator=draw, dtype=torch.float64) for _ in range(2))
    assert feature_distance(a, b, kind).item() == pytest.approx(by_hand(a, b, kind))
    same_features = b.clone().requires_grad_(True)
    feature_distance(same_features, b, kind).backward()
    assert float(same_features.grad.abs().max()) < 1e-12, "nothing pulls at the teacher's own features"
    assert bool(feature_distance(torch.zeros(2, 3), torch.zeros(2, 3), kind).isfinite()), "dead features are no NaN"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("taps", [("features",), ("encoder.0", "features")])
def test_the_terms_in_a_run(kind: Any, taps: tuple[str, ...]) -> None:
    """All rows, memory's too; the teacher is the model as the last experience left it."""
    stream, ends, checked = growing_stream(), [], set()

    def after(step: Any) -> None:
        number = step.run.clock.experience
        assert set(step.terms) == (set() if number == 0 else {f"feature_distillation/{tap}" for tap in taps})
        for tap in taps if number else ():
            teacher = ends[number - 1]
            told = teacher.encoder[0](step.batch.x) if tap == "encoder.0" else teacher.encode(step.batch.x)
            name = tap if tap == "features" else f"feature_distillation/{tap}"
            expected = 2.5 * by_hand(step.tap(name).detach(), told.detach(), kind)
            assert float(step.terms[f"feature_distillation/{tap}"].detach()) == pytest.approx(expected, rel=1e-4, abs=1e-6)
            checked.add((number, tap, step.batch.roles))

    def keep(run: Any) -> None:
        ends.append(copy.deepcopy(run.model).eval())

    plugins = [Replay(capacity=6), FeatureDistillation(strength=2.5, distance=kind, taps=taps)]
    watch = probe("watch", after_step=after, after_experience=keep)
    Engine(models.mlp(stream, (8,), dropout=0.3), sgd(), [*plugins, watch], batch_size=10).run(stream)
    assert checked == {(number, tap, ("train", "memory")) for number in (1, 2, 3) for tap in taps}


def test_it_shares_the_teachers_pass() -> None:
    passes: list[int] = []

    def before(step: Any) -> None:
        if step.run.clock.experience:
            first = step.teacher("feature_distillation/previous")
            assert first is step.teacher("lwf/previous")
            passes.append(1)

    plugins = [FeatureDistillation(), LwF(), probe("watch", before_step=before)]
    Engine(net(), sgd(), plugins, batch_size=10).run(class_stream())
    assert passes
    assert FeatureDistillation().passes.teachers == LwF().passes.teachers == {"previous"}
    assert FeatureDistillation(taps=("encoder.0",)).passes.teachers == {"feature_distillation/previous"}


def test_avalanche_with_the_cosine() -> None:
    stream, plugin = class_stream(), library("training.plugins").FeatureDistillationPlugin
    mine = FeatureDistillation(strength=2.0, distance="cosine", taps=("encoder.encoder",))
    found = Engine(body(), plain_sgd, [mine], batch_size=1000, epochs=4).run(stream).model
    theirs = trained_by_avalanche(stream, body(keeps=True), lambda: [plugin(alpha=2.0, mode="cosine")], 4)
    assert distance(found, theirs) < 1e-5
    assert distance(found, trained_by_avalanche(stream, body(), list, 4)) > 1e-3


def test_avalanche_cannot_take_the_mean_square() -> None:
    """It hands ``dim`` to a function that knows none: the first step with a teacher fails."""
    plugin = library("training.plugins").FeatureDistillationPlugin
    with pytest.raises(TypeError, match="dim"):
        trained_by_avalanche(class_stream(), body(keeps=True), lambda: [plugin(alpha=2.0, mode="mse")], 1)


def test_avalanches_less_forgetful_learning() -> None:
    """Its term is our mean over all entries; it also freezes the last layer once the first experience has ended."""
    stream = class_stream()
    lfl = library("training.plugins").LFLPlugin

    class Named(type(body()), library("models.base_model").BaseModel):  # type: ignore[misc]
        def get_features(self, x: torch.Tensor) -> torch.Tensor:
            return self.encoder(x)

    network = Named()
    network.load_state_dict(body().state_dict())

    def freeze(experience: Any, run: Any) -> None:
        if experience.index:
            run.model.encoder.classifier.requires_grad_(False)

    mine = [
        FeatureDistillation(strength=3.0, distance="mean_squared", taps=("encoder.encoder",)),
        probe("freeze", before_experience=freeze),
    ]
    found = Engine(body(), plain_sgd, mine, batch_size=1000, epochs=4).run(stream).model
    theirs = trained_by_avalanche(stream, network, lambda: [lfl(lambda_e=3.0)], 4)
    assert distance(found, theirs) < 1e-5
    without = trained_by_avalanche(stream, network, lambda: [lfl(lambda_e=0.0)], 4)
    assert distance(found, without) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_old_rows_stay(kind: Any) -> None:
    """Rows of the first domain, which never come again, are mapped nearer to where they were."""
    stream = domain_incremental("digits", 2, transform="rotation", degrees=60.0)
    x = stream[0].data["train"].batch(torch.arange(300)).x

    def drift(strength: float) -> float:
        ends: list[torch.Tensor] = []
        keep = probe("keep", after_experience=lambda run: ends.append(run.model.eval().encode(x).detach()))
        plugins = [FeatureDistillation(strength=strength, distance=kind), keep]
        Engine(models.mlp(stream, (16,)), sgd(), plugins, batch_size=100).run(stream)
        return float(feature_distance(ends[1], ends[0], kind))

    assert drift({"squared": 1.0, "mean_squared": 8.0, "cosine": 10.0}[kind]) < 0.5 * drift(0.0)


def test_a_regression_is_held_too() -> None:
    """There is no label in it."""
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    source = TensorSource(x, {"size": x[:, :2].clone()}, "sizes")
    task = Task("size", kind="regression", size=2)
    pieces = [(Data(source, torch.arange(i * 20, (i + 1) * 20), (task,), {"size": Target("size")}), (task,)) for i in range(2)]
    stream, terms = stream_of(pieces, (task,)), []
    watch = probe("watch", after_step=lambda step: terms.append(set(step.terms)))
    Engine(models.mlp(stream, (5,)), sgd(), [FeatureDistillation(), watch], batch_size=20).run(stream)
    assert terms == [set(), {"feature_distillation/features"}]


def test_stopped_and_resumed_equals_the_straight_run(tmp_path: Path) -> None:
    stream = growing_stream()

    def engine(**options: Any) -> Engine:
        plugins = [Replay(capacity=6), FeatureDistillation(taps=("encoder.0", "features")), LwF()]
        return Engine(models.mlp(stream, (8,)), sgd(), plugins, batch_size=8, epochs=2, checkpoint_every=1, **options)

    expected = final(engine(), stream)
    with pytest.raises(Stop):
        engine(progress=stop_at(9)).run(stream, output=tmp_path)
    result = engine().resume(tmp_path, stream)
    assert same(dict(result.model.state_dict()), expected[0])
    assert same(result.events, expected[1])


def test_refusals() -> None:
    stream = class_stream()
    with pytest.raises(ConfigurationError, match=r"encoder\.boby.*did you mean 'encoder\.body'"):
        Engine(net(), sgd(), [FeatureDistillation(taps=("encoder.boby",))]).run(stream)
    with pytest.raises(ConfigurationError, match=r"plugin feature_distillation: option 'taps' names 'features' twice"):
        Engine(net(), sgd(), [FeatureDistillation(taps=("features", "features"))]).run(stream)
    with pytest.raises(ConfigurationError, match="taps"):
        FeatureDistillation(taps=())
