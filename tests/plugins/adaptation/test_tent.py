from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from streamlearn import Engine, models, streams
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import Tent
from streamlearn.plugins.adaptation.tent import entropy, normalization_parameters
from tests.core.support import Stop, probe, same, sgd, stop_at
from tests.integration.test_resume import everything


def shifted() -> streams.Stream:
    """Three blobs; in the target domain they lie elsewhere and are stretched."""
    draw = torch.Generator().manual_seed(4)
    centres = 2.5 * torch.randn(3, 5, generator=draw)
    y = torch.arange(120) % 3
    x = centres[y] + 0.8 * torch.randn(120, 5, generator=draw)
    other = 2.0 * (centres[y] + 0.8 * torch.randn(120, 5, generator=draw)) + 4.0
    return streams.adaptation((x, y), (other, y), source_free=True)


def network() -> models.Model:
    torch.manual_seed(1)
    return models.Model(nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU()), models.Heads(16, shifted().tasks))


def engine(*plugins: Any, **options: Any) -> Engine:
    return Engine(network, sgd(lr=0.05, weight_decay=0.0), plugins, **({"epochs": 5, "batch_size": 20} | options))


def prequential(result: Any) -> dict[str, Any]:
    (line,) = [event for event in result.events if event["event"] == "prequential"]
    return dict(line)


def test_entropy_is_scipys() -> None:
    from scipy import stats

    logits = 3 * torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(entropy(logits), torch.from_numpy(stats.entropy(logits.softmax(1).numpy(), axis=1)))
    assert torch.isfinite(entropy(torch.tensor([[1000.0, -1000.0]]))).all()


def test_only_scales_and_shifts_move_and_only_on_target_rows_alone() -> None:
    before: dict[str, Any] = {}

    def snapshot(run: Any) -> None:
        if run.clock.experience == 1:
            before.update({name: p.detach().clone() for name, p in run.model.named_parameters()})

    terms: list[set[str]] = []
    watch = probe("watch", before_experience=snapshot, after_step=lambda step: terms.append(set(step.terms)))
    result = engine(Tent(), watch).run(shifted())
    after = {name: p.detach() for name, p in result.model.named_parameters()}  # type: ignore[attr-defined]
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == set(normalization_parameters(result.model)) == {"encoder.1.weight", "encoder.1.bias"}  # type: ignore[arg-type]
    assert all(p.requires_grad for p in result.model.parameters()), "the rest is frozen for that phase only"  # type: ignore[attr-defined]
    (name,) = [task.name for task in shifted().tasks]
    assert terms == [set()] * 30 + [{f"tent/{name}"}] * 6, "five epochs on the source, one pass over the target rows"


def test_predictions_are_scored_before_each_update() -> None:
    stream = shifted()
    right = rows = 0

    def score(step: Any) -> None:
        nonlocal right, rows
        if step.run.clock.experience == 1:
            at_update[step.update] = {name: p.detach().clone() for name, p in step.run.parameters().items()}

    def after(step: Any) -> None:
        nonlocal right, rows
        if step.run.clock.experience == 1:
            outputs = step.at(at_update[step.update]).outputs[stream.tasks[0].name].detach()
            truth = stream.evaluation(1).data.batch(step.batch.index).targets[stream.tasks[0].name]
            right += int((outputs.argmax(1) == truth).sum())
            rows += len(truth)

    at_update: dict[int, Any] = {}
    line = prequential(engine(Tent(), probe("watch", before_step=score, after_step=after)).run(stream))
    assert (line["experience"], line["count"], rows) == (1, 120, 120)
    assert line["value"] == pytest.approx(right / 120)


def test_it_is_better_than_the_source_model() -> None:
    adapted, plain = prequential(engine(Tent()).run(shifted())), prequential(engine(epochs=5).run(shifted()))
    assert adapted["value"] > plain["value"] + 0.1
    assert adapted["value"] > 0.8


def test_at_strength_0_nothing_moves() -> None:
    plain, off = engine().run(shifted()), engine(Tent(strength=0.0)).run(shifted())
    assert same(dict(plain.model.state_dict()), dict(off.model.state_dict()))  # type: ignore[attr-defined]


def test_an_optimizer_of_its_own() -> None:
    seen: list[float] = []
    watch = probe("watch", after_step=lambda step: seen.append(len(step.run.optimization.state_dict())))
    engine(Tent(optimizer=lambda p: torch.optim.Adam(p, lr=1e-3)), watch).run(shifted())
    assert seen == [1] * 30 + [2] * 6


def test_a_model_without_normalization_is_refused() -> None:
    stream = shifted()
    with pytest.raises(ConfigurationError, match="plugin tent adapts normalisation layers, and the model has none"):
        Engine(models.mlp(stream, (8,)), sgd(), [Tent()]).run(stream)


@pytest.mark.parametrize("place", [7, 31, 34])
def test_stopped_and_resumed_equals_the_straight_run(tmp_path: Path, place: int) -> None:
    engine(Tent(), checkpoint_every=1).run(shifted(), output=tmp_path / "straight")
    with pytest.raises(Stop):
        engine(Tent(), checkpoint_every=1, progress=stop_at(place)).run(shifted(), output=tmp_path / "broken")
    engine(Tent(), checkpoint_every=1).resume(tmp_path / "broken", shifted())
    assert same(everything(tmp_path / "straight"), everything(tmp_path / "broken"))
