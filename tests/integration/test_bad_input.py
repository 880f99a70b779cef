from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from streamlearn import Engine, models, streams
from streamlearn.errors import CheckpointError, ConfigurationError, DataError, DivergenceError, RunFolderError, UnknownNameError
from streamlearn.plugins import EWC, LwF, MultiHead, Replay
from streamlearn.streams import Task
from streamlearn.streams.data import Data, Target
from tests.core.support import Stop, adam, blobs, class_stream, final, net, probe, same, sgd, stop_at, stream_of


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"epochs": 0}, "Engine: epochs is 0, but it must be a whole number of at least 1"),
        ({"batch_size": -3}, "Engine: batch_size is -3, but it must be a whole number of at least 1"),
        ({"batch_size": 2.5}, "Engine: batch_size is 2.5, but"),
        ({"evaluate_every": 0}, "Engine: evaluate_every is 0, but"),
        ({"checkpoint_every": True}, "Engine: checkpoint_every is True, but"),
        ({"evaluate": "always"}, "Engine: evaluate is 'always', but it must be 'experience', 'end' or 'never'"),
        ({"seed": "one"}, "Engine: seed is 'one', but it must be a whole number"),
        ({"seed": None}, "Engine: seed is None, but it must be a whole number"),
    ],
)
def test_options_of_the_engine(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        Engine(net(), sgd(), **options)


def test_model_and_optimizer_must_be_callable() -> None:
    for model, optimizer in ((None, sgd()), (net(), torch.optim.SGD(net().parameters(), lr=0.1))):
        with pytest.raises(ConfigurationError, match="model must be a torch module or a function that builds one, optimizer a function"):
            Engine(model, optimizer)  # type: ignore[arg-type]


def test_options_of_plugins() -> None:
    with pytest.raises(UnknownNameError, match="unknown option of plugin ewc 'strenth': did you mean 'strength'"):
        EWC(strenth=1)
    with pytest.raises(
        ConfigurationError, match=r"plugin ewc: option 'strength' is -1, but it must be otherwise: .*greater than or equal to 0"
    ):
        EWC(strength=-1)
    with pytest.raises(ConfigurationError, match="plugin replay: option 'policy' is 'random'"):
        Replay(policy="random")
    with pytest.raises(ConfigurationError, match="plugin lwf: option 'temperature' is 0"):
        LwF(temperature=0)


def test_a_model_with_too_few_outputs() -> None:
    with pytest.raises(DataError, match="task 'blobs' needs 6 outputs, the model gives 4: widen its last layer, or use MultiHead"):
        Engine(net(outputs=4), sgd()).run(class_stream())


def test_labels_out_of_range() -> None:
    task = Task("t", size=3)
    stream = stream_of([(Data(blobs(12, 6), torch.arange(12), (task,), {"t": Target("y")}), (task,))], (task,))
    for plan in ("experience", "never"):
        with pytest.raises(DataError, match=r"task 't' met label 5, but it has 3 classes"):
            Engine(net(outputs=3), sgd(), evaluate=plan).run(stream)  # type: ignore[arg-type]


def test_a_loss_that_is_nan_moves_nothing_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    stream, hurt = class_stream(), [True]
    factor = probe(
        "bad",
        collect_terms=lambda step: {
            "x": step.parameters["encoder.out.bias"].sum() * (float("nan") if hurt[0] and step.update == 3 else 1.0)
        },
    )
    model = net()
    before: list[Any] = []
    keep = probe("keep", before_step=lambda step: before.append({n: p.detach().clone() for n, p in model.named_parameters()}))

    def engine(model: Any) -> Engine:
        return Engine(model, sgd(), [factor, keep], batch_size=10, checkpoint_every=1)

    with pytest.raises(
        DivergenceError,
        match=r"diverged at experience 1, phase 0, epoch 0, step 3: term 'bad/x' is nan\. The update was not made; start again",
    ) as caught:
        engine(model).run(stream, output=tmp_path)
    assert f"engine.resume({str(tmp_path)!r})" in caught.value.__notes__[-1]
    assert same({n: p.detach() for n, p in model.named_parameters()}, before[-1])
    hurt[0] = False
    resumed = engine(net()).resume(tmp_path, stream)
    straight, _ = final(engine(net()), stream)
    assert same(dict(resumed.model.state_dict()), straight)


def test_a_plugin_that_raises_is_named_with_its_place_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    stream, failing = class_stream(), [True]

    def fail(step: Any) -> None:
        if failing[0] and step.update == 3:
            raise RuntimeError("no luck")

    engine = Engine(net(), sgd(), [probe("unlucky", after_step=fail)], batch_size=10)
    with pytest.raises(RuntimeError, match="no luck") as caught:
        engine.run(stream, output=tmp_path)
    notes = "\n".join(caught.value.__notes__)
    assert "raised by plugin 'unlucky' in hook 'after_step' at experience 1, phase 0, epoch 0, step 3" in notes
    assert "resume" in notes
    failing[0] = False
    resumed = engine.resume(tmp_path, stream)
    assert same(dict(resumed.model.state_dict()), final(engine, stream)[0])


def test_an_output_folder_that_holds_another_run_or_is_a_file(tmp_path: Path) -> None:
    stream = class_stream()
    Engine(net(), sgd(), batch_size=30).run(stream, output=tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(RunFolderError, match=r"already holds a run: resume it .* or choose another folder"):
        Engine(net(), sgd(), seed=1).run(stream, output=tmp_path / "run")
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match="file is a file: give a folder for the output"):
        Engine(net(), sgd()).run(stream, output=tmp_path / "file")


def test_resuming_with_another_strategy_seed_or_stream_names_the_difference(tmp_path: Path) -> None:
    stream = class_stream()
    with pytest.raises(Stop):
        Engine(net(), sgd(), [EWC(strength=1)], batch_size=10, progress=stop_at(3)).run(stream, output=tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def refused(told: str, model: Any = None, optimizer: Any = None, plugins: Any = None, stream: Any = stream, **options: Any) -> None:
        plugins = [EWC(strength=1)] if plugins is None else plugins
        engine = Engine(model or net(), optimizer or sgd(), plugins, **({"batch_size": 10} | options))
        with pytest.raises(CheckpointError, match=told):
            engine.resume(tmp_path, stream)

    refused("holds another run: seed was 0 and is 1 now; resume it with the strategy, stream and seed it was started with", seed=1)
    refused("strategy.batch_size was 10 and is 11 now", batch_size=11)
    refused(r"strategy.plugins\[0\].config.strength was 1.0 and is 2.0 now", plugins=[EWC(strength=2)])
    refused("strategy.plugins was ", plugins=[])
    refused("strategy.optimizer.groups.*lr was 0.05 and is 0.01 now", optimizer=sgd(lr=0.01))
    refused("strategy.optimizer.*", optimizer=adam)
    refused("strategy.model.parameters was ", model=net(outputs=7))
    refused("stream.experiences was 3 and is 2 now", stream=stream[:2])
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before, "nothing was harmed"
    Engine(net(), sgd(), [EWC(strength=1)], batch_size=10).resume(tmp_path, stream)


def test_resuming_from_what_holds_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"run.json"):
        Engine(net(), sgd()).resume(tmp_path, class_stream())
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"run.json is damaged"):
        Engine(net(), sgd()).resume(tmp_path, class_stream())


def test_measurements_are_not_thrown_away_when_the_checkpoints_are_gone(tmp_path: Path) -> None:
    import shutil

    stream = class_stream()
    with pytest.raises(Stop):
        Engine(net(), sgd(), batch_size=10, progress=stop_at(3)).run(stream, output=tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    events = (tmp_path / "events.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="there is no usable checkpoint"):
        Engine(net(), sgd(), batch_size=10).resume(tmp_path, stream)
    assert (tmp_path / "events.jsonl").read_bytes() == events


def test_what_a_run_folder_tells(tmp_path: Path) -> None:
    stream = streams.class_incremental("digits", classes=[[0, 1], [2, 3]])
    Engine(models.mlp(stream, (4,)), sgd(), [EWC(strength=1)]).run(stream, output=tmp_path)
    told = json.loads((tmp_path / "run.json").read_text())
    assert told["strategy"]["plugins"][0]["config"] == {"strength": 1.0, "mode": "separate", "decay": 1.0, "fisher": "exact"}
    assert told["strategy"]["optimizer"]["groups"][0]["momentum"] == 0.9


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"plugins": EWC()}, r"plugins is EWC\(\), but it must be a list: write plugins=\[EWC\(\)\]"),
        ({"device": "gpuu"}, "device is 'gpuu', "),
    ],
)
def test_arguments_of_the_engine(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        Engine(net(), sgd(), **arguments)


def test_a_model_function_that_returns_nothing() -> None:
    with pytest.raises(ConfigurationError, match="returned NoneType"):
        Engine(lambda: None, sgd()).run(class_stream())  # type: ignore[arg-type, return-value]


def test_lbfgs_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="LBFGS, which wants to evaluate the loss itself"):
        Engine(net(), torch.optim.LBFGS).run(class_stream())


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    # the value of the term is 0, its gradient NaN: a guard on losses cannot see it
    poison = probe("poison", collect_terms=lambda step: (0 * step.parameters["encoder.out.bias"].abs().sum()).sqrt())
    with pytest.raises(DivergenceError, match=r"parameter 'encoder\..*' is not finite at experience 0.*the last checkpoint is kept"):
        Engine(net(), sgd(), [poison], checkpoint_every=1).run(class_stream(), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000000"]


def test_multi_head_says_that_the_layer_is_not_the_output() -> None:
    class Backwards(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = torch.nn.Linear(8, 6)
            self.body = torch.nn.Linear(6, 8)  # defined last, runs first

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.body(x).relu())  # type: ignore[no-any-return]

    with pytest.raises(ConfigurationError, match=r"multi_head: without its layer 'body' .* name the output layer"):
        Engine(Backwards(), sgd(), [MultiHead()]).run(class_stream())
    Engine(Backwards(), sgd(), [MultiHead(layer="out")]).run(class_stream())


def test_labels_that_are_hidden_are_in_no_batch() -> None:
    source, task = blobs(12, 6), Task("t", size=6)
    seen = torch.arange(12) % 3 == 0
    data = Data(source, torch.arange(12), (task,), {"t": Target("y")}, labelled={"t": seen})
    batch = data.batch(torch.arange(12))
    assert torch.equal(batch.targets["t"][seen], source.targets["y"][seen])
    assert not batch.targets["t"][~seen].any()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def refuse(self: Path, *given: Any, **named: Any) -> Any:
        if self.name == ".lock":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *given, **named)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RunFolderError, match="Permission denied"):
        Engine(net(), sgd()).run(class_stream(), output=tmp_path / "out")
