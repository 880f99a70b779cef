"""What may stand beside Avalanche's plugins, and what is refused with a reason."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from avalanche.models import MTSimpleMLP
from avalanche.training import plugins as av
from avalanche.training.templates.base_sgd import PeriodicEval
from torch import nn

from streamlearn import Plugin, PluginInfo
from streamlearn.core.plugin import hookimpl
from streamlearn.errors import CompositionError, ConfigurationError, DataError
from streamlearn.plugins import EWC, MAML, SAM, GDumb, GroupDRO, Joint, PCGrad, Replay
from streamlearn.streams import Experience, Stream, Task
from streamlearn_avalanche import AvalanchePlugin

from .support import SEED, assert_identical, engine, stream, trained_by_avalanche, weights


def with_experience(change: Any) -> Stream:
    """The stream with every experience exchanged."""
    base = stream()
    return Stream(
        "changed", len(base), lambda number: change(base[number]), base.evaluation_set, tasks=base.tasks,
        input_shape=base.input_shape, description={"by": "hand"}, fingerprints=("changed",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (MAML(), "look-ahead"), (SAM(), "look-ahead"), (GroupDRO(), "group_dro"), (PCGrad(), "pcgrad"), (GDumb(), "gdumb"),
        (Joint(), "joint"), (AvalanchePlugin([], name="second"), "avalanche"),
    ],
)  # fmt: skip
def test_refused_beside_any_list(other: Plugin, reason: str) -> None:
    with pytest.raises(CompositionError, match=reason):
        engine([AvalanchePlugin([]), other])


@pytest.mark.parametrize("plugins", [[av.ReplayPlugin(12)], [av.GDumbPlugin(12)], [av.CoPEPlugin()], lambda network, optimizer: []])
def test_a_loader_of_its_own_refuses_our_replay(plugins: Any) -> None:
    with pytest.raises(CompositionError, match="replay"):
        engine([AvalanchePlugin(plugins), Replay(capacity=12)])


@pytest.mark.parametrize("fill", ["experience", "step"])
def test_our_replay_joins_a_list_without_loader(fill: Any) -> None:
    seen: list[int] = []

    class Counts(av.LwFPlugin):
        def before_forward(self, strategy: Any, **_: Any) -> None:
            seen.append(len(strategy.mb_x))

    result = engine([AvalanchePlugin([Counts()], seed=SEED), Replay(capacity=16, fill=fill)]).run(stream())
    assert seen[:6] == ([8, 8, 4, 8, 8, 4] if fill == "experience" else [8, 16, 8, 16, 16, 8])
    assert seen[6] == 16
    found, alone = weights(result), trained_by_avalanche(lambda network, optimizer: [av.LwFPlugin()])
    assert not torch.equal(found["classifier.weight"], alone["classifier.weight"])


def test_our_penalty_is_added_to_avalanches_loss() -> None:
    def terms(result: Any) -> list[float]:
        return [value for event in result.events if event["event"] == "epoch" for value in event["terms"].values()]

    both = engine([AvalanchePlugin([av.ReplayPlugin(12)], seed=SEED), EWC(strength=20.0)]).run(stream())
    assert any(value > 0 for value in terms(both))
    without = engine([AvalanchePlugin([av.ReplayPlugin(12)], seed=SEED), EWC(strength=0.0)]).run(stream())
    assert not terms(without)
    assert_identical(weights(without), trained_by_avalanche(lambda network, optimizer: [av.ReplayPlugin(12)]))
    assert not torch.equal(weights(both)["classifier.weight"], weights(without)["classifier.weight"])


@pytest.mark.parametrize(
    "plugins",
    [[av.ReplayPlugin(12), av.CoPEPlugin()], [av.GDumbPlugin(12), av.ReplayPlugin(12)], [av.ReplayPlugin(12), av.ReplayPlugin(6)]],
)
def test_two_that_say_what_is_trained_on_are_refused(plugins: Any) -> None:
    with pytest.raises(ConfigurationError, match="the last silently wins: list one of them"):
        AvalanchePlugin(plugins)


def test_a_function_is_checked_when_it_has_been_called() -> None:
    with pytest.raises(ConfigurationError, match="GDumbPlugin and ReplayPlugin each say what is trained on"):
        engine([AvalanchePlugin(lambda network, optimizer: [av.GDumbPlugin(12), av.ReplayPlugin(12)])]).run(stream())


def test_the_list_must_be_a_list_of_avalanches_plugins() -> None:
    with pytest.raises(ConfigurationError, match="plugins is a EWCPlugin, but it must be a list"):
        AvalanchePlugin(av.EWCPlugin(1.0))
    with pytest.raises(ConfigurationError, match=r"EWC.* is no plugin of Avalanche's: list instances"):
        AvalanchePlugin([EWC()])
    with pytest.raises(ConfigurationError, match="option 'seed' is -1"):
        AvalanchePlugin([], seed=-1)
    with pytest.raises(TypeError, match="sed"):
        AvalanchePlugin([], sed=1)  # type: ignore[call-arg]


def test_it_says_what_it_may_change() -> None:
    plugin = AvalanchePlugin([av.EWCPlugin(1.0), av.AGEMPlugin(6, 8), av.ReplayPlugin(12)])
    assert {"avalanche!", "avalanche-loss", "avalanche-dataloader", "avalanche-gradients"} == set(plugin.info.provides)
    assert "Avalanche's EWCPlugin, AGEMPlugin, ReplayPlugin; may change dataloader, gradients, loss." in engine([plugin]).explain()
    assert AvalanchePlugin.info.provides == {"avalanche!"}
    told = plugin.config.model_dump(mode="json")["plugins"]
    assert [(entry["class"], entry["options"].get("mem_size")) for entry in told] == [
        ("EWCPlugin", None), ("AGEMPlugin", None), ("ReplayPlugin", 12),
    ]  # fmt: skip
    assert told[0]["options"]["ewc_lambda"] == 1.0
    assert repr(plugin) == "AvalanchePlugin([EWCPlugin, AGEMPlugin, ReplayPlugin])"


# ---------------------------------------------------------------------- refused when the run is known


class Claims(Plugin):
    """A plugin nobody knows, which weighs rows."""

    info = PluginInfo("claims", "test", "Claims.", "none 2020")

    @hookimpl
    def provide_weighting(self, losses: Any) -> Any:
        return sum(losses.values())


class Changes(Plugin):
    """A plugin nobody knows, which changes targets."""

    info = PluginInfo("changes", "test", "Changes.", "none 2020")

    @hookimpl
    def transform_supervision(self, supervision: Any) -> Any:
        return tuple(record.replace(scale=0.5) for record in supervision)


class Exchanges(Plugin):
    """A plugin nobody knows, which exchanges the data of the main phase."""

    info = PluginInfo("exchanges", "test", "Exchanges.", "none 2020")

    @hookimpl
    def transform_phases(self, phases: Any) -> Any:
        return tuple(phase.replace(data=phase.data.subset(torch.arange(8))) for phase in phases)


class After(Exchanges):
    """The same, after Avalanche's turn."""

    info = PluginInfo("after", "test", "Exchanges.", "none 2020")

    @hookimpl
    def transform_phases(self, phases: Any, experience: Any) -> Any:
        return tuple(phase.replace(data=experience.data["train"]) for phase in phases)


def test_unknown_plugins_that_leave_no_room() -> None:
    with pytest.raises(ConfigurationError, match=r"claims cannot stand beside avalanche.*provide_weighting"):
        engine([AvalanchePlugin([]), Claims()]).run(stream())
    with pytest.raises(ConfigurationError, match="another plugin exchanged the data of the main phase"):
        engine([Exchanges(), AvalanchePlugin([])]).run(stream())
    with pytest.raises(ConfigurationError, match="no epoch of experience 0 was trained on the batches of Avalanche's loader"):
        engine([AvalanchePlugin([]), After()]).run(stream())


def test_changed_targets_reach_the_loss_or_are_refused() -> None:
    halved = engine([AvalanchePlugin([], seed=SEED), Changes()]).run(stream())
    plain = engine([AvalanchePlugin([], seed=SEED)]).run(stream())
    assert not torch.equal(weights(halved)["classifier.weight"], weights(plain)["classifier.weight"])
    with pytest.raises(ConfigurationError, match="brings a loss of its own, which changes would change"):
        engine([AvalanchePlugin([av.CoPEPlugin(n_classes=8, p_size=8)]), Changes()]).run(stream())


def test_options_of_the_engine() -> None:
    with pytest.raises(ConfigurationError, match="microbatches is 2, but Avalanche's plugins want whole batches"):
        engine([AvalanchePlugin([])], microbatches=2).run(stream())


def test_models_that_want_task_labels() -> None:
    with pytest.raises(ConfigurationError, match="multi-task modules, which want task labels in every pass"):
        engine([AvalanchePlugin([])], MTSimpleMLP(input_size=6), evaluate="never").run(stream())


class Meddles(av.LwFPlugin):
    """Does to the strategy what no plugin may do here."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        if self.what == "optimizer":
            strategy.optimizer = torch.optim.SGD(strategy.model.parameters(), lr=0.1)
        elif self.what == "model":
            strategy.model = nn.Linear(6, 8)
        else:
            strategy.train([])


@pytest.mark.parametrize(
    ("what", "told"),
    [("optimizer", "replaced the optimizer"), ("model", "replaced the model, a Net, by a Linear"), ("train", "the engine trains")],
)
def test_what_belongs_to_the_engine(what: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        engine([AvalanchePlugin([Meddles(what)])]).run(stream())


def test_periodic_evaluation_belongs_to_the_engine() -> None:
    plugin = AvalanchePlugin([PeriodicEval(eval_every=1)])
    with pytest.raises(ConfigurationError, match=r"called strategy.eval\(\), but the engine evaluates: see Engine"):
        engine([plugin]).run(stream())


def test_streams_of_which_avalanche_knows_nothing() -> None:
    def unlabelled(experience: Experience) -> Experience:
        data = experience.data["train"]
        known = torch.arange(len(data)) % 2 == 0
        return _changed(experience, data={"train": _partly(data, known)})

    with pytest.raises(DataError, match="experience 0 has rows without a label of task 'blobs'"):
        engine([AvalanchePlugin([])]).run(with_experience(unlabelled))

    def adapted(experience: Experience) -> Experience:
        return _changed(experience, data={**experience.data, "target": experience.data["train"].without_labels()})

    with pytest.raises(ConfigurationError, match="experience 0 has rows of role target"):
        engine([AvalanchePlugin([])]).run(with_experience(adapted))

    def renamed(experience: Experience) -> Experience:
        task = Task(f"task {experience.index}", size=8)
        data = experience.data["train"]
        return _changed(experience, tasks=(task,), data={"train": _asked(data, task)})

    with pytest.raises(ConfigurationError, match="experience 1 asks on the tasks task 1 after task 0"):
        engine([AvalanchePlugin([])], evaluate="never").run(with_experience(renamed))


def _changed(experience: Experience, **fields: Any) -> Experience:
    return dataclasses.replace(experience, **fields)


def _partly(data: Any, known: Any) -> Any:
    return dataclasses.replace(data, labelled={"blobs": known})


def _asked(data: Any, task: Task) -> Any:
    return dataclasses.replace(data, tasks=(task,), targets={task.name: data.targets["blobs"]})
