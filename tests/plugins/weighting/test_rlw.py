from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from scipy import stats
from torchjd.scalarization import Random

from streamlearn import Engine, models, streams
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import SAM
from streamlearn.plugins.weighting.rlw import RLW, random_weights
from tests.core.support import class_stream, final, net, probe, separate_task_stream, sgd, two_task_stream
from tests.plugins.weighting.observed import derivative, split, watching

DISTRIBUTIONS = ("normal", "uniform", "random_normal", "dirichlet", "bernoulli", "constrained_bernoulli")


def sample(distribution: Any, tasks: str, count: int, moments: Any = None) -> torch.Tensor:
    draws = {task: torch.Generator().manual_seed(100 + i) for i, task in enumerate(tasks)}
    return torch.tensor([list(random_weights(distribution, draws, moments).values()) for _ in range(count)], dtype=torch.float64)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_weights_are_at_least_0_sum_to_1_and_favour_nobody(distribution: str) -> None:
    found = sample(distribution, "abcd", 3000, dict.fromkeys("abcd", (0.4, 0.9)))
    assert bool((found >= 0).all())
    torch.testing.assert_close(found.sum(1), torch.ones(3000, dtype=torch.float64))
    error = found.std(0) / math.sqrt(3000)
    assert bool(((found.mean(0) - 0.25).abs() < 4 * error).all())
    assert random_weights(distribution, {"a": torch.Generator()}, {"a": (0.1, 0.2)}) == {"a": 1.0}  # type: ignore[arg-type]


def test_normal_weights_are_distributed_as_torchjds() -> None:
    found = sample("normal", "abc", 2000)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        eye = torch.eye(3, dtype=torch.float64)[0]
        theirs = torch.stack([Random()(eye) for _ in range(2000)])  # their weight of the first
    for column in found.T:
        assert stats.ks_2samp(column.numpy(), theirs.numpy()).pvalue > 0.01


def test_normal_weights_of_two_are_logistic_normal() -> None:
    """logit w_a = z_a - z_b: of variance 2, or of the two tasks' own moments."""
    plain = torch.logit(sample("normal", "ab", 2000)[:, 0])
    assert stats.kstest(plain.numpy(), stats.norm(0, math.sqrt(2)).cdf).pvalue > 0.01
    own = torch.logit(sample("random_normal", "ab", 2000, {"a": (0.9, 0.3), "b": (0.2, 0.4)})[:, 0])
    assert stats.kstest(own.numpy(), stats.norm(0.7, 0.5).cdf).pvalue > 0.01


def test_uniform_weights_of_two_are_triangular() -> None:
    found = torch.logit(sample("uniform", "ab", 2000)[:, 0])
    assert stats.kstest(found.numpy(), stats.triang(0.5, loc=-1, scale=2).cdf).pvalue > 0.01


def test_dirichlet_weights_are_uniform_on_the_simplex() -> None:
    for column in sample("dirichlet", "abcd", 2000).T:
        assert stats.kstest(column.numpy(), stats.beta(1, 3).cdf).pvalue > 0.01


def test_bernoulli_weights_are_the_seven_equal_chances() -> None:
    found = Counter(tuple(row) for row in (sample("bernoulli", "abc", 2100) > 0).int().tolist())
    assert len(found) == 7
    assert stats.chisquare(list(found.values())).pvalue > 0.01
    assert set(sample("bernoulli", "abc", 200).flatten().tolist()) == {0.0, 1 / 3, 0.5, 1.0}


def test_constrained_bernoulli_chooses_one_of_all_equally() -> None:
    found = sample("constrained_bernoulli", "abc", 1500)
    assert set(found.flatten().tolist()) == {0.0, 1.0}
    assert stats.chisquare(found.sum(0).numpy()).pvalue > 0.01


def test_a_task_that_comes_or_goes_moves_no_others_draw() -> None:
    def draws(tasks: str) -> dict[str, torch.Generator]:
        return {task: torch.Generator().manual_seed(ord(task)) for task in tasks}

    few, more = random_weights("normal", draws("ab")), random_weights("normal", draws("bca"))
    assert few["a"] / few["b"] == pytest.approx(more["a"] / more["b"])


def weights_of(*plugins: Any, stream: Any = None, **options: Any) -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    stream = stream or two_task_stream()
    Engine(models.mlp(stream, (8,)), sgd(), [*plugins, watching(found)], **({"batch_size": 8, "epochs": 2} | options)).run(stream)
    return found


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("total", "expected"), [("one", 1.0), ("tasks", 2.0)])
def test_in_a_run_the_weights_sum_to_what_was_asked_for(distribution: str, total: str, expected: float) -> None:
    found = weights_of(RLW(distribution=distribution, total=total), epochs=4)
    assert [sum(weights.values()) for weights in found] == [pytest.approx(expected)] * 12
    assert len({weights["a"] for weights in found}) > 1, "drawn anew"
    other = weights_of(RLW(distribution=distribution, total=total), epochs=4, seed=1)
    assert other != found


def test_the_moments_of_random_normal_are_those_of_the_task_for_a_whole_run() -> None:
    """200 steps: the logits have one mean, which another seed does not share; a normal one's is 0."""
    means = {}
    for distribution, seed in (("normal", 0), ("random_normal", 0), ("random_normal", 2)):
        found = weights_of(RLW(distribution=distribution), stream=two_task_stream(rows=16), epochs=100, seed=seed)
        logits = torch.tensor([weights["a"] for weights in found]).logit()
        means[distribution, seed] = (logits.mean().item(), logits.std().item() / math.sqrt(len(found)), logits.std().item())
    assert abs(means["normal", 0][0]) < 4 * means["normal", 0][1]
    assert means["normal", 0][2] == pytest.approx(math.sqrt(2), rel=0.2)
    assert abs(means["random_normal", 0][0] - means["random_normal", 2][0]) > 4 * means["random_normal", 0][1]
    assert all(means["random_normal", seed][2] < math.sqrt(2) * 0.95 for seed in (0, 2))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_however_often_the_objective_is_evaluated_the_draw_is_the_same(distribution: str) -> None:
    answers: list[list[dict[str, float]]] = []

    def around(objective: Any, step: Any) -> Any:
        views = [step.at(), step.at(step.run.parameters()), step]
        found = [(view, objective(view)) for view in views]
        answers.append([derivative(view.run.hooks.provide_weighting, objective.losses, view) for view, objective in found])
        return found[-1][1]

    seen = weights_of(SAM(), RLW(distribution=distribution), probe("around", around_objective=around))
    assert len(answers) == 2 * len(seen), "at the weights themselves and at the ascended ones"
    assert all(found == [used] * 3 for found, used in zip(answers, [w for w in seen for _ in range(2)], strict=True))
    assert seen == weights_of(RLW(distribution=distribution)), "nor do others move it"


def test_micro_batches_share_the_draw() -> None:
    found = []
    for count in (1, 2):
        stream = two_task_stream(torch.float64)
        engine = Engine(models.mlp(stream, (8,)).double(), sgd(), [RLW()], batch_size=8, microbatches=count)
        found.append(final(engine, stream)[0])
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-9, atol=1e-12)


def test_a_batch_is_weighed_over_the_tasks_that_it_has() -> None:
    found = weights_of(RLW(), stream=separate_task_stream(1), batch_size=2, epochs=1)
    assert {1, 2} == {len(weights) for weights in found}
    assert all(sum(weights.values()) == pytest.approx(1) for weights in found)


def test_parts_of_a_task_have_its_weight() -> None:
    for whole, parts in zip(weights_of(RLW()), weights_of(RLW(), probe("split", transform_supervision=split)), strict=True):
        assert parts == pytest.approx({"a@x": whole["a"], "a/memory": whole["a"], "strange": whole["b"]})


def test_a_task_of_weight_0_keeps_its_head_where_it_is() -> None:
    """Momentum and decay would move it otherwise."""
    moved: list[tuple[dict[str, float], set[str]]] = []
    heads: dict[str, Any] = {}

    def before(step: Any) -> None:
        heads.update({name: p.detach().clone() for name, p in step.parameters.items() if not name.startswith("encoder.")})

    def after(step: Any) -> None:
        changed = {name.split(".")[-2] for name, p in heads.items() if not torch.equal(p, step.parameters[name])}
        moved.append((derivative(step.run.hooks.provide_weighting, step.losses, step), changed))

    weights_of(RLW(distribution="constrained_bernoulli"), probe("look", before_step=before, after_step=after), epochs=4)
    assert all(changed == {task for task, weight in weights.items() if weight} for weights, changed in moved)
    assert len({tuple(changed) for _, changed in moved}) == 2


def test_it_learns_as_the_plain_sum_does() -> None:
    """digits, two on a picture, over two seeds: within a few hundredths of the sum's losses, when the weights sum to K."""
    stream = streams.multitask("digits", 1)
    for seed in (0, 1):
        last = []
        for plugins in ([], [RLW(total="tasks")]):
            engine = Engine(models.mlp(stream, (16,)), sgd(weight_decay=0.0), plugins, epochs=3, seed=seed, evaluate="never")
            last.append([event["losses"] for event in final(engine, stream)[1] if event["event"] == "epoch"])
        for task in ("left", "right"):
            assert last[1][-1][task] < last[1][0][task] - 0.5
            assert last[1][-1][task] == pytest.approx(last[0][-1][task], abs=0.15)


def test_one_task_is_plain_training_bit_for_bit() -> None:
    plain, _ = final(Engine(net(), sgd(), batch_size=10), class_stream())
    for distribution in DISTRIBUTIONS:
        found, _ = final(Engine(net(), sgd(), [RLW(distribution=distribution)], batch_size=10), class_stream())
        assert all(torch.equal(found[name], value) for name, value in plain.items())


@pytest.mark.parametrize("options", [{"distribution": "cauchy"}, {"total": "two"}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"option '{next(iter(options))}'"):
        RLW(**options)
