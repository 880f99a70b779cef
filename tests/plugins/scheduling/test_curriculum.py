from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from streamlearn import Engine, models
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import Curriculum, Joint, Replay
from streamlearn.plugins.scheduling.curriculum import order_by
from streamlearn.streams import Stream, Task
from streamlearn.streams.data import Data, Target
from tests.core.support import Stop, blobs, class_stream, growing_stream, net, probe, same, sgd, stop_at, stream_of


def uneven() -> Any:
    """Experiences of 12, 4, 8 rows with 2, 3, 1 classes."""
    source, task = blobs(60, 6), Task("t", size=6)
    rows = [[r for r in range(60) if r % 6 in classes][:count] for classes, count in (((0, 1), 12), ((2, 3, 4), 4), ((5,), 8))]
    return stream_of([(Data(source, torch.tensor(r), (task,), {"t": Target("y")}), (task,)) for r in rows], (task,))


def names(stream: Any) -> list[str]:
    return [experience.name for experience in stream]


def met(plugin: Any, stream: Any, **options: Any) -> tuple[list[str], Any]:
    """The experiences as a run meets them, and its result."""
    seen: list[str] = []
    watch = probe("watch", before_experience=lambda experience: seen.append(experience.name))
    return seen, Engine(net(), sgd(), [plugin, watch], batch_size=10, **options).run(stream)


def test_sorting_is_stable_both_ways() -> None:
    assert order_by([2, 1, 2, 1]) == [1, 3, 0, 2]
    assert order_by([2, 1, 2, 1], descending=True) == [0, 2, 1, 3]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"order": [1, 2, 0]}, ["part 1", "part 2", "part 0"]),
        ({"by": "rows"}, ["part 1", "part 2", "part 0"]),
        ({"by": "rows", "descending": True}, ["part 0", "part 2", "part 1"]),
        ({}, ["part 2", "part 0", "part 1"]),
        ({"by": "classes", "descending": True}, ["part 1", "part 0", "part 2"]),
    ],
)
def test_a_run_meets_the_experiences_in_that_order(options: Any, expected: list[str]) -> None:
    seen, result = met(Curriculum(**options), uneven())
    assert seen == expected
    assert [e["name"] for e in result.events if e["event"] == "experience"] == expected
    assert [e["set_name"] for e in result.events if e["event"] == "evaluation"][:3] == expected, "evaluation sets go with them"


def test_it_equals_a_run_on_the_reordered_stream() -> None:
    stream = class_stream()
    _, ours = met(Curriculum(order=[2, 0, 1]), stream)
    _, plain = met(probe("nothing"), stream.reordered([2, 0, 1]))
    _, given = met(probe("nothing"), stream)
    assert same(ours.model.state_dict(), plain.model.state_dict())
    assert ours.events == plain.events
    assert not same(ours.model.state_dict(), given.model.state_dict())


def test_of_a_slice_only_its_own_experiences_change_places() -> None:
    stream = uneven()[1:]
    assert names(stream) == ["part 1", "part 2"]
    assert names(Curriculum(order=[1, 0]).transform_stream(stream)) == ["part 2", "part 1"]
    assert names(Curriculum(by="rows", descending=True).transform_stream(stream)) == ["part 2", "part 1"]
    twice = Curriculum(order=[2, 0, 1]).transform_stream(Curriculum(order=[1, 2, 0]).transform_stream(uneven()))
    assert names(twice) == ["part 0", "part 1", "part 2"]


def test_equal_experiences_stay_where_they_are() -> None:
    assert names(Curriculum().transform_stream(class_stream())) == names(class_stream())


def test_heads_may_meet_the_largest_number_of_classes_first() -> None:
    stream = growing_stream()
    result = Engine(models.mlp(stream, (8,)), sgd(), [Curriculum(order=[2, 3, 0, 1]), Replay(capacity=9)], batch_size=10).run(stream)
    assert [e["name"] for e in result.events if e["event"] == "experience"] == ["part 2", "part 3", "part 0", "part 1"]
    assert result.model.state_dict()["heads.by_task.t.weight"].shape == (6, 8)


def test_beside_joint_the_training_set_grows_from_easy_to_hard() -> None:
    sizes: list[int] = []
    watch = probe("watch", before_epoch=lambda run: sizes.append(len(run.phase.data)))
    Engine(net(), sgd(), [Curriculum(by="rows"), Joint(), watch], batch_size=10).run(uneven())
    assert sizes == [4, 12, 24]


def test_a_resume_finds_the_same_order(tmp_path: Path) -> None:
    stream = class_stream()

    def engine(**options: Any) -> Engine:
        return Engine(net(), sgd(), [Curriculum(order=[2, 0, 1]), Replay(capacity=9)], batch_size=10, checkpoint_every=1, **options)

    straight = engine().run(stream)
    with pytest.raises(Stop):
        engine(progress=stop_at(3)).run(stream, output=tmp_path)
    resumed = engine().resume(tmp_path, stream)
    assert same(resumed.model.state_dict(), straight.model.state_dict())
    assert resumed.events == straight.events


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], [1, 2, 3], []])
def test_an_order_that_is_none_of_the_stream(order: list[int]) -> None:
    with pytest.raises(ConfigurationError, match=r"plugin curriculum: order is \[.*\], but stream 'hand' has the experiences 0 to 2: name"):
        met(Curriculum(order=order), class_stream())


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="plugin curriculum: option 'by' is 'size'"):
        Curriculum(by="size")
    with pytest.raises(ConfigurationError, match="order says everything: leave by and descending out"):
        Curriculum(order=[0], descending=True)


def test_it_builds_nothing_of_a_stream_whose_order_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    stream, make = uneven(), Stream.__getitem__
    monkeypatch.setattr(Stream, "__getitem__", lambda self, i: (built.append(i), make(self, i))[1])
    Curriculum(order=[2, 1, 0]).transform_stream(stream)
    assert built == []
    Curriculum().transform_stream(stream)
    assert built == [0, 1, 2]
