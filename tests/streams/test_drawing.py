"""Pictures of streams: right, deterministic, and drawn for everything that can be built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamlearn.errors import DataError
from streamlearn.streams import augmented, build_chain, class_incremental, data_incremental, domain_incremental, label_policy
from streamlearn.streams.data import JoinedData
from streamlearn.streams.drawing import draw, picture, write
from streamlearn.streams.grids import grids_of
from streamlearn.streams.overview import overview

CHAINS = [
    "class_incremental:source=digits",
    "task_incremental:source=digits",
    "domain_incremental:source=digits,experiences=2",
    "domain_incremental:source=digits,experiences=endless",
    "data_incremental:source=diabetes,experiences=3",
    "data_incremental:source=iris,experiences=70",
    "joint:source=digits",
    "multitask:source=digits,experiences=2,target_domain=true",
    "multitask:source=linnerud",
    "adaptation:source=moons",
    "gradual_adaptation:source=digits",
    "test_time:source=digits,order=mixed,rows=400",
    "episodes:source=sinusoids,train_episodes=9",
    "episodes:source=digits,ways=3,shots=1,queries=1,train_episodes=5",
    "class_incremental:source=digits | online:rows=100",
    "class_incremental:source=digits | blurry | task_free",
    "class_incremental:source=digits | gradual",
    "class_incremental:source=digits | recurring:times=2",
    "class_incremental:source=digits | imbalanced | validation",
    "class_incremental:source=digits | label_policy:policy=delayed,steps=1",
    "domain_incremental:source=digits,experiences=3 | joint",
]


@pytest.mark.parametrize("text", CHAINS)
def test_everything_can_be_drawn(text: str) -> None:
    stream = build_chain(text)
    figure = draw(stream)
    assert "rows" in "".join(axes.get_ylabel() for axes in figure.axes)
    assert picture(figure, ".png").startswith(b"\x89PNG")


def _labels(figure: Any) -> list[str]:
    return [axes.get_ylabel() for axes in figure.axes]


def test_a_grid_is_drawn_where_it_tells_something() -> None:
    assert _labels(draw(class_incremental("digits", 5), samples=False)) == ["class", "rows"]
    assert _labels(draw(domain_incremental("digits", 3), samples=False)) == ["domain", "class", "rows"]
    assert _labels(draw(build_chain("task_incremental:source=digits | online:rows=99"), samples=False)) == [
        "task", "class", "rows", "evaluated\non",
    ]  # fmt: skip
    assert _labels(draw(data_incremental("diabetes", 3), samples=False)) == ["target", "rows", "evaluated\non"]


def test_classes_stand_in_the_order_in_which_they_come() -> None:
    stream = class_incremental("digits", 5, seed=4)
    (grid,) = grids_of(overview(stream))
    assert [int(name) for name in grid.names] == [number for experience in stream for number in experience.classes["digits"]]
    assert np.array_equal((grid.rows > 0).argmax(1), np.repeat(np.arange(5), 2))
    (whole, _) = grids_of(overview(data_incremental("digits", 5)))
    assert [int(name) for name in whole.names] == list(range(10))


def test_rows_without_a_label_have_a_line_of_their_own() -> None:
    (grid,) = grids_of(overview(label_policy(class_incremental("digits", 5), "sparse", per_class=4)))
    assert grid.names[-1] == "no label"
    assert grid.labelled[-1].tolist() == [0] * 5
    assert grid.rows[:-1].sum() == 40
    assert grid.rows.sum() == 1438


def test_many_classes_share_lines() -> None:
    y = torch.arange(600) % 300
    (grid,) = grids_of(overview(class_incremental((torch.rand(600, 2), y), 10, shuffle=False, test_fraction=0.5)))
    assert len(grid.names) == 120
    assert grid.rows.sum() == 300


def test_the_same_stream_gives_the_same_bytes() -> None:
    streams = [augmented(class_incremental("digits", 3), crop=2, flip=True) for _ in range(2)]
    torch.manual_seed(1)
    first = picture(draw(streams[0]))
    torch.manual_seed(2)
    assert picture(draw(streams[1])) == first
    assert picture(draw(streams[1], seed=1)) != first
    assert b"dc:date" not in first


def test_drawing_leaves_the_callers_random_numbers_alone() -> None:
    stream = augmented(class_incremental("digits", 3), crop=2)
    before = torch.get_rng_state()
    draw(stream)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_samples_no_input_is_read(toy: Any, counting: Any) -> None:
    source = toy(rows=40, classes=4, kind=counting)
    test = toy(rows=8, classes=4, name="test", kind=counting)
    draw(class_incremental(source, 2, test=test), samples=False)
    assert (source.rows_taken, test.rows_taken) == (0, 0)
    draw(class_incremental(source, 2, test=test))
    assert 0 < source.rows_taken < 40


def test_labels_that_training_does_not_see_are_not_in_the_picture() -> None:
    texts = {text.get_text() for axes in draw(label_policy(class_incremental("digits", 2), "never")).axes for text in axes.texts}
    assert "?" in texts
    assert not texts & set("0123456789")


def test_samples_are_transformed() -> None:
    from streamlearn.streams.samples import painter_for, samples_of

    stream = domain_incremental("digits", 2)
    painter = painter_for(stream)
    assert painter is not None
    first, second = samples_of(stream, overview(stream), painter, seed=0)
    assert np.allclose(np.sort(first.x.reshape(len(first.x), -1)), np.sort(second.x.reshape(len(second.x), -1)))
    assert not np.allclose(first.x, second.x)


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf", ".PNG"])
def test_it_is_written_as_the_suffix_says(tmp_path: Path, suffix: str) -> None:
    starts = {".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}
    write(draw(class_incremental("digits", 2), samples=False), tmp_path / f"a{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes().startswith(starts[suffix.lower()])


def test_stream_show_draws_and_writes(tmp_path: Path) -> None:
    stream = class_incremental("digits", 2)
    figure = stream.show(tmp_path / "a.svg")
    assert picture(figure) == (tmp_path / "a.svg").read_bytes()


def test_where_no_picture_can_be_written(tmp_path: Path) -> None:
    figure = draw(class_incremental("digits", 2), samples=False)
    with pytest.raises(DataError, match=r"a\.jpg: choose a name that ends in \.svg, \.png or \.pdf"):
        write(figure, tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"there is no folder .*missing, make it first"):
        write(figure, tmp_path / "missing" / "a.svg")
    (tmp_path / "b.svg").mkdir()
    with pytest.raises(DataError, match=r"b\.svg: Is a directory; choose another place"):
        write(figure, tmp_path / "b.svg")


def test_names_are_never_formulas_and_may_be_of_any_script() -> None:
    from streamlearn.streams import TensorSource

    source = TensorSource(torch.rand(40, 2), {"y": torch.arange(40) % 2}, "a$b_{$", class_names=["$x^{2", "你好 $"])
    assert picture(draw(class_incremental(source, 2)))


def test_images_of_other_ranges_and_many_channels() -> None:
    x = torch.randn(40, 5, 6, 7)
    assert picture(draw(class_incremental((x, torch.arange(40) % 2), 2)), ".png")
    assert picture(draw(class_incremental((torch.zeros(40, 6, 7), torch.arange(40) % 2), 2)), ".png")


def test_rows_of_several_pieces_are_drawn_together() -> None:
    stream = build_chain("domain_incremental:source=digits,experiences=12 | joint")
    assert isinstance(stream[0].data["train"], JoinedData)
    titles = [axes.get_title() for axes in draw(stream).axes if axes.get_title()]
    assert len(titles) == 8
    assert titles[0] == "1: permutation/0"
    assert titles[-1] == "1: permutation/11"
