from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchjd.scalarization import Constant

from streamlearn import Engine, models, streams
from streamlearn.core.sampling import shuffled
from streamlearn.errors import ConfigurationError, UnknownNameError
from streamlearn.plugins.weighting.constant_weighting import ConstantWeighting
from tests.core.support import final, growing_stream, probe, separate_task_stream, sgd, two_task_stream
from tests.plugins.weighting.observed import drawn_start, split, watching


def test_a_run_is_a_plain_loop_with_torchjds_constant() -> None:
    stream = two_task_stream(torch.float64)
    start = drawn_start(stream)

    def fresh() -> nn.Module:
        model = models.mlp(stream, (8,)).double()
        model.load_state_dict(start)
        return model

    result = Engine(fresh, sgd(), [ConstantWeighting(weights={"b": 0.3})], batch_size=8, epochs=2, seed=4).run(stream)
    plain, data, oracle = fresh(), stream[0].data["train"], Constant(torch.tensor([1.0, 0.3], dtype=torch.float64))
    optimizer = sgd()(plain.parameters())
    for epoch in range(2):
        for positions in shuffled(len(data), 8, False, 0, 4, 0, 0, epoch).split(8):
            batch = data.batch(positions)
            optimizer.zero_grad()
            oracle(torch.stack([nn.functional.cross_entropy(plain(batch.x, t), batch.targets[t]) for t in ("a", "b")])).backward()
            optimizer.step()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value, rtol=1e-9, atol=1e-12)


def test_without_weights_it_is_the_sum_which_is_the_engines_own_only_where_every_row_has_every_task() -> None:
    equal: list[bool] = []
    for stream in (two_task_stream(), separate_task_stream()):
        plain, _ = final(Engine(models.mlp(stream, (8,)), sgd(), batch_size=8), stream)
        found, _ = final(Engine(models.mlp(stream, (8,)), sgd(), [ConstantWeighting()], batch_size=8), stream)
        equal.append(all(torch.equal(found[name], value) for name, value in plain.items()))
    assert equal == [True, False]


def test_parts_of_a_task_have_its_weight() -> None:
    weights: list[dict[str, float]] = []
    stream = two_task_stream()
    plugins = [ConstantWeighting(weights={"a": 3.0, "b": 0.5}), probe("split", transform_supervision=split), watching(weights)]
    Engine(models.mlp(stream, (8,)), sgd(), plugins, batch_size=8).run(stream)
    assert weights == [{"a@x": 3.0, "a/memory": 3.0, "strange": 0.5}] * 3


def test_weight_0_moves_nothing_of_its_task_not_even_by_momentum_or_decay() -> None:
    stream = two_task_stream()
    before: dict[str, Any] = {}
    switched = probe("look", before_run=lambda run: before.update(run.snapshot()))
    found, _ = final(Engine(models.mlp(stream, (8,)), sgd(), [ConstantWeighting(weights={"b": 0.0}), switched], epochs=2), stream)
    moved = {name for name, value in before.items() if not torch.equal(found[name], value)}
    heads = {name: name.split(".")[-2] for name in before if not name.startswith("encoder.")}
    assert {task for name, task in heads.items() if name in moved} == {"a"}
    assert any(name.startswith("encoder.") for name in moved)


def test_the_favoured_task_is_learned_better() -> None:
    """digits, two on a picture: each task in turn has 30 times the weight of the other."""
    stream, losses = streams.multitask("digits", 1), {}
    for favoured, other in (("left", "right"), ("right", "left")):
        weighting = ConstantWeighting(weights={favoured: 2.0, other: 0.07})
        _, events = final(Engine(models.mlp(stream, (16,)), sgd(weight_decay=0.0), [weighting], evaluate="never", epochs=2), stream)
        losses[favoured] = [event["losses"] for event in events if event["event"] == "epoch"][-1]
    assert losses["left"]["left"] < losses["right"]["left"] - 0.3
    assert losses["right"]["right"] < losses["left"]["right"] - 0.3


def test_a_weight_for_a_task_that_never_comes_is_refused_and_one_that_comes_unannounced_is_not() -> None:
    stream = two_task_stream()
    with pytest.raises(UnknownNameError, match=r"unknown task in the weights of plugin constant_weighting 'aa': did you mean 'a'\?"):
        Engine(models.mlp(stream, (8,)), sgd(), [ConstantWeighting(weights={"aa": 2.0})]).run(stream)
    growing = growing_stream()
    assert [task.name for task in growing.tasks] == ["t"]
    weights: list[dict[str, float]] = []
    Engine(models.mlp(growing, (8,)), sgd(), [ConstantWeighting(weights={"other": 2.0}), watching(weights)]).run(growing)
    assert (weights[0], weights[-1]) == ({"t": 1.0}, {"other": 2.0})


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan"), "much"])
def test_bad_options(weight: Any) -> None:
    with pytest.raises(ConfigurationError, match="plugin constant_weighting: option 'weights"):
        ConstantWeighting(weights={"a": weight})
