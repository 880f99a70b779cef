from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from streamlearn import Engine, models
from streamlearn.plugins import EWC
from streamlearn.plugins.regularization.ewc import quadratic_penalty
from tests.core.support import class_stream, growing_stream, net, probe, sgd
from tests.plugins.regularization.avalanche_oracle import avalanche_plugin, difference, trained, trained_by


def history(*plugins: Any, stream: Any = None, model: Any = None) -> tuple[list[tuple[dict[str, Tensor], dict[str, Tensor]]], list[Any]]:
    """(Fisher, weights) after every experience, and what the first plugin's term and its gradient were at the last step."""
    kept: list[Any] = []
    terms: list[Any] = []

    def after(run: Any) -> None:
        kept.append((run.importance(plugins[0].config.fisher), run.snapshot()))

    def look(gradients: Any, step: Any) -> Any:
        term = step.objective.terms.get("ewc")
        if term is not None:
            value = plugins[0].collect_terms(step)
            named = dict(step.run.model.named_parameters())
            found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
            terms.append((float(term.detach()), dict(zip(named, found, strict=True)), step.run.snapshot(), len(kept)))
        return gradients

    watch = probe("watch", after_experience=after, transform_gradients=look)
    Engine(model or net(dropout=0.0), sgd(lr=0.1), [*plugins, watch], batch_size=10).run(stream or class_stream())
    return kept, terms


def test_the_collapsed_quadratic_is_the_explicit_sum_over_experiences() -> None:
    kept, terms = history(EWC(strength=3.0))
    assert [count for *_, count in terms] == [1, 1, 2, 2]
    for value, gradient, now, count in terms:
        expected = sum(1.5 * (f[n] * (now[n] - w[n]) ** 2).sum() for f, w in kept[:count] for n in f)
        assert value == pytest.approx(float(expected), rel=1e-4, abs=1e-9)
        for name, found in gradient.items():
            torch.testing.assert_close(found, sum(3.0 * f[name] * (now[name] - w[name]) for f, w in kept[:count]), rtol=1e-3, atol=1e-6)


def test_online_keeps_a_decayed_sum_and_the_latest_anchor() -> None:
    kept, terms = history(EWC(strength=2.0, mode="online", decay=0.5, fisher="empirical"))
    for value, _, now, count in terms:
        fisher = kept[0][0] if count == 1 else {n: 0.5 * kept[0][0][n] + kept[1][0][n] for n in kept[0][0]}
        anchor = kept[count - 1][1]
        assert value == pytest.approx(float(sum((fisher[n] * (now[n] - anchor[n]) ** 2).sum() for n in fisher)), rel=1e-4, abs=1e-10)


def test_the_gradient_is_zero_at_the_anchor_and_not_away_from_it() -> None:
    _, terms = history(EWC(strength=3.0))
    assert float(terms[0][1]["encoder.out.weight"].abs().max()) == 0.0
    assert terms[0][0] == 0.0
    assert float(terms[1][1]["encoder.out.weight"].abs().max()) > 0
    assert terms[1][0] > 0


def test_it_holds_weights_near_their_anchor() -> None:
    def distance(strength: float) -> float:
        weights: list[dict[str, Tensor]] = []
        watch = probe("watch", after_experience=lambda run: weights.append(run.snapshot()))
        Engine(net(), sgd(lr=0.02, weight_decay=0.0), [EWC(strength=strength), watch], batch_size=10, epochs=5).run(class_stream())
        return float(sum(((weights[1][n] - w) ** 2).sum() for n, w in weights[0].items()))

    assert distance(30.0) < 0.7 * distance(0.0)


def test_it_works_across_growth_and_leaves_absent_heads_alone() -> None:
    ewc = EWC(strength=3.0)
    Engine(models.mlp(growing_stream(), (8,)), sgd(), [ewc], batch_size=10).run(growing_stream())
    state = ewc.state_dict()
    assert state["importance"]["heads.by_task.t.weight"].shape == (6, 8)
    assert state["importance"]["heads.by_task.other.weight"].shape == (3, 8)
    assert all(bool((value >= 0).all()) for value in state["importance"].values())
    assert state["constant"] >= 0


def test_grown_and_absent_parameters_in_the_penalty() -> None:
    grown = {"w": torch.tensor([3.0, 9.0], requires_grad=True)}
    value = quadratic_penalty(grown, {"w": torch.tensor([2.0]), "gone": torch.ones(1)}, {"w": torch.tensor([1.0]), "gone": torch.ones(1)})
    assert float(value.detach()) == 4.0
    value.backward()
    assert grown["w"].grad.tolist() == [4.0, 0.0]
    assert float(quadratic_penalty(grown, {}, {})) == 0.0


def test_strength_zero_keeps_nothing() -> None:
    ewc = EWC(strength=0)
    Engine(net(), sgd(), [ewc]).run(class_stream())
    assert ewc.state_dict() == {"importance": {}, "anchor": {}, "constant": 0.0}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"mode": "separate"}, {"mode": "separate"}),
        ({"mode": "online", "decay": 0.6}, {"mode": "online", "decay_factor": 0.6}),
    ],
)
def test_it_agrees_with_avalanche_where_that_takes_rows_one_by_one(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Avalanche squares the gradient of a mini-batch's mean loss: at batch size 1 the empirical Fisher information, and less beyond.

    Its λ has no 1/2 before it.
    """
    weights, batches = trained(EWC(strength=20.0, fisher="empirical", **ours))
    plugin = avalanche_plugin("EWCPlugin")
    assert difference(trained_by(plugin(10.0, **theirs), batches), weights) < 1e-5
    assert difference(trained_by(plugin(0.0, **theirs), batches), weights) > 1e-2
    assert difference(trained_by(plugin(10.0, **theirs), batches, rows_per_pass=10), weights) > 1e-3
