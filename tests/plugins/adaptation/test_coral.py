from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from streamlearn import Engine, models, streams
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import CORAL
from streamlearn.plugins.adaptation.coral import coral_loss, covariance
from tests.core.support import class_stream, net, probe, sgd


def test_the_covariance_is_numpys_and_the_distance_by_hand() -> None:
    source, target = torch.randn(7, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    np.testing.assert_allclose(covariance(source).numpy(), np.cov(source.numpy(), rowvar=False))
    expected = ((np.cov(source.numpy(), rowvar=False) - np.cov(target.numpy(), rowvar=False)) ** 2).sum() / (4 * 9)
    assert float(coral_loss(source, target)) == pytest.approx(expected)
    assert float(coral_loss(source, source + 5.0)) == pytest.approx(0.0, abs=1e-20), "means do not count"


def moons() -> streams.Stream:
    return streams.adaptation("moons", rows=40)


def model(stream: streams.Stream) -> models.Model:
    torch.manual_seed(2)
    return models.Model(nn.Sequential(nn.Linear(2, 6), nn.Tanh()), models.Heads(6, stream.tasks))


@pytest.mark.parametrize("tap", ["features", "encoder.0"])
def test_the_term_in_a_run(tap: str) -> None:
    seen: list[float] = []

    def after(step: Any) -> None:
        activation = step.tap("features" if tap == "features" else "coral/aligned").detach()
        assert torch.equal(activation, step.outputs.features.detach()) == (tap == "features")
        train, target = step.batch.rows("train"), step.batch.rows("target")
        assert step.batch.roles == ("train", "target")
        expected = 3.0 * float(coral_loss(activation[train], activation[target]))
        seen.append(float(step.terms["coral"].detach()))
        assert seen[-1] == pytest.approx(expected, rel=1e-5)

    stream = moons()
    Engine(model(stream), sgd(), [CORAL(strength=3.0, tap=tap), probe("watch", after_step=after)], batch_size=10).run(stream)
    assert len(seen) == 4
    assert min(seen) > 0


def test_it_brings_the_covariances_together() -> None:
    def distance(strength: float) -> float:
        stream = moons()
        trained = (
            Engine(lambda: model(stream), sgd(weight_decay=0.0), [CORAL(strength=strength)], epochs=20, batch_size=20).run(stream).model
        )
        rows = [stream[0].data[role].batch(torch.arange(40)).x for role in ("train", "target")]
        with torch.no_grad():
            return float(coral_loss(*(trained.encode(x) for x in rows)))  # type: ignore[attr-defined]

    assert distance(100.0) < 0.3 * distance(0.0)


def test_without_target_rows_or_with_one_there_is_no_term() -> None:
    terms: list[Any] = []
    watch = probe("watch", after_step=lambda step: terms.append(dict(step.terms)))
    Engine(net(), sgd(), [CORAL(), watch], batch_size=10).run(class_stream())
    stream = moons()
    Engine(model(stream), sgd(), [CORAL(), watch], batch_size=1).run(stream)
    assert terms == [{}] * (6 + 40)


def test_a_tap_that_is_not_there_is_refused() -> None:
    stream = moons()
    with pytest.raises(ConfigurationError, match=r"'encoder.7', which the model does not have"):
        Engine(model(stream), sgd(), [CORAL(tap="encoder.7")]).run(stream)
