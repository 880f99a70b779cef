from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from streamlearn import Engine, models, streams
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import EWC, LwF, MultiHead, Replay, UncertaintyWeighting
from streamlearn.plugins.gradients.ogd import OGD, complement, orthonormal, watched_outputs
from streamlearn.streams import Task
from streamlearn.streams.data import Data, Target
from streamlearn.streams.sources import TensorSource
from tests.core.support import Stop, blobs, class_stream, final, growing_stream, net, probe, same, sgd, stop_at, stream_of, two_task_stream

PLAIN = {"momentum": 0.0, "weight_decay": 0.0}
MATRICES = st.tuples(st.integers(1, 7), st.integers(2, 6)).flatmap(
    lambda shape: arrays.arrays(float, shape, elements=st.integers(-2, 2).map(float))
)


def flat(basis: Any, names: Any = None) -> Tensor:
    return torch.cat([basis[name].flatten(1) for name in (names or basis)], 1)


def projector(rows: Tensor) -> Tensor:
    """Onto the span of ``rows``, by their singular values."""
    return torch.linalg.pinv(rows.double(), rtol=1e-5) @ rows.double()


# ------------------------------------------------------------------------------------------------ the algebra


@given(MATRICES, st.integers(0, 3), st.sampled_from([1e-5, 1.0, 1e5]))
@settings(max_examples=120, deadline=None)
def test_a_basis_of_what_is_new(matrix: Any, known: int, scale: float) -> None:
    rows = torch.from_numpy(matrix)
    basis = orthonormal(rows[:known])
    found = orthonormal(rows * scale, basis)
    together = torch.cat([basis, found])
    assert len(together) == np.linalg.matrix_rank(matrix)
    torch.testing.assert_close(together @ together.T, torch.eye(len(together), dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(rows @ together.T @ together, rows, rtol=0, atol=1e-8)


def test_it_spans_what_gram_and_schmidt_give() -> None:
    """Algorithm 1, line by line; rows that are nearly dependent among them, in float32."""
    draw = torch.Generator().manual_seed(2)
    rows = torch.randn(40, 300, generator=draw)
    rows[20:] = rows[:20] + 1e-2 * torch.randn(20, 300, generator=draw)
    kept: list[Tensor] = []
    for row in rows.double():
        u = row.clone()
        for _ in range(2):
            for v in kept:
                u -= (v @ u) * v
        kept.append(u / u.norm())
    old = orthonormal(rows[:10])
    basis = torch.cat([old, orthonormal(rows[10:], old)])
    assert float((basis @ basis.T - torch.eye(40)).abs().max()) < 2e-6
    torch.testing.assert_close(basis.double().T @ basis.double(), projector(torch.stack(kept)), rtol=0, atol=1e-4)


def test_the_complement() -> None:
    draw = torch.Generator().manual_seed(1)
    basis = {"a": torch.randn(3, 4, generator=draw), "b": torch.randn(3, 2, 2, generator=draw)}
    whole = orthonormal(flat(basis))
    basis = {"a": whole[:, :4], "b": whole[:, 4:].view(3, 2, 2)}
    g = {"a": torch.randn(4, generator=draw), "b": torch.randn(3, 2, generator=draw), "other": torch.ones(2)}  # b has grown by a row
    kept = {name: value.clone() for name, value in g.items()}
    found = complement(g, basis)
    assert found["other"] is g["other"]
    assert same(g, kept), "nothing is changed in place"
    assert torch.equal(found["b"][2], g["b"][2])
    left = torch.cat([found["a"], found["b"][:2].flatten()])
    assert float((whole @ left).abs().max()) < 1e-6
    expected = torch.cat([g["a"], g["b"][:2].flatten()])
    torch.testing.assert_close(left, expected - whole.T @ (whole @ expected))
    assert complement(g, {})["a"] is g["a"]


def test_which_outputs_are_watched() -> None:
    outputs, target = torch.tensor([1.0, 5.0, 9.0]), torch.tensor(2)
    found = {variant: [float(v) for v in watched_outputs(outputs, target, variant)] for variant in ("gtl", "ave", "all")}
    assert found == {"gtl": [9.0], "ave": [5.0], "all": [1.0, 5.0, 9.0]}
    assert [float(v) for v in watched_outputs(outputs, None, "gtl")] == [1.0, 5.0, 9.0], "a regression has no class"
    dense = torch.arange(12.0).view(2, 2, 3)
    assert float(watched_outputs(dense, torch.ones(2, 3, dtype=torch.int64), "gtl")[0]) == pytest.approx(8.5)


# ------------------------------------------------------------------------------------------------ in a run


def wide_stream(experiences: int = 3, rows: int = 10, features: int = 60) -> Any:
    """Fewer rows than features, so that a linear model may keep all old outputs and still learn; float64."""
    source = blobs(rows * experiences, 6, features, dtype=torch.float64)
    task = Task("blobs", size=6)
    pieces = [(Data(source, torch.arange(i * rows, (i + 1) * rows), (task,), {"blobs": Target("y")}), (task,)) for i in range(experiences)]
    return stream_of(pieces, (task,), features=features)


def network(stream: Any, hidden: int | None = None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        (size,) = stream.input_shape
        layers = [nn.Linear(size, 6)] if hidden is None else [nn.Linear(size, hidden), nn.Tanh(), nn.Linear(hidden, 6)]
        return nn.Sequential(*layers).double()


def rows_of(stream: Any, number: int) -> Any:
    data = stream[number].data["train"]
    return data.batch(torch.arange(len(data)))


@pytest.mark.parametrize("variant", ["gtl", "ave", "all"])
def test_the_directions_are_gradients_of_outputs(variant: Any) -> None:
    """Against the Jacobian of all rows at the end of each experience."""
    stream, jacobians, plugin = wide_stream(2), [], OGD(variant=variant, directions=1000)

    def keep(run: Any) -> None:
        rows = rows_of(stream, run.clock.experience)
        parameters = {name: p.detach() for name, p in run.model.named_parameters()}
        found = jacrev(lambda given: functional_call(run.model, given, (rows.x, "blobs")))(parameters)
        whole = torch.cat([found[name].flatten(2) for name in parameters], 2)
        if variant == "gtl":
            jacobians.append(whole[torch.arange(len(rows)), rows.targets["blobs"]])
        else:
            jacobians.append(whole.mean(1) if variant == "ave" else whole.flatten(0, 1))

    Engine(network(stream, 5), sgd(lr=0.01, **PLAIN), [plugin, probe("keep", after_experience=keep)], batch_size=5).run(stream)
    found = flat(plugin.state_dict()["basis"])
    expected = projector(torch.cat(jacobians))
    assert len(found) == round(float(expected.trace()))
    torch.testing.assert_close(found.T @ found, expected, rtol=0, atol=1e-4)


def test_a_linear_model_keeps_its_old_outputs() -> None:
    """Its outputs are linear in the parameters, so that first order is all there is."""
    stream, ends, drifts, falls = wide_stream(), [], [], []

    def after(experience: Any, run: Any) -> None:
        model, rows = run.model, rows_of(stream, experience.index)
        falls.append(float(nn.functional.cross_entropy(model(rows.x, "blobs").detach(), rows.targets["blobs"])))
        ends.append(model(rows.x, "blobs").detach())
        drifts.extend(float((model(rows_of(stream, i).x, "blobs") - ends[i]).detach().abs().max()) for i in range(experience.index))

    def run(*plugins: Any) -> tuple[float, float]:
        ends.clear(), drifts.clear(), falls.clear()
        watch = probe("watch", after_experience=after)
        Engine(network(stream), sgd(lr=0.005, **PLAIN), [*plugins, watch], batch_size=5, epochs=20).run(stream)
        return max(drifts), max(falls)

    drift, loss = run(OGD(variant="all"))
    assert drift < 1e-9
    assert loss < 0.3, "and it learns"
    assert run()[0] > 0.1


def test_true_logits_alone_are_kept_by_gtl() -> None:
    stream = wide_stream(2)
    seen: list[Tensor] = []
    watch = probe("watch", after_experience=lambda run: seen.append(run.model(rows_of(stream, 0).x, "blobs").detach()))
    Engine(network(stream), sgd(lr=0.005, **PLAIN), [OGD(), watch], batch_size=5, epochs=20).run(stream)
    moved = (seen[1] - seen[0]).abs()
    true = rows_of(stream, 0).targets["blobs"].unsqueeze(1)
    assert float(moved.gather(1, true).max()) < 1e-9
    assert float(moved.scatter(1, true, 0.0).max()) > 0.05


def test_the_outputs_of_a_network_change_in_second_order_only() -> None:
    stream, steps, before = wide_stream(2), [], {}

    def look(gradients: Any, step: Any) -> Any:
        if step.run.clock.experience and not steps:
            model, x = step.run.model, rows_of(stream, 0).x
            named = {name: p.detach() for name, p in model.named_parameters()}
            for direction in (before, gradients):
                for rate in (1e-2, 1e-3):
                    moved = {name: p - rate * direction[name] for name, p in named.items()}
                    steps.append(float((functional_call(model, moved, (x, "blobs")) - model(x, "blobs")).detach().norm()))
        return gradients

    keep = probe("keep", transform_gradients=lambda gradients: before.update({n: g.clone() for n, g in gradients.items()}) or gradients)
    plugins = [keep, OGD(variant="all"), probe("look", transform_gradients=look)]
    Engine(network(stream, 8), sgd(lr=0.01, **PLAIN), plugins, batch_size=10, epochs=5).run(stream)
    plain, projected = steps[0] / steps[1], steps[2] / steps[3]
    assert 7 < plain < 13, "first order"
    assert 70 < projected < 130, "second order"
    assert steps[2] < 0.2 * steps[0]


def test_the_gradient_is_at_a_right_angle_to_the_basis_in_float32() -> None:
    plugin, worst = OGD(directions=15), []

    def look(gradients: Any, step: Any) -> Any:
        if step.run.clock.experience:
            basis = plugin.state_dict()["basis"]
            g = torch.cat([gradients[name].flatten() for name in basis])
            worst.append(float((flat(basis) @ g).abs().max() / g.norm()))
        return gradients

    Engine(net(), sgd(lr=0.1), [plugin, probe("look", transform_gradients=look)], batch_size=10, epochs=2).run(class_stream())
    assert len(worst) == 8
    assert max(worst) < 1e-5
    basis = flat(plugin.state_dict()["basis"])
    assert 30 < len(basis) <= 45
    assert float((basis @ basis.T - torch.eye(len(basis))).abs().max()) < 1e-5


def test_heads_of_past_tasks_stand_still_and_their_rows_still_bind_the_encoder() -> None:
    """Directions lie partly in a head that does not move: what is left of them is no orthonormal basis any more."""
    stream, checked = streams.task_incremental("digits", 3)[:2], []
    old = stream[0].tasks[0].name
    plugin = OGD(variant="all", directions=30)

    def look(gradients: Any, step: Any) -> Any:
        if step.run.clock.experience and len(checked) < 5:
            basis = plugin.state_dict()["basis"]
            names = [name for name in basis if name in gradients]
            assert any(old in name for name in set(basis) - set(names))
            g = torch.cat([gradients[name].flatten() for name in names])
            left = flat(basis, names)
            checked.append(float((left @ g).abs().max() / g.norm()))
        return gradients

    watch = probe("look", transform_gradients=look)
    Engine(models.mlp(stream, (16,)), sgd(lr=0.01, **PLAIN), [plugin, watch], epochs=1).run(stream)
    assert len(checked) == 5
    assert max(checked) < 1e-5


def test_what_grows_keeps_its_directions_with_zeros_for_the_rest() -> None:
    sizes, bases = [], []

    def keep(run: Any) -> None:
        bases.append({name: b.clone() for name, b in plugin.state_dict()["basis"].items()})
        sizes.append({name: tuple(p.shape) for name, p in run.model.named_parameters()})

    plugin = OGD(directions=8)
    stream = growing_stream()
    plugins = [probe("keep", after_experience=keep), plugin, Replay(capacity=6), LwF(), EWC(strength=1.0)]
    weights, _ = final(Engine(models.mlp(stream, (8,)), sgd(lr=0.02), plugins, batch_size=10), stream)
    assert all(bool(value.isfinite().all()) for value in weights.values())
    assert len(sizes) == 4
    for shapes, basis in zip(sizes, bases, strict=True):
        assert {name: tuple(b.shape[1:]) for name, b in basis.items()} == {name: shapes[name] for name in basis}
        whole = flat(basis)
        torch.testing.assert_close(whole @ whole.T, torch.eye(len(whole)), rtol=0, atol=1e-5)
    head = "heads.by_task.t.weight"
    first = len(bases[0][head])
    assert bases[0][head].shape[1:] == (2, 8)
    assert torch.equal(bases[2][head][:first, :2], bases[0][head])
    assert not bool(bases[2][head][:first, 2:].any())


def test_it_forgets_less_on_permuted_digits() -> None:
    stream = streams.domain_incremental("digits", 2, transform="permutation")

    def first_task(*plugins: Any) -> float:
        engine = Engine(models.mlp(stream, (100,)), sgd(lr=0.05, **PLAIN), list(plugins), epochs=4, seed=0)
        return float(np.asarray(engine.run(stream).accuracy_matrix)[-1, 0])

    without = first_task()
    assert first_task(OGD(variant="all")) > without + 0.05
    assert first_task(OGD()) > without + 0.05


# ------------------------------------------------------------------------------------------------ beside others


def test_regressions_several_tasks_and_other_heads() -> None:
    weights, _ = final(
        Engine(models.mlp(two_task_stream(experiences=2), (8,)), sgd(), [OGD(directions=9), UncertaintyWeighting()], batch_size=8),
        two_task_stream(experiences=2),
    )
    assert all(bool(value.isfinite().all()) for value in weights.values())
    task = Task("y", "regression", 2)
    source = TensorSource(torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), {"y": torch.ones(20, 2)}, "values")
    stream = stream_of([(Data(source, torch.arange(i, 20, 2), (task,), {"y": Target("y")}), (task,)) for i in range(2)], (task,))
    plugin = OGD(directions=7)
    Engine(models.mlp(stream, (8,)), sgd(), [plugin], batch_size=5).run(stream)
    assert len(flat(plugin.state_dict()["basis"])) == 14
    weights, _ = final(Engine(net(), sgd(), [MultiHead(), OGD(directions=5)], batch_size=10), growing_stream(known=True))
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_rows_without_labels_have_no_true_logit() -> None:
    source, task = blobs(), Task("blobs", size=6)
    hidden = Data(source, torch.arange(20), (task,), {"blobs": Target("y")}, labelled={"blobs": torch.arange(20) < 4})
    for variant, expected in (("gtl", 4), ("ave", 12)):
        plugin = OGD(variant=variant, directions=12)
        Engine(models.mlp(class_stream(), (8,)), sgd(), [plugin], batch_size=10).run(stream_of([(hidden, (task,))], (task,)))
        assert len(flat(plugin.state_dict()["basis"])) == expected


def test_episodes_are_refused() -> None:
    stream = streams.episodes("sinusoids", 1, shots=3, queries=3, train_episodes=4, test_episodes=2)
    with pytest.raises(ConfigurationError, match="plugin ogd takes directions of single rows, but experience 0 has episodes: leave it out"):
        Engine(models.mlp(stream, (8,)), sgd(lr=0.01), [OGD()], batch_size=2).run(stream)


def test_stopped_and_resumed(tmp_path: Path) -> None:
    stream = growing_stream()

    def engine(plugin: Any, **options: Any) -> Engine:
        return Engine(models.mlp(stream, (8,), dropout=0.2), sgd(), [plugin], batch_size=7, seed=1, **options)

    whole = OGD(directions=6)
    straight, _ = final(engine(whole), stream)
    for update in (4, 9):
        folder, plugin = tmp_path / str(update), OGD(directions=6)
        with pytest.raises(Stop):
            engine(OGD(directions=6), progress=stop_at(update), checkpoint_every=2).run(stream, output=folder)
        assert same(dict(engine(plugin, checkpoint_every=2).resume(folder, stream).model.state_dict()), straight)
        assert same(plugin.state_dict(), whole.state_dict())


@pytest.mark.parametrize("options", [{"variant": "true"}, {"directions": 0}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"option '{next(iter(options))}'"):
        OGD(**options)
