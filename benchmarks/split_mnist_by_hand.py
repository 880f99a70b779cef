"""Split MNIST by plain loops that know nothing of streamlearn, which tell a fault of the library from a detail of the protocol.

    STREAMLEARN_DATA=... python benchmarks/split_mnist_by_hand.py [--jobs 2] [--scenario class] [--method ER] [--seeds 10]

The loops do what the code published with van de Ven et al. 2022 (Nature Machine Intelligence 4:1185) does, also where the paper is silent:
one output layer whose units of other tasks are cut off, so that Adam's momentum moves them on while they have no gradient; 1e-7 beside the
squared norm in A-GEM's projection. Contexts and their order are those of split_mnist.py with the same seed; weights and batches are drawn
anew. Writes benchmarks/results/split_mnist_by_hand.json after every run; what is in it already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import save
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.datasets import MNIST

ROWS = {
    "none": ("task", "domain", "class"), "EWC": ("task", "domain", "class"), "SI": ("class",), "ER": ("domain", "class"),
    "A-GEM": ("task", "domain", "class"),
}  # fmt: skip
EWC_STRENGTH = {"task": 1e5, "domain": 1e10, "class": 1e9}
SI_STRENGTH, SI_DAMPING = 5e3, 0.1
AGEM_EPSILON = 1e-7
CONTEXTS, ITERATIONS, BATCH, BUDGET = 5, 2000, 128, 100


def digits(train: bool, order: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in [0, 1], and the place of each digit in the order of the classes."""
    found = MNIST(os.environ["STREAMLEARN_DATA"], train=train)
    return found.data.reshape(-1, 784).float() / 255, order.argsort()[found.targets]


def batches(rows: Tensor, size: int) -> Iterator[Tensor]:
    """Endless batches: shuffled anew when fewer than ``size`` rows are left."""
    while True:
        mixed = rows[torch.randperm(len(rows))]
        for i in range(len(rows) // size):
            yield mixed[i * size : (i + 1) * size]


class Loop:
    """One run: a network, Adam that is never reset, and what a method remembers."""

    def __init__(self, method: str, scenario: str, order: Tensor, seed: int) -> None:
        torch.manual_seed(seed)
        self.method, self.scenario = method, scenario
        self.x, self.y = digits(True, order)
        self.test_x, self.test_y = digits(False, order)
        self.net = nn.Sequential(
            nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 2 if scenario == "domain" else 2 * CONTEXTS)
        )
        self.weights = list(self.net.parameters())
        self.adam = torch.optim.Adam(self.weights, lr=1e-3, fused=True)
        self.memory: list[Tensor] = []
        self.penalties: list[tuple[list[Tensor], list[Tensor]]] = []  # importances and anchors
        self.omega = [torch.zeros_like(w) for w in self.weights]

    # ------------------------------------------------------------------ what is read and asked

    def asked(self, outputs: Tensor, y: Tensor, now: int) -> tuple[Tensor, Tensor]:
        """The outputs in play and the labels among them, for rows of one context, or of any where classes share them."""
        if self.scenario == "domain":
            return outputs, y % 2
        if self.scenario == "class":
            return outputs[:, : 2 * now], y
        first = 2 * int(y[0] // 2)
        return outputs[:, first : first + 2], y - first

    def loss(self, rows: Tensor, now: int) -> Tensor:
        return F.cross_entropy(*self.asked(self.net(self.x[rows]), self.y[rows], now))

    def accuracies(self) -> list[float]:
        found = []
        with torch.no_grad():
            for context in range(CONTEXTS):
                mine = self.test_y // 2 == context
                outputs, labels = self.asked(self.net(self.test_x[mine]), self.test_y[mine], CONTEXTS)
                found.append(100 * float((outputs.argmax(1) == labels).double().mean()))
        return found

    # ------------------------------------------------------------------ training

    def train(self, now: int) -> None:
        data = batches(torch.nonzero(self.y // 2 == now - 1).ravel(), BATCH)
        old = self.replayed(now) if now > 1 and self.memory else None
        start, path = [w.detach().clone() for w in self.weights], [torch.zeros_like(w) for w in self.weights]
        for _ in range(ITERATIONS):
            loss = self.loss(next(data), now)
            if old is not None and self.method == "ER":
                loss = loss / now + (1 - 1 / now) * old()
            if self.penalties:
                loss = loss + self.penalty()
            gradients = list(torch.autograd.grad(loss, self.weights))
            if old is not None and self.method == "A-GEM":
                gradients = projected(gradients, list(torch.autograd.grad(old(), self.weights)))
            before = [w.detach().clone() for w in self.weights] if self.method == "SI" else []
            for weight, gradient in zip(self.weights, gradients, strict=True):
                weight.grad = gradient
            self.adam.step()
            for i, was in enumerate(before):
                path[i] -= gradients[i] * (self.weights[i].detach() - was)
        self.remember(now, start, path)

    def penalty(self) -> Tensor:
        parts = [
            (importance * (weight - anchor) ** 2).sum()
            for importances, anchors in self.penalties
            for weight, importance, anchor in zip(self.weights, importances, anchors, strict=True)
        ]
        strength = EWC_STRENGTH[self.scenario] / 2 if self.method == "EWC" else SI_STRENGTH
        return strength * torch.stack(parts).sum()

    def replayed(self, now: int) -> Callable[[], Tensor]:
        """The loss of a batch of old rows; in the task-incremental scenario, of a smaller one for each old context."""
        if self.scenario != "task":
            rows = torch.cat(self.memory)
            old = batches(rows, min(BATCH, len(rows)))
            return lambda: self.loss(next(old), now)
        size = -(-BATCH // (now - 1))
        each = [batches(torch.cat(self.memory[2 * i : 2 * i + 2]), min(size, 2 * BUDGET)) for i in range(now - 1)]
        return lambda: torch.stack([self.loss(next(rows), now) for rows in each]).mean()

    # ------------------------------------------------------------------ between contexts

    def remember(self, now: int, start: list[Tensor], path: list[Tensor]) -> None:
        here = [w.detach().clone() for w in self.weights]
        if self.method in ("ER", "A-GEM"):
            for label in (2 * now - 2, 2 * now - 1):
                rows = torch.nonzero(self.y == label).ravel()
                self.memory.append(rows[torch.randperm(len(rows))[:BUDGET]])
        elif self.method == "EWC":
            self.penalties.append((self.fisher(now), here))
        elif self.method == "SI":
            self.omega = [o + p / ((h - s) ** 2 + SI_DAMPING) for o, p, h, s in zip(self.omega, path, here, start, strict=True)]
            self.penalties = [(self.omega, here)]

    @torch.no_grad()
    def fisher(self, now: int) -> list[Tensor]:
        """The diagonal of the Fisher information over all rows of the context, exact over the labels."""
        first, second, last = (self.net[i] for i in (0, 2, 4))
        rows = torch.nonzero(self.y // 2 == now - 1).ravel()
        found = [torch.zeros_like(w) for w in self.weights]
        for part in rows.split(1000):
            a0 = self.x[part]
            z1 = first(a0)
            a1 = z1.relu()
            z2 = second(a1)
            a2 = z2.relu()
            outputs = last(a2)
            active, _ = self.asked(outputs, self.y[part], now)
            offset = 0 if self.scenario != "task" else 2 * (now - 1)
            p = active.softmax(1)
            for label in range(active.shape[1]):
                d3 = torch.zeros_like(outputs)
                d3[:, offset : offset + active.shape[1]] = p - F.one_hot(torch.tensor(label), active.shape[1])
                d2 = (d3 @ last.weight) * (z2 > 0)
                d1 = (d2 @ second.weight) * (z1 > 0)
                for i, (delta, inputs) in enumerate(((d1, a0), (d2, a1), (d3, a2))):
                    squares = delta.square() * p[:, label, None]
                    found[2 * i] += squares.T @ inputs.square()
                    found[2 * i + 1] += squares.sum(0)
        return [f / len(rows) for f in found]


def projected(gradients: list[Tensor], reference: list[Tensor]) -> list[Tensor]:
    """A-GEM: without what goes against the gradient of the old rows."""
    dot = sum(float((g * r).sum()) for g, r in zip(gradients, reference, strict=True))
    if dot >= 0:
        return gradients
    scale = dot / (sum(float(r.square().sum()) for r in reference) + AGEM_EPSILON)
    return [g - scale * r for g, r in zip(gradients, reference, strict=True)]


def one(method: str, scenario: str, seed: int, order: list[int]) -> dict[str, Any]:
    torch.set_num_threads(1)
    started = time.process_time()
    loop = Loop(method, scenario, torch.tensor(order), seed)
    for now in range(1, CONTEXTS + 1):
        loop.train(now)
    contexts = loop.accuracies()
    seconds = round(time.process_time() - started, 1)
    return {"accuracy": float(np.mean(contexts)), "contexts": [round(a, 2) for a in contexts], "cpu_seconds": seconds}


def order_of(seed: int) -> list[int]:
    """The digits in the order in which the stream of split_mnist.py brings them."""
    from split_mnist import stream_of

    stream = stream_of("task", "none", seed)
    return [int(digit) for number in range(CONTEXTS) for digit in stream[number].name.removeprefix("classes ").split(", ")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--scenario", action="append", choices=("task", "domain", "class"))
    parser.add_argument("--method", action="append", choices=list(ROWS))
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    path = Path(__file__).parent / "results" / "split_mnist_by_hand.json"
    runs: dict[str, Any] = json.loads(path.read_text())["runs"] if path.exists() else {}
    wanted = [
        (seed, scenario, method)
        for seed in range(asked.seeds)
        for method in asked.method or ROWS
        for scenario in asked.scenario or ROWS[method]
        if scenario in ROWS[method] and str(seed) not in runs.get(f"{method}, {scenario}", {})
    ]
    with ProcessPoolExecutor(asked.jobs) as pool:
        waiting = {pool.submit(one, method, scenario, seed, order_of(seed)): (seed, scenario, method) for seed, scenario, method in wanted}
        for done in as_completed(waiting):
            seed, scenario, method = waiting[done]
            row = runs.setdefault(f"{method}, {scenario}", {})
            row[str(seed)] = done.result()
            save("split_mnist_by_hand", {"runs": runs})
            print(f"{method}, {scenario}, seed {seed}: {row[str(seed)]['accuracy']:.2f}", flush=True)


if __name__ == "__main__":
    main()
