"""What all weightings have in common: order and names of tasks, one task, absent ones, what is no number, what stands beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor, nn

from streamlearn import Engine, models
from streamlearn.core import registry
from streamlearn.core.plugin import Plugin
from streamlearn.errors import CompositionError, DivergenceError
from streamlearn.plugins import EWC, MGDA, GroupDRO, LwF, PCGrad, Replay, UncertaintyWeighting
from streamlearn.plugins.weighting.constant_weighting import ConstantWeighting
from streamlearn.plugins.weighting.dwa import DWA
from streamlearn.plugins.weighting.famo import FAMO
from streamlearn.plugins.weighting.gls import GLS
from streamlearn.plugins.weighting.gradnorm import GradNorm
from streamlearn.plugins.weighting.imtl_l import IMTLL
from streamlearn.plugins.weighting.rlw import RLW
from streamlearn.streams import Stream, Task
from streamlearn.streams.data import Data, Target
from tests.core.support import blobs, class_stream, final, keeps_its_state, net, probe, sgd, stream_of, two_task_stream
from tests.integration.conftest import no_drawing  # noqa: F401 - nobody looks at the figures of a run that is stopped and resumed
from tests.plugins.weighting.observed import changing_tasks, watching

MAKERS: dict[str, Callable[[], Plugin]] = {
    "constant": lambda: ConstantWeighting(weights={"a": 0.5, "b": 2.0}),
    "dwa": lambda: DWA(temperature=0.3),
    "rlw": RLW,
    "rlw_of_one": lambda: RLW(distribution="constrained_bernoulli", total="tasks"),
    "gls": GLS,
    "imtl_l": lambda: IMTLL(initial=0.2, learning_rate=0.1),
    "uncertainty": lambda: UncertaintyWeighting(initial=-0.2, learning_rate=0.1),
    "famo": lambda: FAMO(learning_rate=0.1),
    "gradnorm": lambda: GradNorm(learning_rate=0.1),
    "gradnorm/softmax": lambda: GradNorm(weights="softmax", layer="all", learning_rate=0.1),
    "group_dro": lambda: GroupDRO(step_size=0.3),
}
DRAWN = ("rlw", "rlw_of_one")
"""Those in which the name of a task decides what is drawn for it."""
NOT_BY_PARTS = {
    "gls": "s is the mean of the geometric means of the parts",
    "famo": "s is no sum: its weights c z/D are those of each part",
    "gradnorm": "the slopes are the mean of those of the parts, with their norms and rates",
    "gradnorm/softmax": "the slopes are the mean of those of the parts, with their norms and rates",
}
"""Those in which micro-batches are documented to be another method, and why."""
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def model_of(stream: Stream) -> nn.Module:
    """A model whose every parameter is a function of its name, so that other tasks beside it change nothing."""
    model = models.mlp(stream, (8,)).double()
    with torch.no_grad():
        for name, value in model.named_parameters():
            start = float(sum(map(ord, name)) % 7) / 10
            value.copy_(torch.linspace(-0.7, 0.6 + start, value.numel(), dtype=value.dtype).sin().view_as(value))
    return model


def left(stream: Stream, *plugins: Any, **options: Any) -> dict[str, Tensor]:
    return final(Engine(model_of(stream), sgd(), list(plugins), **({"batch_size": 8, "epochs": 4, "seed": 2} | options)), stream)[0]


def of_tasks(*tasks_of: str, unlabelled: str = "", rows: int = 16, names: Mapping[str, str] | None = None) -> Stream:
    """All tasks on every row, listed as given; "a" has 6 classes and "b" 3, whatever comes first, and by which ``names`` they go."""
    source = blobs(rows, 6, dtype=torch.float64)
    go_by = {task: task for task in (*tasks_of, *unlabelled)} | dict(names or {})
    tasks = {task: Task(go_by[task], size=3 if task == "b" else 6) for task in (*tasks_of, *unlabelled)}
    labels = {"a": Target("y"), "b": Target("y", torch.arange(6) % 3)}
    data = Data(source, torch.arange(rows), tuple(tasks.values()), {go_by[task]: labels[task] for task in tasks_of})
    return stream_of([(data, tuple(tasks.values()))], tuple(tasks.values()))


@every
def test_the_order_of_the_tasks_does_not_count(make: Any) -> None:
    one, other = left(of_tasks("a", "b"), make()), left(of_tasks("b", "a"), make())
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-12)


def called(names: Mapping[str, str], make: Any, *plugins: Any, **options: Any) -> list[Tensor]:
    """What is left of a model whose tasks "a" and "b" go by ``names``, and whose heads start as theirs do."""
    stream = of_tasks("a", "b", names=names)
    model = models.mlp(stream, (8,)).double()
    model.load_state_dict(dict(zip(model.state_dict(), model_of(of_tasks("a", "b")).state_dict().values(), strict=True)))
    weighting = ConstantWeighting(weights={names["a"]: 0.5, names["b"]: 2.0}) if make is MAKERS["constant"] else make()
    return list(final(Engine(model, sgd(), [weighting, *plugins], **({"batch_size": 8, "epochs": 4} | options)), stream)[0].values())


USUAL = {"a": "a", "b": "b"}
OTHER_NAMES = ({"a": "b", "b": "a"}, {"a": "z.y", "b": "train"}, {"a": "x/y", "b": "x"})


@pytest.mark.parametrize("names", OTHER_NAMES, ids=lambda names: " ".join(names.values()))
@pytest.mark.parametrize("name", [name for name in MAKERS if name not in DRAWN])
def test_the_names_of_the_tasks_do_not_count(name: str, names: Any) -> None:
    for found, value in zip(called(names, MAKERS[name]), called(USUAL, MAKERS[name]), strict=True):
        torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", DRAWN)
def test_where_weights_are_drawn_their_distribution_knows_no_names(name: str) -> None:
    drawn = []
    for names in (USUAL, *OTHER_NAMES):
        weights: list[dict[str, float]] = []
        called(names, MAKERS[name], watching(weights), epochs=150, evaluate="never")
        drawn.append(torch.tensor([step[names["a"]] / sum(step.values()) for step in weights]))
    usual, *others = drawn
    assert len(usual) == 300
    assert float(usual.std()) > 0.1
    for other in others:
        assert not torch.equal(other, usual), "the draws themselves do know them"
        assert ks_2samp(usual, other).pvalue > 1e-3
        assert abs(float(other.mean()) - 0.5) < 4 * float(other.std()) / len(other) ** 0.5


@every
def test_an_absent_task_is_as_if_there_were_none(make: Any) -> None:
    """A third task stands in the stream and has no label: nothing is different, bit for bit, and its head stays."""
    plain, beside = left(of_tasks("a", "b"), make()), left(of_tasks("a", "b", unlabelled="z"), make())
    start = model_of(of_tasks("a", "b", unlabelled="z")).state_dict()
    assert plain.keys() < beside.keys()
    for name, value in beside.items():
        assert torch.equal(value, plain.get(name, start[name])), name


@every
def test_a_task_alone_is_trained_up_to_a_positive_factor(make: Any) -> None:
    """Its gradient points where the plain one points."""
    cosines: list[float] = []

    def look(gradients: Any, step: Any) -> Any:
        (loss,) = step.at().losses.values()
        names = [name for name in gradients if "/" not in name]
        plain = torch.autograd.grad(loss, [step.parameters[name] for name in names])
        one, other = (torch.cat([g.flatten() for g in found]) for found in (plain, [gradients[name] for name in names]))
        cosines.append(float(torch.cosine_similarity(one, other, dim=0)))
        return gradients

    left(of_tasks("b"), make() if make is not MAKERS["constant"] else ConstantWeighting(weights={"b": 0.3}),
         probe("look", transform_gradients=look))  # fmt: skip
    assert cosines == [pytest.approx(1.0, abs=1e-6)] * 8


@every
def test_a_loss_that_is_no_number_raises(make: Any) -> None:
    broken = probe("broken", transform_supervision=lambda supervision: tuple(
        r.replace(scale=float("nan") if r.task == "b" else 1.0) for r in supervision))  # fmt: skip
    with pytest.raises(DivergenceError, match="loss of row 'b' is nan"):
        left(of_tasks("a", "b"), make(), broken)


@every
def test_a_sum_combiner_changes_nothing(make: Any) -> None:
    """The rows that a combiner sees are ∂s/∂L · ∇L: their sum is the gradient of s."""
    combine = probe("sum", provide_gradient_combination=lambda rows: dict.fromkeys(rows.names, 1.0))
    plain, combined = left(of_tasks("a", "b"), make()), left(of_tasks("a", "b"), make(), combine)
    for name, value in plain.items():
        torch.testing.assert_close(combined[name], value, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", MAKERS)
def test_micro_batches_of_equal_size_change_nothing_but_where_it_says_so(name: str) -> None:
    whole, parts = (left(of_tasks("a", "b"), MAKERS[name](), microbatches=count) for count in (1, 2))
    if name in NOT_BY_PARTS:
        assert max(float((parts[key] - value).abs().max()) for key, value in whole.items()) > 1e-6
        return
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-8, atol=1e-11)


COMBINED = [pytest.param(make, combiner, id=f"{name}-{combiner.__name__}") for name, make in MAKERS.items()
            for combiner in (PCGrad, MGDA)]  # fmt: skip


@pytest.mark.parametrize(("make", "combiner"), COMBINED)
def test_beside_replay_penalties_a_teacher_and_a_combiner(make: Any, combiner: Any) -> None:
    """Tasks come and go; rows of the past are in the batch; EWC and LwF start at their anchor, and do not freeze what is to be learned."""
    stream = changing_tasks("ab", "bc", "ca")
    weighting = make()
    weights: list[dict[str, float]] = []
    plugins = [weighting, Replay(capacity=12, batch_size=6), EWC(strength=2.0), LwF(strength=0.5), combiner(), watching(weights)]
    starts: list[dict[str, Tensor]] = []
    note = probe("note", before_experience=lambda run: starts.append(run.snapshot()))
    found, _ = final(Engine(models.mlp(stream, (8,)), sgd(weight_decay=0.0), [*plugins, note], batch_size=8, epochs=3), stream)
    assert all(bool(value.isfinite().all()) for value in found.values())
    for before, after in zip(starts, [*starts[1:], found], strict=True):
        assert any(not torch.equal(after[name], value) for name, value in before.items() if name.startswith("encoder."))
    assert {task for row in weights[-6:] for task in row} == {"a", "b", "c"}, "the memory has rows of the task that has left"


@every
def test_what_a_task_has_follows_its_name_and_not_its_place(make: Any) -> None:
    """In the place of a task that has left stands a new one, or one that was elsewhere: every weight is what it is in another order."""
    seen: list[list[dict[str, float]]] = [[], []]
    words = (("ab", "cb", "ac", "bca"), ("ba", "bc", "ca", "abc"))
    for weights, order in zip(seen, words, strict=True):
        left(changing_tasks(*order, dtype=torch.float64), ConstantWeighting(weights={"b": 2.0}) if make is MAKERS["constant"] else make(),
             watching(weights))  # fmt: skip
    assert len(seen[0]) == 32
    for one, other in zip(*seen, strict=True):
        assert other == pytest.approx(one, rel=1e-9, abs=1e-12)


def test_every_weighting_is_here() -> None:
    known = [plugin.name for plugin in registry.installed() if plugin.distribution == "streamlearn" and plugin.family == "weighting"]
    assert sorted({make().name for make in MAKERS.values()}) == sorted(known)
    assert {*DRAWN, *NOT_BY_PARTS} <= MAKERS.keys()


@every
def test_a_regression_beside_a_classification(make: Any) -> None:
    source = blobs(16, 6)
    value = Task("b", "regression", size=1)
    source.targets["value"] = torch.linspace(-1, 1, 16).view(16, 1)
    tasks = (Task("a", size=6), value)
    data = Data(source, torch.arange(16), tasks, {"a": Target("y"), "b": Target("value")})
    stream = stream_of([(data, tasks)], tasks)
    _, events = final(Engine(models.mlp(stream, (8,)), sgd(lr=0.02), [make()], batch_size=8, epochs=6), stream)
    means = [event["losses"] for event in events if event["event"] == "epoch"]
    assert set(means[-1]) == {"a", "b"}
    assert means[-1]["a"] + means[-1]["b"] < means[0]["a"] + means[0]["b"]


@every
def test_one_task_that_learns_class_after_class(make: Any) -> None:
    """A class-incremental stream: the task alone is never weighed away."""
    weighting = ConstantWeighting() if make is MAKERS["constant"] else make()
    found, events = final(Engine(net(), sgd(), [weighting, Replay(capacity=12)], batch_size=10, epochs=3), class_stream())
    assert all(bool(value.isfinite().all()) for value in found.values())
    means = [event["losses"]["blobs"] for event in events if event["event"] == "epoch"]
    assert all(means[i + 2] < means[i] for i in (0, 3, 6))


@every
def test_stopped_and_resumed(make: Any, tmp_path: Path) -> None:
    """Within an epoch, at the end of one, and across experiences."""
    stream = two_task_stream(experiences=2)

    def engine(**options: Any) -> Engine:
        return Engine(models.mlp(stream, (8,)), sgd(), [make()], batch_size=8, epochs=4, checkpoint_every=1, evaluate="end", **options)

    keeps_its_state(engine, stream, (8, 9, 16), tmp_path)


def test_a_task_of_weight_0_is_no_row_for_mgda() -> None:
    """A row of zeros would be the shortest combination, and stop all others."""
    stream = of_tasks("a", "b")
    found, plain = left(stream, MAKERS["rlw_of_one"](), MGDA(), epochs=1), left(stream, MAKERS["rlw_of_one"](), epochs=1)
    torch.testing.assert_close(found, plain)


def test_two_weightings_are_refused() -> None:
    with pytest.raises(CompositionError, match="claim 'provide_weighting', which one alone can answer: dwa, gls"):
        Engine(models.mlp(two_task_stream(), (8,)), sgd(), [DWA(), GLS()])
