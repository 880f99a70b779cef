from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from streamlearn import Engine
from streamlearn.core.checkpoint import latest_checkpoint, read_checkpoint
from streamlearn.core.evaluation import without_labels
from streamlearn.errors import CompositionError, ConfigurationError
from streamlearn.models import Heads, Model
from streamlearn.plugins import EMA, EWC, Joint, MMoE, MultiHead, PackNet, Replay
from streamlearn.plugins.sharing.packnet import keep_largest, owned_until
from streamlearn.streams import Experience, Stream, Task
from streamlearn.streams.data import Data, Target
from tests.core.support import (
    OPTIMIZERS,
    Stop,
    blobs,
    class_stream,
    net,
    probe,
    same,
    separate_task_stream,
    sgd,
    stop_at,
    stream_of,
    two_task_stream,
)

TASKS = tuple(Task(name, size=2) for name in ("t.0", "t.1", "t.2"))  # a dot, because module containers know none
WEIGHTS = ("encoder.0.weight", "encoder.4.weight")


def task_stream(experiences: int = 3) -> Stream:
    """Two classes of the blobs are a task of their own in every experience, with other inputs than the others."""
    source = blobs(60, 6)
    pieces = []
    for i in range(experiences):
        wanted = (source.targets["y"] // 2 == i).nonzero().flatten()
        relabel = torch.tensor([c - 2 * i if c // 2 == i else 0 for c in range(6)])
        pieces.append((Data(source, wanted, (TASKS[i],), {TASKS[i].name: Target("y", relabel)}), (TASKS[i],)))
    return stream_of(pieces, TASKS[:experiences])


def network(dropout: float = 0.2) -> Model:
    """Everything that could make an old output move: normalisation with statistics, dropout, biases."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        encoder = nn.Sequential(
            nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(dropout), nn.Linear(9, 7), nn.LayerNorm(7), nn.ReLU()
        )
        return Model(encoder, Heads(7, TASKS))


def plain_network(**_: Any) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return Model(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU()), Heads(7, TASKS))


class Watch:
    """Outputs of every task on its rows at every evaluation, and weights and owners after every experience and step."""

    def __init__(self, packnet: PackNet) -> None:
        self.packnet = packnet
        self.outputs: list[dict[str, Tensor]] = []
        self.raw: list[dict[str, Tensor]] = []
        self.after: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
        self.steps: list[tuple[int, str, dict[str, Tensor]]] = []
        self.buffers: list[dict[str, Tensor]] = []

    def plugin(self) -> Any:
        def after_evaluation(evaluation: Any) -> None:
            self.look(evaluation)

        def after_experience(run: Any) -> None:
            self.keep(run)

        def after_step(step: Any) -> None:
            self.steps.append((step.run.clock.experience, step.run.phase.name, step.run.snapshot()))

        return probe("watch", after_evaluation=after_evaluation, after_experience=after_experience, after_step=after_step)

    def look(self, evaluation: Any) -> None:
        found, raw = {}, {}
        for experience in task_stream():
            batch = without_labels(experience.data["train"].batch(torch.arange(20)))
            with torch.no_grad():
                found |= self.packnet.provide_predictions(batch, evaluation)
                task = experience.tasks[0].name
                raw[task] = evaluation.run.model(batch.x, task)
        self.outputs.append(found)
        self.raw.append(raw)

    def keep(self, run: Any) -> None:
        owners = {name: owner.clone() for name, owner in self.packnet.state_dict()["owner"].items()}
        self.after.append((run.snapshot(), owners))
        self.buffers.append({name: buffer.clone() for name, buffer in run.model.named_buffers()})


def watched(
    packnet: PackNet, *others: Any, optimizer: str = "momentum", model: Callable[..., Model] = network, **options: Any
) -> tuple[Watch, Any]:
    watch = Watch(packnet)
    settings = {"batch_size": 8, "epochs": 2, "seed": 2} | options
    result = Engine(model(), OPTIMIZERS[optimizer], [packnet, *others, watch.plugin()], **settings).run(task_stream())
    return watch, result


def test_the_smallest_are_pruned_by_hand() -> None:
    weight = torch.tensor([[3.0, -1.0, 0.2], [-4.0, 1.0, 9.0]])
    among = torch.tensor([[True, True, True], [True, True, False]])
    assert keep_largest(weight, among, 0.4).tolist() == [[True, False, False], [True, True, False]]  # of -1 and 1 the first goes
    assert keep_largest(weight, among, 0.0).tolist() == among.tolist()
    assert not bool(keep_largest(weight, among, 1.0).any())
    assert not bool(keep_largest(weight, torch.zeros_like(among), 0.5).any())
    assert owned_until(weight, torch.tensor([[1, 2, 0], [3, 1, 2]]), 2).tolist() == [[3.0, -1.0, 0.0], [0.0, 1.0, 9.0]]


def paper(experiences: int, prune: float, epochs: int, retrain: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Section 3 of the paper, as a loop over full batches with one SGD with momentum and weight decay."""
    model, stream = plain_network(), task_stream(experiences)
    named = dict(model.named_parameters())
    optimizer = sgd()(model.parameters())
    matrices = ("encoder.0.weight", "encoder.2.weight")
    owner = {name: torch.zeros(named[name].shape) for name in matrices}
    for k in range(1, experiences + 1):
        batch = stream[k - 1].data["train"].batch(torch.arange(20))
        task = TASKS[k - 1].name
        for phase, count in (("main", epochs), ("retrain", retrain)):
            for _ in range(count):
                loss = cross_entropy(model(batch.x, task), batch.targets[task])
                optimizer.zero_grad()
                loss.backward()
                old = {name: p.detach().clone() for name, p in named.items()}
                for name in matrices:
                    named[name].grad[owner[name] != (0 if phase == "main" else k)] = 0.0  # type: ignore[index]
                    if bool((owner[name] != (0 if phase == "main" else k)).all()):
                        named[name].grad = None
                if k > 1:
                    named["encoder.0.bias"].grad = named["encoder.2.bias"].grad = None
                optimizer.step()
                with torch.no_grad():
                    for name in matrices:
                        moves = owner[name] == (0 if phase == "main" else k)
                        named[name].copy_(torch.where(moves, named[name], old[name]))
            if phase == "main":
                for name in matrices:
                    size = named[name].detach().abs().view(-1).tolist()
                    free = sorted((size[i], i) for i, o in enumerate(owner[name].view(-1).tolist()) if o == 0)
                    removed = {i for _, i in free[: round(prune * len(free))]}
                    for _, i in free:
                        if i in removed:
                            named[name].data.view(-1)[i] = 0.0
                        else:
                            owner[name].view(-1)[i] = k
    return {name: p.detach() for name, p in named.items()}, owner


@pytest.mark.parametrize("prune", [0.0, 0.5, 0.75])
def test_a_run_is_the_loop_of_the_paper(prune: float) -> None:
    watch, _ = watched(PackNet(prune=prune, retrain_epochs=2), model=plain_network, epochs=3, batch_size=20)
    weights, owner = paper(3, prune, 3, 2)
    found, owners = watch.after[-1]
    assert {name: value.tolist() for name, value in owners.items()} == {name: value.tolist() for name, value in owner.items()}
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_the_outputs_of_earlier_tasks_are_equal_bit_for_bit_after_later_experiences(optimizer: str) -> None:
    watch, result = watched(PackNet(prune=0.6), optimizer=optimizer)
    for number, task in enumerate(TASKS):
        first = watch.outputs[number + 1][task.name]
        assert not torch.equal(watch.outputs[number][task.name], first)  # it has learnt something
        for later in watch.outputs[number + 2 :]:
            assert torch.equal(later[task.name], first)
    assert not torch.equal(watch.raw[3]["t.0"], watch.outputs[3]["t.0"])  # and it is the masks that do it
    matrix = result.accuracy_matrix
    assert matrix[3, 0] == matrix[2, 0] == matrix[1, 0] > 0.9
    assert matrix[3, 1] == matrix[2, 1]


def test_evaluations_in_mid_experience_see_the_same_outputs() -> None:
    result = Engine(network(), sgd(), [PackNet(prune=0.6)], batch_size=8, epochs=2, evaluate_every=2).run(task_stream())
    within = [e for e in result.events if e["event"] == "evaluation" and e["set"] == 0 and e["trained"] >= 1]
    assert len(within) > 8
    assert len({(e["value"], e["loss"]) for e in within}) == 1


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_owned_weights_never_move_and_free_ones_do(optimizer: str) -> None:
    watch, _ = watched(PackNet(prune=0.6), optimizer=optimizer)
    for number in range(2):
        weights, owners = watch.after[number]
        for experience, phase, now in watch.steps:
            if experience <= number:
                continue
            for name in WEIGHTS:
                owned = owners[name] > 0
                assert torch.equal(now[name][owned], weights[name][owned])
                if phase == "main" and experience == number + 1:
                    assert bool((now[name][~owned] != 0).any())


def test_of_every_layer_the_fraction_is_freed_and_stays_zero_while_retraining() -> None:
    watch, result = watched(PackNet(prune=0.6, retrain_epochs=3))
    free = {name: value.numel() for name, value in watch.after[0][0].items() if name in WEIGHTS}
    for number, (weights, owners) in enumerate(watch.after, 1):
        assert set(owners) == set(WEIGHTS)
        for name, owner in owners.items():
            free[name] = round(0.6 * free[name])
            assert int((owner == 0).sum()) == free[name]
            assert int(owner.max()) == number
            assert not bool(weights[name][owner == 0].any())
    for experience, phase, now in watch.steps:
        if phase == "retrain":
            owner = watch.after[experience][1]["encoder.0.weight"]
            assert not bool(now["encoder.0.weight"][owner == 0].any())
    retrained = [now["encoder.0.weight"] for experience, phase, now in watch.steps if (experience, phase) == (1, "retrain")]
    claimed = watch.after[1][1]["encoder.0.weight"] == 2
    assert not torch.equal(retrained[0][claimed], retrained[-1][claimed])
    assert [e["phase"] for e in result.events if e["event"] == "epoch" and e["experience"] == 1] == ["main"] * 2 + ["retrain"] * 3


def test_biases_normalisation_and_its_statistics_are_frozen_after_the_first_experience() -> None:
    start = {name: p.detach().clone() for name, p in network().named_parameters()}
    watch, _ = watched(PackNet())
    names = [n for n in start if n.startswith("encoder.") and n not in WEIGHTS]
    assert len(names) == 6
    for name in names:
        assert not torch.equal(watch.after[0][0][name], start[name])
        assert torch.equal(watch.after[2][0][name], watch.after[0][0][name])
    assert float(watch.buffers[0]["encoder.1.running_mean"].abs().sum()) > 0
    assert same(watch.buffers[0], watch.buffers[2])


def test_nothing_free_means_that_heads_alone_are_trained() -> None:
    watch, result = watched(PackNet(prune=0.0))
    (first, _), (second, _), (third, owners) = watch.after
    for name in first:
        if name.startswith("encoder."):
            assert torch.equal(first[name], third[name])
    assert all(bool((owner == 1).all()) for owner in owners.values())
    assert not torch.equal(first["heads.by_task.t\u2024" + "1.weight"], second["heads.by_task.t\u2024" + "1.weight"])
    losses = [e["loss"] for e in result.events if e["event"] == "evaluation" and e["set"] == 2]
    assert losses[3] < losses[2]


def test_finished_heads_stay_also_when_a_penalty_has_a_gradient_for_them() -> None:
    watch, _ = watched(PackNet(prune=0.5), EWC(strength=5.0))
    head = "heads.by_task.t\u2024" + "0.weight"
    assert torch.equal(watch.after[0][0][head], watch.after[2][0][head])
    assert torch.equal(watch.outputs[1]["t.0"], watch.outputs[3]["t.0"])


def test_the_masks_can_be_used_after_the_run() -> None:
    packnet = PackNet(prune=0.6)
    watch, result = watched(packnet)
    model = result.model.eval()
    x = task_stream()[0].data["train"].batch(torch.arange(20)).x
    weights = packnet.weights_for("t.0", dict(model.named_parameters()))
    with torch.no_grad():
        assert torch.equal(functional_call(model, weights, (x, "t.0")), watch.outputs[1]["t.0"])
        assert not torch.equal(model(x, "t.0"), watch.outputs[1]["t.0"])


def test_kernels_are_packed_and_normalisation_of_any_shape_is_not() -> None:
    encoder = nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.LayerNorm((4, 4)), nn.ReLU(), nn.Flatten())
    packnet = PackNet()
    Engine(Model(encoder, Heads(16, TASKS)), sgd(), [packnet], batch_size=10).run(task_stream())
    assert set(packnet.state_dict()["owner"]) == {"encoder.1.weight"}
    assert bool((encoder[2].weight != 0).all())


def test_frozen_weights_are_neither_claimed_nor_pruned() -> None:
    model = network()
    model.encoder[0].weight.requires_grad_(False)
    before = model.encoder[0].weight.clone()
    packnet = PackNet()
    Engine(model, sgd(), [packnet], batch_size=10).run(task_stream())
    assert set(packnet.state_dict()["owner"]) == {"encoder.4.weight"}
    assert torch.equal(model.encoder[0].weight, before)


def test_with_multi_head_and_with_experts() -> None:
    packnet = PackNet()
    result = Engine(net(), sgd(), [packnet, MultiHead()], batch_size=10).run(task_stream())
    assert set(packnet.state_dict()["owner"]) == {"encoder.body.0.weight"}
    assert result.accuracy_matrix[3, 0] == result.accuracy_matrix[1, 0]
    watch, _ = watched(PackNet(), MMoE(experts=2))
    assert torch.equal(watch.outputs[1]["t.0"], watch.outputs[3]["t.0"])  # its gate rests, too
    assert len(watch.after[0][1]) == 2 * len(WEIGHTS)


def test_an_experience_without_training_rows_claims_and_moves_nothing() -> None:
    """Unlabelled rows of a task that has been packed, and a term that would move everything."""
    stream = task_stream(2)
    target = Experience(2, (TASKS[0],), {"target": stream[0].data["train"].without_labels()}, "again", {})  # type: ignore[union-attr]
    longer = Stream("longer", 3, lambda i: target if i == 2 else stream[i], lambda i: stream.evaluation(min(i, 1)), tasks=TASKS[:2],
                    input_shape=(6,), description={"by": "hand"}, fingerprints=("hand",))  # fmt: skip
    packnet, kept = PackNet(prune=0.6), []
    shrink = probe("shrink", collect_terms=lambda step: sum(p.square().sum() for p in step.parameters.values()))

    def after_experience(run: Any) -> None:
        kept.append({name: value.clone() for name, value in run.model.state_dict().items()})

    result = Engine(network(), sgd(), [packnet, shrink, probe("keep", after_experience=after_experience)], batch_size=8).run(longer)
    moved = {name for name in kept[1] if not torch.equal(kept[1][name], kept[2][name])}
    assert moved == {f"heads.by_task.t\u20242.{name}" for name in ("weight", "bias")}  # the head of a task that has not come
    assert {e["phase"] for e in result.events if e["event"] == "epoch" and e["experience"] == 2} == {"main"}
    assert packnet.state_dict()["number"] == {"t.0": 1, "t.1": 2}
    assert packnet.state_dict()["claimed"] == 2


def state_of(folder: Path) -> Any:
    state = read_checkpoint(latest_checkpoint(folder / "checkpoints")[0])
    state.pop("times")
    return state


@pytest.mark.parametrize("update", [2, 6, 8, 14, 15, 17])
def test_stopped_in_either_phase_and_resumed_equals_the_straight_run(update: int, tmp_path: Path) -> None:
    """Three updates an epoch, two epochs of main and one of retraining: 6 and 15 are the ends of main, 9 of an experience."""

    def engine(**options: Any) -> Engine:
        return Engine(network(), sgd(), [PackNet(prune=0.6)], batch_size=8, epochs=2, checkpoint_every=2, evaluate="end", **options)

    engine().run(task_stream(2), output=tmp_path / "straight")
    with pytest.raises(Stop):
        engine(progress=stop_at(update)).run(task_stream(2), output=tmp_path / "broken")
    engine().resume(tmp_path / "broken", task_stream(2))
    expected = state_of(tmp_path / "straight")
    assert expected["clock"]["update"] == 18
    assert same(state_of(tmp_path / "broken"), expected)
    assert (tmp_path / "broken" / "events.jsonl").read_text() == (tmp_path / "straight" / "events.jsonl").read_text()


def test_what_has_no_task_of_its_own_for_each_experience_is_refused() -> None:
    def run(stream: Stream, model: Any = None, *plugins: Any) -> None:
        tasks = stream.tasks
        Engine(model or Model(nn.Linear(6, 5), Heads(5, tasks)), sgd(), [PackNet(), *plugins]).run(stream)

    with pytest.raises(ConfigurationError, match="experience 1 has task 'blobs', as experience 0: use a task-incremental stream"):
        run(class_stream())
    with pytest.raises(ConfigurationError, match="experience 0 has the tasks a, b"):
        run(two_task_stream())
    with pytest.raises(ConfigurationError, match="experience 0 has the tasks a, b"):
        run(separate_task_stream())
    with pytest.raises(ConfigurationError, match=r"the model is a plain module.*list MultiHead before it"):
        run(task_stream(), net())
    for plugin in (Replay(capacity=9), Joint(), EMA()):
        with pytest.raises(CompositionError, match=plugin.name):
            run(task_stream(), None, plugin)
    joined = probe("mixer", transform_phases=lambda phases, run: (phases[0].replace(data=run.stream[0].data["train"]), *phases[1:]))
    with pytest.raises(ConfigurationError, match=r"trains on the task of experience 1 alone, but a batch has rows of t.0"):
        run(task_stream(), None, joined)


@pytest.mark.parametrize("options", [{"prune": 1.0}, {"prune": -0.1}, {"retrain_epochs": -1}, {"retrain_epochs": 0.5}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="plugin packnet: option"):
        PackNet(**options)
