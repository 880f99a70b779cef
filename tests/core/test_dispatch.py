from __future__ import annotations

from typing import Any

import pytest
import torch

from streamlearn import Engine, Plugin, PluginInfo, hookimpl
from streamlearn.core.composition import compose
from streamlearn.core.dispatch import HookTable
from streamlearn.core.hooks import HOOKS, kind_of
from streamlearn.core.optimization import Trainable
from streamlearn.errors import CompositionError, ConfigurationError
from tests.core.support import class_stream, net, probe, sgd


def table(*plugins: Any) -> HookTable:
    return HookTable(compose(plugins).table, lambda: "here")


def test_a_hook_that_nobody_implements_is_none() -> None:
    made = table(probe("a", before_step=lambda: None))
    assert [hook for hook in HOOKS if getattr(made, hook) is not None] == ["before_step"]
    with pytest.raises(AttributeError, match="there is no hook 'befor_step'"):
        made.befor_step  # noqa: B018


def test_an_argument_with_a_default_is_given_all_the_same() -> None:
    class Defaulting(Plugin):
        info = PluginInfo("defaulting", "test", "s", "r")

        @hookimpl
        def transform_batch(self, step: Any = None, batch: Any = None, scale: int = 2) -> Any:
            return (batch, step, scale)

    assert table(Defaulting()).transform_batch("batch", "step") == ("batch", "step", 2)


def test_an_argument_that_can_only_be_given_by_keyword_is_refused() -> None:
    class Keyword(Plugin):
        info = PluginInfo("keyword", "test", "s", "r")

        @hookimpl
        def after_step(self, *, step: Any) -> None: ...

    with pytest.raises(CompositionError, match=r"keyword: hook 'after_step' gives its arguments by place; take the \* out before 'step'"):
        compose([Keyword()])


def test_events_run_in_order_and_after_in_reverse() -> None:
    heard: list[str] = []
    plugins = [_events(n, heard) for n in "abc"]
    made = table(*plugins)
    made.before_step(None)
    made.after_step(None)
    assert heard == ["before a", "before b", "before c", "after c", "after b", "after a"]


def _events(name: str, heard: list[str]) -> Any:
    return probe(name, before_step=lambda: heard.append(f"before {name}"), after_step=lambda: heard.append(f"after {name}"))


def test_any_subset_of_the_arguments_is_bound_by_name() -> None:
    got: list[Any] = []
    made = table(
        probe("both", transform_phases=lambda phases, run: got.append((phases, run)) or phases),
        probe("swapped", transform_phases=lambda run, phases: got.append((phases, run)) or phases),
        probe("one", transform_phases=lambda experience: got.append(experience) or "p"),
        probe("none", before_step=lambda: got.append("none")),
    )
    assert made.transform_phases("phases", "experience", "run") == "p"
    made.before_step("step")
    assert got == [("phases", "run"), ("phases", "run"), "experience", "none"]


def test_additive_names_are_prefixed_and_nothing_is_dropped() -> None:
    made = table(
        probe("a", collect_terms=lambda: {"x": 1, "y": 2}),
        probe("b", collect_terms=lambda: 3),
        probe("c", collect_terms=lambda: None),
        probe("d", collect_terms=lambda: {}),
        probe("e", collect_terms=lambda: {"x": 4}),
    )
    assert made.collect_terms(None) == {"a/x": 1, "a/y": 2, "b": 3, "e/x": 4}


def test_a_pipeline_hands_the_value_on_and_refuses_none() -> None:
    made = table(probe("a", transform_batch=lambda batch: batch + "a"), probe("b", transform_batch=lambda batch: batch + "b"))
    assert made.transform_batch("-", None) == "-ab"
    made = table(probe("a", transform_batch=lambda batch: batch), probe("forgetful", transform_batch=lambda batch: None))
    with pytest.raises(ConfigurationError, match="plugin 'forgetful' returned nothing from 'transform_batch': return the value") as caught:
        made.transform_batch("-", None)
    assert caught.value.__notes__ == ["raised by plugin 'forgetful' in hook 'transform_batch' at here"]


def test_wrappers_nest_with_the_first_listed_outermost() -> None:
    made = table(
        probe("outer", around_objective=lambda objective, step: f"outer({objective(step)})"),
        probe("inner", around_objective=lambda objective, step: f"inner({objective(step)}, {objective(step + 1)})"),
    )
    assert made.around_objective(lambda step: f"o{step}", 1) == "outer(inner(o1, o2))"


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if kind_of(hook) == "exclusive"])
def test_an_exclusive_hook_that_returns_nothing_is_refused(hook: str) -> None:
    made = table(probe("forgetful", **{hook: lambda: None}))
    with pytest.raises(ConfigurationError, match=f"plugin 'forgetful' returned nothing from '{hook}'"):
        getattr(made, hook)(None, None)


def test_an_objective_that_is_not_returned_is_refused() -> None:
    made = table(probe("forgetful", around_objective=lambda objective, step: None))
    with pytest.raises(ConfigurationError, match="plugin 'forgetful' returned nothing from 'around_objective'"):
        made.around_objective(lambda step: 1, 1)


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook != "after_run"])
def test_an_exception_carries_plugin_hook_and_place(hook: str) -> None:
    def fail() -> None:
        raise ValueError("broken inside")

    active: dict[str, Any] = {hook: fail}
    engine = Engine(net(), sgd(), [probe("good", before_step=lambda: None), probe("bad", **active)])
    with pytest.raises(ValueError, match="broken inside") as caught:
        engine.run(class_stream())
    (note,) = caught.value.__notes__
    assert note.startswith(f"raised by plugin 'bad' in hook '{hook}' at experience ")
    assert "step " in note


def test_every_hook_is_fired_in_the_documented_order() -> None:
    heard: list[str] = []

    def hear(hook: str, answer: Any = None) -> Any:
        def function(*given: Any) -> Any:
            heard.append(hook)
            return answer(*given) if callable(answer) else answer

        return function

    def first(hook: str) -> Any:
        return {
            "transform_stream": lambda stream: hear(hook)() or stream,
            "transform_model": lambda model: hear(hook)() or model,
            "transform_phases": lambda phases: hear(hook)() or phases,
            "transform_batch": lambda batch: hear(hook)() or batch,
            "transform_supervision": lambda supervision: hear(hook)() or supervision,
            "transform_gradients": lambda gradients: hear(hook)() or gradients,
            "collect_modules": lambda: hear(hook)() or {"m": Trainable(torch.nn.Linear(1, 1))},
            "collect_teachers": lambda: hear(hook)() or {},
            "collect_taps": lambda: hear(hook)() or {"x": "encoder.body.0"},
            "collect_metrics": lambda: hear(hook)() or {},
            "provide_task_probabilities": lambda: hear(hook)() or {"blobs": 1.0},
            "provide_predictions": lambda batch, evaluation: hear(hook)() or {"blobs": torch.zeros(len(batch), 6)},
            "provide_task_losses": lambda supervision: hear(hook)() or [record.outputs.logsumexp(1) for record in supervision],
            "provide_weighting": lambda losses: hear(hook)() or sum(losses.values()),
            "provide_gradient_combination": lambda rows: hear(hook)() or dict.fromkeys(rows.names, 1.0),
            "around_objective": lambda objective, step: hear(hook)() or objective(step),
            "around_update": lambda update, gradients: hear(hook)() or update(gradients),
        }.get(hook, lambda: hear(hook)())  # noqa: PLW0108 - probe() reads the names of its arguments

    engine = Engine(net(), sgd(), [probe("recorder", **{hook: first(hook) for hook in HOOKS})], batch_size=20)
    engine.run(class_stream()[:1])
    assert set(heard) == set(HOOKS)
    evaluation = ["collect_metrics", "before_evaluation", "provide_predictions", "after_evaluation"]
    assert heard == [
        "transform_stream", "transform_model", "before_run", *evaluation,
        "collect_modules", "collect_teachers", "collect_taps", "before_experience", "transform_phases", "before_epoch",
        "provide_task_probabilities", "transform_batch", "before_step", "around_objective", "transform_supervision",
        "provide_task_losses", "collect_terms", "provide_weighting", "provide_gradient_combination", "transform_gradients",
        "around_update", "after_step", "after_epoch", "after_experience", *evaluation, "after_run",
    ]  # fmt: skip
