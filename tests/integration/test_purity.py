from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from streamlearn import Engine
from streamlearn.plugins import EWC, LwF, Replay
from tests.core.support import Spy, Stop, class_stream, final, net, probe, same, sgd, stop_at


def composed() -> list[Any]:
    return [Replay(capacity=12), EWC(strength=2), LwF(strength=1)]


@pytest.mark.parametrize(
    "plan", [{"evaluate_every": 1}, {"evaluate": "never"}, {"evaluate": "end"}, {"evaluate_every": 2, "evaluate": "end"}]
)
def test_evaluating_more_or_less_often_changes_no_weight(plan: dict[str, Any]) -> None:
    stream = class_stream()
    usual, events = final(Engine(net(), sgd(), composed(), batch_size=7, epochs=2), stream)
    other, others = final(Engine(net(), sgd(), composed(), batch_size=7, epochs=2, **plan), stream)
    assert same(usual, other)
    assert len([e for e in events if e["event"] == "evaluation"]) != len([e for e in others if e["event"] == "evaluation"])


def test_evaluation_batch_size_changes_no_weight_and_no_accuracy() -> None:
    stream = class_stream()
    usual, events = final(Engine(net(), sgd(), batch_size=7), stream)
    other, others = final(Engine(net(), sgd(), batch_size=7, evaluation_batch_size=3), stream)
    assert same(usual, other)
    assert [e.get("value") for e in events] == [e.get("value") for e in others]


def test_an_evaluation_leaves_modes_gradients_buffers_and_random_state() -> None:
    seen: list[bool] = []

    def look(evaluation: Any) -> None:
        model = evaluation.run.model
        if model.encoder.body[1].num_batches_tracked == 0:
            return
        model.encoder.body[0].weight.grad = torch.ones(12, 6)
        seen.append(model.training)

    spy = Spy()
    engine = Engine(net(), sgd(), [spy, probe("look", before_evaluation=look)], batch_size=7)
    stream = class_stream()
    result = engine.run(stream)
    assert seen == [False, False, False]
    from streamlearn.core.evaluation import Evaluator

    run, model = spy.run, result.model
    model.train()
    model.encoder.body[1].eval()  # a module that the user froze by mode
    torch.manual_seed(11)
    modes = [m.training for m in model.modules()]
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    state = torch.get_rng_state()
    Evaluator(stream, 4).measure(run, 3)
    assert [m.training for m in model.modules()] == modes
    assert same(dict(model.named_buffers()), buffers)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.encoder.body[0].weight.grad, torch.ones(12, 6))
    assert all(p.requires_grad for p in model.parameters())


def test_a_predictor_sees_no_labels() -> None:
    def predict(batch: Any, evaluation: Any) -> dict[str, Any]:
        assert not batch.targets
        assert not batch.labelled
        return {"blobs": torch.nn.functional.one_hot(batch.index % 6, 6).float()}  # rows are numbered by class

    result = Engine(net(), sgd(), [probe("predictor", provide_predictions=predict)], batch_size=7).run(class_stream())
    assert result.accuracy_matrix.min() == 1.0


@pytest.mark.parametrize("stopped", [False, True])
def test_the_users_random_state_is_as_before_the_run(stopped: bool) -> None:
    torch.manual_seed(21)
    np.random.seed(21)  # noqa: NPY002 - the legacy state is the one that must not move
    random.seed(21)
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
    engine = Engine(net(), sgd(), composed(), batch_size=7, progress=stop_at(4) if stopped else None)
    if stopped:
        with pytest.raises(Stop):
            engine.run(class_stream())
    else:
        engine.run(class_stream())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert random.getstate() == before[2]


def test_drawing_from_torchs_generator_between_steps_changes_nothing() -> None:
    stream = class_stream()
    usual, _ = final(Engine(net(), sgd(), batch_size=7), stream)
    noisy, _ = final(
        Engine(net(), sgd(), [probe("noise", before_step=lambda step: torch.rand(3), after_step=lambda: torch.rand(2))], batch_size=7),
        stream,
    )
    assert same(usual, noisy)


def test_no_gradient_is_left_after_a_run() -> None:
    model = net()
    Engine(model, sgd(), composed(), batch_size=7).run(class_stream())
    assert all(p.grad is None for p in model.parameters())


def test_a_term_is_read_off_a_run_without_changing_it() -> None:
    """Reading losses, outputs, views and gradients in ``after_step`` and in terms moves nothing."""
    stream = class_stream()
    usual, _ = final(Engine(net(), sgd(), batch_size=7), stream)

    def terms(step: Any) -> dict[str, Any]:
        view = step.at()
        assert torch.equal(view.losses["blobs"], step.losses["blobs"])
        assert step.gradient().keys() == {name for name, _ in step.run.model.named_parameters()}
        return {}

    looked, _ = final(Engine(net(), sgd(), [probe("look", collect_terms=terms)], batch_size=7), stream)
    assert same(usual, looked)
