from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamlearn import Engine, models, streams
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import EWC, Joint, Replay
from tests.core.support import class_stream, net, probe, same, sgd


def test_progress_and_clock() -> None:
    heard: list[Any] = []
    engine = Engine(net(), sgd(), batch_size=10, epochs=2, progress=lambda event, run: heard.append((event, str(run.clock))))
    engine.run(class_stream()[:1])
    assert heard == [
        ("start", "experience 0, phase 0, epoch 0, step 0"),
        ("step", "experience 0, phase 0, epoch 0, step 1"),
        ("step", "experience 0, phase 0, epoch 0, step 2"),
        ("step", "experience 0, phase 0, epoch 1, step 3"),
        ("step", "experience 0, phase 0, epoch 1, step 4"),
        ("experience", "experience 1, phase 0, epoch 0, step 4"),
    ]


def test_what_is_measured_when() -> None:
    stream = class_stream()

    def measured(**options: Any) -> list[tuple[int, int, bool]]:
        events = Engine(net(), sgd(), batch_size=10, **options).run(stream).events
        found = [(e["trained"], e["update"], "within" in e) for e in events if e["event"] == "evaluation" and e["set"] == 0]
        assert len([e for e in events if e["event"] == "evaluation"]) == 3 * len(found)
        return found

    usual = [(0, 0, False), (1, 2, False), (2, 4, False), (3, 6, False)]
    assert measured() == usual
    assert measured(evaluate="never") == []
    assert measured(evaluate="end") == [usual[0], usual[3]]
    within = [(0, 2, True), (1, 4, True), (2, 6, True)]
    assert measured(evaluate_every=2) == sorted(usual + within, key=lambda e: (e[1], not e[2]))


def test_the_mean_losses_of_an_epoch_are_recorded() -> None:
    losses: list[float] = []
    watch = probe("watch", after_step=lambda step: losses.append(float(step.losses["blobs"].detach())))
    term = probe("pull", collect_terms=lambda step: {"x": 0.0 * step.parameters["encoder.out.bias"].sum() + 2.0})
    events = Engine(net(), sgd(), [watch, term], batch_size=10).run(class_stream()[:1]).events
    epoch = next(e for e in events if e["event"] == "epoch")
    assert epoch["updates"] == 2
    assert epoch["losses"]["blobs"] == pytest.approx(sum(losses) / 2)
    assert epoch["terms"] == {"pull/x": pytest.approx(2.0)}


@pytest.mark.slow
def test_digits_are_forgotten_without_a_plugin_and_kept_with_replay() -> None:
    found: dict[str, list[float]] = {}
    compositions: dict[str, Any] = {"none": list, "composed": lambda: [Replay(capacity=200), EWC(strength=10)], "joint": lambda: [Joint()]}
    for seed in (0, 1):
        stream = streams.class_incremental("digits", experiences=5, seed=seed)
        for name, plugins in compositions.items():
            model = models.mlp(stream, hidden=(100,))
            engine = Engine(model, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), plugins(), epochs=5, batch_size=32, seed=seed)
            metrics = engine.run(stream).metrics
            found.setdefault(name, []).append(float(metrics["forgetting" if name == "none" else "average_accuracy"]))
    assert sum(found["none"]) / 2 > 0.9
    assert sum(found["composed"]) / 2 >= 0.82
    assert sum(found["joint"]) / 2 >= 0.94


def test_a_result_keeps_its_state_when_the_engine_runs_again(tmp_path: Path) -> None:
    from streamlearn.core.checkpoint import latest_checkpoint, read_checkpoint

    engine = Engine(net(), sgd(), [EWC(strength=2.0)], batch_size=10)
    first = engine.run(class_stream())
    weights = {name: tensor.clone() for name, tensor in first.model.state_dict().items()}  # type: ignore[attr-defined]
    engine.run(class_stream()[:1])
    first.save(tmp_path)
    saved = read_checkpoint(latest_checkpoint(tmp_path / "checkpoints")[0])
    assert same(saved["model"]["tensors"], weights)
    assert saved["clock"]["experience"] == 3


def test_what_cannot_be_copied_is_named(tmp_path: Path) -> None:
    plugin = probe("tracker")
    plugin.file = (tmp_path / "x").open("w")  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="plugin tracker holds something that cannot be copied"):
        Engine(net(), sgd(), [plugin]).run(class_stream())
    plugin.file.close()  # type: ignore[attr-defined]


def test_whole_numbers_of_numpy_are_welcome() -> None:
    options = Engine(net(), sgd(), seed=np.int64(3), epochs=np.int32(2)).options
    assert (options.seed, options.epochs, type(options.seed)) == (3, 2, int)
    with pytest.raises(ConfigurationError, match="drop_last is 'no', but it must be True or False"):
        Engine(net(), sgd(), drop_last="no")  # type: ignore[arg-type]


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    other = net()
    with pytest.raises(ConfigurationError, match="an optimizer of other parameters"):
        Engine(net(), lambda p: torch.optim.SGD(other.parameters(), lr=0.1)).run(class_stream())
