"""Ten tasks of very unequal sizes: what the choice of the next task does for the worst of them, at equal numbers of updates.

    python benchmarks/scheduling.py [--seeds 3]

Task k asks for the digit in an 8 x 8 image whose pixels are shuffled in an order of its own. The tasks have 560, 392, ... rows, each seven
tenths of the one before, down to 23, of all digits alike; a quarter of them is kept for validation. 200 of the test rows measure each.
A layer of 64 ReLU units is shared; all strategies make the same number of updates of 32 rows. Writes benchmarks/results/scheduling.json;
a seed that is in it already, for the same settings, is not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import save, seeds_at

from streamlearn import Engine, Plugin, models, streams
from streamlearn.plugins import ActiveSampling, AnnealedSampling, RoundRobin, TemperatureSampling
from streamlearn.streams import Stream

SETTINGS: dict[str, Any] = {
    "tasks": 10, "largest": 560, "ratio": 0.7, "test_rows": 200, "validation": 0.25, "hidden": 64, "learning_rate": 0.1,
    "batch_size": 32, "epochs": 20,
}  # fmt: skip
STRATEGIES: dict[str, Callable[[], Sequence[Plugin]]] = {
    "proportional sampling": lambda: [TemperatureSampling(temperature=1.0)],
    "temperature sampling, 5": lambda: [TemperatureSampling(temperature=5.0)],
    "annealed sampling": lambda: [AnnealedSampling()],
    "round robin": lambda: [RoundRobin()],
    "active sampling, softmax": lambda: [ActiveSampling()],
    "active sampling, softmax, temperature 0.2": lambda: [ActiveSampling(temperature=0.2)],
    "active sampling, bandit": lambda: [ActiveSampling(rule="ucb")],
}


def balanced(classes: torch.Tensor, rows: int, draw: torch.Generator) -> torch.Tensor:
    """Positions of ``rows`` random rows, as many of each class as of any other, or one more."""
    order = torch.randperm(len(classes), generator=draw)
    same = torch.nn.functional.one_hot(classes[order])
    before = (same.cumsum(0) * same).sum(1)  # how many of its class have come when a row comes
    return order[before.argsort(stable=True)[:rows]]


def stream_of(seed: int) -> Stream:
    """The ten tasks; rows, their order and the orders of pixels are drawn from the seed."""
    draw = torch.Generator().manual_seed(seed)
    digits = streams.class_incremental("digits", 1)
    train, test = (data.batch(torch.arange(len(data))) for data in (digits[0].data["train"], digits.evaluation_set(0).data))
    sources: list[Any] = []
    tests: list[Any] = []
    for number in range(SETTINGS["tasks"]):
        pixels = torch.randperm(64, generator=draw)
        rows = balanced(train.targets["digits"], round(SETTINGS["largest"] * SETTINGS["ratio"] ** number), draw)
        held = torch.randperm(len(test.x), generator=draw)[: SETTINGS["test_rows"]]
        sources.append((train.x.flatten(1)[rows][:, pixels], train.targets["digits"][rows]))
        tests.append((test.x.flatten(1)[held][:, pixels], test.targets["digits"][held]))
    names = [f"order {number}" for number in range(SETTINGS["tasks"])]
    return streams.multitask(sources, test=tests, tasks=names, validation=SETTINGS["validation"], seed=seed)


def one(plugins: Sequence[Plugin], seed: int) -> dict[str, Any]:
    """Accuracy of each task after training, from the largest to the smallest, and the updates made."""
    stream = stream_of(seed)
    engine = Engine(
        lambda: models.mlp(stream, (SETTINGS["hidden"],)),
        lambda p: torch.optim.SGD(p, lr=SETTINGS["learning_rate"]),
        plugins,
        epochs=SETTINGS["epochs"],
        batch_size=SETTINGS["batch_size"],
        seed=seed,
        evaluate="end",
    )
    events = engine.run(stream).events
    found = {event["task"]: float(event["value"]) for event in events if event["event"] == "evaluation"}
    updates = next(event["updates"] for event in events if event["event"] == "experience")
    return {"accuracies": [found[task.name] for task in stream.tasks], "updates": updates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(1)
    path = Path(__file__).parent / "results" / "scheduling.json"
    runs: dict[str, dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else {}
    for name, plugins in STRATEGIES.items():
        settings = {**SETTINGS, "plugins": [repr(plugin) for plugin in plugins()]}
        found = seeds_at(runs, name, settings)
        for seed in seeds:
            if str(seed) not in found:
                found[str(seed)] = one(plugins(), seed)
                save("scheduling", {"runs": runs})
        worst = [min(found[str(seed)]["accuracies"]) for seed in seeds]
        mean = [float(np.mean(found[str(seed)]["accuracies"])) for seed in seeds]
        runs[name]["summary"] = {
            "seeds": len(worst), "worst": float(np.mean(worst)), "worst_sd": float(np.std(worst)), "mean": float(np.mean(mean)),
        }  # fmt: skip
        each = " ".join(f"{value:.3f}" for value in worst)
        print(f"{name:42s}  worst task {np.mean(worst):.3f} ± {np.std(worst):.3f} ({each})   mean of tasks {np.mean(mean):.3f}", flush=True)
    print(f"written to {save('scheduling', {'runs': runs})}")


if __name__ == "__main__":
    main()
