from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchjd.scalarization import GeometricMean

from streamlearn import Engine, models
from streamlearn.errors import TrainingError
from streamlearn.plugins.weighting.gls import GLS, geometric_mean
from tests.core.support import class_stream, final, net, probe, sgd, two_task_stream
from tests.plugins.weighting.observed import drawn_start, split, watching


def losses_of(*values: float) -> dict[str, Tensor]:
    return {f"t{i}": torch.tensor(value, dtype=torch.float64, requires_grad=True) for i, value in enumerate(values)}


def test_the_formula_is_torchjds_and_its_weights_are_s_over_k_l() -> None:
    losses = losses_of(2.0, 0.5, 1.0)
    value = geometric_mean(losses)
    oracle = torch.stack([loss.detach() for loss in losses.values()]).requires_grad_()
    torch.testing.assert_close(value, GeometricMean()(oracle))
    weights = torch.stack(torch.autograd.grad(value, list(losses.values())))
    torch.testing.assert_close(weights, torch.autograd.grad(GeometricMean()(oracle), oracle)[0])
    torch.testing.assert_close(weights, value.detach() / (3 * oracle.detach()))
    assert weights.tolist() == pytest.approx([1 / 6, 2 / 3, 1 / 3])


def test_libmtl_reports_other_weights() -> None:
    """Those of L = (2, ½, 1) are (⅙, ⅔, ⅓); what its backward returns is L_k / (K Π L), the larger the larger the loss."""
    losses = torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64)
    reported = losses / (3 * losses.prod())
    weights = torch.stack(torch.autograd.grad(geometric_mean(found := losses_of(*losses.tolist())), list(found.values())))
    assert reported.argmax() == weights.argmin() == 0


def test_many_large_or_small_losses_do_not_leave_the_range_of_floats() -> None:
    for size in (1e-20, 1e20):
        losses = {str(i): torch.tensor(size) for i in range(40)}
        assert not 0 < torch.stack(list(losses.values())).prod().item() < float("inf")
        assert geometric_mean(losses).item() == pytest.approx(size, rel=1e-4)


@pytest.mark.parametrize("bad", [0.0, -0.5])
def test_a_loss_that_is_not_above_0_is_refused_where_torchjd_gives_a_gradient_that_is_no_number(bad: float) -> None:
    with pytest.raises(TrainingError, match=f"the loss of row 't1' is {bad:g}, and a geometric mean is of losses above 0 only: use"):
        geometric_mean(losses_of(2.0, bad))
    zero = torch.tensor([2.0, 0.0], requires_grad=True)
    assert bool(torch.autograd.grad(GeometricMean()(zero), zero)[0].isnan().any())


def test_the_refusal_reaches_the_user_of_a_run() -> None:
    stream = two_task_stream()
    zero = probe("zero", transform_supervision=lambda supervision: tuple(r.replace(scale=float(r.task == "a")) for r in supervision))
    with pytest.raises(TrainingError, match="the loss of row 'b' is 0"):
        Engine(models.mlp(stream, (8,)), sgd(), [GLS(), zero]).run(stream)


def scaled(factor: float) -> Any:
    return probe("scaled", transform_supervision=lambda supervision: tuple(
        r.replace(scale=factor if r.task == "b" else 1.0) for r in supervision))  # fmt: skip


def test_the_scale_of_a_task_is_a_matter_of_the_learning_rate() -> None:
    """L_b times 10,000 makes s 100 times larger: with a 100th of the learning rate the run is the same."""
    found = []
    for factor, lr in ((1.0, 0.05), (1e4, 0.05 / 100)):
        stream = two_task_stream(torch.float64)
        model = models.mlp(stream, (8,)).double()
        with torch.no_grad():
            for value in model.parameters():
                value.copy_(torch.linspace(-0.5, 0.6, value.numel(), dtype=torch.float64).view_as(value))
        optimizer = sgd(lr=lr, weight_decay=0.0)
        found.append(final(Engine(model, optimizer, [GLS(), scaled(factor)], batch_size=8, epochs=4), stream)[0])
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-9, atol=1e-12)


def test_a_task_that_shouts_does_not_drown_the_other() -> None:
    """The loss of "b" counted 1,000-fold: a learning rate that suits the sum is far too small for "a"; the geometric mean learns both."""
    last = {}
    for name, plugins, lr in (("sum", [], 0.05 / 1000), ("gls", [GLS()], 0.05 / math.sqrt(1000))):
        stream = two_task_stream(rows=48)
        engine = Engine(models.mlp(stream, (8,)), sgd(lr=lr, weight_decay=0.0), [*plugins, scaled(1000.0)], batch_size=8, epochs=6)
        last[name] = [event["losses"] for event in final(engine, stream)[1] if event["event"] == "epoch"][-1]
    assert last["gls"]["a"] < 0.5 * last["sum"]["a"]
    assert last["gls"]["b"] < 1.2 * last["sum"]["b"], "and the other is not the worse for it"


def test_every_row_is_a_factor() -> None:
    weights: list[dict[str, float]] = []
    losses: list[dict[str, float]] = []
    stream = two_task_stream()
    plugins = [GLS(), probe("split", transform_supervision=split), watching(weights, losses)]
    Engine(models.mlp(stream, (8,)), sgd(), plugins, batch_size=8).run(stream)
    for found, values in zip(weights, losses, strict=True):
        mean = (values["a@x"] * values["a/memory"] * values["strange"]) ** (1 / 3)
        assert found == pytest.approx({row: mean / (3 * value) for row, value in values.items()}, rel=1e-5)


def test_one_task_is_plain_training_bit_for_bit() -> None:
    plain, _ = final(Engine(net(), sgd(), batch_size=10), class_stream())
    found, _ = final(Engine(net(), sgd(), [GLS()], batch_size=10), class_stream())
    assert all(torch.equal(found[name], value) for name, value in plain.items())


def test_micro_batches_have_the_mean_of_their_geometric_means() -> None:
    stream = two_task_stream(torch.float64)
    start = drawn_start(stream)
    steps: list[dict[str, Tensor]] = []

    def look(gradients: Any, step: Any) -> Any:
        parts = [step.at(batch=step.batch.take(chosen)).losses for chosen in step.batch.spread(2)]
        total = sum(torch.sqrt(part["a"] * part["b"]) for part in parts) / 2
        names = [name for name in gradients if step.parameters[name].requires_grad]
        expected = torch.autograd.grad(total, [step.parameters[name] for name in names])
        for name, value in zip(names, expected, strict=True):
            torch.testing.assert_close(gradients[name], value, rtol=1e-9, atol=1e-12)
        steps.append(dict(gradients))
        return gradients

    model = models.mlp(stream, (8,)).double()
    model.load_state_dict(start)
    Engine(model, sgd(), [GLS(), probe("look", transform_gradients=look)], batch_size=8, microbatches=2).run(stream)
    assert len(steps) == 3
