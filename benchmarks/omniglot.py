"""Omniglot with a few minutes of one core: first-order MAML and prototypical networks on new alphabets.

    STREAMLEARN_DATA=... python benchmarks/omniglot.py [--minutes 5] [--method FOMAML] [--ways 5]

Trained on the 964 characters of the background alphabets and measured on 600 episodes of the 659 characters of the evaluation alphabets,
28 x 28 pixels, 1 support and 5 query rows of each class. Four convolutions of 64 filters, stride 2,
BatchNorm, ReLU, and a linear head. BatchNorm normalises by the rows at hand, support and query rows together, in training and evaluation:
the figures are *transductive*, like the published ones. Adam 1e-3, 16 episodes a step; MAML takes 1 inner step of rate 0.4 in training and
3 in the evaluation. As many steps as the minutes of CPU time allow, told by the first 10. Differences from the published protocols: the
split of the data set's authors in place of 1,200 characters at random, no rotated characters as further classes, 16 episodes in place of
32, and far less time. Writes benchmarks/results/omniglot.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import save
from torch import nn

from streamlearn import Engine, Plugin, streams
from streamlearn.models import Heads, Model
from streamlearn.plugins import MAML, ProtoNets

PATH = Path(__file__).parent / "results" / "omniglot.json"
METHODS: dict[str, Callable[[], Plugin]] = {
    "FOMAML": lambda: MAML(steps=1, rate=0.4, order=1, evaluation_steps=3),
    "ProtoNets": ProtoNets,
}
TASKS, TEST = 16, 600


def network(stream: streams.Stream) -> Model:
    layers: list[nn.Module] = []
    for width in (1, 64, 64, 64):
        layers += [nn.Conv2d(width, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64, track_running_stats=False), nn.ReLU()]
    return Model(nn.Sequential(*layers, nn.Flatten()), Heads(256, stream.tasks))


def stream_of(ways: int, seed: int, queries: int, train: int, test: int) -> streams.Stream:
    sizes = {"train_episodes": train, "test_episodes": test}
    test_source = "omniglot:part=evaluation,test_drawers=0"
    return streams.episodes("omniglot:test_drawers=0", ways=ways, shots=1, queries=queries, seed=seed, test=test_source, **sizes)


def trained(method: str, stream: streams.Stream, iterations: int, seed: int, evaluate: str) -> tuple[Any, float]:
    """The result, and the CPU seconds of a step."""
    marks: list[float] = []

    def progress(event: str, run: Any) -> None:
        if event == "step":
            marks.append(time.process_time())

    torch.manual_seed(seed)
    adam = lambda p: torch.optim.Adam(p, lr=1e-3)  # noqa: E731
    options: dict[str, Any] = {"batch_size": TASKS, "iterations": iterations, "evaluate": evaluate, "seed": seed, "progress": progress}
    result = Engine(network(stream), adam, [METHODS[method]()], **options).run(stream)
    return result, (marks[-1] - marks[1]) / (len(marks) - 2)


def one(method: str, ways: int, minutes: float, seed: int) -> dict[str, Any]:
    _, seconds = trained(method, stream_of(ways, seed, 5, 320, 5), 10, seed, "never")
    iterations = int(60 * minutes / seconds)
    result, seconds = trained(method, stream_of(ways, seed, 5, 20000, TEST), iterations, seed, "end")
    accuracy = 100 * float(result.accuracy_matrix[-1, 0])
    return {"accuracy": accuracy, "iterations": iterations, "cpu_minutes": iterations * seconds / 60, "episodes": TEST}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="of CPU time, for training")
    parser.add_argument("--method", action="append", choices=list(METHODS))
    parser.add_argument("--ways", type=int, action="append")
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    runs: dict[str, Any] = json.loads(PATH.read_text())["runs"] if PATH.exists() else {}
    for seed in range(asked.seeds):
        for ways in asked.ways or [5]:
            for method in asked.method or METHODS:
                row = runs.setdefault(f"{method}, {ways}-way 1-shot, {asked.minutes:g} minutes", {})
                if str(seed) not in row:
                    row[str(seed)] = one(method, ways, asked.minutes, seed)
                    save("omniglot", {"runs": runs})
                    print(f"{method}, {ways}-way, seed {seed}: {row[str(seed)]}", flush=True)


if __name__ == "__main__":
    main()
