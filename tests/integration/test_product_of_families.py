"""Any weighting with any combiner with any penalty with replay: the whole product of the built-in ones, 9 x 11 x 7 = 693 runs.

Each run is two experiences of four updates, two tasks of equal size on every row, in double precision and by plain gradient descent: no
momentum and no weight decay could move what a combiner has stopped. A run is told apart from those in which its weighting, its combiner or
its penalty is missing, and every gradient of the second experience is taken apart: combine(∂s/∂L_k · ∇L_k) + ∇P at what tasks share,
∇(s + P) at their heads.

For two more questions every pair of a weighting and a combiner stands with one other in turn, so that all pairs of families are met: what
replay does among them, and what else the family of penalties has (averages, mixed rows, a look-ahead).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from streamlearn import Engine, Plugin, models
from streamlearn.core import registry
from streamlearn.core.deprecation import hooks_of
from streamlearn.core.gradients import TaskRows, named_gradients
from streamlearn.core.plugin import hookimpl
from streamlearn.errors import CompositionError, ConfigurationError
from streamlearn.streams import Stream, Task
from streamlearn.streams.data import Data, Target
from tests.core.support import blobs, probe, sgd, stream_of

FAMILIES = ("weighting", "gradients", "regularization")
KINDS = {p.name: registry.load(p.name) for p in registry.installed() if p.distribution == "streamlearn" and p.family in FAMILIES}
KINDS["replay"] = registry.load("replay")
"""The classes, looked up once: some thousand runs are made of them."""


def of(family: str, hook: str) -> list[str]:
    """The plugins of a family that implement a hook."""
    return [name for name, kind in KINDS.items() if kind.info.family == family and hook in hooks_of(kind)]


WEIGHTINGS = of("weighting", "provide_weighting")
COMBINERS = of("gradients", "provide_gradient_combination")
PENALTIES = of("regularization", "collect_terms")
OTHERS = [name for name, kind in KINDS.items() if kind.info.family == "regularization" and name not in PENALTIES]
PAIRS = list(itertools.product(WEIGHTINGS, COMBINERS))


def in_turn(names: list[str]) -> list[tuple[str, str, str]]:
    """Every weighting with every combiner, and with one of ``names``: each of them meets all of the other two."""
    return [(w, c, names[(i + j) % len(names)]) for i, w in enumerate(WEIGHTINGS) for j, c in enumerate(COMBINERS)]


OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "constant_weighting": {"weights": {"a": 3.0}},
    "gradient_similarity": {"main": "a"},
    "soft_sharing": {"strength": 0.1},
    "trace_norm": {"strength": 0.1},
    "task_relationships": {"strength": 0.1},
    "replay": {"capacity": 6, "batch_size": 4},
}
"""Options of those that need some, or whose default is weak beside four updates."""

REFUSED: Mapping[frozenset[str], str] = {
    frozenset({combiner, "sam"}): f"{combiner} cannot stand beside sam (look-ahead): remove one of the two"
    for combiner in ("graddrop", "mgda_ub")  # they combine at the features, and at the ascended weights there are others
}
"""Which pairs are refused, and with which reason. None of a weighting, a combiner, a penalty and replay is."""

ROWS = 12


@cache
def stream() -> Stream:
    """Each experience is a domain; the tasks have six classes each, so that their heads correspond, and nothing in common."""
    source = blobs(2 * ROWS, 6, dtype=torch.float64)
    tasks = (Task("a", size=6), Task("b", size=6))
    targets = {"a": Target("y"), "b": Target("y", torch.tensor([3, 5, 0, 4, 1, 2]))}
    places = [torch.arange(i * ROWS, (i + 1) * ROWS) for i in range(2)]
    pieces = [(Data(source, place, tasks, targets, domain=domain), tasks) for place, domain in zip(places, "xy", strict=True)]
    return stream_of(pieces, tasks)


@cache
def start() -> Mapping[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(models.mlp(stream(), (4,)).double().state_dict())


@dataclass
class Outcome:
    """What became of some plugins together."""

    refused: str | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    anchor: dict[str, Tensor] = field(default_factory=dict)
    """The weights before the last experience."""
    first: dict[str, Tensor] = field(default_factory=dict)
    """And after its first update."""
    finite: bool = True
    terms: set[str] = field(default_factory=set)
    """Those that were not zero at some time."""
    updates: int = 0
    remembered: int = 0
    compared: int = 0
    wrong: list[str] = field(default_factory=list)
    """Gradients that are not what the algebra of a step makes of them."""

    def moved(self, weights: Mapping[str, Tensor]) -> float:
        """How far the encoder has come from its anchor."""
        return max(float((weights[name] - value).abs().max()) for name, value in self.anchor.items() if name.startswith("encoder."))

    def apart(self, other: Outcome) -> float:
        """How far two runs have ended from each other."""
        assert other.refused is None
        return max(float((other.weights[name] - value).abs().max()) for name, value in self.weights.items())


def listening(name: str, heard: list[tuple[TaskRows, Any]]) -> Plugin:
    """The combiner of that name, which also notes what it was asked and what it answered."""

    class Listening(KINDS[name]):  # type: ignore[misc, name-defined]
        @hookimpl
        def provide_gradient_combination(self, rows: TaskRows, step: Any) -> Any:
            answer = super().provide_gradient_combination(rows=rows, step=step)
            heard.append((rows, answer))
            return answer

    return Listening(**OPTIONS.get(name, {}))


def combined(rows: TaskRows, answer: Any, here: Any, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What an answer means for the parameters that tasks share."""
    pieces = [piece.detach() for piece in rows.combine(answer)]
    if rows.features is not None:
        features = here.outputs.features
        pieces = list(torch.autograd.grad(features, list(shared.values()), pieces[0].view_as(features), retain_graph=True))
    return {name: piece.view_as(like) for (name, like), piece in zip(shared.items(), pieces, strict=True)}


def expected(here: Any, rows: TaskRows, answer: Any) -> dict[str, Tensor]:
    """The gradient of a step, line by line."""
    of_model = {name: p for name, p in here.run.parameters().items() if name in here.run.model_parameter_names}
    shared = {name: p for name, p in of_model.items() if name in here.run.model.shared_names()}
    total = here.gradient(terms=True)
    found = combined(rows, answer, here, shared) | {name: total[name] for name in of_model if name not in shared}
    for term in here.terms.values():
        for name, pull in named_gradients(term, shared, retain_graph=True).items():
            found[name] = found[name] + pull
    return found


@cache
def outcome(weighting: str | None, combiner: str | None, *others: str) -> Outcome:
    found, heard = Outcome(), list[tuple[TaskRows, Any]]()
    look_ahead = "sam" in others  # the gradient is then one at other weights

    def look(gradients: Any, step: Any) -> Any:
        if heard and step.run.clock.experience == 1 and not look_ahead:
            made = expected(step.at(), *heard[-1])
            found.compared += len(made)
            found.wrong += [n for n, value in made.items() if not torch.allclose(gradients[n], value, rtol=1e-9, atol=1e-12)]
        return gradients

    def after(step: Any) -> None:
        found.updates += step.updated
        found.finite &= all(bool(value.isfinite()) for value in (*step.losses.values(), *step.terms.values()))
        found.terms |= {name for name, term in step.terms.items() if float(term.detach()) != 0}
        if step.run.clock.experience == 1:
            found.remembered += any(segment.role == "memory" for segment in step.batch.segments)
            found.first = found.first or step.run.snapshot()

    spy = probe("spy", transform_gradients=look, after_step=after, before_experience=lambda run: found.anchor.update(run.snapshot()))
    model = models.mlp(stream(), (4,)).double()
    model.load_state_dict(start())
    try:
        plugins = [KINDS[name](**OPTIONS.get(name, {})) for name in (weighting, *others) if name is not None]
        plugins += [] if combiner is None else [listening(combiner, heard)]
        engine = Engine(model, sgd(momentum=0.0, weight_decay=0.0), [*plugins, spy], batch_size=6, epochs=2, evaluate="never", seed=3)
        result = engine.run(stream())
    except (CompositionError, ConfigurationError) as error:
        found.refused = str(error)
        return found
    found.weights = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}  # type: ignore[attr-defined]
    found.finite &= all(bool(value.isfinite().all()) for value in found.weights.values())
    return found


def check(weighting: str, combiner: str, *others: str) -> Outcome | None:
    """Together they train and nothing is frozen, or they are refused with the reason on the list."""
    found = outcome(weighting, combiner, *others)
    pairs = itertools.combinations((weighting, combiner, *others), 2)
    reasons = [REFUSED[frozenset(pair)] for pair in pairs if frozenset(pair) in REFUSED]
    if reasons or found.refused is not None:
        assert found.refused is not None, "on the list of those that are refused"
        assert reasons, found.refused
        assert all(reason in found.refused for reason in reasons)
        return None
    assert found.finite
    assert found.updates == 8
    assert found.wrong == []
    assert found.moved(found.first) > 1e-4, "at the anchor"
    assert found.moved(found.weights) > 1e-4
    return found


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(("weighting", "combiner"), PAIRS)
def test_a_weighting_a_combiner_a_penalty_and_replay(weighting: str, combiner: str, penalty: str) -> None:
    found = check(weighting, combiner, penalty, "replay")
    assert found is not None
    assert found.terms == {penalty}
    assert found.remembered == 4, "every batch of the second experience has rows of the first"
    assert found.compared == 4 * len(found.weights), "each gradient of the second experience"
    for left in ((None, combiner, penalty, "replay"), (weighting, None, penalty, "replay"), (weighting, combiner, "replay")):
        assert found.apart(outcome(*left)) > 1e-8, f"as if there were only {left}"


@pytest.mark.parametrize(("weighting", "combiner", "penalty"), in_turn(PENALTIES))
def test_replay_is_not_lost_among_them(weighting: str, combiner: str, penalty: str) -> None:
    found, without = check(weighting, combiner, penalty, "replay"), check(weighting, combiner, penalty)
    assert found is not None
    assert without is not None
    assert without.remembered == 0
    assert found.apart(without) > 1e-4


@pytest.mark.parametrize(("weighting", "combiner", "other"), in_turn(OTHERS))
def test_beside_what_else_the_family_of_penalties_has(weighting: str, combiner: str, other: str) -> None:
    found = check(weighting, combiner, other, "replay")
    if found is not None:
        assert found.apart(outcome(weighting, combiner, "replay")) > 1e-8


def test_the_whole_product_is_there() -> None:
    """Who adds a plugin of these families says so here; it takes part by itself."""
    assert (len(WEIGHTINGS), len(COMBINERS), len(PENALTIES), OTHERS) == (9, 11, 7, ["ema", "mixup", "sam"])
    assert OPTIONS.keys() <= KINDS.keys()
    for others in (PENALTIES, OTHERS):
        met = in_turn(others)
        assert {(w, other) for w, _, other in met} == set(itertools.product(WEIGHTINGS, others))
        assert {(c, other) for _, c, other in met} == set(itertools.product(COMBINERS, others))
    assert all(pair & set(COMBINERS) and pair & set(OTHERS) for pair in REFUSED)
