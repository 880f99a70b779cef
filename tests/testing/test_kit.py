from __future__ import annotations

from typing import Any

import pytest

from streamlearn import Plugin
from streamlearn.errors import ConfigurationError, UnknownNameError
from streamlearn.plugins import EWC, Clipping, Replay
from streamlearn.testing import CHECKS, Report, Result, plugin_checks, run_checks
from streamlearn.testing.memory import allowance


@plugin_checks(Clipping(max_norm=0.1), only=["information", "hooks", "has_effect", "terms"])
def test_the_decorator_makes_a_test_of_each_check(check: Any) -> None:
    check()


def test_cases_are_named_after_plugin_and_check() -> None:
    mark = plugin_checks(EWC(strength=10.0), Replay(capacity=5, name="mine"), only=["resumes", "trains[multitask]"])
    assert [case.id for case in mark.args[1]] == ["ewc-trains[multitask]", "ewc-resumes", "mine-trains[multitask]", "mine-resumes"]


def test_all_checks_run_in_their_order_unless_some_are_chosen() -> None:
    assert len(plugin_checks(EWC()).args[1]) == len(CHECKS) == 29
    assert [result.name for result in run_checks(EWC(), only=["hooks", "information"]).results] == ["information", "hooks"]


@pytest.mark.parametrize("argument", ["expected_failures", "only"])
def test_a_check_that_does_not_exist_is_refused(argument: str) -> None:
    for call in (run_checks, plugin_checks):
        with pytest.raises(UnknownNameError, match="unknown check 'resume': did you mean 'resumes'"):
            call(EWC(), **{argument: {"resume": "why"}})


def test_an_unexpected_pass_fails() -> None:
    report = run_checks(Clipping(), only=["hooks"], expected_failures={"hooks": "a reason"})
    assert not report.passed
    assert report.counts == {"unexpected pass": 1}
    ((case,),) = (plugin_checks(Clipping(), only=["hooks"], expected_failures={"hooks": "a reason"}).args[1],)
    with pytest.raises(pytest.fail.Exception, match="was expected to fail"):
        case.values[0]()


class Idle(Plugin):
    """Does nothing."""

    info = EWC.info


def test_an_expected_failure_passes_and_tells_why() -> None:
    report = run_checks(Idle(), only=["has_effect"], expected_failures={"has_effect": "it idles"})
    assert report.passed
    assert report.results[0].reason == "it idles"
    ((case,),) = (plugin_checks(Idle(), only=["has_effect"], expected_failures={"has_effect": "it idles"}).args[1],)
    with pytest.raises(pytest.xfail.Exception, match="it idles"):
        case.values[0]()


def test_a_failure_says_what_and_what_to_do() -> None:
    (result,) = run_checks(Idle(), only=["has_effect"]).results
    assert result.outcome == "failed"
    assert result.reason.startswith("it changes nothing: on class_incremental, ")


def test_what_is_no_plugin_is_refused() -> None:
    one = EWC()
    with pytest.raises(ConfigurationError, match="is not a plugin"):
        run_checks("ewc")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="must return a new plugin at each call"):
        run_checks(lambda: 3)  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigurationError, match="the same one twice"):
        run_checks(lambda: one)


class Stubborn(Plugin):
    """Takes an object."""

    info = EWC.info

    def __init__(self, thing: object) -> None:
        super().__init__()
        self.thing = thing


def test_a_plugin_of_which_no_copy_can_be_made_needs_a_function() -> None:
    with pytest.raises(ConfigurationError, match=r"give a function that makes one, as in lambda: Stubborn\(\.\.\.\)"):
        run_checks(Stubborn(3))
    assert run_checks(lambda: Stubborn(3), only=["hooks"]).passed


def test_a_report_ends_with_a_summary() -> None:
    results = (Result("hooks", "passed"), Result("terms", "not applicable", "no term"), Result("resumes", "failed", "state lost"))
    report = Report("mine", results)
    assert str(report).splitlines()[-1] == "3 checks: 1 passed, 1 failed (resumes), 1 not applicable (no term)"
    assert report.to_json()["counts"] == {"passed": 1, "not applicable": 1, "failed": 1}


@pytest.mark.parametrize(
    ("told", "allowed"),
    [("none", 64), ("1 x parameters", 464), ("2 x the model", 864), ("1 x parameters within a step", 64), ("4 bytes for each weight", 464),
     ("1 number for each task", 160), ("1 x parameters per experience", 1264), ("the teachers", None)],
)  # fmt: skip
def test_what_memory_may_say(told: str, allowed: int | None) -> None:
    assert allowance(told, 400, 3, None) == allowed
