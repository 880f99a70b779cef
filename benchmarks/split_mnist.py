"""Split MNIST by the protocol of van de Ven et al. 2022 (Nature Machine Intelligence 4:1185), next to their published figures.

    STREAMLEARN_DATA=... python benchmarks/split_mnist.py [--jobs 2] [--scenario class] [--method ER] [--seeds 10]

Five contexts of two digits, reshuffled with every seed; MLP 784-400-400, Adam 1e-3 that is not reset, 2,000 iterations a context in
batches of 128, inputs in [0, 1]. In the authors' code the tasks of the task-incremental scenario read parts of one output layer: its other
units have a gradient of zero in a step, not none, so that Adam's momentum moves them on. So it is here for the two rows in which that
counts, no method and A-GEM. (With a head for each task, which rests while the batch has no rows of it, training without a method forgets
less: 88.8 ± 1.3 in place of 84.3. The other rows have heads.)

Writes benchmarks/results/split_mnist.json after every run; what is in it already, for the same settings, is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from timing import save, seeds_at
from torch import Tensor, nn

from streamlearn import Engine, Plugin, models, plugins, streams
from streamlearn.models import SharedOutput

SCENARIOS = ("task", "domain", "class")
HIDDEN = {"separate networks": [100, 100]}
"""Units of the hidden layers where they are not 400 and 400."""
MEMORY = {"capacity": 100, "policy": "class_balanced", "budget": "per_group"}
ITERATIONS = 2000
ONE_LAYER = ("none", "A-GEM")
"""Methods whose tasks read parts of one output layer."""


class OneLayer(SharedOutput):
    """One output layer for all tasks: each reads units of its own, in the order in which tasks come."""

    def forward(self, features: Tensor, task: str) -> Tensor:
        sizes = self.sizes()
        start = sum(list(sizes.values())[: list(sizes).index(task)])
        return features[:, start : start + sizes[task]]


class Row(NamedTuple):
    """A published figure, mean and standard error over 20 seeds in per cent; ``None`` where the issue of the figure is unknown."""

    mean: float | None
    sem: float | None = None


PUBLISHED: dict[str, dict[str, Row]] = {
    "none": {"task": Row(84.32, 0.99), "domain": Row(60.13, 1.66), "class": Row(19.89, 0.02)},
    "joint": {"task": Row(99.67, 0.03), "domain": Row(98.59, 0.05), "class": Row(98.17, 0.04)},
    "EWC": {"task": Row(99.06, 0.15), "domain": Row(63.03, 1.58), "class": Row(20.64, 0.52)},
    "SI": {"class": Row(21.20, 0.57)},
    "LwF": {"task": Row(99.60, 0.03), "domain": Row(71.18, 1.42), "class": Row(21.89, 0.32)},
    "generative replay": {"domain": Row(95.57), "class": Row(90.35)},
    "ER": {"domain": Row(93.75), "class": Row(88.79, 0.20)},
    "A-GEM": {"task": Row(98.54, 0.10), "domain": Row(87.67, 1.33), "class": Row(65.10, 3.64)},
    "iCaRL": {"class": Row(92.49)},
    "separate networks": {"task": Row(99.57)},
}
STRATEGIES: dict[str, Callable[[str], Sequence[Plugin]]] = {
    "none": lambda scenario: [],
    "joint": lambda scenario: [],
    "EWC": lambda scenario: [plugins.EWC(strength={"task": 1e5, "domain": 1e10, "class": 1e9}[scenario])],
    "SI": lambda scenario: [plugins.SI(strength={"task": 10.0, "domain": 5e4, "class": 5e3}[scenario], gradient="total", clamp=False)],
    # the heads of old tasks are distilled one by one, which is their mean times k - 1 already
    "LwF": lambda scenario: [plugins.LwF(classes="all", by_experience=scenario == "domain")],
    "generative replay": lambda scenario: [plugins.GenerativeReplay(), plugins.ExperienceWeighting()],
    "ER": lambda scenario: [plugins.Replay(**MEMORY), plugins.ExperienceWeighting()],
    "A-GEM": lambda scenario: [plugins.AGEM(**MEMORY)],
    "iCaRL": lambda scenario: [
        plugins.Replay(**MEMORY | {"policy": "herding"}),
        plugins.ICaRLLoss(temperature=2.0),
        plugins.NearestClassMean(),
    ],
    "separate networks": lambda scenario: [plugins.SeparateNetworks()],
}


def stream_of(scenario: str, method: str, seed: int) -> streams.Stream:
    """The stream of a scenario; joint training has all contexts at once."""
    options: dict[str, Any] = {"domain": {"transform": "classes"}, "class": {"grow": method != "joint"}}.get(scenario, {})
    stream = streams.build(f"{scenario}_incremental", source="mnist", experiences=5, seed=seed, **options)
    return streams.joint(stream) if method == "joint" else stream


def seeds_of(scenario: str, method: str) -> int:
    """How many seeds a row has: more where they differ much."""
    return 10 if scenario == "domain" or method == "A-GEM" else 5


def settings_of(scenario: str, method: str) -> dict[str, Any]:
    """All that a figure depends on but its seed."""
    iterations = 5 * ITERATIONS if method == "joint" else ITERATIONS
    listed = [repr(plugin) for plugin in STRATEGIES[method](scenario)]
    found = {"scenario": scenario, "iterations": iterations, "plugins": listed}
    if scenario == "task" and method in ONE_LAYER:
        found["outputs"] = "one layer"
    return found | ({"hidden": HIDDEN[method]} if method in HIDDEN else {})


def network(stream: streams.Stream, settings: dict[str, Any], seed: int) -> models.Model:
    """The perceptron of a run."""
    hidden = settings.get("hidden", [400, 400])
    if "outputs" not in settings:
        return models.mlp(stream, hidden=hidden)
    torch.manual_seed(seed)
    sizes = [784, *hidden, sum(task.size for task in stream.tasks)]
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return models.Model(nn.Sequential(nn.Flatten(), *layers[:-1]), OneLayer())


def one(scenario: str, method: str, seed: int) -> dict[str, Any]:
    """Final accuracy on the test rows of each context, in per cent."""
    torch.set_num_threads(1)
    started = time.process_time()
    stream, settings = stream_of(scenario, method, seed), settings_of(scenario, method)
    engine = Engine(
        network(stream, settings, seed),
        lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),  # the same update in one kernel: half the time of a step
        STRATEGIES[method](scenario),
        iterations=settings["iterations"],
        batch_size=128,
        drop_last=True,
        evaluate="end",
        seed=seed,
    )
    contexts = engine.run(stream).accuracy_matrix[-1]
    return {
        "accuracy": 100 * float(np.mean(contexts)),
        "contexts": [round(100 * float(a), 2) for a in contexts],
        "cpu_seconds": round(time.process_time() - started, 1),
        "adam": "fused",  # figures without were taken with torch's default kernels: the same update, other roundings
    }


def summary(values: Sequence[float], published: Row) -> dict[str, Any]:
    """Mean, spread, the 95 % interval of the mean (Student's t), and how the published mean lies to it."""
    mean, count = float(np.mean(values)), len(values)
    found: dict[str, Any] = {"seeds": count, "mean": mean, "published": published.mean, "published_sem": published.sem}
    if count > 1:
        spread = float(np.std(values, ddof=1))
        half = float(stats.t.ppf(0.975, count - 1)) * spread / count**0.5
        found |= {"sd": spread, "low": mean - half, "high": mean + half}
        if published.mean is not None:
            error = (spread**2 / count + (published.sem or 0.0) ** 2) ** 0.5
            found |= {"inside": mean - half <= published.mean <= mean + half, "standard_errors": (mean - published.mean) / max(error, 1e-9)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS)
    parser.add_argument("--method", action="append", choices=list(STRATEGIES))
    parser.add_argument("--seeds", type=int, help="of every row, in place of 5, or 10 where seeds differ much")
    asked = parser.parse_args()
    path = Path(__file__).parent / "results" / "split_mnist.json"
    runs: dict[str, Any] = json.loads(path.read_text())["runs"] if path.exists() else {}
    wanted = []
    for method in asked.method or STRATEGIES:
        for scenario in asked.scenario or SCENARIOS:
            if scenario not in PUBLISHED[method]:
                continue
            settings, row = settings_of(scenario, method), f"{method}, {scenario}"
            known = seeds_at(runs, row, settings)
            count = asked.seeds or seeds_of(scenario, method)
            wanted += [(seed, scenario, method) for seed in range(count) if str(seed) not in known]
    wanted.sort(key=lambda job: job[0])  # every row has its first seeds early
    with ProcessPoolExecutor(asked.jobs) as pool:
        waiting = {pool.submit(one, scenario, method, seed): (seed, scenario, method) for seed, scenario, method in wanted}
        for done in as_completed(waiting):
            seed, scenario, method = waiting[done]
            row = runs[f"{method}, {scenario}"]
            row["seeds"][str(seed)] = done.result()
            row["seeds"] = dict(sorted(row["seeds"].items(), key=lambda item: int(item[0])))
            row["summary"] = summary([run["accuracy"] for run in row["seeds"].values()], PUBLISHED[method][scenario])
            save("split_mnist", {"runs": runs})
            found = row["summary"]
            print(f"{method}, {scenario}, seed {seed}: {row['seeds'][str(seed)]['accuracy']:.2f}; mean {found['mean']:.2f}", flush=True)


if __name__ == "__main__":
    main()
