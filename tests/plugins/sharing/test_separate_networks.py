from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, streams
from streamlearn.core.checkpoint import latest_checkpoint, read_checkpoint
from streamlearn.errors import CompositionError, ConfigurationError, DataError
from streamlearn.models import Heads, Model, mlp
from streamlearn.plugins import EWC, MGDA, SAM, LwF, MMoE, MultiHead, NearestClassMean, PackNet, Replay
from streamlearn.plugins.sharing.separate_networks import SeparateNetworks
from streamlearn.streams import Stream, Task
from streamlearn.streams.data import Data, Target
from tests.core.support import (
    OPTIMIZERS,
    Stop,
    blobs,
    class_stream,
    final,
    growing_stream,
    net,
    probe,
    same,
    separate_task_stream,
    sgd,
    stop_at,
    stream_of,
    two_task_stream,
)

TASKS = tuple(Task(name, size=2) for name in ("t.0", "t.1", "train"))  # a dot, and a word that no module container takes


def task_stream(known: int = 3, experiences: int = 3) -> Stream:
    """Two classes of the blobs are a task of their own in every experience; the first ``known`` tasks are known beforehand."""
    source = blobs(60, 6)
    pieces = []
    for i in range(experiences):
        wanted = (source.targets["y"] // 2 == i).nonzero().flatten()
        relabel = torch.tensor([c - 2 * i if c // 2 == i else 0 for c in range(6)])
        pieces.append((Data(source, wanted, (TASKS[i],), {TASKS[i].name: Target("y", relabel)}), (TASKS[i],)))
    return stream_of(pieces, TASKS[:known])


def network(dropout: float = 0.0, known: int = 3) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        encoder = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(dropout))
        return Model(encoder, Heads(9, TASKS[:known]))


def of_task(model: Any, task: str) -> dict[str, Tensor]:
    """Weights and statistics of the network of ``task``, by the names that they have in a model with one encoder."""
    encoder = {f"encoder.{name}": tensor.clone() for name, tensor in model.heads.of(task).state_dict().items()}
    return encoder | {f"heads.by_task.{name}": tensor for name, tensor in head_of(model, task).items()}


def head_of(model: Any, task: str) -> dict[str, Tensor]:
    key = list(model.heads.by_task)[list(model.heads.sizes()).index(task)]
    return {f"{key}.{name}": tensor.clone() for name, tensor in model.heads.by_task[key].state_dict().items()}


def starts_and_ends(
    plugin: SeparateNetworks, stream: Stream | None = None, model: Any = None, **options: Any
) -> tuple[list[Any], list[Any]]:
    """Every network before each experience and after it, by task."""
    starts: list[Any] = []
    ends: list[Any] = []

    def look(run: Any, kept: list[Any]) -> None:
        kept.append({task: of_task(run.model, task) for task in run.model.heads.sizes()})

    watch = probe(
        "watch",
        transform_phases=lambda phases, run: look(run, starts) or phases,
        after_experience=lambda run: look(run, ends),
    )
    settings = {"batch_size": 7, "epochs": 2, "seed": 5} | options
    Engine(model or network(), sgd(), [plugin, watch], **settings).run(stream or task_stream())
    return starts, ends


@pytest.mark.parametrize("start", ["fresh", "given"])
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_each_network_is_that_of_a_run_of_its_own(optimizer: str, start: Any) -> None:
    """Weights and statistics bit for bit, under optimisers with a memory."""
    begun: list[Any] = []
    watch = probe("watch", before_run=lambda run: begun.append(copy.deepcopy(run.model)))
    plugins = [SeparateNetworks(start=start), watch]
    together: Any = Engine(network(), OPTIMIZERS[optimizer], plugins, batch_size=7, epochs=2, seed=5).run(task_stream()).model
    for number, task in enumerate(task.name for task in TASKS):
        lone = Model(copy.deepcopy(begun[0].heads.of(task)), Heads(9, TASKS))
        lone.heads.by_task.load_state_dict(begun[0].heads.by_task.state_dict())
        only = probe("only", transform_phases=lambda phases, run: [p.replace(epochs=2 * (run.clock.experience == number)) for p in phases])  # noqa: B023
        result: Any = Engine(lone, OPTIMIZERS[optimizer], [only], batch_size=7, epochs=2, seed=5).run(task_stream()).model
        expected = {name: t for name, t in result.state_dict().items() if name.startswith("encoder.") or name in of_task(together, task)}
        assert same(of_task(together, task), expected)
    assert not torch.equal(of_task(together, "t.1")["encoder.0.weight"], begun[0].heads.of("t.1")[0].weight)


def test_where_networks_start() -> None:
    given = network().encoder.state_dict()

    def encoder(kept: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix("encoder."): tensor for name, tensor in kept.items() if name.startswith("encoder.")}

    for known in (3, 1):  # heads that are there from the start, and heads that come with their tasks
        fresh, _ = starts_and_ends(SeparateNetworks(), task_stream(known), network(known=known))
        again, _ = starts_and_ends(SeparateNetworks(), task_stream(known), network(known=known))
        other, _ = starts_and_ends(SeparateNetworks(), task_stream(known), network(known=known), seed=6)
        assert same(encoder(fresh[0]["t.0"]), given)
        assert same(fresh, again)
        assert not same(encoder(fresh[1]["t.1"]), encoder(other[1]["t.1"]))
        assert len({float(fresh[i][task.name]["encoder.0.weight"].sum()) for i, task in enumerate(TASKS)}) == 3
        assert torch.equal(fresh[2]["train"]["encoder.1.running_mean"], torch.zeros(9))

        alike, _ = starts_and_ends(SeparateNetworks(start="given"), task_stream(known), network(known=known))
        assert all(same(encoder(alike[i][task.name]), given) for i, task in enumerate(TASKS))

        clones, ends = starts_and_ends(SeparateNetworks(start="previous"), task_stream(known), network(known=known))
        assert same(encoder(clones[0]["t.0"]), given)
        for i in (1, 2):
            assert same(encoder(clones[i][TASKS[i].name]), encoder(ends[i - 1][TASKS[i - 1].name]))
            assert not same(head_of_kept(clones[i][TASKS[i].name]), head_of_kept(ends[i - 1][TASKS[i - 1].name]))
    # of a task the draw does not depend on when it came up
    assert same(encoder(starts_and_ends(SeparateNetworks())[0][2]["train"]), encoder(fresh[2]["train"]))


def head_of_kept(kept: dict[str, Tensor]) -> list[Tensor]:
    return [tensor for name, tensor in kept.items() if not name.startswith("encoder.")]


def test_a_clone_is_made_once_when_its_task_comes_up() -> None:
    """Tasks "a" and "b" are in both experiences: nothing is put back in the second."""
    starts, ends = starts_and_ends(SeparateNetworks(start="previous"), separate_task_stream(2), mlp(separate_task_stream(2), (9,)))
    assert same(starts[1], ends[0])
    assert same(starts[0]["a"]["encoder.0.weight"], starts[0]["b"]["encoder.0.weight"])  # nobody is before them: both as given
    assert not same(ends[0]["a"]["encoder.0.weight"], ends[0]["b"]["encoder.0.weight"])


def test_nothing_is_forgotten_and_nothing_moves_whatever_stands_beside() -> None:
    """Momentum, weight decay, a penalty and a teacher that know the old networks."""
    stream, ends = task_stream(), []
    keep = probe("keep", after_experience=lambda run: ends.append({task.name: of_task(run.model, task.name) for task in TASKS}))
    plugins = [SeparateNetworks(), EWC(strength=50.0), LwF(strength=2.0), keep]
    result = Engine(network(dropout=0.2), sgd(), plugins, batch_size=7, epochs=3).run(stream)
    assert float(result.metrics["forgetting"]) == 0.0
    assert same(ends[1]["t.0"], ends[0]["t.0"])
    assert same(ends[2]["t.0"], ends[0]["t.0"])
    assert same(ends[2]["t.1"], ends[1]["t.1"])
    assert not same(ends[2]["train"], ends[1]["train"])


def test_on_digits_plain_training_forgets_and_this_does_not() -> None:
    stream = streams.task_incremental("digits", 5)

    def run(*plugins: Any) -> Any:
        return Engine(mlp(stream, (50, 50)), lambda p: torch.optim.SGD(p, lr=0.2), plugins, batch_size=16, epochs=8).run(stream)

    alone, plain = run(SeparateNetworks()), run()
    assert float(alone.metrics["forgetting"]) == float(alone.metrics["backward_transfer"]) == 0.0
    assert float(plain.metrics["forgetting"]) > 0.1
    assert float(alone.metrics["average_accuracy"]) > 0.98
    assert float(alone.metrics["average_accuracy"]) > float(plain.metrics["average_accuracy"]) + 0.1


def test_the_outputs_by_hand_and_rows_of_several_tasks_in_a_batch() -> None:
    """A row passes through the network of its own task; the gradient of a batch is that of each task by itself."""
    stream, checked = separate_task_stream(1), []

    def compare(gradients: Any, step: Any) -> Any:
        model, batch = step.run.model, step.batch
        for task in ("a", "b"):
            rows = batch.labelled_rows(task)
            head = model.heads.by_task[task]
            outputs = nn.functional.linear(model.heads.of(task)(batch.x[rows]), head.weight, head.bias)
            loss = nn.functional.cross_entropy(outputs, batch.targets[task][rows]) * rows.sum() / len(batch)
            for name, parameter in {f"heads.networks.{task}.0.weight": model.heads.of(task)[0].weight, f"heads.by_task.{task}.bias": head.bias}.items():  # noqa: E501 # fmt: skip
                (expected,) = torch.autograd.grad(loss, parameter, retain_graph=True)
                torch.testing.assert_close(gradients[name], expected)
                checked.append(name)
        return gradients

    look = probe("look", transform_gradients=compare)
    model: Any = Engine(mlp(stream, (9,)), sgd(), [SeparateNetworks(), look], batch_size=24, epochs=2).run(stream).model
    assert len(checked) == 8
    assert model.shared_names() == frozenset()
    x = torch.randn(4, 6)
    assert not torch.allclose(model(x, "a"), model(x, "b"))
    assert torch.equal(model.encode(x), x)
    with pytest.raises(DataError, match="no head for task 'c'"):
        model(x, "c")


def test_single_task_learning_of_rows_asked_on_two_tasks() -> None:
    """The sum of two losses trains each network as a run does that knows the one loss."""
    stream, begun = two_task_stream(), []

    def run(model: Any, losses: Any, *plugins: Any) -> Any:
        weigh = probe("weigh", provide_weighting=losses)
        return Engine(model, lambda p: torch.optim.SGD(p, lr=0.1), [*plugins, weigh], batch_size=8, epochs=3).run(stream).model

    watch = probe("watch", before_run=lambda run: begun.append(copy.deepcopy(run.model)))
    both = run(mlp(stream, (9,)), lambda losses: losses["a"] + losses["b"], SeparateNetworks(), watch)
    for task, losses in (("a", lambda losses: losses["a"]), ("b", lambda losses: losses["b"])):
        lone = Model(copy.deepcopy(begun[0].heads.of(task)), Heads(9, stream.tasks))
        lone.heads.by_task.load_state_dict(begun[0].heads.by_task.state_dict())
        expected = run(lone, losses)
        torch.testing.assert_close(both.heads.of(task)[0].weight, expected.encoder[0].weight)
        torch.testing.assert_close(both.heads.by_task[task].weight, expected.heads.by_task[task].weight)
        assert float((both.heads.of(task)[0].weight - begun[0].heads.of(task)[0].weight).detach().abs().max()) > 0.01


@pytest.mark.parametrize(
    "others", [[MultiHead()], [SAM()], [MGDA()], [Replay(capacity=9)], [EWC(strength=3.0), Replay(capacity=9), LwF()]], ids=str
)
def test_it_stands_beside_others_while_tasks_come_up(others: list[Any]) -> None:
    stream = growing_stream()
    model = net() if isinstance(others[0], MultiHead) else mlp(stream, (9,))
    weights, _ = final(Engine(model, sgd(), [SeparateNetworks(), *others], batch_size=8, epochs=2), stream)
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    assert any(name.startswith("heads.networks.other.") for name in weights)
    # the task that grows keeps its network
    assert sum(name.startswith("heads.networks.") and name.endswith("0.weight") for name in weights) == 2


def test_importance_is_that_of_the_network_asked() -> None:
    """The closed form reaches layers that run behind the features; the networks of others are left out."""
    stream, found = task_stream(), []

    def compare(run: Any) -> None:
        task = run.experience.tasks[0].name
        lone = Model(copy.deepcopy(run.model.heads.of(task)), run.model.heads)
        batch = run.data().batch(torch.arange(len(run.data())))
        total: dict[str, Any] = {}
        lone.eval()
        head = run.model.heads.by_task[list(run.model.heads.by_task)[run.clock.experience]]
        named = dict(lone.encoder.named_parameters())
        for row in batch.x:
            logs = head(lone.encoder(row[None])).log_softmax(1)[0]
            for log in logs:
                for name, g in zip(named, torch.autograd.grad(log, list(named.values()), retain_graph=True), strict=True):
                    total[name] = total.get(name, 0) + log.detach().exp() * g.square() / len(batch.x)
        found.append((task, run.importance(), total))

    Engine(network(), sgd(), [SeparateNetworks(), probe("compare", after_experience=compare)], batch_size=7).run(stream)
    for task, importance, expected in found:
        mine = {name: value for name, value in importance.items() if ".networks." in name and bool(value.any())}
        assert len(mine) == len(expected) == 4
        for name, value in mine.items():
            assert name.split(".")[2].startswith(task.replace(".", "\N{ONE DOT LEADER}"))
            torch.testing.assert_close(value, expected[name.split(".", 3)[3]], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("start", ["fresh", "given", "previous"])
@pytest.mark.parametrize("update", [4, 6, 11])
def test_stopped_and_resumed_equals_the_straight_run(update: int, start: Any, tmp_path: Path) -> None:
    """In and behind experiences, with tasks that come up; a user's own weights are known to the checkpoint alone."""

    def engine(seed: int = 4, **options: Any) -> Engine:
        model = network(dropout=0.2, known=1)
        with torch.no_grad():
            model.encoder[0].weight.fill_(0.01 * seed)  # type: ignore[index, operator]
        plugins = [SeparateNetworks(start=start), EWC(strength=1.0)]
        return Engine(model, sgd(), plugins, batch_size=7, epochs=2, checkpoint_every=1, **options)

    engine().run(task_stream(1), output=tmp_path / "straight")
    with pytest.raises(Stop):
        engine(progress=stop_at(update)).run(task_stream(1), output=tmp_path / "broken")
    engine(seed=7).resume(tmp_path / "broken", task_stream(1))
    straight, broken = (read_checkpoint(latest_checkpoint(tmp_path / name / "checkpoints")[0]) for name in ("straight", "broken"))
    for part in ("model", "optimization", "plugins", "clock"):
        assert same(straight[part], broken[part]), part


def test_the_same_engine_runs_twice_alike() -> None:
    engine = Engine(network(), sgd(), [SeparateNetworks(start="previous")], batch_size=7)
    assert same(final(engine, task_stream()), final(engine, task_stream()))


def test_what_has_no_network_for_each_task_is_refused() -> None:
    stream = task_stream()
    with pytest.raises(ConfigurationError, match=r"a plain module: take one of streamlearn.models, or list MultiHead\(\) before it"):
        Engine(net(), sgd(), [SeparateNetworks()]).run(stream)
    with pytest.raises(ConfigurationError, match="all 3 experiences have the task 'blobs': use a task-incremental stream"):
        Engine(mlp(class_stream(), (9,)), sgd(), [SeparateNetworks()]).run(class_stream())
    Engine(mlp(class_stream(), (9,)), sgd(), [SeparateNetworks()]).run(class_stream()[:1])
    with pytest.raises(ConfigurationError, match="option 'start' is 'cold'"):
        SeparateNetworks(start="cold")
    for other in (MMoE(), PackNet(), NearestClassMean()):
        with pytest.raises(CompositionError, match=other.name if other.name != "mmoe" else "sharing"):
            Engine(network(), sgd(), [SeparateNetworks(), other])

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6, 9))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    with pytest.raises(ConfigurationError, match="has parameters but no reset_parameters"):
        Engine(Model(Odd(), Heads(9, TASKS)), sgd(), [SeparateNetworks()]).run(stream)
    Engine(Model(Odd(), Heads(9, TASKS)), sgd(), [SeparateNetworks(start="given")]).run(stream)
