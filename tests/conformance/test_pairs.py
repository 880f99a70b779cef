from __future__ import annotations

import pytest
import torch

from tests.conformance.pairs import WANTS, names, outcome, pairs, plain

SILENT = {"multi_head": "the network has heads by task already", "dwa": "weighs alike before a task has had two epochs"}
"""Plugins that do nothing on this stream, and why."""


def differs(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() != b.keys() or any(a[name].shape != b[name].shape or not torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", names())
def test_each_plugin_acts_alone(name: str) -> None:
    """It moves other weights than no plugin does, or measures or predicts something else."""
    alone, without = outcome(name), plain(name)
    assert alone.refused is None
    assert alone.finite
    acts = differs(alone.weights, without.weights) or alone.measured != without.measured
    assert acts != (name in SILENT or name == "csv_tracker")


@pytest.mark.parametrize("first", names())
def test_every_pair_trains_or_is_refused_with_a_reason(first: str) -> None:
    for a, b in pairs():
        if a != first:
            continue
        both = outcome(a, b)
        if both.refused is not None:
            assert ":" in both.refused or ";" in both.refused, f"{a} + {b}: {both.refused}"
            continue
        assert both.finite, f"{a} + {b}"
        if not both.updates:
            continue  # one of them leaves nothing to train (SLDA), so that no objective is made
        for name in () if {a, b} & WANTS.keys() else (a, b):  # their streams differ from that on which others were seen alone
            assert name in both.terms or name not in outcome(name).terms, f"{name} has a term alone, and none in {a} + {b}"


def test_order_makes_no_difference_to_whether_two_are_refused() -> None:
    for a, b in pairs()[::17]:
        assert (outcome(a, b).refused is None) == (outcome(b, a).refused is None)
