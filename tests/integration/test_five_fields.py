"""All five fields in one run: it trains, every method acts, it resumes bit for bit, and it explains itself."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.core.support import Stop, probe, same, stop_at
from tests.integration.test_resume import everything

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("five_fields", ROOT / "examples" / "five_fields.py")
assert spec is not None
assert spec.loader is not None
five_fields: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(five_fields)

SHORT = {"epochs": 1, "batch_size": 64, "checkpoint_every": 3}


@pytest.fixture(scope="module")
def start() -> Any:
    stream = five_fields.stream_of()
    return stream, five_fields.prior(stream, episodes=12)


def test_every_method_acts_in_one_step(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, prior = start
    seen: dict[str, set[str]] = {"terms": set(), "roles": set(), "rows": set()}
    moved: list[bool] = []

    def watch(step: Any) -> None:
        seen["terms"] |= {name for name, term in step.terms.items() if float(term.detach()) != 0}
        seen["roles"] |= set(step.batch.roles)
        seen["rows"] |= set(step.losses)
        assert all(math.isfinite(float(value.detach())) for value in [*step.losses.values(), *step.terms.values()])
        moved.append(step.updated)

    strategy = five_fields.strategy
    monkeypatch.setattr(five_fields, "strategy", lambda: [*strategy(), probe("watch", after_step=watch)])
    result = five_fields.engine_of(stream, prior, **SHORT).run(stream)
    assert all(moved)
    assert seen["rows"] == {"left", "right"}
    assert seen["roles"] == {"train", "target", "memory"}
    assert {name.split("/")[0] for name in seen["terms"]} == {"ewc", "lwf", "dann"}
    assert result.accuracy_matrix.shape == (3, 2)
    named = dict(result.model.named_parameters())
    assert not torch.equal(named["encoder.1.weight"].cpu(), prior["1.weight"]), "training starts at the prior and leaves it"


def test_it_starts_from_the_prior(start: Any) -> None:
    stream, prior = start
    model = five_fields.engine_of(stream, prior, evaluate="never")._fresh_model()
    assert torch.equal(model.encoder[1].weight.detach(), prior["1.weight"])


@pytest.mark.parametrize("stops", [(4,), (13, 17)])
def test_it_resumes_bit_for_bit(start: Any, tmp_path: Path, stops: tuple[int, ...]) -> None:
    stream, prior = start
    five_fields.engine_of(stream, prior, **SHORT).run(stream, output=tmp_path / "straight")
    for number, place in enumerate(stops):
        engine = five_fields.engine_of(stream, prior, **SHORT, progress=stop_at(place))
        with pytest.raises(Stop):
            engine.resume(tmp_path / "broken", stream) if number else engine.run(stream, output=tmp_path / "broken")
    five_fields.engine_of(stream, prior, **SHORT).resume(tmp_path / "broken", stream)
    assert same(everything(tmp_path / "straight"), everything(tmp_path / "broken"))


def test_explain_tells_what_happens_in_which_order(start: Any) -> None:
    text = five_fields.engine_of(*start).explain()
    for line in (
        "provide_task_probabilities    one plugin answers: temperature_sampling",
        "collect_terms                 contributions are added up, by name: ewc > lwf > dann",
        "provide_weighting             one plugin answers: uncertainty_weighting",
        "provide_gradient_combination  one plugin answers: pcgrad",
        "1 forward of teachers (previous)",
    ):
        assert line in text, text
