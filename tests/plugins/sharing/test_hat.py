from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy, linear, max_pool2d

from streamlearn import Engine, streams
from streamlearn.core.checkpoint import latest_checkpoint, read_checkpoint
from streamlearn.errors import CompositionError, ConfigurationError, DataError
from streamlearn.models import Heads, Model, mlp
from streamlearn.models.gated import layers_of, protection
from streamlearn.plugins import EMA, EWC, MGDA, SAM, Clipping, Joint, LwF, MMoE, MultiHead, NearestClassMean, PackNet, Replay
from streamlearn.plugins.sharing.hat import HAT, annealed, compensated, open_units
from streamlearn.streams import Experience, Stream, Task
from streamlearn.streams.data import Data, Target
from tests.core.support import (
    OPTIMIZERS,
    Stop,
    blobs,
    class_stream,
    final,
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
NAMES = tuple(task.name for task in TASKS)


def task_stream(known: int = 3, experiences: int = 3, dtype: Any = torch.float32) -> Stream:
    """Two classes of the blobs are a task of their own in every experience; the first ``known`` tasks are known beforehand."""
    source = blobs(60, 6, dtype=dtype)
    pieces = []
    for i in range(experiences):
        wanted = (source.targets["y"] // 2 == i).nonzero().flatten()
        relabel = torch.tensor([c - 2 * i if c // 2 == i else 0 for c in range(6)])
        pieces.append((Data(source, wanted, (TASKS[i],), {TASKS[i].name: Target("y", relabel)}), (TASKS[i],)))
    return stream_of(pieces, TASKS[:known])


def network(known: int = 3, dropout: float = 0.2, bare: bool = False) -> Model:
    """With everything that could make an old output move: normalisation with statistics, dropout, biases."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        between = [] if bare else [nn.BatchNorm1d(9)]
        encoder = nn.Sequential(
            nn.Linear(6, 9), *between, nn.ReLU(), nn.Sequential(nn.Dropout(0.0 if bare else dropout), nn.Linear(9, 7), nn.Tanh())
        )
        return Model(encoder, Heads(7, TASKS[:known]))


# ---------------------------------------------------------------------- the formulas


def test_the_scale_rises_linearly_within_an_epoch() -> None:
    seen: list[tuple[int, float]] = []
    look = probe("look", collect_terms=lambda step: seen.append((step.run.clock.epoch, step.run.model.heads.scale)))
    plugins = [HAT(largest_scale=50.0), look]
    Engine(network(), sgd(), plugins, batch_size=6, epochs=2).run(task_stream()[:1])  # 20 rows: four batches
    expected = [0.02 + (50 - 0.02) * i / 3 for i in range(4)]
    assert [epoch for epoch, _ in seen] == [0] * 4 + [1] * 4
    assert [scale for _, scale in seen] == pytest.approx(expected * 2)
    assert annealed(1, 1, 50.0) == 50.0
    assert (annealed(1, 7, 400.0), annealed(7, 7, 400.0)) == (1 / 400, 400.0)


def test_an_epoch_that_is_cut_short_ends_at_the_largest_scale_too() -> None:
    seen: list[float] = []
    look = probe("look", collect_terms=lambda step: seen.append(step.run.model.heads.scale))
    Engine(network(), sgd(), [HAT(largest_scale=50.0), look], batch_size=6, iterations=7).run(task_stream()[:1])
    assert seen == pytest.approx([annealed(b, 4, 50.0) for b in (1, 2, 3, 4)] + [annealed(b, 3, 50.0) for b in (1, 2, 3)])


def test_compensation_undoes_the_slope_of_steep_gates() -> None:
    """The slope of σ(s e) in e is s / (2 (cosh(s e) + 1)); afterwards it is that of s = 1, s_max times as steep."""
    e = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    for s in (0.01, 1.0, 3.0, 5.0):
        (q,) = torch.autograd.grad((s * e).sigmoid().sum(), e)
        (gentle,) = torch.autograd.grad(e.sigmoid().sum(), e)
        torch.testing.assert_close(compensated(q, e.detach(), s, 100.0), 100.0 * gentle)
    by_hand = 3.0 * 400.0 / 10.0 * (math.cosh(50.0) + 1) / (math.cosh(5.5) + 1)  # s e = 55 is cut at 50
    found = compensated(torch.tensor([3.0, 3.0], dtype=torch.float64), torch.tensor([5.5, -5.5], dtype=torch.float64), 10.0, 400.0)
    assert found.tolist() == pytest.approx([by_hand, by_hand], rel=1e-12)


def test_what_is_opened_of_what_is_free() -> None:
    gates = [torch.tensor([0.5, 1.0]), torch.tensor([0.25, 0.5, 1.0])]
    claimed = [torch.tensor([1.0, 0.5]), torch.tensor([0.0, 0.75, 1.0])]
    assert float(open_units(gates, claimed)) == pytest.approx((0.5 + 0.25 + 0.125) / (0.5 + 1 + 0.25))
    assert float(open_units(gates, [torch.zeros(2), torch.zeros(3)])) == pytest.approx(3.25 / 5)
    leaf = torch.tensor([0.5, 0.5], requires_grad=True)
    nothing = open_units([leaf], [torch.ones(2)])
    nothing.backward()
    assert float(nothing.detach()) == 0.0
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [0.0, 0.0]


def paper(batches: list[list[tuple[Tensor, Tensor]]], model: Any, strength: float, largest: float, rate: float) -> dict[str, Tensor]:
    """Section 2 of the paper for two linear layers, unit by unit and with SGD by hand."""
    w = {name: p.detach().clone() for name, p in model.named_parameters()}
    claimed: list[Tensor] | None = None
    for t, rows in enumerate(batches):
        key = list(model.heads.by_task)[t]
        names = [f"heads.gates.{key}.0", f"heads.gates.{key}.1"]
        mine = {n for n in w if n.startswith(("encoder.", f"heads.gates.{key}.", f"heads.by_task.{key}."))}
        length = len(rows) // 2
        for number, (x, y) in enumerate(rows):
            s = 1 / largest + (largest - 1 / largest) * (number % length) / (length - 1)
            leaves = {n: w[n].clone().requires_grad_(n in mine) for n in w}
            a = [(s * leaves[n]).sigmoid() for n in names]
            h = a[0] * linear(x, leaves["encoder.0.weight"], leaves["encoder.0.bias"]).clamp(min=0)
            h = a[1] * torch.tanh(linear(h, leaves["encoder.2.1.weight"], leaves["encoder.2.1.bias"]))
            loss = cross_entropy(linear(h, leaves[f"heads.by_task.{key}.weight"], leaves[f"heads.by_task.{key}.bias"]), y)
            free = [1 - c for c in claimed] if claimed else [torch.ones_like(g) for g in a]
            loss = loss + strength * sum((g * f).sum() for g, f in zip(a, free, strict=True)) / sum(f.sum() for f in free)
            loss.backward()
            grads = {n: leaves[n].grad for n in mine}
            if claimed is not None:
                for i in range(9):
                    grads["encoder.0.weight"][i] *= 1 - claimed[0][i]
                    grads["encoder.0.bias"][i] *= 1 - claimed[0][i]
                for i in range(7):
                    grads["encoder.2.1.bias"][i] *= 1 - claimed[1][i]
                    for j in range(9):
                        grads["encoder.2.1.weight"][i, j] *= 1 - min(claimed[1][i], claimed[0][j])
            for n in names:
                e = w[n]
                grads[n] = grads[n] * largest / s * ((s * e).clamp(-50, 50).cosh() + 1) / (e.cosh() + 1)
            for n in mine:
                w[n] = w[n] - rate * grads[n]
            for n in names:
                w[n] = w[n].clamp(-6, 6)
        ends = [(largest * w[n]).sigmoid() for n in names]
        claimed = ends if claimed is None else [torch.max(*pair) for pair in zip(claimed, ends, strict=True)]
    return w


@pytest.mark.parametrize(("strength", "largest"), [(0.75, 400.0), (2.0, 5.0)])
def test_three_experiences_are_those_of_the_paper(strength: float, largest: float) -> None:
    """Every weight within 1e-9 in float64: with gates that are nearly binary, and with soft ones, which protect in part."""
    start: list[Any] = []
    batches: list[list[tuple[Tensor, Tensor]]] = [[], [], []]

    def keep(step: Any) -> None:
        (task,) = step.batch.tasks
        batches[step.run.clock.experience].append((step.batch.x, step.batch.targets[task]))

    watch = probe("watch", before_run=lambda run: start.append(copy.deepcopy(run.model)), before_step=keep)
    hat = HAT(strength=strength, largest_scale=largest)
    engine = Engine(network(bare=True).double(), lambda p: torch.optim.SGD(p, lr=0.02), [hat, watch], batch_size=4, epochs=2)
    found = dict(engine.run(task_stream(dtype=torch.float64)).model.named_parameters())
    expected = paper(batches, start[0], strength, largest, 0.02)
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].detach(), value, rtol=1e-9, atol=1e-9)
    soft = [float(c) for layer in hat.claimed() for c in layer if 0.02 < c < 0.98]
    assert (len(soft) > 5) == (largest == 5.0)


# ---------------------------------------------------------------------- layers and their weights


def convolutional() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Sigmoid(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2, bias=False), nn.Flatten(),
            nn.Linear(16, 5), nn.Dropout(0.0), nn.Softplus(),
        )  # fmt: skip


def test_protection_of_every_weight_by_hand() -> None:
    """A convolution's channels, each at four places once flattened; statistics and scales go by unit."""
    encoder = convolutional()
    draw = torch.Generator().manual_seed(0)
    c = [torch.rand(n, generator=draw) for n in (3, 4, 5)]
    found = protection(encoder, layers_of(encoder), c)
    assert set(found) == {name for name, _ in encoder.named_parameters()}
    for name, parameter in encoder.named_parameters():
        expected = torch.empty_like(parameter)
        layer = {"0": 0, "1": 0, "4": 1, "6": 2}[name[0]]
        for place in torch.cartesian_prod(*(torch.arange(n) for n in parameter.shape)).view(-1, parameter.ndim).tolist():
            reads = None if layer == 0 or parameter.ndim == 1 else place[1] if layer == 1 else place[1] // 4
            expected[tuple(place)] = 1 - (c[layer][place[0]] if reads is None else min(c[layer][place[0]], c[layer - 1][reads]))
        torch.testing.assert_close(found[name], expected)


def images() -> Stream:
    """Two tasks on the same images of 6 x 6."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(40) % 2
    x = torch.randn(40, 1, 6, 6, generator=draw) + y.view(-1, 1, 1, 1)
    return streams.task_incremental((torch.cat([x, -2 * x]), torch.cat([y, y + 2])), 2, test=(x, y))


def test_the_forward_of_a_convolutional_model_by_hand() -> None:
    stream = images()
    hat = HAT(largest_scale=6.0)
    model: Any = Engine(Model(convolutional(), Heads(5, stream.tasks)), sgd(), [hat], batch_size=10).run(stream).model
    w = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    x = stream[0].data["train"].batch(torch.arange(9)).x
    for task, key in zip(model.heads.sizes(), model.heads.by_task, strict=True):
        a = [(6.0 * w[f"heads.gates.{key}.{i}"]).sigmoid() for i in range(3)]
        h = conv2d(x, w["encoder.0.weight"], w["encoder.0.bias"], padding=1)
        mean, var = w["encoder.1.running_mean"].view(-1, 1, 1), w["encoder.1.running_var"].view(-1, 1, 1)
        h = (h - mean) / (var + 1e-5).sqrt() * w["encoder.1.weight"].view(-1, 1, 1) + w["encoder.1.bias"].view(-1, 1, 1)
        h = max_pool2d(h.sigmoid(), 2) * a[0].view(-1, 1, 1)
        h = conv2d(h, w["encoder.4.weight"]) * a[1].view(-1, 1, 1)
        h = nn.functional.softplus(linear(h.flatten(1), w["encoder.6.weight"], w["encoder.6.bias"])) * a[2]
        expected = linear(h, w[f"heads.by_task.{key}.weight"], w[f"heads.by_task.{key}.bias"])
        torch.testing.assert_close(model(x, task).detach(), expected)
    assert torch.equal(model.encode(x), x)
    assert model.shared_names() == {name for name, _ in model.named_parameters() if name.startswith("encoder.")}
    with pytest.raises(DataError, match="no head for task 'none'"):
        model(x, "none")


def test_gates_are_soft_in_training_and_hard_in_evaluation_and_in_copies() -> None:
    checked: list[str] = []

    def look(step: Any) -> None:
        model, (task,) = step.run.model, step.batch.tasks
        heads = model.heads
        embeddings = heads.embeddings_of(task)
        for gate, e in zip(heads.gates_of(task), embeddings, strict=True):
            assert torch.equal(gate, (heads.scale * e).sigmoid())
        for frozen in (copy.deepcopy(model).eval(), step.run.teachers.get("lwf/previous")):
            if frozen is not None:
                for gate, e in zip(frozen.heads.gates_of(task), frozen.heads.embeddings_of(task), strict=True):
                    assert torch.equal(gate, (400.0 * e).sigmoid())
                checked.append(task)

    plugins = [HAT(), LwF(), probe("look", after_step=look)]
    Engine(network(), sgd(), plugins, batch_size=6, evaluate_every=1).run(task_stream())
    assert checked == ["t.0"] * 4 + ["t.1"] * 8 + ["train"] * 8


# ---------------------------------------------------------------------- what is protected


def binary() -> Any:
    """Task i opens every third unit from i on, and unit 0: written when its last epoch ends, so that gates are 0 or 1 to the last bit."""

    def write(run: Any) -> None:
        if run.clock.is_last_epoch:
            with torch.no_grad():
                for e in run.model.heads.embeddings_of(run.experience.tasks[0].name):
                    units = torch.arange(len(e))
                    e.copy_(torch.where((units % 3 == run.clock.experience) | (units == 0), 6.0, -6.0))

    return probe("binary", after_epoch=write)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_what_a_task_has_opened_does_not_change_its_outputs_by_a_bit(optimizer: str) -> None:
    """Under momentum, weight decay, BatchNorm and dropout, with a penalty beside; units that are free do move."""
    stream, outputs, weights, claimed = task_stream(), [], [], []
    hat = HAT()

    def look(run: Any) -> None:
        run.model.eval()
        x = {task: stream[i].data["train"].batch(torch.arange(20)).x for i, task in enumerate(NAMES)}
        with torch.no_grad():
            outputs.append({task: run.model(x[task], task) for task in NAMES})
        weights.append(run.snapshot())
        claimed.append(hat.claimed())

    plugins = [probe("look", after_experience=look), hat, EWC(strength=1.0), binary()]  # after_ hooks run from the last to the first
    Engine(network(), OPTIMIZERS[optimizer], plugins, batch_size=6, epochs=3).run(stream)
    assert [[layer.tolist() for layer in c] for c in claimed[:2]] == [
        [[float(u % 3 <= i) for u in range(9)], [float(u % 3 <= i) for u in range(7)]] for i in range(2)
    ]
    for i in range(3):
        for later in range(i + 1, 3):
            assert torch.equal(outputs[later][NAMES[i]], outputs[i][NAMES[i]])
    factors = protection(network().encoder, layers_of(network().encoder), claimed[0])
    for name, factor in factors.items():
        old, new = weights[0][f"encoder.{name}"], weights[1][f"encoder.{name}"]
        assert torch.equal(new[factor == 0], old[factor == 0])
        assert not torch.equal(new[factor == 1], old[factor == 1])
    keys = list(network().heads.by_task)
    for name, old in weights[0].items():
        if name.startswith((f"heads.gates.{keys[0]}", f"heads.by_task.{keys[0]}")):
            assert torch.equal(weights[2][name], old)


def test_statistics_rest_after_the_first_experience() -> None:
    means: list[Tensor] = []
    keep = probe("keep", after_experience=lambda run: means.append(run.model.encoder[1].running_mean.clone()))
    Engine(network(), sgd(), [HAT(), keep], batch_size=6).run(task_stream())
    assert bool(means[0].any())
    assert torch.equal(means[1], means[0])
    assert torch.equal(means[2], means[0])


def test_embeddings_stay_in_bounds_and_strength_closes_units() -> None:
    def opened(strength: float) -> float:
        hat = HAT(strength=strength)
        Engine(network(bare=True), lambda p: torch.optim.SGD(p, lr=0.5), [hat, look], batch_size=5, epochs=5).run(task_stream()[:1])
        return float(torch.cat(hat.claimed()).mean())

    largest: list[float] = []
    look = probe("look", after_step=lambda step: largest.append(max(float(e.detach().abs().max()) for e in step.run.model.heads.embeddings_of("t.0"))))  # noqa: E501 # fmt: skip
    assert opened(20.0) < opened(0.0)
    assert max(largest) == 6.0


@pytest.mark.parametrize("seed", [0, 1])
def test_on_digits_plain_training_forgets_and_this_does_not(seed: int) -> None:
    stream = streams.task_incremental("digits", 5)

    def run(*plugins: Any) -> Any:
        model = mlp(stream, (50, 50))
        return Engine(model, lambda p: torch.optim.SGD(p, lr=0.2), plugins, batch_size=16, epochs=8, seed=seed).run(stream).metrics

    hat = HAT()
    held, plain = run(hat), run()
    assert float(plain["forgetting"]) > 0.1
    assert float(held["forgetting"]) <= 0.005
    assert float(held["average_accuracy"]) > 0.97
    assert float(held["average_accuracy"]) > float(plain["average_accuracy"]) + 0.1
    assert all(0.1 < float(layer.mean()) < 0.9 for layer in hat.claimed())  # room is left for other tasks


# ---------------------------------------------------------------------- beside others


@pytest.mark.parametrize("others", [[MultiHead()], [SAM()], [MGDA()], [EWC(strength=3.0), LwF()], [Clipping(max_norm=0.5)]], ids=str)
def test_it_stands_beside_others_while_tasks_come_up(others: list[Any]) -> None:
    stream = task_stream(known=1)
    plain = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))
    model = plain if isinstance(others[0], MultiHead) else mlp(stream, (9, 8))
    weights, _ = final(Engine(model, sgd(), [HAT(), *others], batch_size=8, epochs=2), stream)
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    assert sum(name.startswith("heads.gates.") and name.endswith(".0") for name in weights) == 3


def test_clipping_comes_after_compensation() -> None:
    norms: list[float] = []
    keep = probe("keep", around_update=lambda update, gradients: norms.append(float(torch.nn.utils.get_total_norm(list(gradients.values())))) or update(gradients))  # noqa: E501 # fmt: skip
    Engine(network(), sgd(), [Clipping(max_norm=0.5), HAT(), keep], batch_size=6).run(task_stream())
    assert max(norms) <= 0.5 + 1e-5


def test_importance_reaches_what_runs_behind_the_features() -> None:
    """Weights of the encoder and embeddings; those of other tasks are left out."""
    found: list[Any] = []

    def compare(run: Any) -> None:
        (task,) = (task.name for task in run.experience.tasks)
        named, total, rows = dict(run.model.named_parameters()), {}, run.data().batch(torch.arange(20)).x
        run.model.eval()
        for row in rows:
            logs = run.model(row[None], task).log_softmax(1)[0]
            for log in logs:
                gradients = torch.autograd.grad(log, list(named.values()), retain_graph=True, allow_unused=True)
                for name, g in zip(named, gradients, strict=True):
                    if g is not None:
                        total[name] = total.get(name, 0) + log.detach().exp() * g.square() / len(rows)
        found.append((run.importance(), total))

    Engine(network(bare=True), sgd(), [HAT(largest_scale=3.0), probe("compare", after_experience=compare)], batch_size=6).run(task_stream())
    for importance, expected in found:
        assert {name for name, value in importance.items() if bool(value.any())} == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(importance[name], value, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("known", [1, 3])
@pytest.mark.parametrize("update", [3, 8, 13])
def test_stopped_and_resumed_equals_the_straight_run(update: int, known: int, tmp_path: Path) -> None:
    """In the first experience, right behind it, and in the second, with a teacher and a penalty beside."""

    def engine(**options: Any) -> Engine:
        plugins = [HAT(), EWC(strength=1.0), LwF()]
        return Engine(network(known), sgd(), plugins, batch_size=6, epochs=2, checkpoint_every=1, **options)

    engine().run(task_stream(known), output=tmp_path / "straight")
    with pytest.raises(Stop):
        engine(progress=stop_at(update)).run(task_stream(known), output=tmp_path / "broken")
    engine().resume(tmp_path / "broken", task_stream(known))
    straight, broken = (read_checkpoint(latest_checkpoint(tmp_path / name / "checkpoints")[0]) for name in ("straight", "broken"))
    for part in ("model", "optimization", "plugins", "teachers", "clock"):
        assert same(straight[part], broken[part]), part
    assert (tmp_path / "broken" / "events.jsonl").read_text() == (tmp_path / "straight" / "events.jsonl").read_text()


def test_micro_batches_make_the_same_step() -> None:
    whole, parts = (
        final(Engine(network(bare=True), sgd(), [HAT()], batch_size=10, epochs=2, microbatches=n), task_stream())[0] for n in (1, 3)
    )
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-4)


def test_the_same_engine_runs_twice_alike() -> None:
    engine = Engine(network(), sgd(), [HAT()], batch_size=6)
    assert same(final(engine, task_stream()), final(engine, task_stream()))


def test_an_experience_without_training_rows_claims_and_moves_nothing() -> None:
    """Unlabelled rows of a task that has been learnt, and a term that would move everything."""
    stream = task_stream(2)
    target = Experience(2, (TASKS[0],), {"target": stream[0].data["train"].without_labels()}, "again", {})  # type: ignore[union-attr]
    longer = Stream("longer", 3, lambda i: target if i == 2 else stream[i], lambda i: stream.evaluation(min(i, 1)), tasks=TASKS[:2],
                    input_shape=(6,), description={"by": "hand"}, fingerprints=("hand",))  # fmt: skip
    hat, kept, claimed = HAT(), [], []
    shrink = probe("shrink", collect_terms=lambda step: sum(p.square().sum() for p in step.parameters.values()))

    def after_experience(run: Any) -> None:
        kept.append({name: value.clone() for name, value in run.model.state_dict().items()})
        claimed.append(hat.claimed())

    plugins = [probe("keep", after_experience=after_experience), hat, shrink]
    Engine(network(), sgd(), plugins, batch_size=8).run(longer)
    moved = {name for name in kept[1] if not torch.equal(kept[1][name], kept[2][name])}
    key = list(network().heads.by_task)[2]  # a task that has not come
    assert moved == {f"heads.{name}" for name in (f"by_task.{key}.weight", f"by_task.{key}.bias", f"gates.{key}.0", f"gates.{key}.1")}
    assert same(claimed[2], claimed[1])


def test_what_has_no_task_of_its_own_for_each_experience_is_refused() -> None:
    def run(stream: Stream, model: Any = None, *plugins: Any) -> None:
        Engine(model or mlp(stream, (5,)), sgd(), [HAT(), *plugins]).run(stream)

    with pytest.raises(ConfigurationError, match="experience 1 has task 'blobs', as experience 0: use a task-incremental stream"):
        run(class_stream())
    with pytest.raises(ConfigurationError, match="experience 0 has the tasks a, b"):
        run(two_task_stream())
    with pytest.raises(ConfigurationError, match="experience 0 has the tasks a, b"):
        run(separate_task_stream())
    with pytest.raises(ConfigurationError, match=r"the model is a plain module.*list MultiHead\(\) before it"):
        run(task_stream(), net())
    for plugin in (Replay(capacity=9), Joint(), EMA(), PackNet(), NearestClassMean()):
        with pytest.raises(CompositionError, match=plugin.name):
            run(task_stream(), None, plugin)
    with pytest.raises(CompositionError, match="sharing"):
        run(task_stream(), None, MMoE())
    mixer = probe("mixer", transform_phases=lambda phases, run: (phases[0].replace(data=run.stream[0].data["train"]), *phases[1:]))
    with pytest.raises(ConfigurationError, match=r"trains on the task of experience 1 alone, but a batch has rows of t.0"):
        run(task_stream(), None, mixer)
    for options in ({"strength": -1.0}, {"largest_scale": 0.5}):
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            HAT(**options)


@pytest.mark.parametrize(
    ("encoder", "told"),
    [
        (nn.Identity(), "each used once, in an nn.Sequential, but it is Identity"),
        (nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)), r"LayerNorm at encoder.1"),
        (nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6, elementwise_affine=False)), r"LayerNorm at encoder.1"),
        (nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 6)), r"BatchNorm1d at encoder.0"),
        (nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.PReLU())), r"PReLU at encoder.1.0"),
        (nn.Sequential(nn.Linear(6, 12), nn.Unflatten(1, (12, 1)), nn.Conv1d(12, 6, 1, groups=2), nn.Flatten()), "without groups"),
        (nn.Sequential(nn.Linear(6, 12), nn.Unflatten(1, (3, 4)), nn.Conv1d(3, 2, 1), nn.Flatten()), "the 3 inputs of encoder.2"),
        (nn.Sequential(nn.Linear(6, 12), nn.Unflatten(1, (12, 1)), nn.Conv1d(12, 6, 1), nn.Flatten()), "have become 1 where"),
        (nn.Sequential(nn.Linear(6, 12), nn.MaxPool1d(2)), "12 units of encoder.0 have become 6 where their gates act"),
    ],
    ids=str,
)  # fmt: skip
def test_encoders_without_a_unit_for_each_gate_are_refused(encoder: nn.Module, told: str) -> None:
    stream = task_stream()
    with pytest.raises(ConfigurationError, match=told):
        Engine(Model(encoder, Heads(6, stream.tasks)), sgd(), [HAT()]).run(stream)


def test_a_layer_that_is_used_twice_is_refused() -> None:
    stream, twice = task_stream(), nn.Linear(6, 6)
    with pytest.raises(ConfigurationError, match="each used once"):
        Engine(Model(nn.Sequential(twice, nn.ReLU(), twice), Heads(6, stream.tasks)), sgd(), [HAT()]).run(stream)
