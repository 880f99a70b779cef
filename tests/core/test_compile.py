"""A compiled encoder computes what the encoder computes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, models
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import EWC, LwF, Replay
from tests.core.support import Stop, class_stream, final, growing_stream, net, probe, same, sgd, stop_at


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def still(**options: Any) -> nn.Module:
    """Without dropout, whose draws a backend may order in another way."""
    return net(dropout=0.0, **options)


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5, msg=name)


class Compiled:
    """Counts how often compiled code ran, so that no test passes because nothing was compiled."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        def run(*arguments: Any) -> Any:
            self.calls += 1
            return graph(*arguments)

        return run


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    found = Compiled()
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, backend: compile_(function, backend=found if backend == "eager" else backend))
    return found


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_weights_are_those_without_compiling_and_evaluation_comes_first(backend: str, counted: Compiled) -> None:
    usual, events = final(Engine(still(), sgd(), batch_size=10, epochs=2), class_stream())
    found, again = final(Engine(still(), sgd(), batch_size=10, epochs=2, compile=backend), class_stream())
    close(usual, found)
    values, others = ([e["value"] for e in log if e["event"] == "evaluation"] for log in (events, again))
    assert values == pytest.approx(others)
    assert next(e["trained"] for e in again if e["event"] == "evaluation") == 0
    if backend == "eager":
        assert counted.calls == 12 + 4 * 3, "every training step, and every evaluation of each of three sets"


def test_dropout_is_repeatable(counted: Compiled) -> None:
    usual, _ = final(Engine(net(), sgd(), batch_size=10), class_stream())
    found, _ = final(Engine(net(), sgd(), batch_size=10, compile="eager"), class_stream())
    again, _ = final(Engine(net(), sgd(), batch_size=10, compile="eager"), class_stream())
    close(usual, found)
    assert same(found, again)
    assert counted.calls


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_tapped_pass_is_not_compiled_and_is_the_same(backend: str, counted: Compiled) -> None:
    tapped: list[Any] = []

    def plugin() -> Any:
        def term(step: Any) -> Tensor:
            hidden = step.tap("tap/hidden")
            tapped.append(hidden.shape)
            return 0.1 * hidden.square().mean()

        return probe("tap", collect_taps=lambda: {"hidden": "encoder.body.0"}, collect_terms=term)

    usual, _ = final(Engine(still(), sgd(), [plugin()], batch_size=10), class_stream())
    found, _ = final(Engine(still(), sgd(), [plugin()], batch_size=10, compile=backend), class_stream())
    close(usual, found)
    assert tapped == [(10, 12)] * 12
    if backend == "eager":
        assert counted.calls == 4 * 3, "evaluations only"


def test_no_forward_hook_survives_a_step() -> None:
    def look(step: Any) -> None:
        assert not [m for m in step.run.model.modules() if m._forward_hooks or m._forward_pre_hooks]

    def term(step: Any) -> Tensor:
        value = step.tap("tap/hidden").mean()
        look(step)
        return 0.0 * value

    plugin = probe("tap", collect_taps=lambda: {"hidden": "encoder.body.0"}, collect_terms=term, before_step=look, after_step=look)
    result = Engine(still(), sgd(), [plugin], batch_size=10, compile="eager").run(class_stream())
    assert not [m for m in result.model.modules() if m._forward_hooks]


def test_the_model_can_be_copied_in_the_middle_of_a_run(counted: Compiled) -> None:
    copies: list[Any] = []

    def after(step: Any) -> None:
        other = copy.deepcopy(step.run.model).eval()
        step.run.model.eval()
        with torch.no_grad():
            assert torch.equal(other(step.batch.x, "blobs"), step.run.model(step.batch.x, "blobs"))
        step.run.model.train()
        copies.append(other)

    usual, _ = final(Engine(still(), sgd(), batch_size=10), class_stream())
    found, _ = final(Engine(still(), sgd(), [probe("copy", after_step=after)], batch_size=10, compile="eager"), class_stream())
    close(usual, found)
    assert len(copies) == 6
    assert not same(copies[0].state_dict(), copies[-1].state_dict()), "a copy does not move with the model"
    assert counted.calls


def test_growing_heads_replay_ewc_and_a_teacher_that_is_a_copy(counted: Compiled) -> None:
    def engine(compiled: Any) -> Engine:
        model = models.mlp(growing_stream(), (8,))
        return Engine(model, sgd(), [Replay(capacity=9), EWC(strength=3), LwF()], batch_size=10, compile=compiled)

    usual, _ = final(engine(False), growing_stream())
    found, _ = final(engine("eager"), growing_stream())
    close(usual, found)
    assert counted.calls


def test_parts_of_a_batch_are_compiled(counted: Compiled) -> None:
    usual, _ = final(Engine(still(), sgd(), batch_size=10, microbatches=2, evaluate="never"), class_stream())
    found, _ = final(Engine(still(), sgd(), batch_size=10, microbatches=2, evaluate="never", compile="eager"), class_stream())
    close(usual, found)
    assert counted.calls == 12


def test_a_compiled_run_resumes_and_a_run_that_was_not_compiled_is_another(tmp_path: Path) -> None:
    from streamlearn.errors import CheckpointError

    def engine(**options: Any) -> Engine:
        return Engine(net(), sgd(), batch_size=10, checkpoint_every=2, **({"compile": "eager"} | options))

    usual, events = final(engine(), class_stream(), output=tmp_path / "straight")
    with pytest.raises(Stop):
        engine(progress=stop_at(3)).run(class_stream(), output=tmp_path / "broken")
    with pytest.raises(CheckpointError, match="compile was 'eager' and is None now"):
        engine(compile=False).resume(tmp_path / "broken", class_stream())
    result = engine().resume(tmp_path / "broken", class_stream())
    assert same(dict(result.model.state_dict()), usual)
    assert same(result.events, events)


def test_what_is_no_backend_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="compile is 3, but it must be True, False or the name of a backend"):
        Engine(net(), sgd(), compile=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="compile is 'nonsense', which torch does not know as a backend"):
        Engine(net(), sgd(), compile="nonsense").run(class_stream())
