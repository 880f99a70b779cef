"""The conformance kit of streamlearn, and what an adapter of foreign objects cannot meet."""

from __future__ import annotations

from collections.abc import Callable

from avalanche.training import plugins as av

from streamlearn.testing import plugin_checks
from streamlearn_avalanche import AvalanchePlugin

RESUMES = "Avalanche's plugins keep loaders, iterators, buffers of data sets and copies of models, which no plain state can hold"
EXPECTED = {
    "configuration": "the listed plugins are objects: run.json tells their classes and options, but they cannot be built from it",
    "resumes": RESUMES,
    "state_is_plain": RESUMES,
}


def make() -> AvalanchePlugin:
    return AvalanchePlugin([av.EWCPlugin(5.0), av.ReplayPlugin(12)])


@plugin_checks(make, expected_failures=EXPECTED)
def test_conformance(check: Callable[[], None]) -> None:
    check()
