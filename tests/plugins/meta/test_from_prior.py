from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, Plugin, streams
from streamlearn.core.priors.prior import Prior
from streamlearn.core.priors.selection import losses_of_components
from streamlearn.core.sampling import shuffled
from streamlearn.errors import CheckpointError, ConfigurationError, TrainingError
from streamlearn.models import Heads, Model
from streamlearn.plugins import EWC, HAT, MAML, FromScratch, FrozenBackbone, LwF, Replay
from streamlearn.plugins.meta.from_prior import FromPrior
from streamlearn.streams import Stream, Task
from streamlearn.streams.data import Data, Target
from tests.core.support import (
    adam,
    blobs,
    class_stream,
    final,
    growing_stream,
    probe,
    same,
    separate_task_stream,
    sgd,
    stopped_or_straight,
    stream_of,
)  # fmt: skip

MOMENTUM = sgd(weight_decay=0.0)
BLOBS = (Task("blobs", size=6),)


def made(seed: int, tasks: Any = BLOBS, norm: bool = True) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Model(nn.Sequential(nn.Linear(6, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.Tanh()), Heads(8, tasks))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand(buffer.shape))
    return model


def learnt(seed: int = 7, tasks: Any = BLOBS, **options: Any) -> Prior:
    return Prior.of(made(seed, tasks), **options)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def all_of(prior: Prior) -> dict[str, Tensor]:
    return {**prior.parameters, **prior.buffers}


class Watched:
    """The model as each experience starts, after the plugin, and as it ends; and the optimiser's state as it starts."""

    def __init__(self, *plugins: Plugin, stream: Stream | None = None, model: Any = None, optimizer: Any = MOMENTUM) -> None:
        self.starts: list[dict[str, Tensor]] = []
        self.ends: list[dict[str, Tensor]] = []
        self.moving: list[set[str]] = []

        def start(run: Any) -> None:
            self.starts.append(tensors(run.model))
            self.moving.append(set(run.optimization.state_dict()["main"]["state"]))

        look = probe(before_experience=start, after_experience=lambda run: self.ends.append(tensors(run.model)))
        engine = Engine(model or made(0), optimizer, [*plugins, look], batch_size=8, seed=4)
        self.result = engine.run(stream or class_stream())


# ------------------------------------------------------------------------------------------------ the start


def test_the_run_starts_at_the_prior_as_if_the_model_had_been_given_its_weights(tmp_path: Path) -> None:
    prior = learnt()
    given, events = final(Engine(made(7), MOMENTUM, batch_size=8), class_stream())
    for source in (prior, tmp_path / "my.prior", str(tmp_path / "my.prior")):
        prior.save(tmp_path / "my.prior")
        found = final(Engine(made(0), MOMENTUM, [FromPrior(prior=source)], batch_size=8), class_stream())
        assert same(found[0], given)
        lines = [[e for e in log if e["event"] == "evaluation"] for log in (events, found[1])]
        assert lines[0] == lines[1], "measured before training, too"
    assert not same(final(Engine(made(0), MOMENTUM, batch_size=8), class_stream())[0], given)


def test_heads_that_the_prior_lacks_start_as_they_are() -> None:
    tasks = (Task("a", size=6), Task("b", size=6))
    prior = learnt(7, (Task("b", size=6), Task("gone", size=3)))
    seen = Watched(FromPrior(prior=prior), stream=separate_task_stream(), model=made(0, tasks))
    fresh, start = tensors(made(0, tasks)), seen.starts[0]
    assert all(torch.equal(start[name], fresh[name]) for name in start if "by_task.a" in name)
    assert all(torch.equal(start[name], value) for name, value in all_of(prior).items() if "gone" not in name)


def test_a_head_of_another_size_is_refused_or_left_as_it_is() -> None:
    prior = learnt(7, (Task("blobs", size=4),))
    with pytest.raises(ConfigurationError, match=r"'heads.by_task.blobs.weight' has shape \(6, 8\) in the model and \(4, 8\) in the prior"):
        Watched(FromPrior(prior=prior))
    start = Watched(FromPrior(prior=prior, heads="skip")).starts[0]
    for name, value in start.items():
        assert torch.equal(value, tensors(made(0))[name] if name.startswith("heads.") else all_of(prior)[name])


# ------------------------------------------------------------------------------------------------ the policies


def test_keep_leaves_everything() -> None:
    seen = Watched(FromPrior(prior=learnt()))
    assert same(seen.starts[1:], seen.ends[:-1])
    assert all(len(names) == 6 for names in seen.moving[1:])


def test_reset_goes_back_to_the_prior() -> None:
    prior = learnt()
    seen = Watched(FromPrior(prior=prior, at_experience="reset"))
    assert all(same(start, {name: all_of(prior)[name] for name in start}) for start in seen.starts)
    assert seen.moving == [set()] * 3
    assert not same(seen.ends[0], seen.starts[1])


def test_what_starts_from_scratch_starts_at_the_prior() -> None:
    """Two ways to the same run; `FromScratch` goes back to the initial weights, which are the prior's."""
    one = Watched(FromPrior(prior=learnt(), at_experience="reset"))
    two = Watched(FromPrior(prior=learnt()), FromScratch())
    assert same((one.starts, one.ends), (two.starts, two.ends))
    plain = Watched(FromPrior(at_experience="reset"))  # no prior: the weights that the run starts with
    assert same(plain.ends, Watched(FromScratch()).ends)


@pytest.mark.parametrize("given", [True, False])
def test_the_plastic_part_alone_goes_back(given: bool) -> None:
    plastic = ("heads.*", "*.1.*")
    prior = learnt(plastic=plastic if not given else ("*",))
    seen = Watched(FromPrior(prior=prior, at_experience="reset_plastic", plastic=plastic if given else None))
    moves = {name for name in seen.starts[0] if name.startswith("heads.") or ".1." in name}
    assert len(moves) == 7, "two of the head, two and three buffers of BatchNorm"
    for start, end in zip(seen.starts[1:], seen.ends[:-1], strict=True):
        for name, value in start.items():
            assert torch.equal(value, all_of(prior)[name] if name in moves else end[name])
            assert not torch.equal(end[name], all_of(prior)[name])
    assert seen.moving[1:] == [{"encoder.0.weight", "encoder.0.bias"}] * 2, "momentum of the rest is kept"


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_blending_goes_part_of_the_way_back(share: float) -> None:
    prior = learnt()
    seen = Watched(FromPrior(prior=prior, at_experience="blend", blend=share))
    for start, end in zip(seen.starts[1:], seen.ends[:-1], strict=True):
        for name, value in start.items():
            wanted = (1 - share) * end[name] + share * all_of(prior)[name] if value.is_floating_point() else end[name]
            torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-6)
    assert seen.moving == [set()] * 3


def test_blending_leaves_alone_what_the_prior_lacks() -> None:
    prior = Prior({name: p for name, p in made(7).named_parameters() if name.startswith("encoder.")}, buffers=dict(made(7).named_buffers()))
    seen = Watched(FromPrior(prior=prior, at_experience="blend"))
    assert all(torch.equal(seen.starts[1][name], seen.ends[0][name]) for name in seen.starts[1] if name.startswith("heads."))
    assert seen.moving[1] == {"heads.by_task.blobs.weight", "heads.by_task.blobs.bias"}


@pytest.mark.parametrize("policy", ["reset", "reset_plastic", "blend"])
def test_heads_that_grow(policy: Any) -> None:
    """Two classes at the start, then four, then six, then another task: the start returns, what has come since is drawn anew."""
    tasks = (Task("t", size=2),)
    prior = learnt(7, tasks, plastic=("heads.*",))
    seen = Watched(FromPrior(prior=prior, at_experience=policy), stream=growing_stream(), model=made(0, tasks))
    head = "heads.by_task.t.weight"
    assert [len(start[head]) for start in seen.starts] == [2, 4, 6, 6]
    start, end = seen.starts[3][head], seen.ends[2][head]
    if policy == "blend":
        torch.testing.assert_close(start[:2], (end[:2] + prior.parameters[head]) / 2)
        assert torch.equal(start[2:], end[2:])
    else:
        assert torch.equal(start[:2], prior.parameters[head])
        assert all(not torch.equal(row, old) for row, old in zip(start[2:], end[2:], strict=True))
        assert float(start[2:].abs().max()) <= 8**-0.5, "as torch draws a layer of eight inputs"


# ------------------------------------------------------------------------------------------------ selection


def halves(x_of: Any = lambda x, i: x) -> Stream:
    """The same inputs each time; in experiences 0 and 2 the class is the label, in 1 it is turned round."""
    source = blobs(48, 6)
    task = Task("blobs", size=6)
    pieces = [
        (Data(source, torch.arange(48), (task,), {"blobs": Target("y", torch.arange(6).flip(0) if i == 1 else torch.arange(6))}), (task,))
        for i in range(3)
    ]
    return stream_of(pieces, (task,))


def trained_on(number: int) -> Prior:
    engine = Engine(made(number, norm=False), sgd(lr=0.2), epochs=4, evaluate="never")
    model = engine.run(halves()[number : number + 1]).model
    assert isinstance(model, Model)
    return Prior.of(model, rates=0.3)


def test_the_component_that_fits_the_first_batch_is_taken() -> None:
    prior = Prior.mixture(trained_on(1), trained_on(0))
    plugin = FromPrior(prior=prior, at_experience="select", batches=2)
    seen = Watched(plugin, stream=halves(), model=made(0, norm=False))
    assert plugin.chosen == [1, 0, 1]
    for number, start in zip(plugin.chosen, seen.starts, strict=True):
        assert same(start, {name: prior.components[number].parameters[name] for name in start})
    assert seen.moving == [set()] * 3

    again = FromPrior(prior=Prior.mixture(*reversed(prior.components)), at_experience="select", batches=2)
    assert same(Watched(again, stream=halves(), model=made(0, norm=False)).ends, seen.ends)
    assert again.chosen == [0, 1, 0]


def test_components_are_compared_in_evaluation_mode_and_leave_no_trace() -> None:
    parts, told = (learnt(7), learnt(8)), []

    def look(experience: Any, run: Any) -> None:
        before, drawn = tensors(run.model), torch.get_rng_state()
        told.extend(losses_of_components(parts, [all_of(part) for part in parts], experience, run, batches=2, steps=0))
        assert same(tensors(run.model), before)
        assert torch.equal(torch.get_rng_state(), drawn)
        assert run.model.training

    Engine(made(0), MOMENTUM, [probe(before_experience=look)], batch_size=8, seed=4, evaluate="never").run(halves()[:1])
    rows = halves()[0].data["train"].batch(shuffled(48, 8, False, 0, 4, 0, 0, 0)[:16])  # those with which the experience begins
    for component, loss in zip(parts, told, strict=True):
        model = made(0)
        model.load_state_dict(all_of(component))
        assert loss == pytest.approx(nn.functional.cross_entropy(model.eval()(rows.x), rows.targets["blobs"]).item(), rel=1e-6)


def test_components_may_take_their_inner_steps_before_they_are_asked() -> None:
    """One knows nothing and cannot learn, since its rate is 0; the other starts off worse and learns fast."""
    blank, wrong = made(5, norm=False), trained_on(1)
    prior = Prior.mixture(Prior.of(blank, rates=0.0, steps=30), Prior(wrong.parameters, rates=1.0, steps=30))
    chosen = []
    for steps in (0, 30):
        plugin = FromPrior(prior=prior, at_experience="select", steps=steps)
        seen = Watched(plugin, stream=halves()[:1], model=made(0, norm=False))
        chosen.append(plugin.chosen)
        assert same(seen.starts[0], dict(prior.components[plugin.chosen[0]].parameters)), "the steps are forgotten again"
    assert chosen == [[0], [1]]
    equal = FromPrior(prior=Prior.mixture(wrong, wrong), at_experience="select")
    Watched(equal, stream=halves()[:1], model=made(0, norm=False))
    assert equal.chosen == [0], "of equal ones the first"


def test_episodes_are_asked_on_their_query_rows() -> None:
    """Sines and lines: each prior was trained on one of them, and is the better start for it after inner steps."""

    def family(name: str) -> Stream:
        return streams.episodes(name, shots=5, queries=5, train_episodes=300, test_episodes=2)

    def net() -> Model:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Model(nn.Sequential(nn.Linear(1, 20), nn.Tanh()), Heads(20, [Task("y", kind="regression")]))

    names = ("sinusoids", "lines")
    priors = []
    for name in names:
        learner = MAML(steps=1, rate=0.02)
        model = Engine(net(), lambda p: torch.optim.Adam(p, lr=0.01), [learner], batch_size=20, evaluate="never").run(family(name)).model
        assert isinstance(model, Model)
        found = Prior.of(model, learner)
        priors.append(Prior({key.replace(name, "y"): p for key, p in found.parameters.items()}, rates=found.rates))
    for number, name in enumerate(names):
        mixture = Prior.mixture(
            *[
                Prior({key.replace("y.", f"{name}.") if "heads" in key else key: p for key, p in part.parameters.items()}, rates=part.rates)
                for part in priors
            ]
        )
        plugin = FromPrior(prior=mixture, at_experience="select", steps=1)
        Engine(net(), MOMENTUM, [plugin, MAML(steps=1, rate=0.02)], batch_size=30, iterations=1, evaluate="never").run(family(name))
        assert plugin.chosen == [number]


def test_selection_says_what_it_cannot_do() -> None:
    with pytest.raises(ConfigurationError, match="select needs a mixture"):
        Watched(FromPrior(prior=learnt(), at_experience="select"))
    broken = Prior({name: value * torch.nan for name, value in learnt().parameters.items()}, buffers=learnt().buffers)
    with pytest.raises(TrainingError, match="no component of the prior has a finite loss"):
        Watched(
            FromPrior(prior=Prior.mixture(learnt(), broken).components[1], at_experience="keep"),
            FromPrior(prior=Prior.mixture(broken, broken), at_experience="select", name="second"),
        )
    fits = FromPrior(prior=Prior.mixture(broken, learnt()), at_experience="select")
    Engine(made(0), MOMENTUM, [fits], batch_size=8, evaluate="never").run(class_stream())
    assert fits.chosen == [1, 1, 1]


# ------------------------------------------------------------------------------------------------ beside others


@pytest.mark.parametrize(("policy", "stop"), [("keep", 4), ("reset", 4), ("reset_plastic", 4), ("blend", 4), ("select", 8)])
def test_a_resumed_run_ends_as_one_that_was_not_stopped(policy: Any, stop: int, tmp_path: Path) -> None:
    tasks = (Task("t", size=2),)
    Prior.mixture(learnt(7, tasks, plastic=("heads.*",)), learnt(8, tasks)).save(tmp_path / "p")

    def engine(**options: Any) -> Engine:
        plugin = FromPrior(prior=tmp_path / "p", at_experience=policy, heads="skip")
        # a function: what it builds must not depend on whether the run has been stopped
        return Engine(lambda: made(0, tasks), adam, [plugin], batch_size=8, seed=4, checkpoint_every=4, **options)

    straight = stopped_or_straight(engine, growing_stream, tmp_path / "straight")
    stopped = stopped_or_straight(engine, growing_stream, tmp_path / "stopped", stop)
    assert same(straight, stopped)


def test_another_prior_is_refused_by_a_resume(tmp_path: Path) -> None:
    learnt().save(tmp_path / "p")
    engine = Engine(made(0), MOMENTUM, [FromPrior(prior=tmp_path / "p")], batch_size=8)
    engine.run(class_stream(), output=tmp_path / "run")
    learnt(8).save(tmp_path / "p")
    with pytest.raises(CheckpointError, match="started from another prior"):
        Engine(made(0), MOMENTUM, [FromPrior(prior=tmp_path / "p")], batch_size=8).resume(tmp_path / "run", class_stream())
    with pytest.raises(CheckpointError, match=r"strategy.plugins\[0\].config.prior was"):
        Engine(made(0), MOMENTUM, [FromPrior(prior=learnt())], batch_size=8).resume(tmp_path / "run", class_stream())


def test_it_stands_beside_others() -> None:
    prior = learnt(plastic=("heads.*",))
    for others in ([EWC(strength=1.0)], [Replay(capacity=12)], [LwF(strength=1.0)], [FrozenBackbone()]):
        seen = Watched(FromPrior(prior=prior, at_experience="reset_plastic"), *others)
        head = "heads.by_task.blobs.weight"
        assert all(torch.equal(start[head], prior.parameters[head]) for start in seen.starts)
        kept = all(torch.equal(seen.ends[-1][name], value) for name, value in prior.parameters.items() if name.startswith("encoder."))
        assert kept == isinstance(others[0], FrozenBackbone)
    with pytest.raises(ConfigurationError, match="'reset' would overwrite what hat protects"):
        Watched(FromPrior(at_experience="reset"), HAT(), model=made(0, norm=False))


def test_what_would_do_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="keep does nothing"):
        Watched(FromPrior())
    with pytest.raises(ConfigurationError, match=r"no parameter matches plastic=\('head.*',\)"):
        Watched(FromPrior(at_experience="reset_plastic", plastic=("head.*",)))
    with pytest.raises(CheckpointError, match=r"missing.prior is no file"):
        Watched(FromPrior(prior="missing.prior"))
    for options in ({"blend": 0.0}, {"blend": 1.5}, {"at_experience": "forget"}, {"prior": 3}, {"batches": 0}, {"steps": -1}):
        with pytest.raises(ConfigurationError):
            FromPrior(**options)


def test_more_inner_steps_than_the_prior_was_trained_for_warn() -> None:
    def run(**options: Any) -> None:
        learner = MAML(rate=0.01, **options)
        Engine(made(0, norm=False), MOMENTUM, [FromPrior(prior=Prior.of(made(7, norm=False), steps=1)), learner], batch_size=30).run(
            class_stream()
        )

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(steps=1)
    for options in ({"steps": 3}, {"steps": 1, "evaluation_steps": 3}):
        with pytest.warns(UserWarning, match="3 inner steps are asked of a prior that was trained for 1"):
            run(**options)
