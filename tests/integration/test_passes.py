"""One forward per model per step, however many plugins read features, outputs or teachers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from streamlearn import Engine, Plugin, models, streams
from streamlearn.core.plugin import hookimpl
from streamlearn.models import Model
from streamlearn.plugins import BAM, CORAL, DANN, LwF, MultiTeacher, Replay
from tests.core.support import probe


def sources() -> streams.Stream:
    return streams.multitask("digits", 2, target_domain=True)[:2]


def single_task_teacher(stream: streams.Stream, seed: int) -> Model:
    torch.manual_seed(seed)
    return models.mlp(stream, (12,))


READERS: dict[str, Callable[[streams.Stream], Plugin]] = {
    "lwf": lambda s: LwF(),
    "second": lambda s: LwF(temperature=1.0, name="second"),
    "multi_teacher": lambda s: MultiTeacher(teachers={"left": single_task_teacher(s, 1), "right": single_task_teacher(s, 2)}),
    "bam": lambda s: BAM(),
    "dann": lambda s: DANN(strength=1.0),
    "coral": lambda s: CORAL(strength=1.0),
}


class Counter:
    """Counts the passes of every model, step by step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: dict[int, int] = {}
        self.steps: list[tuple[int, int]] = []  # passes of the model, passes of teachers
        encode = Model.encode

        def counted(model: Model, x: torch.Tensor) -> torch.Tensor:
            self.counts[id(model)] = self.counts.get(id(model), 0) + 1
            return encode(model, x)

        monkeypatch.setattr(Model, "encode", counted)

    def watch(self) -> Plugin:
        def after(step: Any) -> None:
            own = self.counts.pop(id(step.run.model), 0)
            self.steps.append((own, sum(self.counts.values())))
            self.counts.clear()

        def before() -> None:
            self.counts.clear()

        return probe("watch", before_step=before, after_step=after)


def run(plugins: list[Plugin], lr: float = 0.05) -> Engine:
    stream = sources()
    engine = Engine(models.mlp(stream, (12,)), lambda p: torch.optim.SGD(p, lr=lr), plugins, batch_size=180, evaluate="never")
    engine.run(stream)
    return engine


def test_the_passes_of_a_step_are_one_and_what_the_plugins_declare(monkeypatch: pytest.MonkeyPatch) -> None:
    counter, stream = Counter(monkeypatch), sources()
    plugins = [make(stream) for make in READERS.values()]
    engine = run([Replay(capacity=20), *plugins, counter.watch()])
    planned = engine.composition.passes
    assert len(counter.steps) == 8
    for number, (own, teachers) in enumerate(counter.steps):
        assert own == 1 + planned.forward == 1
        assert teachers == (len(planned.teachers) if number >= 4 else 2), "the previous model is there from the second experience on"
    assert f"planned passes per step: 1 forward, 1 backward of the model, {len(planned.teachers)} forward of teachers" in engine.explain()


def test_together_they_give_what_each_gives_alone() -> None:
    """With a learning rate of 0 every run has the same weights at every step, so their losses and terms can be compared."""

    def values(names: list[str]) -> list[dict[str, float]]:
        found: list[dict[str, float]] = []
        stream = sources()
        kept = probe("kept", after_step=lambda step: found.append({n: float(v.detach()) for n, v in {**step.losses, **step.terms}.items()}))
        run([*(READERS[name](stream) for name in names), kept], lr=0.0)
        return found

    together = values(list(READERS))
    for name in READERS:
        alone = values([name])
        for step, reference in zip(together, alone, strict=True):
            mine = {key: value for key, value in reference.items() if key.split("/")[0] == name or (name == "bam" and "/" not in key)}
            assert mine or name in ("lwf", "second"), f"{name} has neither a term nor a row"
            assert {key: step[key] for key in mine} == pytest.approx(mine, rel=1e-6, abs=1e-6)


def test_a_plugin_that_makes_its_own_pass_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Greedy(LwF):
        @hookimpl
        def collect_terms(self, step: Any) -> Any:
            step.run.model.encode(step.batch.x)
            return super().collect_terms(step)

    counter = Counter(monkeypatch)
    run([Greedy(), counter.watch()])
    assert {own for own, _ in counter.steps} == {2}
