"""What holds for every architecture that shares in part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from streamlearn import Engine, streams
from streamlearn.errors import CompositionError, ConfigurationError, DataError
from streamlearn.models import Heads, Model
from streamlearn.plugins import DANN, EWC, MGDAUB, SAM, GDumb, LwF, MMoE, PCGrad, Replay, UncertaintyWeighting
from tests.core.support import Stop, final, growing_stream, net, probe, same, separate_task_stream, sgd, stop_at, two_task_stream
from tests.plugins.sharing.architectures import ARCHITECTURES, A, B, C, convolutional, drifted, seeded, smooth, transformed, weights

every = pytest.mark.parametrize("which", ARCHITECTURES)
trained = pytest.mark.parametrize("which", [which for which in ARCHITECTURES if which not in ("layerwise", "messages")])
X = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def plain(seed: int = 0, batchnorm: bool = False) -> Any:
    """Two stages of linear layers, of tasks that come with the stream."""

    def build() -> Model:
        norms = [[nn.BatchNorm1d(4), nn.Dropout(0.3)] if batchnorm else [] for _ in range(2)]
        layers = [nn.Linear(6, 4), *norms[0], nn.ReLU(), nn.Linear(4, 4), *norms[1], nn.ReLU()]
        return Model(nn.Sequential(*layers), Heads(4))

    return seeded(build, seed)


@every
def test_combiners_get_what_serves_several_tasks_and_nothing_else(which: str) -> None:
    """A parameter is shared if and only if the outputs of both tasks depend on it."""
    model = drifted(transformed(ARCHITECTURES[which](), smooth()))
    named = dict(model.named_parameters())
    reached = {}
    for task in ("a", "b"):
        found = torch.autograd.grad(model(X, task).square().sum(), list(named.values()), allow_unused=True)
        reached[task] = {name for name, g in zip(named, found, strict=True) if g is not None and bool(g.any())}
    assert model.shared_names() == reached["a"] & reached["b"]
    unused = {name for name in named if name.startswith("heads.first.")}  # of PAD-Net: their losses are records of their own
    assert set(named) - unused == reached["a"] | reached["b"]


@every
def test_outputs_depend_on_names_and_not_on_the_order_of_tasks(which: str) -> None:
    one = drifted(transformed(ARCHITECTURES[which](), smooth((A, B, C))))
    other = transformed(ARCHITECTURES[which](), smooth((C, A, B)))
    assert set(one.state_dict()) == set(other.state_dict())
    other.load_state_dict(one.state_dict())
    for task in ("a", "b", "c"):
        torch.testing.assert_close(one(X, task), other(X, task), rtol=1e-12, atol=1e-12)


@every
def test_a_task_that_comes_later_changes_no_other_and_is_drawn_by_its_name(which: str) -> None:
    model = drifted(transformed(ARCHITECTURES[which](), smooth()))
    before = {task: model(X, task).detach() for task in ("a", "b")}
    assert seeded(lambda: model.grow([C]))
    assert model(X, "c").shape == (5, 2)
    if which != "ple":  # there its experts enter the shared gates of all levels but the last
        for task, value in before.items():
            torch.testing.assert_close(model(X, task), value, rtol=1e-12, atol=1e-12)
    again = transformed(ARCHITECTURES[which](), smooth((C, B, A)))
    seed_by_name = {name for name in weights(model) if ".c." in name and name.startswith(("heads.towers", "heads.experts"))}
    if which in ("cross_stitch", "sluice", "cgc", "ple"):
        assert seed_by_name
    if which in ("cgc", "ple"):
        assert all(torch.equal(weights(again)[name], weights(model)[name]) for name in seed_by_name)
    with pytest.raises(DataError, match="no head for task 'd'"):
        model(X, "d")


@every
def test_the_structure_is_enough_to_build_it_again(which: str) -> None:
    model = drifted(transformed(ARCHITECTURES[which](), smooth()))
    model.grow([C, B])
    fresh = transformed(ARCHITECTURES[which](), smooth())
    fresh.restore_structure(model.structure())
    fresh.load_state_dict(model.state_dict())
    for task in ("a", "b", "c"):
        assert torch.equal(fresh(X, task), model(X, task))


@every
def test_rows_can_be_asked_for_apart(which: str) -> None:
    model = drifted(transformed(ARCHITECTURES[which](), smooth()))
    features = model.encode(X)
    for task in ("a", "b"):
        torch.testing.assert_close(model.decode(features[2:4], task), model(X, task)[2:4], rtol=1e-12, atol=1e-12)


@trained
def test_a_convolutional_encoder_with_batch_normalisation(which: str) -> None:
    """Every weight learns, importance is there, and one row more or less does not matter."""
    plugin = ARCHITECTURES[which]() if which != "sluice" else ARCHITECTURES[which].__call__().__class__(skips=False)
    source = torch.randn(33, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    y = torch.arange(33) % 3
    stream = streams.multitask((source, {"a": y, "b": (y > 0).long()}), test=(source[:9], {"a": y[:9], "b": (y[:9] > 0).long()}))
    start: dict[str, torch.Tensor] = {}
    look = probe("look", before_run=lambda run: start.update({n: p.detach().clone() for n, p in run.model.named_parameters()}))
    model = convolutional(stream.tasks, torch.float32, norm=True)
    ended, _ = final(Engine(model, sgd(), [plugin, EWC(), look], batch_size=16, epochs=4), stream)
    assert all(bool(value.isfinite().all()) for value in ended.values())
    assert {name for name in start if torch.equal(ended[name], start[name])} <= {n for n in start if ".bias" in n}


@every
def test_a_combiner_that_adds_equals_no_combiner(which: str) -> None:
    stream, sizes = two_task_stream(), []

    def add(rows: Any, step: Any) -> dict[str, float]:
        model = step.run.model
        sizes.append((rows.matrix.shape[1], sum(p.numel() for n, p in model.named_parameters() if n in model.shared_names())))
        return dict.fromkeys(rows.names, 1.0)

    summing = probe("summing", provide_gradient_combination=add)
    one, _ = final(Engine(plain(), sgd(), [ARCHITECTURES[which](), summing], batch_size=12), stream)
    other, _ = final(Engine(plain(), sgd(), [ARCHITECTURES[which]()], batch_size=12), stream)
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-6)
    assert all(columns == shared > 0 for columns, shared in sizes)


@trained
def test_a_combiner_at_the_features(which: str) -> None:
    plugin = ARCHITECTURES[which]()
    if which == "task_routing":
        with pytest.raises(CompositionError, match="mgda_ub"):
            Engine(plain(), sgd(), [plugin, MGDAUB()])
        return
    stream = two_task_stream()
    trained, _ = final(Engine(plain(), sgd(weight_decay=0.0), [plugin, MGDAUB()], batch_size=12, epochs=3), stream)
    start, _ = final(Engine(plain(), sgd(lr=0.0), [ARCHITECTURES[which]()], batch_size=12), stream)
    assert all(bool(value.isfinite().all()) for value in trained.values())
    assert any(not torch.equal(trained[name], start[name]) for name in start if "by_task" not in name)


@trained
def test_parts_of_a_batch_give_the_same_update(which: str) -> None:
    stream = two_task_stream()
    whole, _ = final(Engine(plain(), sgd(), [ARCHITECTURES[which]()], batch_size=12), stream)
    parts, _ = final(Engine(plain(), sgd(), [ARCHITECTURES[which]()], batch_size=12, microbatches=3), stream)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)


@every
def test_what_belongs_to_an_absent_task_rests(which: str) -> None:
    """Neither momentum nor weight decay moves it."""
    stream, ends = growing_stream(), []

    def keep(run: Any) -> None:
        shared = run.model.shared_names()
        ends.append({n: p.detach().clone() for n, p in run.model.named_parameters() if n not in shared})

    Engine(plain(), sgd(), [ARCHITECTURES[which](), probe("keep", after_experience=keep)], batch_size=10, epochs=2).run(stream)
    own = [name for name in ends[2] if "t" in name.split(".")[2:3] or name.startswith("heads.first.by_task.t.")]
    assert own
    assert not {name for name in own if not torch.equal(ends[2][name], ends[3][name])}
    assert any(not torch.equal(ends[2][name][: len(value)], value) for name, value in ends[1].items())


@trained
def test_beside_other_methods_and_a_task_without_rows(which: str) -> None:
    """Rows of memory, a teacher, a penalty, a weighting and a combiner; batches without one of the tasks."""
    seen: list[set[str]] = []
    look = probe("look", after_step=lambda step: seen.append(set(step.losses)))
    plugins = [ARCHITECTURES[which](), EWC(strength=2.0), LwF(), Replay(capacity=9), UncertaintyWeighting(), PCGrad(), look]
    for stream in (separate_task_stream(2), growing_stream()):
        ended, _ = final(Engine(plain(batchnorm=True), sgd(), plugins, batch_size=5, epochs=2), stream)
        assert all(bool(value.isfinite().all()) for value in ended.values())
    assert {"a"} in seen or {"b"} in seen


@trained
def test_resumed_equals_uninterrupted(which: str, tmp_path: Path) -> None:
    """With growth, dropout, a teacher, importance and a memory, stopped in the middle of the experience with the late task."""
    stream = growing_stream()

    def engine(**options: Any) -> Engine:
        plugins = [ARCHITECTURES[which](), EWC(strength=3.0), LwF(), Replay(capacity=9)]
        return Engine(plain(batchnorm=True), sgd(), plugins, batch_size=10, seed=3, evaluate="end", checkpoint_every=7, **options)

    straight, events = final(engine(), stream)
    assert sum(event["updates"] for event in events if event["event"] == "experience") == 8
    with pytest.raises(Stop):
        engine(progress=stop_at(7)).run(stream, output=tmp_path)
    resumed = engine().resume(tmp_path, stream)
    assert same(dict(resumed.model.state_dict()), straight)
    assert resumed.events == events


@trained
def test_from_scratch_nothing_is_left_of_what_was_learnt(which: str) -> None:
    """A reset draws also the parts of tasks that came later."""
    start: dict[str, torch.Tensor] = {}
    kept: list[dict[str, torch.Tensor]] = []

    def reset(run: Any) -> None:
        if run.clock.experience == 3:
            kept.append({n: p.detach().clone() for n, p in run.model.named_parameters()})
            run.reset()
            kept.append({n: p.detach().clone() for n, p in run.model.named_parameters()})

    begin = probe("begin", before_run=lambda run: start.update({n: p.detach().clone() for n, p in run.model.named_parameters()}))
    plugins = [ARCHITECTURES[which](), begin, probe("reset", after_experience=reset)]
    Engine(plain(), sgd(), plugins, batch_size=8, epochs=3).run(growing_stream())
    learnt, fresh = kept
    assert all(torch.equal(fresh[name][: len(value)], value) for name, value in start.items())
    late = learnt.keys() - start.keys()
    assert late
    assert not {name for name in late if torch.equal(learnt[name], fresh[name]) and bool(learnt[name].any())}
    final(Engine(plain(), sgd(), [ARCHITECTURES[which](), GDumb(capacity=9)], batch_size=8, epochs=2), growing_stream())


@every
def test_look_ahead_reads_the_weights_of_the_view(which: str) -> None:
    """Losses and terms at other parameters are those of a model that has them."""
    plugin, checked = ARCHITECTURES[which](), []

    def compare(step: Any) -> None:
        model = step.run.model
        moved = {name: p.detach() + 0.1 for name, p in step.parameters.items()}
        there = step.at(moved)
        found = {**there.losses, **there.terms}
        old = {name: p.detach().clone() for name, p in model.named_parameters()}
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(moved[name])
        here = step.at()
        for name, value in {**here.losses, **here.terms}.items():
            torch.testing.assert_close(found[name], value)
            checked.append(name)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(old[name])

    look = probe("look", before_step=compare)
    Engine(plain(), sgd(), [plugin, SAM(), look], batch_size=12).run(two_task_stream())
    assert {"a", "b"} <= set(checked)


@trained
def test_regression_beside_classification(which: str) -> None:
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(2))
    values = x[:, :2] * 2
    values[::5] = float("nan")  # not labelled
    targets = {"class": (x[:, 2] > 0).long(), "value": values}
    stream = streams.multitask((x, targets))
    ended, _ = final(Engine(plain(), sgd(), [ARCHITECTURES[which]()], batch_size=6, epochs=3), stream)
    assert all(bool(value.isfinite().all()) for value in ended.values())


@trained
def test_what_cannot_be_split_is_refused(which: str) -> None:
    plugin = ARCHITECTURES[which]
    stream = two_task_stream()
    with pytest.raises(ConfigurationError, match=r"a plain module: take one of streamlearn.models, or list MultiHead\(\) before it"):
        Engine(net(), sgd(), [plugin()]).run(stream)
    with pytest.raises(ConfigurationError, match=r"gives \(1, 5\) and not \(1, 4\)"):
        Engine(Model(nn.Linear(6, 5), Heads(4, stream.tasks)), sgd(), [plugin()]).run(stream)
    with pytest.raises(CompositionError, match="sharing"):
        Engine(plain(), sgd(), [plugin(), MMoE()])


def test_taps_lead_to_the_parts() -> None:
    """An alignment on the shared part alone; the path is in the docstrings."""
    stream = streams.multitask("digits", target_domain=True)[:1]
    for which, tap in (("cgc", "encoder.0"), ("mtan", "encoder.1"), ("pad_net", "encoder"), ("cross_stitch", "heads.towers.left.1")):
        model = seeded(lambda: Model(nn.Sequential(nn.Flatten(), nn.Linear(100, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()), Heads(8)))
        ended, _ = final(Engine(model, sgd(lr=0.01), [ARCHITECTURES[which](), DANN(tap=tap)], batch_size=256), stream)
        assert all(bool(value.isfinite().all()) for value in ended.values())
