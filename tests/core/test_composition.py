from __future__ import annotations

from typing import Any

import pytest

from streamlearn import Engine, Plugin, PluginInfo
from streamlearn.core.composition import compose
from streamlearn.core.hooks import HOOK_API_VERSION, HOOKS
from streamlearn.core.plugin import Passes, hookimpl
from streamlearn.errors import CompositionError, ConfigurationError
from streamlearn.plugins import EWC, Joint, LwF, Replay
from tests.core.support import net, probe, sgd


def named(name: str, **info: Any) -> Plugin:
    made = {key: frozenset(value) if isinstance(value, set) else value for key, value in info.items()}
    return type(name, (Plugin,), {"info": PluginInfo(name, "test", f"Is {name}.", "none", **made)})()


def names(*plugins: Plugin) -> list[str]:
    return [plugin.name for plugin in compose(plugins).plugins]


def test_the_users_order_is_kept_where_no_edge_speaks() -> None:
    assert names(named("c"), named("a"), named("b")) == ["c", "a", "b"]


def test_before_and_after_move_only_what_they_must() -> None:
    assert names(named("a"), named("b", before={"a"}), named("c")) == ["b", "a", "c"]
    assert names(named("a", after={"c"}), named("b"), named("c")) == ["b", "c", "a"]
    assert names(named("x"), named("a", after={"light"}), named("y"), named("lamp", provides={"light"})) == ["x", "y", "lamp", "a"]


def test_every_reason_is_told_in_one_error() -> None:
    class Misspelt(Plugin):
        info = PluginInfo("misspelt", "test", "s", "r")

        @hookimpl
        def colect_terms(self, step: Any) -> None: ...

        def before_step(self, step: Any) -> None: ...

    class Wrong(Plugin):
        info = PluginInfo("wrong", "test", "s", "r")

        @hookimpl
        def after_step(self, strep: Any) -> None: ...

    plugins = [
        EWC(),
        EWC(),
        probe("first", provide_weighting=lambda losses: sum(losses.values())),
        probe("second", provide_weighting=lambda losses: sum(losses.values())),
        named("needy", requires={"a_thing"}),
        named("hostile", conflicts={"needy"}),
        named("maml", provides={"inner-loop!"}),
        named("mer", provides={"inner-loop!"}),
        named("early", before={"late"}),
        named("late", before={"early"}),
        named("newer", api=HOOK_API_VERSION + 1),
        Misspelt(),
        Wrong(),
    ]
    with pytest.raises(CompositionError) as caught:
        Engine(net(), sgd(), plugins)
    problems = caught.value.problems
    told = str(caught.value)

    def one(*words: str) -> None:
        assert sum(all(word in problem for word in words) for problem in problems) == 1, (words, problems)

    one("2 plugins are called 'ewc'", "EWC(..., name='ewc_2')")
    one("'provide_weighting'", "first, second", "remove all but one")
    one("needy needs 'a_thing'", "add one")
    one("hostile cannot stand beside needy", "remove one of the two")
    one("'inner-loop'", "maml, mer", "remove all but one")
    one("early, late", "remove one of them")
    one("newer was written for version 2", "upgrade streamlearn")
    one("misspelt", "'colect_terms'", "did you mean 'collect_terms'?")
    one("misspelt", "'before_step'", "put @hookimpl above it")
    one("wrong", "after_step", "strep")
    assert len(problems) == 10
    assert all(problem in told for problem in problems)
    assert "10 reason(s)" in told


def test_a_requirement_is_met_by_a_capability_or_a_name() -> None:
    assert names(named("a", requires={"light", "b"}), named("b"), named("lamp", provides={"light!"})) == ["a", "b", "lamp"]
    with pytest.raises(CompositionError, match="a needs 'a'"):
        compose([named("a", requires={"a"})])


def test_the_same_plugin_twice_under_two_names_is_accepted_and_stays_two() -> None:
    assert names(EWC(), EWC(name="second")) == ["ewc", "second"]


def test_joint_refuses_replay() -> None:
    with pytest.raises(CompositionError, match="joint cannot stand beside replay"):
        compose([Joint(), Replay()])


def test_explain_tells_order_reasons_hooks_and_passes() -> None:
    plugins = [
        probe("plain", before_step=lambda: None, after_step=lambda: None),
        named("first", before={"plain"}, passes=Passes(forward=2, backward=1)),
        LwF(),
        probe("last", before_step=lambda: None, after_step=lambda: None),
    ]
    text = Engine(net(), sgd(), plugins).explain()
    lines = text.splitlines()
    assert lines[1].strip().startswith("1. first()")
    assert "  - first comes before plain, because it asks to precede 'plain'" in lines
    told = {line.split()[0]: line for line in lines if line.strip() and line.split()[0] in HOOKS}
    assert told["before_step"].endswith("all run, in order: plain > last")
    assert told["after_step"].endswith("all run, in reverse order: last > plain")
    assert told["collect_terms"].endswith("contributions are added up, by name: lwf")
    assert "around_update" not in told
    assert lines[-1] == "planned passes per step: 3 forward, 2 backward of the model, 1 forward of teachers (previous)"
    assert "none: plain training" in Engine(net(), sgd()).explain()


@pytest.mark.parametrize("wrong", [EWC, "ewc", None, 3])
def test_what_is_no_plugin_instance_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"is not a plugin: list instances, as in plugins=\[EWC\(strength=1.0\)\]"):
        Engine(net(), sgd(), [wrong])
