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
    assert [stream.evaluation(i).data.domain for i in range(2)] == ["target", "target"], "no row that is learnt from is evaluated"
    assert (first.classes, second.classes) == ({"moons": (0, 1)}, {})
    events = Engine(models.mlp(stream, (8,)), sgd(), batch_size=10, epochs=3).run(stream).events
    (score,) = (e for e in events if e["event"] == "prequential")
    (after,) = (e for e in events if e["event"] == "evaluation" and e["trained"] == 2)
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
    named = adaptation("sea:rows=40", "sea:rows=40,seed=1")
    assert named.tasks[0].size == 2
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


# ---------------------------------------------------------------------- several sources, labelled rows of the target


def arrays(rows: int, classes: int, shape: tuple[int, ...] = (3,), seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(rows, *shape, generator=torch.Generator().manual_seed(seed)), torch.arange(rows) % classes


def named(name: str, *given: Any, **options: Any) -> TensorSource:
    x, y = arrays(*given, **options)
    return TensorSource(x, {"y": y}, name)


def test_several_sources_are_domains_of_their_own() -> None:
    stream = adaptation([named("a", 12, 3), named("b", 8, 4, seed=1)], named("c", 10, 2, seed=2))
    (experience,) = stream
    train = experience.data["train"]
    assert [(part.domain, len(part)) for part in train.parts()] == [("a", 12), ("b", 8)]
    assert train.batch(torch.tensor([0, 15, 3])).domains == ("a", "b")
    assert stream.name == "a + b to c/adaptation"
    (task,) = stream.tasks
    assert (task.size, experience.classes) == (4, {task.name: (0, 1, 2, 3)})
    assert (len(experience.data["target"]), stream.evaluation(0).data.domain) == (10, "target")
    with pytest.raises(ConfigurationError, match="built from objects given by the user"):
        rebuild(stream.description)
    Engine(models.mlp(stream, (8,)), sgd(), batch_size=5).run(stream)


def test_a_source_without_all_classes_says_so() -> None:
    labels, there = torch.tensor([0, 2, 2, 0]), (torch.rand(4, 2), torch.tensor([1, 1, 2, 0]))
    with pytest.raises(DataError, match="no row of source 'source' has the class 1, though labels run to 2: number classes from 0"):
        adaptation((torch.rand(4, 2), labels), there)
    one, other = (TensorSource(torch.rand(4, 2), {"y": y}, name) for name, y in (("a", labels), ("b", labels // 2)))
    assert list(adaptation([one, other], there)[0].classes.values()) == [(0, 1, 2)], "together they have all"
    with pytest.raises(DataError, match=r"no row of source 'a \+ c' has the class 1"):
        adaptation([one, TensorSource(torch.rand(2, 2), {"y": labels[:2]}, "c")], there)


@pytest.mark.parametrize("case", [("digits", "digits"), ("digits", "Digits"), "equal", "among several"])
def test_the_target_is_no_source(case: Any) -> None:
    x, y = torch.rand(9000, 2), torch.arange(9000) % 3
    pairs = {"equal": ((x, y), (x.double(), y.flip(0))), "among several": ([(x + 1, y), (x, y)], (x.clone(), y))}
    here, there = case if isinstance(case, tuple) else pairs[case]
    with pytest.raises(DataError, match=r"target domain '.*' has the rows of source domain '.*', whose labels are trained on"):
        adaptation(here, there)
    other = x.clone()
    other[5000, 1] += 1
    assert len(adaptation((x, y), (other, y))[0].data["target"]) == 9000, "one other row makes other rows"


def test_numbers_of_numpy_are_numbers() -> None:
    import json

    usual = adaptation("moons", rows=20, noise=0.5, degrees=20)
    same = adaptation("moons", rows=np.int64(20), noise=np.float32(0.5), degrees=np.int64(20), seed=np.uint8(0))
    assert json.dumps(same.description) == json.dumps(usual.description)
    assert same.hash == usual.hash


def test_sources_come_in_the_shape_of_the_first() -> None:
    first, grey = named("first", 6, 3, shape=(3, 4, 4)), named("grey", 6, 3, shape=(1, 8, 8))
    stream = adaptation([first, grey], grey_target := named("there", 6, 3, shape=(1, 2, 2)))
    batch = stream[0].data["train"].batch(torch.tensor([0, 7]))
    assert batch.x.shape == (2, 3, 4, 4)
    assert torch.equal(batch.x[1, 0], batch.x[1, 2])
    target = stream[0].data["target"].batch(torch.tensor([0])).x
    assert torch.equal(target[0, 1], grey_target.take(torch.tensor([0])).x[0, 0].repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_one_source_in_a_list_is_one_source() -> None:
    assert adaptation(["sea:rows=40"], "sea:rows=40,seed=1")[0].data["train"].parts()[0].domain == "source"


@pytest.mark.parametrize("source_free", [False, True])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("several", [False, True])
def test_labelled_rows_of_the_target_leave_the_others(source_free: bool, count: int, several: bool) -> None:
    sources = [named("a", 12, 4), named("b", 12, 4, seed=1)] if several else named("a", 12, 4)
    there = named("there", 20, 3, seed=2)
    stream = adaptation(sources, there, labelled_target=count, source_free=source_free, seed=3)
    last = stream[-1]
    (shown,) = [part for part in last.data["train"].parts() if part.domain == "target"]
    hidden, truth = last.data["target"], stream.evaluation(len(stream) - 1).data
    assert torch.bincount(there.targets["y"][shown.indices]).tolist() == [count] * 3
    assert sorted([*shown.indices.tolist(), *hidden.indices.tolist()]) == list(range(20))
    assert torch.equal(hidden.indices, truth.indices)
    assert torch.equal(shown.batch(torch.arange(len(shown))).targets[stream.tasks[0].name], there.targets["y"][shown.indices])
    rest = shown.source.take(truth.indices).targets["y"]
    assert not rest.any(), "what is not shown is out of reach"
    assert not hidden.source.take(torch.arange(3)).targets
    assert stream.truth(len(stream) - 1) is (truth if source_free else None)
    assert last.main_role == "train"
    other = adaptation(sources, there, labelled_target=count, source_free=source_free, seed=4)
    (drawn,) = [part for part in other[-1].data["train"].parts() if part.domain == "target"]
    assert drawn.indices.tolist() != shown.indices.tolist()
    Engine(models.mlp(stream, (8,)), sgd(), batch_size=6).run(stream)


def test_labelled_moons_are_built_again() -> None:
    import json

    stream = adaptation("moons", rows=30, labelled_target=2, seed=5)
    assert {role: len(data) for role, data in stream[0].data.items()} == {"train": 34, "target": 26}
    again = rebuild(json.loads(json.dumps(stream.description)))
    assert again.hash == stream.hash
    assert torch.equal(again[0].data["target"].indices, stream[0].data["target"].indices)
    assert stream.hash != adaptation("moons", rows=30, seed=5).hash


def test_names_are_told_in_one_way() -> None:
    assert adaptation("Sea", "sea:seed=1").hash == adaptation("sea", "Sea:seed=1").hash


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ([], {}, "source is an empty list: give at least one source domain"),
        (["digits", "digits"], {}, "two domains are called 'digits': give sources of different names"),
        ([named("a", 6, 2), named("target", 6, 2)], {}, "two domains are called 'target'"),
        ([named("a", 6, 2), 3], {}, "a int is no source 1 domain: give the name of a source or a pair"),
        ([named("a", 6, 2), named("b", 6, 2, shape=(4,))], {}, r"inputs of 'a' have shape \(3,\), of 'b' \(4,\): make them equal"),
        (named("a", 6, 2), {"labelled_target": 3}, "class 0 of target domain 'there' has 3 rows, and labelled_target is 3: leave"),
        (named("a", 6, 2), {"labelled_target": -1}, "labelled_target is -1: give a whole number of at least 0"),
        ([named("a", 6, 1, seed=1), named("b", 6, 1, seed=2)], {}, "label 1, but the sources have the classes 0 to 0"),
    ],
)
def test_domains_that_do_not_fit_are_refused(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        adaptation(source, named("there", 6, 2), **options)


@pytest.mark.data
@real_data
def test_two_named_sources_and_labelled_rows_of_digits() -> None:
    stream = adaptation(["usps", "mnist"], "digits", labelled_target=2)
    train = stream[0].data["train"]
    assert [(part.domain, len(part)) for part in train.parts()] == [("usps", 7291), ("mnist", 60000), ("target", 20)]
    assert (stream.input_shape, len(stream.evaluation(0).data)) == ((1, 16, 16), 1418)
    assert rebuild(stream.description).hash == stream.hash
