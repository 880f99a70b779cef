"""Two domains: one with labels, one whose labels only evaluation knows."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamlearn import Engine, models
from streamlearn.errors import ConfigurationError, DataError
from streamlearn.plugins import CORAL
from streamlearn.streams import TensorSource, adaptation, rebuild
from tests.core.support import Stop, final, same, sgd, stop_at

real_data = pytest.mark.skipif("STREAMLEARN_DATA" not in os.environ, reason="STREAMLEARN_DATA is not set: it names the folder of real data")


def both(**options: Any) -> tuple[np.ndarray, np.ndarray, Any]:
    stream = adaptation("moons", **options)
    data = stream[0].data
    source = data["train"].batch(torch.arange(len(data["train"])))
    target = data["target"].batch(torch.arange(len(data["target"])))
    return source.x.double().numpy(), target.x.double().numpy(), stream


@pytest.mark.parametrize("degrees", [35.0, -90.0, 180])
@pytest.mark.parametrize("centred", [True, False])
def test_the_target_is_the_source_turned_counterclockwise(degrees: float, centred: bool) -> None:
    here, there, _ = both(degrees=degrees, centred=centred, rows=60)
    turned = (here[:, 0] + 1j * here[:, 1]) * np.exp(1j * math.radians(degrees))
    np.testing.assert_allclose(there[:, 0] + 1j * there[:, 1], turned, atol=1e-5)


def test_centring_subtracts_the_sources_mean_and_doubles() -> None:
    plain, _, _ = both(centred=False, seed=3)
    centred, there, _ = both(centred=True, seed=3)
    np.testing.assert_allclose(centred, 2 * (plain - plain.mean(0)), atol=1e-5)
    np.testing.assert_allclose(centred.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(there.mean(0), 0, atol=1e-5)
    assert np.abs(plain.mean(0)).max() > 0.1


def test_target_labels_are_hidden_from_training_and_known_to_evaluation() -> None:
    stream = adaptation("moons", rows=40, seed=2)
    experience, truth = stream[0], stream.evaluation(0).data
    target = experience.data["target"]
    (task,) = stream.tasks
    batch = target.batch(torch.arange(40), "target")
    assert not batch.targets
    assert batch.count_labelled() == 0
    assert not target.targets
    assert not target.source.targets, "nor in the source"
    assert not target.source.take(torch.arange(3)).targets
    assert target.source.name == truth.source.name
    assert target.source._x is truth.source._x, "the rows themselves are not copied"
    labelled = truth.batch(torch.arange(40))
    assert torch.equal(labelled.x, batch.x)
    assert torch.bincount(labelled.targets[task.name]).tolist() == [20, 20]
    assert (experience.data["train"].domain, target.domain, truth.domain) == ("source", "target", "target")
    assert stream.evaluation(0).name == "target"


def test_a_source_that_is_no_tensor_keeps_its_labels_to_itself() -> None:
    from streamlearn.streams.data import Columns, Data, Source, Target
    from streamlearn.streams.task import Task

    class Foreign:
        name, input_shape = "foreign", (2,)

        def __len__(self) -> int:
            return 4

        def take(self, index: torch.Tensor) -> Columns:
            return Columns(index.float().view(-1, 1).repeat(1, 2), {"y": index % 2})

        def fingerprint(self) -> str:
            return "f"

    data = Data(Foreign(), torch.arange(4), (Task("t", size=2),), {"t": Target("y")}).without_labels()
    assert isinstance(data.source, Source)
    assert (data.source.name, data.source.input_shape, len(data.source), data.source.fingerprint()) == ("foreign", (2,), 4, "f")
    assert data.source.take(torch.arange(2)).targets == {}
    assert data.batch(torch.tensor([3])).x.tolist() == [[3.0, 3.0]]


def test_stripping_a_source_gives_always_the_same_one() -> None:
    source = TensorSource(torch.rand(4, 2), {"y": torch.tensor([0, 1, 0, 1])}, "s", class_names=("a", "b"))
    bare = source.without_targets()
    assert bare is source.without_targets()
    assert bare.without_targets().targets == {}
    assert torch.equal(bare.take(torch.tensor([2])).x, source.take(torch.tensor([2])).x)
    assert bare.fingerprint() != source.fingerprint()
    assert source.targets, "the source itself keeps them"


def test_source_free_comes_in_two_experiences() -> None:
    stream = adaptation("moons", rows=30, source_free=True)
    first, second = stream
    assert (set(first.data), set(second.data)) == ({"train"}, {"target"})
    assert (first.main_role, second.main_role) == ("train", "target")
    assert not second.data["target"].batch(torch.arange(5)).targets
    assert [stream.evaluation(i).name for i in range(2)] == ["source", "target"]
    assert [stream.evaluation(i).data.domain for i in range(2)] == ["source", "target"]
    assert (first.classes, second.classes) == ({"moons": (0, 1)}, {})
    events = Engine(models.mlp(stream, (8,)), sgd(), batch_size=10, epochs=3).run(stream).events
    (score,) = (e for e in events if e["event"] == "prequential")
    (after,) = (e for e in events if e["event"] == "evaluation" and e["trained"] == 2 and e["set"] == 1)
    assert (score["experience"], score["count"]) == (1, 30)
    assert score["value"] == pytest.approx(after["value"]), "nothing moves without a plugin, so before and after are one"
    assert score["loss"] == pytest.approx(after["loss"], rel=1e-4)


def test_target_rows_join_each_batch_of_the_main_phase() -> None:
    from tests.core.support import probe

    seen: list[Any] = []
    stream = adaptation("moons", rows=30)
    plugin = probe("look", before_step=lambda step: seen.append((step.batch.roles, len(step.batch))))
    Engine(models.mlp(stream, (8,)), sgd(), [plugin], batch_size=10).run(stream)
    assert seen == [(("train", "target"), 20)] * 3


def test_domains_given_by_the_user_or_by_name() -> None:
    x, y = torch.rand(12, 3), torch.arange(12) % 3
    stream = adaptation((x, y), (x + 1, y))
    assert stream.name == "source to target/adaptation"
    assert len(stream[0].data["target"]) == 12
    with pytest.raises(ConfigurationError, match="built from objects given by the user"):
        rebuild(stream.description)
    named = adaptation("digits", "digits")
    assert named.tasks[0].size == 10
    assert rebuild(named.description).hash == named.hash


def test_the_hash_depends_on_every_argument_and_on_the_content() -> None:
    base = {"rows": 20}
    hashes = {adaptation("moons", **base).hash}
    for change in ({"seed": 1}, {"rows": 21}, {"noise": 0.1}, {"degrees": 30.0}, {"centred": False}, {"source_free": True}):
        hashes.add(adaptation("moons", **(base | change)).hash)
    assert len(hashes) == 7
    x, y = torch.rand(12, 3), torch.arange(12) % 3
    usual = adaptation((x, y), (x + 1, y)).hash
    assert adaptation((x.clone(), y), (x + 1, y)).hash == usual
    assert adaptation((x, y), (x + 2, y)).hash != usual
    assert adaptation((x, y), (x + 1, y.flip(0))).hash != usual, "the hidden labels count, too"
    assert adaptation((x - 1, y), (x + 1, y)).hash != usual


@pytest.mark.parametrize("source_free", [False, True])
def test_built_again_and_resumed_without_the_stream(source_free: bool, tmp_path: Path) -> None:
    stream = adaptation("moons", rows=30, noise=0.1, degrees=20, seed=4, source_free=source_free)
    again = rebuild(stream.description)
    assert again.hash == stream.hash
    assert again.description == stream.description

    def engine(**options: Any) -> Engine:
        return Engine(models.mlp(stream, (8,)), sgd(), batch_size=10, epochs=2, checkpoint_every=1, **options)

    usual, events = final(engine(), stream, output=tmp_path / "straight")
    with pytest.raises(Stop):
        engine(progress=stop_at(5)).run(stream, output=tmp_path / "broken")
    result = engine().resume(tmp_path / "broken")
    assert same(dict(result.model.state_dict()), usual)
    assert same(result.events, events)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("moons", "digits"), {}, "the moons make their own target domain: leave target out"),
        (("digits",), {}, "adaptation needs a target domain"),
        ((([[0.0]], [0]), [1]), {}, "a list is no target domain: give the name of a source or a pair"),
        ((([[0.0], [1.0]], [0, 1]), ([[0.0]], [2])), {}, "target domain 'target' has label 2, but the source has the classes 0 to 1"),
        ((([[0.0], [1.0]], [0, 1]), ([[0.0, 1.0]], [1])), {}, r"inputs of 'source' have shape \(1,\), of 'target' \(2,\): make them equal"),
        (("moons",), {"rows": 3}, "rows is 3: give a whole number of at least 4"),
        (("moons",), {"seed": -1}, "seed is -1"),
        (("moons",), {"noise": -0.1}, "noise is -0.1: give a number of at least 0"),
        (("moons",), {"noise": "much"}, "noise is 'much'"),
        (("moons",), {"degrees": float("nan")}, "degrees is nan: give a number"),
        (("moons",), {"degrees": None}, "degrees is None"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        adaptation(*arguments, **options)


def test_images_of_another_size_are_brought_to_the_sources() -> None:
    here, there = torch.rand(6, 1, 4, 4), torch.rand(9, 1, 8, 8)
    stream = adaptation((here, torch.arange(6) % 3), (there, torch.arange(9) % 3))
    target = stream[0].data["target"].batch(torch.arange(9))
    expected = there.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    torch.testing.assert_close(target.x, expected)
    torch.testing.assert_close(stream.evaluation(0).data.batch(torch.arange(9)).x, expected)
    assert stream.input_shape == (1, 4, 4)
    with pytest.raises(DataError, match=r"have shape \(1, 4, 4\), of .* \(3, 8, 8\): make them equal"):
        adaptation((here, torch.arange(6) % 3), (torch.rand(9, 3, 8, 8), torch.arange(9) % 3))


@pytest.mark.data
@real_data
def test_digits_to_usps() -> None:
    """A small network that learned one set of digits reads most of the other, of other size and hand; aligned features go with it."""
    stream = adaptation("digits", "usps")
    assert {role: len(data) for role, data in stream[0].data.items()} == {"train": 1438, "target": 7291}
    for plugins in ([], [CORAL(strength=10.0)]):
        engine = Engine(models.mlp(stream, (64,)), sgd(lr=0.05), plugins, epochs=8, batch_size=64, evaluate="end")
        assert float(engine.run(stream).accuracy_matrix[-1, 0]) > 0.5
