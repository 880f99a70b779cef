from __future__ import annotations

import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.optimize import minimize
from torch import Tensor, nn

from streamlearn import Engine, models, streams
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import AGEM, EWC, SAM, LwF, Replay, Reptile, UncertaintyWeighting
from streamlearn.plugins.gradients.agem import projected
from streamlearn.plugins.gradients.gem import GEM, dual_weights, projected_onto_cone
from tests.core.support import Spy, Stop, class_stream, final, growing_stream, net, probe, same, sgd, stop_at
from tests.plugins.distillation.oracle import body, distance, library, plain_sgd, trained_by_avalanche

# few different numbers, so that equal, opposite and zero gradients are common
SMALL = st.integers(-2, 2).map(float)
MATRICES = st.tuples(st.integers(1, 6), st.integers(1, 5)).flatmap(
    lambda shape: st.tuples(arrays.arrays(float, shape, elements=SMALL), arrays.arrays(float, shape[1], elements=SMALL))
)


def cone(g: Any, references: Any, *margin: Any, dtype: Any = torch.float64) -> Tensor:
    """The projection of one flat gradient, which is given as two parameters."""
    half = len(g) // 2

    def named(flat: Any) -> dict[str, Tensor]:
        tensor = torch.as_tensor(flat, dtype=dtype)
        return {"a": tensor[:half], "b": tensor[half:].unsqueeze(0)}

    return torch.cat([value.flatten() for value in projected_onto_cone(named(g), [named(r) for r in references], *margin).values()])


def nearest(g: np.ndarray, references: np.ndarray) -> np.ndarray:
    """The primal problem, by a method for nonlinear programs."""
    constraints = [{"type": "ineq", "fun": lambda z, r=r: r @ z, "jac": lambda z, r=r: r} for r in references]
    options = {"maxiter": 500, "ftol": 1e-14}
    found = minimize(lambda z: 0.5 * ((z - g) ** 2).sum(), g, jac=lambda z: z - g, constraints=constraints, method="SLSQP", options=options)
    return np.asarray(found.x)


# ------------------------------------------------------------------------------------------------ the projection


@given(MATRICES, st.sampled_from([0.0, 0.5]), st.sampled_from([1e-6, 1.0, 1e6]))
@settings(max_examples=150, deadline=None)
def test_the_conditions_of_karush_kuhn_and_tucker(problem: Any, bound: float, scale: float) -> None:
    matrix, g = problem[0] * scale, problem[1]
    v = dual_weights(torch.from_numpy(matrix), torch.from_numpy(g), bound).numpy()
    slack = matrix @ (g + matrix.T @ v)  # the gradient of the dual
    size = max(np.abs(matrix).max(), 1e-300) * max(np.abs(g).max() + bound * np.abs(matrix).sum(), 1e-300)
    assert (v >= bound).all()
    assert (slack >= -1e-8 * size).all()
    assert abs((v - bound) @ slack) <= 1e-8 * size * max(np.abs(v).max(), 1)


@given(MATRICES)
@settings(max_examples=100, deadline=None)
def test_no_constraint_is_violated_and_none_without_need(problem: Any) -> None:
    matrix, g = problem
    z = cone(g, matrix).numpy()
    assert (matrix @ z >= -1e-8).all()
    assert abs(z @ (z - g)) <= 1e-7, "the nearest of a cone is where g's remainder is at a right angle to it"
    assert np.linalg.norm(z) <= np.linalg.norm(g) + 1e-9
    if (matrix @ g >= 0).all():
        assert z.tolist() == g.tolist()


@given(MATRICES)
@settings(max_examples=40, deadline=None)
def test_it_is_the_nearest(problem: Any) -> None:
    matrix, g = problem
    z, other = cone(g, matrix).numpy(), nearest(g, matrix)
    if (matrix @ other >= -1e-9).all():  # SLSQP gives up on some
        assert ((z - g) ** 2).sum() <= ((other - g) ** 2).sum() + 1e-7


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_what_the_authors_solver_finds(seed: int, margin: float) -> None:
    quadprog = pytest.importorskip("quadprog")
    draw = np.random.default_rng(seed)
    matrix, g = draw.standard_normal((4, 9)), draw.standard_normal(9) - 2
    v = quadprog.solve_qp(matrix @ matrix.T, -matrix @ g, np.eye(4), np.full(4, margin))[0]
    assert (matrix @ g < 0).any()
    np.testing.assert_allclose(cone(g, matrix, margin).numpy(), g + matrix.T @ v, atol=1e-9)


def test_with_one_constraint_it_is_agem() -> None:
    for seed in range(6):
        g, r = torch.randn(2, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        torch.testing.assert_close(cone(g, [r]), projected({"w": g}, {"w": r})["w"])


def test_the_two_meanings_of_a_margin() -> None:
    draw = np.random.default_rng(1)
    matrix, g = draw.standard_normal((3, 8)), -np.ones(8)
    push = 0.25 * matrix.sum(0)
    plain = cone(g, matrix).numpy()
    np.testing.assert_allclose(cone(g, matrix, 0.25, "offset").numpy(), plain + push, atol=1e-9)
    np.testing.assert_allclose(cone(g, matrix, 0.25, "bound").numpy(), nearest(g + push, matrix), atol=1e-6)
    opposed = np.array([[1.0, 0.0], [-0.9, 0.1]])
    assert (opposed @ cone([-1.0, 0.0], opposed, 1.0, "bound").numpy() >= -1e-9).all()
    assert (opposed @ cone([-1.0, 0.0], opposed, 1.0, "offset").numpy()).min() < -0.05, "the text of the paper promises less"


def test_gradients_that_break_other_solvers() -> None:
    """Equal, opposite and nearly opposite ones, and zero: "matrix G is not positive definite"."""
    draw = torch.Generator().manual_seed(0)
    for size in (1e-2, 1e-5, 1e-7, 1e-9, 0.0):
        base, noise, g = torch.randn(3, 12, generator=draw)
        references = torch.stack([base, base, 3 * base, torch.zeros(12), -base + size * noise, 1e-6 * noise, 1e6 * noise])
        z = cone(g, references, dtype=torch.float32)
        lengths = references.norm(dim=1).clamp(min=1e-30)
        assert float((references @ z / lengths).min()) >= -1e-6 * float(g.norm())
        assert float(z.norm()) <= float(g.norm()) * (1 + 1e-6)


def test_names_that_only_one_side_has() -> None:
    g = {"both": torch.tensor([-1.0, 2.0]), "mine": torch.tensor([-9.0])}
    references = [{"both": torch.tensor([3.0, 0.0]), "other": torch.tensor([100.0])}, {"other": torch.ones(1)}]
    found = projected_onto_cone(g, references)
    assert found["both"].tolist() == [0.0, 2.0]
    assert found["mine"] is g["mine"]
    assert g["both"].tolist() == [-1.0, 2.0]
    assert projected_onto_cone({"mine": g["mine"]}, references)["mine"] is g["mine"]
    assert projected_onto_cone(g, [])["both"] is g["both"]


# ------------------------------------------------------------------------------------------------ in a run


def watched(*plugins: Any, model: Any = None, stream: Any = None, **options: Any) -> tuple[list[Any], Any]:
    """(experience, gradients before, after, one reference for each past experience by a plain loop) of every step."""
    seen: list[Any] = []
    before: dict[str, Tensor] = {}

    def keep(gradients: Any) -> Any:
        before.clear()
        before.update({name: g.clone() for name, g in gradients.items()})
        return gradients

    def look(gradients: Any, step: Any) -> Any:
        run = step.run
        memory, references = run.memories.find("main"), []
        for number in sorted(memory.groups() if memory else ()):
            if number == run.clock.experience:
                continue
            rows = memory.rows_of(number)
            loss = nn.functional.cross_entropy(run.model(rows.x, "blobs"), rows.targets["blobs"])
            named = dict(run.model.named_parameters())
            references.append(dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True)))
        seen.append((run.clock.experience, dict(before), dict(gradients), references))
        return gradients

    spy = Spy()
    acting = [probe("keep", transform_gradients=keep), *plugins, probe("look", transform_gradients=look), spy]
    settings = {"batch_size": 10, "epochs": 2} | options
    Engine(model or body(), sgd(lr=0.1), acting, **settings).run(stream or class_stream())
    return seen, spy.run


def flat(named: Any, like: Any) -> np.ndarray:
    return (
        torch.cat([named[name].detach().flatten() if name in named else torch.zeros(like[name].numel()) for name in like]).double().numpy()
    )


@pytest.mark.parametrize("microbatches", [1, 3])
def test_every_past_experience_is_a_constraint(microbatches: int) -> None:
    seen, run = watched(GEM(capacity=7, margin=0.0), microbatches=microbatches)
    violated = []
    for experience, before, after, references in seen:
        assert len(references) == experience
        if not experience:
            assert same(before, after)
            continue
        matrix, g = np.stack([flat(r, before) for r in references]), flat(before, before)
        np.testing.assert_allclose(flat(after, before), nearest(g, matrix), atol=2e-4 * np.abs(g).max())
        violated.append(int((matrix @ g < 0).sum()))
    assert {1, 2} <= set(violated)
    memory = run.memories.find("main")
    assert (memory.owner, memory.offered, memory.groups()) == ("gem", 60, {0: 7, 1: 7, 2: 7})


def oracle() -> Any:
    """Avalanche's plugin, with the solver of the authors' code: without the 1e-3 that it adds to the diagonal."""
    quadprog = pytest.importorskip("quadprog")
    plugin = library("training.plugins").GEMPlugin

    def solve(self: Any, g: Tensor) -> Tensor:
        matrix, flat_g = self.G.double().numpy(), g.double().numpy()
        count = len(matrix)
        v = quadprog.solve_qp(matrix @ matrix.T, -matrix @ flat_g, np.eye(count), np.full(count, float(self.memory_strength)))[0]
        return torch.from_numpy(flat_g + matrix.T @ v).float()

    return plugin, type("Exact", (plugin,), {"solve_quadprog": solve})


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_avalanche(margin: float) -> None:
    """All rows are kept, so that only the method can differ."""
    stream, (plugin, exact) = class_stream(), oracle()
    found = Engine(body(), plain_sgd, [GEM(capacity=1000, margin=margin)], batch_size=1000, epochs=15).run(stream).model
    assert distance(found, trained_by_avalanche(stream, body(), lambda: [exact(1000, margin)], 15)) < 1e-5
    assert distance(found, trained_by_avalanche(stream, body(), list, 15)) > 1e-2
    ridge = distance(found, trained_by_avalanche(stream, body(), lambda: [plugin(1000, margin)], 15))
    assert 1e-6 < ridge < 0.05, "its ridge shows"


def test_the_ridge_of_avalanche_lets_short_gradients_be_violated() -> None:
    plugin, _ = oracle()
    reference, g = torch.tensor([[0.01, 0.0]]), torch.tensor([-1.0, 1.0])
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("ignore")
        theirs = plugin.solve_quadprog(types.SimpleNamespace(G=reference, memory_strength=0.0), g)
    assert float(theirs[0]) == pytest.approx(-1 / 1.1, rel=1e-4), "nine tenths of the violation are left"
    assert cone(g, reference).tolist() == pytest.approx([0, 1], abs=1e-9)


@pytest.mark.parametrize("kind", ["class_incremental", "task_incremental"])
def test_it_forgets_less_on_digits(kind: str) -> None:
    stream = getattr(streams, kind)("digits", 5)

    def accuracy(*plugins: Any) -> float:
        engine = Engine(models.mlp(stream, (64,)), sgd(lr=0.03, momentum=0.0, weight_decay=0.0), list(plugins), epochs=3, seed=0)
        return float(engine.run(stream).metrics["average_accuracy"])

    assert accuracy(GEM(capacity=50)) > accuracy() + (0.2 if kind == "class_incremental" else 0.005)


# ------------------------------------------------------------------------------------------------ terms


def pull() -> Any:
    return probe("pull", collect_terms=lambda step: 3.0 * step.parameters["encoder.classifier.bias"][0])


@pytest.mark.parametrize(("microbatches", "first"), [(1, list), (3, list), (1, lambda: [SAM()])])
@pytest.mark.parametrize("margin_as", ["bound", "offset"])
def test_the_losses_alone_are_projected(margin_as: Any, microbatches: int, first: Any) -> None:
    """Also in parts, and inside a look-ahead that is listed before it."""
    seen, _ = watched(*first(), GEM(margin=0.3, margin_as=margin_as, projects="losses"), pull(), microbatches=microbatches)
    total, _ = watched(*first(), GEM(margin=0.3, margin_as=margin_as), pull(), microbatches=microbatches)
    name, differ = "encoder.classifier.bias", 0.0
    for experience, before, after, references in seen:
        term = torch.zeros(6)
        term[0] = 3.0
        bare = {**before, name: before[name] - term}
        expected = projected_onto_cone(bare, references, 0.3, margin_as)
        expected[name] = expected[name] + term
        for key, value in after.items():
            torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4)
        if experience:
            whole = projected_onto_cone(before, references, 0.3, margin_as)
            differ = max(differ, float((whole[name] - after[name]).abs().max()))
    assert differ > 0.05
    for _, before, after, references in total:
        for key, value in projected_onto_cone(before, references, 0.3, margin_as).items():
            torch.testing.assert_close(after[key], value, rtol=1e-3, atol=1e-4)


def test_a_step_whose_losses_have_no_gradient_is_refused() -> None:
    engine = Engine(body(), sgd(), [Reptile(), GEM(projects="losses")], batch_size=10)
    with pytest.raises(ConfigurationError, match="plugin gem projects the gradient of the losses alone, but in this step no loss has"):
        engine.run(class_stream())


def test_it_is_declared_what_it_costs() -> None:
    assert (GEM().passes.forward, GEM().passes.backward) == (1, 1)
    assert GEM(projects="losses").passes.backward == 2


# ------------------------------------------------------------------------------------------------ beside others


def test_rows_of_the_present_are_no_constraint_when_replay_fills_the_memory() -> None:
    options = {"capacity": 5, "policy": "experience_balanced", "budget": "per_group"}
    seen, run = watched(GEM(capacity=5, margin=0.0), Replay(fill="step", **options))
    memory = run.memories.find("main")
    assert (memory.owner, memory.offered, set(memory.groups())) == ("replay", 60, {0, 1, 2})
    for experience, before, after, references in seen:
        assert len(references) == experience
        for name, value in projected_onto_cone(before, references).items():
            torch.testing.assert_close(after[name], value, rtol=1e-3, atol=1e-5)
    with pytest.raises(ConfigurationError, match="share the replay memory 'main' but want capacity 5, reservoir, total and 5, exp"):
        Engine(net(), sgd(), [Replay(capacity=5), GEM(capacity=5)], batch_size=10).run(class_stream())


def test_statistics_of_batchnorm_are_not_moved() -> None:
    def statistics(*plugins: Any) -> dict[str, Tensor]:
        model = net()
        Engine(model, sgd(lr=0.0, weight_decay=0.0), list(plugins), batch_size=10).run(class_stream())
        return dict(model.named_buffers())

    assert same(statistics(GEM()), statistics())


@pytest.mark.parametrize("projects", ["total", "losses"])
def test_heads_that_grow_or_are_absent(projects: Any) -> None:
    names = []
    watch = probe("watch", transform_gradients=lambda gradients: names.append(set(gradients)) or gradients)
    stream = growing_stream()
    plugins = [GEM(capacity=5, projects=projects), Replay(memory="own", capacity=4), LwF(), watch]
    weights, _ = final(Engine(models.mlp(stream, (8,)), sgd(), plugins, batch_size=10), stream)
    assert all(bool(value.isfinite().all()) for value in weights.values())
    assert weights["heads.by_task.t.weight"].shape == (6, 8)
    final(Engine(models.mlp(stream, (8,)), sgd(), [GEM(), watch], batch_size=10), stream)
    assert "heads.by_task.t.weight" not in names[-1]
    assert {"heads.by_task.other.weight", "encoder.0.weight"} <= names[-1]


@pytest.mark.parametrize(
    "others", [lambda: [EWC(strength=10.0)], lambda: [SAM()], lambda: [AGEM(memory="other")], lambda: [UncertaintyWeighting()]]
)
@pytest.mark.parametrize("projects", ["total", "losses"])
def test_beside_others(others: Any, projects: Any) -> None:
    weights, _ = final(Engine(net(), sgd(), [GEM(projects=projects), *others()], batch_size=10), class_stream())
    alone, _ = final(Engine(net(), sgd(), others(), batch_size=10), class_stream())
    assert all(bool(value.isfinite().all()) for value in weights.values())
    assert any(not torch.equal(weights[name], alone[name]) for name in weights)


def test_stopped_and_resumed(tmp_path: Path) -> None:
    def engine(**options: Any) -> Engine:
        return Engine(net(), sgd(), [GEM(capacity=4, projects="losses"), EWC(strength=1.0)], batch_size=7, seed=1, **options)

    straight, _ = final(engine(), class_stream())
    for update in (4, 8):
        folder = tmp_path / str(update)
        with pytest.raises(Stop):
            engine(progress=stop_at(update), checkpoint_every=2).run(class_stream(), output=folder)
        assert same(dict(engine(checkpoint_every=2).resume(folder, class_stream()).model.state_dict()), straight)


@pytest.mark.parametrize(
    "options", [{"capacity": 0}, {"policy": "reservoir"}, {"margin": -0.1}, {"margin_as": "both"}, {"projects": "terms"}, {"memory": ""}]
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"option '{next(iter(options))}'"):
        GEM(**options)
