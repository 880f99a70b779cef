"""What a plugin declares of its passes is what its steps take: the record gives the declared numbers as costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mode
from typing import Any

import pytest
import torch

from streamlearn import Engine
from streamlearn.models import Model
from streamlearn.models.parts import PartedModel
from tests.conformance import pairs
from tests.core.support import probe, sgd

OTHERWISE = {
    "hat": (0, "its model has a pass of its own, with gates"),
    "ranpac": (0, "it learns when the experience has ended"),
    "oml": (3, "how long a trajectory is, the stream says: here two pieces of two rows, and all rows at their end"),
    "anml": (3, "the same"),
    "mer": (7, "it takes the incoming rows one by one, or two by two for BatchNorm: here twice three batches, and once all rows"),
    "la_maml": (4, "four rows make no more than four chunks"),
}
"""Those whose passes of `Model.encode` differ here from what they declare: how many, and why."""


@pytest.mark.parametrize("name", pairs.names())
def test_a_step_takes_the_passes_that_were_declared(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[int, int] = {}
    own: list[int] = []
    teachers: list[int] = []

    def counting(encode: Callable[[Model, torch.Tensor], torch.Tensor]) -> Callable[[Model, torch.Tensor], torch.Tensor]:
        def counted(model: Model, x: torch.Tensor) -> torch.Tensor:
            counts[id(model)] = counts.get(id(model), 0) + 1
            return encode(model, x)

        return counted

    def after(step: Any) -> None:
        if step.run.clock.experience == 1:  # with a memory, a previous model, and labels
            own.append(counts.pop(id(step.run.model), 0))
            teachers.append(sum(counts.values()))
        counts.clear()

    for model_class in (Model, PartedModel):
        monkeypatch.setattr(model_class, "encode", counting(model_class.encode))
    kind = pairs.kind_for((name,))
    plugins = [pairs.plugin_of(one, tmp_path, kind) for one in pairs.with_needed((name,))]
    watch = probe("watch", before_epoch=lambda run: counts.clear(), after_step=after)
    engine = Engine(pairs.network(kind), sgd(), [*plugins, watch], batch_size=4, seed=1)
    engine.run(pairs.stream(kind))
    declared = engine.composition.passes
    assert mode(own) == (OTHERWISE[name][0] if name in OTHERWISE else 1 + declared.forward), "some measure or tune between two steps"
    assert mode(teachers) == len(declared.teachers)
