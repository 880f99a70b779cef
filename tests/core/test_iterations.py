"""A number of batches for each experience, in place of epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamlearn import Engine
from streamlearn.core.phases import Phase
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import GDumb
from tests.core.support import Stop, class_stream, final, net, probe, same, sgd, stop_at


def engine(*plugins: Any, **options: Any) -> Engine:
    return Engine(net(), sgd(), list(plugins), batch_size=8, seed=2, **options)


def updates(result: Any) -> list[int]:
    return [event["updates"] for event in result.events if event["event"] == "experience"]


@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_experience_has_as_many_batches_as_asked_for(iterations: int, drop_last: bool) -> None:
    result = engine(iterations=iterations, drop_last=drop_last).run(class_stream())  # 20 rows an experience: 3 batches, or 2 full ones
    assert updates(result) == [iterations] * 3


def test_whole_passes_equal_epochs_bit_for_bit() -> None:
    epochs, _ = final(engine(epochs=2), class_stream())
    iterations, _ = final(engine(iterations=6), class_stream())
    assert same(epochs, iterations)


def test_a_pass_that_is_cut_short_starts_as_the_whole_one_does() -> None:
    def met(**length: int) -> list[Any]:
        found: list[Any] = []
        engine(probe("p", before_step=lambda step: found.append(step.batch.index.tolist())), **length).run(class_stream(experiences=1))
        return found

    assert met(iterations=10) == met(epochs=2)[:10]  # 60 rows: 8 batches a pass


def test_a_resume_in_the_cut_pass_makes_the_same_batches(tmp_path: Path) -> None:
    usual, events = final(engine(iterations=5, checkpoint_every=1), class_stream(), output=tmp_path / "straight")
    for update in (1, 4, 5, 9):
        with pytest.raises(Stop):
            engine(iterations=5, checkpoint_every=1, progress=stop_at(update)).run(class_stream(), output=tmp_path / str(update))
        result = engine(iterations=5, checkpoint_every=1).resume(tmp_path / str(update), class_stream())
        assert same(dict(result.model.state_dict()), usual), update
        assert same(result.events, events), update


def test_progress_counts_the_batches_that_will_be_made() -> None:
    found: list[float] = []
    engine(probe("p", before_step=lambda step: found.append(step.run.clock.progress)), iterations=4).run(class_stream(experiences=1))
    assert found == [0.0, 0.25, 0.5, 0.75]


def test_a_phase_that_is_given_epochs_has_no_number_of_iterations() -> None:
    phase = Phase("main", class_stream()[0].data["train"], 1, iterations=7)
    assert phase.replace(epochs=3).iterations is None
    assert phase.replace(batch_size=3).iterations == 7
    with pytest.raises(ConfigurationError, match="0 iterations: give 1 or more"):
        phase.replace(iterations=0)


def test_a_plugin_that_exchanges_the_data_keeps_the_number_unless_it_has_epochs_of_its_own() -> None:
    assert updates(engine(GDumb(capacity=12), iterations=5).run(class_stream())) == [5] * 3
    assert updates(engine(GDumb(capacity=12, epochs=1), iterations=5).run(class_stream())) == [2] * 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"iterations": 0}, "iterations is 0, but it must be a whole number of at least 1"),
        ({"iterations": 5, "epochs": 2}, "epochs is 2 and iterations is 5: give one of them"),
    ],
)
def test_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        engine(**options)
