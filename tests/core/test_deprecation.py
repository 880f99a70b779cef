from __future__ import annotations

import warnings
from typing import Any

import pytest

import streamlearn
from streamlearn import Plugin, PluginInfo, hookimpl
from streamlearn.core import deprecation
from streamlearn.core.composition import compose
from streamlearn.core.deprecation import Renamed, StreamlearnDeprecationWarning, api_problem, hooks_of
from streamlearn.core.dispatch import HookTable
from streamlearn.core.hooks import HOOK_API_VERSION, HOOKS, OLDEST_HOOK_API_VERSION, since_of
from streamlearn.errors import CompositionError

HOOK = Renamed("collect_losses", "collect_terms", since="0.3")
EXCLUSIVE = Renamed("provide_weights", "provide_weighting", since="0.3")
ARGUMENT = Renamed("grads", "gradients", since="0.3", hook="transform_gradients")


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that this is another release, in which three names have changed."""
    monkeypatch.setattr(deprecation, "RENAMED", (HOOK, EXCLUSIVE, ARGUMENT))

    def pretend(version: str) -> None:
        monkeypatch.setattr(streamlearn, "__version__", version)

    pretend("0.3.0")
    return pretend


class Old(Plugin):
    """Written for release 0.2."""

    info = PluginInfo("old", "test", "Old.", "none")

    @hookimpl
    def collect_losses(self, step: Any) -> Any:
        return step + 1

    @hookimpl
    def transform_gradients(self, step: Any, grads: Any) -> Any:
        return grads - step


class Both(Plugin):
    """Written for releases 0.2 and 0.3."""

    info = PluginInfo("both", "test", "Both.", "none")

    @hookimpl
    def collect_losses(self, step: Any) -> Any:
        raise AssertionError("the present name is there")

    @hookimpl
    def collect_terms(self, step: Any) -> Any:
        return step + 2


class Weights(Plugin):
    """Claims an exclusive hook under its old name."""

    info = PluginInfo("weights", "test", "Weights.", "none")

    @hookimpl
    def provide_weights(self, losses: Any) -> Any:
        return sum(losses.values())


class Weighting(Plugin):
    """Claims it under the present one."""

    info = PluginInfo("weighting", "test", "Weights.", "none")

    @hookimpl
    def provide_weighting(self, losses: Any) -> Any:
        return sum(losses.values())


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1.dev2", "0.4.7"])
def test_an_old_name_is_understood_for_two_minor_releases_and_warned_of(release: Any, version: str) -> None:
    release(version)
    with pytest.warns(StreamlearnDeprecationWarning) as caught:
        composition = compose([Old()])
    assert [str(warning.message) for warning in caught] == [
        "plugin 'old' implements the hook 'collect_losses', which has been called 'collect_terms' since streamlearn 0.3 and will not be "
        "understood from streamlearn 0.5 on: rename it",
        "plugin 'old' implements the argument 'grads' of the hook 'transform_gradients', which has been called 'gradients' since "
        "streamlearn 0.3 and will not be understood from streamlearn 0.5 on: rename it",
    ]
    table: Any = HookTable(composition.table, lambda: "nowhere")
    assert table.collect_terms(5) == {"old": 6}
    assert table.transform_gradients(10, 3) == 7  # (gradients, step): in the order of the contract, whatever the plugin's
    assert composition.firing_order("collect_terms") == ("old",)


@pytest.mark.usefixtures("release")
def test_the_warning_points_at_the_method_that_is_to_be_changed() -> None:
    with pytest.warns(StreamlearnDeprecationWarning) as caught:
        compose([Old()])
    assert {warning.filename for warning in caught} == {__file__}
    assert caught[0].lineno == Old.collect_losses.__code__.co_firstlineno


@pytest.mark.usefixtures("release")
def test_the_warning_is_shown_by_default_and_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.simplefilter("ignore", DeprecationWarning)  # as Python itself starts
        for _ in range(3):
            compose([Old()])
    assert len(caught) == 2


@pytest.mark.parametrize("version", ["0.5.0", "0.6", "1.0.0"])
def test_after_the_window_the_old_name_is_refused_by_the_same_facts(release: Any, version: str) -> None:
    release(version)
    with pytest.raises(CompositionError) as caught:
        compose([Old()])
    first, second = caught.value.problems
    assert first == (
        "plugin 'old' implements the hook 'collect_losses', which has been called 'collect_terms' since streamlearn 0.3 and is no longer "
        "understood: rename it"
    )
    assert second.startswith(
        "plugin 'old' implements the argument 'grads' of the hook 'transform_gradients', which has been called 'gradients'"
    )
    assert second.endswith("since streamlearn 0.3 and is no longer understood: rename it")


@pytest.mark.parametrize("version", ["0.3.0", "0.9.0"])
def test_a_plugin_with_both_names_serves_old_and_new_releases_in_silence(release: Any, version: str) -> None:
    release(version)
    table: Any = HookTable(compose([Both()]).table, lambda: "nowhere")
    assert table.collect_terms(5) == {"both": 7}


@pytest.mark.usefixtures("release")
def test_an_exclusive_hook_is_claimed_under_either_name() -> None:
    with pytest.warns(StreamlearnDeprecationWarning), pytest.raises(CompositionError, match="2 plugins claim 'provide_weighting'"):
        compose([Weights(), Weighting()])


@pytest.mark.usefixtures("release")
def test_a_class_tells_its_hooks_under_their_present_names() -> None:
    assert hooks_of(Old) == {"collect_terms": "collect_losses", "transform_gradients": "transform_gradients"}
    assert hooks_of(Both) == {"collect_terms": "collect_terms"}


def test_the_end_is_two_minor_releases_later() -> None:
    assert [Renamed("a", "b", since=since).ends for since in ("0.1", "1.0", "2.9")] == ["0.3", "1.2", "2.11"]


def test_every_renamed_name_leads_to_one_of_the_contract() -> None:
    for renamed in deprecation.RENAMED:
        assert (renamed.new if renamed.hook is None else renamed.hook) in HOOKS
        assert renamed.old not in HOOKS


@pytest.mark.parametrize("api", [OLDEST_HOOK_API_VERSION, HOOK_API_VERSION])
def test_versions_of_the_contract_within_the_window_are_accepted(api: int) -> None:
    assert api_problem(api, "acme") is None


def test_an_older_version_is_accepted_as_long_as_the_window_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deprecation, "HOOK_API_VERSION", 3)
    monkeypatch.setattr(deprecation, "OLDEST_HOOK_API_VERSION", 2)
    assert [api for api in range(5) if api_problem(api) is None] == [2, 3]
    assert api_problem(1, "acme") == (
        "was written for version 1 of the hooks, this streamlearn accepts none older than 2", "run  pip install --upgrade acme",
    )  # fmt: skip
    assert (api_problem(4, "acme") or ("", ""))[1] == "run  pip install --upgrade streamlearn"
    assert (api_problem(1) or ("", ""))[1] == "rewrite it after docs/hooks.md"


@pytest.mark.parametrize("api", ["1", 1.0, True, None])
def test_a_version_that_is_no_whole_number_is_refused(api: Any) -> None:
    class Strange(Plugin):
        info = PluginInfo("strange", "test", "s", "r", api=api)

    with pytest.raises(CompositionError, match=r"strange has info.api = .*, which is no version of the hooks: write a whole number"):
        compose([Strange()])


def test_every_hook_says_since_when_it_is_there() -> None:
    for hook in HOOKS:
        major, minor = map(int, since_of(hook).split("."))
        assert (0, 1) <= (major, minor) <= tuple(map(int, streamlearn.__version__.split(".")[:2]))
