from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine
from streamlearn.core.optimization import Trainable
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import AGEM, Clipping
from streamlearn.plugins.gradients.clipping import clipped_norm, clipped_values
from tests.core.support import class_stream, final, net, probe, same, sgd


def gradients(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(3, 4, generator=draw), "b": torch.randn(3, generator=draw), "s": torch.randn((), generator=draw)}


def oracle(given: dict[str, Tensor], bound: float, clip: Any) -> dict[str, Tensor]:
    parameters = {name: nn.Parameter(torch.zeros_like(value)) for name, value in given.items()}
    for name, parameter in parameters.items():
        parameter.grad = given[name].clone()
    clip(parameters.values(), bound)
    return {name: parameter.grad for name, parameter in parameters.items()}


@pytest.mark.parametrize("bound", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_torch_does_and_changes_nothing_in_place(bound: float, seed: int) -> None:
    given = gradients(seed)
    before = {name: value.clone() for name, value in given.items()}
    for function, clip in ((clipped_norm, nn.utils.clip_grad_norm_), (clipped_values, nn.utils.clip_grad_value_)):
        found = function(given, bound)
        expected = oracle(given, bound, clip)
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=0)
    assert same(given, before)


def test_nothing_to_clip() -> None:
    assert clipped_norm({}, 1.0) == {}
    assert clipped_values({}, 1.0) == {}
    assert same(clipped_norm({"w": torch.zeros(2)}, 1.0), {"w": torch.zeros(2)})


@pytest.mark.parametrize("kind", ["norm", "value"])
def test_a_run_is_a_plain_loop_that_clips(kind: str) -> None:
    """Clipped over everything that moves: the model and a helper module of another plugin."""
    seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    before: dict[str, Tensor] = {}
    helper = probe("helper", collect_modules=lambda run: {"scale": Trainable(nn.Linear(1, 1))},
                   collect_terms=lambda step: 10 * step.module("helper/scale")(torch.ones(1, 1)).square().sum())  # fmt: skip
    keep = probe("keep", transform_gradients=lambda gradients: before.update(gradients) or gradients)
    look = probe("look", transform_gradients=lambda gradients: seen.append((dict(before), dict(gradients))) or gradients)
    Engine(net(), sgd(), [helper, keep, Clipping(max_norm=0.3, kind=kind), look], batch_size=10).run(class_stream())
    clip = nn.utils.clip_grad_norm_ if kind == "norm" else nn.utils.clip_grad_value_
    assert len(seen) == 6
    for raw, found in seen:
        assert "helper/scale.weight" in found
        assert found.keys() == raw.keys()
        expected = oracle(raw, 0.3, clip)
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-8)
    assert any(not same(raw, found) for raw, found in seen)


def test_a_large_bound_changes_nothing_and_a_small_one_holds_the_weights() -> None:
    def moved(*plugins: Any) -> float:
        model = net()
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        Engine(model, sgd(momentum=0.0, weight_decay=0.0), list(plugins), batch_size=10).run(class_stream())
        return float(sum((p.detach() - start[name]).square().sum() for name, p in model.named_parameters()).sqrt())

    assert moved(Clipping(max_norm=1e-3)) <= 6 * 0.05 * 1e-3 * (1 + 1e-3), "six steps of 0.05 times 0.001 at most"
    usual, _ = final(Engine(net(), sgd(), batch_size=10), class_stream())
    large, _ = final(Engine(net(), sgd(), [Clipping(max_norm=1e6)], batch_size=10), class_stream())
    assert same(usual, large)


def test_it_comes_after_projections_wherever_it_is_listed() -> None:
    engine = Engine(net(), sgd(), [Clipping(max_norm=0.2), AGEM()], batch_size=10)
    assert engine.composition.firing_order("transform_gradients") == ("agem", "clipping")
    other, _ = final(Engine(net(), sgd(), [AGEM(), Clipping(max_norm=0.2)], batch_size=10), class_stream())
    assert same(final(engine, class_stream())[0], other)


@pytest.mark.parametrize("options", [{"max_norm": 0.0}, {"max_norm": -1.0}, {"max_norm": float("inf")}, {"kind": "l1"}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"option '{next(iter(options))}'"):
        Clipping(**options)
