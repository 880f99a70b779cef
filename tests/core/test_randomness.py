from __future__ import annotations

import pytest
import torch
from scipy import stats

from streamlearn.core.randomness import distinct, forked, generator, permutation, seed_forward, subseed


def test_streams_are_pure_and_differ_by_seed_purpose_and_place() -> None:
    seeds = {subseed(s, p, n) for s in (-1, 0, 1) for p in ("a", "b", 1, "1") for n in range(5)}
    assert len(seeds) == 3 * 4 * 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert torch.equal(torch.rand(3, generator=generator(0, "x")), torch.rand(3, generator=generator(0, "x")))


def test_a_permutation_is_the_same_on_every_machine() -> None:
    assert permutation(6, 0, "order", 1).tolist() == [0, 4, 1, 2, 5, 3], "runs begun elsewhere, or before, would not resume alike"
    assert sorted(permutation(600, 0, "order", 1).tolist()) == list(range(600))


def test_the_forward_is_seeded_by_update() -> None:
    with forked(torch.device("cpu")):
        draws = []
        for update in (0, 0, 1):
            seed_forward(5, update)
            draws.append(torch.rand(4))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_forked_leaves_the_state_also_after_a_failure() -> None:
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError), forked(torch.device("cpu")):
        torch.rand(3) @ torch.rand(4)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [6, 60])  # one order cut short; and numbers drawn one after another
def test_distinct_numbers_are_drawn_uniformly_in_any_order(size: int) -> None:
    random, first, counts = torch.Generator().manual_seed(3), torch.zeros(size), torch.zeros(size)
    for _ in range(2000):
        drawn = distinct(size, 5, random)
        assert len(set(drawn.tolist())) == 5
        first[drawn[0]] += 1
        counts[drawn] += 1
    assert stats.chisquare(first).pvalue > 0.01
    assert stats.chisquare(counts).pvalue > 0.01
    with pytest.raises(ValueError, match="cannot draw 7 distinct numbers below 6"):
        distinct(6, 7, random)
