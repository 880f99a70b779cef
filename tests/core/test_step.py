from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from streamlearn import Engine, models
from streamlearn.core.phases import Phase
from streamlearn.core.randomness import seed_forward, subseed
from streamlearn.core.sampling import shuffled
from streamlearn.core.step import Objective, weigh
from streamlearn.errors import ConfigurationError, TrainingError
from streamlearn.plugins import EWC, LwF, Replay
from tests.core.support import class_stream, final, net, probe, same, sgd, two_task_stream


def stepped(
    look: Callable[[Any], Any], *others: Any, model: Any = None, stream: Any = None, hook: str = "collect_terms", **options: Any
) -> list[Any]:
    """What ``look(step)`` returned at every step of a short run."""
    kept: list[Any] = []
    seen = probe("look", **{hook: lambda step: kept.append(look(step))})
    options = {"batch_size": 10} | options
    Engine(model or net(), sgd(), [seen, *others], **options).run(stream or class_stream()[:1])
    return kept


def by_hand(step: Any, parameters: dict[str, Tensor] | None = None, x: Tensor | None = None, buffers: Any = None) -> Tensor:
    """The model at ``parameters`` through functional_call, under the step's own random stream, on copies of the buffers."""
    model = step.run.model
    seed_forward(subseed(step.run.seed, "forward"), step.update)
    state = {n: b.clone() for n, b in (buffers or dict(model.named_buffers())).items()} | (parameters or dict(model.named_parameters()))
    return functional_call(model, state, (step.batch.x if x is None else x, "blobs"))


def test_a_view_equals_functional_call_by_hand_with_the_same_dropout_masks() -> None:
    def look(step: Any) -> None:
        before = {n: b.clone() for n, b in step.run.model.named_buffers()}
        fast = {n: 1.1 * p for n, p in step.parameters.items() if "weight" in n}
        view = step.at(fast)
        found = view.outputs["blobs"]
        full = {**dict(step.run.model.named_parameters()), **fast}
        assert torch.equal(found, by_hand(step, full, buffers=before))
        assert not torch.equal(found, step.outputs["blobs"])
        assert torch.equal(step.at().outputs["blobs"], step.outputs["blobs"]), "the masks are those of the root"
        assert torch.equal(step.at(dict(step.parameters)).outputs["blobs"], step.outputs["blobs"])

    assert len(stepped(look)) == 2


def test_parameters_left_out_keep_those_of_the_view() -> None:
    def look(step: Any) -> None:
        once = step.at({"encoder.out.bias": step.parameters["encoder.out.bias"] + 1})
        twice = once.at({"encoder.out.weight": 0 * step.parameters["encoder.out.weight"]})
        expected = (step.parameters["encoder.out.bias"] + 1).expand(10, 6)
        assert torch.equal(twice.outputs["blobs"], expected)
        assert twice.root is step

    stepped(look)


def tracked(*plugins: Any, batch_size: int = 10) -> tuple[int, dict[str, Tensor]]:
    found, _ = final(Engine(net(), sgd(lr=0.0, weight_decay=0.0), list(plugins), batch_size=batch_size), class_stream()[:1])
    return int(found["encoder.body.1.num_batches_tracked"]), found


VIEWS: dict[str, Callable[[Any, Any], Any]] = {
    "root only": lambda objective, step: objective(step),
    "view only": lambda objective, step: objective(step.at()),
    "view at other parameters only": lambda objective, step: objective(step.at({n: p * 1.0 for n, p in step.parameters.items()})),
    "root, then views": lambda objective, step: [objective(step), objective(step.at()), objective(step.at(dict(step.parameters)))][0],
    "views, then root": lambda objective, step: [objective(step.at(dict(step.parameters))), objective(step.at()), objective(step)][2],
    "views of views": lambda objective, step: Objective.merge([objective(step.at().at()), objective(step.at().at())]),
    "root opened, view read, root read": lambda objective, step: [step.outputs.serves("blobs"), objective(step.at()), objective(step)][2],
    "two views opened before either is read": lambda objective, step: _opened(objective, step),  # noqa: PLW0108 - probe() reads the names of its arguments
}


def _opened(objective: Any, step: Any) -> Any:
    one, two = step.at(), step.at(dict(step.parameters))
    assert one.outputs.serves("blobs")
    assert two.outputs.serves("blobs")
    objective(two)
    return objective(one)


@pytest.mark.parametrize("name", VIEWS)
def test_buffers_are_committed_exactly_once_a_step(name: str) -> None:
    count, usual = tracked()
    assert count == 2
    count, found = tracked(probe("views", around_objective=VIEWS[name]))
    assert count == 2
    assert same(found, usual), "at equal parameters every view moves the statistics alike"


def test_a_batch_of_other_rows_leaves_buffers_alone() -> None:
    def other(objective: Any, step: Any) -> Any:
        strange = step.batch.replace(x=step.batch.x + 100)
        objective(step.at(batch=strange))
        return objective(step)

    assert same(tracked(probe("other", around_objective=other))[1], tracked()[1])


def test_views_at_the_rows_of_a_role_commit_once_and_see_only_their_rows() -> None:
    def split(batch: Any) -> Any:
        one, two = batch.segments[0]._replace(stop=4, role="support"), batch.segments[0]._replace(start=4, role="query")
        return batch.replace(segments=(one, two))

    def objective_of(objective: Any, step: Any) -> Any:
        support, query = step.at(rows="support"), step.at(rows="query")
        assert (len(support.batch), len(query.batch)) == (4, 6)
        assert torch.equal(torch.cat([support.batch.x, query.batch.x]), step.batch.x)
        return Objective.merge([objective(support), objective(query)])

    count, found = tracked(probe("roles", transform_batch=split, around_objective=objective_of))
    assert count == 2
    assert not same(found, tracked()[1])


def test_gradient_is_that_of_autograd_and_leaves_grad_alone() -> None:
    def look(step: Any) -> None:
        for p in step.run.model.parameters():
            p.grad = None
        found = step.gradient()
        assert all(p.grad is None for p in step.run.model.parameters())
        loss = nn.functional.cross_entropy(by_hand(step), step.batch.targets["blobs"])
        expected = torch.autograd.grad(loss, list(step.run.model.parameters()))
        for (name, _), value in zip(step.run.model.named_parameters(), expected, strict=True):
            torch.testing.assert_close(found[name], value)

    stepped(look, hook="before_step")


def test_the_root_can_still_be_minimised_after_its_gradient_was_read() -> None:
    def both(objective: Any, step: Any) -> Any:
        assert step.gradient()
        return objective(step)

    usual, _ = final(Engine(net(), sgd(), batch_size=10), class_stream())
    found, _ = final(Engine(net(), sgd(), [probe("both", around_objective=both)], batch_size=10), class_stream())
    assert same(found, usual)


def test_gradient_with_terms_adds_theirs() -> None:
    def look(step: Any) -> None:
        alone, together = step.gradient(), step.gradient(terms=True)
        name = "encoder.out.bias"
        torch.testing.assert_close(together[name] - alone[name], torch.full((6,), 3.0))

    stepped(look, probe("pull", collect_terms=lambda step: 3 * step.parameters["encoder.out.bias"].sum()), hook="before_step")


RHO = 0.05


def test_sam_equals_a_hand_written_sam() -> None:
    def sam(objective: Any, step: Any) -> Any:
        gradient = step.gradient()
        norm = torch.stack([g.norm() for g in gradient.values()]).norm()
        return objective(step.at({n: step.parameters[n] + RHO * g / norm for n, g in gradient.items()}))

    stream = class_stream()
    found, _ = final(Engine(net(), sgd(), [probe("sam", around_objective=sam)], batch_size=10, seed=4), stream)

    model, update = net(), 0
    optimizer = sgd()(model.parameters())
    for i in range(3):
        data = stream[i].data["train"]
        for positions in shuffled(len(data), 10, False, 0, 4, i, 0, 0).split(10):
            batch = data.batch(positions)
            model.train()
            seed_forward(subseed(4, "forward"), update)
            nn.functional.cross_entropy(model(batch.x), batch.targets["blobs"]).backward()
            buffers = {n: b.clone() for n, b in model.named_buffers()}
            gradients = [p.grad.clone() for p in model.parameters()]
            norm = torch.stack([g.norm() for g in gradients]).norm()
            weights = [p.detach().clone() for p in model.parameters()]
            with torch.no_grad():
                for p, g in zip(model.parameters(), gradients, strict=True):
                    p.add_(RHO * g / norm)
            optimizer.zero_grad()
            seed_forward(subseed(4, "forward"), update)
            nn.functional.cross_entropy(model(batch.x), batch.targets["blobs"]).backward()
            with torch.no_grad():
                for p, w in zip(model.parameters(), weights, strict=True):
                    p.copy_(w)
                for n, b in model.named_buffers():
                    b.copy_(buffers[n])  # the statistics move once, at the weights themselves
            optimizer.step()
            optimizer.zero_grad()
            update += 1
    assert same(found, {f"encoder.{n}": v for n, v in model.state_dict().items()})


def test_second_order_maml_through_ewc_and_lwf_matches_finite_differences() -> None:
    """In float64: the outer gradient of [query loss + EWC + LwF] at θ - α ∇(support loss), against central differences."""
    stream = class_stream_double()
    rate, checked = 0.3, []

    def split(batch: Any) -> Any:
        half = len(batch) // 2
        segment = batch.segments[0]
        return batch.replace(segments=(segment._replace(stop=half, role="support"), segment._replace(start=half)))  # the rest is "train"

    def maml(objective: Any, step: Any) -> Any:
        support = step.at(rows="support")
        loss = weigh(Objective(support.losses), support)
        names = [n for n, p in step.parameters.items() if p.requires_grad]
        inner = torch.autograd.grad(loss, [step.parameters[n] for n in names], create_graph=True)
        fast = {n: step.parameters[n] - rate * g for n, g in zip(names, inner, strict=True)}
        return objective(step.at(fast, rows="train"))

    def total_at(step: Any, parameters: dict[str, Tensor]) -> Tensor:
        hooks = step.run.hooks

        def objective(view: Any) -> Objective:
            return Objective(view.losses, view.terms, view.rows.shares)

        found = hooks.around_objective(objective, step.at(parameters))
        return (weigh(found, step) + sum(found.terms.values())).detach()

    def check(gradients: Any, step: Any) -> Any:
        if step.run.clock.experience != 1:
            return gradients
        assert {term.split("/")[0] for term in step.objective.terms} == {"ewc", "lwf"}
        assert all(float(term.detach()) > 0 for term in step.objective.terms.values())
        for name, place in (("encoder.0.weight", (2, 1)), ("encoder.0.bias", (0,)), ("heads.by_task.blobs.weight", (3, 2))):
            ends = []
            for sign in (1, -1):
                moved = {n: p.detach().clone() for n, p in step.parameters.items()}
                moved[name][place] += sign * 1e-5
                ends.append(float(total_at(step, {n: p.requires_grad_(True) for n, p in moved.items()})))
            difference = (ends[0] - ends[1]) / 2e-5
            assert abs(float(gradients[name][place]) - difference) < 1e-6
            assert abs(difference) > 1e-4
            checked.append(name)
        return gradients

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.Model(nn.Sequential(nn.Linear(6, 5), nn.Tanh()), models.Heads(5, stream.tasks)).double()
    plugins = [EWC(strength=7.0), LwF(), probe("maml", transform_batch=split, around_objective=maml, transform_gradients=check)]
    Engine(model, sgd(lr=0.2, momentum=0.0), plugins, batch_size=10, epochs=2).run(stream)
    assert len(checked) == 3 * 4


def class_stream_double() -> Any:
    from streamlearn.streams import Task
    from streamlearn.streams.data import Data, Target
    from tests.core.support import blobs, stream_of

    source, task = blobs(40, 4, dtype=torch.float64), Task("blobs", size=4)
    y = source.targets["y"]
    pieces = [(Data(source, (y // 2 == i).nonzero().flatten(), (task,), {"blobs": Target("y")}), (task,)) for i in range(2)]
    return stream_of(pieces, (task,))


# ---------------------------------------------------------------------------------------------------- combination


def sum_combiner() -> Any:
    return probe("sum", provide_gradient_combination=lambda rows: dict.fromkeys(rows.names, 1.0))


@pytest.mark.parametrize("terms", [False, True])
def test_a_sum_combiner_equals_plain_backward(terms: bool) -> None:
    stream = two_task_stream(experiences=2)

    def run(*plugins: Any) -> dict[str, Tensor]:
        others = [EWC(strength=3), LwF(), Replay(capacity=10)] if terms else []
        found, _ = final(Engine(models.mlp(stream, (8,)), sgd(), [*others, *plugins], batch_size=6), stream)
        return found

    plain, combined = run(), run(sum_combiner())
    for name in plain:
        torch.testing.assert_close(combined[name], plain[name], rtol=0, atol=1e-6)


def test_a_flat_vector_is_as_good_as_weights_and_the_gramian_is_of_the_weighted_rows() -> None:
    stream = two_task_stream()
    seen: list[Any] = []

    def combine(rows: Any) -> Tensor:
        torch.testing.assert_close(rows.gramian, rows.matrix @ rows.matrix.T)
        seen.append(rows.names)
        return rows.matrix.sum(0)

    vector, _ = final(
        Engine(models.mlp(stream, (8,)), sgd(), [probe("vector", provide_gradient_combination=combine)], batch_size=6), stream
    )
    plain, _ = final(Engine(models.mlp(stream, (8,)), sgd(), batch_size=6), stream)
    for name in plain:
        torch.testing.assert_close(vector[name], plain[name], rtol=0, atol=1e-6)
    assert set(seen) == {("a", "b")}


def test_terms_are_added_after_combination() -> None:
    """A combiner that answers 0 stops every row and no term."""
    zero = probe("zero", provide_gradient_combination=lambda rows: torch.zeros_like(rows.matrix[0]))
    pull = probe("pull", collect_terms=lambda step: step.parameters["encoder.out.bias"].sum())
    model = net()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    Engine(model, sgd(lr=0.1, momentum=0.0, weight_decay=0.0), [zero, pull], batch_size=10).run(class_stream()[:1])
    for name, p in model.named_parameters():
        expected = start[name] - 0.2 if name == "out.bias" else start[name]  # two steps of 0.1 times the gradient 1
        torch.testing.assert_close(p.detach(), expected)


def test_the_weighting_comes_before_combination() -> None:
    """Rows reach the combiner multiplied by ∂s/∂L: with s = Σ L² that is 2 L."""
    factors: list[tuple[float, float]] = []

    def combine(rows: Any, step: Any) -> dict[str, float]:
        for name, row in zip(rows.names, rows.matrix, strict=True):
            shared = [p for n, p in step.run.model.named_parameters() if n.startswith("encoder.")]
            loss = step.at().losses[name]
            plain = torch.cat([g.flatten() for g in torch.autograd.grad(loss, shared, retain_graph=True)])
            torch.testing.assert_close(row, 2 * loss.detach() * plain)
            factors.append((float(loss.detach()), float(row.norm())))
        return dict.fromkeys(rows.names, 1.0)

    stream = two_task_stream()
    squares = probe(
        "squares", provide_weighting=lambda losses: sum(loss**2 for loss in losses.values()), provide_gradient_combination=combine
    )
    Engine(models.mlp(stream, (8,)), sgd(), [squares], batch_size=12).run(stream)
    assert len(factors) == 4


@pytest.mark.parametrize("answer", [lambda rows: {"strange": 1.0}, lambda rows: torch.zeros(3)])
def test_a_combiners_strange_answer_is_refused(answer: Any) -> None:
    with pytest.raises(TrainingError, match="a combiner"):
        Engine(net(), sgd(), [probe("strange", provide_gradient_combination=answer)]).run(class_stream())


def test_a_combiner_without_shared_parameters_or_losses_leaves_the_plain_gradient() -> None:
    stream = class_stream()
    plain, _ = final(Engine(models.mlp(stream, ()), sgd(), batch_size=10), stream)
    combined, _ = final(Engine(models.mlp(stream, ()), sgd(), [sum_combiner()], batch_size=10), stream)
    assert same(plain, combined)


# ---------------------------------------------------------------------------------------------------- gradients and updates


def moved(model: nn.Module, start: dict[str, Tensor]) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}


def test_a_name_left_out_of_the_gradients_is_not_moved_even_by_momentum_and_decay() -> None:
    def drop(gradients: Any, step: Any) -> Any:
        return {n: g for n, g in gradients.items() if n != "encoder.out.bias" or step.update == 0}

    model, at_one = net(), {}

    def keep(step: Any) -> None:
        if step.update == 0:
            at_one.update({n: p.detach().clone() for n, p in model.named_parameters()})

    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    Engine(model, sgd(), [probe("drop", transform_gradients=drop, after_step=keep)], batch_size=10).run(class_stream())
    assert not torch.equal(model.out.bias, start["out.bias"])
    assert torch.equal(model.out.bias, at_one["out.bias"])
    assert "out.weight" in moved(model, at_one)


def test_frozen_parameters_do_not_move_and_nothing_trainable_means_no_forward() -> None:
    model = net()
    model.body[0].weight.requires_grad_(False)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    Engine(model, sgd(), batch_size=10).run(class_stream())
    assert moved(model, start) == {n for n, _ in model.named_parameters()} - {"body.0.weight"}
    model = net()
    for p in model.parameters():
        p.requires_grad_(False)
    heard: list[str] = []
    watching = probe("watch", before_step=lambda: heard.append("step"), collect_terms=lambda: heard.append("term"))
    found, _ = final(Engine(model, sgd(), [watching], batch_size=10, evaluate="never"), class_stream()[:1])
    assert heard == ["step", "step"]
    assert int(found["encoder.body.1.num_batches_tracked"]) == 0


@pytest.mark.parametrize("calls", [0, 2])
def test_an_update_must_be_called_exactly_once(calls: int) -> None:
    def around(update: Any, gradients: Any) -> None:
        for _ in range(calls):
            update(gradients)

    with pytest.raises(TrainingError, match=f"exactly once, it was called {calls} times: bad"):
        Engine(net(), sgd(), [probe("bad", around_update=around)]).run(class_stream())


def test_other_gradients_may_be_passed_and_parameters_written_afterwards() -> None:
    def around(update: Any, gradients: Any, step: Any) -> None:
        update({n: torch.ones_like(g) for n, g in gradients.items() if n == "encoder.out.bias"})
        with torch.no_grad():
            step.run.model.encoder.out.weight.fill_(7.0)

    model = net()
    start = model.out.bias.detach().clone()
    Engine(model, sgd(lr=0.5, momentum=0.0, weight_decay=0.0), [probe("writes", around_update=around)], batch_size=20).run(
        class_stream()[:1]
    )
    torch.testing.assert_close(model.out.bias.detach(), start - 0.5)
    assert bool((model.out.weight == 7.0).all())


# ---------------------------------------------------------------------------------------------------- phases


def phased(
    *phases: Callable[[Any], Phase], model: nn.Module | None = None, others: tuple[Any, ...] = (), **options: Any
) -> tuple[set[str], nn.Module, Any]:
    model = model or net()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    plugin = probe("phases", transform_phases=lambda experience: tuple(make(experience.data["train"]) for make in phases))
    result = Engine(model, sgd(), [plugin, *others], batch_size=10, **options).run(class_stream()[:1])
    return moved(model, start), model, result


def test_a_phase_moves_only_what_it_selects_and_frees_it_afterwards() -> None:
    found, model, result = phased(lambda data: Phase("tail", data, 1, trainable=("*out.*",)))
    assert found == {"out.weight", "out.bias"}
    assert all(p.requires_grad for p in model.parameters())
    assert [(e["phase"], e["updates"]) for e in result.events if e["event"] == "epoch"] == [("tail", 2)]
    assert phased(lambda data: Phase("none", data, 0))[0] == set()
    assert phased(lambda data: Phase("still", data, 1, trainable=()))[0] == set()


def test_several_updates_a_batch_move_their_own_parameters() -> None:
    counts: list[tuple[int, set[str]]] = []
    watch = probe("watch", after_step=lambda step: counts.append((step.update, set(step.run.optimization.trainable_names()))))
    found, _, result = phased(lambda data: Phase("main", data, 1, updates=(("*body.0.*",), ("*out.bias",))), others=(watch,))
    assert found == {"body.0.weight", "body.0.bias", "out.bias"}
    body, bias = {"encoder.body.0.weight", "encoder.body.0.bias"}, {"encoder.out.bias"}
    assert counts == [(0, body), (1, bias), (2, body), (3, bias)]
    assert next(e for e in result.events if e["event"] == "experience")["updates"] == 4


def test_a_step_that_fails_inside_such_an_update_leaves_nothing_frozen() -> None:
    def fail(step: Any) -> None:
        raise ValueError

    model = net()
    with pytest.raises(ValueError):  # noqa: PT011
        phased(lambda data: Phase("main", data, 1, updates=(("*out.*",),)), model=model, others=(probe("bad", before_step=fail),))
    assert all(p.requires_grad for p in model.parameters())


def test_a_phases_own_optimizer_moves_and_the_main_one_keeps_its_state() -> None:
    rates: list[float] = []
    states: list[int] = []

    def own(parameters: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, lr=0.0)
        rates.append(len(optimizer.param_groups[0]["params"]))
        return optimizer

    watch = probe("watch", after_step=lambda step: states.append(len(step.run.optimization.main.state)))
    found, _, _ = phased(lambda data: Phase("own", data, 1, trainable=("*out.*",), optimizer=own), others=(watch,))
    assert found == set(), "its learning rate is 0"
    assert rates == [2]
    assert states == [0, 0]


def test_only_the_named_plugins_act_on_the_steps_of_a_phase() -> None:
    heard: list[str] = []
    others = tuple(_hearing(name, heard) for name in ("one", "two"))
    phased(lambda data: Phase("main", data, 1, only=frozenset({"two"})), lambda data: Phase("rest", data, 1), others=others)
    assert heard == ["two", "two", "one", "two", "one", "two"]
    with pytest.raises(ConfigurationError, match="phase 'main' is only for ghost, which the strategy does not list"):
        phased(lambda data: Phase("main", data, 1, only=frozenset({"ghost"})))


def _hearing(name: str, heard: list[str]) -> Any:
    return probe(name, before_step=lambda: heard.append(name))


def test_evaluations_and_saves_are_due_when_a_batch_with_several_updates_passes_their_number() -> None:
    _, _, result = phased(lambda data: Phase("main", data, 3, updates=(("*",), ("*",))), evaluate_every=3)
    assert sorted({e["update"] for e in result.events if "within" in e}) == [4, 6, 10, 12]
