from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, models, streams
from streamlearn.core.checkpoint import latest_checkpoint, read_checkpoint
from streamlearn.errors import ConfigurationError
from streamlearn.models import Heads, Model
from streamlearn.plugins import EWC, LwF, MultiHead, PackNet, Replay
from streamlearn.plugins.sharing.frozen_backbone import FrozenBackbone, at_rest
from streamlearn.streams.sources import TensorSource
from streamlearn.streams.sources.embedded import embedded
from tests.core.support import Stop, class_stream, final, growing_stream, net, probe, same, sgd, stop_at


def encoder() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 7), nn.BatchNorm1d(7))


def model(tasks: Any, **options: Any) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Model(encoder(), Heads(7, tasks))


def states(plugins: list[Any], stream: Any, made: Any = None, **options: Any) -> list[dict[str, Tensor]]:
    """Parameters and buffers before, and after every experience."""
    found: list[dict[str, Tensor]] = []

    def copied(run: Any) -> None:
        found.append({name: tensor.clone() for name, tensor in run.model.state_dict().items()})

    watch = probe("watch", before_run=copied, after_experience=copied)
    momentum = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1)  # noqa: E731
    Engine(made or model(stream.tasks), momentum, [*plugins, watch], batch_size=10, epochs=2, **options).run(stream)
    return found


def moved(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in a.items() if tensor.shape != b[name].shape or not torch.equal(tensor, b[name])}


def test_nothing_of_the_encoder_moves_and_the_head_does() -> None:
    stream = class_stream()
    found = states([FrozenBackbone()], stream)
    for a, b in pairwise(found):
        assert moved(a, b) == {"heads.by_task.blobs.weight", "heads.by_task.blobs.bias"}
    without = states([], stream)
    assert {"encoder.0.weight", "encoder.1.running_mean", "encoder.5.num_batches_tracked"} <= moved(without[0], without[1])


def test_after_some_experiences_it_is_the_plain_run_until_then() -> None:
    stream = class_stream()
    found, plain = states([FrozenBackbone(after=1)], stream), states([], stream)
    assert same(found[1], plain[1])
    assert moved(found[1], found[2]) == moved(found[2], found[3]) == {"heads.by_task.blobs.weight", "heads.by_task.blobs.bias"}


def test_patterns_freeze_a_part_with_its_statistics() -> None:
    found = states([FrozenBackbone(patterns=("encoder.0.*", "encoder.1.*"))], class_stream())
    still = {name for name in found[0] if name.startswith(("encoder.0", "encoder.1"))}
    assert len(still) == 7
    assert moved(found[0], found[1]) == set(found[0]) - still


def test_training_a_head_on_it_is_training_on_features_computed_once() -> None:
    inputs = TensorSource(torch.rand(90, 6, generator=torch.Generator().manual_seed(0)), {"y": torch.arange(90) % 6}, "rows")
    features = embedded(inputs, encoder())

    def trained(source: TensorSource, body: nn.Module, *plugins: Any) -> Any:
        stream = streams.class_incremental(source, 3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            made = Model(body, Heads(7, stream.tasks))
        result = Engine(made, sgd(), plugins, batch_size=10, epochs=3).run(stream)
        return result.model.heads.state_dict(), result.accuracy_matrix

    slow, fast = trained(inputs, encoder(), FrozenBackbone()), trained(features, nn.Identity())
    for name, tensor in fast[0].items():
        torch.testing.assert_close(slow[0][name], tensor, rtol=1e-5, atol=1e-6)
    assert slow[1] == pytest.approx(fast[1], nan_ok=True)


def test_features_of_a_row_are_the_same_in_every_step() -> None:
    stream, seen = class_stream(), {}

    def look(step: Any) -> None:
        for row, features in zip(step.batch.index.tolist(), step.tap("features").detach(), strict=True):
            torch.testing.assert_close(seen.setdefault(row, features), features)

    states([FrozenBackbone(), probe("look", after_step=look)], stream)
    assert len(seen) == 60
    seen.clear()
    with pytest.raises(AssertionError, match="not close"):
        states([probe("look", after_step=look)], stream)


def test_what_is_frozen_is_not_penalised_and_others_compose() -> None:
    stream, ewc = growing_stream(), EWC()
    found = states([FrozenBackbone(), ewc, LwF(), Replay(capacity=10)], stream, microbatches=2)
    assert not any(name.startswith("encoder") for name in moved(found[0], found[-1]))
    kept = [name for part in ewc.state_dict().values() if isinstance(part, dict) for name in part]
    assert kept
    assert not any(str(name).startswith("encoder") for name in kept)


def test_it_goes_with_pruning_of_what_still_moves() -> None:
    stream = streams.task_incremental("digits", 2)
    made = models.mlp(stream, (12, 12))
    found = states([FrozenBackbone(patterns=("encoder.1.*",)), PackNet()], stream, made)
    assert not {"encoder.1.weight", "encoder.1.bias"} & moved(found[0], found[2])
    assert "encoder.3.weight" in moved(found[0], found[2])


def test_a_plain_module_gets_heads_first_or_is_refused() -> None:
    weights, _ = final(Engine(net(), sgd(), [FrozenBackbone(), MultiHead()]), class_stream())
    body = {f"encoder.{name}": tensor for name, tensor in net().state_dict().items() if name.startswith("body")}
    assert body
    assert same({name: weights[name] for name in body}, body)
    with pytest.raises(ConfigurationError, match="frozen_backbone freezes the whole model, which is a plain module without heads"):
        Engine(net(), sgd(), [FrozenBackbone()]).run(class_stream())


def test_patterns_that_select_nothing_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"no parameter of the model is called like 'backbone\.\*' \(the first is 'encoder"):
        states([FrozenBackbone(patterns=("backbone.*",))], class_stream())
    with pytest.raises(ConfigurationError, match="plugin frozen_backbone: option 'after'"):
        FrozenBackbone(after=-1)


def test_after_the_run_the_model_can_be_switched_and_copied_and_kept(tmp_path: Path) -> None:
    stream, modes = class_stream(), []
    watch = probe("watch", before_step=lambda step: modes.append([module.training for module in step.run.model.encoder.modules()]))
    copies = probe(
        "copies", after_experience=lambda run: modes.append([m.training for m in copy.deepcopy(run.model.encoder).train().modules()])
    )
    result = Engine(model(stream.tasks), sgd(), [FrozenBackbone(), watch, copies], batch_size=10).run(stream)
    assert modes == [[False] * 7] * 9
    torch.save(result.model, tmp_path / "model.pt")
    assert all(module.training for module in result.model.train().modules())


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("update", [2, 5, 8])
def test_stopped_and_resumed_equals_the_straight_run(update: int, after: int, tmp_path: Path) -> None:
    def run(folder: Path, stop: int | None = None) -> Any:
        stream = growing_stream()

        def engine(**more: Any) -> Engine:
            plugins = [FrozenBackbone(after=after), EWC()]
            return Engine(model(stream.tasks), sgd(), plugins, batch_size=8, epochs=2, checkpoint_every=1, **more)

        if stop is None:
            engine().run(stream, output=folder)
        else:
            with pytest.raises(Stop):
                engine(progress=stop_at(stop)).run(stream, output=folder)
            engine().resume(folder, stream)
        state = read_checkpoint(latest_checkpoint(folder / "checkpoints")[0])
        state.pop("times")
        return state, (folder / "events.jsonl").read_text()

    broken, straight = run(tmp_path / "broken", update), run(tmp_path / "straight")
    assert same(broken[0], straight[0])
    assert broken[1] == straight[1]


def test_the_largest_frozen_parts_are_found() -> None:
    whole = model(class_stream().tasks)
    tensors = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    assert at_rest(whole, frozenset(tensors)) == [whole]
    assert at_rest(whole, frozenset(name for name in tensors if name.startswith("encoder"))) == [whole.encoder]
    parts = at_rest(whole, frozenset(name for name in tensors if not name.startswith("encoder.1.running")))
    assert parts == [whole.encoder[0], whole.encoder[4], whole.encoder[5], whole.heads]
    assert at_rest(whole, frozenset()) == []
