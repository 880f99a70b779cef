"""What the first plugins do, on scikit-learn's digits: who forgets, who remembers, and by how much.

    python benchmarks/effect.py [--seeds 10]

Class-incremental: no plugin, replay + EWC (the demo's strategy) and joint. Task-incremental: no plugin against EWC, paired by
seed. Writes benchmarks/results/effect.json; a seed that is in it already, for the same settings, is not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from timing import save

from streamlearn import Engine, Plugin, models, streams
from streamlearn.plugins import EWC, Joint, Replay

COMMON = {"source": "digits", "experiences": 5, "hidden": [100], "momentum": 0.9, "batch_size": 32}
CLASSES = {**COMMON, "builder": "class_incremental", "learning_rate": 0.05, "epochs": 8}
# digits with a head for each pair of classes are hardly forgotten at small steps: long training at large ones shows a difference
TASKS = {**COMMON, "builder": "task_incremental", "learning_rate": 0.2, "epochs": 10}
STRATEGIES: dict[str, tuple[dict[str, Any], Callable[[], Sequence[Plugin]]]] = {
    "class-incremental, no plugin": (CLASSES, list),
    "class-incremental, replay + EWC": (CLASSES, lambda: [Replay(capacity=200), EWC(strength=10.0)]),
    "class-incremental, joint": (CLASSES, lambda: [Joint()]),
    "task-incremental, no plugin": (TASKS, list),
    "task-incremental, EWC": (TASKS, lambda: [EWC(strength=30.0)]),
}
MEASURES = ("average_accuracy", "forgetting", "learning_accuracy")


def one(settings: dict[str, Any], plugins: Sequence[Plugin], seed: int) -> dict[str, float]:
    stream = streams.build(settings["builder"], source=settings["source"], experiences=settings["experiences"], seed=seed)
    engine = Engine(
        models.mlp(stream, hidden=settings["hidden"]),
        lambda p: torch.optim.SGD(p, lr=settings["learning_rate"], momentum=settings["momentum"]),
        plugins,
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        seed=seed,
    )
    metrics = engine.run(stream).metrics
    return {name: float(metrics[name]) for name in MEASURES}


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation, and the 95 % interval of the mean (Student's t)."""
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * spread / len(values) ** 0.5
    return {"mean": mean, "sd": spread, "low": mean - half, "high": mean + half}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(1)
    path = Path(__file__).parent / "results" / "effect.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    runs: dict[str, dict[str, dict[str, float]]] = {}
    for name, (common, plugins) in STRATEGIES.items():
        settings = {**common, "plugins": [repr(plugin) for plugin in plugins()]}
        before = known.get("runs", {}).get(name, {})
        kept = before.get("seeds", {}) if before.get("settings") == settings else {}
        runs[name] = {"settings": settings, "seeds": {}}
        for seed in seeds:
            runs[name]["seeds"][str(seed)] = kept.get(str(seed)) or one(settings, plugins(), seed)
        summary = {m: interval([r[m] for r in runs[name]["seeds"].values()]) for m in MEASURES}
        runs[name]["summary"] = summary
        print(f"{name:34s}" + "".join(f"  {m} {s['mean']:.3f} ± {s['sd']:.3f}" for m, s in summary.items()), flush=True)
    pairs = zip(runs["task-incremental, no plugin"]["seeds"].values(), runs["task-incremental, EWC"]["seeds"].values(), strict=True)
    difference = interval([a["forgetting"] - b["forgetting"] for a, b in pairs])
    print(f"forgetting that EWC saves: {difference['mean']:.4f}, 95 % interval {difference['low']:.4f} to {difference['high']:.4f}")
    print(f"written to {save('effect', {'runs': runs, 'forgetting saved by EWC': difference})}")


if __name__ == "__main__":
    main()
