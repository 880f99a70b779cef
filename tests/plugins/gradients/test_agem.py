from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchjd.aggregation import DualProj

from streamlearn import Engine, PluginInfo, models
from streamlearn.core.checkpoint import latest_checkpoint, read_checkpoint
from streamlearn.core.optimization import Trainable
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import AGEM, EWC, MAML, SAM, Replay, Reptile, UncertaintyWeighting
from streamlearn.plugins.gradients.agem import projected
from tests.core.support import Spy, Stop, class_stream, final, growing_stream, net, probe, same, sgd, stop_at
from tests.integration.conftest import no_drawing  # noqa: F401 - nobody looks at the figures of a run that is stopped and resumed
from tests.plugins.distillation.oracle import body, distance, library, plain_sgd, trained_by_avalanche


def dot(a: Any, b: Any, names: Any = None) -> float:
    return float(sum((a[n] * b[n]).sum() for n in (names or a) if n in a and n in b))


@pytest.mark.parametrize("seed", range(6))
def test_the_projection_is_that_of_gem_with_one_constraint(seed: int) -> None:
    """torchjd's DualProj solves GEM's dual problem numerically."""
    draw = torch.Generator().manual_seed(seed)
    g, r = torch.randn(2, 7, generator=draw, dtype=torch.float64)
    found = projected({"a": g[:3], "b": g[3:].view(2, 2)}, {"a": r[:3], "b": r[3:].view(2, 2)})
    flat = torch.cat([value.flatten() for value in found.values()])
    oracle = DualProj(pref_vector=torch.tensor([1.0, 0.0], dtype=torch.float64))(torch.stack([g, r]))
    assert float(torch.cosine_similarity(flat, oracle, dim=0)) > 0.9999
    torch.testing.assert_close(flat, oracle, rtol=1e-2, atol=1e-2)
    if float(g @ r) < 0:
        assert float(flat @ r) == pytest.approx(0, abs=1e-12)
        torch.testing.assert_close(flat, g - (g @ r) / (r @ r) * r)
    else:
        assert torch.equal(flat, g)


def test_only_names_that_both_have_are_projected_and_nothing_is_changed_in_place() -> None:
    g = {"both": torch.tensor([1.0, -1.0]), "mine": torch.tensor([-9.0])}
    r = {"both": torch.tensor([0.0, 2.0]), "other": torch.tensor([100.0])}
    found = projected(g, r)
    assert {n: v.tolist() for n, v in found.items()} == {"both": [1.0, 0.0], "mine": [-9.0]}
    assert g["both"].tolist() == [1.0, -1.0]
    assert projected({"mine": torch.ones(1)}, r)["mine"].tolist() == [1.0]
    zero = projected({"both": torch.ones(2)}, {"both": torch.zeros(2)})
    assert zero["both"].tolist() == [1.0, 1.0]
    short = projected({"both": torch.ones(2)}, {"both": torch.full((2,), -1e-30)})
    assert short["both"].tolist() == [1.0, 1.0], "its square is no float any more"


def watched(*plugins: Any, model: Any = None, stream: Any = None, **options: Any) -> tuple[list[Any], Any]:
    """(experience, gradients before, after, reference by a plain loop) of every step; one of ``plugins`` is A-GEM."""
    seen: list[Any] = []
    agem = next(plugin for plugin in plugins if isinstance(plugin, AGEM))
    before: dict[str, Tensor] = {}

    def keep(gradients: Any) -> Any:
        before.clear()
        before.update({n: g.clone() for n, g in gradients.items()})
        return gradients

    def look(gradients: Any, step: Any) -> Any:
        drawn = step.draw(agem.config.memory, agem.config.rows or 10, purpose="reference")
        reference = None
        if drawn is not None:
            model = step.run.model
            buffers = {n: b.clone() for n, b in model.named_buffers()}
            loss = nn.functional.cross_entropy(model(drawn.x, "blobs"), drawn.targets["blobs"])
            named = dict(model.named_parameters())
            reference = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
            for n, b in model.named_buffers():
                b.copy_(buffers[n])
        seen.append((step.run.clock.experience, dict(before), dict(gradients), reference))
        return gradients

    spy = Spy()
    acting = [probe("keep", transform_gradients=keep), *plugins, probe("look", transform_gradients=look), spy]
    Engine(model or net(dropout=0.0), sgd(lr=0.1), acting, **({"batch_size": 10, "epochs": 2} | options)).run(stream or class_stream())
    return seen, spy.run


def test_in_a_run_the_gradient_no_longer_points_against_the_memory() -> None:
    seen, run = watched(AGEM(rows=15))
    conflicts = 0
    for experience, before, after, reference in seen:
        assert (reference is None) == (experience == 0), "in the first experience there is nothing to remember"
        if reference is None:
            assert same(before, after)
            continue
        product, square = dot(before, reference), dot(reference, reference)
        conflicts += product < 0
        for name, value in after.items():
            expected = before[name] - (product / square) * reference[name] if product < 0 else before[name]
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
        assert dot(after, reference) >= -1e-5 * square
    assert 0 < conflicts <= 8
    memory = run.memories.open("main", 500, "reservoir")
    assert (memory.owner, memory.offered) == ("agem", 60)


def test_the_loss_on_the_past_rises_less() -> None:
    def forgotten(*plugins: Any) -> float:
        result = Engine(net(dropout=0.0), sgd(lr=0.1, momentum=0.0), list(plugins), batch_size=10, epochs=5).run(class_stream())
        return float(result.accuracy_matrix[-1, :2].mean())

    assert forgotten(AGEM()) > forgotten() + 0.2


def test_statistics_of_batchnorm_and_modes_are_not_moved_by_the_reference() -> None:
    def statistics(*plugins: Any) -> tuple[dict[str, Tensor], bool]:
        model = net()
        Engine(model, sgd(lr=0.0, weight_decay=0.0), list(plugins), batch_size=10).run(class_stream())
        return dict(model.named_buffers()), model.training

    assert same(statistics(AGEM()), statistics())


def test_terms_are_part_of_the_gradient_and_not_of_the_reference() -> None:
    """A term that nothing limits pulls one bias; the reference, by a plain loop, does not know it."""
    pull = probe("pull", collect_terms=lambda step: 50.0 * step.parameters["encoder.out.bias"].sum())
    seen, _ = watched(AGEM(), pull)
    for _, before, after, reference in seen:
        assert float(before["encoder.out.bias"].mean()) == pytest.approx(50, rel=0.01)
        if reference is not None:
            product, square = dot(before, reference), dot(reference, reference)
            expected = before["encoder.out.bias"] - min(product, 0) / square * reference["encoder.out.bias"]
            torch.testing.assert_close(after["encoder.out.bias"], expected, rtol=1e-4, atol=1e-5)


def test_avalanche() -> None:
    """All rows are kept and drawn, so that only the method can differ."""
    stream, plugin = class_stream(), library("training.plugins").AGEMPlugin
    found = Engine(body(), plain_sgd, [AGEM(rows=1000)], batch_size=1000, epochs=15).run(stream).model
    assert distance(found, trained_by_avalanche(stream, body(), lambda: [plugin(1000, 1000)], 15)) < 1e-5
    assert distance(found, trained_by_avalanche(stream, body(), list, 15)) > 1e-2


PLACES: dict[str, Any] = {
    "here": list, "sam": lambda: [SAM(rho=0.5)], "fomaml": lambda: [MAML(support="train", query="*", rate=0.3, order=1)],
}  # fmt: skip


@pytest.mark.parametrize(("place", "microbatches"), [("here", 1), ("here", 3), ("sam", 1), ("fomaml", 1)])
def test_the_losses_alone_are_projected(place: str, microbatches: int) -> None:
    """Of a term nothing is projected, also in parts, and where a look-ahead evaluates it: its gradient is then that of over there."""
    name = "encoder.out.bias"
    there: list[list[Tensor]] = []
    conflicts, differ, far = 0, 0.0, 0.0

    def term(step: Any) -> Tensor:
        there[-1].append(step.parameters[name].detach().clone())
        return (step.parameters[name] - 3).square().sum()

    pulled = probe("pull", before_step=lambda step: there.append([]), collect_terms=term)
    seen, _ = watched(*PLACES[place](), AGEM(rows=15, projects="losses"), pulled, microbatches=microbatches)
    for (experience, before, after, reference), values in zip(seen, there, strict=True):
        if not experience:
            assert same(before, after)
            continue
        bare = {**before, name: before[name] - 2 * (values[-1] - 3)}
        product, square = dot(bare, reference), dot(reference, reference)
        for key, value in after.items():
            torch.testing.assert_close(value, before[key] - min(product, 0) / square * reference[key], rtol=1e-3, atol=1e-4)
        conflicts += product < 0
        differ = max(differ, abs(min(product, 0) - min(dot(before, reference), 0)) / square)
        far = max(far, float((values[-1] - values[0]).abs().max()))
    assert conflicts
    assert differ > 0.05, "projecting everything would give something else"
    assert (far > 1e-3) == (place != "here")


def test_a_step_whose_losses_have_no_gradient_is_refused() -> None:
    """Reptile hands the step a distance to weights, in place of losses."""
    engine = Engine(net(), sgd(), [Reptile(), AGEM(projects="losses")], batch_size=10)
    with pytest.raises(ConfigurationError, match=r"only terms have \(.*\): use projects='total'"):
        engine.run(class_stream())
    Engine(net(), sgd(), [Reptile(), AGEM()], batch_size=10).run(class_stream())


def test_without_terms_both_settings_are_one() -> None:
    found = [final(Engine(net(), sgd(), [AGEM(projects=what)], batch_size=10), class_stream())[0] for what in ("total", "losses")]
    assert same(*found)


def test_modules_of_other_plugins_keep_their_gradient() -> None:
    seen, _ = watched(AGEM(), UncertaintyWeighting())
    name = "uncertainty_weighting/blobs.value"
    later = [(before, after) for experience, before, after, _ in seen if experience]
    assert all(torch.equal(before[name], after[name]) for before, after in later)
    assert any(not torch.equal(before["encoder.out.weight"], after["encoder.out.weight"]) for before, after in later)


def test_replay_fills_the_memory_they_share_and_its_rows_are_not_drawn_again_as_reference() -> None:
    roles: list[tuple[str, ...]] = []
    both: list[tuple[list[int], list[int]]] = []

    def look(gradients: Any, step: Any) -> Any:
        roles.append(step.batch.roles)
        drawn = step.draw("main", 10, purpose="reference")
        if drawn is not None:
            both.append((step.batch.index[step.batch.rows("memory")].tolist(), drawn.index.tolist()))
        return gradients

    spy = Spy()
    plugins = [AGEM(capacity=30), Replay(capacity=30, fill="step"), probe("look", transform_gradients=look), spy]
    Engine(net(), sgd(), plugins, batch_size=10).run(class_stream())
    memory = spy.run.memories.open("main", 30, "reservoir")
    assert (memory.owner, memory.offered) == ("replay", 60), "each row once"
    assert roles[-1] == ("train", "memory")
    assert any(mixed != drawn for mixed, drawn in both)
    with pytest.raises(ConfigurationError, match="share the replay memory 'main' but want capacity 30, reservoir and 31"):
        Engine(net(), sgd(), [Replay(capacity=30), AGEM(capacity=31)], batch_size=10).run(class_stream())


def test_tasks_that_come_and_go() -> None:
    """The head of an absent task has no gradient, and gets none from its past."""
    stream, names = growing_stream(), []
    watch = probe("watch", transform_gradients=lambda gradients: names.append(set(gradients)) or gradients)
    Engine(models.mlp(stream, (8,)), sgd(), [AGEM(), watch], batch_size=10).run(stream)
    assert "heads.by_task.t.weight" not in names[-1]
    assert {"heads.by_task.other.weight", "encoder.0.weight"} <= names[-1]


def test_a_penalty_beside_it_and_a_helper_that_only_the_batch_trains() -> None:
    helper = probe("helper", collect_modules=lambda run: {"scale": Trainable(nn.Linear(1, 1))},
                   collect_terms=lambda step: step.module("helper/scale")(torch.ones(1, 1)).square().sum())  # fmt: skip
    found, _ = final(Engine(net(), sgd(), [EWC(strength=1.0), AGEM(), helper], batch_size=10), class_stream())
    assert all(bool(value.isfinite().all()) for value in found.values())


def test_stopped_and_resumed(tmp_path: Path) -> None:
    stream = class_stream()

    def engine(**options: Any) -> Engine:
        return Engine(net(), sgd(), [AGEM(capacity=9, rows=6)], batch_size=7, checkpoint_every=2, seed=1, **options)

    engine().run(stream, output=tmp_path / "straight")
    for update in (3, 5, 8):
        folder = tmp_path / str(update)
        with pytest.raises(Stop):
            engine(progress=stop_at(update)).run(stream, output=folder)
        engine().resume(folder, stream)
        states = [read_checkpoint(latest_checkpoint(f / "checkpoints")[0]) for f in (tmp_path / "straight", folder)]
        for part in ("model", "optimization", "memories"):
            assert same(states[0][part], states[1][part]), (update, part)


def test_it_answers_to_projection_so_that_clipping_can_follow() -> None:
    late = probe("late", transform_gradients=lambda gradients: gradients)
    type(late).info = PluginInfo("late", "test", "Follows.", "none", after=frozenset({"projection"}))
    engine = Engine(net(), sgd(), [late, AGEM()])
    assert [plugin.name for plugin in engine.composition.plugins] == ["agem", "late"]
    passes = engine.composition.passes
    assert (passes.forward, passes.backward) == (1, 1)
    assert AGEM(projects="losses").passes.backward == 2


@pytest.mark.parametrize("options", [{"rows": 0}, {"capacity": 0}, {"policy": "fifo"}, {"memory": ""}, {"projects": "all"}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"option '{next(iter(options))}'"):
        AGEM(**options)
