from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from streamlearn import Engine, Plugin, models
from streamlearn.core.checkpoint import latest_checkpoint, read_checkpoint
from streamlearn.core.objective import evaluate, weigh
from streamlearn.core.rates import rate_key
from streamlearn.errors import CompositionError, ConfigurationError
from streamlearn.plugins import AGEM, EWC, MAML, LaMAML, LwF, Replay
from streamlearn.plugins.meta.la_maml import looked_ahead
from streamlearn.streams import Stream, Task
from streamlearn.streams.data import Data, Target
from tests.core.support import Stop, adam, blobs, class_stream, final, growing_stream, net, probe, same, sgd, smooth, stop_at, stream_of

ONE = sgd(lr=1.0, momentum=0.0, weight_decay=0.0)


def double_stream() -> Stream:
    """Two experiences of two classes each, in double precision."""
    source, task = blobs(48, 4, dtype=torch.float64), Task("blobs", size=4)
    y = source.targets["y"]
    pieces = [(Data(source, (y // 2 == i).nonzero().flatten(), (task,), {"blobs": Target("y")}), (task,)) for i in range(2)]
    return stream_of(pieces, (task,))


def run(*plugins: Plugin, optimizer: Any = ONE, batch_size: int = 8) -> None:
    stream = double_stream()
    Engine(smooth(stream.tasks), optimizer, list(plugins), batch_size=batch_size).run(stream)


def rates_of(parameters: Any) -> dict[str, Tensor]:
    """By name of the model's parameter."""
    found = {key.removeprefix("la_maml/").removesuffix(".value"): value for key, value in parameters.items() if key.startswith("la_maml/")}
    return {key.replace("%2E", "."): value for key, value in found.items()}


def watching(check: Any) -> Plugin:
    """Calls ``check(gradients, step)``."""

    def look(gradients: Any, step: Any) -> Any:
        check(gradients, step)
        return gradients

    return probe("watch", transform_gradients=look)


def closed_form(step: Any, chunks: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """g_θ = mean_k ∇M_k and g_α = -mean_k ∇M_k ⊙ Σ_{j<k} g_j 1[α > 0], in plain torch, without a graph from step to step."""
    batch, model = step.batch, step.run.model
    theta = {name: p.detach().clone() for name, p in model.named_parameters()}
    alpha = {name: value.detach() for name, value in rates_of(step.parameters).items()}
    incoming = batch.rows("train")

    def gradient(at: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        leaves = {name: value.clone().requires_grad_() for name, value in at.items()}
        loss = nn.functional.cross_entropy(functional_call(model, leaves, (x, "blobs")), y)
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    fast, passed = theta, {name: torch.zeros_like(value) for name, value in theta.items()}
    sum_theta, sum_alpha = ({name: torch.zeros_like(value) for name, value in theta.items()} for _ in range(2))
    for rows in torch.arange(incoming.start, incoming.stop).split((incoming.stop - incoming.start) // chunks):
        inner = gradient(fast, batch.x[rows], batch.targets["blobs"][rows])
        fast = {name: value - alpha[name].clamp(min=0) * inner[name] for name, value in fast.items()}
        outer = gradient(fast, batch.x, batch.targets["blobs"])
        for name in theta:
            passed[name] += inner[name] * (alpha[name] > 0)
            sum_theta[name] += outer[name] / chunks
            sum_alpha[name] -= outer[name] * passed[name] / chunks
    return sum_theta, sum_alpha


def test_first_order_gradients_have_the_closed_form() -> None:
    sizes: list[tuple[int, int]] = []

    def check(gradients: Any, step: Any) -> None:
        g_theta, g_alpha = closed_form(step, 4)
        applied = rates_of(gradients)
        for name in g_theta:
            torch.testing.assert_close(gradients[name], g_theta[name], rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(applied[name], g_alpha[name], rtol=1e-9, atol=1e-12)
            assert float(applied[name].abs().max()) > 1e-4
        rows = step.batch.rows("memory")
        sizes.append((len(step.batch), rows.stop - rows.start))

    run(LaMAML(rate=0.5, rate_learning=0.3, chunks=4), Replay(capacity=20), watching(check))
    assert sizes == [(8, 0)] * 3 + [(16, 8)] * 3, "the memory's rows are in the meta-objective, not in the look-ahead"


@pytest.mark.parametrize("rate", [0.5, -0.5])
def test_the_asynchronous_update_uses_the_rates_that_have_just_learned(rate: float) -> None:
    """α ← α - η g_α, then θ ← θ - max(0, α) g_θ. Rates below 0 stop both the look-ahead and the update."""
    expected: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    starts: list[dict[str, Tensor]] = []

    def before(run: Any) -> None:
        with torch.no_grad():
            for value in rates_of(run.parameters()).values():
                value.fill_(rate)

    def check(gradients: Any, step: Any) -> None:
        theta = {name: p.detach().clone() for name, p in step.run.model.named_parameters()}
        alpha = {name: value.detach() - 0.3 * rates_of(gradients)[name] for name, value in rates_of(step.parameters).items()}
        expected.append(({name: p - alpha[name].clamp(min=0) * gradients[name] for name, p in theta.items()}, alpha))
        starts.append(theta)

    def after(step: Any) -> None:
        theta, alpha = expected[-1]
        for name, p in step.run.model.named_parameters():
            torch.testing.assert_close(p.detach(), theta[name])
            torch.testing.assert_close(rates_of(step.parameters)[name].detach(), alpha[name])
        assert same(theta, starts[-1]) == (rate < 0)

    watch = probe("after", after_step=after, before_experience=lambda run: before(run) if run.clock.experience == 0 else None)
    run(LaMAML(rate=0.5, rate_learning=0.3, chunks=2), watching(check), watch)
    assert len(expected) == 6


def test_synchronous_leaves_the_model_to_its_optimizer() -> None:
    """Sync: the optimiser's own step with g_θ, and the rates learn beside it."""

    def check(gradients: Any, step: Any) -> None:
        expected.append({name: p.detach() - 0.2 * gradients[name] for name, p in step.run.model.named_parameters()})
        rates.append(float(rates_of(step.parameters)["encoder.0.weight"].detach().std()))

    def after(step: Any) -> None:
        for name, p in step.run.model.named_parameters():
            torch.testing.assert_close(p.detach(), expected[-1][name])

    expected: list[dict[str, Tensor]] = []
    rates: list[float] = []
    plugin = LaMAML(rate=0.5, asynchronous=False, chunks=2)
    run(plugin, watching(check), probe("after", after_step=after), optimizer=sgd(lr=0.2, momentum=0.0, weight_decay=0.0))
    assert rates[0] == 0
    assert rates[1] > 0


def total_at(step: Any, parameters: dict[str, Tensor]) -> Tensor:
    view = step.at(parameters)
    found = step.run.hooks.around_objective(evaluate, view)
    return weigh(found, view) + sum(found.terms.values())


@pytest.mark.parametrize("order", [1, 2])
def test_second_order_gradients_match_finite_differences(order: Any) -> None:
    errors: list[float] = []

    def check(gradients: Any, step: Any) -> None:
        if step.run.clock.experience == 0:
            return
        start = {name: p.detach() for name, p in step.parameters.items()}
        draw = torch.Generator().manual_seed(0)
        for name, applied in gradients.items():
            direction = torch.randn(applied.shape, generator=draw, dtype=torch.float64)
            ends = []
            for distance in (1e-3, -1e-3, 2e-3, -2e-3):
                moved = {**start, name: start[name] + distance * direction}
                ends.append(float(total_at(step, {n: p.detach().requires_grad_() for n, p in moved.items()}).detach()))
            difference = (8 * (ends[0] - ends[1]) - (ends[2] - ends[3])) / 12e-3
            errors.append(abs(float((applied * direction).sum()) - difference) / abs(difference))

    run(LaMAML(rate=0.4, chunks=2, order=order), EWC(strength=5.0), LwF(), watching(check), batch_size=12)
    assert len(errors) == 2 * 8
    assert (max(errors) < 1e-6) == (order == 2)


def test_a_penalty_changes_the_look_ahead_and_the_update() -> None:
    def moves(strength: float) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
        seen: list[dict[str, Tensor]] = []
        updates: list[dict[str, Tensor]] = []

        def look(objective: Any, step: Any) -> Any:
            if step.run.clock.experience == 1 and len(step.batch) == 8:
                seen.append({name: p.detach().clone() for name, p in step.parameters.items()})
            return objective(step)

        def check(gradients: Any, step: Any) -> None:
            if step.run.clock.experience == 1:
                updates.append({name: gradient.clone() for name, gradient in gradients.items()})

        plugins = [LaMAML(rate=0.3, chunks=2), EWC(strength=strength), probe("look", around_objective=look), watching(check)]
        run(*plugins)
        return seen, updates

    (seen, updates), (bare_seen, bare_updates) = moves(50.0), moves(0.0)
    assert len(seen) == len(bare_seen) == 3 * 2
    assert same(seen[0], bare_seen[0]), "the penalty is flat at its anchor, where the look-ahead starts"
    weight = "encoder.0.weight"
    assert float((seen[1][weight] - bare_seen[1][weight]).abs().max()) > 1e-3
    assert float((updates[0][weight] - bare_updates[0][weight]).abs().max()) > 1e-3
    assert float((rates_of(updates[0])[weight] - rates_of(bare_updates[0])[weight]).abs().max()) > 1e-3


@pytest.mark.parametrize("method", ["ewc", "lwf", "agem", "replay"])
@pytest.mark.parametrize("asynchronous", [True, False])
def test_methods_change_the_update(method: str, asynchronous: bool) -> None:
    """Each at the first step of the second experience at which it can, from the same weights. Avalanche ignores the first three."""
    others: dict[str, Any] = {"ewc": lambda: EWC(strength=50.0), "lwf": LwF, "agem": lambda: AGEM(rows=24), "replay": Replay}

    def second(*plugins: Plugin) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights and rates after each step of the second experience, flat."""
        steps: list[dict[str, Tensor]] = []

        def after(step: Any) -> None:
            if step.run.clock.experience == 1:
                steps.append({name: p.detach().clone() for name, p in step.parameters.items()})

        plugin = LaMAML(rate=0.3, chunks=2, asynchronous=asynchronous)
        run(plugin, *plugins, probe("after", after_step=after), optimizer=ONE if asynchronous else sgd(lr=0.3, momentum=0.0))
        return steps[0], steps[-1]

    weight = "encoder.0.weight"
    (first, last), (bare_first, bare_last) = second(others[method]()), second()
    if method == "agem":  # projects once gradients disagree
        assert float((last[weight] - bare_last[weight]).abs().max()) > 1e-3
    else:
        assert float((first[weight] - bare_first[weight]).abs().max()) > 1e-3, "θ"
        assert float((rates_of(first)[weight] - rates_of(bare_first)[weight]).abs().max()) > 1e-4, "α"


def test_agem_projects_the_meta_gradient() -> None:
    """What is handed to the update has no negative product with the plain gradient on the memory, and sometimes it had one."""
    found: list[tuple[float, float]] = []

    def product(gradients: Any, step: Any) -> float:
        drawn = step.draw("main", 24, purpose="reference")
        if drawn is None:
            return 0.0
        reference = step.at(batch=drawn).gradient()
        names = [name for name, _ in step.run.model.named_parameters() if name in gradients and name in reference]
        return sum(float((gradients[name] * reference[name]).sum()) for name in names)

    def after(update: Any, gradients: Any, step: Any) -> None:
        meant = step.run.optimization.gradients()  # before any projection
        found.append((product(meant, step), product(gradients, step)))
        assert same(rates_of(gradients), rates_of(meant)), "the rates learn from the meta-gradient as it is"
        update(gradients)

    run(probe("see", around_update=after), LaMAML(rate=0.5, chunks=2), AGEM(rows=24))
    assert min(meant for meant, _ in found) < -1e-3
    assert min(given for _, given in found) > -1e-12


@pytest.mark.parametrize("rate", [None, 0.3])
def test_without_chunks_it_is_experience_replay(rate: float | None) -> None:
    """K = 0: bit for bit at the optimiser's rate; asynchronously at α times it."""

    def weights(optimizer: Any, *plugins: Plugin) -> dict[str, Tensor]:
        replay = Replay(capacity=20, fill="step", batch_size=5)
        stream = double_stream()
        return final(Engine(smooth(stream.tasks), optimizer, [*plugins, replay, EWC(strength=3.0)], batch_size=8), stream)[0]

    slow = sgd(lr=0.3, momentum=0.0, weight_decay=0.0)
    if rate is None:
        for optimizer in (slow, sgd(), adam):
            assert same(weights(optimizer, LaMAML(chunks=0, asynchronous=False)), weights(optimizer))
    else:
        found = weights(ONE, LaMAML(chunks=0, rate=rate))
        for name, value in weights(slow).items():
            torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("order", [1, 2])
def test_synchronous_without_learning_of_rates_is_c_maml(order: Any) -> None:
    """One look-ahead on the incoming rows, asked on these and the memory's: MAML with these roles."""

    def weights(plugin: Plugin) -> dict[str, Tensor]:
        plugins = [plugin, Replay(capacity=20, fill="step", batch_size=5), EWC(strength=3.0), LwF()]
        stream = double_stream()
        return final(Engine(smooth(stream.tasks), sgd(lr=0.2), plugins, batch_size=8), stream)[0]

    found = weights(LaMAML(chunks=1, rate=0.4, rate_learning=0, order=order, asynchronous=False))
    expected = weights(MAML(steps=1, rate=0.4, order=order, support="train", query="*"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
    other = weights(LaMAML(chunks=1, rate=0.4, rate_learning=0.3, order=order, asynchronous=False))
    assert not torch.allclose(other["encoder.0.weight"], expected["encoder.0.weight"], rtol=1e-4)


def test_grown_parameters_keep_their_rates_and_get_new_ones() -> None:
    stream, held = growing_stream(), []

    def before(experience: Any, run: Any) -> None:
        rates = rates_of(run.parameters())
        assert {name: value.shape for name, value in rates.items()} == {name: p.shape for name, p in run.model.named_parameters()}
        if held:
            name, old = "heads.by_task.t.weight", held[-1]["heads.by_task.t.weight"]
            assert torch.equal(rates[name][: len(old)], old)
            assert bool((rates[name][len(old) :] == 0.1).all()), "what is new starts at the first rate"
            assert float((old - 0.1).abs().max()) > 1e-4

    def after(experience: Any, run: Any) -> None:
        held.append({name: value.detach().clone() for name, value in rates_of(run.parameters()).items()})

    watch = probe("watch", before_experience=before, after_experience=after)
    Engine(models.mlp(stream, (8,)), ONE, [LaMAML(rate_learning=0.5), watch], batch_size=10).run(stream)
    assert [len(rates["heads.by_task.t.weight"]) for rates in held] == [2, 4, 6, 6]
    assert "heads.by_task.other.weight" in held[-1]
    assert "heads.by_task.other.weight" not in held[-2]


def test_names_with_dots_and_the_like_do_not_meet() -> None:
    """Avalanche takes a_b and a.b for one."""
    keys = {rate_key(name) for name in ("a.b", "a_b", "a%2Eb", "a%b", "a%25b")}
    assert len(keys) == 5
    assert not any("." in key for key in keys)


def test_the_look_ahead_by_hand() -> None:
    theta = {"w": torch.tensor([1.0, 1.0]), "still": torch.ones(1)}
    alpha = {"w": torch.tensor([0.5, -1.0], requires_grad=True)}
    moved = looked_ahead(theta, alpha, {"w": torch.tensor([2.0, 2.0])})
    assert moved["w"].tolist() == [0.0, 1.0]
    assert moved["still"] is theta["still"]
    moved["w"].sum().backward()
    assert alpha["w"].grad.tolist() == [-2.0, 0.0], "a rate below 0 learns nothing"


def test_more_chunks_than_rows_make_one_of_each_row() -> None:
    sizes: list[int] = []

    def look(objective: Any, step: Any) -> Any:
        sizes.append(len(step.batch))
        return objective(step)

    run(LaMAML(chunks=100), probe("look", around_objective=look), batch_size=24)
    assert sizes == [1, 24] * 24 * 2


def test_batchnorm_moves_once_a_step() -> None:
    """And no chunk is too small for it."""
    found, _ = final(Engine(net(), ONE, [LaMAML(chunks=9), Replay(capacity=10)], batch_size=10), class_stream())
    assert int(found["encoder.body.1.num_batches_tracked"]) == 6


def test_it_learns_and_remembers() -> None:
    def accuracy(*plugins: Plugin) -> float:
        replay = Replay(capacity=30, fill="step", batch_size=10)
        stream = class_stream()
        result = Engine(models.mlp(stream, (16,)), ONE, [*plugins, replay], batch_size=5, epochs=5).run(stream)
        return float(result.accuracy_matrix[-1].mean())

    assert accuracy(LaMAML(rate=0.2)) > 0.9


@pytest.mark.parametrize("asynchronous", [True, False])
def test_it_resumes_bit_for_bit(asynchronous: bool, tmp_path: Path) -> None:
    """Across growth, where modules with optimisers of their own have joined at every experience."""
    stream = growing_stream()

    def engine(**options: Any) -> Engine:
        plugins = [LaMAML(rate=0.05, chunks=2, asynchronous=asynchronous), Replay(capacity=9), EWC(strength=3), LwF()]
        return Engine(models.mlp(stream, (8,)), sgd(), plugins, batch_size=8, seed=3, checkpoint_every=3, **options)

    def everything(folder: Path) -> tuple[Any, list[Any]]:
        state = read_checkpoint(latest_checkpoint(folder / "checkpoints")[0])
        state.pop("times")
        return state, [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]

    engine().run(stream, output=tmp_path / "straight")
    with pytest.raises(Stop):
        engine(progress=stop_at(7)).run(stream, output=tmp_path / "broken")
    engine().resume(tmp_path / "broken", stream)
    assert same(everything(tmp_path / "broken"), everything(tmp_path / "straight"))


def test_what_cannot_be_right_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="option 'chunks' is -1"):
        LaMAML(chunks=-1)
    with pytest.raises(ConfigurationError, match="option 'rate' is -1"):
        LaMAML(rate=-1)
    with pytest.raises(CompositionError, match="2 plugins bring 'inner-loop'"):
        Engine(net(), ONE, [MAML(), LaMAML()])
    with pytest.raises(ConfigurationError, match=r"which Adam divides out again: take torch.optim.SGD, or asynchronous=False"):
        run(LaMAML(), optimizer=adam)
    run(LaMAML(asynchronous=False, chunks=1), optimizer=adam)
    assert [LaMAML(chunks=count).passes.look_ahead for count in (0, 1, 3)] == [0, 1, 5]
