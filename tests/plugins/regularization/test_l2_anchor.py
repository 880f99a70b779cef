from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamlearn import Engine, models, streams
from streamlearn.plugins import EWC, Replay
from streamlearn.plugins.regularization.l2_anchor import L2Anchor
from tests.core.support import Stop, class_stream, final, growing_stream, net, probe, same, sgd, stop_at


def test_the_term_is_half_the_squared_distance_to_the_last_weights() -> None:
    anchors: list[dict[str, Tensor]] = []
    seen: list[int] = []

    def look(step: Any) -> None:
        if not anchors:
            assert step.terms == {}
            return
        seen.append(len(anchors))
        expected = sum(1.5 * (p.detach().double() - anchors[-1][n].double()).square().sum() for n, p in step.parameters.items())
        assert float(step.terms["l2"].detach()) == pytest.approx(float(expected), rel=1e-5, abs=1e-12)

    watch = probe("watch", before_step=look, after_experience=lambda run: anchors.append(run.snapshot()))
    Engine(net(), sgd(), [watch, L2Anchor(strength=3.0)], batch_size=10).run(class_stream())
    assert seen == [1, 1, 2, 2]


def test_it_equals_ewc_with_an_importance_of_one() -> None:
    class Ones(EWC):
        def _add_online(self, fresh: Any, weights: Any) -> None:
            self._importance = {name: torch.ones_like(w) for name, w in weights.items()}
            self._anchor = dict(weights)

    found, wanted = (
        final(Engine(net(), sgd(), [plugin], batch_size=10), class_stream())[0]
        for plugin in (L2Anchor(strength=0.7), Ones(strength=0.7, mode="online"))
    )
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])


def test_it_forgets_less_on_digits_and_moves_less() -> None:
    def run(*plugins: Any) -> tuple[float, float]:
        weights: list[dict[str, Tensor]] = []
        stream = streams.task_incremental("digits", 5)
        watch = probe("watch", after_experience=lambda run: weights.append(run.snapshot()))
        engine = Engine(models.mlp(stream, (32,)), sgd(lr=0.05, weight_decay=0.0), [*plugins, watch], epochs=3, seed=0)
        accuracy = float(engine.run(stream).metrics["average_accuracy"])
        return accuracy, float(sum((weights[-1][n] - w).square().sum() for n, w in weights[0].items()))

    (without, far), (held, near) = run(), run(L2Anchor(strength=0.3))
    assert held > without
    assert near < 0.7 * far


def test_heads_that_grow_or_are_absent_and_others_beside_it() -> None:
    plugin = L2Anchor(strength=0.5)
    weights, _ = final(
        Engine(models.mlp(growing_stream(), (8,)), sgd(), [plugin, EWC(strength=1.0), Replay(capacity=10)], batch_size=10), growing_stream()
    )
    anchor = plugin.state_dict()["anchor"]
    assert anchor["heads.by_task.t.weight"].shape == (6, 8)
    assert anchor.keys() == {name for name in weights if "weight" in name or "bias" in name}
    assert all(torch.equal(weights[name], value) for name, value in anchor.items())
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_a_run_resumed_in_mid_experience_is_the_uninterrupted_one(tmp_path: Path) -> None:
    def engine(**options: Any) -> Engine:
        return Engine(net(), sgd(), [L2Anchor(strength=0.5)], batch_size=10, **options)

    with pytest.raises(Stop):
        engine(progress=stop_at(3), checkpoint_every=1).run(class_stream(), output=tmp_path)
    resumed = engine(checkpoint_every=1).resume(tmp_path, class_stream())
    assert same(dict(resumed.model.state_dict()), final(engine(), class_stream())[0])


def test_strength_zero_keeps_nothing() -> None:
    plugin = L2Anchor(strength=0)
    Engine(net(), sgd(), [plugin]).run(class_stream())
    assert plugin.state_dict() == {"anchor": {}}
