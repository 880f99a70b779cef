from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchjd import scalarization as torchjd

from streamlearn import Engine, models, streams
from streamlearn.core.sampling import shuffled
from streamlearn.errors import ConfigurationError
from streamlearn.plugins.weighting.dwa import DWA, averaged_weights, rate_of_descent
from tests.core.support import class_stream, final, net, probe, separate_task_stream, sgd, two_task_stream
from tests.plugins.weighting.observed import changing_tasks, drawn_start, split, watching


def test_the_weights_are_a_softmax_that_sums_to_k() -> None:
    draw = torch.Generator().manual_seed(0)
    for temperature in (0.5, 2.0, 10.0):
        rates = torch.rand(5, generator=draw, dtype=torch.float64)
        found = averaged_weights(dict(zip("abcde", rates.tolist(), strict=True)), temperature)
        assert list(found.values()) == pytest.approx((5 * torch.softmax(rates / temperature, 0)).tolist(), rel=1e-12)
        assert sum(found.values()) == pytest.approx(5, rel=1e-12)
    assert averaged_weights({"a": 0.3}, 2.0) == {"a": 1.0}
    assert averaged_weights({"a": 1e6, "b": 1.0}, 1e-3) == {"a": 2.0, "b": 0.0}, "nothing overflows"


def test_the_rate_of_descent() -> None:
    assert rate_of_descent(0.5, 2.0) == 0.25
    assert [rate_of_descent(*pair) for pair in ((None, 2.0), (0.5, None), (None, None))] == [1.0] * 3
    assert rate_of_descent(0.0, 2.0) == 0.0
    assert [rate_of_descent(0.5, 0.0), rate_of_descent(1e300, 1e-300)] == [1.0, 1.0], "a ratio to nothing says nothing"


def test_a_run_is_a_plain_loop_with_torchjds() -> None:
    """Six epochs of two tasks, the weights of every step among them."""
    stream = two_task_stream(torch.float64, rows=20)  # batches of 8, 8 and 4
    start = drawn_start(stream)

    def fresh() -> nn.Module:
        model = models.mlp(stream, (8,)).double()
        model.load_state_dict(start)
        return model

    weights: list[dict[str, float]] = []
    result = Engine(fresh, sgd(), [DWA(temperature=0.2), watching(weights)], batch_size=8, epochs=6, seed=4).run(stream)
    plain, data, oracle, expected = fresh(), stream[0].data["train"], torchjd.DWA(0.2), []
    optimizer = sgd()(plain.parameters())
    for epoch in range(6):
        for positions in shuffled(len(data), 8, False, 0, 4, 0, 0, epoch).split(8):
            batch = data.batch(positions)
            losses = torch.stack([nn.functional.cross_entropy(plain(batch.x, task), batch.targets[task]) for task in ("a", "b")])
            expected.append(oracle._compute_weights(losses).tolist())
            optimizer.zero_grad()
            oracle(losses).backward()
            optimizer.step()
        oracle.step()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value, rtol=1e-9, atol=1e-12)
    assert [list(found.values()) for found in weights] == [pytest.approx(row, rel=1e-9) for row in expected]
    assert weights[:6] == [{"a": 1.0, "b": 1.0}] * 6, "the first two epochs"
    assert any(abs(found["a"] - 1) > 0.05 for found in weights), "then they differ"


def test_the_task_that_does_not_get_better_gets_the_larger_weight() -> None:
    """digits on the left; on the right the labels say nothing."""
    digits = streams.multitask("digits", 1)[0].data["train"].batch(torch.arange(340))
    columns = {"left": digits.targets["left"], "noise": torch.randint(10, (340,), generator=torch.Generator().manual_seed(0))}
    train, test = ((digits.x[rows], {n: c[rows] for n, c in columns.items()}) for rows in (slice(0, 300), slice(300, 340)))
    stream = streams.multitask(train, 1, test=test)
    weights: list[dict[str, float]] = []
    Engine(models.mlp(stream, (32,)), sgd(), [DWA(), watching(weights)], epochs=8).run(stream)
    half = len(weights) // 2
    assert all(found["noise"] > 1 > found["left"] for found in weights[half:])
    assert all(sum(found.values()) == pytest.approx(2) for found in weights)


def means_of(events: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Mean losses of every epoch, as the record has them."""
    return [event["losses"] for event in events if event["event"] == "epoch"]


def expected_weights(rates: list[float], temperature: float = 2.0) -> list[float]:
    return (len(rates) * torch.softmax(torch.tensor(rates, dtype=torch.float64) / temperature, 0)).tolist()


def test_a_task_that_leaves_and_another_that_enters_inherit_nothing() -> None:
    """Tasks a and b, then b and c, then a and c; three epochs of two updates each."""
    weights: list[dict[str, float]] = []
    stream, dwa = changing_tasks("ab", "bc", "ac"), DWA()
    _, events = final(Engine(models.mlp(stream, (8,)), sgd(), [dwa, watching(weights)], batch_size=8, epochs=3), stream)
    means, by_epoch = means_of(events), weights[::2]
    assert [set(found) for found in by_epoch] == [{"a", "b"}] * 3 + [{"b", "c"}] * 3 + [{"a", "c"}] * 3
    rates = {"b": means[2]["b"] / means[1]["b"], "c": 1.0}  # b goes on, c is new, a is not there any more
    assert list(by_epoch[3].values()) == pytest.approx(expected_weights(list(rates.values())), rel=1e-5)
    rates = {"b": means[3]["b"] / means[2]["b"], "c": 1.0}  # across the change
    assert list(by_epoch[4].values()) == pytest.approx(expected_weights(list(rates.values())), rel=1e-5)
    rates = {task: means[4][task] / means[3][task] for task in "bc"}
    assert list(by_epoch[5].values()) == pytest.approx(expected_weights(list(rates.values())), rel=1e-5)
    rates = {"a": 1.0, "c": means[5]["c"] / means[4]["c"]}  # a comes back as if it were new
    assert list(by_epoch[6].values()) == pytest.approx(expected_weights(list(rates.values())), rel=1e-5)
    assert set(dwa.state_dict()["last"]) == {"a", "c"}


def test_the_history_may_end_with_the_experience() -> None:
    stream, found = two_task_stream(experiences=2), {}
    for across in (True, False):
        weights: list[dict[str, float]] = []
        plugins = [DWA(across_experiences=across), watching(weights)]
        Engine(models.mlp(stream, (8,)), sgd(), plugins, batch_size=24, epochs=3).run(stream)
        found[across] = [row["a"] == 1.0 for row in weights]
    assert found[True] == [True, True, False, False, False, False]
    assert found[False] == [True, True, False, True, True, False]


def test_a_batch_without_a_task_leaves_the_weights_of_the_others_where_they_are() -> None:
    """Rows of their own, one of each task to a batch or two of one: the weight of a task is one number in an epoch."""
    weights: list[dict[str, float]] = []
    stream = separate_task_stream(1)
    Engine(models.mlp(stream, (8,)), sgd(), [DWA(temperature=0.3), watching(weights)], batch_size=2, epochs=3).run(stream)
    last = weights[24:]
    assert {1, 2} == {len(found) for found in last}
    by_task = [{found[task] for found in last if task in found} for task in "ab"]
    assert [len(values) for values in by_task] == [1, 1]
    assert sum(next(iter(values)) for values in by_task) == pytest.approx(2)
    assert by_task[0] != {1.0}


def test_parts_of_a_task_have_its_weight_and_one_history() -> None:
    weights: list[dict[str, float]] = []
    stream, dwa = two_task_stream(), DWA(temperature=0.2)
    plugins = [dwa, probe("split", transform_supervision=split), watching(weights)]
    _, events = final(Engine(models.mlp(stream, (8,)), sgd(), plugins, batch_size=8, epochs=3), stream)
    means = means_of(events)
    a = [(found["a@x"] + found["a/memory"]) / 2 for found in means]
    expected = expected_weights([a[1] / a[0], means[1]["strange"] / means[0]["strange"]], 0.2)
    assert weights[-1] == pytest.approx({"a@x": expected[0], "a/memory": expected[0], "strange": expected[1]}, rel=1e-5)
    assert dwa.state_dict()["last"] == pytest.approx({"a": a[2], "b": means[2]["strange"]}, rel=1e-5)


def test_one_task_is_plain_training_bit_for_bit() -> None:
    plain, _ = final(Engine(net(), sgd(), batch_size=10, epochs=3), class_stream())
    found, _ = final(Engine(net(), sgd(), [DWA()], batch_size=10, epochs=3), class_stream())
    assert all(torch.equal(found[name], value) for name, value in plain.items())


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf")])
def test_bad_options(temperature: float) -> None:
    with pytest.raises(ConfigurationError, match="option 'temperature'"):
        DWA(temperature=temperature)
