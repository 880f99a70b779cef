"""Timing on shared, noisy machines: CPU time, one thread, the candidates interleaved, medians of ratios within a round."""

from __future__ import annotations

import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

Work = Callable[[], object]


def interleaved(candidates: Mapping[str, Work], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each candidate, `rounds` times, one after another within a round, after one round of warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, work in candidates.items():
            gc.collect()
            start = time.process_time()
            work()
            if number:
                seconds[name].append(time.process_time() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], over: str, under: str) -> dict[str, float]:
    """The ratio of two candidates: of their fastest rounds, and the median over rounds with its quartiles."""
    rounds = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
    low, middle, high = statistics.quantiles(rounds, n=4)
    return {"fastest": min(seconds[over]) / min(seconds[under]), "median": middle, "lower": low, "upper": high}


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    names = ("streamlearn", "torch", "numpy", "avalanche-lib")
    return {"python": platform.python_version(), "machine": platform.machine(), "threads": 1, **{name: version(name) for name in names}}


def save(name: str, results: Mapping[str, Any]) -> Path:
    """Write the figures next to the benchmark, under `benchmarks/results/`."""
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n")
    return path


def seeds_at(runs: dict[str, Any], name: str, settings: Any) -> dict[str, Any]:
    """The seeds of row ``name``, to be added to; those taken at other settings are dropped."""
    if runs.get(name, {}).get("settings") != settings:
        runs[name] = {"settings": settings, "seeds": {}}
    seeds: dict[str, Any] = runs[name]["seeds"]
    return seeds
