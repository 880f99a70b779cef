"""What holds of every combiner: names, one row, scales, conflicts, missing tasks, what stands beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from streamlearn import Engine, models
from streamlearn.core import registry
from streamlearn.core.checkpoint import latest_checkpoint, read_checkpoint
from streamlearn.core.deprecation import hooks_of
from streamlearn.core.gradients import TaskRows
from streamlearn.errors import DivergenceError
from streamlearn.plugins import EWC, MGDA, MGDAUB, LwF, PCGrad, Replay, UncertaintyWeighting
from streamlearn.plugins.gradients.aligned_mtl import AlignedMTL
from streamlearn.plugins.gradients.cagrad import CAGrad
from streamlearn.plugins.gradients.graddrop import GradDrop
from streamlearn.plugins.gradients.gradient_similarity import GradientSimilarity
from streamlearn.plugins.gradients.gradvac import GradVac
from streamlearn.plugins.gradients.imtl_g import IMTLG
from streamlearn.plugins.gradients.nash_mtl import NashMTL
from streamlearn.plugins.gradients.upgrad import UPGrad
from streamlearn.streams import Task, multitask
from streamlearn.streams.data import Data, JoinedData, Target
from tests.core.support import Stop, blobs, final, probe, same, separate_task_stream, sgd, stop_at, stream_of, two_task_stream

COMBINERS: dict[str, Callable[[], Any]] = {
    "pcgrad": PCGrad,
    "gradvac": lambda: GradVac(decay=0.5),
    "cagrad": CAGrad,
    "cagrad/square": lambda: CAGrad(radius=0.9, rescale="square"),
    "cagrad/wide": lambda: CAGrad(radius=1.0),
    "graddrop": lambda: GradDrop(leak=0.1),
    "graddrop/parameters": lambda: GradDrop(at="parameters"),
    "nash": lambda: NashMTL(max_norm=None),
    "nash/clipped": lambda: NashMTL(every=2, max_norm=1.0),
    "imtl_g": IMTLG,
    "aligned": AlignedMTL,
    "aligned/rmse": lambda: AlignedMTL(scale="rmse", reduction="sum"),
    "upgrad": UPGrad,
    "mgda": MGDA,
    "mgda_ub": MGDAUB,
    "similarity": lambda: GradientSimilarity(main="a"),
    "similarity/weighted": lambda: GradientSimilarity(main="a", rule="weighted"),
}
ALL = list(COMBINERS)
ORDERED = [name for name in ALL if name not in ("pcgrad", "gradvac")]  # those that draw no order
NAMING = ("similarity", "similarity/weighted")  # in which one task, by its name, is not like the others
SCALELESS = ("nash", "nash/clipped")
PROMISING = ("mgda", "mgda_ub", "upgrad", "nash", "nash/clipped", "imtl_g", "cagrad/wide")
NOT_PROMISING = {
    "pcgrad": "a projection may bring back a conflict with a row met before; with two rows there is none",
    "gradvac": "it is PCGrad while its targets are 0",
    "cagrad": "the ball about the mean gradient has no such direction in it, for a radius below 1",
    "cagrad/square": "the same",
    "graddrop": "entries are dropped whatever the rows' products",
    "graddrop/parameters": "the same",
    "aligned": "g agrees with the aligned rows, not with the rows",
    "aligned/rmse": "the same",
    "similarity": "the main task is protected, no auxiliary one is",
    "similarity/weighted": "the same",
}
"""Those that may conflict with a row, and why."""
CONFLICTING = torch.tensor([[1.0, 0.0, 0.1], [-1.0, 1.0, 0.0], [-0.5, -1.5, 0.2]], dtype=torch.float64)


def jacobian(rows: int, seed: int, columns: int = 12) -> Tensor:
    """Rows of unequal lengths, many of which conflict."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randn(rows, 1, generator=draw, dtype=torch.float64).exp()
    return lengths * torch.randn(rows, columns, generator=draw, dtype=torch.float64)


def combined(plugin: Any, matrix: Tensor, names: Sequence[str] = "abcdefgh", seed: int = 0) -> Tensor:
    """What the engine would make of the plugin's answer; at the features, 3 rows of the batch with 4 features each."""
    features = None
    if plugin.info.rows == "features":
        features = torch.randn(3, matrix.shape[1] // 3, generator=torch.Generator().manual_seed(5), dtype=matrix.dtype)
    run = SimpleNamespace(
        tasks=dict.fromkeys(names),
        value=lambda plugin, option: getattr(plugin.config, option),
        generator=lambda plugin, purpose="": torch.Generator().manual_seed(seed),
    )
    rows = TaskRows(tuple(names[: len(matrix)]), matrix, features)
    return torch.cat(rows.combine(plugin.provide_gradient_combination(rows, SimpleNamespace(run=run))))


def parallel(a: Tensor, b: Tensor) -> bool:
    """Whether a is a positive multiple of b."""
    return float(torch.cosine_similarity(a, b, dim=0)) > 1 - 1e-9


@pytest.mark.parametrize("name", ALL)
def test_a_row_alone_keeps_its_direction(name: str) -> None:
    for seed in range(5):
        matrix = jacobian(1, seed)
        assert parallel(combined(COMBINERS[name](), matrix), matrix[0])


@pytest.mark.parametrize("name", ORDERED)
def test_the_order_of_the_rows_and_their_names_are_nothing(name: str) -> None:
    for seed in range(5):
        matrix, order = jacobian(4, seed), torch.randperm(4, generator=torch.Generator().manual_seed(seed))
        usual = combined(COMBINERS[name](), matrix)
        moved = ["abcd"[place] for place in order.tolist()]
        for names in (moved, *(["zyxw"] if name not in NAMING else [])):
            torch.testing.assert_close(combined(COMBINERS[name](), matrix[order], names), usual, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["pcgrad", "gradvac"])
def test_where_orders_are_drawn_the_distribution_knows_no_order_of_the_rows(name: str) -> None:
    two = jacobian(2, 1)
    torch.testing.assert_close(combined(COMBINERS[name](), two), combined(COMBINERS[name](), two.flip(0), "ba"))
    matrix, order, draws = CONFLICTING, torch.tensor([2, 0, 1]), 250
    found = torch.stack([combined(COMBINERS[name](), matrix, seed=seed) for seed in range(draws)])
    moved = torch.stack([combined(COMBINERS[name](), matrix[order], "cab", seed=1000 + seed) for seed in range(draws)])
    spread = (found.var(0) + moved.var(0)).sqrt() / draws**0.5
    assert float(spread.max()) > 0, "the orders matter"
    assert bool(((found.mean(0) - moved.mean(0)).abs() <= 5 * spread + 1e-9).all())


@pytest.mark.parametrize("name", ALL)
def test_doubled_losses_double_the_gradient_except_with_nash(name: str) -> None:
    for seed, factor in enumerate((2.0, 1e-3, 1e4)):
        matrix = jacobian(3, seed)
        usual, found = combined(COMBINERS[name](), matrix), combined(COMBINERS[name](), factor * matrix)
        torch.testing.assert_close(found, usual if name in SCALELESS else factor * usual, rtol=1e-6, atol=1e-9 * factor)


@pytest.mark.parametrize("rows", [2, 3, 5])
@pytest.mark.parametrize("name", PROMISING)
def test_those_that_promise_it_conflict_with_no_row(name: str, rows: int) -> None:
    for seed in range(20):
        matrix = jacobian(rows, seed)
        found = combined(COMBINERS[name](), matrix)
        assert float((matrix @ found / matrix.norm(dim=1)).min()) >= -1e-7 * float(found.norm())


@pytest.mark.parametrize("name", NOT_PROMISING)
def test_those_that_do_not_promise_it_may_conflict(name: str) -> None:
    almost_opposite = torch.tensor([[1.0, 0, 0, 0, 0, 0], [-0.5, 0.01, 0, 0, 0, 0]], dtype=torch.float64)
    matrices = [almost_opposite, *(jacobian(4, seed, 6) for seed in range(40))]
    least = [float((m @ combined(COMBINERS[name](), m) / m.norm(dim=1)).min()) for m in matrices]
    assert min(least) < -1e-3


def test_who_promises_it_and_who_does_not() -> None:
    """Every combiner there is says one or the other."""
    assert sorted([*PROMISING, *NOT_PROMISING]) == sorted(ALL)
    family = [plugin.name for plugin in registry.installed() if plugin.distribution == "streamlearn" and plugin.family == "gradients"]
    combiners = [name for name in family if "provide_gradient_combination" in hooks_of(registry.load(name))]
    assert sorted({COMBINERS[name]().name for name in ALL}) == sorted(combiners)


def test_two_rows() -> None:
    """UPGrad is half of PCGrad, and neither conflicts with a row; Nash and IMTL-G halve the angle."""
    for seed in range(20):
        matrix = jacobian(2, seed)
        units = matrix / matrix.norm(dim=1, keepdim=True)
        projected = combined(PCGrad(), matrix)
        torch.testing.assert_close(2 * combined(UPGrad(), matrix), projected)
        assert float((units @ projected).min()) >= -1e-9 * float(projected.norm())
        assert parallel(combined(NashMTL(), matrix), units.sum(0))
        assert parallel(combined(IMTLG(), matrix), units.sum(0))


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith(("mgda", "cagrad"))])
def test_a_row_of_zeros_changes_nothing_but_a_factor(name: str) -> None:
    for seed in range(3):
        matrix = jacobian(2, seed)
        found = combined(COMBINERS[name](), torch.cat([matrix, torch.zeros_like(matrix[:1])]))
        assert parallel(found, combined(COMBINERS[name](), matrix))


@pytest.mark.parametrize("name", ["cagrad", "cagrad/square"])
def test_cagrad_does_not_stop_at_a_row_of_zeros_and_mgda_does(name: str) -> None:
    matrix = torch.cat([jacobian(2, 3), torch.zeros(1, 12, dtype=torch.float64)])
    found = combined(COMBINERS[name](), matrix)
    assert float(found.norm()) > 0.1
    assert float((matrix @ found).min()) >= -1e-9
    assert float(combined(MGDA(), matrix).norm()) == 0


@pytest.mark.parametrize("name", ALL)
def test_rows_of_zeros_alone_and_opposite_rows_give_finite_gradients(name: str) -> None:
    assert not combined(COMBINERS[name](), torch.zeros(3, 12)).any()
    line = jacobian(1, 0)
    for matrix in (torch.cat([line, -line]), torch.cat([line, line]), torch.cat([line, -3 * line, 2 * line])):
        for dtype in (torch.float32, torch.float64):
            found = combined(COMBINERS[name](), matrix.to(dtype))
            assert bool(found.isfinite().all())
            assert float(found.norm()) < 10 * float(matrix.norm())


@pytest.mark.parametrize("name", ALL)
def test_a_new_task_inherits_nothing_in_the_place_of_another(name: str) -> None:
    used, fresh = COMBINERS[name](), COMBINERS[name]()
    for seed in range(5):
        combined(used, jacobian(2, seed), "ab", seed)
    matrix = jacobian(2, 77)
    for names in ("ac", "xy"):
        assert torch.equal(combined(used, matrix, names, 9), combined(fresh, matrix, names, 9))


def tasks_that_come_and_go() -> Any:
    """Tasks a and b, then c in the place of b, then a and b again; all on the same rows."""
    source = blobs(72, 6)
    tasks = {"a": Task("a", size=6), "b": Task("b", size=3), "c": Task("c", size=2)}
    targets = {"a": Target("y"), "b": Target("y", torch.arange(6) % 3), "c": Target("y", torch.arange(6) % 2)}
    pieces = []
    for i, names in enumerate(("ab", "ac", "ba")):
        present = tuple(tasks[n] for n in names)
        pieces.append((Data(source, torch.arange(24 * i, 24 * i + 24), present, {n: targets[n] for n in names}), present))
    return stream_of(pieces, tuple(tasks.values()))


def some_without_labels() -> Any:
    """Rows of a and b, of a alone, of b alone: in some batches a task is missing."""
    source = blobs(48, 6)
    a, b = Task("a", size=6), Task("b", size=3)
    parts = [
        Data(source, torch.arange(12), (a, b), {"a": Target("y"), "b": Target("y", torch.arange(6) % 3)}),
        Data(source, torch.arange(12, 32), (a,), {"a": Target("y")}),
        Data(source, torch.arange(32, 48), (b,), {"b": Target("y", torch.arange(6) % 3)}),
    ]
    return stream_of([(JoinedData(parts), (a, b))] * 2, (a, b))


@pytest.mark.parametrize("name", ALL)
def test_a_task_without_labels_is_no_row(name: str) -> None:
    met: list[tuple[str, ...]] = []
    plugin = COMBINERS[name]()
    real = plugin.provide_gradient_combination
    spy = probe("spy", provide_gradient_combination=lambda rows, step: met.append(rows.names) or real(rows, step))
    type(spy).info = plugin.info
    stream = some_without_labels()
    found, events = final(Engine(models.mlp(stream, (8,)), sgd(), [spy], batch_size=3, epochs=3), stream)
    assert all(bool(value.isfinite().all()) for value in found.values())
    assert {frozenset(names) for names in met} == {frozenset("ab"), frozenset("a"), frozenset("b")}
    told = [event for event in events if event["event"] == "gradients"]
    assert told
    assert any(event["pairs"][0]["updates"] < event["updates"] for event in told)


@pytest.mark.parametrize("name", ALL)
def test_tasks_come_and_go_in_a_run(name: str) -> None:
    stream = tasks_that_come_and_go()
    found, events = final(Engine(models.mlp(stream, (8,)), sgd(), [COMBINERS[name]()], batch_size=6), stream)
    assert all(bool(value.isfinite().all()) for value in found.values())
    assert [event["pairs"][0]["rows"] for event in events if event["event"] == "gradients"] == [["a", "b"], ["a", "c"], ["a", "b"]]


@pytest.mark.parametrize("name", ALL)
def test_a_gradient_that_is_not_finite_stops_the_run(name: str) -> None:
    """√(0 · L) is 0, and its derivative 0 / 0."""
    bad = probe("bad", provide_weighting=lambda losses: losses["a"] + (0.0 * losses["b"]).sqrt())
    start: dict[str, Tensor] = {}
    spy = probe("spy", before_run=lambda run: start.update(run.snapshot()))
    stream = two_task_stream()
    model = models.mlp(stream, (8,))
    with pytest.raises(DivergenceError, match="the gradient of row 'b' is not finite, though the loss is"):
        Engine(model, sgd(), [COMBINERS[name](), bad, spy], batch_size=6).run(stream)
    assert same(start, {key: value.detach() for key, value in model.named_parameters()}), "no update was made"


@pytest.mark.parametrize("name", ALL)
def test_a_penalty_is_added_after_and_freezes_nothing(name: str) -> None:
    """At its anchor the gradient of EWC is zero: as a row it would stop MGDA for ever."""
    anchors: list[dict[str, Tensor]] = []
    terms: list[Tensor] = []

    def look(gradients: Any, step: Any) -> Any:
        if step.run.clock.experience == 1:
            penalty = step.at().terms["ewc"]
            (pull,) = torch.autograd.grad(penalty, [step.parameters["encoder.0.weight"]])
            terms.append(gradients["encoder.0.weight"] - pull)
        return gradients

    stream = two_task_stream(experiences=2)
    spy = probe("spy", before_experience=lambda run: anchors.append(run.snapshot()), transform_gradients=look)
    plugins = [EWC(strength=3.0), COMBINERS[name](), spy]
    found, _ = final(Engine(models.mlp(stream, (8,)), sgd(weight_decay=0.0, momentum=0.0), plugins, batch_size=12, epochs=3), stream)
    assert float((found["encoder.0.weight"] - anchors[1]["encoder.0.weight"]).norm()) > 1e-3
    assert all(float(rest.norm()) > 0 for rest in terms)


@pytest.mark.parametrize("name", ALL)
def test_beside_weighting_replay_and_distillation(name: str) -> None:
    stream = separate_task_stream(experiences=2)
    plugins = [Replay(capacity=12), LwF(strength=0.5), UncertaintyWeighting(), COMBINERS[name]()]
    found, events = final(Engine(models.mlp(stream, (8,)), sgd(), plugins, batch_size=12, epochs=2), stream)
    assert all(bool(value.isfinite().all()) for value in found.values())
    assert sum(event["event"] == "gradients" for event in events) == 4


@pytest.mark.parametrize("name", ALL)
def test_stopped_and_resumed(name: str, tmp_path: Path) -> None:
    stream = tasks_that_come_and_go()

    def engine(**options: Any) -> Engine:
        return Engine(models.mlp(stream, (8,)), sgd(), [COMBINERS[name]()], batch_size=5, checkpoint_every=4, evaluate="never", **options)

    straight = engine().run(stream, output=tmp_path / "straight")
    folder = tmp_path / "stopped"
    with pytest.raises(Stop):
        engine(progress=stop_at(7)).run(stream, output=folder)
    resumed = engine().resume(folder, stream)
    states = [read_checkpoint(latest_checkpoint(f / "checkpoints")[0]) for f in (tmp_path / "straight", folder)]
    for part in ("model", "optimization", "plugins"):
        assert same(states[0][part], states[1][part]), part
    told = [[event for event in result.events if event["event"] == "gradients"] for result in (straight, resumed)]
    assert told[0] == told[1]
    assert told[0]


@pytest.mark.parametrize(
    "name", ["pcgrad", "gradvac", "cagrad", "nash", "imtl_g", "aligned", "upgrad", "graddrop/parameters", "similarity"]
)
def test_microbatches_combine_the_whole_batch_once(name: str) -> None:
    stream = two_task_stream(dtype=torch.float64)
    found = []
    for parts in (1, 3):
        model = models.mlp(stream, (8,)).double()
        found.append(final(Engine(model, sgd(), [COMBINERS[name]()], batch_size=12, microbatches=parts), stream)[0])
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["gradvac", "cagrad", "graddrop", "graddrop/parameters", "nash/clipped", "imtl_g", "aligned", "upgrad"])
def test_both_tasks_of_overlaid_digits_are_learned(name: str) -> None:
    stream = multitask("digits", 1)
    engine = Engine(models.mlp(stream, (64,)), sgd(lr=0.2), [COMBINERS[name]()], batch_size=64, epochs=8, evaluate="end")
    result = engine.run(stream)
    assert float(result.matrix("left")[-1, 0]) > 0.5
    assert float(result.matrix("right")[-1, 0]) > 0.5
