"""The lines of a step, held against one another: what must be equal is equal, what must differ differs. In float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from streamlearn import Engine, PluginInfo, models
from streamlearn.plugins import EWC, MGDA, MGDAUB, GroupDRO, PCGrad, UncertaintyWeighting
from streamlearn.streams import Stream, Task
from streamlearn.streams.data import Data, JoinedData, Target
from tests.core.support import Spy, blobs, probe, sgd, stream_of, two_task_stream


def same_rows(experiences: int = 1) -> Stream:
    """Every row is asked on both tasks."""
    return two_task_stream(torch.float64, experiences=experiences)


def other_rows() -> Stream:
    """Each task has rows of its own, and those of "a" come from two domains."""
    source, a, b = blobs(30, 6, dtype=torch.float64), Task("a", size=6), Task("b", size=6)
    pieces = [(0, 8, a, "photo"), (8, 16, a, "sketch"), (16, 30, b, "")]
    parts = [Data(source, torch.arange(i, j), (task,), {task.name: Target("y")}, domain=domain) for i, j, task, domain in pieces]
    return stream_of([(JoinedData(parts), (a, b))], (a, b))


STREAMS = {"same rows": same_rows, "other rows": other_rows}
WEIGHTINGS = {
    "default": list,
    "uncertainty": lambda: [UncertaintyWeighting(initial=0.4, learning_rate=0.1)],
    "group dro": lambda: [GroupDRO(step_size=0.2)],
    "not linear": lambda: [probe("product", provide_weighting=lambda losses: torch.stack(list(losses.values())).prod())],
}


def pull() -> Any:
    """A term on parameters that are shared and on ones that are not."""
    return probe("pull", collect_terms=lambda step: 0.05 * sum(p.square().sum() for p in step.parameters.values()))


def sum_combiner(at: Any = "parameters", *, as_vector: bool = False) -> Any:
    """Adds the rows up, as weights by name or as a vector."""

    def combine(rows: Any) -> Any:
        assert (rows.features is not None) == (at == "features")
        return rows.matrix.sum(0) if as_vector else dict.fromkeys(rows.names, 1.0)

    plugin = probe("sum", provide_gradient_combination=combine)
    type(plugin).info = PluginInfo("sum", "test", "Adds up.", "none", rows=at)
    return plugin


def weights_of(*plugins: Any, stream: Stream | None = None, **options: Any) -> dict[str, Tensor]:
    """Every parameter after a run, those of the plugins' modules included."""
    spy, stream = Spy(), stream or same_rows()
    options = {"batch_size": 6, "epochs": 2, "seed": 3} | options
    rate = options.pop("optimizer", sgd())
    Engine(models.mlp(stream, (8,), dropout=0.2).double(), rate, [*plugins, spy], **options).run(stream)
    return spy.run.snapshot()


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """‖a - b‖ / ‖b‖ over the parameters of ``b``."""
    assert a.keys() >= b.keys()
    assert all(value.dtype == torch.float64 for value in a.values())
    return float((sum((a[n] - b[n]).square().sum() for n in b) / sum(value.square().sum() for value in b.values())).sqrt())


# ---------------------------------------------------------------------------------------------------- a sum is one backward pass


@pytest.mark.parametrize("at", ["parameters", "features"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("rows", STREAMS)
def test_a_sum_of_rows_is_one_backward_pass(rows: str, weighting: str, at: str) -> None:
    """Whatever the weighting and the terms, by weights or by a vector, at the parameters or at the features: eight steps and more."""
    stream = STREAMS[rows]()
    plain = weights_of(*WEIGHTINGS[weighting](), pull(), stream=stream)
    for as_vector in (False, True):
        combined = weights_of(*WEIGHTINGS[weighting](), pull(), sum_combiner(at, as_vector=as_vector), stream=stream)
        assert distance(combined, plain) < 1e-12
    assert distance(plain, weights_of(pull(), stream=stream)) > 1e-3 or weighting == "default"


def test_log_variances_learn_the_same_through_rows_as_through_one_backward_pass() -> None:
    plain = weights_of(UncertaintyWeighting())
    combined = weights_of(UncertaintyWeighting(), sum_combiner())
    names = [name for name in plain if name.startswith("uncertainty_weighting/")]
    assert len(names) == 2
    for name in names:
        assert abs(float(plain[name])) > 1e-2, "they have moved"
        torch.testing.assert_close(combined[name], plain[name], rtol=1e-6, atol=0)


def test_microbatches_are_averaged_before_the_rows_are_combined() -> None:
    """Without dropout, and with parts of equal size: PCGrad and MGDA see the rows of the whole batch."""

    def found(combiner: Any, microbatches: int) -> dict[str, Tensor]:
        spy, stream = Spy(), same_rows()
        plugins = [combiner, UncertaintyWeighting(), spy]
        Engine(models.mlp(stream, (8,)).double(), sgd(), plugins, batch_size=6, epochs=2, microbatches=microbatches).run(stream)
        return spy.run.snapshot()

    for combiner in (PCGrad, MGDA):
        assert distance(found(combiner(), 3), found(combiner(), 1)) < 1e-12


# ---------------------------------------------------------------------------------------------------- composition


@pytest.mark.parametrize("combiner", [PCGrad, MGDA, MGDAUB])
def test_a_weighting_and_a_combiner_compose_to_something_that_is_neither(combiner: Any) -> None:
    """Two tasks that read the same classes hardly conflict: one of them is turned round."""

    def turned(supervision: Any) -> Any:
        return (supervision[0], supervision[1].replace(scale=-1.0))

    def found(*plugins: Any) -> dict[str, Tensor]:
        return weights_of(*plugins, probe("turned", transform_supervision=turned))

    both, alone, weighted = found(UncertaintyWeighting(), combiner()), found(combiner()), found(UncertaintyWeighting())
    assert all(bool(value.isfinite().all()) for value in both.values())
    assert distance(both, alone) > 1e-3
    assert distance(both, weighted) > 1e-3


@pytest.mark.parametrize("combiner", [MGDA, MGDAUB])
def test_a_penalty_at_its_anchor_does_not_freeze_a_combiner(combiner: Any) -> None:
    """At the start of the second experience ∇EWC is exactly 0. As a row it would make the shortest combination 0 for ever."""
    moved: dict[str, float] = {}
    anchors: dict[str, Tensor] = {}

    def before(step: Any) -> None:
        if step.run.clock.experience == 1 and not anchors:
            anchors.update(step.run.snapshot())
            assert float(step.terms["ewc"].detach()) == 0.0

    def after(run: Any) -> None:
        if run.clock.experience == 1:
            moved.update({n: float((v - anchors[n]).norm()) for n, v in run.snapshot().items()})

    watch = probe("watch", before_step=before, after_experience=after)
    weights_of(combiner(), EWC(strength=5.0), watch, stream=same_rows(experiences=2), optimizer=sgd(momentum=0.0, weight_decay=0.0))
    assert all(value > 1e-3 for value in moved.values()), moved


def test_as_a_row_the_penalty_would_freeze_it() -> None:
    """What the engine does not do, made by hand: the penalty, at its anchor, among the losses."""
    frozen: list[float] = []

    def as_a_row(objective: Any, step: Any) -> Any:
        found = objective(step)
        return type(found)({**found.losses, "penalty": found.terms["pull"]}, {}, found.shares)

    def watch_shared(gradients: Any) -> Any:
        frozen.append(max(float(g.abs().max()) for n, g in gradients.items() if n.startswith("encoder.")))
        return gradients

    start: dict[str, Tensor] = {}

    def at_anchor(step: Any) -> Tensor:
        start.update(start or step.run.snapshot())
        return sum((p - start[n]).square().sum() for n, p in step.parameters.items() if n.startswith("encoder."))

    wrong = probe("pull", collect_terms=at_anchor, around_objective=as_a_row, transform_gradients=watch_shared)
    weights_of(MGDA(), wrong, optimizer=sgd(momentum=0.0, weight_decay=0.0))
    assert len(frozen) == 8
    assert max(frozen) == 0.0
