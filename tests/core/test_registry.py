from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from streamlearn import Engine, Plugin
from streamlearn.core import registry
from streamlearn.core.hooks import HOOK_API_VERSION
from streamlearn.errors import CheckpointError, CompositionError, ConfigurationError, UnknownNameError
from streamlearn.plugins import EWC

from .distributions import Installer, installer, working
from .support import Stop, class_stream, net, sgd, stop_at


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installer]:
    yield from installer(tmp_path, monkeypatch)


def test_built_ins_come_through_entry_points() -> None:
    assert {"ewc", "joint", "lwf", "multi_head", "replay"} <= {plugin.name for plugin in registry.installed()}
    assert registry.load("EWC") is EWC
    assert repr(registry.create("multi-head", {"layer": "x"})) == "MultiHead(layer='x')"
    assert registry.distributions_of([EWC()])["ewc"].startswith("streamlearn ")
    assert next(plugin.family for plugin in registry.installed() if plugin.name == "lwf") == "distillation"


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown plugin 'ecw': did you mean 'ewc'\? \(known: .*replay"):
        registry.load("ecw")


# ------------------------------------------------------------------------------------------------ what cannot be loaded

MARKED = "from streamlearn import Plugin, PluginInfo, hookimpl\n"
BROKEN = {
    "a module that is not there": ({}, "acme_x:Made", "ModuleNotFoundError: No module named 'acme_x'", "--force-reinstall acme"),
    "a syntax error": ({"acme_x": "class Made(:\n"}, "acme_x:Made", "SyntaxError: invalid syntax", "tell its authors"),
    "any exception": ({"acme_x": "1 / 0"}, "acme_x:Made", "ZeroDivisionError: division by zero", "tell its authors"),
    "a module that ends the process": ({"acme_x": "raise SystemExit(3)"}, "acme_x:Made", "SystemExit: 3", "tell its authors"),
    "a warning that is an error": ({"acme_x": "import warnings; warnings.warn('old')"}, "acme_x:Made", "UserWarning: old", "authors"),
    "an attribute that is not there": ({"acme_x": ""}, "acme_x:Made", "AttributeError: ", "names what is not there"),
    "no class": ({"acme_x": "Made = 3"}, "acme_x:Made", "is 3, which is no plugin", "derived from streamlearn.Plugin"),
    "a class of something else": ({"acme_x": "class Made: pass"}, "acme_x:Made", "which is no plugin", "derived from streamlearn.Plugin"),
    "no info": ({"acme_x": MARKED + "class Made(Plugin): pass"}, "acme_x:Made", "has no info", "info = PluginInfo(...)"),
    "another name": ({"acme_x": working("other")}, "acme_x:Made", "calls itself 'other' in its info", "they must agree"),
    "a package that is missing": (
        {"acme_x": "import no_such_package.sub"},
        "acme_x:Made",
        "'no_such_package'",
        "pip install no_such_package",
    ),
    "an extra that is missing": ({"acme_x": "import no_such_extra"}, "acme_x:Made", "'no_such_extra'", "pip install 'acme[fast]'"),
    "an extra of ours that is missing": (
        {"acme_x": "from streamlearn.errors import MissingExtraError\nraise MissingExtraError('made', 'river', 'river')"},
        "acme_x:Made",
        "needs the package 'river'",
        "pip install 'streamlearn[river]'",
    ),
    "a part of us that is not there": (
        {"acme_x": "import streamlearn.core.nothing"},
        "acme_x:Made",
        "nothing",
        "pip install --upgrade streamlearn",
    ),
    "a name of ours that is not there": (
        {"acme_x": "from streamlearn import Nothing"},
        "acme_x:Made",
        "Nothing",
        "pip install --upgrade streamlearn",
    ),
}
"""Modules, reference, and what the message says of cause and cure."""

REFUSED = {
    "a newer contract": (
        working("made", more=f"api={HOOK_API_VERSION + 1}"),
        "was written for version 2",
        "pip install --upgrade streamlearn",
    ),
    "a contract that is too old": (working("made", more="api=0"), "accepts none older than 1", "pip install --upgrade acme"),
    "no version of the contract": (working("made", more="api='1'"), "info.api = '1'", "whole number"),
    "a typo in a hook": (
        working("made").replace("after_step", "after_stop"),
        "there is no hook 'after_stop'",
        "did you mean 'after_step'?",
    ),
    "a hook that is not marked": (working("made").replace("@hookimpl", ""), "is not marked", "@hookimpl above it"),
    "an argument that no hook has": (
        working("made").replace("self, step", "self, strep"),
        "hook 'after_step' has no argument 'strep'",
        "did you mean 'step'? (it has: step)",
    ),
    "a word where a set belongs": (working("made", more="provides='x'"), "info.provides = 'x'", "frozenset"),
    "required and in conflict": (
        working("made", more="requires=frozenset({'ewc'}), conflicts=frozenset({'ewc'})"),
        "'ewc' both in info.requires and",
        "one of the two",
    ),
    "before and after": (
        working("made", more="before=frozenset({'ewc'}), after=frozenset({'ewc'})"),
        "info.before and in info.after",
        "one of",
    ),
    "a mark where none belongs": (working("made", more="conflicts=frozenset({'sharing!'})"), "no capability matches", "write 'sharing'"),
    "unique here and not there": (
        working("made", more="provides=frozenset({'sharing'})"),
        "cross_stitch, hat, mmoe, mtan, pad_net, ple, separate_networks, sluice, task_routing provides 'sharing!'",
        "write it alike",
    ),
    "what nobody provides": (
        working("made", more="requires=frozenset({'a_thing'})"),
        "no installed plugin provides",
        "install one that does",
    ),
    "itself": (working("made", more="requires=frozenset({'made'})"), "requires 'made', which it is itself", "take 'made' out"),
    "a package for its instances": (
        working("made") + "    def __init__(self, **o): import no_such_package\n",
        "'no_such_package'",
        "pip install no",
    ),
    "a mistake in its constructor": (
        working("made") + "    def __init__(self, **o): 1 / 0\n",
        "with its defaults (ZeroDivisionError",
        "authors of acme",
    ),
    "an extra for its instances": (
        "from streamlearn.errors import MissingExtraError\n"
        + working("made")
        + "    def __init__(self, **o): raise MissingExtraError('m', 'river', 'river')\n",
        "needs the package 'river'",
        "pip install 'streamlearn[river]'",
    ),
}
"""Source of a module that can be imported, and what the examination says of cause and cure."""

FAST = "Provides-Extra: fast\nRequires-Dist: torch>=2\nRequires-Dist: no-such-extra>=3; extra == 'fast'\n"


def judged() -> dict[str, tuple[str, str]]:
    """State and problems of what is not ours, by name."""
    found = registry.examine()
    assert {one.state for one in found if one.plugin.distribution == "streamlearn"} == {"ok"}
    return {one.plugin.name: (one.state, "; ".join(map(str, one.problems))) for one in found if one.plugin.distribution != "streamlearn"}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_loaded_is_told_with_its_distribution_cause_and_cure(install: Installer, case: str) -> None:
    modules, reference, cause, cure = BROKEN[case]
    install("acme", {"made": reference}, modules, requires=FAST)
    with pytest.raises(ConfigurationError, match=r"^plugin 'made' of acme 1\.0 ") as caught:
        registry.load("made")
    assert cause in str(caught.value)
    assert cure in str(caught.value)
    state, told = judged()["made"]
    assert state == "broken"
    assert told in str(caught.value)
    assert registry.load("ewc") is EWC


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_refused_in_every_composition_is_told_before(install: Installer, case: str) -> None:
    source, cause, cure = REFUSED[case]
    install("acme", {"made": "acme_x:Made"}, {"acme_x": source})
    assert issubclass(registry.load("made"), Plugin)
    state, told = judged()["made"]
    assert state == "broken"
    assert cause in told
    assert cure in told


def test_a_plugin_that_wants_options_is_not_broken(install: Installer) -> None:
    source = working("made") + "    def __init__(self, path, **options): 1 / 0\n"
    install("acme", {"made": "acme_x:Made", "open": "acme_y:Made"}, {"acme_x": source, "acme_y": working("open")})
    assert judged() == {"made": ("ok", ""), "open": ("ok", "")}


def test_a_plugin_of_a_newer_contract_is_refused_when_it_is_used(install: Installer) -> None:
    install("acme", {"made": "acme_x:Made"}, {"acme_x": working("made", more="api=2")})
    with pytest.raises(CompositionError, match=r"made was written for version 2 of the hooks, .*: run  pip install --upgrade streamlearn"):
        Engine(net(), sgd(), [registry.create("made", {})])


def test_one_that_is_too_old_is_to_be_upgraded_itself(install: Installer) -> None:
    install("acme", {"made": "acme_x:Made"}, {"acme_x": working("made", more="api=0")})
    with pytest.raises(CompositionError, match=r"made was written for version 0 .*: run  pip install --upgrade acme"):
        Engine(net(), sgd(), [registry.create("made", {})])


def test_what_a_module_prints_when_it_is_imported_is_kept_out_of_the_output(install: Installer, capsys: pytest.CaptureFixture[str]) -> None:
    install("acme", {"made": "acme_x:Made"}, {"acme_x": "print('hello')\n" + working("made")})
    registry.load("made")
    assert capsys.readouterr() == ("", "hello\n")


def test_a_damaged_list_of_entry_points_spoils_no_other(install: Installer) -> None:
    info = install("acme", {})
    install("second", {"made": "acme_x:Made"}, {"acme_x": working("made")})
    (info / "entry_points.txt").write_text("[streamlearn.plugins]\nnonsense\n")
    assert registry.load("ewc") is EWC
    assert registry.load("made").info.name == "made"
    ((path, cause),) = registry.unreadable()
    assert path == str(info)
    assert cause


# ------------------------------------------------------------------------------------------------ names


@pytest.fixture
def two_called_ewc(install: Installer) -> Installer:
    install("acme-one", {"ewc": "acme_one:Made"}, {"acme_one": working("ewc")})
    return install


@pytest.mark.usefixtures("two_called_ewc")
def test_a_name_that_two_distributions_offer_is_said_with_its_distribution() -> None:
    with pytest.raises(
        ConfigurationError, match="'ewc' is offered by 2 distributions: write ewc@acme-one or ewc@streamlearn, or uninstall"
    ):
        registry.load("ewc")
    assert registry.load("ewc@streamlearn") is EWC
    assert registry.load("EWC@Acme_One").__module__ == "acme_one"
    assert registry.distributions_of([registry.create("ewc@acme-one", {})]) == {"ewc": "acme-one 1.0"}
    assert registry.distributions_of([EWC()])["ewc"].startswith("streamlearn ")
    with pytest.raises(UnknownNameError, match=r"unknown plugin 'ewc@acme': did you mean 'ewc@acme-one'\? .*ewc@streamlearn"):
        registry.load("ewc@acme")
    told = {one.plugin.address: (one.state, "; ".join(map(str, one.problems))) for one in registry.examine()}
    assert told["ewc@streamlearn"][0] == told["ewc@acme-one"][0] == "broken"
    assert "is offered by acme-one too: write ewc@streamlearn to mean this one" in told["ewc@streamlearn"][1]
    assert told["lwf@streamlearn"] == ("ok", "")


def test_a_name_that_one_distribution_offers_twice_has_no_address_of_its_own(install: Installer) -> None:
    info = install("acme", {"made": "acme_x:Made"}, {"acme_x": working("made")})
    with (info / "entry_points.txt").open("a") as file:
        file.write("made = acme_x:Other\n")
    with pytest.raises(ConfigurationError, match=r"'made' is registered 2 times by acme 1\.0: install it again"):
        registry.load("made@acme")
    assert "is registered 2 times by acme" in judged()["made"][1]


def test_distributions_that_share_a_top_package_are_told_apart(install: Installer, tmp_path: Path) -> None:
    for number in ("one", "two"):
        install(f"acme-{number}", {number: f"acme.{number}:Made"})
        folder = tmp_path / f"site-acme-{number}" / "acme"
        folder.mkdir()
        (folder / f"{number}.py").write_text(working(number))
        install.modules |= {"acme", f"acme.{number}"}
    plugins = [registry.create(number, {}) for number in ("one", "two")]
    assert registry.distributions_of(plugins) == {"one": "acme-one 1.0", "two": "acme-two 1.0"}


# ------------------------------------------------------------------------------------------------ what may be loaded


@pytest.mark.parametrize(
    ("listed", "allowed", "refused"),
    [
        ("ewc, l2-anchor", ["ewc", "l2_anchor"], ["lwf"]),
        ("acme", ["l2_anchor"], ["ewc"]),
        ("streamlearn", ["ewc", "lwf"], ["l2_anchor"]),
        ("l2_anchor@acme", ["l2_anchor"], ["ewc"]),
        ("", [], ["ewc", "l2_anchor"]),
    ],
)
def test_the_environment_restricts_what_may_be_loaded(
    install: Installer, monkeypatch: pytest.MonkeyPatch, listed: str, allowed: list[str], refused: list[str]
) -> None:
    install("acme", {"l2_anchor": "acme_x:Made"}, {"acme_x": working("l2_anchor")})
    monkeypatch.setenv("STREAMLEARN_PLUGINS", listed)
    for name in allowed:
        assert registry.load(name).info.name == name
    for name in refused:
        with pytest.raises(
            ConfigurationError, match=f"{name}' of .* may not be loaded: the environment variable STREAMLEARN_PLUGINS allows only"
        ):
            registry.load(name)
    states = {one.plugin.name: one.state for one in registry.examine()}
    assert {states[name] for name in refused} == {"not allowed"}
    assert {states[name] for name in allowed} <= {"ok"}


def test_what_may_not_be_loaded_is_not_imported_when_it_is_examined(install: Installer, monkeypatch: pytest.MonkeyPatch) -> None:
    install("acme", {"made": "acme_x:Made"}, {"acme_x": "raise KeyboardInterrupt"})
    monkeypatch.setenv("STREAMLEARN_PLUGINS", "ewc")
    assert {one.plugin.name: one.state for one in registry.examine()}["made"] == "not allowed"


@pytest.mark.usefixtures("two_called_ewc")
def test_the_environment_can_decide_between_two_of_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMLEARN_PLUGINS", "acme-one")
    assert registry.load("ewc").__module__ == "acme_one"


def test_words_to_which_nothing_answers() -> None:
    assert registry.unknown_words("ewc, ecw,,streamlearn, acme") == ["ecw", "acme"]


# ------------------------------------------------------------------------------------------------ in a run


def interrupted(install: Installer, folder: Path) -> Engine:
    """A run with a contributed plugin, stopped after its second update; the engine could go on."""
    install("acme", {"made": "acme_x:Made"}, {"acme_x": working("made")})
    plugins = [registry.create("made", {})]
    with pytest.raises(Stop):
        Engine(net(), sgd(), plugins, checkpoint_every=1, progress=stop_at(2)).run(class_stream(), folder)
    return Engine(net(), sgd(), plugins, checkpoint_every=1)


def renamed_metadata(tmp_path: Path, version: str | None) -> None:
    """Another version of the distribution is installed, or none."""
    (info,) = (tmp_path / "site-acme").glob("*.dist-info")
    if version is None:
        info.rename(info.with_name("gone"))
    else:
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme\nVersion: {version}\n")
    registry._owner.cache_clear()


def test_a_run_records_the_distribution_of_a_contributed_plugin_and_resumes_in_silence(install: Installer, tmp_path: Path) -> None:
    result = interrupted(install, tmp_path / "run").resume(tmp_path / "run", class_stream())
    assert result.description["versions"]["plugins"] == {"made": "acme 1.0"}


def test_another_version_of_the_distribution_is_warned_of(install: Installer, tmp_path: Path) -> None:
    engine = interrupted(install, tmp_path / "run")
    renamed_metadata(tmp_path, "1.1")
    with pytest.warns(RuntimeWarning, match=r"versions\.plugins\.made was 'acme 1\.0' and is 'acme 1\.1' now"):
        engine.resume(tmp_path / "run", class_stream())


def test_without_its_distribution_a_run_is_not_resumed(install: Installer, tmp_path: Path) -> None:
    engine = interrupted(install, tmp_path / "run")
    renamed_metadata(tmp_path, None)
    with pytest.raises(CheckpointError, match=r"plugin 'made' of acme 1\.0, which is not installed any more: run  pip install acme==1\.0"):
        engine.resume(tmp_path / "run", class_stream())
